"""Pre-training without labels: two crops of one utterance attract, those of other utterances repel."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.dataset import Batch, View
from pyspkv.distributed import gather, rank
from pyspkv.features import SpecAugmentConfig
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.objective import Info, Losses, Objective, spread


@dataclass(kw_only=True)
class ContrastiveConfig:
    loss: Literal["nt_xent", "angular_proto"] = "nt_xent"
    crop_seconds: float = 2.0
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    temperature: float = 0.07  # start value where it is learnt
    learn_temperature: bool = False
    margin: float = 0.0  # taken off the positive pair's cosine (additive margin)


def nt_xent(
    a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, first: int, scale: Tensor, margin: float
) -> Tensor:
    """NT-Xent (Chen et al. 2020, eq. 1), both directions: unit vectors a, b [B, D] of this rank, all ranks'
    [N, D] of which a starts at row `first` -> losses [2B], 2N - 2 negatives each.
    """
    size, keys = len(a), torch.cat([all_a, all_b])
    logits = torch.cat([a, b]) @ keys.T  # [2B, 2N]
    rows = torch.arange(2 * size, device=a.device)
    own = first + rows % size + (rows >= size) * len(all_a)
    pair = first + rows % size + (rows < size) * len(all_a)
    logits = logits.index_put((rows, pair), logits[rows, pair] - margin) * scale
    logits = logits.index_put((rows, own), logits.new_tensor(-math.inf))
    return F.cross_entropy(logits, pair, reduction="none")


def angular_proto(a: Tensor, all_b: Tensor, first: int, scale: Tensor, margin: float) -> Tensor:
    """Angular prototypical loss (Chung et al. 2020) with one query and one-utterance prototypes -> losses [B].

    Its learnt bias is left out: it cancels in the softmax.
    """
    rows = torch.arange(len(a), device=a.device)
    logits = a @ all_b.T
    logits = logits.index_put((rows, first + rows), logits[rows, first + rows] - margin) * scale
    return F.cross_entropy(logits, first + rows, reduction="none")


class Contrastive(Objective):
    """NT-Xent or angular prototypical loss over two crops, kept apart where the utterance is long enough."""

    Config = ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, encoder: Encoder, info: Info):
        super().__init__(encoder, info)
        self.config = config
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(config.temperature)), requires_grad=config.learn_temperature
        )

    def views(self) -> dict[str, View]:
        crop = self.config.crop_seconds
        return {"a": View(crop, augment=True), "b": View(crop, augment=True, apart_from="a")}

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        # One pass over both views: batch normalisation must not tell them apart.
        both = tuple(torch.cat([x, y]) for x, y in zip(batch.views["a"], batch.views["b"]))
        unit = F.normalize(self.encode(both, c.spec_augment))
        a, b = unit.chunk(2)
        with torch.autocast(unit.device.type, enabled=False):
            all_a, all_b = gather(a.contiguous()), gather(b.contiguous())
            first, scale = rank() * len(a), self.log_scale.exp().clamp_max(100.0)
            if c.loss == "nt_xent":
                loss = nt_xent(a, b, all_a, all_b, first, scale, c.margin)
            else:
                loss = angular_proto(a, all_b, first, scale, c.margin)
        with torch.no_grad():
            nearest = (a @ all_b.T).argmax(1) == first + torch.arange(len(a), device=a.device)
            size = torch.tensor(float(len(a)), device=a.device)
        count = torch.tensor(float(len(loss)), device=a.device)
        return Losses(
            {c.loss: (loss.sum(), count)},
            {
                "accuracy": (nearest.float().sum(), size),
                "spread": spread(a),
                "scale": (scale.detach() * size, size),
            },
        )
