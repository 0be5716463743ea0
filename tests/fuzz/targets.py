"""Fuzz targets: readers of untrusted files, each as a function of the bytes of one file.

A bad file must give a `UserError`, which the target catches. Whatever else leaves a target (another
exception, a hang, too much memory) is a defect. `ALL` names each target and the valid files that a fuzzer may
start from.
"""

import atexit
import contextlib
import functools
import io
import json
import shutil
import tempfile
from pathlib import Path

import torch
from fuzz import ark, datadir, manifests, readers, trials, trunk_folder, turns
from safetensors.torch import save

from pyspkv.base import checkpoint, foreign
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.bin import import_checkpoint
from pyspkv.models import wavlm_import
from pyspkv.models.registry import EncoderConfig
from pyspkv.report import experiment as report
from pyspkv.report import gate_curves
from pyspkv.train.config import TrainConfig

METRICS = {
    "eer": 5.5,
    "min_dcf_0.01": 0.4,
    "min_dcf_0.05": 0.3,
    "cllr": 0.2,
    "eer_ci_low": 4.0,
    "eer_ci_high": 7.0,
}
METRICS |= {"eer_ci_over": "speakers", "trials": "data/test/trials", "num_target": 10, "eer_difference": -1.5}
EPOCH = {
    "kind": "epoch",
    "epoch": 1,
    "step": 9,
    "loss": 3.5,
    "accuracy": 0.5,
    "seconds": 60.0,
    "dev_eer": 9.0,
}


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pyspkv-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _target(function):
    @functools.wraps(function)
    def target(data: bytes) -> None:
        try:
            function(data)
        except UserError as err:
            assert len(str(err).splitlines()) <= 2, "an error has a line, and one for its hint"

    return target


def _model() -> tuple[torch.nn.Module, dict]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, {"encoder": optimizer}


@functools.cache
def _run() -> Path:
    """A run folder with one checkpoint."""
    exp = _folder() / "run"
    exp.mkdir()
    state = {"epoch": 1, "audio_seconds": 3.5, "means": {"loss": [3.0, 2.0]}, "collapsed": 0, "done": False}
    state |= {"best_eer": None, "best_epoch": None, "worse": 0, "label_hash": "a+b", "evaluates": "0"}
    checkpoint.save(exp, 3, *_model(), state)
    return exp


def _put(file: str, data: bytes) -> Path:
    """A fresh copy of the run folder with other bytes in one file."""
    exp = _folder() / "put"
    shutil.rmtree(exp, ignore_errors=True)
    shutil.copytree(_run(), exp)
    (exp / file).write_bytes(data)
    return exp


@_target
def config(data: bytes) -> None:
    """A YAML file of bin.train, and the config.yaml of a model folder."""
    (path := _folder() / "config.yaml").write_bytes(data)
    try:
        cfg.read_section(path, "encoder", EncoderConfig)
    finally:
        cfg.to_yaml(cfg.load(TrainConfig, path))


@_target
def override(data: bytes) -> None:
    """A `--set key=value`."""
    text = data.decode("utf-8", "surrogateescape").replace("\0", "")
    cfg.load(TrainConfig, None, ["encoder={name: ecapa}", "objective={name: aam}", text])


def _resume(file: str, data: bytes) -> None:
    exp = _put(file, data)
    if found := checkpoint.latest(exp):
        checkpoint.restore(found, *_model(), last=3)
        checkpoint.encoder_weights(found)


@_target
def pointer(data: bytes) -> None:
    _resume("LATEST", data)


@_target
def state(data: bytes) -> None:
    _resume("ckpt-3/state.json", data)


@_target
def weights(data: bytes) -> None:
    _resume("ckpt-3/model.safetensors", data)


@_target
def optimizer(data: bytes) -> None:
    _resume("ckpt-3/optim.safetensors", data)


@_target
def rows(data: bytes) -> None:
    (path := _folder() / "epoch-0001.safetensors").write_bytes(data)
    foreign.read_rows(path)


@_target
def foreign_weights(data: bytes) -> None:
    """The files that bin.import_checkpoint reads: safetensors and torch's own format."""
    for name in ("x.safetensors", "x.pt"):
        (path := _folder() / name).write_bytes(data)
        try:
            wavlm_import.config_of(*wavlm_import.read(path)[:2], path)
        except UserError as err:
            assert "weights_only" not in str(err)


@_target
def metrics(data: bytes) -> None:
    """The output of bin.metrics --json, turned into results.json and report.md."""
    exp = _folder() / "exp"
    (exp / "pretrain/score").mkdir(parents=True, exist_ok=True)
    (exp / "pretrain/score/test.json").write_bytes(data)
    scores = report.read_scores(report.find_phases(exp))
    json.dumps(report.results(scores, {}, "test", {}))
    report.markdown("title", scores, {}, [], [], {}, [], False).encode()


@_target
def log(data: bytes) -> None:
    """train.jsonl."""
    folder = _folder() / "round1"
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model/train.jsonl").write_bytes(data)
    phases = {"round1": folder}
    "".join(report.training_table(phases)).encode()
    report.cost_curve(phases)


@_target
def clusters(data: bytes) -> None:
    """A round's report.json, a run.json, and gate curves."""
    (path := _folder() / "report.json").write_bytes(data)
    for read in (
        report.stability,
        gate_curves.label_hash,
        gate_curves.read_curve,
        lambda file: import_checkpoint.is_made_of(file, {"sha256": "x"}),
    ):
        with contextlib.suppress(UserError):
            read(path)


def _yaml(**more) -> bytes:
    encoder = {"name": "ecapa", "channels": 32, "embed_dim": 16}
    text = {
        "encoder": encoder,
        "objective": {"name": "aam", "gate": {"name": "lgl"}},
        "optim": {"lr": 1e-3},
    }
    return json.dumps({**text, **more}, indent=1).encode()


def _wavlm() -> bytes:
    return save({"__S__.model.mask_emb": torch.zeros(3), "__L__.weight": torch.ones(2, 2)})


def _torch() -> bytes:
    file = io.BytesIO()
    torch.save({"cfg": {"layers": 2}, "model": {"mask_emb": torch.zeros(3), "b": torch.ones(2, 2)}}, file)
    return file.getvalue()


def _json(value) -> bytes:
    return json.dumps(value).encode()


def _of_run(file: str) -> bytes:
    return (_run() / "ckpt-3" / file).read_bytes()


ALL = {
    "config": (
        config,
        lambda: [_yaml(), b"encoder: {name: resnet, blocks: [1, 1, 1, 1]}\nobjective: {name: dino}\n"],
    ),
    "override": (override, lambda: [b"optim.lr=1e-3", b"encoder.channels=8", b"objective.gate={name: lgl}"]),
    "pointer": (pointer, lambda: [b"ckpt-3\n"]),
    "state": (state, lambda: [_of_run("state.json")]),
    "weights": (weights, lambda: [_of_run("model.safetensors")]),
    "optimizer": (optimizer, lambda: [_of_run("optim.safetensors")]),
    "rows": (rows, lambda: [save({"label": torch.arange(4), "weight": torch.ones(4)})]),
    "foreign_weights": (
        foreign_weights,
        lambda: [_wavlm(), _torch(), b"version https://git-lfs.github.com/spec/v1\n"],
    ),
    "metrics": (metrics, lambda: [_json(METRICS)]),
    "log": (log, lambda: [_json(EPOCH) + b"\n" + _json({**EPOCH, "audio_seconds": 9.5, "epoch": 2}) + b"\n"]),
    "clusters": (
        clusters,
        lambda: [_json({"stability": {"ami": 0.5}, "sha256": "x"}), _json([{"quality": 0.5}])],
    ),
}
for _name, _module in {
    "ark": ark,
    "datadir": datadir,
    "manifests": manifests,
    "trials": trials,
    "turns": turns,
}.items():
    ALL[_name] = (_target(_module.target), lambda module=_module: module.SEEDS)


def _in_folder(read):
    """Make a target of a function from readers.py: each case runs in a folder of its own."""

    @_target
    @functools.wraps(read)
    def target(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=_folder()) as folder:
            read(Path(folder), data)

    return target


ALL["trunk_folder"] = (_target(trunk_folder.target), trunk_folder.seeds)
ALL |= {name: (_in_folder(read), seeds) for name, (read, seeds) in readers.ALL.items()}
