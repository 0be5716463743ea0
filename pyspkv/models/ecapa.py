"""ECAPA-TDNN (Desplanques, Thienpondt, Demuynck, Interspeech 2020), any width, channels last.

On a CPU a 1 x 1 convolution over [B, T, C] is a plain matrix product, about twice as fast as Conv1d over
[B, C, T] (benchmarks/RESULTS.md), and dilated ones are a product over shifted copies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.base.errors import UserError
from pyspkv.models.encoder import Encoder
from pyspkv.models.norm import BatchNorm
from pyspkv.models.pooling import AttentiveStatsPool


@dataclass(kw_only=True)
class ECAPAConfig:
    channels: int = 512  # width C of the three SE-Res2 blocks
    mfa_channels: int = 1536  # width of the layer that joins the blocks (multi-layer feature aggregation)
    embed_dim: int = 192
    n_mels: int = 80
    scale: int = 8  # Res2Net groups
    bottleneck: int = 128  # squeeze-excitation and attention
    attention: int = 0  # the attention's own bottleneck; 0 = the same


class _Shifts(torch.autograd.Function):
    """[B, T, C] -> [B, T, kernel * C]: each frame with its dilated neighbours, zeros beyond the ends.

    The backward pass adds the neighbours' gradients in place, which autograd's own for slices of a padded copy does
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


class ECAPA(Encoder):
    Config = ECAPAConfig

    def __init__(self, config: ECAPAConfig):
        super().__init__(config.n_mels)
        c = config
        if c.channels % c.scale:
            raise UserError(f"encoder.channels {c.channels} is no multiple of scale {c.scale}")
        self.embed_dim = c.embed_dim
        self.stem = ConvReluNorm(c.n_mels, c.channels, 5)
        self.blocks = nn.ModuleList(SERes2Block(c.channels, d, c.scale, c.bottleneck) for d in (2, 3, 4))
        self.mfa = nn.Linear(3 * c.channels, c.mfa_channels)
        self.attention = AttentiveStatsPool(c.mfa_channels, c.attention or c.bottleneck)
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
