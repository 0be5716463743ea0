"""bin.stress: the unchanged row is the usual EER, the changes have their named effect, and two runs agree."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.bin import stress as command
from pyspkv.data.trials import read_trials
from pyspkv.experiments import stress
from pyspkv.models.load import load_encoder
from pyspkv.score import metrics, scoring
from pyspkv.score.extract import embed
from pyspkv.train.config import TrainConfig
from pyspkv.train.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
encoder: {name: ecapa, channels: 16, mfa_channels: 24, embed_dim: 8, se_channels: 4, n_mels: 40}
objective: {name: aam, crop_seconds: 0.5, augment: false}
epochs: 2
batch_size: 4
precision: fp32
num_workers: 0
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stress")
    data = toy.make(folder, speakers=3, utts=4, seconds=0.8)
    (folder / "config.yaml").write_text(CONFIG)
    Trainer(cfg.load(TrainConfig, folder / "config.yaml"), data, folder / "model").run()
    toy.trials(data.path, data)
    return folder, data


def test_rows_plots_and_repeatability(trained, tmp_path, monkeypatch):
    folder, data = trained
    options = ["--model", folder / "model", "--data", data.path, "--noise", data.path]
    options += ["--durations", 0.3, "--snr", 5, "--rt60", 0.3]
    rows = []
    for out in ("one", "two"):
        monkeypatch.setattr("sys.argv", ["stress", *map(str, options), "--out", str(tmp_path / out)])
        command.main()
        rows.append(json.loads((tmp_path / out / "stress.json").read_text())["rows"])
    assert rows[0] == rows[1]
    assert [r["condition"] for r in rows[0]] == ["unchanged", "0.3 s", "noise 5 dB", "reverberation 0.3 s"]
    found = embed(load_encoder(folder / "model"), data, torch.device("cpu"), "fp32")
    enrol, test, target = read_trials(data.path / "trials")
    i, j = (scoring.rows_of(ids, found.ids, "data") for ids in (enrol, test))
    x = scoring.unit_means(found)
    assert rows[0][0]["eer"] == pytest.approx(metrics.eer(scoring.cosine(x, x, i, j), target))
    assert (tmp_path / "one/stress.png").stat().st_size > 5000
    assert (tmp_path / "one/stress.md").read_text().count("\n") == 6


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["stress", *map(str, words)])
    command.main()


def results(out: Path) -> list[bytes]:
    return [(out / f"stress.{end}").read_bytes() for end in ("json", "md", "png")]


def test_parts_give_the_bytes_of_one_process(trained, tmp_path, monkeypatch):
    """Of 1, 3 and 6 parts, of which two have nothing to do; parts of other options or data are refused."""
    folder, data = trained
    words = ["--model", folder / "model", "--data", data.path, "--noise", data.path]
    words += ["--durations", 0.3, "--snr", 5, "--rt60", 0.3]
    call(monkeypatch, *words, "--out", tmp_path / "1")
    for n in (3, 6):
        own = [*words, "--out", tmp_path / str(n)]
        with pytest.raises(UserError, match=f"part.1-of-{n}.json: lacks the condition unchanged"):
            call(monkeypatch, *own, "--merge", n)
        for k in range(n, 0, -1):
            call(monkeypatch, *own, "--part", f"{k}/{n}")
        with pytest.raises(UserError, match="lacks the condition unchanged, or was made with other data"):
            call(monkeypatch, *own, "--seed", 1, "--merge", n)
        assert not (tmp_path / str(n) / "stress.json").exists()
        call(monkeypatch, *own, "--merge", n)
        assert results(tmp_path / str(n)) == results(tmp_path / "1")
    (file,) = (tmp_path / "1/parts").iterdir()
    for damaged in (file.read_text().replace('"eer"', '"eel"'), "{", "[]"):
        file.write_text(damaged)
        assert stress.kept(file, json.loads(file.read_text())["identity"] if len(damaged) > 9 else {}) == {}


def test_a_stopped_run_goes_on_at_the_next_condition(trained, tmp_path, monkeypatch):
    folder, data = trained
    words = ["--model", folder / "model", "--data", data.path, "--durations", 0.3, 0.5, "--rt60"]
    call(monkeypatch, *words, "--out", tmp_path / "whole")
    real, seen = stress.show, []

    def stop(row):
        seen.append(row["condition"])
        real(row)
        if len(seen) == 2:
            raise KeyboardInterrupt

    embedded = []
    monkeypatch.setattr(stress, "embed", lambda *a, **k: embedded.append(1) or embed(*a, **k))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stress, "show", stop)
        call(patch, *words, "--out", tmp_path / "out")
    assert seen == ["unchanged", "0.3 s"] and not (tmp_path / "out/stress.json").exists()
    call(monkeypatch, *words, "--out", tmp_path / "out")
    assert len(embedded) == 3 and results(tmp_path / "out") == results(tmp_path / "whole")


@pytest.mark.slow
def test_the_step_is_an_array_of_jobs(trained, tmp_path):
    """steps/stress.sh --nj 2 makes the files of --nj 1; a wrong --noise ends it before anything is measured."""
    folder, data = trained
    words = [ROOT / "steps/stress.sh", "--noise", data.path, folder / "model", data.path]
    env = {**os.environ, "SPKV_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    options = ["--durations", "0.3", "--snr", "5", "--rt60"]
    for nj in ("1", "2"):
        call = [*words[:1], "--nj", nj, *words[1:], tmp_path / nj, *options]
        done = subprocess.run(list(map(str, call)), env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "stress.SPKV_JOB.log" in done.stdout and (tmp_path / "2/stress.2.log").is_file()
    assert results(tmp_path / "1") == results(tmp_path / "2")
    words[2] = tmp_path / "none"
    call = [*map(str, [*words, tmp_path / "bad"])]
    done = subprocess.run(call, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "none" in done.stderr and "Traceback" not in done.stderr


def test_changes(trained, tmp_path):
    _, data = trained
    args = argparse.Namespace(seed=0, durations=[0.3, 5.0], snr=[5.0], rt60=[0.4], noise=str(data.path))
    made = {name: make() for name, make in stress.conditions(args, tmp_path).items()}
    wave = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    short = made["0.3 s"](0, wave)
    assert len(short) == 4800 and short.tobytes() in wave.tobytes()
    assert not np.array_equal(short, made["0.3 s"](1, wave)), "another row, another stretch"
    np.testing.assert_array_equal(made["5 s"](0, wave), wave)
    added = made["noise 5 dB"](0, wave) - wave
    assert 10 * np.log10(np.sum(wave**2) / np.sum(added**2)) == pytest.approx(5, abs=0.1)
    wet = made["reverberation 0.4 s"](0, wave)
    assert len(wet) == len(wave) and 0.05 < np.corrcoef(wet, wave)[0, 1] < 0.99


def test_data_without_trials(trained, tmp_path, monkeypatch):
    folder, data = trained
    data.write(tmp_path / "bare")
    monkeypatch.setattr("sys.argv", ["stress", "--model", str(folder / "model"), "--data", str(tmp_path / "bare"),
                                     "--out", str(tmp_path / "out")])  # fmt: skip
    with pytest.raises(UserError, match="has no trials"):
        command.main()
    assert not (tmp_path / "out").exists()
