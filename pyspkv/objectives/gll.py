"""Semi-supervised training of a speaker classifier: supervised loss, and gated label learning (GLL, Wang et al., IJCAI
2024) with FixMatch and FlexMatch, which differ from it in whose label an unlabeled utterance gets.

The rows of the first data directory are labeled, those of `--unlabeled` are not: their "speaker" is a pseudo-label
where it names one of the classes. Two views of one crop: weak (plain) and strong (augmented).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import LABELED, Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.aam import AAMHead, margin_logits
from pyspkv.objectives.base import Losses, Objective, RunInfo, WithGate, spread

Stats = dict[str, Tensor]


@dataclass(kw_only=True)
class SemiConfig:
    crop_seconds: float = 2.0
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)  # all but unlabeled weak views
    scale: float = 30.0
    margin: float = 0.2
    unlabeled_weight: float = 1.0  # lambda
    encoder_lr: float = (
        1.0  # factor on the encoder's learning rate, where it starts trained and the head does not
    )


class Semi(Objective):
    """Cross-entropy on AAM logits of both views of the labeled rows: L_l. Base of the semi-supervised objectives.

    L = L_l + lambda L_u; each is a mean over its own rows of the batch.
    """

    Config = SemiConfig
    supports_speed_perturb = False
    needs_speakers = True
    views_used = (
        "weak",
        "strong",
    )  # of unlabeled rows; of the others the labeled rows' crops are encoded alone
    encode_jointly = False  # unlabeled strong views pass through the encoder together with the labeled rows

    def __init__(self, config: SemiConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        self.config = config
        self.head = AAMHead(encoder.embed_dim, info.num_classes)

    def optimizers(self) -> dict[str, list[dict]]:
        return super().optimizers(self.config.encoder_lr)

    def views(self) -> dict[str, View]:
        crop = self.config.crop_seconds
        return {"weak": View(crop), "strong": View(crop, augment=True, share_crop="weak")}

    def unlabeled(self, batch: Batch, rows: Tensor, cos: Tensor | None) -> tuple[Tensor, Stats]:
        """Losses [U] of the batch's unlabeled `rows` [U], and what to log of them, [U] each. `cos` [U, K] are those
        of the strong views, where `encode_jointly`."""
        raise UserError(
            f"objective {self.config.name} learns from labeled utterances alone, but a batch has others",
            hint="leave --unlabeled out",
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
            unlabeled_loss, more = self.unlabeled(batch, rows, strong if self.encode_jointly else None)
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


@dataclass(kw_only=True)
class GatedConfig(SemiConfig):
    gate: cfg.component("confidence_gate") = field(
        default_factory=lambda: cfg.resolve("confidence_gate", {"name": "all"})
    )
    confidence_scale: float = 1.0  # s_conf: q = softmax(s_conf cos); 1 is GLL's and never sure


class WithConfidenceGate(WithGate, Semi):
    """What objectives with a gate share."""

    def __init__(self, config: GatedConfig, encoder: Encoder, info: RunInfo):
        super().__init__(config, encoder, info)
        args = info.num_classes, info.num_rows, info.num_labeled
        self.gate = cfg.build("confidence_gate", config.gate, *args)


@dataclass(kw_only=True)
class GatedLabelsConfig(GatedConfig):
    # cluster: GLL, the pseudo-label of the unlabeled data directory; own: FixMatch, FlexMatch, argmax q
    target: Literal["cluster", "own"] = "cluster"


class GatedLabels(WithConfidenceGate):
    """L_u = (1 / B_u) sum_i B(q_i) H(y_i, p(. | strong view)), eq. 6 and 7; B is the gate, eq. 4.

    The weak view is a second pass in training mode, free of autograd; its q decides, and is the label for `own`.
    """

    Config = GatedLabelsConfig
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
                "an unlabeled utterance has a speaker that the labeled data does not",
                hint="label it by bin.seeded_cluster, or set objective.target: own",
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
