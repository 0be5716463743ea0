"""Batch normalization over the rows of all processes."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyspkv.base.distributed import all_gather, all_reduce_sum, world_size
from pyspkv.base.errors import UserError


def merged(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count [], mean [C] and squared deviations from it [C] of the rows of all parts.

    Each row of `parts` [P, 1 + 2 C] holds a part's count, its mean, and its sums of squared deviations from that mean.
    Formula: Chan, Golub & LeVeque, "Algorithms for computing the sample variance", The American Statistician 37 (1983),
    for any number of parts. It is as sound as two passes over all rows: it subtracts no large sums from each other.
    """
    count, mean, squares = parts.split([1, (parts.shape[1] - 1) // 2, (parts.shape[1] - 1) // 2], 1)
    total = count.sum()
    # The means differ little from the first one, even where all of them are large.
    joint = mean[0] + (count * (mean - mean[0])).sum(0) / total
    return total, joint, squares.sum(0) + (count * (mean - joint).square()).sum(0)


class _Normalize(torch.autograd.Function):
    """Rows [N, C] of each rank -> (y [N, C], count [], mean [C], biased variance [C]) over the rows of all ranks.

    One collective call forward and one backward, as in torch's SyncBatchNorm. Ranks may have different N. The
    gradients of `weight` and `bias` are this rank's share; DDP adds those up.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float):
        mean = x.sum(0) / max(len(x), 1)
        squares = (x - mean).square().sum(0)
        own = torch.cat([mean.new_full((1,), len(x)), mean, squares])
        count, mean, squares = merged(all_gather(own))  # every rank merges the same parts in the same order
        var = squares / count
        scale = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(count, mean, var)
        return torch.addcmul(bias, x - mean, scale * weight), count, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        x, weight, mean, scale, count = ctx.saved_tensors
        unit = (x - mean) * scale
        sums = torch.stack([grad.sum(0), (grad * unit).sum(0)])
        to_x = None
        if ctx.needs_input_grad[0]:
            shift, slope = all_reduce_sum(sums) / count
            to_x = (grad - shift - unit * slope) * (scale * weight)
        return to_x, sums[1], sums[0], None


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization over the last axis of [..., C], with statistics of all ranks' rows.

    torch's SyncBatchNorm refuses CPU tensors and wants channels second; every layer here keeps channels last.
    """

    running_mean: Tensor  # torch allows batch normalization without them
    running_var: Tensor
    num_batches_tracked: Tensor
    weight: nn.Parameter
    bias: nn.Parameter
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.training and len(rows) * world_size() < 2:
            raise UserError("batch normalization needs at least two utterances", hint="raise batch_size")
        if not self.training or world_size() == 1:
            return super().forward(rows).view(x.shape)
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        y, count, mean, var = _Normalize.apply(wide, self.weight, self.bias, self.eps)
        with torch.no_grad():
            m = self.momentum
            self.running_mean.mul_(1 - m).add_(mean, alpha=m)
            self.running_var.mul_(1 - m).add_(var * (count / (count - 1)), alpha=m)
            self.num_batches_tracked += 1
        return y.to(x.dtype).view(x.shape)


@contextmanager
def frozen_statistics(module: nn.Module):
    """Within it, passes normalize by their own batch and do not change the running statistics."""
    norms = [m for m in module.modules() if isinstance(m, BatchNorm)]
    momenta = [m.momentum for m in norms]
    try:
        for m in norms:
            m.momentum = 0.0
        yield
    finally:
        for m, momentum in zip(norms, momenta):
            m.momentum = momentum
