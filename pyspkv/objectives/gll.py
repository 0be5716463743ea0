"""Semi-supervised training of a speaker classifier: supervised loss, and gated label learning (GLL, Wang et al., IJCAI
2024) with FixMatch and FlexMatch, which differ from it in whose label an unlabelled utterance gets.

The rows of the first data directory are labelled, those of `--unlabelled` are not: their "speaker" is a pseudo-label
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
from pyspkv.batches.dataset import LABELLED, Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.aam import AAMHead
from pyspkv.objectives.base import HasGate, Info, Losses, Objective, margin_logits, spread

Stats = dict[str, Tensor]


@dataclass(kw_only=True)
class SemiConfig:
    crop_seconds: float = 2.0
    spec_augment: SpecAugmentConfig = field(
        default_factory=SpecAugmentConfig
    )  # all but unlabelled weak views
    scale: float = 30.0
    margin: float = 0.2
    unlabelled_weight: float = 1.0  # lambda
    encoder_lr: float = (
        1.0  # factor on the encoder's learning rate, where it starts trained and the head does not
    )


class Semi(Objective):
    """Cross-entropy on AAM logits of both views of the labelled rows: L_l. Base of the semi-supervised objectives.

    L = L_l + lambda L_u; each is a mean over its own rows of the batch.
    """

    Config = SemiConfig
    takes_speeds = False
    tells_speakers = True
    reads = ("weak", "strong")  # views of unlabelled rows
    joint = False  # unlabelled strong views pass through the encoder together with the labelled rows

    def __init__(self, config: SemiConfig, encoder: Encoder, info: Info):
        super().__init__(encoder, info)
        self.config = config
        self.head = AAMHead(encoder.embed_dim, info.num_classes)

    def optimisers(self) -> dict[str, list[dict]]:
        return super().optimisers(self.config.encoder_lr)

    def views(self) -> dict[str, View]:
        crop = self.config.crop_seconds
        return {"weak": View(crop), "strong": View(crop, augment=True, share_crop="weak")}

    def unlabelled(self, batch: Batch, rows: Tensor, cos: Tensor | None) -> tuple[Tensor, Stats]:
        """Losses [U] of the batch's unlabelled `rows` [U], and what to log of them, [U] each. `cos` [U, K] are those
        of the strong views, where `joint`."""
        raise UserError(
            f"objective {self.config.name} learns from labelled utterances alone, but a batch has others",
            mend="leave --unlabelled out",
        )

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        is_labelled = batch.source == LABELLED
        labelled, rows = (torch.nonzero(part)[:, 0] for part in (is_labelled, ~is_labelled))
        parts = [pick(batch.views[name], labelled) for name in ("weak", "strong")]
        if self.joint:
            parts.append(pick(batch.views["strong"], rows))
        unit, cos = self.cosines(*join(parts), c.spec_augment)
        label = batch.label[labelled].repeat(2)
        mine, strong = cos.split([len(label), len(cos) - len(label)])
        loss = self.aam(mine, label)
        count = torch.tensor(float(len(label)), device=loss.device)
        right = (mine.detach().argmax(1) == label).float().sum()
        terms, stats = {"labelled": (loss.sum(), count)}, {"accuracy": (right, count), "spread": spread(unit)}
        if len(rows):
            found, more = self.unlabelled(batch, rows, strong if self.joint else None)
            size = torch.tensor(float(len(rows)), device=loss.device)
            terms["unlabelled"] = (c.unlabelled_weight * found.sum(), size)
            stats |= {name: (value.float().sum(), size) for name, value in more.items()}
            whole = torch.tensor(float(len(batch.index)), device=loss.device)
            stats |= {name: (count / 2, whole) for name in batch.views if name not in self.reads}
        return Losses(terms, stats)

    def cosines(
        self, wave: Tensor, lengths: Tensor, spec: SpecAugmentConfig | None = None
    ) -> tuple[Tensor, Tensor]:
        """Crops [B, T] -> unit embeddings [B, D], cosines to the class centres [B, K]."""
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


class Gated(HasGate, Semi):
    """What objectives with a gate share."""

    def __init__(self, config: GatedConfig, encoder: Encoder, info: Info):
        super().__init__(config, encoder, info)
        args = info.num_classes, info.num_rows, info.num_labelled
        self.gate = cfg.build("confidence_gate", config.gate, *args)


@dataclass(kw_only=True)
class GatedLabelsConfig(GatedConfig):
    # cluster: GLL, the pseudo-label of the unlabelled data directory; own: FixMatch, FlexMatch, argmax q
    target: Literal["cluster", "own"] = "cluster"


class GatedLabels(Gated):
    """L_u = (1 / B_u) sum_i B(q_i) H(y_i, p(. | strong view)), eq. 6 and 7; B is the gate, eq. 4.

    The weak view is a second pass in training mode, free of autograd; its q decides, and is the label for `own`.
    """

    Config = GatedLabelsConfig
    joint = True

    def unlabelled(self, batch: Batch, rows: Tensor, cos: Tensor) -> tuple[Tensor, Stats]:
        c = self.config
        with torch.no_grad():
            _, weak = self.cosines(*pick(batch.views["weak"], rows))
            q = (c.confidence_scale * weak).softmax(1)
        confidence, predicted = q.max(1)
        label = batch.label[rows] if c.target == "cluster" else predicted
        if c.target == "cluster" and bool((label < 0).any()):
            raise UserError(
                "an unlabelled utterance has a speaker that the labelled data does not",
                mend="label it by bin.seeded_cluster, or set objective.target: own",
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
