"""bin.assess: any model on any prepared test set gives a table; the smallest difference is checked."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import toy

from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.bin.assess import bring_calibration
from pyspkv.data.make_trials import make_trials
from pyspkv.data.trials import read_trials
from pyspkv.models.registry import EncoderConfig
from pyspkv.score import assessment, metrics, scoring


def assess(*words, code=0) -> str:
    call = [sys.executable, "-m", "pyspkv.bin.assess", *map(str, words)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two small random models, and toy speech of 5 speakers as test, 4 as cohort and 4 as dev."""
    tmp = tmp_path_factory.mktemp("assess")
    for k, (name, speakers) in enumerate({"test": 5, "cohort": 4, "dev": 4}.items()):
        data = toy.make(tmp / f"{name}-audio", speakers, 4, 0.5, seed=k)
        data.trials["trials"] = make_trials(data.utts, data.spk)
        data.write(tmp / name)
    for k in (1, 2):
        torch.manual_seed(k)
        config = cfg.validate(EncoderConfig, {"name": "ecapa", "channels": 32, "embed_dim": 16})
        checkpoint.save_import(tmp / f"model{k}", cfg.build(config), config, {})
    return tmp


@pytest.mark.slow
def test_one_table(place):
    words = ["--data", place / "test", "--cohort", place / "cohort", "--dev", place / "dev"]
    both = ["--model", place / "model1", place / "model2"]
    rows = json.loads(assess(*both, *words, "--out", place / "out", "--json"))
    assert [r["model"] for r in rows] == [str(place / "model1"), str(place / "model2")]
    enrol, test, target = read_trials(place / "test/trials")
    units = metrics.resampling(enrol, test, target, place / "test/utt2spk", None)
    found = [scoring.read_scores(place / f"out/{k}/score/test.scores", enrol, test) for k in (1, 2)]
    eers = [metrics.weighted_eers(x, target, units, 1000) for x in found]
    low, high = np.nanpercentile(eers[1] - eers[0], [2.5, 97.5])
    assert rows[1]["smallest_difference"] == pytest.approx((high - low) / 2)
    assert rows[1]["smallest_difference_from"] == "less the first model"
    normed = scoring.read_scores(place / "out/1/score/test-asnorm.scores", enrol, test)
    low, high = np.nanpercentile(metrics.weighted_eers(normed, target, units, 1000) - eers[0], [2.5, 97.5])
    low, high = sorted((low, high))
    assert rows[0]["smallest_difference"] == pytest.approx((high - low) / 2)
    assert all(r["eer"] == pytest.approx(metrics.eer(x, target)) and "cllr" in r for r, x in zip(rows, found))
    shown = assess(*both, *words, "--out", place / "out")
    assert (
        shown.splitlines()[0].split()[:3] == ["model", "list", "speakers"]
        and f"{rows[0]['eer']:.2f}" in shown
    )
    text = assess("--model", place / "model2", *words, "--out", place / "out", code=1)
    assert "is of another model" in text


def test_one_model_without_a_cohort_gives_an_upper_bound(tmp_path):
    (tmp_path / "score").mkdir()
    found = {"eer": 5.0, "eer_ci_low": 4.0, "eer_ci_high": 7.0, "eer_ci_units": 40}
    (tmp_path / "score/test.json").write_text(json.dumps(found))
    out = assessment.assess(tmp_path, "test", tmp_path)
    assert out["smallest_difference"] == pytest.approx(2**0.5 * 1.5) and "<= 2.12" in assessment.table(
        [("m", out)]
    )
    (tmp_path / "score/test.json").write_text('{"eer": 5.0, "eer_ci_low": null}')
    out = assessment.assess(tmp_path, "test", tmp_path)
    assert out["smallest_difference"] is None and out["smallest_difference_from"] == "too few speakers"


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "a/x").mkdir(parents=True)
    (tmp_path / "b/x").mkdir(parents=True)
    words = ["--model", tmp_path, "--out", tmp_path / "out", "--data"]
    assert "make-trials" in assess(*words, tmp_path / "a/x", code=1)
    for name in "ab":
        (tmp_path / name / "x/trials").touch()
    told = assess(*words, tmp_path / "a/x", tmp_path / "b/x", code=1)
    assert "has the same name" in told
    subprocess.run(shlex.split(told.partition("hint: ")[2].splitlines()[0]), check=True)
    assert (tmp_path / "b/b-x").samefile(tmp_path / "b/x"), "the hint makes a link with a name of its own"
    assert "contains no model" in assess(*words, tmp_path / "a/x", code=1)


def test_the_calibration_of_the_model_takes_the_place_of_an_older_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "calibration.json").write_text("of an earlier --dev")
    bring_calibration(tmp_path)
    assert not (tmp_path / "calibration.json").exists()
    (tmp_path / "model/calibration.json").write_text("own")
    bring_calibration(tmp_path)
    assert (tmp_path / "calibration.json").read_text() == "own"
