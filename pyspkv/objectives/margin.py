"""Classification of (pseudo-)speakers with AAM-softmax, sub-centres and a label gate."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv import config as cfg
from pyspkv.dataset import Batch, View
from pyspkv.features import SpecAugmentConfig
from pyspkv.labels.gates import Gate
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.objective import Info, Losses, Objective, margin_logits, spread
from pyspkv.schedules import ramp


@dataclass(kw_only=True)
class MarginConfig:
    crop_seconds: float = 2.0
    augment: bool = True
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    scale: float = 30.0
    margin: float = 0.2
    margin_warmup_epochs: list[float] = field(
        default_factory=lambda: [0.0, 0.0]
    )  # 0 until [0], full from [1]
    sub_centres: int = 1  # centres per class; the nearest counts (Deng et al. 2020)
    encoder_lr: float = (
        1.0  # factor on the encoder's learning rate, where it starts trained and the head does not
    )
    gate: cfg.component("gate") = field(default_factory=lambda: cfg.resolve("gate", {"name": "none"}))


class AAMHead(nn.Module):
    """Class centres W [K * S, D]; cosines [B, K] of the nearest of S sub-centres."""

    def __init__(self, dim: int, classes: int, sub_centres: int = 1):
        super().__init__()
        self.sub_centres = sub_centres
        self.weight = nn.Parameter(torch.empty(classes * sub_centres, dim))
        nn.init.xavier_normal_(self.weight)

    def forward(self, unit: Tensor) -> Tensor:
        cos = F.linear(unit, F.normalize(self.weight))
        if self.sub_centres > 1:
            cos = cos.unflatten(1, (-1, self.sub_centres)).amax(2)
        return cos


class Margin(Objective):
    """AAM-softmax over the data directory's speakers, weighted per utterance by the gate."""

    Config = MarginConfig

    def __init__(self, config: MarginConfig, encoder: Encoder, info: Info):
        super().__init__(encoder, info)
        self.config = config
        self.head = AAMHead(encoder.embed_dim, info.num_classes, config.sub_centres)
        self.gate: Gate = cfg.build("gate", config.gate, info.num_rows)

    def optimisers(self) -> dict[str, list[dict]]:
        groups = super().optimisers()
        for group in groups["main"][:-1]:  # the head's is the last
            group["lr_scale"] *= self.config.encoder_lr
        return groups

    def views(self) -> dict[str, View]:
        return {"main": View(self.config.crop_seconds, augment=self.config.augment)}

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        unit = F.normalize(self.encode(batch.views["main"], c.spec_augment))
        with torch.autocast(unit.device.type, enabled=False):
            cos = self.head(unit)
            margin = ramp(self.epoch_now, *c.margin_warmup_epochs, 0.0, c.margin)
            loss = F.cross_entropy(
                c.scale * margin_logits(cos, batch.label, margin), batch.label, reduction="none"
            )
        weight = self.gate(batch.index, loss.detach(), self.epoch_now)
        right = (cos.detach().argmax(1) == batch.label).float()
        size = torch.tensor(float(len(right)), device=right.device)
        return Losses(
            {"aam": ((weight * loss).sum(), weight.sum())},
            {"accuracy": (right.sum(), size), "kept": (weight.sum(), size), "spread": spread(unit)},
        )

    def sync(self) -> None:
        self.gate.sync()

    def end_epoch(self, epoch: int) -> dict[str, float]:
        return self.gate.end_epoch(epoch)
