"""From an objective's `Losses` to the number that is minimised, and to the numbers that are logged."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyspkv.base import distributed
from pyspkv.batches.dataset import View
from pyspkv.objectives.base import Losses, Mean


@dataclass
class StepResult:
    """What a step leaves.

    Args:
        stats: (sum, weight) of all that is logged.
        spread: of the batch's embeddings, None where the objective tells none.
        seconds: of audio that the network took, per utterance.
    """

    stats: dict[str, tuple[float, float]]
    spread: float | None
    seconds: float


def total_loss(losses: Losses, device: torch.device) -> Tensor:
    """Sum of the terms' means over all ranks; times their number, as DDP averages the gradients over them."""
    own = [
        torch.as_tensor(weight, dtype=torch.float32, device=device).detach()
        for _, weight in losses.terms.values()
    ]
    weights = distributed.all_reduce_sum(torch.stack(own))
    loss = torch.zeros((), device=device)
    for (total, _), weight in zip(losses.terms.values(), weights):
        loss = loss + total * (distributed.world_size() / weight if weight > 0 else 0.0)
    return loss


def loss_with_pull(
    losses: Losses, pull: dict[str, Mean], normalize: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is minimized, and the loss to log; the pull joins the terms of `losses`.

    With terms of sum L and a pull P: L + P for both, or, if `normalize`, L / sg(L) + P and L (arXiv 2406.02285's code;
    sg: no gradient, L of all ranks). Where L is not above 0, it is taken as it is.
    """
    if not pull or not normalize:
        losses.terms.update(pull)
        loss = total_loss(losses, device)
        return loss, loss
    loss = total_loss(losses, device)
    losses.terms.update(pull)
    value = distributed.all_reduce_sum(loss.detach().clone()) / distributed.world_size()
    return loss / torch.where(value > 0, value, 1.0) + total_loss(Losses(pull), device), loss


def step_result(loss: float, losses: Losses, views: dict[str, View], batch_size: int) -> StepResult:
    """Of this rank's `batch_size` utterances."""
    means = losses.terms | losses.stats
    if losses.spread is not None:
        means["spread"] = losses.spread
    means |= {f"encoded/{view}": (crops, batch_size) for view, crops in losses.encoded.items()}
    stats = {name: (_number(total), _number(weight)) for name, (total, weight) in means.items()}
    spread = None
    if losses.spread is not None:
        total, weight = stats["spread"]
        spread = total / weight
    seconds = sum(
        view.seconds * (losses.encoded.get(name, batch_size) / batch_size) for name, view in views.items()
    )
    return StepResult({"loss": (loss, 1.0), **stats}, spread, seconds)


def _number(x: Tensor | float) -> float:
    return x.item() if isinstance(x, Tensor) else float(x)
