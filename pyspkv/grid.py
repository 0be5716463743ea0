"""A table of experiments: cells, each one run of a recipe, and the rows that they leave in RESULTS.jsonl.

    title: egs/mini                            # before the title of every table
    recipe: .                                  # folder with run.sh; paths are relative to the folder above tables/
    exp: exp/grid                              # a cell's experiment is exp/grid/<its name>
    results: RESULTS.jsonl
    options: {num-rounds: 3}                   # of run.sh, for every cell: --num-rounds 3; null takes one away again
    tables:
      main: {title: "Table 1: by labels a speaker", base: w/o GLL, compare: points, unit: draw, figures: [eer]}
    cells:
      pretrain-{seed}:                         # {seed}: a variable of `each`
        each: {seed: [0, 1, 2]}                # a cell for each; seed, fold, draw and speaker go into its rows too
        options: {stop-stage: 3}
        rows: [{table: main, row: Stage I only, column: none, system: pretrain}]
      "{system}-{labels}-{seed}":              # every combination; `system, name` take their values together
        each: {"system, name": [[gll, GLL], [wo-gll, w/o GLL]], labels: [1, 4], seed: [0, 1, 2]}
        after: ["pretrain-{seed}"]             # finished before; the first one's phases are taken: --reuse <its folder>
        options: {stage: 4, labels: "{labels}", system: "{system}", init: "{exp:pretrain-{seed}}/pretrain/model"}
        draw: "{seed}"                         # which utterances have labels
        rows: [{table: main, row: "{name}", column: "{labels}", system: final, cost: [round1, round2]}]

A cell has: each, recipe, options, seed, fold, draw, speaker, after, rows. A row has: table, row (default: the system),
column, system (default: final; else pretrain, round1, ... of results.json), base (the row that it is compared to), cost
(phases whose training counts; default: the system's). A table has: title, base, compare (points; percent of the base's
EER), unit (fold, draw, speaker or seed: what the spread is over; default: the first that its rows have), figures.
"""

import os
import re
import shlex
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from pyspkv import config as cfg
from pyspkv.errors import Shown, UserError, printable
from pyspkv.results import UNITS, Look

MAX_CELLS = 10_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")  # safe as a folder's name and in a shell
FOLDER = re.compile(r"\{exp:([^{}]*)\}")
Scalar = str | int | float | bool | None


@dataclass
class Row:
    table: str
    row: str | None = None
    column: str | int | float | None = None
    system: str = "final"
    base: str | None = None
    cost: list[str] | None = None


@dataclass
class Cell:
    recipe: str | None = None
    options: dict[str, Scalar] = field(default_factory=dict)
    seed: NonNegativeInt = 0
    fold: int | str | None = None
    draw: int | str | None = None
    speaker: int | str | None = None
    after: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    name: str = field(default="", init=False)
    template: str = field(default="", init=False)  # its key in the file

    def needs(self) -> list[str]:
        """Cells that must be finished first."""
        return list(dict.fromkeys([*self.after, *FOLDER.findall(" ".join(map(word, self.options.values())))]))


@dataclass
class File:
    cells: dict[str, dict[str, Any]]
    tables: dict[str, Look] = field(default_factory=dict)
    title: str = ""
    recipe: str = "."
    exp: str = "exp/grid"
    results: str = "RESULTS.jsonl"
    options: dict[str, Scalar] = field(default_factory=dict)


def word(value: Scalar) -> str:
    """A YAML scalar as run.sh takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fill(value: Any, variables: dict[str, Any]) -> Any:
    """{name} in every text within `value` becomes the variable's value; a text that is nothing else, its very value."""
    if isinstance(value, dict):
        return {k: _fill(v, variables) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, variables) for v in value]
    for name in re.findall(r"\{(\w+)\}", value) if isinstance(value, str) else []:
        if name not in variables:
            raise UserError(f"'{value}': {name} is no variable", mend=f"`each` has: {', '.join(variables)}")
        if value == f"{{{name}}}":
            return variables[name]
        value = value.replace(f"{{{name}}}", word(variables[name]))
    return value


def _combinations(each: Any) -> list[dict[str, Any]]:
    """{"a, b": [[1, 2], [3, 4]], c: [5]} -> [{a: 1, b: 2, c: 5}, {a: 3, b: 4, c: 5}]."""
    out = [{}]
    for key, values in each.items() if isinstance(each, dict) else [("each", None)]:
        names = re.split(r"\s*,\s*", str(key))
        items = [v if len(names) > 1 else [v] for v in values] if isinstance(values, list) else []
        sound = [
            isinstance(v, list) and len(v) == len(names) and all(isinstance(x, Scalar) for x in v)
            for v in items
        ]
        if not items or not all(sound) or len(out) * len(items) > MAX_CELLS:
            rule = (
                f"each: '{key}' must be a list, {len(names)} value(s) an item, for at most {MAX_CELLS} cells"
            )
            raise UserError(
                rule, mend="each: {seed: [0, 1], 'system, name': [[gll, GLL], [wo-gll, w/o GLL]]}"
            )
        out = [old | dict(zip(names, v)) for old, v in product(out, items)]
    return out


class Table:
    """A table file: its cells by name in an order of running, the looks of its tables by title."""

    def __init__(self, path: Path):
        folder = Path(os.path.abspath(path)).parent
        self.path, self.home = path, folder.parent if folder.name == "tables" else folder
        self.cells: dict[str, Cell] = {}
        where = ""
        try:
            self.file = cfg.load(File, path)
            for key, raw in self.file.cells.items():
                where = f"cells.{key}: "
                for variables in _combinations(raw.pop("each", {})):
                    self._add(key, raw, variables)
            where = ""
            order = TopologicalSorter(
                {c.name: self.known(c.needs()) for c in self.cells.values()}
            ).static_order()
            self.cells = {name: self.cells[name] for name in order}
        except CycleError as err:
            raise UserError(f"cells wait for each other: {' after '.join(err.args[1])}", file=path) from None
        except UserError as err:
            text = str(err).replace("--print-config", "python -m pyspkv.bin.grid --help")
            begin = "" if text.startswith(printable(str(path))) else printable(f"{path}: {where}")
            raise UserError(Shown(begin + text)) from None
        self.exp, self.results = self.home / self.file.exp, self.home / self.file.results
        for look in self.file.tables.values():
            look.title = f"{self.file.title}. {look.title}" if self.file.title else look.title
        self.looks = {look.title: look for look in self.file.tables.values()}

    def _add(self, key: str, raw: dict, variables: dict[str, Any]) -> None:
        name = word(_fill(key, variables))
        if not NAME.fullmatch(name) or name == "plots" or name in self.cells:
            rule = f"'{name}' is a second cell's name or cannot be one (letters, digits and . _ + = -)"
            raise UserError(rule, mend="put every variable of `each` into the name")
        cell = cfg.validate(Cell, {u: variables[u] for u in UNITS if u in variables} | _fill(raw, variables))
        cell.name, cell.template, cell.recipe = name, key, cell.recipe or self.file.recipe
        reuse = {"reuse": f"{{exp:{cell.after[0]}}}"} if cell.after else {}
        options = {**self.file.options, **reuse, **cell.options}
        cell.options = {k: word(v) for k, v in options.items() if v is not None}
        bad = [k for k in cell.options if not re.fullmatch("[a-z][a-z0-9_-]*", k) or k in ("exp", "seed")]
        if bad or "\0" in "".join(cell.options.values()):
            raise UserError(
                f"no option can be called {bad} or hold a NUL", mend="exp and seed are the cell's own"
            )
        self.cells[name] = cell
        for row in cell.rows:
            if row.table not in self.file.tables or not all(
                map(NAME.fullmatch, [row.system, *(row.cost or [])])
            ):
                rule = f"rows: no table is called '{row.table}', or no phase '{row.system}'"
                raise UserError(rule, mend=f"tables are: {', '.join(self.file.tables)}")
            look, row.row = self.file.tables[row.table], row.row or row.system
            look.order += [] if row.row in look.order else [row.row]
            look.bases |= {row.row: row.base} if row.base else {}

    def known(self, names: list[str]) -> list[str]:
        if lost := [n for n in names if n not in self.cells]:
            raise UserError(
                f"no cell is called '{lost[0]}'", mend=f"cells are: {', '.join(self.cells)[:300]}"
            )
        return names

    def select(self, pattern: str) -> list[Cell]:
        """The cells in whose names `pattern` is found and those that they need, in an order of running."""
        wanted = {name for name in self.cells if re.search(pattern, name)}
        for cell in reversed(self.cells.values()):
            wanted |= set(cell.needs()) if cell.name in wanted else set()
        return [c for c in self.cells.values() if c.name in wanted]

    def recipe(self, cell: Cell) -> Path:
        return Path(os.path.normpath(self.home / cell.recipe))

    def command(self, cell: Cell, exp: Path) -> list[str]:
        """run.sh of a cell, word by word. UserError: the name of `exp` would break an option that it is a part of."""
        words = [str(self.recipe(cell) / "run.sh"), "--exp", str(exp / cell.name), "--seed", str(cell.seed)]
        for key, value in cell.options.items():
            if FOLDER.search(value) and not FOLDER.fullmatch(value) and shlex.quote(str(exp)) != str(exp):
                rule = f"cells.{cell.template}: '{exp}' cannot be a part of the option {key}"
                raise UserError(rule, file=self.path, mend="give an --exp without spaces and quotes")
            words += [f"--{key}", FOLDER.sub(lambda found: str(exp / found[1]), value)]
        return words
