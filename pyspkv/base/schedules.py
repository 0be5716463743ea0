"""Schedules of learning rate, margin and EMA as pure functions of the epoch, a real number (step / steps per
epoch).

Because nothing counts calls, a resumed run needs no scheduler state.
"""

import math
from typing import Literal

from pydantic import Field

from pyspkv.base.config import Config, NotNegative, Positive


class LRScheduleConfig(Config):
    """Factor on the learning rate: linear warm-up from 0 to 1, then a fall to `final_factor` at the end."""

    name: Literal["cosine", "exponential", "constant"] = Field(
        "cosine",
        description="Shape of the fall after the warm-up. Use exponential to follow papers that multiply "
        "the rate by a constant every epoch, constant for none.",
    )
    warmup_epochs: NotNegative = Field(
        1.0,
        description="Epochs over which the rate rises from 0. Make it longer when the loss jumps in the "
        "first epoch.",
    )
    final_factor: NotNegative = Field(
        0.01,
        description="Factor at the last epoch (not used by constant). An exponential fall by 0.95 an epoch "
        "over 40 epochs is 0.95^40 = 0.1285.",
    )
    first_epochs: NotNegative = Field(
        0.0,
        description="Epochs of a phase of its own before all this: the rate falls from `first_factor` to "
        "`final_factor`, then starts anew. SSRL has 5, in which labels do not move.",
    )
    first_factor: Positive = Field(0.2, description="Factor at the start of that first phase.")


def lr_factor(config: LRScheduleConfig, epoch: float, epochs: float) -> float:
    """Factor on the base learning rate at `epoch` of `epochs` (both real numbers)."""
    if epoch < config.first_epochs:
        return _fall(config, epoch / config.first_epochs, config.first_factor)
    epoch, epochs = epoch - config.first_epochs, epochs - config.first_epochs
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    done = min(1.0, (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9))
    return _fall(config, done, 1.0)


def _fall(config: LRScheduleConfig, done: float, start: float) -> float:
    """From `start` to `final_factor` in the shape of the config, at the share `done` of it."""
    end = config.final_factor
    if config.name == "cosine":
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
    return start * (end / start) ** done if config.name == "exponential" else start


def ramp(epoch: float, start: float, end: float, low: float, high: float) -> float:
    """`low` before epoch `start`, `high` after `end`, linear in between; for margins and loss weights."""
    if epoch >= end:
        return high
    return low if epoch <= start else low + (high - low) * (epoch - start) / (end - start)


def cosine_ramp(epoch: float, epochs: float, low: float, high: float) -> float:
    """From `low` at epoch 0 to `high` at `epochs` along half a cosine; for EMA momentum (0.996 to 1)."""
    return high - (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
