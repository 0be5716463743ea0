"""The grid of egs/arabic_speech_commands/dialogue: which runs, resume, claims, paired tables; the speaker folds."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from pyspkv import config as cfg
from pyspkv import dialogues
from pyspkv.datadir import DataDir
from pyspkv.trainer import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs/arabic_speech_commands/dialogue"
ENCODER = "{name: dvector, hidden: 8, layers: 1, embed_dim: 8}"


@pytest.fixture(scope="module")
def grid():
    spec = importlib.util.spec_from_file_location("dialogue_grid", ROOT / "local/dialogue_grid.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dialogue_grid"] = module
    spec.loader.exec_module(module)
    return module


def test_every_run_has_a_config_that_loads_and_every_row_a_run_and_a_base(grid):
    runs, rows = grid.grid(ENCODER)
    for r in runs.values():
        config = cfg.load(TrainConfig, RECIPE / f"conf/{r.config}.yaml", r.changes)
        if r.name.startswith("c-"):
            assert config.encoder.name == "dvector", "table C has one encoder"
        if hasattr(config.sampler, "per_dialogue"):
            assert config.batch_size % config.sampler.per_dialogue == 0
        assert r.init is None or r.init in runs
        assert "train_labelled" not in r.data or "oracle" in r.name or "librispeech" in r.data
    names = {(r.table, r.name) for r in rows}
    assert len(names) == len(rows)
    assert all(r.run in runs and (r.base is None or (r.table, r.base) in names) for r in rows)
    assert {t: sum(r.table == t for r in rows) for t in "ABNC"} == {"A": 5, "B": 38, "N": 6, "C": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two folds of one toy corpus."""
    folder = tmp_path_factory.mktemp("folds")
    found = toy.make(folder, speakers=6, utts=8, seconds=0.6)
    fold = folder / "fold0"
    clean = dialogues.simulate(found, dict.fromkeys(found.utts, "r"), sizes=(4, 4))
    dialogues.contaminate(clean, 0.5).write_training_set(fold / "random-50")
    lines = toy.trials(folder, found).read_text().splitlines()
    for name, speakers in (("test", {"s04", "s05"}), ("dev", {"s02", "s03"}), ("labelled-4", {"s00", "s01"})):
        part = found.subset([u for u, s in zip(found.utts, found.spk) if s in speakers])
        known = set(part.utts)
        if name != "labelled-4":
            part.trials = {"trials": [x for x in lines if set(x.split()[:2]) <= known]}
        part.write(fold / name)
    (folder / "fold1").symlink_to(fold)
    return folder


def call(grid, monkeypatch, data, exp, *more):
    argv = [
        "grid",
        "--data",
        data,
        "--exp",
        exp,
        "--conf",
        RECIPE / "conf",
        "--results",
        exp / "RESULTS.jsonl",
    ]
    monkeypatch.setattr(sys, "argv", [str(x) for x in (*argv, *more)])
    return grid.main()


def test_runs_resumes_skips_what_others_hold_and_reports(grid, monkeypatch, data, tmp_path, capsys):
    small = [f"encoder={ENCODER}", "epochs=1", "objective.crop_seconds=0.4", "log_steps=1"]
    only = ["--tables", "N", "--only", "n6$", "--folds", "0", "1", "--set", *small]
    call(grid, monkeypatch, data, tmp_path, *only, "--seeds", "3")
    runs = [f"fold{f}-seed3/random-50-ava-{kind}-n6" for f in (0, 1) for kind in ("none", "power")]
    found = {r: json.loads((tmp_path / r / "result.json").read_text()) for r in runs}
    assert {(tmp_path / r).is_dir() for r in runs} == {True}
    for result in found.values():
        assert 0 <= result["eer"] <= 100 and 0 <= result["auc"] <= 1 and 0 <= result["auc_channel"] <= 1
        assert result["audio_seconds"] > 0 and result["wall_seconds"] > 0
    assert found[runs[0]]["eer"] == found[runs[2]]["eer"], "two folds of the same data and seed"

    # A run that another process holds is left alone; a finished one is not done again.
    (tmp_path / runs[1] / "result.json").unlink()
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("LATEST")}
    args = grid.argparse.Namespace(data=data, exp=tmp_path, conf=RECIPE / "conf", set=small)
    g = grid.Grid(args, 0, 3, grid.grid(ENCODER)[0])
    with open(tmp_path / runs[1] / ".claim", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not g.step("random-50-ava-power-n6") and g.step("random-50-ava-none-n6")
    call(grid, monkeypatch, data, tmp_path, *only, "--seeds", "3")
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, (
        "the model was there: only its evaluation was done"
    )
    again = json.loads((tmp_path / runs[1] / "result.json").read_text())
    assert {k: again[k] for k in ("eer", "auc")} == {k: found[runs[1]][k] for k in ("eer", "auc")}

    capsys.readouterr()
    call(
        grid,
        monkeypatch,
        data,
        tmp_path,
        "--tables",
        "N",
        "--only",
        "n6$",
        "--list",
        "--seeds",
        "3",
        "--folds",
        "0",
    )
    assert capsys.readouterr().out.count(": done") == 2
    call(grid, monkeypatch, data, tmp_path, "--report", "--seeds", "3", "--folds", "0", "1")
    rows = [json.loads(x) for x in (tmp_path / "RESULTS.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and {r["fold"] for r in rows} == {0, 1} and all(r["seed"] == 3 for r in rows)
    text = (tmp_path / "RESULTS.md").read_text()
    assert (
        "random 50 %, AvA, 6 dialogues, power | 2 |" in text and "## B. Soft rejection by batch size" in text
    )
    call(grid, monkeypatch, data, tmp_path, "--report", "--seeds", "3", "--folds", "0")
    assert len((tmp_path / "RESULTS.jsonl").read_text().splitlines()) == 4, "rows that are not here stay"


def test_fine_tuning_waits_for_its_start_and_knows_the_step_zero(grid, monkeypatch, data, tmp_path):
    small = [f"encoder={ENCODER}", "epochs=1", "objective.crop_seconds=0.4", "batch_size=8"]
    folder = data / "fold0"
    if not (folder / "random-10").exists():
        (folder / "random-10").symlink_to(folder / "random-50")
    only = ["--tables", "C", "--only", "^c-(apc|cola|none)-4$", "--folds", "0", "--set", *small]
    with monkeypatch.context() as patch:
        patch.setattr(
            grid.Grid,
            "evaluate",
            lambda self, encoder, r, reject: {"eer": float(len(r.name)), "min_dcf_0.01": 1},
        )
        call(grid, monkeypatch, data, tmp_path, *only)
    assert {p.parent.name for p in tmp_path.rglob("result.json")} == {
        "c-apc",
        "c-apc-4",
        "c-cola",
        "c-cola-4",
        "c-none-4",
    }
    record = json.loads((tmp_path / "fold0-seed0/c-apc-4/model/run.json").read_text())
    assert record["init"].endswith("c-apc/model") and record["dev"].endswith("fold0/dev")
    call(grid, monkeypatch, data, tmp_path, "--report", "--folds", "0")
    rows = {r["row"]: r for r in map(json.loads, (tmp_path / "RESULTS.jsonl").read_text().splitlines())}
    assert rows["4 labelled, APC"]["eer_zero"] == len("c-apc") and "eer_zero" not in rows["4 labelled, none"]


def test_reductions_are_paired_and_have_the_sources_sign(grid):
    base = {(0, 0): 20.0, (1, 0): 30.0, (0, 1): 10.0}
    other = {(0, 0): 18.0, (1, 0): 33.0, (2, 0): 1.0, (0, 1): 9.0}
    found = [
        {"row": name, "fold": f, "seed": s, "eer": e}
        for name, side in (("none", base), ("power", other))
        for (f, s), e in side.items()
    ]
    r = np.array([10.0, -10.0, 10.0])
    text, won = grid.reduction(found, "power", "none")
    assert text == f"{r.mean():+.2f} ± {r.std(ddof=1) / 3**0.5:.2f}" and won == "2 of 3"
    assert grid.reduction(found, "none", None) == ("0.00", "-")


def test_speaker_folds_share_no_speaker(corpora, tmp_path):
    """On the real corpus: every speaker is tested once; labelled sets are nested and apart from dev and test."""
    tested = set()
    for fold in range(5):
        command = [ROOT / "local/arabic_speech_commands.sh", "--fold", str(fold)]
        command += [corpora / "arabic_speech_commands", tmp_path / f"fold{fold}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "SPKV_PYTHON": sys.executable}
        done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "12000 files are listed, 6000 are there" in done.stdout, done.stderr
        d = {p.name: DataDir.read(p) for p in (tmp_path / f"fold{fold}").iterdir() if p.name != "truth"}
        spk = {name: set(x.spk) for name, x in d.items()}
        assert len(spk["test"]) == 6 and len(spk["speech"]) == 24 and not spk["test"] & spk["speech"]
        assert (
            spk["labelled-4"]
            < spk["labelled-8"]
            < spk["labelled-12"]
            < spk["labelled-18"]
            == spk["speech"] - spk["dev"]
        )
        assert all(len(d[f"labelled-{n}"].utts) == 20 * n for n in (4, 8, 12, 18))
        assert not tested & spk["test"]
        tested |= spk["test"]
        for line in d["test"].trials["trials"][::997]:
            a, b, kind = line.split()
            (s, word, r), (t, other, q) = (u.split("-") for u in (a, b))
            assert word != other and r != q and (s == t) == (kind == "target")
    assert len(tested) == 30
