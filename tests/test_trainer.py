"""The training loop: exact resume, refusals, several processes equal one, and runs that must stop."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from safetensors.torch import load_file

from pyspkv.base import atomic, checkpoint, distributed
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.base.schedules import LRScheduleConfig, lr_factor
from pyspkv.batches.dataset import View
from pyspkv.batches.sampler import SamplerConfig
from pyspkv.bin import train
from pyspkv.data.datadir import DataDir
from pyspkv.models.load import load_encoder
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.base import Losses
from pyspkv.score.extract import embed
from pyspkv.train.config import OptimConfig, TrainConfig
from pyspkv.train.optimizers import build_optimizer, set_lr
from pyspkv.train.state import RunState
from pyspkv.train.step import loss_with_pull, step_result, total_loss
from pyspkv.train.trainer import Trainer, check_epochs, check_start

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
encoder: {name: ecapa, channels: 16, mfa_channels: 24, embed_dim: 8, se_channels: 4, n_mels: 40}
objective: {name: aam, crop_seconds: 0.5, spec_augment: {max_time_mask: 5}}
augment: {rir_bank: 4}
batch_size: 4
precision: fp32
epochs: 3
log_every_steps: 2
save_every_steps: 2
num_workers: 0
"""
CONTRASTIVE = {
    "objective": {"name": "contrastive", "crop_seconds": 0.4},
    "augment.speed_perturb": [0.9, 1.0, 1.1],
}
DINO = {"objective": {"name": "dino", "global_seconds": 0.5, "local_seconds": 0.3, "local_crops": 2,
                      "head_hidden_dim": 16, "head_bottleneck_dim": 8, "num_prototypes": 32}}  # fmt: skip
REFLECTIVE = {"objective": {"name": "ssrl", "student_seconds": 0.5, "teacher_seconds": 0.6, "fixed_epochs": 1,
                            "queue_length": 3, "merge_ratio": 0.5, "split_ratio": 0.4,
                            "min_cluster_size": 2}}  # fmt: skip
AAT = {
    "objective": {**CONTRASTIVE["objective"], "adversarial_weight": 3.0},
    "augment.speed_perturb": [0.9, 1.0, 1.1],
}
DLG = {
    "objective.gate": {"name": "dlg", "start_epoch": 1, "label_correction_epoch": 1},
    "augment.speed_perturb": [0.9, 1.1],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


def config(tmp_path, **changes) -> TrainConfig:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return cfg.load(TrainConfig, path, [f"{k}={json.dumps(v)}" for k, v in changes.items()])


def others(data: DataDir) -> DataDir:
    """The same data with other names of speakers."""
    return data.renamed(lambda utt, spk: f"x-{utt}", "x-{}".format)


def final(exp) -> dict:
    return load_file(checkpoint.latest(exp) / "model.safetensors")


def assert_same(a: dict, b: dict, **tolerance):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(
            a[k],
            b[k],
            msg=lambda m, k=k: f"{k}: {m}",
            equal_nan=True,
            check_device=False,
            **(tolerance or {"atol": 0, "rtol": 0}),
        )


def epochs(exp) -> list[dict]:
    records = [json.loads(line) for line in (exp / "train.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records if r["kind"] == "epoch"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        CONTRASTIVE,
        {"objective.gate": {"name": "lgl", "threshold": 5.0, "start_epoch": 1}},
        {**DLG, "objective.head_init": "class_means"},
        DINO,
    ],
    ids=["margin", "contrastive", "lgl", "dlg", "dino"],
)
def test_a_run_killed_at_any_step_ends_with_the_same_digits(tmp_path, data, changes):
    c = config(tmp_path, **{"augment.rir_bank": 0, **changes})
    Trainer(c, data, tmp_path / "whole").run()
    for death in (1, 5, 12):  # before any checkpoint, inside an epoch, at an epoch's first step
        exp = tmp_path / f"killed{death}"
        toy.killed_at([death], lambda: Trainer(c, data, exp).run())  # noqa: B023
        assert_same(final(exp), final(tmp_path / "whole"))
        assert epochs(exp) == epochs(tmp_path / "whole")


def test_training_learns_the_toy_speakers(tmp_path, data):
    exp = tmp_path / "exp"
    easy = {"objective.augment": False, "objective.margin": 0.0, "objective.scale": 10.0, "batch_size": 8}
    Trainer(config(tmp_path, epochs=12, **{"optim.lr": 5e-3}, **easy), data, exp).run()
    assert epochs(exp)[-1]["accuracy"] > 0.8 > 0.6 > epochs(exp)[0]["accuracy"]
    assert len(list(exp.glob("ckpt-*"))) == 2
    assert (exp / "classes.txt").read_text().split() == ["s00", "s01", "s02", "s03"]


def test_the_log_is_json_and_counts_the_audio_that_was_embedded(tmp_path, data):
    """Clean crops count from the epoch of correction on, and only those of rejected utterances."""

    def no_such_thing(word):
        raise ValueError(word)

    gate = {"name": "dlg", "start_epoch": 1, "label_correction_epoch": 2}
    Trainer(config(tmp_path, **{"objective.gate": gate}), data, tmp_path / "exp").run()
    lines = (tmp_path / "exp" / "train.jsonl").read_text().splitlines()
    one, two, three = (
        r for r in (json.loads(x, parse_constant=no_such_thing) for x in lines) if r["kind"] == "epoch"
    )
    seconds = 0.5 * 24  # crops per epoch
    assert one["audio_seconds"] == seconds and two["audio_seconds"] == 2 * seconds and two["kept"] < 1
    assert three["audio_seconds"] == pytest.approx(2 * seconds + seconds * (2 - three["kept"]))


def test_workers_and_rerun_change_nothing(tmp_path, data):
    for name, workers in (("a", 0), ("b", 2)):
        Trainer(config(tmp_path, num_workers=workers, epochs=1), data, tmp_path / name).run()
    assert_same(final(tmp_path / "a"), final(tmp_path / "b"))
    before = (checkpoint.latest(tmp_path / "a") / "model.safetensors").stat().st_mtime_ns
    Trainer(config(tmp_path, epochs=1), data, tmp_path / "a").run()
    assert (checkpoint.latest(tmp_path / "a") / "model.safetensors").stat().st_mtime_ns == before


def test_resuming_onto_other_labels_or_another_config_is_refused(tmp_path, data):
    exp = tmp_path / "exp"
    Trainer(config(tmp_path, epochs=1), data, exp).run()
    other = data.with_speakers(["x" if s == "s00" else s for s in data.spk])
    with pytest.raises(UserError, match="other utterances or labels"):
        Trainer(config(tmp_path, epochs=1), other, exp).run()
    with pytest.raises(UserError, match="batch_size was 4, now 8"):
        Trainer(config(tmp_path, epochs=1, batch_size=8), data, exp).run()


def test_init_loads_the_encoder_and_builds_a_new_head(tmp_path, data):
    Trainer(config(tmp_path, epochs=1, **CONTRASTIVE), data, tmp_path / "pre").run()
    fine = Trainer(config(tmp_path), data, tmp_path / "fine", init=f"{tmp_path / 'pre'}@last")
    assert_same(
        fine.objective.encoder.state_dict(),
        checkpoint.encoder_weights(checkpoint.resolve_model(tmp_path / "pre")),
    )
    assert fine.objective.head.weight.shape == (4, 8)
    with pytest.raises(UserError, match="stem.conv.linear.weight"):
        Trainer(
            config(tmp_path, **{"encoder.channels": 24}), data, tmp_path / "x", init=str(tmp_path / "pre")
        )
    with pytest.raises(UserError, match="no dev list"):
        Trainer(config(tmp_path), data, tmp_path / "x", init=f"{tmp_path / 'pre'}@best")


def test_keep_head_takes_all_and_only_for_the_same_labels(tmp_path, data):
    c = config(tmp_path, epochs=1, **{"augment.rir_bank": 0, **DLG})
    Trainer(c, data, tmp_path / "first").run()
    second = Trainer(c, data, tmp_path / "second", init=str(tmp_path / "first"), keep_head=True)
    theirs = {k: v for k, v in final(tmp_path / "first").items() if not k.startswith("gate.")}
    ours = second.objective.state_dict()
    assert_same({k: ours[k] for k in theirs}, theirs)
    plain = config(tmp_path, epochs=1, **{"augment.rir_bank": 0, "augment.speed_perturb": [0.9, 1.1]})
    assert not Trainer(plain, data, tmp_path / "plain", init=str(tmp_path / "first"), keep_head=True).finished
    other = data.with_speakers(["x" if s == data.spk[0] else s for s in data.spk])
    with pytest.raises(UserError, match="other utterances or labels"):
        Trainer(c, other, tmp_path / "third", init=str(tmp_path / "first"), keep_head=True)


@pytest.mark.parametrize("imported", [False, True])
def test_keep_head_needs_a_model_that_has_a_classification_head(tmp_path, data, imported):
    """The labels are the same, but a DINO or imported model has no weights for the AAM-softmax head."""
    model = tmp_path / "first"
    trained = Trainer(config(tmp_path, epochs=1, **DINO), data, model)
    if imported:
        checkpoint.save_import(model, trained.objective.encoder, trained.config.encoder, {})
    else:
        trained.run()
    with pytest.raises(UserError, match="without a head over these labels") as error:
        Trainer(config(tmp_path), data, tmp_path / "second", init=str(model), keep_head=True)
    assert "leave out --keep-head" in str(error.value) and "encoder section" not in str(error.value)
    Trainer(config(tmp_path), data, tmp_path / "second", init=str(model))  # what the hint says


def test_keep_head_with_another_number_of_classes_names_the_sections_to_compare(tmp_path, data):
    """Every speed is a class of its own, so the two heads differ although the labels are the same."""
    Trainer(config(tmp_path, epochs=1), data, tmp_path / "first").run()
    c = config(tmp_path, **{"augment.speed_perturb": [0.9, 1.0, 1.1]})
    with pytest.raises(UserError, match=r"head.weight is (?s:.)*objective and augment sections"):
        Trainer(c, data, tmp_path / "second", init=str(tmp_path / "first"), keep_head=True)


def test_fine_tuning_goes_on_with_the_gate_of_the_last_round(tmp_path, data):
    """A threshold that splits the losses refuses labels from the first step on; without --keep-head none is refused."""
    changes = {"augment.rir_bank": 0, "epochs": 1}
    gate = {"name": "dlg", "start_epoch": 0, "label_correction_epoch": None, "min_keep_ratio": 0.9}
    c = config(tmp_path, **changes, **{"objective.gate": gate})
    first = Trainer(c, data, tmp_path / "first")
    first.objective.gate.tau.fill_(1e-6)
    first.objective.gate.follow = lambda epoch: {}  # the threshold that a round has found
    first.run()
    kept = {}
    for keep in (True, False):
        exp = tmp_path / f"second-{keep}"
        second = Trainer(c, data, exp, init=str(tmp_path / "first"), keep_head=keep)
        assert second.objective.gate.tau.item() == (pytest.approx(1e-6) if keep else np.inf)
        assert second.objective.gate.loss.isnan().all()
        second.run()
        kept[keep] = epochs(exp)[0]["kept"]
    assert kept == {True: 0.0, False: 1.0}


def test_a_head_starts_from_the_class_means_of_the_start_encoder(tmp_path, data):
    """As extraction embeds the training data with the model that --init names; --keep-head wins over it."""
    Trainer(config(tmp_path, epochs=1), data, tmp_path / "pre").run()
    c = config(
        tmp_path, epochs=0, **{"objective.head_init": "class_means", "augment.speed_perturb": [0.9, 1.1]}
    )
    Trainer(c, data, tmp_path / "round", init=str(tmp_path / "pre")).run()
    x = embed(load_encoder(tmp_path / "pre"), data, torch.device("cpu"), "fp32").x
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([x[[s == name for s in data.spk]].mean(0) for name in sorted(set(data.spk))])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    head = final(tmp_path / "round")["head.weight"].numpy()
    np.testing.assert_allclose(head, np.concatenate([means, means]), atol=1e-6)  # a row for each speed
    Trainer(c, data, tmp_path / "more", init=str(tmp_path / "round"), keep_head=True).run()
    assert_same(final(tmp_path / "more"), final(tmp_path / "round"))


def test_two_runs_cannot_write_one_folder(tmp_path, data):
    first = Trainer(config(tmp_path), data, tmp_path / "exp")
    with first._lock(), pytest.raises(UserError, match="another process is writing here"):
        Trainer(config(tmp_path), data, tmp_path / "exp").run()


def test_a_non_finite_loss_stops_with_the_utterances(tmp_path, data, monkeypatch):
    trainer = Trainer(config(tmp_path), data, tmp_path / "exp")
    with torch.no_grad():
        trainer.objective.encoder.fc.weight.fill_(torch.inf)
    with pytest.raises(UserError, match=r"the loss is nan at step 0; the batch was s0\d-u0\d"):
        trainer.run()


def test_a_collapsed_run_stops(tmp_path, data):
    trainer = Trainer(config(tmp_path, epochs=40), data, tmp_path / "exp")
    with torch.no_grad():
        trainer.objective.encoder.out_norm.weight.fill_(0.0)
        trainer.objective.encoder.out_norm.bias.fill_(1.0)
    trainer.optimizers = {}  # without an optimizer nothing ends the collapse
    with pytest.raises(UserError, match="collapsed"):
        trainer._lr = lambda: 0.0
        trainer.run()


def test_dev_list_gives_best_and_patience_stops(tmp_path, data):
    dev = others(toy.make(tmp_path / "dev", speakers=3, utts=4, seed=7))
    exp = tmp_path / "exp"
    c = config(tmp_path, epochs=30, **{"optim.lr": 1e-5, "optim.lr_schedule.warmup_epochs": 0})
    Trainer(c, data, exp, dev=dev, dev_trials=toy.trials(tmp_path / "dev", dev), patience=2).run()
    eers = [r["dev_eer"] for r in epochs(exp)]
    best = int(np.argmin(eers))
    assert len(eers) == best + 3 < 30
    assert checkpoint.state(checkpoint.resolve_model(f"{exp}@best"))["epoch"] == best + 1


def test_the_best_checkpoint_is_named_before_the_latest(tmp_path, data, monkeypatch):
    """If it is killed between the two, the resumed run writes it again, so both pointers are set."""
    o = Trainer(config(tmp_path), data, tmp_path / "exp").objective
    named = []

    @contextlib.contextmanager
    def spy(path, *args):
        named.append(path.name)
        with atomic.atomic_file(path, *args) as f:
            yield f

    monkeypatch.setattr(checkpoint, "atomic_file", spy)
    checkpoint.save(tmp_path / "exp", 3, o, {}, {}, best=True)
    assert named == ["best", "LATEST"] and checkpoint.resolve_model(f"{tmp_path}/exp@best").name == "ckpt-3"


def test_no_epochs_leave_the_model_as_it_starts(tmp_path, data):
    """epochs=0 gives the untrained encoder of the seed, to extract with; a longer training does not continue
    it.
    """
    settings = config(tmp_path, epochs=0)
    Trainer(settings, data, tmp_path / "none").run()
    torch.manual_seed(settings.seed)
    encoder = cfg.build(settings.encoder)
    assert_same(checkpoint.encoder_weights(checkpoint.resolve_model(tmp_path / "none")), encoder.state_dict())
    assert Trainer(settings, data, tmp_path / "none").run() is None
    with pytest.raises(UserError, match="epochs was 0, now 2"):
        Trainer(config(tmp_path, epochs=2), data, tmp_path / "none").run()


def test_a_run_started_from_another_model_is_not_resumed(tmp_path, data):
    for seed in (1, 2):
        Trainer(config(tmp_path, seed=seed, epochs=1), data, tmp_path / f"pre{seed}").run()
    exp = tmp_path / "exp"
    Trainer(config(tmp_path, epochs=1), data, exp, init=str(tmp_path / "pre1")).run()
    (tmp_path / "pre1").rename(tmp_path / "moved")
    # the same model in another place
    Trainer(config(tmp_path, epochs=1), data, exp, init=f"{tmp_path}/moved@last").run()
    for other in (str(tmp_path / "pre2"), None):
        with pytest.raises(UserError, match="started from another model"):
            Trainer(config(tmp_path, epochs=1), data, exp, init=other).run()


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"batch_size": -4}, {"save_every_steps": 0}, {"num_workers": -1}, {"seed": -1},
     {"optim.grad_clip_norm": -1.0}, {"optim.lr": 0.0}, {"encoder.channels": 10}, {"encoder.embed_dim": 0},
     {"objective.sub_centers": 0},
     {"encoder": {"name": "resnet", "channels": 0}}, {"encoder": {"name": "dvector", "hidden": 0}},
     {"objective": {**DINO["objective"], "local_crops": -1}}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(tmp_path, data, wrong):
    key = next(iter(wrong)).split(".")[-1]
    words = {"encoder": r"encoder\.(channels|hidden)", "objective": r"objective\.local_crops"}
    with pytest.raises(UserError, match=f"config key '.*{words.get(key, key)}"):
        Trainer(config(tmp_path, **wrong), data, tmp_path / "exp")


def test_weights_of_another_model_and_names_with_an_at(tmp_path, data):
    exp = tmp_path / "a@1"
    Trainer(config(tmp_path, epochs=1), data, exp).run()
    assert load_encoder(exp).embed_dim == load_encoder(f"{exp}@last").embed_dim == 8
    other = tmp_path / "other"
    Trainer(config(tmp_path, epochs=1, **{"encoder.embed_dim": 4}), data, other).run()
    shutil.copy(checkpoint.latest(other) / "model.safetensors", checkpoint.latest(exp) / "model.safetensors")
    with pytest.raises(UserError, match="differs from this config's"):
        load_encoder(exp)


def test_each_parameter_may_be_clipped_by_itself(tmp_path, data):
    norms = {}
    for each in (False, True):
        changes = {"optim.clip_per_parameter": each, "optim.grad_clip_norm": 1e-3, "epochs": 1}
        t = Trainer(config(tmp_path, **changes), data, tmp_path / f"exp{each}")
        t.run()
        norms[each] = [p.grad.norm().item() for p in t.objective.parameters() if p.grad is not None]
    assert np.linalg.norm(norms[False]) == pytest.approx(1e-3, rel=1e-3)
    assert max(norms[True]) == pytest.approx(1e-3, rel=1e-3) and np.linalg.norm(norms[True]) > 2e-3


def test_extraction_runs_the_saved_encoder_in_eval_mode(tmp_path, data):
    exp = tmp_path / "exp"
    trainer = Trainer(config(tmp_path, epochs=1), data, exp)
    trainer.run()
    found = embed(load_encoder(exp), data, torch.device("cpu"), "fp32")
    reader = trainer.corpus.readers[0]
    with torch.no_grad():
        encoder = trainer.objective.encoder.eval().cpu()
        for row in (0, 7, 23):
            wave = torch.from_numpy(reader.read(row))[None]
            want = encoder(wave, torch.tensor([wave.shape[1]]))[0]
            np.testing.assert_allclose(found.x[row], want.numpy(), atol=1e-5)


def train_command(tmp_path, data, exp, *more, nproc=1):
    launch = ["pyspkv.bin.launch", "--nproc", str(nproc)] if nproc > 1 else []
    return [
        sys.executable,
        "-m",
        *launch,
        "pyspkv.bin.train",
        "--config",
        str(tmp_path / "config.yaml"),
        "--data",
        str(data.path),
        "--exp",
        str(exp),
        *more,
    ]


ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
       "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        CONTRASTIVE,
        AAT,
        {**DLG, "objective.head_init": "class_means"},
        {**DLG, "objective.match_released_code": True},
        DINO,
        REFLECTIVE,
    ],
    ids=["margin", "contrastive", "aat", "dlg", "faithful", "dino", "reflective"],
)
def test_two_processes_equal_one(tmp_path, data, changes):
    """Same global batch, gathered negatives, synchronized batch normalization: same losses and weights."""
    same = {
        "objective.spec_augment.max_time_mask": 0,
        "optim.name": "sgd",
        "optim.lr": 0.001,
    }  # Adam amplifies rounding errors, and so do larger steps
    c = config(tmp_path, epochs=2, **same, **changes)
    (tmp_path / "config.yaml").write_text(cfg.to_yaml(c))
    Trainer(c, data, tmp_path / "one").run()
    done = subprocess.run(
        train_command(tmp_path, data, tmp_path / "two", nproc=2), env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for one, two in zip(epochs(tmp_path / "one"), epochs(tmp_path / "two")):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        for name in ("accuracy", "kept", "entropy"):
            assert two.get(name, 0) == pytest.approx(one.get(name, 0), abs=0.05)
    assert_same(final(tmp_path / "one"), final(tmp_path / "two"), atol=2e-4, rtol=1e-2)


def test_kill_minus_nine_and_rerun(tmp_path, data):
    c = config(tmp_path, epochs=6, num_workers=1)
    (tmp_path / "config.yaml").write_text(cfg.to_yaml(c))
    subprocess.run(
        train_command(tmp_path, data, tmp_path / "whole"), env=ENV, check=True, capture_output=True
    )
    command = train_command(tmp_path, data, tmp_path / "killed")
    process = subprocess.Popen(
        command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not (tmp_path / "killed" / "LATEST").exists():
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, env=ENV, check=True, capture_output=True)
    assert_same(final(tmp_path / "killed"), final(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "optim.learn=1"], "unknown config key 'optim.learn'"),
        (["--set", "batch_size=500"], "lower batch_size"),
        (["--set", "objective.crop_seconds=0.01"], "shorter than"),
        (["--init", "nowhere"], "no such model folder"),
        (["--dev", "nowhere", "--dev-trials", "x"], "no such data directory"),
        (["--dev", "{data}", "--dev-trials", "{data}/utt2spk"], "share 4 speakers"),
        (["--set", "optim.lr=.nan"], "config key 'optim.lr'"),
        (
            ["--set", "seed=99999999999"],
            "config key 'seed': input should be less than 2147483648, got 99999999999",
        ),
        (["--dev", "{dev}", "--dev-trials", "{dev}/trials"], "trials: has no nontarget trial"),
        (["--dev", "{dev}", "--dev-trials", "{dev}/foreign"], "foreign:1: s00-u00 is not an utterance"),
    ],
)
def test_bad_calls_give_an_error_and_leave_no_files(tmp_path, data, more, words):
    config(tmp_path)
    dev = toy.make(tmp_path / "other", speakers=1, utts=2)
    renamed = DataDir(
        tmp_path / "dev", ["x-1", "x-2"], ["x", "x"], dict(zip(("x-1", "x-2"), dev.wav.values()))
    )
    renamed.write(tmp_path / "dev")
    (tmp_path / "dev/trials").write_text("x-1 x-2 target\n")
    (tmp_path / "dev/foreign").write_text("x-1 s00-u00 target\n")
    more = [m.replace("{data}", str(data.path)).replace("{dev}", str(tmp_path / "dev")) for m in more]
    done = subprocess.run(
        train_command(tmp_path, data, tmp_path / "exp", *more), env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert words in done.stderr and len(done.stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "exp" / "LATEST").exists()


def test_an_error_in_a_worker_has_no_traceback(tmp_path):
    data = toy.make(tmp_path, speakers=2, utts=2)
    config(tmp_path, num_workers=1, cache_mb=0, batch_size=2)
    gone = next(iter(data.wav.values()))
    os.remove(gone)
    command = train_command(
        tmp_path, data, tmp_path / "exp", "--set", "num_workers=1", "cache_mb=0", "batch_size=2"
    )
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and gone in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("warning:") and "4 utterances in all" in lines[0]
    assert len(lines[1:]) <= 2


def test_print_config_needs_no_data(tmp_path):
    c = config(tmp_path)
    command = [
        sys.executable,
        "-m",
        "pyspkv.bin.train",
        "--config",
        str(tmp_path / "config.yaml"),
        "--print-config",
    ]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    assert done.stdout == cfg.to_yaml(c)


def test_a_trunk_that_would_never_join_is_refused(tmp_path, data):
    fields = {"encoder": {"name": "trunk", "frozen_epochs": 2}, "objective": {"name": "aam"}}
    never = cfg.validate(TrainConfig, {**fields, "epochs": 2, "batch_size": 2})
    words = r"encoder\.frozen_epochs is 2 of 2 epochs, so that the trunk would never learn"
    with pytest.raises(UserError, match=words):
        check_start(never)
    with pytest.raises(UserError, match=words):
        Trainer(never, data, tmp_path / "exp")
    for epochs in (3, 0):
        check_epochs(never.model_copy(update={"epochs": epochs}))


def test_a_check_finds_a_start_that_is_missing_or_another(tmp_path, monkeypatch, capsys):
    """Without data, before anything is trained; what cannot be loaded at the start of a training."""
    small = {
        "layers": 1,
        "dim": 8,
        "heads": 2,
        "ffn": 8,
        "conv_dim": 4,
        "pos_conv_kernel": 2,
        "pos_conv_groups": 2,
    }
    for name, sizes in (("wavlm", small), ("dvector", {})):
        config = cfg.validate(EncoderConfig, {"name": name, **sizes})
        checkpoint.save_import(tmp_path / name, cfg.build(config), config, {})
    file = tmp_path / "config.yaml"
    for fields, words in (
        ({"name": "trunk"}, "encoder.pretrained names no trunk"),
        ({"name": "trunk", "pretrained": str(tmp_path / "dvector")}, "its encoder is 'dvector', not 'trunk'"),
        ({"name": "wavlm", **small, "l2_sp_weight": 0.1}, "l2_sp_weight needs encoder.pretrained"),
        ({"name": "wavlm", **small, "layers": 2, "pretrained": str(tmp_path / "wavlm")}, "layers"),
        ({"name": "wavlm", **small, "pretrained": str(tmp_path / "wavlm")}, None),
    ):
        file.write_text(json.dumps({"encoder": fields, "objective": {"name": "aam"}}))
        monkeypatch.setattr(sys, "argv", ["train", "--check", "--config", str(file)])
        if words:
            with pytest.raises(UserError, match=words):
                train.main()
        else:
            assert train.main() == 0 and "can start: wavlm, aam, 10 epochs" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "dvector", "wavlm"]


def test_patience_counts_epochs_above_the_best_one(tmp_path, data, monkeypatch):
    """As in GLL's stages: the last epochs must all be strictly above the lowest EER, so training continues
    after ties.
    """
    eers = iter([10.0, 10.0, 10.0, 10.0, 9.0, 11.0, 9.0, 12.0, 10.0, 1.0])
    monkeypatch.setattr(Trainer, "_evaluate", lambda self, dev: {"dev_eer": next(eers)})
    trials = tmp_path / "trials"
    trials.write_text("x-s00-u00 x-s00-u01 target\nx-s00-u00 x-s01-u00 nontarget\n")
    c, dev = config(tmp_path, epochs=10), others(data)
    Trainer(c, data, tmp_path / "exp", dev=dev, dev_trials=trials, patience=2).run()
    assert len(epochs(tmp_path / "exp")) == 9
    assert checkpoint.state(checkpoint.resolve_model(f"{tmp_path / 'exp'}@best"))["best_epoch"] == 4


def test_moved_labels_do_not_replace_the_training_data(tmp_path, data):
    c = config(tmp_path, **REFLECTIVE)
    with pytest.raises(UserError, match="is the same directory as the training data"):
        Trainer(c, data, tmp_path / "exp", labels_out=data.path)
    dev, trials = others(toy.make(tmp_path / "dev", speakers=2, utts=2)), tmp_path / "trials"
    trials.write_text("x-s00-u00 x-s00-u01 target\nx-s00-u00 x-s01-u00 nontarget\n")
    with pytest.raises(UserError, match="is the same directory as the dev list"):
        Trainer(c, data, tmp_path / "exp", dev=dev, dev_trials=trials, labels_out=dev.path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.doc").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.doc"):
        Trainer(c, data, tmp_path / "exp", labels_out=tmp_path / "mine")
    assert not list((tmp_path / "exp").glob("ckpt-*"))


def test_a_kept_head_keeps_labels_that_move(tmp_path, data, monkeypatch):
    c = config(tmp_path, **REFLECTIVE)
    Trainer(c, data, tmp_path / "first").run()
    second = Trainer(c, data, tmp_path / "second", init=str(tmp_path / "first"), keep_head=True)
    monkeypatch.setattr(second, "_loop", lambda model: None)
    second.run()
    theirs, ours = final(tmp_path / "first"), second.objective.state_dict()
    for name in ("classifier.weight", "label", "queue"):
        assert torch.equal(ours[name].cpu(), theirs[name])


@pytest.mark.parametrize("changes, words", [
    ({"optim.lr_schedule.final_factor": -0.9}, "'optim.lr_schedule.final_factor': .* got -0.9"),
    ({"augment.speed_perturb": [1.0, 1.0]}, "'augment.speed_perturb': a factor appears twice, got"),
    ({"encoder": {"name": "resnet", "blocks": [1, 0, 1, 1]}}, "'encoder.blocks.1': .* got 0"),
    ({"encoder": {"name": "ecapa", "n_mels": 0}}, "'encoder.n_mels': .* greater than or equal to 1, got 0"),
    ({"encoder": {"name": "wavlm", "layers": 0}}, "'encoder.layers': .* greater than or equal to 1, got 0"),
    ({"encoder": {"name": "wavlm", "attention_dropout": 1.0}}, "'encoder.attention_dropout': .* less than 1, got 1.0"),
    ({"objective.gate": {"name": ["a"]}}, "no gate is called"),
])  # fmt: skip
def test_sizes_and_schedules_out_of_range_are_refused(tmp_path, data, changes, words):
    with pytest.raises(UserError, match=words):
        Trainer(config(tmp_path, **changes), data, tmp_path / "exp")


def test_two_directories_for_an_objective_of_one_are_refused(tmp_path, data):
    other = toy.make(tmp_path, labelled=False).renamed(lambda utt, spk: f"x-{utt}", "x-{}".format)
    for changes in ({}, {"objective": {"name": "supervised", "crop_seconds": 0.4}}):
        with pytest.raises(UserError, match="objective aam uses one|uses labeled utterances only"):
            Trainer(config(tmp_path, **changes), data, tmp_path / "exp", unlabeled=other).run()


def test_the_l2_sp_penalty_is_a_term_of_every_objective(tmp_path, data):
    """All n weights of the encoder are 1 away from the pre-trained ones, and the factor is 0.5: the first
    term is n / 2.
    """
    wavlm = {"encoder": {"name": "wavlm", "layers": 1, "dim": 16, "heads": 2, "ffn": 16, "conv_dim": 8,
                         "pos_conv_kernel": 4, "pos_conv_groups": 2, "embed_dim": 4, "mhfa_heads": 2,
                         "mhfa_dim": 4}}  # fmt: skip
    for name, changes in (("contrastive", CONTRASTIVE), ("dino", DINO), ("margin", {})):
        trainer = Trainer(
            config(tmp_path, epochs=1, **changes, **wavlm, log_every_steps=1), data, tmp_path / name
        )
        encoder = trainer.objective.encoder
        encoder.config = encoder.config.model_copy(update={"l2_sp_weight": 0.5, "pull_form": "squared"})
        encoder.anchor = [p.detach() - 1 for p in encoder._pulled()]
        trainer.run()
        first = json.loads((tmp_path / name / "train.jsonl").read_text().splitlines()[0])
        assert first["pull"] == pytest.approx(sum(p.numel() for p in encoder._pulled()) / 2, rel=1e-4)
        assert epochs(tmp_path / name)[0]["drift/layer1"] == pytest.approx(encoder.drift()["layer1"])


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--ngpu", "1", "--gpu 1, but this machine has 0; without --ngpu the recipes use the CPU"),
        ("--ngpu", "one", "--ngpu is a number from 0, not 'one'"),
        ("--nproc", "0", "--nproc is a number from 1, not '0'"),
    ],
)
def test_more_processes_than_can_run_are_an_error(tmp_path, data, option, value, words):
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [ROOT / "steps/train.sh", option, value, tmp_path / "config.yaml", data.path, tmp_path / "exp"]
    done = subprocess.run(command, env={**ENV, "SPKV_PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "exp/LATEST").exists()


def test_tensors_summed_over_processes_are_contiguous(monkeypatch):
    """NCCL needs contiguous tensors (gloo does not): values and gradients, whatever their memory layout."""
    from pyspkv.base import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda x: seen.append(x.is_contiguous()))
    seen = []
    x = torch.randn(3, 4, 5, requires_grad=True)
    distributed.all_reduce_sum(x.transpose(0, 2))
    (distributed.sum_with_grad(x.permute(1, 2, 0)) * torch.randn(3, 4, 5).permute(1, 2, 0)).sum().backward()
    assert seen == [True] * 3


def test_dialogues_that_do_not_divide_among_processes_are_refused(monkeypatch):
    from pyspkv.base import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    label = np.arange(48) // 4
    for batch, fields in ((12, {"utts_per_dialogue": 4}), (16, {"utts_per_dialogue": 2, "num_labeled": 3})):
        with pytest.raises(UserError, match="not multiples of 2 processes"):
            cfg.build(cfg.validate(SamplerConfig, {"name": "dialogues", **fields}), label, batch, 0,
                      {"source": 0 * label})  # fmt: skip


# -- runs that are finished, or only read


def stopped_at(step: int, trainer: Trainer) -> None:
    """Train until the run is killed before this step."""
    go = trainer._step

    def fatal(model, batch, number):
        if number == step:
            raise toy.Killed
        return go(model, batch, number)

    trainer._step = fatal
    with pytest.raises(toy.Killed):
        trainer.run()


def snapshot(folder) -> dict:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in [folder, *folder.rglob("*")]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder of config.yaml, data, a finished run).

    If audio were read, the test would fail, because it is gone.
    """
    folder = tmp_path_factory.mktemp("finished")
    data = toy.make(folder)
    Trainer(config(folder, epochs=1), data, folder / "exp").run()
    shutil.rmtree(folder / "wav")
    return folder, data, folder / "exp"


def no_building(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a finished run was built anew")

    monkeypatch.setattr(cfg, "build", fail)


def test_a_finished_run_opens_no_audio_builds_nothing_and_writes_nothing(finished, capsys, monkeypatch):
    folder, data, exp = finished
    no_building(monkeypatch)
    before = snapshot(exp)
    Trainer(config(folder, epochs=1, num_workers=2, cache_mb=1), data, exp).run()
    assert capsys.readouterr().out == f"already trained: {exp}\n" and snapshot(exp) == before


def test_a_finished_model_behind_a_link_is_taken_and_left_alone(finished, tmp_path, capsys, monkeypatch):
    folder, data, exp = finished
    no_building(monkeypatch)
    (exp / ".lock").unlink(missing_ok=True)
    link, before = tmp_path / "exp", snapshot(exp)
    link.symlink_to(exp)
    Trainer(config(folder, epochs=1), data, link).run()
    assert capsys.readouterr().out == f"already trained: {link}\n"
    other = data.with_speakers(["x" if s == "s00" else s for s in data.spk])
    for c, of, words in (
        (config(folder, epochs=1, batch_size=8), data, "batch_size was 4, now 8"),
        (config(folder, epochs=2), data, "epochs was 1, now 2"),
        (config(folder, epochs=1), other, "other utterances or labels"),
    ):
        with pytest.raises(UserError, match=words):
            Trainer(c, of, link).run()
    with pytest.raises(UserError, match="another model: none, now"):
        Trainer(config(folder, epochs=1), data, link, init=str(exp)).run()
    assert snapshot(exp) == before and link.is_symlink()


@pytest.mark.parametrize("there", ["unfinished", "empty", "nothing"])
def test_a_link_to_an_unfinished_model_is_refused(tmp_path, data, there):
    exp, link = tmp_path / "exp", tmp_path / "link"
    if there == "unfinished":
        stopped_at(4, Trainer(config(tmp_path, epochs=1), data, exp))
    elif there == "empty":
        exp.mkdir()
    link.symlink_to(exp)
    before = snapshot(exp) if exp.exists() else None
    with pytest.raises(UserError, match="link to a model whose training has not finished"):
        Trainer(config(tmp_path, epochs=1), data, link).run()
    assert (snapshot(exp) if exp.exists() else None) == before


def test_moved_labels_come_from_behind_a_link_too(tmp_path, data):
    c = config(tmp_path, **REFLECTIVE)
    Trainer(c, data, tmp_path / "exp", labels_out=tmp_path / "one").run()
    (tmp_path / "exp/.lock").unlink()
    before = snapshot(tmp_path / "exp")
    (tmp_path / "link").symlink_to("exp")
    Trainer(c, data, tmp_path / "link", labels_out=tmp_path / "two").run()
    assert (tmp_path / "two/utt2spk").read_bytes() == (tmp_path / "one/utt2spk").read_bytes()
    assert snapshot(tmp_path / "exp") == before


def test_a_process_without_the_lock_writes_nothing(tmp_path, data):
    exp = tmp_path / "exp"
    with atomic.folder_lock(exp), pytest.raises(UserError, match="another process is writing here"):
        Trainer(config(tmp_path), data, exp).run()
    assert [p.name for p in exp.iterdir()] == [".lock"], "no rooms either"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 2**31}, "'seed': .* less than 2147483648"),
        ({"epochs": 10**6 + 1}, "'epochs': .* less than or equal to 1000000, got 1000001"),
        ({"batch_size": 10**9}, "'batch_size': .* less than or equal to"),
        ({"num_workers": 5000}, "'num_workers': .* less than or equal to 1024, got 5000"),
        ({"log_every_steps": 10**15}, "'log_every_steps': .* less than or equal to"),
        ({"save_every_steps": 0}, "'save_every_steps': .* greater than or equal to 1, got 0"),
    ],
)
def test_numbers_have_bounds(tmp_path, data, change, words):
    with pytest.raises(UserError, match=words):
        Trainer(config(tmp_path, **change), data, tmp_path / "exp")
    assert not (tmp_path / "exp").exists()


def test_the_lock_is_free_for_the_next_and_names_its_holder(tmp_path, data):
    with (
        atomic.folder_lock(tmp_path / "exp"),
        pytest.raises(UserError, match=f'"pid": {os.getpid()}'),
    ):
        Trainer(config(tmp_path, epochs=1), data, tmp_path / "exp").run()
    Trainer(config(tmp_path, epochs=1), data, tmp_path / "exp").run()


def test_dev_and_training_data_must_be_disjoint(tmp_path, data):
    trials = toy.trials(tmp_path, data)
    with pytest.raises(UserError, match="dev and training share 4 speakers"):
        Trainer(config(tmp_path), data, tmp_path / "exp", dev=data, dev_trials=trials)
    # other names of speakers, but the same utterances
    other = data.renamed(lambda utt, spk: utt, "x-{}".format)
    with pytest.raises(UserError, match="dev and --unlabeled share 24 utterances"):
        Trainer(config(tmp_path), data, tmp_path / "exp", unlabeled=data, dev=other, dev_trials=trials)
    assert not (tmp_path / "exp").exists()


# -- the parts


def test_the_total_is_the_sum_of_means_with_weights_of_any_kind():
    x = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    for kind in (lambda v: v, float, torch.tensor, lambda v: torch.tensor(float(v))):
        losses = Losses({"a": (x.sum(), kind(3)), "b": (2 * x[0], kind(1)), "none": (0 * x[1], kind(0))})
        loss, stop = total_loss(losses, torch.device("cpu"))
        assert loss.item() == 3 + 2 and not stop


def test_learning_rates_by_epoch():
    """Warm-up and fall; with a first phase, SSRL's released rates: 1e-4 to 1e-5 in 5 epochs, 5e-4 to 1e-5 in 100."""

    def rates(epochs, lr, *at, **fields):
        return [lr * lr_factor(LRScheduleConfig(**fields), e, epochs) for e in at]

    assert rates(10, 1, 0, 1, 2, 6, 10, warmup_epochs=2, final_factor=0.1) == pytest.approx(
        [0, 0.5, 1, 0.55, 0.1]
    )
    falls = rates(4, 1, 0, 1, 4, name="exponential", warmup_epochs=0, final_factor=0.0625)
    assert falls == pytest.approx([1, 0.5, 0.0625])
    ssrl = {"warmup_epochs": 0, "first_epochs": 5, "first_factor": 0.2, "final_factor": 0.02}
    found = rates(105, 5e-4, 0, 2.5, 5 - 1e-9, 5, 55, 105, **ssrl)
    assert found == pytest.approx([1e-4, 5.5e-5, 1e-5, 5e-4, 2.55e-4, 1e-5])
    ssrl |= {"name": "exponential", "first_factor": 0.32, "warmup_epochs": 2}
    assert rates(9, 1, 2.5, 5, 6, 7, 8, **ssrl) == pytest.approx([0.08, 0, 0.5, 1, 0.02**0.5])


@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_beside_a_pull(monkeypatch, normalize):
    """L + P, or L / sg(L) + P: that gradient is d ln L + dP, by the mean L of both of two ranks."""
    x = torch.tensor([2.0, 6.0], requires_grad=True)

    def step(pull):
        losses = Losses({"a": (3 * x[0], 3), "b": (x[0] * x[1], 1)})
        x.grad = None
        loss, shown, _ = loss_with_pull(losses, pull, normalize, torch.device("cpu"))
        loss.backward()
        assert ("pull" in losses.terms) == bool(pull), "what is logged"
        return loss.item(), shown.item(), x.grad.tolist()

    assert step({}) == (14, 14, [7, 2])
    want = (1 + 6, 14, [0.5, 2 / 14 + 1]) if normalize else (20, 20, [7, 3])
    assert step({"pull": (x[1], 1.0)}) == pytest.approx(want[:2] + (pytest.approx(want[2]),))
    if normalize:  # another rank has L = 28: both divide by 21, and each counts its own share
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "all_reduce_sum", lambda v: v + (28 if v.ndim == 0 else v))
        assert step({"pull": (x[1], 1.0)})[0] == pytest.approx(14 / 21 + 6)
        x = torch.tensor([0.0, 6.0], requires_grad=True)
        monkeypatch.undo()
        assert step({"pull": (x[1], 1.0)})[0] == 6, "a gate that rejects all leaves nothing to divide"


def test_audio_counts_by_the_crops_that_were_encoded():
    views = {"main": View(2.0), "clean": View(4.0)}
    losses = Losses({"a": (torch.tensor(6.0), 3)}, {"b": (1, 4)}, (torch.tensor(2.0), 4), {"clean": 1})
    found = step_result(2.0, losses, views, 4)
    assert (found.seconds, found.spread) == (2.0 + 4.0 / 4, 0.5)
    assert found.stats == {"loss": (2.0, 1.0), "a": (6.0, 3.0), "b": (1.0, 4.0), "spread": (2.0, 4.0),
                           "encoded/clean": (1.0, 4.0)}  # fmt: skip
    assert step_result(2.0, Losses({}), views, 4).seconds == 6.0


def test_the_best_epoch_and_the_end_of_a_run():
    state = RunState(label_hash="x", eval_module="encoder")
    told = [(state.end_epoch(6, eer, 2), state.worse, state.done) for eer in (9.0, 9.0, 8.0, 8.5, 8.1)]
    assert told == [
        (True, 0, False),
        (False, 0, False),
        (True, 0, False),
        (False, 1, False),
        (False, 2, True),
    ]
    assert (state.best_eer, state.best_epoch, state.epoch) == (8.0, 2, 5)
    plain = RunState(label_hash="x", eval_module="encoder")
    assert [plain.end_epoch(2, None, 0) or plain.done for _ in range(2)] == [False, True]
    assert plain.best_epoch is None and plain.to_json()["evaluates"] == "encoder"


def test_weights_decay_and_rates_follow_their_group():
    w, b, frozen = (torch.nn.Parameter(torch.zeros(n)) for n in ((2, 2), (2,), (3, 3)))
    groups = [{"params": [w, b], "lr_scale": 0.5}, {"params": [frozen], "lr": 0.3, "fixed_lr": True}]
    optimizer = build_optimizer(OptimConfig(weight_decay=0.1, lr=1.0), groups)
    set_lr(optimizer, 1.0, 0.2)
    assert [(g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == [
        (0.1, 0.1),
        (0.0, 0.1),
        (0.1, 0.3),
    ]
    with pytest.raises(UserError, match="there is nothing to train"):
        build_optimizer(OptimConfig(), [{"params": []}])


# -- resuming onto what was changed


@pytest.fixture(scope="module")
def killed(tmp_path_factory, data):
    """A run that was killed in its second epoch (6 steps per epoch, checkpoint of step 8)."""
    folder = tmp_path_factory.mktemp("killed")
    stopped_at(9, Trainer(config(folder, save_every_steps=2), data, folder / "exp"))
    assert checkpoint.latest(folder / "exp").name == "ckpt-8"
    return folder


GONE = object()


@pytest.mark.parametrize(("key", "value"), [
    ("step", "8"), ("step", -2), ("step", 8.0), ("step", True), ("step", None), ("step", GONE), ("step", 10**9),
    ("step", 3), ("step", [8]), ("epoch", -1), ("epoch", "1"), ("epoch", 2), ("epoch", GONE), ("done", 0),
    ("done", "no"), ("done", True), ("label_hash", 3), ("label_hash", GONE), ("audio_seconds", "x"),
    ("audio_seconds", float("nan")), ("means", []), ("means", {"loss": 3}), ("means", {"loss": ["1", 2]}),
    ("collapsed", {}), ("best_eer", "low"), ("best_epoch", 0.5), ("worse", -1),
])  # fmt: skip
def test_a_state_that_no_training_wrote_is_refused(tmp_path, data, killed, key, value):
    exp = tmp_path / "exp"
    shutil.copytree(killed / "exp", exp)
    file = checkpoint.latest(exp) / "state.json"
    state = json.loads(file.read_text()) | {key: value}
    if value is GONE:
        del state[key]
    file.write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"state\.json: "):
        Trainer(config(killed, save_every_steps=2), data, exp).run()


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{", "", "[" * 100_000, "\xff"])
def test_a_broken_record_is_refused(tmp_path, data, killed, text):
    shutil.copytree(killed / "exp", tmp_path / "exp")
    (tmp_path / "exp/run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"run\.json:"):
        Trainer(config(killed, save_every_steps=2), data, tmp_path / "exp").run()


def test_damaged_lines_of_the_log_are_dropped(tmp_path, data, killed):
    exp = tmp_path / "exp"
    shutil.copytree(killed / "exp", exp)
    old = (exp / "train.jsonl").read_bytes()
    bad = b'garbage\n[]\n{}\n{"step": "x"}\nnull\n\xff\n' + b"[" * 100_000 + b"\n"
    (exp / "train.jsonl").write_bytes(bad + old)
    Trainer(config(killed, save_every_steps=2), data, exp).run()
    text = (exp / "train.jsonl").read_text()
    assert [r["epoch"] for r in epochs(exp)] == [1, 2, 3]
    assert text.startswith(old.decode().splitlines()[0])


def test_later_config_files_win_and_another_name_replaces_the_section(tmp_path, data):
    config(tmp_path)
    (tmp_path / "two.yaml").write_text(
        "encoder: {name: dvector}\nobjective: {crop_seconds: 0.75}\nepochs: 2\n"
    )
    command = train_command(tmp_path, data, tmp_path / "exp", "--set", "epochs=5", "--print-config")
    command.insert(command.index("--data"), str(tmp_path / "two.yaml"))
    text = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True).stdout
    (tmp_path / "merged.yaml").write_text(text)
    c = cfg.load(TrainConfig, tmp_path / "merged.yaml")
    assert (c.encoder.name, c.objective.crop_seconds, c.epochs, c.batch_size) == ("dvector", 0.75, 5, 4)


def test_a_run_notes_the_commit_of_its_own_tree():
    """The commit of the git tree that contains the code, whatever the current folder; an installed pyspkv has
    no tree.
    """
    from pyspkv.train.log import git_id

    if not (ROOT / ".git").exists():
        pytest.skip("the code lies in no git tree")
    head = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    noted = git_id()
    assert noted is not None and head.stdout.startswith(noted.rstrip("+")) and len(noted.rstrip("+")) == 12
