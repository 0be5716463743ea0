"""Batch normalization over the rows of all processes."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyspkv.base.distributed import all_reduce_sum, sum_with_grad, world_size
from pyspkv.base.errors import UserError


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization over the last axis of [..., C], with statistics of all ranks' rows.

    torch's SyncBatchNorm refuses CPU tensors and wants channels second; every layer here keeps channels last.
    """

    running_mean: Tensor  # torch allows batch normalization without them
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.training and len(rows) * world_size() < 2:
            raise UserError("batch normalization needs at least two utterances", hint="raise batch_size")
        if not self.training or world_size() == 1:
            return super().forward(rows).view(x.shape)
        rows32 = rows.float()
        count = all_reduce_sum(torch.tensor(float(len(rows)), device=x.device))
        mean = sum_with_grad(rows32.sum(0)) / count
        var = sum_with_grad((rows32 - mean).square().sum(0)) / count  # two passes: no cancellation
        with torch.no_grad():
            m = self.momentum
            self.running_mean.mul_(1 - m).add_(mean, alpha=m)
            self.running_var.mul_(1 - m).add_(var * (count / (count - 1)), alpha=m)
            self.num_batches_tracked += 1
        y = (rows32 - mean) * torch.rsqrt(var + self.eps)
        if self.affine:
            y = y * self.weight + self.bias
        return y.to(x.dtype).view(x.shape)


@contextmanager
def frozen_statistics(module: nn.Module):
    """Passes inside normalize by their own batch, and leave the running statistics as they are."""
    norms = [m for m in module.modules() if isinstance(m, BatchNorm)]
    momenta = [m.momentum for m in norms]
    try:
        for m in norms:
            m.momentum = 0.0
        yield
    finally:
        for m, momentum in zip(norms, momenta):
            m.momentum = momentum
