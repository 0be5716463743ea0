"""Semi-supervised training of a speaker classifier: supervised loss, and gated label learning (GLL, Wang et al., IJCAI
2024) with FixMatch and FlexMatch, which differ from it in whose label an unlabeled utterance gets.

The rows of the first data directory are labeled, those of `--unlabeled` are not: their "speaker" is a pseudo-label
where it names one of the classes. Two views of one crop: weak (plain) and strong (augmented).
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig
from pyspkv.base import config as cfg
from pyspkv.base.config import Config, NotNegative, Positive, Seconds, implements
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import LABELED, Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.aam import AAMHead, margin_logits
from pyspkv.objectives.base import Losses, Objective, RunInfo, WithGate, spread
from pyspkv.objectives.confidence_gates import AcceptAll, AcceptAllConfig, ConfidenceGateConfig

Stats = dict[str, Tensor]


class SemiConfig(Config):
    """What the semi-supervised objectives share."""

    crop_seconds: Seconds = Field(
        2.0,
        description="Length of a training crop. Longer crops help with long test utterances but take more time.",
    )
    spec_augment: SpecAugmentConfig = Field(
        SpecAugmentConfig(),
        description="Time and frequency masks on the features (SpecAugment), except on weak views of "
        "unlabeled utterances. Off by default.",
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
    unlabeled_weight: NotNegative = Field(
        1.0, description="Weight lambda of the loss on unlabeled utterances. Lower it when labels are many."
    )
    encoder_lr_scale: Positive = Field(
        1.0,
        description="Factor on the encoder's learning rate. Lower it (0.1) when the encoder starts trained "
        "and the head does not.",
    )


class SupervisedConfig(SemiConfig):
    """AAM-softmax on weak and strong views of labeled utterances alone: the baseline of the semi-supervised ones."""

    name: Literal["supervised"] = "supervised"


@implements(SupervisedConfig)
class Semi(Objective):
    """Cross-entropy on AAM logits of both views of the labeled rows: L_l. Base of the semi-supervised objectives.

    L = L_l + lambda L_u; each is a mean over its own rows of the batch.
    """

    supports_speed_perturb = False
    needs_speakers = True
    views_used: tuple[str, ...] = (
        "weak",
        "strong",
    )  # of unlabeled rows; of the others the labeled rows' crops are encoded alone
    encode_jointly = False  # unlabeled strong views pass through the encoder together with the labeled rows

    def __init__(self, config: SemiConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        self.config: Any = config
        self.head = AAMHead(encoder.embed_dim, info.num_classes)

    def optimizers(self, encoder_lr: float = 1.0) -> dict[str, list[dict]]:
        return super().optimizers(encoder_lr * self.config.encoder_lr_scale)

    def views(self) -> dict[str, View]:
        crop = self.config.crop_seconds
        return {"weak": View(crop), "strong": View(crop, augment=True, share_crop="weak")}

    def unlabeled(self, batch: Batch, rows: Tensor, cos: Tensor) -> tuple[Tensor, Stats]:
        """Losses [U] of the batch's unlabeled `rows` [U], and what to log of them, [U] each. `cos` [U, K] are those
        of the strong views; [0, K] without `encode_jointly`."""
        raise UserError(
            f"objective {self.config.name} uses labeled utterances only, but a batch has unlabeled ones",
            hint="drop --unlabeled",
        )

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        is_labeled = batch.source == LABELED
        labeled, rows = (torch.nonzero(mask)[:, 0] for mask in (is_labeled, ~is_labeled))
        parts = [pick(batch.views[name], labeled) for name in ("weak", "strong")]
        if self.encode_jointly:
            parts.append(pick(batch.views["strong"], rows))
        unit, cos = self.cosines(*join(parts), c.spec_augment)
        label = batch.label[labeled].repeat(2)
        labeled_cos, strong = cos.split([len(label), len(cos) - len(label)])
        loss = self.aam(labeled_cos, label)
        right = (labeled_cos.detach().argmax(1) == label).float().sum()
        losses = Losses(
            {"labeled": (loss.sum(), len(label))}, {"accuracy": (right, len(label))}, spread(unit)
        )
        if len(rows):
            unlabeled_loss, more = self.unlabeled(batch, rows, strong)
            losses.terms["unlabeled"] = (c.unlabeled_weight * unlabeled_loss.sum(), len(rows))
            losses.stats |= {name: (value.float().sum(), len(rows)) for name, value in more.items()}
            losses.encoded = {name: len(labeled) for name in batch.views if name not in self.views_used}
        return losses

    def cosines(
        self, wave: Tensor, lengths: Tensor, spec: SpecAugmentConfig | None = None
    ) -> tuple[Tensor, Tensor]:
        """Crops [B, T] -> unit embeddings [B, D], cosines to the class centers [B, K]."""
        unit = F.normalize(self.encode((wave, lengths), spec))
        with torch.autocast(unit.device.type, enabled=False):
            return unit, self.head(unit)

    def aam(self, cos: Tensor, label: Tensor) -> Tensor:
        """Cosines [B, K], labels [B] -> H(label, p) [B] with the margin on the label."""
        c = self.config
        return F.cross_entropy(c.scale * margin_logits(cos, label, c.margin), label, reduction="none")


class GatedConfig(SemiConfig):
    gate: ConfidenceGateConfig = Field(
        AcceptAllConfig(),
        description="Which unlabeled utterances to train on: see the section on confidence gates.",
    )
    confidence_scale: Positive = Field(
        1.0,
        description="Factor on the cosines before the softmax whose maximum is the confidence. 1 is GLL's, "
        "and never sure; a fixed threshold near 1 needs more, e.g. 30.",
    )


class WithConfidenceGate(WithGate, Semi):
    """What objectives with a gate share."""

    def __init__(self, config: GatedConfig, encoder: Encoder, info: RunInfo):
        super().__init__(config, encoder, info)
        args = info.num_classes, info.num_rows, info.num_labeled
        self.gate: AcceptAll = cfg.build(config.gate, *args)


class GLLConfig(GatedConfig):
    """Gated label learning (Wang et al. 2024), FixMatch and FlexMatch: unlabeled utterances that pass a gate."""

    name: Literal["gll"] = "gll"
    target: Literal["cluster", "prediction"] = Field(
        "cluster",
        description="Label of an unlabeled utterance. cluster: its pseudo-label in the unlabeled data "
        "directory (GLL). prediction: the class that the classifier gives its weak view (FixMatch, "
        "FlexMatch).",
    )


@implements(GLLConfig)
class GatedLabels(WithConfidenceGate):
    """L_u = (1 / B_u) sum_i B(q_i) H(y_i, p(. | strong view)), eq. 6 and 7; B is the gate, eq. 4.

    The weak view is a second pass in training mode, free of autograd; its q decides, and is the label for `prediction`.
    """

    encode_jointly = True

    def unlabeled(self, batch: Batch, rows: Tensor, cos: Tensor) -> tuple[Tensor, Stats]:
        c = self.config
        with torch.no_grad():
            _, weak = self.cosines(*pick(batch.views["weak"], rows))
            q = (c.confidence_scale * weak).softmax(1)
        confidence, predicted = q.max(1)
        label = batch.label[rows] if c.target == "cluster" else predicted
        if c.target == "cluster" and bool((label < 0).any()):
            raise UserError(
                "an unlabeled utterance has a pseudo-label that is not a speaker of the labeled data",
                hint="label the data with bin.seeded_cluster, or set objective.target: prediction",
            )
        kept = self.gate(batch.index[rows], q, label)
        stats = {"kept": kept, "confidence": confidence, "agreement": predicted == label}
        return kept * self.aam(cos, label), stats


def pick(view: tuple[Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Some rows of a view (wave [B, T], lengths [B])."""
    return view[0][rows], view[1][rows]


def join(views: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    wave, lengths = zip(*views)
    return torch.cat(wave), torch.cat(lengths)
