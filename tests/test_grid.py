"""Tables of experiments on a fake recipe: cells, order, claims, kills, rows, RESULTS.md."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pyspkv.base.errors import UserError
from pyspkv.bin import grid as cli
from pyspkv.experiments import results
from pyspkv.experiments.grid import Table, looks

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

# Notes its arguments, refuses to run twice at a time, takes --wait seconds in steps that it resumes, fails
# on --fail.
RECIPE = r"""#!/bin/bash
set -eu
exp= labels=0 wait=0 fail=false eer=10 seed=0
while [ $# -gt 0 ]; do case $1 in
  --exp | --labels | --wait | --fail | --eer | --seed) printf -v "${1#--}" %s "$2" ;; esac
  words+=("$1" "$2"); shift 2; done
mkdir "$exp/alone" 2> /dev/null || { [ ! -d "/proc/$(cat "$exp/alone/pid")" ] || { echo TWO >> "$exp/two"; exit 9; }; }
echo $$ > "$exp/alone/pid"
printf '%s\n' "${words[@]}" > "$exp/words"
echo "${exp##*/}" >> "$(dirname "$exp")/../order"
for i in $(seq "$wait"); do [ -e "$exp/step$i" ] || { sleep 0.05; touch "$exp/step$i"; }; done
if [ "$fail" = true ]; then echo "no such noise list"; exit 3; fi
one='{"eer": '$eer', "min_dcf_0.01": 0.5, "eer_ci_low": 1, "eer_ci_over": "speakers", "nmi": null}'
echo '{"pretrain": '$one', "rounds": [{"round": 2, "num_clusters": 7, '"${one#?}"'], "final": '$one',
 "supervised": null, "others": {}, "trials": "test"}' > "$exp/results.json"
rm -r "$exp/alone"
"""


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "my recipe"
    (folder / "tables").mkdir(parents=True)
    (folder / "run.sh").write_text(RECIPE)
    (folder / "run.sh").chmod(0o755)
    return folder


def table(recipe, text, name="t.yaml"):
    (recipe / "tables" / name).write_text(text)
    return recipe / "tables" / name


def call(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["grid", *map(str, argv)])
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        return cli.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def rows(recipe):
    return [json.loads(x) for x in (recipe / "RESULTS.jsonl").read_text().split("\n")[:-1]]


PRODUCT = """
options: {labels: 9, wait: 0, nj: 2}
tables:
  main: {title: "Toy. Table 1", base: w/o GLL, unit: draw}
cells:
  "{system}-{labels}-{seed}":
    each:
      system: [{system: wo, name: w/o GLL, eer: 12}, {system: gll, name: GLL, eer: 10.5}]
      labels: [1, 4]
      seed: [0, 1]
    after: ["pre-{seed}"]
    options: {labels: "{labels}", eer: "{eer}", nj: null, opts: "init={exp:pre-{seed}}/m x={labels}", flag: true}
    draw: "{seed}"
    rows: [{table: main, row: "{name}", column: "{labels}"}]
  pre-{seed}:
    each: {seed: [0, 1]}
    rows: [{table: main, row: Stage I, column: none, system: pretrain}]
"""


def test_products_options_and_order(recipe):
    t = Table(table(recipe, PRODUCT))
    assert sorted(t.cells) == sorted(
        [f"pre-{s}" for s in (0, 1)] + [f"{k}-{n}-{s}" for k in ("wo", "gll") for n in (1, 4) for s in (0, 1)]
    )
    order = list(t.cells)
    assert all(order.index(need) < order.index(c.name) for c in t.cells.values() for need in c.needs())
    cell = t.cells["gll-4-1"]
    assert (cell.seed, cell.draw, cell.fold, cell.needs()) == (1, 1, None, ["pre-1"])
    assert t.command(cell, Path("/x")) == [
        *("./run.sh", "--exp", "/x/gll-4-1", "--seed", "1", "--labels", "4", "--wait", "0"),
        *("--reuse", "/x/pre-1", "--eer", "10.5", "--opts", "init=/x/pre-1/m x=4", "--flag", "true"),
    ]
    assert [c.name for c in t.select("gll-4-*")] == ["pre-0", "pre-1", "gll-4-0", "gll-4-1"]
    assert t.recipe(cell) == recipe
    assert t.looks["Toy. Table 1"].order == ["w/o GLL", "GLL", "Stage I"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("unit: draw", "unti: draw", r"unknown config key 'tables.main.unti'"),
        ("unit: draw", "unit: round", r"tables.main.unit"),
        ("labels: [1, 4]", "labels: 4", r"cells.{system}-{labels}-{seed}: config key 'each.labels'.* array"),
        ("labels: [1, 4]", "labels: []", r"each.labels.* at least 1"),
        ("labels: [1, 4]", "labels: [[1, 4]]", r"each.labels.0"),
        ('"{labels}", eer', '"{label}", eer', r"'{label}': label is not a .*\n.*system, name, eer, labels, seed"),
        ("flag: true", "flag: [1]", r"options.flag"),
        ("flag: true", "exp: /etc", r"options: exp is set by the cell itself"),
        ("flag: true", "'a b': 1", r"options.a b.* pattern"),
        ('draw: "{seed}"', "drow: 1", r"unknown config key 'drow'"),
        ("column: none", "colum: none", r"unknown config key 'rows.0.colum'"),
        ("{table: main, row: Stage", "{table: mian, row: Stage", r"there is no table 'mian'.*\n.*main"),
        ("system: pretrain", "system: ../x", r"rows.0.system.* pattern"),
        ("system: pretrain", "system: [pretrain, a/b]", r"rows.0.system"),
        ("system: pretrain", "zero: pretrain", r"rows.0.zero.* pattern"),
        ("system: pretrain", "zero: x/y", r"there is no cell 'x'"),
        ('["pre-{seed}"]', '["pre-7"]', r"there is no cell 'pre-7'"),
        ("pre-{seed}:\n", "pre:\n", r"'pre' is the name of another cell"),
        ("pre-{seed}:\n", '"a/{seed}":\n', r"'a/0' is the name of another cell, or cannot be a name"),
        ("    rows: [{table: main, row: St", "    after: [gll-1-0]\n    rows: [{table: main, row: St", "each other"),
        ("options: {labels: 9", "options: [", r"t.yaml:\d+: cannot be read as YAML"),
        ("seed: [0, 1]}\n    rows", "seed: [true]}\n    rows", r"seed"),
    ],
)  # fmt: skip
def test_an_error_in_the_table_names_file_and_key(recipe, old, new, says):
    assert PRODUCT.count(old) == 1
    with pytest.raises(UserError, match=says) as err:
        Table(table(recipe, PRODUCT.replace(old, new)))
    assert str(err.value).startswith(str(recipe / "tables/t.yaml")) and len(str(err.value).splitlines()) <= 2
    assert str(err.value).count("t.yaml") == 1


def test_runs_once_in_order_and_leaves_rows_and_tables(recipe, monkeypatch, capsys):
    text = PRODUCT.replace("init={exp:pre-{seed}}/m", "a b")  # a folder name with a space
    path = table(recipe, text)
    assert call(monkeypatch, path, "--jobs", 2) == 0
    order = (recipe / "exp/order").read_text().split()
    assert len(order) == 10 and set(order[:2]) == {"pre-0", "pre-1"}
    assert (recipe / "exp/grid/gll-1-0/words").read_text().split("\n")[:4] == [
        "--exp", f"{recipe}/exp/grid/gll-1-0", "--seed", "0"]  # fmt: skip
    found = {(r["row"], r.get("column"), r["seed"]): r for r in rows(recipe)}
    assert len(found) == len(rows(recipe)) == 10
    row = found["GLL", "4", 1]
    assert (row["eer"], row["draw"], row["table"], row["eer_ci_low"]) == (10.5, 1, "Toy. Table 1", 1)
    assert row["cell"] == "gll-4-1"
    assert "my recipe' && ./run.sh --exp exp/grid/gll-4-1 --seed 1 --labels 4 " in row["command"]
    assert row["machine"] and row["grid"].endswith("tables/t.yaml")
    tables = (recipe / "RESULTS.md").read_text()
    assert (
        "| GLL | 10.50 ± 0.00 | 10.50 ± 0.00 | - |" in tables and "| GLL | -1.50 (-1.50 .. -1.50) |" in tables
    )
    assert (recipe / "exp/grid/plots/Toy_Table_1.png").stat().st_size > 1000
    before = (recipe / "RESULTS.jsonl").read_bytes()
    assert call(monkeypatch, path) == 0
    assert (recipe / "exp/order").read_text().split() == order and (
        recipe / "RESULTS.jsonl"
    ).read_bytes() == before
    capsys.readouterr()
    call(monkeypatch, path, "--status")
    assert "10 done" in capsys.readouterr().out

    # A row that was lost between the mark and RESULTS.jsonl is written without a run. A row can be added
    # later.
    (recipe / "RESULTS.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows(recipe)[1:]))
    more = text.replace("system: pretrain}", "system: pretrain}, {table: main, row: two, system: round2}")
    assert call(monkeypatch, table(recipe, more)) == 0
    assert (recipe / "exp/order").read_text().split() == order and len(rows(recipe)) == 12
    assert {r["num_clusters"] for r in rows(recipe) if r["row"] == "two"} == {7}


def test_rows_can_contain_the_starting_eer_and_other_trial_lists_get_their_own_rows(recipe, monkeypatch):
    text = """
tables: {m: {title: M, base: a}}
cells:
  a: {options: {eer: 20}, rows: [{table: m, row: a}]}
  b: {options: {eer: 15}, rows: [{table: m, row: b, zero: a/round2}]}
  c: {options: {eer: 5}, rows: [{table: m, system: all}]}
"""
    path, exp = table(recipe, text), recipe / "trial"
    assert call(monkeypatch, path, "--exp", exp) == 0
    assert not (recipe / "RESULTS.jsonl").exists() and not (recipe / "exp/grid").exists()
    found = {r["row"]: r for r in map(json.loads, (exp / "RESULTS.jsonl").read_text().splitlines())}
    assert (found["b"]["eer"], found["b"]["eer_zero"]) == (15, 20) and "eer_zero" not in found["a"]
    assert found.keys() == {"a", "b", "pretrain", "round2"}
    columns, lines = cells((exp / "RESULTS.md").read_text(), "## M")
    assert lines["b"][columns.index("EER %, no step of fine-tuning")] == "20.00"
    assert lines["b"][-2:] == ["-5.00 (one seed: no interval)", "1 of 1"] and lines["a"][-2:] == ["-", "-"]


def test_a_failed_cell_is_named_and_stops_only_cells_that_need_it(recipe, monkeypatch, capfd):
    text = """
tables: {m: {title: M}}
cells:
  a: {options: {fail: true}, rows: [{table: m, row: a}]}
  b: {after: [a]}
  c: {after: [b]}
  d: {rows: [{table: m, row: d}]}
  e: {rows: [{table: m, system: round9}]}
"""
    path = table(recipe, text)
    assert call(monkeypatch, path) == 1
    err = capfd.readouterr().err
    assert "no such noise list" in err and f"failed: a (exit code 3: {recipe}/exp/grid/a/log/grid.log)" in err
    assert (
        "failed: b (not run, because it needs a)" in err and "failed: c (not run, because it needs b)" in err
    )
    assert "failed: e (done, but its rows cannot be written" in err and "has no system 'round9'" in err
    assert [r["row"] for r in rows(recipe)] == ["d"]
    call(monkeypatch, path, "--status")
    out = capfd.readouterr().out
    assert re.search(r"^a +failed", out, re.M) and re.search(r"^b +to do$", out, re.M)
    assert "2 done" in out and "2 to do" in out and "left, 1 at a time" in out
    (recipe / "run.sh").write_text(RECIPE.replace("exit 3", "true"))  # the cause is repaired
    assert call(monkeypatch, path) == 1 and not (recipe / "exp/grid/b/reuse").exists()
    assert (recipe / "exp/order").read_text().split().count("d") == 1, "what is done is not done again"
    assert {p.name for p in (recipe / "exp/grid").glob("[abcd]/grid.json")} == {"grid.json"}
    assert "--reuse\n" + f"{recipe}/exp/grid/a\n" in (recipe / "exp/grid/b/words").read_text()


def test_a_changed_cell_is_refused_with_the_difference(recipe, monkeypatch, capsys):
    text = "cells:\n  a: {options: {labels: 1}}\n  b: {after: [a]}\n  c: {}\n"
    path = table(recipe, text)
    assert call(monkeypatch, path) == 0
    call(monkeypatch, table(recipe, text.replace("labels: 1", "labels: 2")), "--status")
    assert re.search(r"^a +changed .*--labels 1 .*--labels 2 ", capsys.readouterr().out, re.M)
    with pytest.raises(
        UserError, match=r"cell a has changed.*--labels 1 after.*--labels 2 .*\n  hint: rm -r .*grid/a'$"
    ):
        call(monkeypatch, path)
    shutil.rmtree(recipe / "exp/grid/a")
    assert call(monkeypatch, path, "--only", "a") == 0
    with pytest.raises(UserError, match=r"cell b has changed.* after {'a': .*\n  hint: rm -r .*grid/b'$"):
        call(monkeypatch, path)  # made from an earlier run of a
    shutil.rmtree(recipe / "exp/grid/b")
    assert call(monkeypatch, path) == 0
    assert (recipe / "exp/order").read_text().split() == ["a", "c", "b", "a", "b"]


def test_the_dry_run_can_be_pasted_and_writes_nothing(recipe, monkeypatch, capsys):
    nasty = "a b'; touch hacked; $(touch hacked) `touch hacked` \u2028 \"é"
    path = table(recipe, f"cells:\n  a: {{options: {{opts: {json.dumps(nasty)}}}}}\n")
    before = sorted(recipe.rglob("*"))
    exp = recipe / "exp '$(touch hacked)'"
    assert call(monkeypatch, path, "--dry-run", "--exp", exp, "--run-opts", "--nj 2") == 0
    line = capsys.readouterr().out.removesuffix("\n")
    assert sorted(recipe.rglob("*")) == before
    (exp / "a").mkdir(parents=True)
    subprocess.run(["bash", "-c", line], check=True, cwd=recipe)
    assert (exp / "a/words").read_text() == "\n".join(
        ["--exp", f"{exp}/a", "--seed", "0", "--opts", nasty, "--nj", "2", ""]
    )
    assert not list(recipe.rglob("hacked"))
    call(monkeypatch, path, "--exp", exp)
    (exp / "a/grid.json").write_text('{"seconds": "x"}')
    with pytest.raises(UserError, match=r"grid.json: is not the record of a cell\n  hint: rm -r .*/a'$"):
        call(monkeypatch, path, "--exp", exp)
    text = "cells:\n  a: {}\n  b: {options: {x: '{exp:a}', y: 'k={exp:a}'}}\n"
    with pytest.raises(UserError, match="cannot be a part of the option y"):
        call(monkeypatch, table(recipe, text), "--dry-run", "--exp", exp)


def test_the_runner_precedes_the_command(recipe, monkeypatch):
    path = table(recipe, "cells:\n  a: {}\n")
    assert call(monkeypatch, path, "--cmd", "utils/run.sh --num-threads 1") == 0
    assert "# Ended (code 0)" in (recipe / "exp/grid/a/log/grid.log").read_text()


def start(path, *more):
    command = [sys.executable, "-m", "pyspkv.bin.grid", path, *more]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(what, seconds=30):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_signal_ends_the_cell_and_status_sees_who_runs(recipe, monkeypatch, capsys):
    path = table(recipe, "cells:\n  a: {options: {wait: 1000}}\n  b: {}\n")
    process = start(path)
    pid = recipe / "exp/grid/a/alone/pid"
    wait_for(lambda: (recipe / "exp/grid/a/step1").exists())
    call(monkeypatch, path, "--status")
    out = capsys.readouterr().out
    assert re.search(r"^a +running$", out, re.M) and "1 running, 1 to do; the time is unknown" in out
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    call(monkeypatch, path, "--status")
    assert re.search(r"^a +interrupted", capsys.readouterr().out, re.M)


def test_a_signal_lets_the_jobs_of_a_runner_end_in_their_own_time(recipe):
    """utils/run.sh gives each job a process group of its own and ends it itself, which takes a moment."""
    job = "trap 'sleep 0.5; touch cleaned; exit 0' TERM; echo $$ > job; while :; do sleep 0.05; done"
    (recipe / "run.sh").write_text(
        f"#!/bin/bash\nexec {ROOT}/utils/run.sh job.log bash -c {shlex.quote(job)}\n"
    )
    process = start(table(recipe, "cells:\n  a: {}\n"))
    wait_for(lambda: (recipe / "job").exists() and (recipe / "job").read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT
    assert (recipe / "cleaned").exists() and not Path(
        f"/proc/{(recipe / 'job').read_text().strip()}"
    ).exists()


def test_runs_that_a_killed_process_has_left_are_waited_for(recipe):
    path = table(recipe, "cells:\n  a: {options: {wait: 30}}\n")
    first = start(path)
    wait_for(lambda: (recipe / "exp/grid/a/step1").exists())
    first.kill()
    first.communicate()
    said, _ = start(path).communicate(timeout=30)
    assert "other processes run the remaining cells" in said and "1 of 1 cells are done" in said
    assert not (recipe / "exp/grid/a/two").exists()


@pytest.mark.slow
def test_processes_killed_at_random_leave_no_row_twice_and_no_cell_undone(recipe):
    text = """
tables: {m: {title: M}}
cells:
  a{seed}:
    each: {seed: [0, 1, 2]}
    options: {wait: 8}
    rows: [{table: m, row: a}]
  b{seed}:
    each: {seed: [0, 1, 2]}
    after: ["a{seed}"]
    options: {wait: 4}
    rows: [{table: m, row: b}, {table: m, system: round2}]
"""
    path, rng = table(recipe, text), random.Random(0)
    pair = [start(path), start(path)]
    for kill in range(10):
        time.sleep(rng.uniform(0.1, 0.5))
        pair[kill % 2].send_signal(signal.SIGKILL)
        pair[kill % 2].communicate()
        pair[kill % 2] = start(path)
    assert [p.communicate(timeout=60) and p.returncode for p in pair] == [0, 0]
    found = [(r["row"], r["seed"]) for r in rows(recipe)]
    assert sorted(found) == [(row, s) for row in ("a", "b", "round2") for s in range(3)]
    marks = [json.loads(p.read_text()) for p in (recipe / "exp/grid").glob("*/grid.json")]
    assert [m["state"] for m in marks] == ["done"] * 6
    assert not list(recipe.rglob("two")), "a run was started beside one that still ran"


# ---- rows and tables -------------------------------------------------------------------------------------------------
ROW = {"table": "T", "row": "r", "seed": 0, "eer": 5.0}


@pytest.mark.parametrize(
    "bad",
    [
        '{"table": "T", "row": 5, "seed": 0, "eer": 1}', '{"table": "T", "row": null, "seed": 0, "eer": 1}',
        *(json.dumps({**ROW, **x}) for x in (
            {"nmi": "x"}, {"command": 5}, {"eer": True}, {"eer": float("nan")}, {"eer": 101}, {"eer": -1},
            {"seed": -1}, {"seed": 1.0}, {"seed": True}, {"fold": [1]}, {"column": 4}, {"auc": [1]}, {"auc": False},
            {"wall_seconds": float("inf")}, {"row": "\ud800"})),
        "5", "", "[" * 100_000, '{"a"', '{"table": "T", "row": "r", "seed": 0, "eer": 1' + "0" * 5000 + "}", "\xff",
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_by_line_before_anything_is_added(tmp_path, bad):
    path = tmp_path / "RESULTS.jsonl"
    path.write_bytes((json.dumps(ROW) + "\n" + bad + "\n").encode("latin1"))
    before = path.read_bytes()
    for what in (
        lambda: results.add_rows(path, [{**ROW, "seed": 1}]),
        lambda: results.write_tables(path, {}),
    ):
        with pytest.raises(UserError, match=r"RESULTS\.jsonl:2: a line must be"):
            what()
    path.write_text(json.dumps(ROW))  # without its line feed
    if bad.startswith('{"table"') and len(bad) < 1000:
        with pytest.raises(UserError, match="must be"):
            results.add_rows(path, [json.loads(bad)])
    results.add_rows(path, [{**ROW, "seed": 1}])
    assert [r["seed"] for r in results.read_rows(path)] == [0, 1] and len(before) > 1


def test_rows_replace_older_ones_and_any_text_survives(tmp_path):
    path = tmp_path / "RESULTS.jsonl"
    nasty = "a\u2028b\x85c | <img> `x`\r\ny"
    results.add_rows(path, [{**ROW, "command": nasty, "table": nasty, "row": nasty}, ROW])
    results.add_rows(path, [{**ROW, "eer": 6.0, "ended": "2026-02"}, {**ROW, "fold": 0}])
    results.add_rows(
        path, [{**ROW, "eer": 7.0, "ended": "2026-01"}, {**ROW, "fold": "0"}]
    )  # an older row does not replace it
    assert [(r["eer"], r.get("fold")) for r in results.read_rows(path)] == [
        (5, None),
        (6, None),
        (5, 0),
        (5, "0"),
    ]
    assert results.write_tables(path, {}, tmp_path / "plots") == 4
    text = (tmp_path / "RESULTS.md").read_text()
    assert r"| a b c \| &lt;img> `x` y | 0 | 5.00 |" in text and "<img" not in text


def test_differences_are_over_units_not_seeds():
    """Against scipy's paired t test of fold means, and by hand. A seed that only one side has is left out."""
    from scipy import stats

    rng = np.random.default_rng(0)
    base, other = rng.uniform(10, 30, (2, 5, 3))
    sides = [
        [{"fold": f, "seed": s, "eer": x[f, s]} for f in range(5) for s in range(3)] for x in (base, other)
    ]
    found = results.paired(sides[1], sides[0] + [{"fold": 0, "seed": 9, "eer": 99}], "fold")
    want = stats.ttest_rel(other.mean(1), base.mean(1)).confidence_interval(0.95)
    mean, deviation, half = results.statistics(found)
    assert (mean - half, mean + half) == pytest.approx((want.low, want.high))
    assert deviation == pytest.approx(np.std(other.mean(1) - base.mean(1), ddof=1))
    percent = results.paired(sides[1], sides[0], "fold", "percent")
    assert percent == pytest.approx((100 * (base - other) / base).mean(1))
    assert results.difference_text([1.0, 3.0], "fold") == "+2.00 (-10.71 .. +14.71)"  # 12.706 * 1.414 / 1.414
    assert results.difference_text([1.0, 3.0], "seed") == "+2.00 ± 1.41 (seeds: no interval)"
    assert results.difference_text([1.0], "fold") == "+1.00 (one fold: no interval)"
    assert results.paired(sides[1], [{"fold": 0, "seed": 0, "eer": 0.0}], "fold", "percent") == []
    assert results.difference_text([], "fold") == "-"


TUNED = """
tables: {main: {title: T, base: b, compare: percent, tuned_on: [0], figures: [FIGURES]}}
cells: {}
"""


@pytest.mark.parametrize("column", [None, "4"])
def test_a_tuning_fold_is_excluded_from_mean_interval_and_count(recipe, column):
    """By hand: without fold 0 the EERs are 9 and 7 beside 10 and 10, so 20 ± 14.14 %; fold 0 has 50 % by itself."""
    look = looks([table(recipe, TUNED.replace("FIGURES", "eer"))])
    eer = {"b": [10.0, 10.0, 10.0], "a": [5.0, 9.0, 7.0]}
    rows = [{**ROW, "table": "T", "row": n, "fold": f, "eer": e} for n in eer for f, e in enumerate(eer[n])]
    results.add_rows(recipe / "RESULTS.jsonl", [{**r, "column": column} for r in rows])
    results.write_tables(recipe / "RESULTS.jsonl", look, recipe / "plots")
    text = (recipe / "RESULTS.md").read_text()
    assert "Settings were chosen on fold 0, which stands apart" in text
    if column:
        assert cells(text, "\nEER %:") == (["4"], {"b": ["10.00 ± 0.00"], "a": ["8.00 ± 1.41"]})
        assert cells(text, "EER reduction %:")[1] == {"a": ["+20.00 (-107.06 .. +147.06)"]}
        assert cells(text, "EER %, fold 0 (tuned on):")[1] == {"b": ["10.00"], "a": ["5.00"]}
    else:
        head, lines = cells(text, "## T")
        assert head[-4:] == [
            "EER reduction %",
            "better in",
            *(f"{t}, fold 0 (tuned on)" for t in (head[1], head[2])),
        ]
        assert lines["a"] == ["2", "8.00 ± 1.41", "+20.00 (-107.06 .. +147.06)", "2 of 2", "5.00", "+50.00"]
    look["T"].tuned_on = []  # like any other table: all folds count
    results.write_tables(recipe / "RESULTS.jsonl", look)
    assert "7.00 ± 2.00" in (recipe / "RESULTS.md").read_text()


def cells(text, name):
    """Rows of the table with the heading `name` in a RESULTS.md: row name -> its other cells."""
    part = text.split(name, 1)[1].split("\n\n", 2)[1].splitlines()
    lines = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in part]
    return lines[0][1:], {line[0]: line[1:] for line in lines[2:]}


def looks_of(recipe):
    return looks(sorted(recipe.glob("tables/*.yaml")))


def mean_text(values, digits=2):
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def interval_text(values, quantile):
    half = quantile * np.std(values, ddof=1) / len(values) ** 0.5  # Student's t, two-sided 95 %
    return f"{np.mean(values):+.2f} ({np.mean(values) - half:+.2f} .. {np.mean(values) + half:+.2f})"


def test_recorded_tables_of_gll_are_means_over_draws():
    source = ROOT / "egs/mini/gll"
    text, title = (source / "RESULTS.md").read_text(), "egs/mini. Table 1: by labels a speaker"
    found = [json.loads(x) for x in (source / "RESULTS.jsonl").read_text().splitlines()]
    for table in dict.fromkeys(r["table"] for r in found):
        for figure, key, digits in (
            ("EER %", "eer", 2),
            ("Share of right pseudo-labels", "label_accuracy", 3),
        ):
            columns, lines = cells(text.split(f"## {table}\n")[1], f"\n{figure}:")
            for name, line in lines.items():
                for column, shown in zip(columns, line):
                    some = [r for r in found if (r["table"], r["row"], r["column"]) == (table, name, column)]
                    values = [r[key] for r in some if r.get(key) is not None]
                    assert shown == (mean_text(values, digits) if values else "-"), (table, name, column)
    columns, differences = cells(text.split(f"## {title}\n")[1], "\nEER less its base's:")
    eer = {(r["row"], r["column"], r["draw"]): r["eer"] for r in found if r["table"] == title and "draw" in r}
    for column, shown in zip(columns[:4], differences["GLL"]):
        d = np.array([eer["GLL", column, n] - eer["w/o GLL", column, n] for n in range(3)])
        assert shown == interval_text(d, 4.3026527)  # two degrees of freedom


def test_recorded_tables_of_dialogues_are_means_over_folds():
    """Over folds 1 to 4; settings were chosen on fold 0, which has columns of its own."""
    source = ROOT / "egs/arabic_speech_commands/dialogue"
    text, shows = (source / "RESULTS.md").read_text(), looks_of(source)
    found = [json.loads(x) for x in (source / "RESULTS.jsonl").read_text().splitlines()]
    titles = {"EER %": ("eer", 2), "minDCF 0.01": ("min_dcf_0.01", 3), "AUC": ("auc", 3),
              "AUC, one channel a dialogue": ("auc_channel", 3), "weight mixed / clean": ("weight_ratio", 3),
              "EER %, no step of fine-tuning": ("eer_zero", 2)}  # fmt: skip
    seen = 0
    for table in dict.fromkeys(r["table"] for r in found if r["table"] != "untrained"):
        head, lines = cells(text, f"## {table}")
        assert lines.keys() == {r["row"] for r in found if r["table"] == table}
        for row, line in lines.items():
            shown = dict(zip(head, line))

            def folds(name, key, table=table):
                runs = [
                    r for r in found if (r["table"], r["row"]) == (table, name) and r.get(key) is not None
                ]
                return [[r[key] for r in runs if r["fold"] == f] for f in range(1, 5)] if runs else []

            for title, (key, digits) in titles.items():
                values = [np.mean(f) for f in folds(row, key)]
                assert shown.get(title, "-") == (mean_text(values, digits) if values else "-"), (row, title)
            look = shows[table]
            base = look.bases.get(row, look.base)
            if base == row:
                assert shown["EER reduction %"] == shown["better in"] == "-"
                continue
            side = [{(r["fold"], r["seed"]): r["eer"] for r in found if (r["table"], r["row"]) == (table, name)}
                    for name in (row, base)]  # fmt: skip
            pairs = [
                (f, 100 * (side[1][f, s] - e) / side[1][f, s])
                for (f, s), e in side[0].items()
                if (f, s) in side[1]
            ]
            apart, *change = [np.mean([d for f, d in pairs if f == fold]) for fold in range(5)]
            assert shown["EER reduction %"] == interval_text(change, 3.1824463)  # three degrees of freedom
            assert shown["better in"] == f"{sum(d > 0 for d in change)} of 4"
            assert shown["EER reduction %, fold 0 (tuned on)"] == f"{apart:+.2f}"
            seen += 1
    assert seen > 60


def test_the_committed_tables_are_those_of_the_recorded_rows(tmp_path):
    for file in sorted(ROOT.glob("egs/*/*/RESULTS.jsonl")):
        (tmp_path / "RESULTS.jsonl").write_bytes(file.read_bytes())
        results.write_tables(tmp_path / "RESULTS.jsonl", looks_of(file.parent))
        assert (tmp_path / "RESULTS.md").read_text() == (file.parent / "RESULTS.md").read_text(), file
