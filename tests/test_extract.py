"""bin.extract: every utterance gets its embedding, or there is a clear error and no file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import toy

from pyspkv.base import config as cfg
from pyspkv.base.checkpoint import resolve_model
from pyspkv.base.device import autocast, choose_precision
from pyspkv.data.ark import read_embeddings
from pyspkv.data.datadir import DataDir
from pyspkv.fast.packed_linear import packed
from pyspkv.models.load import load_encoder
from pyspkv.score import extract as embed_module
from pyspkv.score.extract import embed
from pyspkv.train.config import TrainConfig
from pyspkv.train.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extract")
    data = toy.make(folder, speakers=2, utts=4, seconds=0.6)
    (folder / "config.yaml").write_text(
        "encoder: {name: ecapa, channels: 16, mfa_channels: 24, embed_dim: 8, se_channels: 4, n_mels: 40}\n"
        "objective: {name: aam, crop_seconds: 0.5, augment: false}\n"
        "epochs: 1\nbatch_size: 4\nprecision: fp32\nnum_workers: 0\n"
    )
    Trainer(cfg.load(TrainConfig, folder / "config.yaml"), data, folder / "model").run()
    return folder, data


def extract(model, data, out):
    command = [sys.executable, "-m", "pyspkv.bin.extract", "--model", model, "--data", data, "--out", out]
    return subprocess.run(
        list(map(str, command)), env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_command_equals_the_encoder_one_by_one(trained, tmp_path):
    folder, data = trained
    done = extract(folder / "model", data.path, tmp_path)
    assert done.returncode == 0 and "embedding.scp" in done.stdout.splitlines()[-1]
    found, encoder = read_embeddings(tmp_path / "embedding.scp"), load_encoder(folder / "model")
    assert found.ids == data.utts
    for i, utt in enumerate(data.utts):
        wave = torch.from_numpy(soundfile.read(data.wav[utt], dtype="float32")[0])[None]
        with torch.no_grad():
            want = encoder(wave, torch.tensor([wave.shape[1]]))[0].numpy()
        np.testing.assert_allclose(found.x[i], want, atol=1e-5)


def step(name, *options, ok=True) -> str:
    done = subprocess.run(
        [ROOT / "steps" / name, *map(str, options)],
        env={**os.environ, "SPKV_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


def test_embeddings_are_kept_for_one_model_audio_and_options_alone(trained, tmp_path):
    folder, data = trained
    config = cfg.load(TrainConfig, folder / "config.yaml", ["seed=1"])
    system = tmp_path / "system"
    shutil.copytree(folder / "model", system / "model")
    Trainer(config, data, tmp_path / "other").run()
    test = tmp_path / "test"
    reco = {f"r-{utt}": path for utt, path in data.wav.items()}
    segments = {utt: (f"r-{utt}", 0.0, 0.5) for utt in data.utts}
    DataDir(test, data.utts, data.spk, reco, segments).write(test)
    out = system / "embed/test"
    scp = out / "embedding.scp"

    def vectors():
        return read_embeddings(scp).x

    step("extract.sh", "--nj", 2, system / "model", test, out)
    first = vectors()
    assert "up to date" in step("extract.sh", "--nj", 2, system / "model", test, out)
    step("extract.sh", "--crops", 2, system / "model", test, system / "embed/test-crops")
    moved = {utt: (f"r-{utt}", 0.1, 0.6) for utt in data.utts}
    DataDir(test, data.utts, data.spk, reco, moved).write(test)
    os.utime(test / "segments", (1, 1))  # whatever the time stamps are
    assert "up to date" not in step("extract.sh", "--nj", 2, system / "model", test, out)
    assert (vectors() != first).any()
    second = vectors()
    # Another model, whose second job fails: no list may mix the two models.
    shutil.rmtree(system / "model")
    shutil.copytree(tmp_path / "other", system / "model")
    runner = tmp_path / "runner.sh"
    runner.write_text('#!/bin/bash\nrun.sh "${@/SPKV_JOB=1:2/SPKV_JOB=1:1}" && exit 1\n')
    runner.chmod(0o755)
    step("extract.sh", "--nj", 2, "--cmd", runner, system / "model", test, out, ok=False)
    assert (vectors() == second).all()  # the old files stay complete until all parts exist
    step("extract.sh", "--nj", 2, system / "model", test, out)
    assert (vectors() != second).any(1).all()
    # The list of a copied folder points into the original, which may change.
    copy = tmp_path / "JOB copy"
    shutil.copytree(out, copy)
    assert "up to date" not in step("extract.sh", "--nj", 2, system / "model", test, copy)
    assert str(copy) in (copy / "embedding.scp").read_text()
    # A wrong call does not lose existing embeddings.
    for wrong in (
        ["--nj", "abc", system / "model"],
        ["--nj", 1, tmp_path / "nowhere"],
        ["--nj", 2, tmp_path / "nowhere"],
    ):
        step("extract.sh", *wrong, test, copy, ok=False)
        assert (copy / "embedding.scp").exists()
    said = step("extract.sh", "--ngpu", "one", system / "model", test, tmp_path / "new", ok=False)
    assert "--ngpu is a number from 0, not 'one'" in said and not (tmp_path / "new").exists()
    # The first model's crops must not count for the second model's utterances.
    (test / "trials").write_text("s00-u00 s00-u01 target\ns00-u00 s01-u00 nontarget\n")
    step("score.sh", system, test, "test")
    assert (system / "score/test.json").exists() and not (system / "score/test-crops.json").exists()
    said = step("score.sh", "--crops", "true", system, test, "test", ok=False)
    assert "come from another model than" in said and not (system / "score/test-crops.json").exists()
    step("extract.sh", "--crops", 2, system / "model", test, system / "embed/test-crops")
    step("score.sh", "--crops", "true", system, test, "test")
    assert (system / "score/test-crops.json").exists()


def test_long_and_short_utterances_are_treated_as_documented(trained, monkeypatch):
    folder, data = trained
    encoder = load_encoder(folder / "model")
    monkeypatch.setattr(embed_module, "MAX_SECONDS", 0.35)  # 0.6 s become two halves
    got = embed(encoder, data, CPU, "fp32").x[0]
    wave = torch.from_numpy(soundfile.read(data.wav[data.utts[0]], dtype="float32")[0])
    with torch.no_grad():
        halves = [encoder(part[None], torch.tensor([len(part)]))[0] for part in wave.chunk(2)]
    np.testing.assert_allclose(got, torch.stack(halves).mean(0).numpy(), atol=1e-5)


def test_a_click_is_repeated_until_it_is_long_enough(trained, tmp_path):
    folder, data = trained
    soundfile.write(tmp_path / "click.wav", np.full(50, 0.1, np.float32), 16000)
    short = data.subset(data.utts[:1])
    short.wav[data.utts[0]] = str(tmp_path / "click.wav")
    assert np.isfinite(embed(load_encoder(folder / "model"), short, CPU, "fp32").x).all()


def test_bf16_stays_near_fp32(trained):
    folder, data = trained
    encoder = load_encoder(folder / "model")
    a, b = (embed(encoder, data, CPU, p).x for p in ("fp32", "bf16"))
    cos = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert (cos > 0.99).all() and (a != b).any()


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_packed_products_are_autocasts_and_end_with_their_block(bias):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(48, 80, bias=bias), torch.nn.Tanh(), torch.nn.Linear(80, 8))
    x = torch.randn(2, 5, 48)

    def passes():
        with autocast(CPU, "bf16"):
            wanted = layers(x)
        with packed(layers, CPU, "bf16"), autocast(CPU, "bf16"):
            found = layers(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.01)
        return found

    before = passes()
    layers[0].weight.mul_(2)  # the weights change between directories, as in training
    assert not torch.equal(passes(), before)
    with pytest.raises(KeyError), packed(layers, CPU, "bf16"):
        raise KeyError
    assert layers(x).dtype == torch.float32
    with packed(layers, CPU, "fp32"):
        assert layers(x).dtype == torch.float32


@pytest.mark.parametrize(
    "capabilities, precision",
    [
        ({"cpu_name": "Intel(R) Xeon(R)", "amx_bf16": True, "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "Intel(R) Xeon(R)", "amx_bf16": False, "avx512_bf16": True}, "fp32"),
        ({"cpu_name": "AMD EPYC", "amx_bf16": False, "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_precision_follows_the_hardware_unless_asked(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", CPU) == precision
    assert choose_precision("bf16", CPU) == "bf16" and choose_precision("fp32", CPU) == "fp32"


@pytest.mark.parametrize("damage", ["no model", "no checkpoint", "cut weights", "no audio", "pipe", "pickle"])
def test_bad_input_is_named_and_leaves_nothing(trained, tmp_path, damage):
    folder, data = trained
    model, bad = tmp_path / "model", tmp_path / "data"
    shutil.copytree(folder / "model", model)
    shutil.copytree(data.path, bad)
    weights = resolve_model(model) / "model.safetensors"
    words = {"no model": "no such model folder", "no checkpoint": "no checkpoint yet", "cut weights": "safetensors",
             "no audio": "does not exist", "pipe": "commands are not run", "pickle": "safetensors"}[damage]  # fmt: skip
    if damage == "no model":
        shutil.rmtree(model)
    elif damage == "no checkpoint":
        (model / "LATEST").unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "pickle":
        torch.save({"encoder.fc.weight": torch.zeros(1)}, weights)
    else:
        lines = (bad / "wav.scp").read_text().splitlines()
        lines[3] = f"{data.utts[3]} " + ("touch evil |" if damage == "pipe" else "/nowhere/x.wav")
        (bad / "wav.scp").write_text("".join(f"{x}\n" for x in lines))
    done = extract(model, bad, tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert words in done.stderr and len(done.stderr.strip().splitlines()) <= 2
    assert not list((tmp_path / "out").glob("embedding.*")) and not Path("evil").exists()


def test_crops_are_evenly_spaced_and_short_utterances_repeated(trained, tmp_path):
    folder, data = trained
    encoder = load_encoder(folder / "model")
    soundfile.write(tmp_path / "short.wav", soundfile.read(data.wav[data.utts[0]])[0][:3000], 16000)
    data = data.subset(data.utts[:2])
    data.wav[data.utts[1]] = str(tmp_path / "short.wav")
    got = dict(embed_module.embed_rows(encoder, data, CPU, "fp32", crops=(3, 4000)))
    whole, short = (soundfile.read(data.wav[u], dtype="float32")[0] for u in data.utts)
    starts = (0, (len(whole) - 4000) // 2, len(whole) - 4000)
    want = [whole[s : s + 4000] for s in starts], [np.resize(short, 4000)] * 3
    for row in range(2):
        with torch.no_grad():
            each = encoder(torch.from_numpy(np.stack(want[row])), torch.tensor([4000] * 3)).numpy()
        np.testing.assert_allclose(got[row], each, atol=1e-5)
