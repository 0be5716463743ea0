"""Faster linear layers in bf16 on a CPU: their weights are reordered once, by private functions of torch.

If those functions do not exist, the layers stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _PackedLinear:
    """The bf16 product and bias of a linear layer, with its weights in oneDNN's blocked layout."""

    def __init__(self, layer: torch.nn.Linear):
        weight, bias = layer.weight.detach(), layer.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), None)
        self.bias = None if bias is None else bias.detach().bfloat16()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, "none", [], "")


@contextmanager
def packed(encoder, device: torch.device, precision: str) -> Iterator[None]:
    """Context for many forward passes without gradient in bf16 on a CPU.

    The weights of linear layers are converted and reordered once instead of in each pass. Needs 2 bytes a
    weight. On another device or in another precision the context does nothing.
    """
    op = torch.ops.mkldnn
    there = torch.backends.mkldnn.is_available() and op._is_mkldnn_bf16_supported()
    if device.type != "cpu" or precision != "bf16" or not there:
        yield
        return
    layers = [m for m in encoder.modules() if type(m) is torch.nn.Linear]
    for layer in layers:
        setattr(layer, "forward", _PackedLinear(layer))  # noqa: B010 (a method, to type checkers)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
