"""Which unlabeled utterances a semi-supervised objective trains on: gates on the classifier's confidences.

q [U, K] are the probabilities of the weak view, without gradient; q_max and their argmax decide. Equation numbers are
those of GLL (Wang et al., IJCAI 2024). What a gate remembers are buffers, so it travels in the
checkpoint; a run that starts from another's weights starts with a new gate, unless it keeps its head and has the
same gate.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pyspkv.base.config import Config, NotNegative, Share, implements
from pyspkv.base.distributed import all_reduce_sum, gather_rows
from pyspkv.objectives.loss_gates import merge_rows


class AcceptAllConfig(Config):
    """Every utterance passes (GLL's phase T)."""

    name: Literal["all"] = "all"


class VerificationConfig(Config):
    """What the classifier predicts must be the pseudo-label (GLL's phase V)."""

    name: Literal["verification"] = "verification"


class FlexibleConfig(Config):
    """The confidence must pass a threshold that follows the confidences (GLL's phase L, eq. 5)."""

    name: Literal["flexible"] = "flexible"
    momentum: Share = Field(
        0.5,
        description="Momentum p of the threshold. Nearer to 1, the threshold follows more slowly and rejects fewer.",
    )
    mode: Literal["indicator", "mean_all"] = Field(
        "indicator",
        description="indicator: eq. 5 as printed, confidences below the threshold count as 0. mean_all: "
        "the authors' early code, the plain mean.",
    )


class FixedConfig(Config):
    """The confidence must reach a constant (FixMatch, Pseudo Label, GLL's phase F)."""

    name: Literal["fixed"] = "fixed"
    threshold: NotNegative = Field(
        0.95,
        description="Lowest confidence that passes. It depends on `confidence_scale`: with 1, confidences "
        "are near 1 / K for K classes.",
    )


class FlexMatchConfig(Config):
    """A threshold of its own for each class, lower for classes that are seldom sure (FlexMatch, Zhang et al. 2021)."""

    name: Literal["flexmatch"] = "flexmatch"
    threshold: Share = Field(
        0.95, description="Threshold of the class whose confidence is high most often (c). 0.95 in the paper."
    )


ConfidenceGateConfig = Annotated[
    AcceptAllConfig | VerificationConfig | FlexibleConfig | FixedConfig | FlexMatchConfig,
    Field(discriminator="name"),
]


@implements(AcceptAllConfig)
class AcceptAll(nn.Module):
    """Every utterance passes: GLL's stage T, whose threshold 1 / K is below any maximum of K probabilities. Base of
    the others.

    Kept for diagnostics against a truth file, float32 [N] by row, NaN = not seen this epoch: whether the utterance
    passed, and the class it was (or would have been) trained on.
    """

    kept: Tensor
    target: Tensor

    def __init__(self, config: Any, num_classes: int, num_rows: int, num_labeled: int):
        super().__init__()
        self.config, self.num_classes, self.num_unlabeled = config, num_classes, num_rows - num_labeled
        self.register_buffer("kept", torch.full((num_rows,), torch.nan))
        self.register_buffer("target", torch.full((num_rows,), torch.nan))
        self.last = self.kept.clone(), self.target.clone()  # of the epoch that ended

    @torch.no_grad()
    def forward(self, index: Tensor, q: Tensor, label: Tensor) -> Tensor:
        """Rows [U], probabilities [U, K], the labels that would be trained on [U] -> weights float32 [U], 0 or 1.

        The gate as it was before this batch decides; then it learns of the batch.
        """
        confidence, predicted = q.max(1)
        kept = self.passes(confidence, predicted, label).float()
        if self.training:
            self.learn(index, confidence, predicted)
            self.kept[index], self.target[index] = kept, label.float()
        return kept

    def passes(self, confidence: Tensor, predicted: Tensor, label: Tensor) -> Tensor:
        """q_max [U], argmax q [U], labels [U] -> bool [U]."""
        return torch.ones_like(label, dtype=torch.bool)

    def learn(self, index: Tensor, confidence: Tensor, predicted: Tensor) -> None:
        pass

    @property
    def threshold(self) -> float:
        """The required confidence, for the log; 1 / K if there is none."""
        return 1 / self.num_classes

    def sync(self) -> None:
        self.kept.copy_(merge_rows(self.kept))
        self.target.copy_(merge_rows(self.target))

    def end_epoch(self, epoch: int) -> dict[str, float]:
        self.sync()
        self.last = self.kept.clone(), self.target.clone()
        self.kept.fill_(torch.nan)
        self.target.fill_(torch.nan)
        return {"gate/threshold": self.threshold}

    def rows(self) -> dict[str, Tensor]:
        return dict(zip(("kept", "target"), self.last))


@implements(VerificationConfig)
class Verification(AcceptAll):
    """Label verification, GLL's stage V: the prediction is the label (eq. 4, second case; eq. 7)."""

    def passes(self, confidence: Tensor, predicted: Tensor, label: Tensor) -> Tensor:
        return predicted == label


@implements(FixedConfig)
class Fixed(AcceptAll):
    """q_max reaches a constant: FixMatch, Pseudo Label, GLL's fixed threshold."""

    @property
    def threshold(self) -> float:
        return self.config.threshold

    def passes(self, confidence: Tensor, predicted: Tensor, label: Tensor) -> Tensor:
        return confidence >= self.config.threshold


@implements(FlexibleConfig)
class Flexible(AcceptAll):
    """Flexible threshold, GLL's stage L: q_max > tau (eq. 4, first case; eq. 6), and tau follows q_max (eq. 5)."""

    tau: Tensor

    def __init__(self, config, num_classes: int, num_rows: int, num_labeled: int):
        super().__init__(config, num_classes, num_rows, num_labeled)
        self.register_buffer("tau", torch.tensor(1 / num_classes))  # tau_0

    @property
    def threshold(self) -> float:
        return self.tau.item()

    def passes(self, confidence: Tensor, predicted: Tensor, label: Tensor) -> Tensor:
        return confidence > self.tau

    def learn(self, index: Tensor, confidence: Tensor, predicted: Tensor) -> None:
        """Eq. 5: tau <- p tau + (1 - p) / (mu B) sum_j 1[q_max,j > tau] q_max,j over the unlabeled batch."""
        p = self.config.momentum
        counted = confidence
        if self.config.mode == "indicator":
            counted = confidence * (confidence > self.tau)
        total, num_rows = all_reduce_sum(
            torch.stack([counted.sum(), counted.new_tensor(float(len(counted)))])
        )
        self.tau.copy_(p * self.tau + (1 - p) * total / num_rows)


@implements(FlexMatchConfig)
class FlexMatch(AcceptAll):
    """FlexMatch (Zhang et al. 2021) with its warm-up: classes that are seldom sure ask for less.

    sigma_k counts the unlabeled utterances whose last sure prediction (q_max >= c) was class k, the rest were never
    sure; beta_k = sigma_k / max(max sigma, never sure); the class's threshold is c beta_k / (2 - beta_k).
    """

    sure: Tensor

    def __init__(self, config, num_classes: int, num_rows: int, num_labeled: int):
        super().__init__(config, num_classes, num_rows, num_labeled)
        self.register_buffer("sure", torch.full((num_rows,), -1, dtype=torch.int32))

    def thresholds(self) -> Tensor:
        """float32 [K]."""
        sigma = torch.bincount(self.sure[self.sure >= 0].long(), minlength=self.num_classes)
        beta = sigma / torch.maximum(sigma.max(), self.num_unlabeled - sigma.sum())
        return self.config.threshold * beta / (2 - beta)

    @property
    def threshold(self) -> float:
        return self.thresholds().mean().item()

    def passes(self, confidence: Tensor, predicted: Tensor, label: Tensor) -> Tensor:
        return confidence >= self.thresholds()[predicted]

    def learn(self, index: Tensor, confidence: Tensor, predicted: Tensor) -> None:
        sure = confidence >= self.config.threshold
        index, predicted = gather_rows(torch.stack([index[sure], predicted[sure]], 1)).T
        self.sure[index] = predicted.int()
