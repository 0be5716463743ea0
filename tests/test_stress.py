"""bin.stress: the unchanged row is the usual EER, the changes have their named effect, and two runs agree."""

import argparse
import json

import numpy as np
import pytest
import torch
import toy

from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.bin import stress
from pyspkv.data.trials import read_trials
from pyspkv.models.load import load_encoder
from pyspkv.score import metrics, scoring
from pyspkv.score.extract import embed
from pyspkv.train.config import TrainConfig
from pyspkv.train.trainer import Trainer

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
        stress.main()
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


def test_changes(trained, tmp_path):
    _, data = trained
    args = argparse.Namespace(seed=0, durations=[0.3, 5.0], snr=[5.0], rt60=[0.4], noise=str(data.path))
    made = stress.conditions(args, tmp_path)
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
        stress.main()
    assert not (tmp_path / "out").exists()
