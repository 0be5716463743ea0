"""Which pseudo-labels to believe, utterance by utterance, while training on them.

A gate is given each batch's losses and answers with weights in [0, 1]. What it remembers per utterance are buffers
[N] by row (NaN = unseen), so they travel in the checkpoint, a partial epoch included.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyspkv.distributed import all_sum


class Gate(nn.Module):
    """Believe every label. Base of the other gates."""

    @dataclass(kw_only=True)
    class Config:
        pass

    def __init__(self, config, num_rows: int):
        super().__init__()
        self.config = config

    def forward(self, index: Tensor, loss: Tensor, epoch: float) -> Tensor:
        """Rows [B], their losses [B] (detached), real-valued epoch -> weights [B]."""
        return torch.ones_like(loss)

    def sync(self) -> None:
        """Make what was observed equal on all ranks (before a checkpoint)."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called once all of epoch `epoch` was seen; returns what to log."""
        return {}


def merge_rows(values: Tensor) -> Tensor:
    """Join what the ranks observed: [N] with NaN where a rank saw nothing -> the mean of those that did."""
    seen = ~values.isnan()
    count = all_sum(seen.float())
    return all_sum(values.nan_to_num(0.0)) / torch.where(count > 0, count, torch.nan)


class LossGate(Gate):
    """Loss-gated learning (Tao et al., ICASSP 2022): keep utterances whose loss is at most a fixed threshold.

    The loss is the raw cross-entropy with margin, and the kept ones are averaged among themselves.
    """

    @dataclass(kw_only=True)
    class Config:
        threshold: float = 3.0
        start_epoch: float = 3.0  # the gate is open before

    def __init__(self, config, num_rows: int):
        super().__init__(config, num_rows)
        self.register_buffer("loss", torch.full((num_rows,), torch.nan))

    def forward(self, index: Tensor, loss: Tensor, epoch: float) -> Tensor:
        self.loss[index] = loss.float()
        if epoch < self.config.start_epoch:
            return torch.ones_like(loss)
        return (loss <= self.config.threshold).to(loss.dtype)

    def sync(self) -> None:
        self.loss.copy_(merge_rows(self.loss))

    def end_epoch(self, epoch: int) -> dict[str, float]:
        self.sync()
        kept = (self.loss[~self.loss.isnan()] <= self.config.threshold).float().mean().item()
        self.loss.fill_(torch.nan)
        return {"gate/below_threshold": kept}
