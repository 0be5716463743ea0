"""The pull of a pre-trained trunk to its first weights, and how far it has drifted from them."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

PullForm = Literal["norms", "squared"]


def pull(params: Sequence[Tensor], start: Sequence[Tensor], weight: float, form: PullForm) -> Tensor:
    """Penalty on the distance of each tensor in `params` from its pre-trained value in `start`.

    squared: weight x sum_j |p_j - s_j|^2 (L2-SP, Li et al. 2018). Its gradient grows with the distance.

    norms: weight x R / (sg(R) + 1e-5), R = sum_j |p_j - s_j| and sg = no gradient, as the authors of arXiv 2406.02285
    released it. Its value is about `weight`, and its gradient falls with the distance. The main loss L belongs into the
    same form, L / sg(L): see `Encoder.normalizes_loss`.
    """
    gaps = [p - s for p, s in zip(params, start, strict=True)]
    if form == "squared":
        total: Any = sum(gap.square().sum() for gap in gaps)
        return weight * total
    norms: Any = sum(torch.linalg.vector_norm(gap) for gap in gaps)
    return weight * norms / (norms.detach() + 1e-5)


@torch.no_grad()
def drift(parts: Sequence[str], params: Sequence[Tensor], start: Sequence[Tensor]) -> dict[str, float]:
    """Part -> |p - s| / |s| over all its weights; `parts` names the part (the layer) of each of `params`."""
    moved: dict[str, float] = {}
    size: dict[str, float] = {}
    for part, p, s in zip(parts, params, start, strict=True):
        moved[part] = moved.get(part, 0.0) + (p - s.to(p.device)).square().sum().item()
        size[part] = size.get(part, 0.0) + s.square().sum().item()
    return {part: (moved[part] / size[part]) ** 0.5 if size[part] else float("nan") for part in moved}
