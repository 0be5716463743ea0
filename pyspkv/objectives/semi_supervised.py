"""What GLL is compared with, on the same head, views and batches (its paper's Table 1).

FixMatch and FlexMatch are `gll` with `target: prediction`, fine-tuning on the labeled part is `supervised`.
"""

from copy import deepcopy
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig
from pyspkv.base import checkpoint
from pyspkv.base.config import Config, Positive, Seconds, Share, implements
from pyspkv.base.distributed import gather, randn_like, rank
from pyspkv.base.errors import UserError
from pyspkv.base.schedules import ramp
from pyspkv.batches.dataset import LABELED, Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.models.load import load_encoder
from pyspkv.models.norm import frozen_statistics
from pyspkv.objectives.base import Losses, Objective, RunInfo, ema, spread
from pyspkv.objectives.gll import GatedConfig, Semi, SemiConfig, Stats, WithConfidenceGate, join, pick

RAMP = 0.4  # share of the run over which a consistency loss rises to its weight


class PseudoLabelConfig(GatedConfig):
    """Pseudo Label (Lee 2013): the classifier's own prediction is the label, where the gate lets it."""

    name: Literal["pseudo_label"] = "pseudo_label"
    confidence_scale: Positive = Field(
        30.0, description="Factor on the cosines before the softmax whose maximum is the confidence."
    )


@implements(PseudoLabelConfig)
class PseudoLabel(WithConfidenceGate):
    """Pseudo Label (Lee 2013): the weak view learns its own argmax where the gate lets it; statistics of batch
    normalization are those of the labeled rows."""

    views_used = ("weak",)

    def unlabeled(self, batch: Batch, rows: Tensor, cos: Tensor) -> tuple[Tensor, Stats]:
        with frozen_statistics(self.encoder):
            _, cos = self.cosines(*pick(batch.views["weak"], rows))
        q = (self.config.confidence_scale * cos.detach()).softmax(1)
        confidence, label = q.max(1)
        kept = self.gate(batch.index[rows], q, label)
        rise = ramp(self.epoch_now / self.info.epochs, 0.0, RAMP, 0.0, 1.0)
        return rise * kept * self.aam(cos, label), {"kept": kept, "confidence": confidence}


class TeacherStudent(Semi):
    """What objectives share whose teacher, a frozen encoder and head, reads the weak view."""

    teacher: Encoder
    teacher_head: nn.Module

    def freeze(self) -> None:
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)

    def train(self, training: bool = True) -> "TeacherStudent":
        super().train(training)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def teacher_cosines(self, view: tuple[Tensor, Tensor]) -> Tensor:
        """The teacher's cosines [B, K]."""
        z = self.teacher(*view).float()
        with torch.autocast(z.device.type, enabled=False):
            return self.teacher_head(F.normalize(z))


class MeanTeacherConfig(SemiConfig):
    """Mean Teacher (Tarvainen & Valpola 2017): the student is to agree with its moving average."""

    name: Literal["mean_teacher"] = "mean_teacher"
    unlabeled_weight: Positive = Field(
        50.0,
        description="Weight of the squared difference of probabilities, which is small; hence the "
        "high weight.",
    )
    ema_momentum: Share = Field(
        0.999,
        description="EMA momentum of the teacher; 1 - 1 / (step + 1) while that is less. Lower in short "
        "runs.",
    )


@implements(MeanTeacherConfig)
class MeanTeacher(TeacherStudent):
    """Mean Teacher (Tarvainen & Valpola 2017): the student's softmax on the strong view is to equal the teacher's on
    the weak one, in mean square over the classes. The probabilities are softmax(scale cos)."""

    eval_module = "teacher"

    def __init__(self, config: MeanTeacherConfig, encoder: Encoder, info: RunInfo):
        super().__init__(config, encoder, info)
        self.teacher, self.teacher_head = deepcopy(encoder), deepcopy(self.head)
        self.freeze()

    def unlabeled(self, batch: Batch, rows: Tensor, cos: Tensor) -> tuple[Tensor, Stats]:
        c = self.config
        p = (c.scale * self.teacher_cosines(pick(batch.views["weak"], rows))).softmax(1)
        with frozen_statistics(self.encoder):
            _, cos = self.cosines(*pick(batch.views["strong"], rows), c.spec_augment)
        rise = ramp(self.epoch_now / self.info.epochs, 0.0, RAMP, 0.0, 1.0)
        loss = ((c.scale * cos).softmax(1) - p).square().mean(1)
        return rise * loss, {"consistency": loss.detach()}

    def after_step(self) -> None:
        step = round(self.epoch_now * self.info.steps_per_epoch)
        momentum = min(1 - 1 / (step + 1), self.config.ema_momentum)
        ema(self.teacher, self.encoder, momentum)
        ema(self.teacher_head, self.head, momentum)
        with torch.no_grad():
            for ours, student in zip(self.teacher.buffers(), self.encoder.buffers()):
                ours.copy_(student)


class DistilConfig(SemiConfig):
    """SimCLRv2's last step (Chen et al. 2020): a fine-tuned teacher labels the unlabeled utterances softly."""

    name: Literal["distil"] = "distil"
    teacher: str = Field(
        "",
        description="DIR[@best|last] of a `supervised` run on the same speakers. It must be given for "
        "training.",
    )
    temperature: Positive = Field(
        1.0,
        description="Temperature of softmax(scale cos / temperature), for teacher and student. Above 1 the labels are "
        "softer.",
    )


@implements(DistilConfig)
class Distil(TeacherStudent):
    """SimCLRv2's last step (Chen et al. 2020, eq. 4): a fine-tuned teacher labels the unlabeled rows softly."""

    encode_jointly = True

    def __init__(self, config: DistilConfig, encoder: Encoder, info: RunInfo):
        super().__init__(config, encoder, info)
        if not config.teacher:
            raise UserError("objective.teacher is not set", hint="set it to the folder of a `supervised` run")
        self.teacher, self.teacher_head = load_encoder(config.teacher), deepcopy(self.head)
        folder = checkpoint.resolve_model(config.teacher)
        head = {k[5:]: v for k, v in checkpoint.tensors(folder).items() if k.startswith("head.")}
        checkpoint.load_state_strict(self.teacher_head, head, folder)
        self.freeze()

    @staticmethod
    def needs_models(config: DistilConfig) -> list[str]:
        return [config.teacher] if config.teacher else []

    def check_classes(self, classes: list[str], data: Path) -> None:
        file = checkpoint.resolve_model(self.config.teacher).parent / "classes.txt"
        if file.is_file() and file.read_text(encoding="utf-8").splitlines() != classes:
            raise UserError(
                f"objective.teacher was trained on other speakers than {data}",
                file=file,
                hint="train the teacher on the same labeled directory",
            )

    def unlabeled(self, batch: Batch, rows: Tensor, cos: Tensor) -> tuple[Tensor, Stats]:
        c = self.config
        p = (c.scale * self.teacher_cosines(pick(batch.views["weak"], rows)) / c.temperature).softmax(1)
        loss = -(p * (c.scale * cos / c.temperature).log_softmax(1)).sum(1)
        return loss, {"teacher_confidence": p.amax(1)}


class CDVATConfig(SemiConfig):
    """In the spirit of CD-VAT (Kreyssig & Woodland 2020): the embedding must not turn where it turns most easily."""

    name: Literal["cdvat"] = "cdvat"
    epsilon: Positive = Field(
        0.1,
        description="Size of the perturbation, as a share of the features' norm. Higher regularizes more.",
    )
    xi: Positive = Field(
        0.01, description="Size of the step that finds its direction, as a share of the features' norm."
    )


@implements(CDVATConfig)
class CDVAT(Semi):
    """In the spirit of CD-VAT (Kreyssig & Woodland 2020): the embedding must not turn where it is most easily turned,
    1 - cos(f(x), f(x + r)), r = epsilon g / |g|, g the distance's gradient at x + xi d for a random direction d."""

    views_used = ("weak",)

    def unlabeled(self, batch: Batch, rows: Tensor, cos: Tensor) -> tuple[Tensor, Stats]:
        c = self.config
        x, lengths = self.encoder.features(*pick(batch.views["weak"], rows))
        norm = feature_norm(x)

        def distance(r: Tensor) -> Tensor:
            return 1 - F.cosine_similarity(before, self.encoder.embed(x + r, lengths))

        with frozen_statistics(self.encoder):
            with torch.no_grad():
                before = self.encoder.embed(x, lengths)
            d = randn_like(x)
            d = (d / feature_norm(d)).requires_grad_()
            with torch.enable_grad():
                (g,) = torch.autograd.grad(distance(c.xi * norm * d).sum(), d)
            loss = distance(c.epsilon * norm * g / feature_norm(g).clamp_min(1e-20))
        return loss, {"distance": loss.detach()}


def feature_norm(x: Tensor) -> Tensor:
    """Norm of each utterance's features [B, F, M] -> [B, 1, 1]."""
    return x.flatten(1).norm(dim=1)[:, None, None]


class GCLConfig(Config):
    """In the spirit of generalised contrastive learning (Inoue & Goto 2020): one loss for both kinds of utterances."""

    name: Literal["gcl"] = "gcl"
    crop_seconds: Seconds = Field(
        2.0,
        description="Length of a training crop. Longer crops help with long test utterances but take more time.",
    )
    spec_augment: SpecAugmentConfig = Field(
        SpecAugmentConfig(),
        description="Time and frequency masks on the features (SpecAugment). Off by default.",
    )
    scale: Positive = Field(10.0, description="Start value of the learnt factor on the cosines.")


@implements(GCLConfig)
class GCL(Objective):
    """In the spirit of generalised contrastive learning (Inoue & Goto 2020): two crops of every utterance; crops of one
    labeled speaker attract each other, and so do the two of an unlabeled utterance; all others repel."""

    supports_speed_perturb = False

    def __init__(self, config: GCLConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        self.config = config
        self.log_scale = nn.Parameter(torch.tensor(config.scale).log())

    def views(self) -> dict[str, View]:
        crop = self.config.crop_seconds
        return {"a": View(crop, augment=True), "b": View(crop, augment=True, apart_from="a")}

    def forward(self, batch: Batch) -> Losses:
        both = join([batch.views["a"], batch.views["b"]])
        unit = F.normalize(self.encode(both, self.config.spec_augment))
        group = torch.where(batch.source == LABELED, batch.label, self.info.num_classes + batch.index)
        group = group.repeat(2)
        with torch.autocast(unit.device.type, enabled=False):
            keys, key_group = gather(unit.contiguous()), gather(group)
            loss = contrast(unit, group, keys, key_group, rank() * len(unit), self.log_scale.exp())
        return Losses({"gcl": (loss.sum(), len(loss))}, spread=spread(unit))


def contrast(
    unit: Tensor, group: Tensor, keys: Tensor, key_group: Tensor, first: int, scale: Tensor
) -> Tensor:
    """Unit vectors [M, D] of groups [M] against all ranks' [N, D] of groups [N], of which they start at row `first` ->
    losses [M]: mean over the others of the group of -log softmax(scale cos), oneself left out."""
    rows = torch.arange(len(unit), device=unit.device)
    oneself = torch.zeros(len(unit), len(keys), dtype=torch.bool, device=unit.device)
    oneself[rows, first + rows] = True
    log_p = (scale * unit @ keys.T).masked_fill(oneself, float("-inf")).log_softmax(1)
    positive = (group[:, None] == key_group) & ~oneself
    return -log_p.masked_fill(~positive, 0.0).sum(1) / positive.sum(1)
