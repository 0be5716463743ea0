"""The shipped tables (egs/*/*/tables): every cell is a valid command of its recipe, every recorded row has a
cell.
"""

import functools
import re
import shlex
import subprocess
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyspkv.experiments.grid import Table, word
from pyspkv.experiments.results import UNITS, key_of, read_rows

ROOT = Path(__file__).resolve().parents[1]
TABLES = sorted(ROOT.glob("egs/*/*/tables/*.yaml"))
load = functools.cache(Table)


def one_of_each():
    """(table, the last cell of each of its templates)."""
    return [(t, c) for t in map(load, TABLES) for c in {c.template: c for c in t.cells.values()}.values()]


def dry_run(table, cell, *more):
    """The output of run.sh without data, network and .venv; nothing is written."""
    words = [*table.command(cell, Path("/exp")), "--dry-run", "true", *more]
    clean = {"PATH": "/usr/bin:/bin", "HOME": "/", "SPKV_CORPORA": "/corpora"}
    done = subprocess.run(words, cwd=table.recipe(cell), env=clean, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), (shlex.join(words), done.stderr)
    return done.stdout


def test_every_kind_of_cell_is_a_command_that_its_recipe_takes():
    before = sorted(ROOT.glob("egs/**/*"))
    with ThreadPoolExecutor(2) as pool:
        for output in pool.map(lambda pair: dry_run(*pair), one_of_each()):
            assert "== stage" in output
    assert sorted(ROOT.glob("egs/**/*")) == before


@pytest.mark.parametrize("recorded", sorted(ROOT.glob("egs/*/*/RESULTS.jsonl")), ids=lambda p: str(p.parent))
def test_every_recorded_row_has_its_cell(recorded):
    """The cell has the row's key, so a new run replaces the row.

    Exception: an untrained encoder has no recipe.
    """
    made, every = set(), defaultdict(set)
    for table in map(load, recorded.parent.glob("tables/*.yaml")):
        for cell in table.cells.values():
            for row in cell.rows:
                title = table.file.tables[row.table].title
                column = None if row.column is None else word(row.column)
                units = tuple(getattr(cell, u) for u in UNITS)
                made.add((title, row.row, column, *units))
                if row.row == "all":
                    every[title].add(units)
    lost = []
    for row in read_rows(recorded):
        phase = re.fullmatch(r"(pretrain|round)\d*|finetune|trunk", row["row"])
        whole = phase and key_of(row)[3:] in every[row["table"]]
        if key_of(row) not in made and not whole and "untrained" not in row["row"]:
            lost.append(key_of(row))
    assert lost == []
    assert made or every
