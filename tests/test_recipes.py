"""Recipes end to end, small: what run.sh promises, whatever the corpus; and runs that are killed again and again."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pyspkv import config as cfg
from pyspkv.datadir import DataDir
from pyspkv.trainer import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(p.parent for p in ROOT.glob("egs/*/*/run.sh"))
MINI = [
    "--num-train-spk=8",
    "--num-dev-spk=4",
    "--num-test-spk=4",
    "--nj=1",
    "--num-rounds=2",
    "--num-clusters=10",
]
SMALL = ["--data-opts", "--sessions 2 --utts-per-session 3 --eval-utts-per-session 3"]


def command(recipe, folder, *options) -> list[str]:
    return [str(ROOT / "egs" / recipe / "run.sh"), "--conf", str(ROOT / "tests/conf"),
            "--exp", str(folder / "exp"), "--data", str(folder / "data"), *options]  # fmt: skip


def env(**more) -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def run(*args, **more) -> subprocess.CompletedProcess:
    done = subprocess.run(command(*args), env=env(**more), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def figures(folder) -> tuple[dict, dict[str, str]]:
    """results.json, and the bytes of everything that must not depend on how often a run was killed."""
    labels = {str(p.relative_to(folder)): p.read_text() for p in folder.glob("exp/round*/data/utt2spk")}
    scores = {str(p.relative_to(folder)): p.read_text() for p in folder.glob("exp/*/score/*.scores")}
    return json.loads((folder / "exp/results.json").read_text()), {**labels, **scores}


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """The whole of egs/mini/ssl at toy size, without interruption."""
    folder = tmp_path_factory.mktemp("mini")
    done = run("mini/ssl", folder, *MINI, *SMALL)
    return folder, done.stdout


def test_mini_ends_with_results(mini):
    folder, output = mini
    results, _ = figures(folder)
    assert [r["round"] for r in results["rounds"]] == [1, 2]
    for entry in (results["pretrain"], *results["rounds"], results["final"]):
        assert 0 <= entry["eer"] <= 100 and 0 <= entry["min_dcf_0.01"] <= 1
    assert all(0 <= r["nmi"] <= 1 and r["num_clusters"] == 10 for r in results["rounds"])
    assert results["supervised"] is None
    assert "results.json" in output.splitlines()[-1]
    assert [f"== stage {i}" for i in range(1, 9)] == [
        x[:10] for x in output.splitlines() if x.startswith("== stage")
    ]


def test_a_rounds_data_is_a_data_directory_of_clusters(mini):
    folder, _ = mini
    train, found = DataDir.read(folder / "data/train"), DataDir.read(folder / "exp/round1/data")
    assert found.utts == train.utts and len(set(found.spk)) == 10
    assert train.spk == train.utts, "training data must not carry the truth"


def test_without_truth_there_is_a_report_and_labels_that_are_behind_are_named(mini, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train", "dev", "test"):
        (tmp_path / "data" / name).symlink_to(mini[0] / "data" / name)
    shutil.copytree(mini[0] / "exp", tmp_path / "exp")
    (tmp_path / "exp/results.json").unlink()
    os.utime(tmp_path / "exp/round1/model/LATEST")  # as after an edit of its labels
    own = ["--data", str(mini[0] / "data")]
    done = run("mini/ssl", tmp_path, *MINI, *own, "--stage", "4", "--stop-stage", "4")
    (warning,) = [x for x in done.stderr.splitlines() if x.startswith("warning")]
    assert "round2/data is older than" in warning and "round1/model" in warning
    run("mini/ssl", tmp_path, *MINI, "--stage", "8")
    results, _ = figures(tmp_path)
    assert results["final"]["eer"] == figures(mini[0])[0]["final"]["eer"]
    assert all(r.get("nmi") is None for r in results["rounds"])


def test_rerunning_does_nothing_and_an_edited_round_trains_anew(mini):
    folder, _ = mini
    before = {p: p.stat().st_mtime_ns for p in folder.glob("exp/*/model/LATEST")}
    run("mini/ssl", folder, *MINI, "--stage", "3", "--stop-stage", "5")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    round2 = DataDir.read(folder / "exp/round2/data")
    round2.with_speakers(["x" if s == round2.spk[0] else s for s in round2.spk]).write(
        folder / "exp/round2/data"
    )
    stages = ["--stage", "4", "--stop-stage", "4", "--round", "2"]
    done = subprocess.run(
        command("mini/ssl", folder, *MINI, *stages), env=env(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "other utterances or labels" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "x"], "--stage is a number from 1 to 8, not 'x'"),
        (["--stop-stage", "9"], "--stop-stage is a number from 1 to 8"),
        (["--stage", "5", "--stop-stage", "3"], "--stage 5 comes after --stop-stage 3"),
        (["supervised", "true"], "'supervised' belongs to no option"),
        (["--stage", "6"], "no model is in"),
    ],
)
def test_what_would_do_nothing_is_refused(tmp_path, words, message):
    for recipe in ("mini/ssl", "mini/dialogue"):
        done = subprocess.run(command(recipe, tmp_path, *words), env=env(), capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr, done.stderr
    assert not any(tmp_path.glob("exp/*"))


def test_several_pre_trainings_give_labels_side_by_side(mini, tmp_path):
    """The first round's clusters are those of both pre-trainings' embeddings, the second's of round 1's besides."""
    (tmp_path / "exp").mkdir()
    for name in ("data", "exp/pretrain"):
        (tmp_path / name).symlink_to(mini[0] / name)
    run("mini/ssl", tmp_path, *MINI, "--num-pretrain=2", "--ensemble=true", "--stage=3", "--stop-stage=4")
    exp = tmp_path / "exp"
    seeds = [
        yaml.safe_load((exp / p / "model/config.yaml").read_text())["seed"] for p in ("pretrain", "pretrain2")
    ]
    assert seeds == [0, 2000]
    for number, phases in ((1, ["pretrain", "pretrain2"]), (2, ["round1", "pretrain", "pretrain2"])):
        out = tmp_path / f"by_hand{number}"
        scps = [x for p in phases for x in ("--embeddings", str(exp / p / "embed/train/embedding.scp"))]
        more = ["--previous", str(exp / "round1/data")] if number == 2 else []
        call = [sys.executable, "-m", "pyspkv.bin.cluster", *scps, "--data", str(tmp_path / "data/train")]
        call += ["--out-data", str(out), "--num-clusters=10", "--seed=0", "--whiten=0.5", *more]
        subprocess.run(call, check=True, env=env(), capture_output=True)
        assert (out / "utt2spk").read_text() == (exp / f"round{number}/data/utt2spk").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stag", "3"], "unknown option --stag"),
        (["--supervised", "yes"], "true or false"),
        (["--nj"], "needs a value"),
        (["--nj", "abc"], "--nj is a number from 1"),
        (["--num-rounds", "0"], "--num-rounds is a number from 1"),
        (["--round", "3"], "comes after --num-rounds 2"),
        (["--seed", "-1"], "--seed is a number from 0"),
        (["--labels", "2"], "unknown option --labels"),
    ],
)
def test_wrong_options_stop_at_once(tmp_path, options, words):
    done = subprocess.run(command("mini/ssl", tmp_path, *options), env=env(), capture_output=True, text=True)
    assert done.returncode != 0 and words in done.stderr and not (tmp_path / "exp").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_config_of_every_recipe_loads(recipe):
    configs = sorted(recipe.glob("conf/*.yaml"))
    assert configs
    for path in configs:
        config = cfg.load(TrainConfig, path)
        again = cfg.validate(TrainConfig, yaml.safe_load(cfg.to_yaml(config)))  # as a resumed run reads it
        assert cfg.dump(again) == cfg.dump(config)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_minus_nine_at_ten_random_moments(mini, tmp_path):
    """One run that dies ten times, each time later than before, and is then run to its end."""
    folder, _ = mini
    want = figures(folder)
    start = time.perf_counter()
    run("mini/ssl", tmp_path / "timed", *MINI, *SMALL)
    whole = time.perf_counter() - start
    assert figures(tmp_path / "timed") == want
    rng = random.Random(1)
    victim = tmp_path / "killed"
    for i in range(10):
        process = subprocess.Popen(command("mini/ssl", victim, *MINI, *SMALL), env=env(), start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(whole * rng.uniform(0.03, 0.25))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (victim / "exp/results.json").exists() or i > 3
    run("mini/ssl", victim, *MINI, *SMALL)
    assert figures(victim) == want


def test_librispeech_recipe_on_real_speech(corpora, tmp_path):
    """Stages 1 and 2 on LibriSpeech's own layout, its path relative to the caller: counts from the corpus' README."""
    run("librispeech/ssl", tmp_path, "--stop-stage", "2", SPKV_CORPORA=os.path.relpath(corpora))
    train, test = DataDir.read(tmp_path / "data/train"), DataDir.read(tmp_path / "data/test")
    assert len(train.wav) == 251 - 30 and train.spk == train.utts and len(test.utts) == 100


def test_new_recipe_is_a_working_copy_of_the_template(tmp_path, mini):
    """In a copy of the tree: made, refused a second time, and run on egs/mini's data with a data.sh of two lines."""
    tree = tmp_path / "tree"
    (tree / "egs").mkdir(parents=True)
    for name in ("local", "steps", "pyspkv", "path.sh", "egs/TEMPLATE", "egs/mini"):
        (tree / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "utils", tree / "utils")
    new = [str(tree / "utils/new_recipe.sh"), "mine"]
    subprocess.run(new, check=True, capture_output=True)
    again = subprocess.run(new, capture_output=True, text=True)
    assert again.returncode == 1 and "is there already" in again.stderr
    for system in ("ssrl", "wavlm_ssl", "gll"):
        subprocess.run([*new, system], check=True, capture_output=True)
    for system in ("ssrl", "wavlm_ssl", "gll", "ssl"):
        recipe = tree / "egs/mine" / system
        first = subprocess.run([recipe / "run.sh"], env=env(), capture_output=True, text=True)
        assert first.returncode == 1 and "to be written" in first.stderr
        assert "mini" not in (text := (recipe / "run.sh").read_text()) and "<corpus>" not in text
    folder, _ = mini
    (recipe / "data.sh").write_text(f'#!/bin/sh\nmkdir -p "$2" && cp -r {folder}/data/* "$2"\n')
    options = [
        "--conf",
        ROOT / "tests/conf",
        "--stop-stage",
        "3",
        "--exp",
        tmp_path / "exp",
        "--data",
        tmp_path / "data",
    ]
    subprocess.run([recipe / "run.sh", *options], env=env(), check=True, capture_output=True)
    assert (tmp_path / "exp/pretrain/model/LATEST").exists()


def wavlm_run(folder, data, *options, stop=8) -> subprocess.CompletedProcess:
    given = [
        "--conf",
        ROOT / "tests/conf/wavlm",
        "--exp",
        folder / "exp",
        "--data",
        data,
        "--nj",
        1,
        "--num-rounds",
        1,
    ]
    given += ["--num-clusters", 10, "--stage", 3, "--stop-stage", stop, *options]
    recipe = ROOT / "egs/mini/wavlm_ssl/run.sh"
    return subprocess.run([recipe, *map(str, given)], env=env(), capture_output=True, text=True)


def test_wavlm_recipe_trains_a_small_wavlm_on_dinos_labels(mini, tmp_path):
    folder, _ = mini
    done = wavlm_run(tmp_path, folder / "data", "--student", "small-wavlm", stop=4)
    assert done.returncode == 0, done.stderr[-2000:]
    assert cfg.read_section(tmp_path / "exp/pretrain/model/config.yaml", "encoder").name == "ecapa"
    assert cfg.read_section(tmp_path / "exp/round1/model/config.yaml", "encoder").name == "wavlm"
    assert len(set(DataDir.read(tmp_path / "exp/round1/data").spk)) == 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_wavlm_recipe_to_its_end_with_an_imported_trunk(mini, tmp_path):
    """Labels from the trunk's pooled embeddings, a student that starts from it, crops in scoring."""
    import torch

    from pyspkv.models.wavlm import WavLM, WavLMConfig

    folder, _ = mini
    small = {
        "layers": 2,
        "dim": 32,
        "heads": 4,
        "ffn": 48,
        "conv_dim": 16,
        "pos_conv_kernel": 8,
        "pos_conv_groups": 4,
    }
    torch.manual_seed(0)
    WavLM(WavLMConfig(**small)).trunk.save_pretrained(tmp_path / "hf")
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "tests/conf/wavlm", conf)
    student = "encoder: {name: wavlm, " + ", ".join(f"{k}: {v}" for k, v in small.items()) + ", pull: 0.01}"
    for name in ("round", "finetune"):
        lines = (conf / f"{name}.yaml").read_text().splitlines()
        (conf / f"{name}.yaml").write_text("\n".join([student, *lines[1:]]) + "\n")
    options = ["--labels-from", "wavlm", "--wavlm", tmp_path / "hf", "--conf", conf]
    options += ["--ablation", "true", "--label-noise", "0.25"]
    done = wavlm_run(tmp_path, folder / "data", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {p.parent.parent.name for p in tmp_path.glob("exp/*/score/test-crops.json")} == {
        "pretrain", "trunk", "round1", "finetune", "no_gate", "no_correction",
        "noise0.25_no_gate", "noise0.25_no_correction", "noise0.25_both",
    }  # fmt: skip
    assert "noise_recall" in (tmp_path / "exp/report.md").read_text()
    assert "pull" in (tmp_path / "exp/finetune/model/train.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", ["pretrain", "round", "finetune"])
def test_full_size_configs_take_a_step_on_random_audio(tmp_path, stage):
    """egs/voxceleb/wavlm_ssl at its true model size; only the batch and the noise lists are small."""
    import numpy as np
    import soundfile
    import torch

    from pyspkv import checkpoint
    from pyspkv.trainer import Trainer

    rng = np.random.default_rng(0)
    wav = {}
    for i in range(4):
        wav[f"u{i}"] = str(tmp_path / f"u{i}.wav")
        soundfile.write(wav[f"u{i}"], 0.1 * rng.standard_normal(6 * 16000), 16000)
    data = DataDir(tmp_path / "data", list(wav), [f"s{i}" for i in range(4)], wav)
    small = ["batch_size=4", "epochs=1", "workers=0", "augment.rir_bank=2", "log_steps=1"]
    if stage != "pretrain":
        torch.manual_seed(0)
        encoder = cfg.build("encoder", cfg.resolve("encoder", {"name": "wavlm"}))
        checkpoint.save_import(tmp_path / "trunk", encoder, encoder.config, {})
        small.append(f"encoder.pretrained={tmp_path / 'trunk'}")
    config = cfg.load(TrainConfig, ROOT / f"egs/voxceleb/wavlm_ssl/conf/{stage}.yaml", small)
    Trainer(config, data, tmp_path / "exp").run()
    records = [json.loads(line) for line in (tmp_path / "exp/train.jsonl").read_text().splitlines()]
    last = records[-1]
    assert last["kind"] == "epoch" and np.isfinite(last["loss"])
    assert ("pull" in last) is (stage != "pretrain")


def test_ssrl_recipe_moves_labels_and_trains_the_other_arm(mini, tmp_path):
    folder, _ = mini
    conf = tmp_path / "conf"
    conf.mkdir()
    shutil.copy(ROOT / "tests/conf/pretrain.yaml", conf)
    small = (ROOT / "tests/conf/round.yaml").read_text().splitlines()
    (conf / "offline.yaml").write_text("\n".join(small) + "\n")
    small[1] = (
        "objective: {name: reflective, student_seconds: 1.0, teacher_seconds: 1.5, fixed_epochs: 1, queue: 3}"
    )
    (conf / "round.yaml").write_text("\n".join(small) + "\n")
    given = [
        "--conf",
        conf,
        "--exp",
        tmp_path / "exp",
        "--data",
        folder / "data",
        "--nj",
        1,
        "--num-clusters",
        10,
    ]
    given += ["--stage", 3, "--stop-stage", 4, "--offline-rounds", 1]
    done = subprocess.run(
        [ROOT / "egs/mini/ssrl/run.sh", *map(str, given)], env=env(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    start, found = (DataDir.read(tmp_path / "exp/round1" / name) for name in ("data", "data_out"))
    assert found.utts == start.utts and set(found.spk) <= set(start.spk)
    same = (tmp_path / "exp/offline/pretrain/model/LATEST").resolve()
    assert same == (tmp_path / "exp/pretrain/model/LATEST").resolve()
    assert cfg.read_section(tmp_path / "exp/offline/round1/model/config.yaml", "objective").name == "margin"


def dialogue_run(folder, *options, code=0) -> subprocess.CompletedProcess:
    """egs/mini/dialogue on the corpus in folder/data, with four labelled speakers."""
    corpus = "--num-train-spk 8 --num-dev-spk 4 --num-test-spk 4 --num-rooms 3 --num-noises 4 " + SMALL[1]
    given = [
        "--conf",
        ROOT / "tests/conf/dialogue",
        "--exp",
        folder / "exp",
        "--data",
        folder / "data",
        "--nj",
        1,
    ]
    given += ["--data-opts", corpus, "--labelled", 4, *options]
    recipe = ROOT / "egs/mini/dialogue/run.sh"
    done = subprocess.run([recipe, *map(str, given)], env=env(), capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


HOUSEHOLDS = ["--mode", "household", "--rate", 50]


def test_dialogue_recipe_makes_dialogues_without_their_truth(tmp_path):
    done = dialogue_run(tmp_path, *HOUSEHOLDS, "--stop-stage", 2)
    assert "of 4 devices: the most dialogues" in done.stdout
    data = DataDir.read(tmp_path / "data/household-50/train")
    assert data.spk == data.utts and data.dialogue2mixed is None and len(data.dialogue2device) == 16
    assert len(set(DataDir.read(tmp_path / "data/labelled-4").spk)) == 4
    words = dialogue_run(tmp_path, "--mode", "family", code=1).stderr
    assert "--mode is random or household" in words


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_dialogue_recipe_to_its_results_and_again(tmp_path):
    done = dialogue_run(tmp_path, *HOUSEHOLDS, "--supervised", "true")
    assert "AUC of the mean cosine" in done.stdout
    exp = tmp_path / "exp/household-50"
    ranked = [line.split()[0] for line in (exp / "pretrain/dialogues").read_text().splitlines()]
    assert set(ranked) == set(DataDir.read(tmp_path / "data/household-50/train").dialogue2device)
    results = json.loads((exp / "results.json").read_text())
    assert all(0 <= results[k]["eer"] <= 100 for k in ("pretrain", "final", "supervised"))
    scores = {p: p.read_text() for p in exp.glob("*/score/test.scores")}
    assert len(scores) == 3
    before = {p: p.stat().st_mtime_ns for p in exp.glob("*/model/LATEST")}
    shutil.rmtree(exp / "finetune/embed")
    dialogue_run(tmp_path, *HOUSEHOLDS, "--supervised", "true")  # from what is there, to the same digits
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {p: p.read_text() for p in scores} == scores


GLL = ["--labels", 1, "--batch", 16, "--labelled-batch", 6, "--nj", 1]


def gll_command(folder, data, *options) -> list[str]:
    given = ["--conf", ROOT / "tests/conf/gll", "--exp", folder / "exp", "--data", data, *GLL, *options]
    return [str(ROOT / "egs/mini/gll/run.sh"), *map(str, given)]


def gll_run(folder, data, *options) -> None:
    done = subprocess.run(gll_command(folder, data, *options), env=env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_gll_recipe_to_its_end_and_a_variant_and_a_baseline(mini, tmp_path):
    """Stage I, two iterations of C, T, V, L; flipped labels; the fixed threshold from FixMatch's confidence."""
    folder, _ = mini
    data, cell = folder / "data", tmp_path / "exp/n1"
    gll_run(tmp_path, data, "--stage", 3, "--num-rounds", 2, "--stage-rates", "0.001 0.0002")
    files = [*(cell / f"gll/round1/{s}/config.yaml" for s in "TVL"), ROOT / "tests/conf/gll/semi.yaml"]
    *rates, default = (cfg.load(TrainConfig, file).optim.lr for file in files)
    assert rates == [0.001, 0.0002, default]
    results = json.loads((tmp_path / "exp/results.json").read_text())
    assert [r["round"] for r in results["rounds"]] == [1, 2]
    labelled, unlabelled = (DataDir.read(cell / "split" / n) for n in ("labelled", "unlabelled"))
    for r in (1, 2):
        found = DataDir.read(cell / f"gll/round{r}/data")
        assert found.utts == unlabelled.utts and set(found.spk) <= set(labelled.spk)
        assert (cell / f"gll/round{r}/model").resolve().name in "TVL"
    out = DataDir.read(cell / "gll/round2/data_out")
    assert out.utts == sorted(labelled.utts + unlabelled.utts)
    assert dict(zip(labelled.utts, labelled.spk)).items() <= dict(zip(out.utts, out.spk)).items()
    epochs = json.loads((cell / "gll/plots/gates.json").read_text())
    assert list(dict.fromkeys(e["run"] for e in epochs)) == [f"round{r}/{s}" for r in (1, 2) for s in "TVL"]
    assert all(e["quantity"] == 1 for e in epochs if e["run"].endswith("T"))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("exp/n1/gll/round*/*/LATEST")}
    gll_run(
        tmp_path, data, "--stage", 3, "--stop-stage", 4, "--num-rounds", 2, "--stage-rates", "0.001 0.0002"
    )
    assert {p: p.stat().st_mtime_ns for p in before} == before, "a rerun does nothing"
    with pytest.raises(AssertionError, match="started with another config"):
        gll_run(
            tmp_path, data, "--stage", 4, "--stop-stage", 4, "--num-rounds", 2, "--overrides", "optim.lr=0.1"
        )
    gll_run(tmp_path, data, "--stage", 4, "--stop-stage", 4, "--system", "fixmatch")
    gll_run(tmp_path, data, "--stage", 4, "--stop-stage", 4, "--system", "fixed", "--num-rounds", 1,
            "--calibrate-labels", 1)  # fmt: skip
    config = cfg.load(TrainConfig, cell / "fixed/round1/F/config.yaml")
    assert 0.9 / 8 < config.objective.gate.threshold < 0.9
    gll_run(tmp_path, data, "--stage", 4, "--num-rounds", 1, "--flip", 0.3, "--name", "flip")
    flip = json.loads((cell / "flip/plots/gates.json").read_text())
    assert flip[0]["flipped_passed"] == flip[0]["others_passed"] == 1, "T rejects nothing"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_gll_killed_again_and_again_ends_the_same(mini, tmp_path):
    folder, _ = mini
    options = ["--stage", 3, "--stop-stage", 4, "--num-rounds", 2, "--stage-epochs", "1 1 1"]
    start = time.perf_counter()
    gll_run(tmp_path / "whole", folder / "data", *options)
    whole = time.perf_counter() - start
    rng = random.Random(2)
    for _ in range(6):
        command = gll_command(tmp_path / "killed", folder / "data", *options)
        process = subprocess.Popen(command, env=env(), start_new_session=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(whole * rng.uniform(0.1, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    gll_run(tmp_path / "killed", folder / "data", *options)

    def found(folder):
        files = [p for pattern in ("data*/utt2spk", "*/best", "report*.json") for p in
                 folder.glob(f"exp/n1/gll/round*/{pattern}")]  # fmt: skip
        weights = {
            p.parent / "model.safetensors" for p in folder.glob("exp/n1/gll/round*/[TVL]/ckpt-*/state.json")
        }
        return {str(p.relative_to(folder)): p.read_bytes() for p in [*files, *weights]}

    assert found(tmp_path / "killed") == found(tmp_path / "whole")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_help_lists_the_common_options_once(recipe):
    text = subprocess.run(
        [recipe / "run.sh", "--help"], env=env(), capture_output=True, text=True, check=True
    ).stdout
    listed = re.findall(r"^  --(\S+)", text, re.M)
    assert len(set(listed)) == len(listed)
    assert {"stage", "stop-stage", "nj", "ngpu", "seed", "exp", "supervised"} <= set(listed)
    assert "po-files" not in text and "noise-list" not in text


def test_sweep_over_numbers_of_clusters(tmp_path):
    """One pre-training, a run of the recipe for each number, a table; here of a recipe that only takes notes."""
    recipe = tmp_path / "my recipe"
    recipe.mkdir()
    (recipe / "run.sh").write_text(
        '#!/usr/bin/env bash\nset -eu\necho "$*" >> "$(dirname "$0")/calls"\n'
        "while [ $# -gt 1 ]; do case $1 in --exp) exp=$2 ;; --num-clusters) k=$2 ;; esac; shift 2; done\n"
        '[ -n "${k:-}" ] || { mkdir -p "$exp/pretrain/model"; touch "$exp/pretrain/model/LATEST"; exit; }\n'
        '[ -d "$exp/pretrain/model" ] && mkdir -p "$exp/round2/score" "$exp/round10/score"\n'
        'echo "{\\"eer\\": ${k}.5, \\"min_dcf_0.01\\": 0.5}" > "$exp/round10/score/test.json"\n'
    )
    (recipe / "run.sh").chmod(0o755)
    command = [
        ROOT / "steps/sweep_clusters.sh",
        "--clusters",
        "5 10",
        "--seed",
        "3",
        recipe,
        tmp_path / "exp",
    ]
    done = subprocess.run(
        command, env=env(SPKV_PYTHON=sys.executable), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    calls = (recipe / "calls").read_text().splitlines()
    assert ["--stop-stage 3" in c for c in calls] == [True, False, False]
    assert all("--seed 3" in c for c in calls)
    assert "| system | 5 | 10 |" in (table := (recipe / "RESULTS.md").read_text())
    assert "| round10 | 5.50 | 10.50 |" in table
