"""Optimizers from an objective's parameter groups, their learning rates, and the clipping of gradients."""

import math

import torch
from torch import Tensor

from pyspkv.base.errors import UserError
from pyspkv.train.config import OptimConfig


def build_optimizer(config: OptimConfig, groups: list[dict]) -> torch.optim.Optimizer:
    """An optimizer with weight decay on matrices, not on biases and norms. UserError: no group has a parameter."""
    split = []
    for group in groups:
        settings = {k: v for k, v in group.items() if k != "params"}
        matrices = [p for p in group["params"] if p.ndim > 1]
        vectors = [p for p in group["params"] if p.ndim <= 1]
        for decay, params in ((config.weight_decay, matrices), (0.0, vectors)):
            if params:
                split.append({"params": params, "weight_decay": decay, **settings})
    if not split:
        raise UserError("there is nothing to train: the whole model is frozen", hint="see encoder.freeze")
    if config.name == "sgd":
        return torch.optim.SGD(split, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(split, lr=config.lr, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, base: float, factor: float) -> None:
    """Set each group's rate to base x its `lr_scale` x the schedule's factor. A group with `fixed_lr` keeps its own."""
    for group in optimizer.param_groups:
        if "fixed_lr" not in group:
            group["lr"] = base * group.get("lr_scale", 1.0) * factor


def drop_waiting(optimizer: torch.optim.Optimizer, epoch: float) -> None:
    """Forget the gradients of groups whose `from_epoch` has not come: nothing of them moves, and nothing is remembered
    of them, as if they were not there."""
    for group in optimizer.param_groups:
        if epoch < group.get("from_epoch", 0):
            for p in group["params"]:
                p.grad = None


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float | None, each: bool) -> Tensor:
    """Scale the gradients down to norm `limit`, all together or each by itself. None: leave them.

    Returns their norm before.
    """
    params = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    groups = [[p] for p in params] if each else [params]
    norms = [torch.nn.utils.clip_grad_norm_(group, limit or math.inf) for group in groups]
    return torch.linalg.vector_norm(torch.stack(norms))
