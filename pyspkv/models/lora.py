"""Small trainable parts on a frozen trunk: low-rank updates of its matrices (LoRA), and adapters between its layers."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj", "linear_q", "linear_k", "linear_v", "linear_out")
FEED_FORWARD = ("fc1", "fc2", "intermediate_dense", "output_dense")


class LoRALinear(nn.Linear):
    """y = x W^T + b + alpha / r (x A^T) B^T (Hu et al. 2022, section 4.1), W and b frozen, A [r, in], B [out, r].

    B starts from zero, so that the start is the linear layer itself. W and b keep their names in checkpoints.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, layer.in_features))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        for p in layer.parameters():
            p.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.scale * F.linear(F.linear(input, self.lora_a), self.lora_b)

    @torch.no_grad()
    def update(self) -> Tensor:
        """alpha / r B A, [out, in]."""
        return self.scale * self.lora_b @ self.lora_a


class Adapter(nn.Module):
    """h + up(gelu(down(h))) (Houlsby et al. 2019), [B, F, D]; `up` starts from zero, so that the start is h itself."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.down, self.up = nn.Linear(dim, inner), nn.Linear(inner, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.up(F.gelu(self.down(h)))


def add_lora(module: nn.Module, names: tuple[str, ...], rank: int, alpha: float) -> None:
    """Put low-rank updates on the linear layers of `module` that have one of `names`, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if name in names and type(child) is nn.Linear:
                setattr(parent, name, LoRALinear(child, rank, alpha))


def merge(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The named weights of the same function without low-rank updates: W + scale B A for each W, scale = alpha / r.

    KeyError, RuntimeError: an update lacks a part, or does not fit its matrix.
    """
    out = dict(weights)
    for name in weights:
        if name.endswith(".lora_a"):
            layer = name.removesuffix("lora_a")
            a, b = out.pop(name), out.pop(f"{layer}lora_b")
            out[f"{layer}weight"] = out[f"{layer}weight"] + scale * b @ a
    return out
