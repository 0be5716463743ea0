"""Linear layers in bf16 on a CPU with their weights laid out once: faster, by private calls of torch.

Where those are not there the layers stay as they are: `packed` then changes nothing but speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _PackedLinear:
    """A linear layer's product in bf16 with its weights in the blocks that oneDNN wants, and its bias added in it."""

    def __init__(self, layer: torch.nn.Linear):
        weight, bias = layer.weight.detach(), layer.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), None)
        self.bias = None if bias is None else bias.detach().bfloat16()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, "none", [], "")


@contextmanager
def packed(encoder, device: torch.device, precision: str) -> Iterator[None]:
    """For many forward passes without gradient in bf16 on a CPU: the weights of linear layers are converted and laid
    out once, here, not in each pass. Takes 2 bytes a weight."""
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
