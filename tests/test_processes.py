"""Every objective over 1, 2 and 4 processes at one global batch: the same losses."""

import json
from pathlib import Path

import numpy as np
import pytest
import ranks
import test_trainer
import torch
import toy

from pyspkv.base import config as cfg
from pyspkv.data.datadir import DataDir
from pyspkv.objectives.registry import ObjectiveConfig
from pyspkv.objectives.ssrl import SSRL
from pyspkv.score import extract
from pyspkv.train.config import TrainConfig
from pyspkv.train.trainer import Trainer

# Nothing that masks at random, which depends on the process; small steps of SGD, as Adam makes much of rounding.
BASE = {
    "encoder": {"name": "ecapa", "channels": 16, "mfa_channels": 24, "embed_dim": 8, "se_channels": 4, "n_mels": 40},
    "augment": {"rir_bank": 0},
    "optim": {"name": "sgd", "lr": 0.00001},
    "batch_size": 16,
    "precision": "fp32",
    "epochs": 5,
    "log_every_steps": 1,
    "num_workers": 0,
}  # fmt: skip
CROP = {"crop_seconds": 0.4}
STREAMS = {"name": "two_stream", "labeled_batch_size": 8}
GATE = {"name": "dlg", "start_epoch": 1, "label_correction_epoch": 1}
OBJECTIVES = {
    "aam": {"objective": {"name": "aam", **CROP}},
    "aam, gate": {"objective": {"name": "aam", **CROP, "gate": GATE}},
    "contrastive": {"objective": {"name": "contrastive", **CROP}},
    "dino": {"objective": test_trainer.DINO["objective"]},
    "ssrl": {"objective": test_trainer.REFLECTIVE["objective"]},
    "dialogue": {
        "objective": {"name": "dialogue", **CROP, "reject": {"kind": "power", "warmup_epochs": [0, 1]}},
        "sampler": {"name": "dialogues", "utts_per_dialogue": 2},
    },
    "cola": {"objective": {"name": "cola", "crop_seconds": 0.3}},
    "apc": {"objective": {"name": "apc", "crop_seconds": 0.3}, "encoder": {"name": "dvector"}},
    "supervised": {"objective": {"name": "supervised", **CROP}},
    "gll": {"objective": {"name": "gll", **CROP}, "sampler": STREAMS},
    "pseudo_label": {"objective": {"name": "pseudo_label", **CROP}, "sampler": STREAMS},
    "mean_teacher": {"objective": {"name": "mean_teacher", **CROP}, "sampler": STREAMS},
    "distil": {"objective": {"name": "distil", **CROP}, "sampler": STREAMS},
    "cdvat": {"objective": {"name": "cdvat", **CROP}, "sampler": STREAMS},
    "gcl": {"objective": {"name": "gcl", **CROP}, "sampler": STREAMS},
}


def test_no_objective_is_forgotten():
    known = {c.model_fields["name"].default for c in ObjectiveConfig.__origin__.__args__}
    assert known == {c["objective"]["name"] for c in OBJECTIVES.values()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[DataDir, DataDir, DataDir]:
    """(all utterances, a half of them, the other half with pseudo-labels) of 8 speakers."""
    folder = tmp_path_factory.mktemp("toy")
    whole = toy.make(folder, speakers=8, utts=8, seconds=0.7)
    whole.write_label_split(folder / "split", 4, seed=0)
    labeled, unlabeled = (DataDir.read(folder / "split" / name) for name in ("labeled", "unlabeled"))
    speaker = dict(zip(whole.utts, whole.spk))
    unlabeled.with_speakers([speaker[utt] for utt in unlabeled.utts]).write(folder / "pseudo")
    return whole, labeled, DataDir.read(folder / "pseudo")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data) -> Path:
    """A supervised model on the labeled half, which distil starts from."""
    folder = tmp_path_factory.mktemp("teacher")
    c = cfg.validate(TrainConfig, {**BASE, **OBJECTIVES["supervised"], "epochs": 1})
    Trainer(c, data[1], folder / "exp").run()
    return folder / "exp"


def trained(config: TrainConfig, data: tuple, exp: Path) -> None:
    whole, labeled, unlabeled = data
    if config.sampler.name == "two_stream":
        Trainer(config, labeled, exp, unlabeled=unlabeled).run()
    else:
        Trainer(config, whole, exp).run()


def losses(exp: Path) -> np.ndarray:
    records = [json.loads(line) for line in (exp / "train.jsonl").read_text().splitlines()]
    return np.array([r["loss"] for r in records if r["kind"] == "step"])


def check(
    tmp_path: Path, data: tuple, teacher: Path, name: str, worlds: tuple[int, ...], epochs: int
) -> None:
    text = {**BASE, **OBJECTIVES[name], "epochs": epochs}
    if name == "distil":
        text["objective"] = {**text["objective"], "teacher": str(teacher)}
    config = cfg.validate(TrainConfig, text)
    trained(config, data, tmp_path / "1")
    wanted = losses(tmp_path / "1")
    assert len(wanted) == 4 * epochs
    for world in worlds:
        ranks.run(world, trained, config, data, tmp_path / str(world))
        np.testing.assert_allclose(
            losses(tmp_path / str(world)), wanted, rtol=1e-5, err_msg=f"{world} processes"
        )


@pytest.mark.parametrize("name", ["aam, gate", "ssrl", "cola", "cdvat"])
def test_two_processes_have_the_losses_of_one(tmp_path, data, teacher, name):
    check(tmp_path, data, teacher, name, (2,), 2)


def test_a_training_goes_on_with_its_own_number_of_processes_only(tmp_path, data):
    """Other sums, other digits. A finished one is only read, and may be asked for by any number."""
    config = cfg.validate(TrainConfig, {**BASE, **OBJECTIVES["aam"], "epochs": 2, "save_every_steps": 2})

    test_trainer.stopped_at(3, Trainer(config, data[0], tmp_path / "one"))
    assert (tmp_path / "one/LATEST").read_text() == "ckpt-2\n"
    with pytest.raises(AssertionError, match="was started with 1 processes, now there are 2") as error:
        ranks.run(2, trained, config, data, tmp_path / "one")
    assert "UserError" in str(error.value) and "go on with 1 (--ngpu or --nproc, times --num-nodes)" in str(
        error.value
    )
    assert (tmp_path / "one/LATEST").read_text() == "ckpt-2\n"
    trained(config, data, tmp_path / "one")
    ranks.run(2, trained, config, data, tmp_path / "one")  # finished


def embedded(objective: dict, data: tuple, exp: Path) -> tuple[np.ndarray, int]:
    """What an objective is given before its first step, and how many rows this rank has embedded itself."""
    given, rows = [], []

    def taken(self, x: torch.Tensor, label: torch.Tensor) -> None:
        given.append(x.numpy())
        raise toy.Killed

    config = cfg.validate(TrainConfig, {**BASE, "objective": objective, "epochs": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSRL, "init_from_embeddings", taken)
        one = extract.embed_batches
        patch.setattr(extract, "BATCH_SECONDS", {"cpu": 2})
        patch.setattr(extract, "embed_batches", lambda *a: (rows.append(1) or found for found in one(*a)))
        with pytest.raises(toy.Killed):
            Trainer(config, data[0], exp).run()
    return given[0], len(rows)


def test_each_process_embeds_its_share_before_the_first_step(tmp_path, data):
    """Those of one process, bit for bit; none is embedded twice."""
    objective = OBJECTIVES["ssrl"]["objective"]
    wanted, rows = embedded(objective, data, tmp_path / "1")
    assert rows == len(wanted) == 64
    config = cfg.validate(TrainConfig, {**BASE, "objective": objective, "epochs": 1})
    encoder = Trainer(config, data[0], tmp_path / "x").objective.encoder.eval()
    x = extract.embed(encoder, data[0], torch.device("cpu"), "fp32").x
    np.testing.assert_allclose(wanted, x, atol=1e-5)
    found = ranks.run(2, embedded, objective, data, tmp_path / "2")
    assert all(np.array_equal(x, wanted) for x, _ in found)
    assert sum(n for _, n in found) == 64 and all(n > 16 for _, n in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_number_of_processes_has_the_losses_of_one(tmp_path, data, teacher, name):
    check(tmp_path, data, teacher, name, (2, 4), 5)
