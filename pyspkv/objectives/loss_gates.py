"""Which pseudo-labels to believe, utterance by utterance, while training on them.

A gate is given each batch's losses and answers with weights in [0, 1]. What it remembers per utterance are buffers
[N] by row (NaN = unseen), so they travel in the checkpoint, a partial epoch included.
"""

import logging
import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pyspkv.base.config import Config, NotNegative, Positive, Share, implements
from pyspkv.base.distributed import all_reduce_sum, broadcast, rank

GMM_ROWS = 100_000  # a mixture in one dimension is fitted on at most this many values
log = logging.getLogger(__name__)


class NoGateConfig(Config):
    """Every label counts."""

    name: Literal["none"] = "none"


class LossGateConfig(Config):
    """Loss-gated learning (Tao et al. 2022): utterances with a loss above a fixed threshold do not count."""

    name: Literal["lgl"] = "lgl"
    threshold: float = Field(
        3.0,
        description="Highest loss that passes. It depends on `scale`, `margin` and the number of classes: "
        "read it off a histogram of losses.",
    )
    start_epoch: NotNegative = Field(
        3.0,
        description="The gate is open before this epoch. Choose it so that correct labels have been learnt by then.",
    )


class DynamicLossGateConfig(Config):
    """Dynamic loss gate with label correction (Han et al. 2022; arXiv 2406.02285): the threshold follows the losses."""

    name: Literal["dlg"] = "dlg"
    start_epoch: NotNegative = Field(
        4.0,
        description="The gate is open before this epoch. Choose it so that correct labels have been learnt by then.",
    )
    label_correction_epoch: NotNegative | None = Field(
        8.0,
        description="From this epoch on, a rejected utterance takes the label that the classifier is sure "
        "of; null: never. Later is safer.",
    )
    min_keep_ratio: Share = Field(
        0.0,
        description="A new threshold that would keep a lower share of the utterances is not taken. Use 0.3 "
        "in short runs, where the losses tell what is learnt from what is not yet.",
    )
    confidence: Share = Field(
        0.5,
        description="Lowest probability at which a label is corrected. Raise it when corrections are "
        "often wrong.",
    )
    temperature: Positive = Field(
        1.0,
        description="Of that probability, softmax(scale x cos / temperature). Above 1, fewer labels are "
        "corrected.",
    )


GateConfig = Annotated[NoGateConfig | LossGateConfig | DynamicLossGateConfig, Field(discriminator="name")]


@implements(NoGateConfig)
class Gate(nn.Module):
    """A gate that believes every label, and the base of the other gates."""

    def __init__(self, config: Any, num_rows: int):
        super().__init__()
        self.config = config

    def forward(self, index: Tensor, loss: Tensor, epoch: float) -> Tensor:
        """Rows [B], their losses [B] (detached), real-valued epoch -> weights [B]."""
        return torch.ones_like(loss)

    def corrects(self, epoch: float) -> bool:
        """Whether rejected utterances get the classifier's own prediction as label."""
        return False

    def sync(self) -> None:
        """Make what was observed equal on all ranks (before a checkpoint)."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called at the end of epoch `epoch`; returns what to log."""
        return {}

    def rows(self) -> dict[str, Tensor]:
        """After `end_epoch`: its arrays [N] worth keeping for diagnostics."""
        return {}


def merge_rows(values: Tensor) -> Tensor:
    """Join what the ranks observed, [N] each: the mean over the ranks that saw a row. NaN means that none has."""
    known = ~values.isnan()
    count = all_reduce_sum(known.float())
    return all_reduce_sum(torch.where(known, values, 0.0)) / torch.where(count > 0, count, torch.nan)


@implements(LossGateConfig)
class LossGate(Gate):
    """Loss-gated learning (Tao et al., ICASSP 2022): utterances count whose loss is at most a fixed threshold.

    The loss is the cross-entropy with margin. The training loss is the mean over the utterances that count.
    """

    loss: Tensor

    def __init__(self, config, num_rows: int):
        super().__init__(config, num_rows)
        self.register_buffer("loss", torch.full((num_rows,), torch.nan))
        self.last = self.loss.clone(), math.inf  # losses of the epoch that ended, and the threshold they met

    def threshold(self) -> float:
        return self.config.threshold

    def forward(self, index: Tensor, loss: Tensor, epoch: float) -> Tensor:
        self.loss[index] = loss.float()
        if epoch < self.config.start_epoch:
            return torch.ones_like(loss)
        return (loss <= self.threshold()).to(loss.dtype)

    def sync(self) -> None:
        self.loss.copy_(merge_rows(self.loss))

    def end_epoch(self, epoch: int) -> dict[str, float]:
        self.sync()
        self.last = self.loss.clone(), self.threshold() if epoch >= self.config.start_epoch else math.inf
        moved = self.follow(epoch)
        kept = (self.loss[~self.loss.isnan()] <= self.threshold()).float().mean().item()
        self.loss.fill_(torch.nan)
        return {**moved, "gate/below_threshold": kept}

    def follow(self, epoch: int) -> dict[str, float]:
        """Move the threshold by the losses of the epoch that ended; what to log of it."""
        return {}

    def rows(self) -> dict[str, Tensor]:
        """Whether the gate let each utterance through (NaN: not seen)."""
        loss, threshold = self.last
        return {"weight": torch.where(loss.isnan(), loss, (loss <= threshold).float())}


@implements(DynamicLossGateConfig)
class DynamicLossGate(LossGate):
    """DLG-LC (Han et al., Interspeech 2022; arXiv 2406.02285): the threshold follows the losses, rejected labels are
    corrected.

    After each epoch two Gaussians are fitted to its log losses. The threshold is where their weighted densities cross
    between the two means. The first fit is after the epoch before `start_epoch`. The threshold stays as it was (at
    first infinite) if the fit fails, if there is no crossing, or if the crossing would keep a share of the utterances
    below `min_keep_ratio`. In short runs and early epochs such a crossing tells what is learnt from what is not yet,
    rather than right labels from wrong ones. From `label_correction_epoch` on, a rejected utterance counts with the
    class that the classifier gives its clean crop, if its probability is above `confidence` and the class is not the
    rejected label again.
    """

    tau: Tensor

    def __init__(self, config, num_rows: int):
        super().__init__(config, num_rows)
        self.register_buffer("tau", torch.tensor(math.inf))  # of the raw loss

    def threshold(self) -> float:
        return self.tau.item()

    def corrects(self, epoch: float) -> bool:
        return self.config.label_correction_epoch is not None and epoch >= self.config.label_correction_epoch

    def follow(self, epoch: int) -> dict[str, float]:
        if epoch + 2 <= self.config.start_epoch:  # open throughout the next epoch, too
            return {"gate/tau": self.threshold()}
        if rank() == 0:
            losses = self.loss[~self.loss.isnan()].double().cpu().numpy()
            crossing = None
            if len(mixture := two_gaussians(np.log(np.maximum(losses, 1e-8)))):
                crossing = crossing_of(*mixture)
            if crossing is None:
                log.warning("gate: no crossing of two Gaussians in epoch %d; the threshold stays", epoch + 1)
            elif (kept := np.mean(np.log(np.maximum(losses, 1e-8)) <= crossing)) < self.config.min_keep_ratio:
                log.warning(
                    "gate: in epoch %d the crossing would keep %.0f %% of the labels; the threshold stays",
                    epoch + 1, 100 * kept,
                )  # fmt: skip
            else:
                self.tau.fill_(math.exp(crossing))
        broadcast(self.tau)
        return {"gate/tau": self.threshold()}


def two_gaussians(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fit a mixture of two Gaussians to values x [N]: weights, means and variances, [2] each, the lower mean first.

    The result is empty where nothing can be fitted: fewer than 10 values, all of them equal, or one not finite.
    """
    if len(x) < 10 or not np.isfinite(x).all() or np.ptp(x) < 1e-6:
        return ()
    from sklearn.mixture import GaussianMixture

    if len(x) > GMM_ROWS:
        x = np.random.default_rng(0).choice(x, GMM_ROWS, replace=False)
    fit = GaussianMixture(2, tol=1e-5, max_iter=1000, random_state=0).fit(x[:, None])
    order = np.argsort(fit.means_[:, 0])
    return fit.weights_[order], fit.means_[order, 0], fit.covariances_[order, 0, 0]


def crossing_of(w: np.ndarray, mu: np.ndarray, var: np.ndarray) -> float | None:
    """The x between the means at which w_1 N(x; mu_1, var_1) = w_2 N(x; mu_2, var_2); None if there is none.

    It is the threshold of arXiv 2406.02285's dynamic loss gate, in closed form.
    """
    a = 0.5 / var[1] - 0.5 / var[0]
    b = mu[0] / var[0] - mu[1] / var[1]
    c = (
        mu[1] ** 2 / (2 * var[1])
        - mu[0] ** 2 / (2 * var[0])
        + math.log(w[0] / w[1] * math.sqrt(var[1] / var[0]))
    )
    roots = np.roots([a, b, c]) if abs(a) > 1e-12 else np.array([-c / b]) if b else np.empty(0)
    between = [r.real for r in roots if abs(r.imag) < 1e-9 and mu[0] < r.real < mu[1]]
    return between[0] if len(between) == 1 else None
