"""A table of experiments (docs/tables.md): cells, each a run of a recipe, and their rows of results."""

import os
import re
import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from pyspkv.base import config as cfg
from pyspkv.base.errors import Shown, UserError, printable
from pyspkv.experiments.results import NAME, UNITS, Look, Row

FOLDER = re.compile(r"\{exp:([^{}]*)\}")
Scalar = str | int | float | bool | None
Items = Annotated[list[Scalar | dict[str, Scalar]], Field(min_length=1)]
Option = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]*$")]


@dataclass
class Cell:
    """A cell, or the template of several cells (`each`); docs/tables.md explains the fields."""

    each: dict[str, Items] = field(default_factory=dict)
    recipe: str = "."
    options: dict[Option, Scalar] = field(default_factory=dict)
    seed: NonNegativeInt = 0
    fold: int | str | None = None
    draw: int | str | None = None
    speaker: int | str | None = None
    after: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    name: str = field(default="", init=False)
    template: str = field(default="", init=False)  # the cell's key in the file

    def needs(self) -> list[str]:
        """Cells that must finish before this one."""
        named = FOLDER.findall(" ".join(map(word, self.options.values())))
        zero = [row.zero.split("/")[0] for row in self.rows if row.zero]
        return list(dict.fromkeys([*self.after, *named, *zero]))


@dataclass
class File:
    """A table file: templates of cells, tables, and options of all cells."""

    cells: dict[str, dict[str, Any]]
    tables: dict[str, Look] = field(default_factory=dict)
    options: dict[Option, Scalar] = field(default_factory=dict)


def word(value: Scalar) -> str:
    """A YAML scalar as an argument of run.sh."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def fill(value: Any, variables: dict[str, Scalar]) -> Any:
    """Replace {name} by the value of that variable in every text within `value`.

    A text that consists of one {name} only becomes the value itself, with its type. UserError: there is no
    such variable.
    """
    if isinstance(value, dict):
        return {k: fill(v, variables) for k, v in value.items()}
    if isinstance(value, list):
        return [fill(v, variables) for v in value]
    for name in re.findall(r"\{(\w+)\}", value) if isinstance(value, str) else []:
        if name not in variables:
            raise UserError(
                f"'{value}': {name} is not a variable", hint=f"`each` has: {', '.join(variables)}"
            )
        if value == f"{{{name}}}":
            return variables[name]
        value = value.replace(f"{{{name}}}", word(variables[name]))
    return value


class Table:
    """A table file: its cells by name, in an order of running, and the looks of its tables by title.

    UserError: the file is damaged, a cell needs a cell that does not exist, or cells need each other.
    """

    def __init__(self, path: Path):
        folder = Path(os.path.abspath(path)).parent
        self.path, self.home = path, folder.parent if folder.name == "tables" else folder
        self.exp, self.results = self.home / "exp/grid", self.home / "RESULTS.jsonl"
        self.cells: dict[str, Cell] = {}
        where = ""
        try:
            self.file = cfg.load(File, path)
            for key, raw in self.file.cells.items():
                where = f"cells.{key}: "
                each = cfg.validate(Cell, {"each": raw.pop("each", {})}).each
                sets = [[v if isinstance(v, dict) else {name: v} for v in each[name]] for name in each]
                for chosen in product(*sets):
                    self.add(key, raw, {k: v for one in chosen for k, v in one.items()})
            where = ""
            graph = {cell.name: cell.needs() for cell in self.cells.values()}
            if lost := [n for needs in graph.values() for n in needs if n not in graph]:
                raise UserError(f"there is no cell '{lost[0]}'", hint=f"cells are: {', '.join(graph)[:300]}")
            self.cells = {name: self.cells[name] for name in TopologicalSorter(graph).static_order()}
        except CycleError as err:
            raise UserError(
                f"these cells need each other: {' after '.join(err.args[1])}", file=path
            ) from None
        except UserError as err:
            text = str(err).replace("--print-config", "python -m pyspkv.bin.grid --help")
            begin = "" if text.startswith(printable(str(path))) else printable(f"{path}: {where}")
            raise UserError(Shown(begin + text)) from None
        self.looks = {look.title: look for look in self.file.tables.values()}

    def add(self, key: str, raw: dict, variables: dict[str, Scalar]) -> None:
        """Add the cell that the template `key` gives with these variables."""
        name = word(fill(key, variables))
        if not re.fullmatch(NAME, name) or name in self.cells or len(self.cells) == 10_000:
            rule = (
                f"'{name}' is the name of another cell, or cannot be a name (letters, digits and . _ + = -)"
            )
            raise UserError(rule, hint="put every variable of `each` into the name")
        cell = cfg.validate(Cell, {u: variables[u] for u in UNITS if u in variables} | fill(raw, variables))
        reuse = {"reuse": f"{{exp:{cell.after[0]}}}"} if cell.after else {}
        options = {**self.file.options, **reuse, **cell.options}
        cell.options = {k: word(v) for k, v in options.items() if v is not None}
        if own := {"exp", "seed"} & options.keys():
            raise UserError(f"options: {own.pop()} is set by the cell itself")
        self.cells[name], cell.name, cell.template = cell, name, key
        for row in cell.rows:
            if row.table not in self.file.tables:
                tables = ", ".join(self.file.tables)
                raise UserError(f"there is no table '{row.table}'", hint=f"they are {tables}")
            look, row.row = self.file.tables[row.table], row.row or str(row.system)
            row.column = None if row.column is None else word(row.column)
            look.order += [] if row.row in ["all", *look.order] else [row.row]
            look.bases |= {row.row: row.base} if row.base else {}

    def select(self, pattern: str) -> list[Cell]:
        """The cells whose names match `pattern` (like gll-*) and cells that they need, in running order."""
        wanted = {name for name in self.cells if fnmatchcase(name, pattern)}
        for cell in reversed(self.cells.values()):
            wanted |= set(cell.needs()) if cell.name in wanted else set()
        return [c for c in self.cells.values() if c.name in wanted]

    def title(self, row: Row) -> str:
        """Title of the table that a row belongs to."""
        return self.file.tables[row.table].title

    def recipe(self, cell: Cell) -> Path:
        """Folder of a cell's recipe."""
        return Path(os.path.normpath(self.home / cell.recipe))

    def command(self, cell: Cell, exp: Path) -> list[str]:
        """The command of a cell, to be run in the folder of its recipe.

        UserError: the path of `exp` has characters that would break an option that it is part of.
        """
        words = ["./run.sh", "--exp", str(exp / cell.name), "--seed", str(cell.seed)]
        for key, scalar in cell.options.items():
            value = word(scalar)
            if FOLDER.search(value) and not FOLDER.fullmatch(value) and shlex.quote(str(exp)) != str(exp):
                rule = f"cells.{cell.template}: '{exp}' cannot be a part of the option {key}"
                raise UserError(rule, file=self.path, hint="give an --exp without spaces and quotes")
            words += [f"--{key}", FOLDER.sub(lambda found: str(exp / found[1]), value)]
        return words


def looks(files: list[Path]) -> dict[str, Look]:
    """Title of a table -> how RESULTS.md shows it. If several files have the title, the first one counts."""
    out: dict[str, Look] = {}
    for table in map(Table, files):
        out |= {title: look for title, look in table.looks.items() if title not in out}
    return out
