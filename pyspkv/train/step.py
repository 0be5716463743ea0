"""From an objective's `Losses` to the number that is minimised, and to the numbers that are logged."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyspkv.base import distributed
from pyspkv.batches.dataset import View
from pyspkv.objectives.base import Losses


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


def total_loss(losses: Losses, device: torch.device, asked: bool = False) -> tuple[Tensor, bool]:
    """(loss, whether any rank was `asked` to end).

    The loss is the sum of the terms' means over all ranks; times their number, as DDP averages the gradients over
    them. The question travels with the weights, so that it costs no collective call of its own.
    """
    own = [
        torch.as_tensor(weight, dtype=torch.float32, device=device).detach()
        for _, weight in losses.terms.values()
    ]
    own.append(torch.full((), float(asked), device=device))
    weights = distributed.all_reduce_sum(torch.stack(own))
    loss = torch.zeros((), device=device)
    for (total, _), weight in zip(losses.terms.values(), weights):
        loss = loss + total * (distributed.world_size() / weight if weight > 0 else 0.0)
    return loss, asked if distributed.world_size() == 1 else bool(weights[-1] > 0)


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
