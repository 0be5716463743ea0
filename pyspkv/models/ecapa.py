"""ECAPA-TDNN (Desplanques, Thienpondt, Demuynck, Interspeech 2020), any width, channels last.

On a CPU a 1 x 1 convolution over [B, T, C] is a plain matrix product, about twice as fast as Conv1d over
[B, C, T] (benchmarks/RESULTS.md), and dilated ones are a product over shifted copies.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.base.config import Config, Count, Size, implements
from pyspkv.models.encoder import Encoder
from pyspkv.models.norm import BatchNorm
from pyspkv.models.pooling import AttentiveStatsPool


class ECAPAConfig(Config):
    """ECAPA-TDNN (Desplanques et al. 2020). Use narrow widths (64 to 128) on a CPU or a small corpus."""

    name: Literal["ecapa"] = "ecapa"
    channels: Size = Field(
        512,
        description="Width of the three SE-Res2 blocks, a multiple of `scale` (512 or 1024 in the paper). "
        "Change this first to make the network larger or faster.",
    )
    mfa_channels: Size = Field(
        1536,
        description="Width of the layer that joins the blocks (multi-layer feature aggregation; 1536 in "
        "the paper). Keep it about three times `channels`.",
    )
    embed_dim: Size = Field(192, description="Size of the embedding. 192 in the paper.")
    n_mels: Count = Field(
        80, description="Mel bands of the filterbank. --init needs a model with the same number."
    )
    scale: Count = Field(8, description="Groups of the Res2Net convolutions (8 in the paper).")
    se_channels: Size = Field(
        128, description="Bottleneck of the squeeze-excitation (128 in the paper). Lower it with `channels`."
    )
    attention_channels: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Bottleneck of the attentive pooling (128 in the paper). 0: the same as `se_channels`.",
    )

    @model_validator(mode="after")
    def _groups(self) -> "ECAPAConfig":
        if self.channels % self.scale:
            raise ValueError(f"channels {self.channels} is not a multiple of scale {self.scale}")
        return self


class _Shifts(torch.autograd.Function):
    """[B, T, C] -> [B, T, kernel * C]: each frame with its dilated neighbors, zeros beyond the ends.

    The backward pass adds the neighbors' gradients in place, which autograd's own for slices of a padded copy does
    not (a third of an ECAPA step).
    """

    @staticmethod
    def forward(ctx, x, kernel, dilation):
        ctx.kernel, ctx.dilation = kernel, dilation
        half, size = dilation * (kernel - 1) // 2, x.shape[1]
        x = F.pad(x, (0, 0, half, half))
        return torch.cat([x[:, i * dilation : i * dilation + size] for i in range(kernel)], -1)

    @staticmethod
    def backward(ctx, grad):
        kernel, dilation, size = ctx.kernel, ctx.dilation, grad.shape[1]
        half = dilation * (kernel - 1) // 2
        parts = grad.chunk(kernel, -1)
        out = parts[kernel // 2].clone()
        for i, part in enumerate(parts):
            shift = i * dilation - half  # out[t + shift] takes part[t]
            if shift > 0:
                out[:, shift:] += part[:, : size - shift]
            elif shift < 0:
                out[:, :shift] += part[:, -shift:]
        return out, None, None


class TimeConv(nn.Module):
    """Convolution over time of [B, T, C] with 'same' zero padding: weight [out, kernel * in]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1):
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.linear = nn.Linear(kernel * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(_Shifts.apply(x, self.kernel, self.dilation) if self.kernel > 1 else x)


class ConvReluNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = TimeConv(inputs, outputs, kernel, dilation)
        self.norm = BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x), inplace=True))


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask[..., None]


class SERes2Block(nn.Module):
    def __init__(self, channels: int, dilation: int, scale: int, bottleneck: int):
        super().__init__()
        width = channels // scale
        self.width = width
        self.inner = ConvReluNorm(channels, channels)
        self.res2 = nn.ModuleList(ConvReluNorm(width, width, 3, dilation) for _ in range(scale - 1))
        self.outer = ConvReluNorm(channels, channels)
        self.squeeze = nn.Linear(channels, bottleneck)
        self.excite = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first, *parts = self.inner(x).split(self.width, -1)
        outs, y = [first], None
        for part, conv in zip(parts, self.res2):
            # padded frames must look like the zeros beyond an utterance's end
            y = conv(masked(part if y is None else part + y, mask))
            outs.append(y)
        h = self.outer(torch.cat(outs, -1))
        mean = h.mean(1) if mask is None else masked(h, mask).sum(1) / mask.sum(1, keepdim=True)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))
        return torch.addcmul(x, h, gate[:, None])


@implements(ECAPAConfig)
class ECAPA(Encoder):
    def __init__(self, config: ECAPAConfig):
        super().__init__(config.n_mels)
        c = config
        self.embed_dim = c.embed_dim
        self.stem = ConvReluNorm(c.n_mels, c.channels, 5)
        self.blocks = nn.ModuleList(SERes2Block(c.channels, d, c.scale, c.se_channels) for d in (2, 3, 4))
        self.mfa = nn.Linear(3 * c.channels, c.mfa_channels)
        self.attention = AttentiveStatsPool(c.mfa_channels, c.attention_channels or c.se_channels)
        self.pool_norm = BatchNorm(2 * c.mfa_channels)
        self.fc = nn.Linear(2 * c.mfa_channels, c.embed_dim)
        self.out_norm = BatchNorm(c.embed_dim)

    def frames(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        mask = self.mask(lengths, feats.shape[1])
        x = self.stem(feats)
        total, outs = x, []
        for block in self.blocks:  # each block's input is the sum of all earlier outputs
            outs.append(block(total, mask))
            total = total + outs[-1]
        return F.relu(self.mfa(torch.cat(outs, -1)), inplace=True), mask

    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        return self.out_norm(self.fc(self.pool_norm(self.attention(frames, mask))))
