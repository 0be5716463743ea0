"""The few collectives that training needs. In a single process each returns its input.

Gradients follow torch DDP's convention: DDP averages the parameter gradients over ranks, and the trainer
scales each rank's loss by `world_size() / (weight over all ranks)`. So n processes give the gradient of one
process with the same global batch.
"""

import gc
import os
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from pyspkv.base.device import device as default_device
from pyspkv.base.errors import UserError
from pyspkv.base.processes import PeerLost

# Error texts of gloo, NCCL and the store when the other process has ended; torch has no common exception
# class.
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
    "Socket Timeout",
)


def init() -> torch.device:
    """Join torchrun's process group if there is one (NCCL on GPU, gloo on CPU), and return this rank's
    device.

    Raises UserError when this machine has fewer GPUs than processes.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = default_device()
    cuda = device.type == "cuda"
    if cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"process {local + 1} of this machine has no GPU: there are {torch.cuda.device_count()}",
            hint="lower --ngpu, or train on the CPU with --ngpu 0",
        )
    if cuda:  # a fixed order of sums, so that a resumed run gives the same digits as an unbroken one
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # not in the stubs
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if cuda:
            torch.cuda.set_device(local)
        with peers():
            dist.init_process_group("nccl" if cuda else "gloo")
    return torch.device("cuda", local) if cuda else device


@contextmanager
def peers():
    """Context that raises PeerLost instead of torch's RuntimeError when another process has ended."""
    try:
        yield
    except RuntimeError as err:
        if isinstance(err, dist.DistError) or any(words in str(err) for words in LOST):
            raise PeerLost from None
        raise


def close() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        # A DDP wrapper in a reference cycle keeps the group's threads; a process has been seen to abort for
        # it.
        gc.collect()
        dist.destroy_process_group()


def rank() -> int:
    """This process's rank; 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every process has arrived here."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, without gradient."""
    if world_size() > 1:
        x = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
    return x


def all_gather(x: Tensor) -> Tensor:
    """`x` of all ranks [world, ...], in their order, no gradient. All ranks must hold the same shape."""
    if world_size() == 1:
        return x.detach()[None]
    full = x.new_zeros(world_size(), *x.shape)
    full[rank()] = x.detach()
    dist.all_reduce(full)  # what is added to x are zeros
    return full


def broadcast(x: Tensor) -> Tensor:
    """Copy rank 0's `x` to every rank, in place."""
    if world_size() > 1:
        dist.broadcast(x, 0)
    return x


def randn_like(x: Tensor) -> Tensor:
    """Normal numbers of the shape of `x` [B, ...]: this rank's share of what one process would draw for all rows.

    Ranks may have different B. Rank 0 draws, so the numbers follow from its random state.
    """
    if world_size() == 1:
        return torch.randn_like(x)
    sizes = all_gather(torch.tensor([len(x)], device=x.device))[:, 0].tolist()
    drawn = broadcast(torch.randn_like(x.new_empty(sum(sizes), *x.shape[1:])))
    return drawn.split(sizes)[rank()]


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.clone(memory_format=torch.contiguous_format)  # NCCL takes no other
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


def sum_with_grad(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, with gradient: the backward pass sums the gradients over ranks."""
    return _AllSum.apply(x) if world_size() > 1 else x


def gather(x: Tensor) -> Tensor:
    """[B, ...] on each rank -> [world_size * B, ...] in rank order, with gradient to every rank's part.

    All ranks must hold the same B.
    """
    if world_size() == 1:
        return x
    full = x.new_zeros(world_size(), *x.shape)
    full[rank()] = x
    return sum_with_grad(full).flatten(0, 1)


def gather_rows(x: Tensor) -> Tensor:
    """[B, ...] on each rank, where B may differ -> the rows of all ranks in rank order, without gradient."""
    if world_size() == 1:
        return x
    counts = torch.zeros(world_size(), dtype=torch.long, device=x.device)
    counts[rank()] = len(x)
    sizes = all_reduce_sum(counts).tolist()
    full = x.new_zeros(sum(sizes), *x.shape[1:])
    first = sum(sizes[: rank()])
    full[first : first + len(x)] = x
    return all_reduce_sum(full)
