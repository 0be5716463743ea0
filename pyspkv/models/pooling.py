"""Frame-level [B, T, C] -> utterance-level [B, D], ignoring padded frames."""

import torch
from torch import Tensor, nn

from pyspkv.models.norm import BatchNorm


def masked_stats(x: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over time, both [B, C]; weights [B, T, C] sum to one over T."""
    if weights is None:
        if mask is None:
            mean = x.mean(1)  # torch.var_mean takes four times as long over this axis
            var = (x - mean[:, None]).square().mean(1)
            return mean, var.clamp_min(1e-5).sqrt()
        weights = mask[..., None] / mask.sum(1)[:, None, None]
    weighted = weights * x
    mean = weighted.sum(1)
    var = (weighted * x).sum(1) - mean.square()
    return mean, var.clamp_min(1e-5).sqrt()


class AttentiveStatsPool(nn.Module):
    """Channel- and context-dependent statistics pooling (ECAPA-TDNN, Desplanques et al. 2020, section 2.2).

    [B, T, C] -> [B, 2C]. The utterance's mean and deviation join each frame before the attention; they are
    the same for all frames, so their part of the first layer is computed once per utterance.
    """

    def __init__(self, channels: int, bottleneck: int = 128, context: bool = True):
        super().__init__()
        self.context = nn.Linear(2 * channels, bottleneck, bias=False) if context else None
        self.local = nn.Linear(channels, bottleneck)
        self.norm = BatchNorm(bottleneck)
        self.out = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.local(x)
        if self.context is not None:
            h = h + self.context(torch.cat(masked_stats(x, mask), 1))[:, None]
        score = self.out(torch.tanh(self.norm(torch.relu(h)))).float()
        if mask is not None:
            score = score.masked_fill(~mask[..., None], float("-inf"))
        return torch.cat(masked_stats(x, mask, score.softmax(1).to(x.dtype)), 1)


class StatsPool(nn.Module):
    """Plain mean and standard deviation: [B, T, C] -> [B, 2C]."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.cat(masked_stats(x, mask), 1)
