"""The number that is minimised and the numbers that are logged, both from an objective's `Losses`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyspkv.base import distributed
from pyspkv.batches.dataset import View
from pyspkv.objectives.base import Losses, Mean


@dataclass
class StepResult:
    """The results of a step that the trainer needs.

    Args:
        stats: (sum, weight) of each logged quantity.
        spread: spread of the batch's embeddings, or None if the objective does not give it.
        seconds: seconds of audio per utterance that the network processed.
    """

    stats: dict[str, tuple[float, float]]
    spread: float | None
    seconds: float


def total_loss(losses: Losses, device: torch.device, stop: bool = False) -> tuple[Tensor, bool]:
    """The loss, and whether any rank is to `stop`.

    The loss is the sum of the terms' means over all ranks. It is multiplied by the number of ranks, because DDP
    averages the gradients over them. `stop` is summed together with the weights, so it needs no call of its own.
    """
    own = [
        torch.as_tensor(weight, dtype=torch.float32, device=device).detach()
        for _, weight in losses.terms.values()
    ]
    own.append(torch.full((), float(stop), device=device))
    weights = distributed.all_reduce_sum(torch.stack(own))
    loss = torch.zeros((), device=device)
    for (total, _), weight in zip(losses.terms.values(), weights):
        loss = loss + total * (distributed.world_size() / weight if weight > 0 else 0.0)
    return loss, stop if distributed.world_size() == 1 else bool(weights[-1] > 0)


def loss_with_pull(
    losses: Losses, pull: dict[str, Mean], normalize: bool, device: torch.device, stop: bool = False
) -> tuple[Tensor, Tensor, bool]:
    """The loss that is minimized, the loss to log, and whether any rank is to `stop`.

    The pull joins the terms of `losses`. With terms of sum L and a pull P, L + P is minimized and logged; if
    `normalize`, L / sg(L) + P is minimized and L is logged (arXiv 2406.02285's code; sg: no gradient; L of all ranks).
    Where L is not above 0, it is not divided.
    """
    if not pull or not normalize:
        losses.terms.update(pull)
        loss, stop = total_loss(losses, device, stop)
        return loss, loss, stop
    loss, stop = total_loss(losses, device, stop)
    losses.terms.update(pull)
    value = distributed.all_reduce_sum(loss.detach().clone()) / distributed.world_size()
    return loss / torch.where(value > 0, value, 1.0) + total_loss(Losses(pull), device)[0], loss, stop


def step_result(loss: float, losses: Losses, views: dict[str, View], batch_size: int) -> StepResult:
    """The result of a step for this rank's `batch_size` utterances."""
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
