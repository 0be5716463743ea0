"""Learning rate, margin and EMA schedules: pure functions of the epoch (a real number, step / steps per epoch).

Nothing here counts calls, so a resumed run needs no scheduler state.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class ScheduleConfig:
    """Linear warm-up from 0 over `warmup_epochs`, then `shape` from 1 towards `final` (both times the base rate)."""

    shape: Literal["cosine", "exponential", "constant"] = "cosine"
    warmup_epochs: float = 1.0
    final: float = 0.01  # factor reached at the last epoch


def lr_factor(config: ScheduleConfig, epoch: float, epochs: float) -> float:
    """Factor on the base learning rate at `epoch` of `epochs`."""
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    done = min(1.0, (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9))
    if config.shape == "cosine":
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done))
    return config.final**done if config.shape == "exponential" else 1.0


def ramp(epoch: float, start: float, end: float, low: float, high: float) -> float:
    """`low` before `start`, `high` after `end`, linear between (margins, loss weights)."""
    if epoch >= end:
        return high
    return low if epoch <= start else low + (high - low) * (epoch - start) / (end - start)


def cosine_ramp(epoch: float, epochs: float, low: float, high: float) -> float:
    """`low` -> `high` on a half cosine over the whole run (EMA rates: 0.996 -> 1)."""
    return high - (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
