"""ResNet34 for speakers (as in He et al. 2016, narrow stem; x-vector use as in Zeinali et al. 2019)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.base.config import Config, Count, Size, implements
from pyspkv.models.encoder import Encoder
from pyspkv.models.norm import BatchNorm
from pyspkv.models.pooling import AttentiveStatsPool, StatsPool


class ResNetConfig(Config):
    """ResNet with 2-D convolutions over time and frequency; the defaults are ResNet34."""

    name: Literal["resnet"] = "resnet"
    channels: Size = Field(
        32, description="Width of the first stage, doubled in each of the next three. Lower it for speed."
    )
    blocks: tuple[Count, Count, Count, Count] = Field(
        (3, 4, 6, 3),
        description="Residual blocks of the four stages. (3, 4, 6, 3) is ResNet34, (2, 2, 2, 2) ResNet18.",
    )
    embed_dim: Size = Field(256, description="Size of the embedding.")
    n_mels: Count = Field(
        80, description="Mel bands of the filterbank. --init needs a model with the same number."
    )
    attentive: bool = Field(
        False,
        description="Attentive statistics pooling, as in ECAPA-TDNN, instead of plain mean and deviation.",
    )


class Norm2d(BatchNorm):
    """Batch normalization of [B, C, H, W], synchronized over ranks."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = Norm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = Norm2d(outputs)
        self.stride, self.short = stride, None
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), Norm2d(outputs))

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y = F.relu(self.norm1(self.conv1(x)))
        if mask is not None:
            mask = mask[:, :: self.stride]
            y = y * mask[:, None, None]
        if self.short is not None:
            # subsample first: oneDNN's strided 1 x 1 backward corrupts the heap in channels_last (torch 2.13)
            x = self.short(x[..., :: self.stride, :: self.stride])
        y = F.relu(self.norm2(self.conv2(y)) + x)
        return (y, None) if mask is None else (y * mask[:, None, None], mask)


@implements(ResNetConfig)
class ResNet(Encoder):
    def __init__(self, config: ResNetConfig):
        super().__init__(config.n_mels)
        c = config
        self.embed_dim = c.embed_dim
        self.stem = nn.Conv2d(1, c.channels, 3, 1, 1, bias=False)
        self.stem_norm = Norm2d(c.channels)
        blocks, width = [], c.channels
        for stage, count in enumerate(c.blocks):
            out = c.channels * 2**stage
            for i in range(count):
                blocks.append(BasicBlock(width, out, 2 if stage and i == 0 else 1))
                width = out
        self.blocks = nn.ModuleList(blocks)
        size = width * -(-c.n_mels // 2 ** (len(c.blocks) - 1))
        self.stats = AttentiveStatsPool(size) if c.attentive else StatsPool()
        self.fc = nn.Linear(2 * size, c.embed_dim)

    def frames(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        mask = self.mask(lengths, feats.shape[1])
        x = feats.transpose(1, 2).unsqueeze(1).contiguous(memory_format=torch.channels_last)  # [B, 1, M, F]
        x = F.relu(self.stem_norm(self.stem(x)))
        if mask is not None:
            x = x * mask[:, None, None]
        for block in self.blocks:
            x, mask = block(x, mask)
        return x.permute(0, 3, 1, 2).flatten(2), mask  # [B, F', C * M']

    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        return self.fc(self.stats(frames, mask))
