"""Classification of (pseudo-)speakers with AAM-softmax, sub-centers and a label gate."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig
from pyspkv.base import config as cfg
from pyspkv.base.config import Config, Count, Epochs, Positive, Seconds, implements
from pyspkv.base.schedules import ramp
from pyspkv.batches.dataset import Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.base import Losses, Mean, Objective, RunInfo, WithGate, class_sums, spread
from pyspkv.objectives.loss_gates import Gate, GateConfig, NoGateConfig


class AAMConfig(Config):
    """AAM-softmax on (pseudo-)speakers: the rounds, fine-tuning and supervised training."""

    name: Literal["aam"] = "aam"
    crop_seconds: Seconds = Field(
        2.0,
        description="Length of a training crop. Longer crops help with long test utterances but take more time.",
    )
    augment: bool = Field(
        True,
        description="Augment the crops (see augment). Set false only to measure the effect of augmentation.",
    )
    spec_augment: SpecAugmentConfig = Field(
        SpecAugmentConfig(),
        description="Time and frequency masks on the features (SpecAugment). Off by default.",
    )
    scale: Positive = Field(
        30.0,
        description="Factor on the cosines before the softmax. 30 to 32 is usual; more makes the softmax "
        "sharper.",
    )
    margin: float = Field(
        0.2,
        ge=0,
        lt=1.6,
        description="Angular margin in radians on the label's class. 0.2 is usual, 0.4 to 0.5 in "
        "large-margin fine-tuning.",
    )
    margin_warmup_epochs: Epochs = Field(
        (0.0, 0.0),
        description="The margin is 0 until the first epoch and full from the second. Use it from scratch: "
        "a margin from the first step can keep a network from learning.",
    )
    sub_centers: Count = Field(
        1,
        description="Centers per class; the nearest one counts (Deng et al. 2020). 2 or 3 take in "
        "mixed clusters.",
    )
    head_init: Literal["random", "class_means"] = Field(
        "random",
        description="class_means: a class's center starts as the mean of its utterances' embeddings by the "
        "start encoder, at the cost of one pass over the data. Use it when the encoder starts trained: a random "
        "head makes it forget.",
    )
    encoder_lr_scale: Positive = Field(
        1.0,
        description="Factor on the encoder's learning rate. Lower it (0.1) when the encoder starts trained "
        "and the head does not.",
    )
    match_released_code: bool = Field(
        False,
        description="Correct labels as in the code that the authors of arXiv 2406.02285 released, to compare: "
        "by softmax(W z / 0.1) in training mode; the margin stays on the old label; the sum is divided by the "
        "batch size. The released pull to the pre-trained weights is `encoder.pull_form`.",
    )
    gate_on_margin_loss: bool = Field(
        True,
        description="The gate sees the loss with the margin, as in the papers. In short runs right labels "
        "keep a high loss with margin, too: set false to tell them from wrong ones sooner.",
    )
    gate: GateConfig = Field(
        NoGateConfig(), description="Which labels training uses: see the section on gates."
    )


def margin_logits(cos: Tensor, target: Tensor, margin: float) -> Tensor:
    """AAM / ArcFace (Deng et al. 2019): cos [B, K] with cos(theta + m), m in radians, in the target's column.

    Where theta + m would pass pi, cos - m sin m takes its place, which keeps it monotone in theta.
    """
    at = cos.gather(1, target[:, None])
    sin = (1 - at.square()).clamp_min(1e-6).sqrt()
    cos_m, sin_m = math.cos(margin), math.sin(margin)
    phi = torch.where(at > -cos_m, at * cos_m - sin * sin_m, at - sin_m * margin)
    return cos.scatter(1, target[:, None], phi)


class AAMHead(nn.Module):
    """Class centers W [K * S, D]; cosines [B, K] of the nearest of S sub-centers."""

    def __init__(self, dim: int, classes: int, sub_centers: int = 1):
        super().__init__()
        self.sub_centers = sub_centers
        self.weight = nn.Parameter(torch.empty(classes * sub_centers, dim))
        nn.init.xavier_normal_(self.weight)

    def forward(self, unit: Tensor) -> Tensor:
        return self.nearest(F.linear(unit, F.normalize(self.weight)))

    def nearest(self, x: Tensor) -> Tensor:
        """[B, K * S] -> [B, K]."""
        return x.unflatten(1, (-1, self.sub_centers)).amax(2) if self.sub_centers > 1 else x


@implements(AAMConfig)
class AAM(WithGate, Objective):
    """AAM-softmax over the data directory's speakers, weighted and corrected per utterance by the gate.

    With labels y_i (classes: speaker x speed), gate weights g_i, logits u_i with the margin at the label, and the class
    t_i that `predict` gives the clean crop:

        L = (sum_i g_i CE(u_i, y_i) + sum_(i in C) CE(u_i, t_i)) / (sum_i g_i + |C|)
        C = {i: g_i = 0, the classifier is sure of t_i, t_i is not y_i}

    In C the margin moves to t_i. A class of another speed would be false, as the crop was made at this one. Where the
    classifier is sure of the very label that the gate refused nothing is corrected, and the utterance stays out (logged
    as `corrected_same`); `match_released_code` takes it back in, as the released code does.
    """

    supports_unlabeled = False
    needs_speakers = True

    def __init__(self, config: AAMConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        self.config = config
        self.num_classes = info.num_classes
        # A speed change gives another voice, so each speed of a speaker is a class of its own.
        self.head = AAMHead(encoder.embed_dim, info.num_classes * info.num_speeds, config.sub_centers)
        self.gate: Gate = cfg.build(config.gate, info.num_rows)
        self.needs_initial_embeddings = config.head_init == "class_means"

    @torch.no_grad()
    def init_from_embeddings(self, embeddings: Tensor, label: Tensor) -> None:
        """Centers from the class means, the same for every speed; sub-centers lie around theirs, as equal ones would
        stay equal."""
        means = F.normalize(class_sums(embeddings, label, self.num_classes))
        rows = means.repeat(self.info.num_speeds, 1).repeat_interleave(self.config.sub_centers, 0)
        if self.config.sub_centers > 1:
            rows = F.normalize(rows + 0.1 * F.normalize(self.head.weight))
        self.head.weight.copy_(rows)

    def optimizers(self, encoder_lr: float = 1.0) -> dict[str, list[dict]]:
        return super().optimizers(encoder_lr * self.config.encoder_lr_scale)

    def views(self) -> dict[str, View]:
        c = self.config
        views = {"main": View(c.crop_seconds, augment=c.augment)}
        if self.gate.corrects(self.info.epochs):
            views["clean"] = View(c.crop_seconds, share_crop="main")
        return views

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        label = batch.label + batch.speed * self.num_classes
        unit = F.normalize(self.encode(batch.views["main"], c.spec_augment))
        with torch.autocast(unit.device.type, enabled=False):
            cos = self.head(unit)
            margin = ramp(self.epoch_now, *c.margin_warmup_epochs, 0.0, c.margin)
            logits = c.scale * margin_logits(cos, label, margin)
            loss = F.cross_entropy(logits, label, reduction="none")
            gate_loss = (
                loss.detach()
                if c.gate_on_margin_loss
                else F.cross_entropy(c.scale * cos.detach(), label, reduction="none")
            )
        kept = self.gate(batch.index, gate_loss, self.epoch_now)
        total, weight, corrected = (kept * loss).sum(), kept.sum(), torch.zeros_like(kept)
        rejected, num_predicted, same = torch.nonzero(kept == 0)[:, 0], 0, torch.zeros_like(kept)
        if self.gate.corrects(self.epoch_now) and (c.match_released_code or len(rejected)):
            # In training mode batch statistics are all-reduced, so that every rank must take part.
            rows = torch.arange(len(label), device=label.device) if c.match_released_code else rejected
            num_predicted = len(rows)
            target, sure = self.predict(batch.views["clean"], rows, batch.speed[rows])
            sure = sure & (kept[rows] == 0)
            same = sure & (target == label[rows])
            if not c.match_released_code:
                sure = sure & ~same
            rows, target = rows[sure], target[sure]
            if not c.match_released_code:
                logits = c.scale * margin_logits(cos, label.scatter(0, rows, target), margin)
            total = total + F.cross_entropy(logits[rows], target, reduction="sum")
            corrected[rows] = 1
        batch_size = len(label)
        if self.gate.corrects(self.epoch_now) and c.match_released_code:
            weight = torch.full_like(weight, batch_size)
        else:
            weight = weight + corrected.sum()
        right = (cos.detach().argmax(1) == label).float()
        counts = {"accuracy": right.sum(), "kept": kept.sum(), "corrected": corrected.sum()}
        if "clean" in batch.views:
            counts["corrected_same"] = same.float().sum()
        stats: dict[str, Mean] = {k: (v, batch_size) for k, v in counts.items()}
        encoded: dict[str, float] = {"clean": num_predicted} if "clean" in batch.views else {}
        return Losses({"aam": (total, weight)}, stats, spread(unit), encoded)

    @torch.no_grad()
    def predict(self, view: tuple[Tensor, Tensor], rows: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
        """Classes [R] of the clean crops in `rows`, which have speeds [R], and whether each is sure enough (bool [R]).

        With K speakers, class s K + j is speaker j at speed s. At the crop's own speed s the posterior is
        p_j = softmax_j(scale cos(z, W_(s K + j)) / temperature), j < K; the class is s K + argmax p, sure where
        max p > confidence (label correction of arXiv 2406.02285, there with one speed).
        """
        c, was = self.config, self.encoder.training
        wave, lengths = view
        self.encoder.train(was and c.match_released_code)
        z = self.encode((wave[rows], lengths[rows])).float()
        self.encoder.train(was)
        with torch.autocast(z.device.type, enabled=False):
            if c.match_released_code:
                logits = self.head.nearest(F.linear(z, self.head.weight)) / 0.1
            else:
                logits = c.scale * self.head(F.normalize(z)) / self.gate.config.temperature
        by_speed = logits.unflatten(1, (-1, self.num_classes))
        confidence, target = by_speed[torch.arange(len(rows), device=rows.device), speed].softmax(1).max(1)
        return target + speed * self.num_classes, confidence > self.gate.config.confidence
