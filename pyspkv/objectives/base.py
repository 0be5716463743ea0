"""The interface of an objective: the views it needs, the weighted sums of losses it returns, and its state.

A new loss is one subclass and one test. The trainer knows nothing else about it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig, spec_augment
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import Batch, View
from pyspkv.models.encoder import Encoder


@dataclass
class RunInfo:
    """Facts about the training that an objective may use besides its config."""

    num_rows: int
    num_classes: int
    steps_per_epoch: int
    epochs: int
    num_speeds: int = 1  # augment.speed_perturb
    num_labeled: int = 0  # rows of the first data directory; the unlabeled one's come behind


Mean = tuple[
    Tensor | float, Tensor | float
]  # (sum, weight): both are added over steps and ranks, then divided


@dataclass
class Losses:
    """What an objective returns for a batch.

    Args:
        terms: what is minimised. The loss is the sum of the terms' means, each over all ranks.
        stats: what is logged and not minimised.
        spread: the spread of the batch's embeddings, see `spread`. A value near 0 for many steps stops the run.
        encoded: view -> how many of the batch's crops the network took; of a view that is not named here, all.
    """

    terms: dict[str, Mean]
    stats: dict[str, Mean] = field(default_factory=dict)
    spread: Mean | None = None
    encoded: dict[str, float] = field(default_factory=dict)


class Objective(nn.Module):
    """Holds the encoder, heads and teachers; `forward(batch) -> Losses`."""

    eval_module = "encoder"  # the submodule that embeds once training is over (a teacher, where there is one)
    needs_initial_embeddings = False  # `init_from_embeddings` is called before a new run's first step
    supports_speed_perturb = (
        True  # augment.speed_perturb; where a speaker is one class at any speed, it does not
    )
    supports_unlabeled = True  # a second data directory
    needs_speakers = False  # speakers are its classes, so that it needs two

    def __init__(self, encoder: Encoder, info: RunInfo):
        super().__init__()
        if info.num_speeds > 1 and not self.supports_speed_perturb:
            raise UserError(
                "augment.speed_perturb makes new voices, for which this objective has no classes",
                hint="remove augment.speed_perturb",
            )
        if 0 < info.num_labeled < info.num_rows and not self.supports_unlabeled:
            name = type(self).__name__.lower()
            raise UserError(f"objective {name} uses one data directory only", hint="drop --unlabeled")
        if info.num_classes < 2 and self.needs_speakers:
            raise UserError("utt2spk has only one speaker", hint="give at least two speakers")
        self.encoder, self.info = encoder, info
        self.epoch_now = 0.0

    @staticmethod
    def needs_models(config) -> list[str]:
        """`DIR[@best|last]` of the trained models that this config starts from; their weights identify the run."""
        return []

    def check_classes(self, classes: list[str], data: Path) -> None:
        """Raise a UserError if the objective cannot learn `classes`, the speakers of the data directory `data`."""

    def views(self) -> dict[str, View]:
        raise NotImplementedError

    def forward(self, batch: Batch) -> Losses:
        raise NotImplementedError

    def optimizers(self, encoder_lr: float = 1.0) -> dict[str, list[dict]]:
        """Name -> parameter groups, all stepped after one backward pass.

        A group has `lr_scale` (the encoder's times `encoder_lr`), or its own `lr` with `fixed_lr` to stay off the
        schedule.
        """
        groups = self.encoder.param_groups()
        for group in groups:
            group["lr_scale"] *= encoder_lr
        rest = [
            p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("encoder.")
        ]
        return {"main": [*groups, *([{"params": rest, "lr_scale": 1.0}] if rest else [])]}

    def pull(self) -> dict[str, Mean]:
        """The term that draws the encoder to its pre-trained weights, where it has one (`encoder.pull`)."""
        value = self.encoder.pull()
        return {} if value is None else {"pull": (value, 1.0)}

    def before_step(self, step: int) -> None:
        """Called before the global step `step`; sets the epoch, a real number, that schedules read."""
        self.epoch_now = self.encoder.epoch_now = step / self.info.steps_per_epoch

    def init_from_embeddings(self, embeddings: Tensor, label: Tensor) -> None:
        """Called before the first step of a new run, if `needs_initial_embeddings`.

        embeddings [N, D]: of all rows, by the encoder that the run starts from; label int64 [N].
        """

    def labels(self) -> Tensor | None:
        """The present labels, int64 [N], of an objective that moves labels; None of the others."""
        return None

    def rows(self) -> dict[str, Tensor]:
        """Per-utterance arrays [N] worth keeping after every epoch, for diagnostics against a truth file."""
        return {}

    def after_step(self) -> None:
        """Called after the optimizers' step; a teacher follows its student here."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called after the epoch's last step; returns what to log."""
        return {}

    def sync(self) -> None:
        """Called before a checkpoint is written: make per-utterance arrays equal on all ranks."""

    def encode(self, view: tuple[Tensor, Tensor], spec: SpecAugmentConfig | None = None) -> Tensor:
        """Embeddings float32 [B, D] of one view (wave [B, T], lengths [B])."""
        feats, lengths = self.encoder.features(*view)
        if self.training and spec is not None:
            feats = spec_augment(feats, spec)
        return self.encoder.embed(feats, lengths)


class Remembers(Protocol):
    """What every gate has, see `Objective` for each."""

    def rows(self) -> dict[str, Tensor]: ...

    def sync(self) -> None: ...

    def end_epoch(self, epoch: int) -> dict[str, float]: ...


class WithGate:
    """Mixin for an objective whose `gate` remembers the utterances and is refitted after each epoch."""

    gate: Remembers

    def rows(self) -> dict[str, Tensor]:
        return self.gate.rows()

    def sync(self) -> None:
        self.gate.sync()

    def end_epoch(self, epoch: int) -> dict[str, float]:
        return self.gate.end_epoch(epoch)


def class_sums(embeddings: Tensor, label: Tensor, classes: int) -> Tensor:
    """Sums [classes, D] of the length-normalized embeddings [N, D] by label [N]; a classifier starts from them."""
    unit = F.normalize(embeddings)
    return unit.new_zeros(classes, unit.shape[1]).index_add_(0, label, unit)


def spread(unit: Tensor) -> Mean:
    """1 - |mean|^2 of unit vectors [B, D]: near 0 when all point one way, which is a collapsed encoder."""
    return (1 - unit.detach().mean(0).square().sum()) * len(unit), len(unit)


@torch.no_grad()
def ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's: momentum x the old ones + (1 - momentum) x the student's."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)
