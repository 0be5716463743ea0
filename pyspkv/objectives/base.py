"""What an objective is: views it needs, weighted sums of losses it returns, and everything it remembers.

A new loss is one subclass and one test. The trainer knows nothing else about it.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pyspkv.audio.fbank import SpecAugmentConfig, spec_augment
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import Batch, View
from pyspkv.models.encoder import Encoder


@dataclass
class Info:
    """What an objective may know of the run besides its config."""

    num_rows: int
    num_classes: int
    steps_per_epoch: int
    epochs: int
    num_speeds: int = 1  # augment.speed_perturb
    num_labeled: int = 0  # rows of the first data directory; the unlabeled one's come behind


@dataclass
class Losses:
    """`terms` are minimised: name -> (weighted sum, weight); the loss is the total of sum / weight over all ranks.

    `stats` are only logged, as means likewise: name -> (sum, weight).
    """

    terms: dict[str, tuple[Tensor, Tensor]]
    stats: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(nn.Module):
    """Holds the encoder, heads and teachers; `forward(batch) -> Losses`."""

    evaluates = "encoder"  # the submodule that embeds once training is over (a teacher, where there is one)
    wants_embeddings = False  # `begin` is called before a new run's first step
    takes_speeds = True  # augment.speed_perturb; where a speaker is one class at any speed, it does not
    takes_unlabeled = True  # a second data directory
    tells_speakers = False  # speakers are its classes, so that it needs two

    def __init__(self, encoder: Encoder, info: Info):
        super().__init__()
        if info.num_speeds > 1 and not self.takes_speeds:
            raise UserError(
                "augment.speed_perturb makes other voices, and this objective has no classes for them",
                hint="leave augment.speed_perturb out",
            )
        if 0 < info.num_labeled < info.num_rows and not self.takes_unlabeled:
            name = type(self).__name__.lower()
            raise UserError(f"objective {name} takes one data directory", hint="leave --unlabeled out")
        if info.num_classes < 2 and self.tells_speakers:
            raise UserError("utt2spk has one speaker: nothing to tell apart", hint="give at least two")
        self.encoder, self.info = encoder, info
        self.epoch_now = 0.0

    def views(self) -> dict[str, View]:
        raise NotImplementedError

    def forward(self, batch: Batch) -> Losses:
        raise NotImplementedError

    def optimizers(self, encoder_lr: float = 1.0) -> dict[str, list[dict]]:
        """Name -> parameter groups, all stepped after one backward pass.

        A group has `lr_scale` (the encoder's times `encoder_lr`), or its own `lr` with `fixed_lr` to stay off the
        schedule.
        """
        body = self.encoder.param_groups()
        for group in body:
            group["lr_scale"] *= encoder_lr
        rest = [
            p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("encoder.")
        ]
        return {"main": [*body, *([{"params": rest, "lr_scale": 1.0}] if rest else [])]}

    def pull(self, faithful: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
        """The term that draws the encoder to its pre-trained weights, where it has one (`encoder.pull`)."""
        value = self.encoder.pull(faithful)
        return {} if value is None else {"pull": (value, torch.ones((), device=value.device))}

    def before_step(self, step: int) -> None:
        """Global step about to be taken; sets the real-valued epoch that schedules read."""
        self.epoch_now = step / self.info.steps_per_epoch

    def begin(self, embeddings: Tensor, label: Tensor) -> None:
        """Embeddings [N, D] of all rows by the encoder that the run starts from, and their labels [N]."""

    def labels(self) -> Tensor | None:
        """Where the objective moves labels: those it has come to, int64 [N]."""
        return None

    def rows(self) -> dict[str, Tensor]:
        """Per-utterance arrays [N] worth keeping after every epoch, for diagnostics against a truth file."""
        return {}

    def after_step(self) -> None:
        """After the optimizers' step (EMA teachers)."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """After the epoch's last step; returns what to log."""
        return {}

    def sync(self) -> None:
        """Before a checkpoint: make per-utterance arrays equal on all ranks."""

    def encode(self, view: tuple[Tensor, Tensor], spec: SpecAugmentConfig | None = None) -> Tensor:
        """Embeddings float32 [B, D] of one view (wave [B, T], lengths [B])."""
        feats, lengths = self.encoder.features(*view)
        if self.training and spec is not None:
            feats = spec_augment(feats, spec)
        return self.encoder.embed(feats, lengths)


class HasGate:
    """Mixin for an objective whose `gate` remembers the utterances and is refitted after each epoch."""

    def rows(self) -> dict[str, Tensor]:
        return self.gate.rows()

    def sync(self) -> None:
        self.gate.sync()

    def end_epoch(self, epoch: int) -> dict[str, float]:
        return self.gate.end_epoch(epoch)


def spread(unit: Tensor) -> tuple[Tensor, Tensor]:
    """1 - |mean|^2 of unit vectors [B, D]: near 0 when all point one way, which is a collapsed encoder."""
    size = torch.tensor(float(len(unit)), device=unit.device)
    return (1 - unit.detach().mean(0).square().sum()) * size, size


@torch.no_grad()
def ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """The teacher's parameters become momentum x theirs + (1 - momentum) x the student's."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)


def margin_logits(cos: Tensor, target: Tensor, margin: float) -> Tensor:
    """AAM / ArcFace (Deng et al. 2019): cos [B, K] with cos(theta + m), m in radians, in the target's column.

    Where theta + m would pass pi, cos - m sin m takes its place, which keeps it monotone in theta.
    """
    at = cos.gather(1, target[:, None])
    sin = (1 - at.square()).clamp_min(1e-6).sqrt()
    cos_m, sin_m = math.cos(margin), math.sin(margin)
    phi = torch.where(at > -cos_m, at * cos_m - sin * sin_m, at - sin_m * margin)
    return cos.scatter(1, target[:, None], phi)
