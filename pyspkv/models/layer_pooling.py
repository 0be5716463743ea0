"""From the hidden states of all layers of a trunk to one embedding.

A pooling has two parts: `mix`, the shares of the layers in S sums, and `forward`, from these sums to the embedding. The
trunk makes the sums itself (`mixture`), so that no pooling holds all states side by side.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pyspkv.models.pooling import AttentiveStatsPool

Pooling = Literal["mhfa", "attentive", "weighted", "mean"]


class LayerPooling(nn.Module):
    """Base of the poolings."""

    def mix(self) -> Tensor:
        """[S, L + 1]: the shares of the hidden states H_0 .. H_L in S sums; each row's total is 1."""
        raise NotImplementedError

    def forward(self, mixed: Tensor, mask: Tensor | None) -> Tensor:
        """The sums side by side [B, T, S D], valid frames [B, T] (None: all) -> [B, E]."""
        raise NotImplementedError


class MHFA(LayerPooling):
    """Hidden states H_l [B, T, D], l = 0..L -> [B, E] (Peng et al., SLT 2022).

    a = softmax(w^k), b = softmax(w^v); K = (sum_l a_l H_l) Wk + bk, V likewise; weights over time of head h are
    softmax_t(K w_h); c_h = sum_t weight_th V_t; e = Wo [c_1 .. c_H] + bo. No normalization.
    """

    def __init__(self, layers: int, dim: int, heads: int, inner: int, embed_dim: int):
        super().__init__()
        self.weights_k = nn.Parameter(torch.ones(layers + 1))
        self.weights_v = nn.Parameter(torch.ones(layers + 1))
        self.cmp_linear_k = nn.Linear(dim, inner)
        self.cmp_linear_v = nn.Linear(dim, inner)
        self.att_head = nn.Linear(inner, heads)
        self.pooling_fc = nn.Linear(heads * inner, embed_dim)

    def mix(self) -> Tensor:
        """[2, L + 1]: the layers' shares in keys and values."""
        return torch.stack([self.weights_k, self.weights_v]).softmax(1)

    def forward(self, mixed: Tensor, mask: Tensor | None) -> Tensor:
        """mixed [B, T, 2 D]: the two sums over layers, side by side."""
        k, v = mixed.chunk(2, -1)
        score = self.att_head(self.cmp_linear_k(k)).float()  # [B, T, H]
        if mask is not None:
            score = score.masked_fill(~mask[..., None], float("-inf"))
        v = self.cmp_linear_v(v)
        c = score.softmax(1).to(v.dtype).transpose(1, 2) @ v  # [B, H, inner]
        return self.pooling_fc(c.flatten(1))


class MeanPool(LayerPooling):
    """Mean over layers and frames: first labels straight from the trunk."""

    def __init__(self, layers: int):
        super().__init__()
        self.layers = layers

    def mix(self) -> Tensor:
        return torch.full((1, self.layers + 1), 1 / (self.layers + 1))

    def forward(self, mixed: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return mixed.mean(1)
        return (mixed * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class WeightedLayers(LayerPooling):
    """One sum over the layers with learned shares softmax(w), as in SUPERB (Yang et al. 2021)."""

    def __init__(self, layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers + 1))

    def mix(self) -> Tensor:
        """[1, L + 1]"""
        return self.weights.softmax(0)[None]


class WeightedMean(WeightedLayers):
    """Learned sum over the layers, mean over time, one affine layer: [B, T, D] -> [B, E]."""

    def __init__(self, layers: int, dim: int, embed_dim: int):
        super().__init__(layers)
        self.fc = nn.Linear(dim, embed_dim)

    def forward(self, mixed: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.fc(mixed.mean(1))
        return self.fc((mixed * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class WeightedAttentive(WeightedLayers):
    """Learned sum over the layers, attentive statistics as in ECAPA-TDNN, one affine layer: [B, T, D] -> [B, E]."""

    def __init__(self, layers: int, dim: int, embed_dim: int):
        super().__init__(layers)
        self.stats = AttentiveStatsPool(dim)
        self.fc = nn.Linear(2 * dim, embed_dim)

    def forward(self, mixed: Tensor, mask: Tensor | None) -> Tensor:
        return self.fc(self.stats(mixed, mask))


def make_pooling(
    name: Pooling, layers: int, dim: int, embed_dim: int, mhfa_heads: int, mhfa_dim: int
) -> LayerPooling:
    """The pooling `name` on a trunk of `layers` layers of width `dim`; `mean` gives `dim` values, not `embed_dim`."""
    if name == "mhfa":
        return MHFA(layers, dim, mhfa_heads, mhfa_dim, embed_dim)
    if name == "mean":
        return MeanPool(layers)
    return (WeightedMean if name == "weighted" else WeightedAttentive)(layers, dim, embed_dim)


def mixture(states: list[Tensor], shares: Tensor) -> Tensor:
    """Hidden states [B, F, D] x (L + 1), shares [S, L + 1] -> their S weighted sums, side by side [B, F, S x D]."""
    sums = [states[0] * share for share in shares[:, 0]]
    for h, column in zip(states[1:], shares.T[1:]):
        sums = [torch.addcmul(s, h, share) for s, share in zip(sums, column)]
    return torch.cat(sums, -1)
