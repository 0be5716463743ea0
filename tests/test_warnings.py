"""Signs of trouble: each is shown where it should be, and none on good material."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
import yaml

from pyspkv.base import config as cfg
from pyspkv.bin import cluster, train
from pyspkv.bin import report as report_cli
from pyspkv.data.ark import EmbeddingWriter
from pyspkv.models.registry import EncoderConfig
from pyspkv.report import warnings

CONTRASTIVE = {"objective": {"name": "contrastive", "loss": "nt_xent"}, "batch_size": 128}


def kinds(signs) -> list[str]:
    assert all(s.what and s.cause and s.change and "\n" not in str(s) for s in signs)
    return [s.kind for s in signs]


@pytest.mark.parametrize(
    "last, config, want",
    [
        # two runs from practice: 28 steps that end at 5.59, and one that has learnt
        ({"step": 28, "loss": 5.59, "nt_xent": 5.59}, CONTRASTIVE, ["few_steps", "chance_loss"]),
        ({"step": 372, "nt_xent": 1.78, "accuracy": 0.62, "spread": 0.977}, CONTRASTIVE, []),
        ({"step": 300, "nt_xent": 0.89 * math.log(255)}, CONTRASTIVE, []),
        ({"step": 300, "angular_proto": 4.8}, {"objective": {"name": "contrastive", "loss": "angular_proto"},
                                               "batch_size": 128}, ["chance_loss"]),
        ({"step": 300, "dino": 7.6}, {"objective": {"name": "dino", "num_prototypes": 2048}}, ["chance_loss"]),
        ({"step": 300, "dino": 4.6}, {"objective": {"name": "dino", "num_prototypes": 2048}}, []),
        ({"step": 300, "aam": 5.8, "accuracy": 0.68, "kept": 1.0}, {"objective": {"name": "aam"}}, []),
        ({"step": 300, "aam": 9.0, "accuracy": 0.03}, {"objective": {"name": "aam"}}, ["low_accuracy"]),
        ({"step": 300, "spread": 0.02}, {}, ["collapsed"]),
        ({"step": 300, "kept": 0.01}, {}, ["gate_refuses"]),
        ({"step": 300, "kept": 0.5}, {}, []),
        ({}, {}, []),
    ],
)  # fmt: skip
def test_the_end_of_a_training(last, config, want):
    assert kinds(warnings.of_training("pretrain", [{"step": 1, "loss": 9.0}, last], config)) == want


def test_fine_tuning_is_short_on_purpose():
    assert kinds(warnings.of_steps("round1", 36)) == ["few_steps"] and not warnings.of_steps("round1", 40)
    assert not warnings.of_steps("finetune", 36) and not warnings.of_steps("pretrain", 0)


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"name": "trunk", "l2_sp_weight": 0.01}, []),
        ({"name": "trunk", "freeze": "trunk"}, []),
        ({"name": "trunk", "freeze": "trunk", "lora_rank": 2, "frozen_epochs": 1}, []),
        ({"name": "trunk", "freeze": "trunk", "lora_rank": 2, "l2_sp_weight": 0.01}, ["l2_sp_weight=0.01"]),
        ({"name": "trunk", "freeze": "trunk", "frozen_epochs": 3}, ["frozen_epochs=3"]),
        ({"name": "wavlm", "freeze": "trunk", "l2_sp_weight": 0.01}, ["l2_sp_weight=0.01"]),
        ({"name": "ecapa"}, []),
    ],
)
def test_settings_of_a_frozen_trunk(settings, idle):
    signs = warnings.of_encoder("round1", cfg.validate(EncoderConfig, settings))
    assert kinds(signs) == ["idle_setting"] * len(idle)
    assert all(f"encoder.{key} without effect" in signs[0].what for key in idle)


def test_too_few_utterances():
    [sign] = warnings.of_corpus("pretrain", 8)
    assert sign.kind == "few_utterances" and "8 utterances in all" in sign.what
    assert kinds(warnings.of_corpus("pretrain", 99)) == ["few_utterances"]
    assert not warnings.of_corpus("pretrain", 100) and not warnings.of_corpus("pretrain", 0)


def test_longer_pre_training_is_longer_than_it_was():
    """The number that a chance loss suggests is twice that of the config, not a fixed one."""
    last = {"step": 300, "nt_xent": 5.5}
    [sign] = warnings.of_training("pretrain", [last], CONTRASTIVE | {"epochs": 25})
    assert sign.kind == "chance_loss" and "--pretrain-opts epochs=50" in sign.change


def test_crops_against_durations():
    fsdd = list(np.random.default_rng(0).uniform(0.3, 0.6, 300))
    [sign] = warnings.of_crops("pretrain", 1.5, fsdd)
    assert sign.kind == "long_crops" and "100 % of the utterances" in sign.what and "0.2" in sign.change
    assert not warnings.of_crops("pretrain", 1.5, [3.0] * 51 + [1.0] * 49)
    assert not warnings.of_crops("pretrain", 1.5, []) and not warnings.of_crops("pretrain", None, [1.0])
    assert warnings.longest_crop({"global_seconds": 1.5, "local_seconds": 0.5, "name": "dino"}) == 1.5


def test_the_number_and_the_sizes_of_clusters():
    men_and_women = ["c0"] * 357 + ["c1"] * 603
    [sign] = warnings.of_labels("round1", men_and_women, {})
    assert sign.kind == "two_clusters" and "357 / 603" in sign.what and "--pretrain-opts" in sign.change
    assert "--num-clusters 48 " in sign.change, "a twentieth of 960"
    assert kinds(warnings.of_labels("round1", ["c0"] * 20, {})) == ["two_clusters"]
    giant = ["c0"] * 300 + [f"c{i % 40 + 1}" for i in range(600)]
    [sign] = warnings.of_labels("round1", giant, {})
    assert sign.kind == "giant_cluster" and "33 %" in sign.what
    assert not warnings.of_labels("round1", [f"c{i % 24}" for i in range(960)], {})
    assert not warnings.of_labels("round1", ["a"] * 40 + ["b"] * 30 + ["c"] * 30, {}), "three speakers"


def corpus():
    """6 speakers x 10 words x 8 takes; ids are speaker-word-take; sessions are takes 0-3 and 4-7."""
    every = [(s, w, t) for s in range(6) for w in range(10) for t in range(8)]
    return every, [f"s{s}-w{w}-{t}" for s, w, t in every]


def test_clusters_that_are_words_or_sessions():
    every, ids = corpus()
    parts = warnings.fields(ids)
    assert list(parts) == ["part 1 of the ids", "part 2 of the ids", "part 3 of the ids"]
    sessions = {"sessions (utt2session)": [f"s{s}-{t // 4}" for s, _, t in every]}
    of = lambda label, known: kinds(warnings.of_labels("round1", [label(*x) for x in every], known))  # noqa: E731
    assert of(lambda s, w, t: f"c{s}", parts) == [], "speakers"
    assert of(lambda s, w, t: f"c{s}", sessions) == [], "speakers who came twice"
    assert of(lambda s, w, t: f"c{s}-{w}", parts) == ["not_speakers"]
    assert of(lambda s, w, t: f"c{w}", parts) == ["not_speakers"]
    assert of(lambda s, w, t: f"c{s}-{t // 4}", sessions) == ["not_speakers"]
    assert of(lambda s, w, t: f"c{(7 * s + 3 * w + 5 * t) % 11}", parts) == [], "nothing at all"
    assert of(lambda s, w, t: f"c{s}-{w}-{t // 2}", parts | sessions) == ["not_speakers"]
    alone = [f"c{i}" for i in range(len(every))]
    assert not warnings.of_labels("round1", alone, parts | sessions), "clusters of one say nothing"
    [sign] = warnings.of_labels("round1", [f"c{w}" for _, w, _ in every], parts)
    assert "part 2 of the ids (as w0, w1, w2; AMI 1.00)" in sign.what
    assert warnings.fields(["a-b", "a-b-c"]) == {} and warnings.fields([]) == {}


def test_the_last_model_against_the_first():
    assert not warnings.of_dev({"pretrain": 21.1, "round1": 25.0, "finetune": 18.6})
    [sign] = warnings.of_dev({"pretrain": 21.11, "round1": 18.61, "finetune": 24.06})
    assert (sign.kind, sign.where) == ("worse_than_first", "finetune") and "21.11" in sign.what
    assert not warnings.of_dev({"pretrain": 21.1}) and not warnings.of_dev({})


# -- where the user looks


@pytest.fixture
def short(tmp_path):
    """Utterances of 0.3 s, and a config with crops of 1.5 s."""
    data = toy.make(tmp_path, speakers=4, utts=6, seconds=0.3, labelled=False)
    data.utt_tables["utt2dur"] = dict.fromkeys(data.utts, "0.3")  # the report does not open audio files
    data.write(data.path, own=True)
    config = {"encoder": {"name": "ecapa", "channels": 16, "mfa_channels": 16, "embed_dim": 8, "se_channels": 8},
              "objective": {"name": "contrastive", "crop_seconds": 1.5}, "epochs": 1, "batch_size": 12,
              "num_workers": 0}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path, data


def test_a_training_on_short_utterances_says_so_before_it_starts(short, monkeypatch, capfd):
    folder, data = short
    exp = folder / "exp"
    argv = [
        "train",
        "--config",
        folder / "config.yaml",
        "--data",
        data.path,
        "--exp",
        exp / "pretrain/model",
    ]
    monkeypatch.setattr("sys.argv", [str(a) for a in argv])
    train.main()
    told = capfd.readouterr().err
    assert "warning: pretrain: 2 training steps" in told and "warning: pretrain: 24 utterances" in told
    assert "warning: pretrain: crops of 1.5 s are longer than 100 % of the utterances (median 0.30 s)" in told
    assert "Likely cause: short utterances are repeated" in told
    train.main()
    assert "warning" not in capfd.readouterr().err, "already trained"

    two = np.repeat([[1.0, 0, 0], [0, 1.0, 0]], 12, 0) + np.random.default_rng(0).normal(0, 0.01, (24, 3))
    with EmbeddingWriter(exp / "pretrain/embed/train") as w:
        for utt, x in zip(data.utts, two):
            w(utt, x.astype(np.float32))
    scp = exp / "pretrain/embed/train/embedding.scp"
    argv = ["cluster", "--embeddings", scp, "--data", data.path, "--out-data", exp / "round1/data"]
    monkeypatch.setattr("sys.argv", [str(a) for a in [*argv, "--num-clusters", "2"]])
    cluster.main()
    assert "warning: round1: 2 clusters (of 12 / 12 utterances)" in capfd.readouterr().err

    monkeypatch.setattr("sys.argv", ["report", "--exp", str(exp), "--unscored"])
    report_cli.main()
    out = capfd.readouterr().out
    results = json.loads((exp / "results.json").read_text())
    found = [w["kind"] for w in results["warnings"]]
    assert set(found) - {"chance_loss"} == {"few_utterances", "few_steps", "long_crops", "two_clusters"}
    assert found.count("few_utterances") == 1, "not once for each phase"
    page = (exp / "report.md").read_text()
    assert "## Signs of trouble" in page and "short utterances are repeated" in page
    assert out.count("warning: ") == len(results["warnings"]) and "results.json" in out.splitlines()[-1]
    assert results["pretrain"] is None and results["final"] is None and "no test trials" in page
    assert results["rounds"][0]["eer"] is None and results["rounds"][0]["num_clusters"] == 2
    assert "no EER" in results["not_measured"]


ROOT = Path(__file__).resolve().parent.parent


def recipe(method: str, folder: Path, *options) -> subprocess.CompletedProcess:
    """A recipe as utils/new_recipe.sh makes it."""
    own = {k: v for k, v in os.environ.items() if k not in ("SPKV_ROOT", "SPKV_RECIPE")}
    own |= {
        "OMP_NUM_THREADS": "1",
        "SPKV_PYTHON": sys.executable,
        "CUDA_VISIBLE_DEVICES": "",
        "SPKV_ROOT": str(ROOT),
    }
    if not (folder / "mine").exists():
        new = [ROOT / "utils/new_recipe.sh", "mine", method, "--dir", folder]
        subprocess.run([str(w) for w in new], env=own, check=True, capture_output=True)
    words = [
        folder / f"mine/{method}/run.sh",
        "--exp",
        folder / "exp",
        "--data",
        folder / "data",
        "--nj",
        "1",
    ]
    words += ["--conf", ROOT / "tests/conf", *options]
    return subprocess.run([str(w) for w in words], env=own, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_recipe_without_trials_ends_with_labels_models_and_warnings(tmp_path):
    """Two "voices" and utterances of 0.45 s: the recipe ends, and warns of two clusters and long crops."""
    data = toy.make(tmp_path / "toy", speakers=2, utts=20, seconds=0.45, labelled=False)
    data.utt_tables["utt2dur"] = dict.fromkeys(data.utts, "0.45")  # the report does not open audio files
    data.write(tmp_path / "data/train")
    done = recipe(
        "ssl", tmp_path, "--stage", 2, "--num-rounds", 1, "--num-clusters", 2, "--finetune", "false"
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (
        "there is no" in done.stdout and "nothing is scored" in done.stdout and "stage 7" not in done.stdout
    )
    results = json.loads((tmp_path / "exp/results.json").read_text())
    assert results["final"] is None and results["rounds"][0]["eer"] is None and results["not_measured"]
    assert {"two_clusters", "long_crops", "few_steps"} <= {w["kind"] for w in results["warnings"]}
    assert "warning: pretrain: 40 utterances" in done.stderr, (
        "what a training warns of is in the log of the night, too"
    )
    last = done.stdout.splitlines()[-10:]
    assert any("2 clusters (of" in line for line in last) and "results.json" in last[-1]
    assert (tmp_path / "exp/round1/model/LATEST").exists() and (tmp_path / "exp/round1/data/utt2spk").exists()
    assert "| round1 | 2 clusters" in (tmp_path / "exp/report.md").read_text()


@pytest.mark.parametrize("method", ["ssl", "trunk_ssl"])
def test_commands_of_a_recipe_without_dev_or_test(tmp_path, method):
    toy.make(tmp_path / "toy", speakers=2, utts=2, seconds=0.3, labelled=False).write(tmp_path / "data/train")
    shown = recipe(method, tmp_path, "--dry-run", "true", "--stage", 2).stdout
    assert "data/dev" not in shown.replace("no " + str(tmp_path / "data/dev"), "") and "--unscored" in shown
    assert "bin.evaluate" not in shown and "bin.cluster" in shown
    (tmp_path / "data/test").mkdir()
    shown = recipe(method, tmp_path, "--dry-run", "true", "--stage", 2).stdout
    assert "bin.evaluate" in shown and "--dev" not in shown and "nothing is calibrated" in shown
    assert "--unscored" not in shown.replace("--unscored false", "")
