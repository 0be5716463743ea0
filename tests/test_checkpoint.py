"""Damaged or untrusted run folders are refused, with a hint."""

import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.models.load import load_encoder
from pyspkv.models.registry import EncoderConfig

STATE = {"epoch": 1, "audio_seconds": 3.5, "means": {"loss": [3.0, 2.0]}, "collapsed": 0, "done": False}
STATE |= {"best_eer": None, "best_epoch": None, "worse": 0, "label_hash": "a+b", "evaluates": "0"}
NEEDED = ("optimisers", "label_hash", "step", "epoch", "done", "means")
TINY = {"name": "ecapa", "channels": 16, "mfa_channels": 24, "embed_dim": 16, "se_channels": 8, "n_mels": 40}


def make(kind="adam", seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    if kind == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9 if kind == "momentum" else 0)
    return model, {"encoder": optimizer}


def step(model, optimizers):
    model.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    optimizers["encoder"].step()


@pytest.fixture
def run(tmp_path):
    """(folder, a function that restores it) of a run at step 3."""
    model, optimizers = make()
    step(model, optimizers)
    checkpoint.save(tmp_path, 3, model, optimizers, STATE, best=True)
    return tmp_path / "ckpt-3", lambda: checkpoint.restore(checkpoint.latest(tmp_path), *make(seed=1))


@pytest.mark.parametrize("kind", ["adam", "momentum", "plain"])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path, kind):
    model, optimizers = make(kind)
    step(model, optimizers)
    checkpoint.save(tmp_path, 1, model, optimizers, STATE)
    other = make(kind, seed=1)
    assert checkpoint.restore(tmp_path / "ckpt-1", *other, last=1)["means"] == {"loss": [3.0, 2.0]}
    for pair in ((model, optimizers), other):
        step(*pair)
    for a, b in zip(model.parameters(), other[0].parameters()):
        assert torch.equal(a, b)


def change(**entries):
    def write(folder):
        state = json.loads((folder / "state.json").read_text())
        state = {k: v for k, v in {**state, **entries}.items() if v != "drop"}
        (folder / "state.json").write_text(json.dumps(state))

    return write


def groups(**entries):
    def write(folder):
        state = json.loads((folder / "state.json").read_text())
        state["optimisers"]["encoder"][0].update(entries)
        (folder / "state.json").write_text(json.dumps(state))

    return write


def put(name, raw):
    return lambda folder: (folder / name).write_bytes(raw)


def tensors(name, edit):
    def write(folder):
        found = load_file(folder / name)
        edit(found)
        save_file(found, folder / name)

    return write


def header(text: bytes, data=b""):
    return struct.pack("<Q", len(text)) + text + data


ADAM, WEIGHTS = "optim.safetensors", "model.safetensors"
FAULTS = {
    **{f"state {raw[:12]!r}": put("state.json", raw) for raw in (b"3", b"[" * 100_000, b"\xff", b"", b"[]", b"null")},
    "5000 digits": put("state.json", b'{"step": ' + b"9" * 5000 + b"}"),
    **{f"without {key}": change(**{key: "drop"}) for key in NEEDED},
    **{f"step {value}": change(step=value) for value in ("x", -5, 2.5, True, None, [3], 10**9, 4)},
    **{f"epoch {value}": change(epoch=value) for value in ("1", -1, None)},
    **{f"evaluates {value}": change(evaluates=value) for value in (None, [1], 3)},
    **{f"means {value}": change(means=value) for value in (None, [], {"loss": 1}, {"loss": ["a", 1]}, {"loss": [1]})},
    **{f"other {k}": change(**{k: v}) for k, v in {"done": 1, "label_hash": 5, "best_eer": "x", "worse": -1,
                                                   "audio_seconds": "x", "optimisers": []}.items()},
    "other groups": change(optimisers={"encoder": []}),
    "groups of nothing": change(optimisers={"encoder": [None]}),
    "another optimizer": change(optimisers={"head": []}),
    "betas of text": groups(betas=["a", "b"]),
    "a rate of text": groups(lr="fast"),
    "other parameters": groups(params=[0, 1]),
    "more settings": groups(extra=1),
    "optimizer without tensors": put(ADAM, header(b"{}")),
    "an optimizer's tensor is gone": tensors(ADAM, lambda t: t.pop("encoder/0/exp_avg")),
    "all of one parameter is gone": tensors(ADAM, lambda t: [t.pop(k) for k in list(t) if k.startswith("encoder/0/")]),
    "of no parameter": tensors(ADAM, lambda t: t.update({"encoder/9/step": torch.tensor(1.0)})),
    "no name": tensors(ADAM, lambda t: t.update({"x": torch.tensor(1.0)})),
    "no number": tensors(ADAM, lambda t: t.update({"encoder/x/step": torch.tensor(1.0)})),
    "of another": tensors(ADAM, lambda t: t.update({"head/0/step": torch.tensor(1.0)})),
    "another shape": tensors(ADAM, lambda t: t.update({"encoder/0/exp_avg": torch.zeros(6)})),
    "another type": tensors(ADAM, lambda t: t.update({"encoder/0/exp_avg": torch.zeros(2, 3, dtype=torch.int64)})),
    "weights of another type": tensors(WEIGHTS, lambda t: t.update({"0.weight": t["0.weight"].double()})),
    "weights of another shape": tensors(WEIGHTS, lambda t: t.update({"0.weight": torch.zeros(3, 3)})),
    "weights are gone": tensors(WEIGHTS, lambda t: t.pop("0.weight")),
    "more weights": tensors(WEIGHTS, lambda t: t.update({"2.weight": torch.zeros(1)})),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no memory": lambda folder: (folder / ADAM).unlink(),
    **{f"weights {raw[:20]!r}": put(WEIGHTS, raw) for raw in (
        b"", b"1234567", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 50) + b"{}",
        header(b"[" * 90_000), header(b"\xff"),
        header(b'{"0.weight": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}'),
        header(b'{"0.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}', b"1234"),
        header(b'{"0.weight": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}', b"1234"),
        header(b'{"0.weight": 3}'), header(b'{"0.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}'),
        b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>")},
    **{f"LATEST {raw!r}": put("../LATEST", raw) for raw in (
        b"\xff\xfe", b"", b"ckpt-4", b"../ckpt-3", b"/etc", b".", b"..", b"ckpt-3/../ckpt-3", b"a\nb",
        b"x" * 300, b"\0")},
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_run_is_refused_with_a_hint(run, name):
    folder, restore = run
    restore()
    FAULTS[name](folder)
    with pytest.raises(UserError) as err:
        restore()
    said = str(err.value)
    assert (
        str(folder.parent) in said
        and "\n  hint: " in said
        and len(said.splitlines()) == 2
        and len(said) < 600
    )


def test_a_step_beyond_the_end_of_the_training(run):
    with pytest.raises(UserError, match="is from step 3, but the training has only 2"):
        checkpoint.restore(run[0], *make(), last=2)


def test_pipes_instead_of_files_do_not_block(run):
    folder, restore = run
    for name in ("state.json", "model.safetensors", "optim.safetensors"):
        shutil.copytree(folder.parent, saved := folder.parent.with_name("saved"))
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match="plain file|not a complete checkpoint"):
            restore()
        shutil.rmtree(folder.parent)
        saved.rename(folder.parent)


def test_infinite_means_are_kept(run):
    """The threshold of an open gate is infinite."""
    folder, restore = run
    change(means={"threshold": [float("inf"), 1.0]})(folder)
    assert restore()["means"] == {"threshold": [float("inf"), 1.0]}


def test_all_files_follow_the_umask(tmp_path):
    was = os.umask(0o027)
    try:
        checkpoint.save(tmp_path, 3, *make(), STATE)
        checkpoint.save_rows(tmp_path / "rows.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(was)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()} == {0o640}
    assert (tmp_path / "ckpt-3").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("encoder: {name: ecapa, channels: 400000, embed_dim: 900000}", "differs from this config's"),
        ("encoder: {name: resnet, channels: 1000, blocks: [900, 900, 900, 900]}", "has 3600 blocks"),
        ("encoder: {name: dvector, layers: 999}", "has 999 layers"),
        ("encoder: {name: dvector, hidden: 900000}", "differs from this config's"),
        ("encoder: {name: ecapa, channels: 999999999999}", "less than or equal to 1000000"),
        ("encoder: [1]", "must be a mapping"),
        ("encoder: &x {name: *x}", "alias"),
        ("x: 1", "must be a mapping"),
        ("- 1", "must be a mapping"),
    ],
)
def test_a_config_of_absurd_size_is_refused_before_memory_is_allocated(tmp_path, text, words):
    config = cfg.validate(EncoderConfig, TINY)
    checkpoint.save_import(tmp_path / "m", cfg.build(config), config, {})
    assert load_encoder(tmp_path / "m").embed_dim == 16
    (tmp_path / "m/config.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        load_encoder(tmp_path / "m")
