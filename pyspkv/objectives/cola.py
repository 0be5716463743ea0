"""COLA pre-training (Saeed, Grangier, Zeghidour 2021, arXiv 2010.10915): two crops of a recording belong together."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from pyspkv.base.config import Config, NotNegative, Seconds, Size, implements
from pyspkv.base.distributed import gather, randn_like, rank
from pyspkv.batches.dataset import Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.base import Losses, Objective, RunInfo, spread


class COLAConfig(Config):
    """COLA (Saeed et al. 2021): two crops of a recording belong together; a baseline for dialogues."""

    name: Literal["cola"] = "cola"
    crop_seconds: Seconds = Field(1.0, description="Length of each of the two crops (0.96 s in the paper).")
    noise_std: NotNegative = Field(
        0.001, description="Standard deviation of the Gaussian noise on the second crop."
    )
    head_dim: Size = Field(512, description="Size of the projection (512 in the paper).")


@implements(COLAConfig)
class COLA(Objective):
    """Cross-entropy in one direction over bilinear similarities g(x)^T W g(x'); head and W go with the run."""

    def __init__(self, config: COLAConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        self.config = config
        self.head = nn.Sequential(
            nn.Linear(encoder.embed_dim, config.head_dim), nn.LayerNorm(config.head_dim), nn.Tanh()
        )
        self.similarity = nn.Linear(config.head_dim, config.head_dim, bias=False)

    def views(self) -> dict[str, View]:
        crop = self.config.crop_seconds
        return {"a": View(crop), "b": View(crop, apart_from="a")}

    def forward(self, batch: Batch) -> Losses:
        (wave_a, len_a), (wave_b, len_b) = batch.views["a"], batch.views["b"]
        if self.training:
            wave_b = wave_b + self.config.noise_std * randn_like(wave_b)
        z = self.encode((torch.cat([wave_a, wave_b]), torch.cat([len_a, len_b])))
        with torch.autocast(z.device.type, enabled=False):
            a, b = self.head(z).chunk(2)
            logits = self.similarity(a) @ gather(b.contiguous()).T  # [B, N]
            positive = rank() * len(a) + torch.arange(len(a), device=a.device)
            loss = F.cross_entropy(logits, positive, reduction="sum")
        right = (logits.detach().argmax(1) == positive).float().sum()
        return Losses({"cola": (loss, len(a))}, {"accuracy": (right, len(a))}, spread(F.normalize(z)))
