"""Utterances of one dialogue attract, those of other devices repel: arXiv 2202.03484, with soft rejection.

Cekic et al., "Self-supervised Speaker Recognition Training Using Human-Machine Dialogues", ICASSP 2022, trains on
unlabeled dialogues as if each had one speaker, and lowers the loss of those whose utterances lie apart (compactness).
The paper's formulas for compactness and weight were not to be found: `compactness` and `rejection` hold those of the
project's own, the first being the default. A directory without utt2dialogue gives GE2E and the others on its speakers.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig
from pyspkv.base.config import Config, Epochs, NotNegative, Positive, Seconds, implements
from pyspkv.base.distributed import gather, rank
from pyspkv.base.errors import UserError
from pyspkv.base.schedules import ramp
from pyspkv.batches.dataset import LABELED, Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.models.norm import BatchNorm
from pyspkv.objectives.base import Losses, Objective, RunInfo, spread

ALARM = 0.3  # effective share of the dialogues below which an epoch is reported


class RejectConfig(Config):
    """How dialogues whose utterances lie apart weigh less; see `rejection` for the formulas."""

    kind: Literal["none", "power", "adaptive", "sigmoid", "softmax", "oracle"] = Field(
        "none",
        description="Form of the weight. power where many dialogues have two speakers, adaptive where "
        "their share is unknown. oracle: weight 0 by the true labels, as a bound to compare with.",
    )
    compactness: Literal["pairwise", "centroid", "length"] = Field(
        "pairwise",
        description="How alike the utterances of a dialogue are: mean cosine of two, mean cosine to the "
        "mean of the others, or length of the mean (to be compared at one number of utterances only).",
    )
    gamma: Positive = Field(2.0, description="power: the exponent. Higher rejects more.")
    slope: Positive = Field(
        13.0,
        description="adaptive: the exponent by the deviation of compactness; it is 2 where that deviation "
        "is 0.15.",
    )
    tau: Positive = Field(
        0.25,
        description="sigmoid: width of the step in deviations. 0.25 with beta 1 is sharp, 0.5 with 0.5 mild.",
    )
    beta: float = Field(1.0, description="sigmoid: shift of the step. Higher rejects less.")
    temperature: Positive = Field(0.2, description="softmax: lower rejects more.")
    warmup_epochs: Epochs = Field(
        (5.0, 10.0),
        description="All weights are 1 until the first epoch and full from the second. Compactness means "
        "nothing before the encoder has learnt.",
    )
    normalize: bool = Field(
        True, description="Scale the weights to mean 1, so that steps are as large as without rejection."
    )
    downweight_negatives: bool = Field(
        False, description="Rejected dialogues also count less as negatives of other dialogues."
    )


class DialogueConfig(Config):
    """Utterances of a dialogue attract, those of other devices repel (arXiv 2202.03484); GE2E on labeled speakers."""

    name: Literal["dialogue"] = "dialogue"
    loss: Literal["ava", "aproto", "ge2e"] = Field(
        "ava",
        description="ava: all pairs against all (arXiv 2202.03484). aproto: angular prototypical (Chung et "
        "al. 2020). ge2e: against centroids (Wan et al. 2018), usual for labeled speakers.",
    )
    crop_seconds: Seconds = Field(
        2.0,
        description="Length of a training crop. Longer crops help with long test utterances but take more time.",
    )
    augment: bool = Field(
        True,
        description="Augment the crops, drawn for each utterance, so that a dialogue's room and device are "
        "no clue.",
    )
    spec_augment: SpecAugmentConfig = Field(
        SpecAugmentConfig(),
        description="Time and frequency masks on the features (SpecAugment). Off by default.",
    )
    scale: float = Field(
        10.0,
        gt=0,
        le=100,
        description="Start of the learnt factor w on the cosines. The papers' bias cancels in all three "
        "losses.",
    )
    reject: RejectConfig = Field(
        RejectConfig(), description="Weights that reject dialogues with more than one speaker."
    )
    labeled_loss: Literal["ava", "aproto", "ge2e"] = Field(
        "ge2e", description="Loss of the labeled part, if there is also an unlabeled one."
    )
    labeled_weight: NotNegative = Field(1.0, description="Weight of that loss.")
    freeze_batchnorm_stats: bool = Field(
        False,
        description="Keep the BatchNorm statistics that the encoder came with. Set it for fine-tuning on a "
        "few speakers, whose statistics differ.",
    )


# In the losses e [n, M, D] are unit vectors of this rank's n dialogues, e_all [N, M, D] those of all ranks; against
# [n, N] is the logarithm of how much dialogue k repels dialogue j: -inf for itself and all of its device, else 0, or
# what rejection leaves of k. Each returns l_j, [n].


def ge2e(e: Tensor, e_all: Tensor, against: Tensor, w: Tensor) -> Tensor:
    """GE2E, softmax form (Wan et al. 2018, eqs. 5, 6, 8, 9): every utterance against all centroids, its own without it.

    S_jik = w cos(e_ji, c_k), S_jij = w cos(e_ji, c_j(-i)); l_ji = -S_jij + log sum_k exp S_jik; l_j = mean_i l_ji.
    """
    centroid = F.normalize(e_all.mean(1), dim=-1)
    without = F.normalize(e.sum(1, keepdim=True) - e, dim=-1)  # c_j(-i), [n, M, D]
    positive = w * (e * without).sum(-1)
    other = w * (e @ centroid.T) + against[:, None]  # [n, M, N]
    return (torch.logaddexp(positive, other.logsumexp(-1)) - positive).mean(1)


def angular_proto(e: Tensor, e_all: Tensor, against: Tensor, w: Tensor) -> Tensor:
    """Angular prototypical (Chung et al. 2020): the first utterance against the mean of each dialogue's others.

    S_jk = w cos(q_j, p_k); l_j = -S_jj + log sum_k exp S_jk. The sampler draws in random order: any one may be first.
    """
    query = e[:, 0]
    positive = w * (query * F.normalize(e[:, 1:].mean(1), dim=-1)).sum(-1)
    other = w * (query @ F.normalize(e_all[:, 1:].mean(1), dim=-1).T) + against
    return torch.logaddexp(positive, other.logsumexp(-1)) - positive


def all_versus_all(e: Tensor, e_all: Tensor, against: Tensor, w: Tensor) -> Tensor:
    """AvA: every pair of a dialogue against all utterances of the others, no centroid: our form of arXiv 2202.03484's.

    G = w e e^T; l_a = mean over the positives p of -G_ap + log(exp G_ap + sum over negatives n of exp G_an).
    """
    n, m, _ = e.shape
    other = w * torch.einsum("jid,kld->jikl", e, e_all) + against[:, None, :, None]  # [n, M, N, M]
    negatives = other.flatten(2).logsumexp(-1)  # [n, M]
    positive = w * (e @ e.mT)  # [n, M, M]
    pair = torch.logaddexp(positive, negatives[..., None]) - positive
    return pair.masked_fill(torch.eye(m, dtype=torch.bool, device=e.device), 0).sum((1, 2)) / (m * (m - 1))


LOSSES = {"ge2e": ge2e, "aproto": angular_proto, "ava": all_versus_all}


def compactness(e: Tensor, kind: str = "pairwise") -> Tensor:
    """c_j in [-1, 1] of dialogues of M unit vectors, [n, M, D] -> [n]; never with a gradient.

    pairwise: mean cosine of two utterances, (M^2 |mean|^2 - M) / (M (M - 1)). centroid: mean cosine to the mean of the
    others. length: |mean|, which grows as M shrinks, so compare it at one M only.
    """
    e, m = e.detach(), e.shape[1]
    if kind == "pairwise":
        return (e.sum(1).square().sum(-1) - m) / (m * (m - 1))
    if kind == "centroid":
        return (e * F.normalize(e.sum(1, keepdim=True) - e, dim=-1)).sum(-1).mean(1)
    return e.mean(1).norm(dim=-1)


def rejection(c: Tensor, config: RejectConfig, mean: Tensor, std: Tensor) -> Tensor:
    """Weights w_j [N] of all dialogues of a batch with compactness c [N]; mean, std: running ones.

    power: u = max(c, 0)^gamma; adaptive: u = max(c, 0)^(slope std), so mild where dialogues are as alike as clean ones
    and the sharper the farther they come apart; sigmoid: u = sigmoid((c - mean) / (tau std) + beta);
    softmax: u = N softmax(c / T). Normalized: w = N u / sum u. Where all are rejected, none is.
    """
    if config.kind == "power":
        u = c.clamp_min(0).pow(config.gamma)
    elif config.kind == "adaptive":
        u = c.clamp_min(0).pow(config.slope * std)
    elif config.kind == "sigmoid":
        u = torch.sigmoid((c - mean) / (config.tau * std.clamp_min(1e-6)) + config.beta)
    elif config.kind == "softmax":
        u = len(c) * (c / config.temperature).softmax(0)
    else:
        u = torch.ones_like(c)
    return normalized(u) if config.normalize else u


def normalized(u: Tensor) -> Tensor:
    """Scale u [N] >= 0 to mean 1. Where all of u are next to 0, the result is all ones."""
    total = u.sum()
    return torch.where(total > 1e-30, len(u) * u / total.clamp_min(1e-30), torch.ones_like(u))


def warn_of_rejection(c: RejectConfig, epochs: int) -> None:
    """Print a warning if rejection never begins in these epochs."""
    first, last = c.warmup_epochs
    if c.kind != "none" and first >= epochs and rank() == 0:
        print(
            f"warning: objective.reject.warmup_epochs {[first, last]}: nothing is rejected in epochs {epochs}"
        )


@implements(DialogueConfig)
class Dialogue(Objective):
    """One of three losses over the dialogues of a batch, weighted by compactness; labeled speakers beside them."""

    supports_speed_perturb = False

    running: Tensor
    effective: Tensor

    def __init__(self, config: DialogueConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        warn_of_rejection(config.reject, info.epochs)
        self.config = config
        reject = config.reject
        if reject.kind == "oracle" and info.num_classes == info.num_rows:
            raise UserError(
                "the oracle needs true speakers, but here every utterance has a speaker of its own",
                hint="use the simulated corpus with labels (train_labeled), or another objective.reject.kind",
            )
        self.log_w = nn.Parameter(torch.tensor(config.scale).log())
        # Running mean and deviation of compactness over batches, and whether they have begun.
        self.register_buffer("running", torch.tensor([0.0, 1.0, 0.0]))
        # Sum over this epoch's steps of the effective share, and their number.
        self.register_buffer("effective", torch.zeros(2, dtype=torch.float64))

    def train(self, training: bool = True) -> "Dialogue":
        super().train(training)
        if self.config.freeze_batchnorm_stats:
            for module in self.encoder.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    def views(self) -> dict[str, View]:
        return {"main": View(self.config.crop_seconds, augment=self.config.augment)}

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        unit = F.normalize(self.encode(batch.views["main"], c.spec_augment), dim=-1)
        with torch.autocast(unit.device.type, enabled=False):
            m = per_dialogue(batch.group)
            e, device = unit.unflatten(0, (-1, m)), batch.device[::m]
            truth = (batch.label.view(-1, m) == batch.label[::m, None]).all(1)  # read by the oracle alone
            losses = Losses({}, spread=spread(unit))
            labeled = batch.source[::m] == LABELED
            if not labeled.all():  # a labeled part beside an unlabeled one has a loss of its own
                if labeled.any():
                    loss = self.losses(c.labeled_loss, e[labeled], device[labeled])
                    losses.terms["labeled"] = (c.labeled_weight * loss.sum(), len(loss))
                e, device, truth = (x[~labeled] for x in (e, device, truth))
            self.unlabeled(e, device, truth, losses)
        return losses

    def losses(self, name: str, e: Tensor, device: Tensor, repel: Tensor | None = None) -> Tensor:
        """l_j [n] of this rank's dialogues against those of all ranks, which repel by their weights repel [N], or 1."""
        negative = device[:, None] != gather(device)
        if not negative.any(1).all():
            raise UserError(
                "all dialogues of a batch are from one device, so there are no negatives",
                hint="use sampler: dialogues",
            )
        log_weight = e.new_zeros(()) if repel is None else repel.clamp_min(1e-4).log()
        against = torch.where(negative, log_weight, -torch.inf)
        return LOSSES[name](e, gather(e.contiguous()), against, self.log_w.exp().clamp_max(100.0))

    def unlabeled(self, e: Tensor, device: Tensor, truth: Tensor, losses: Losses) -> None:
        """The dialogues' weighted loss and what is logged of it."""
        c, n = self.config, len(e)
        compact = gather(compactness(e, c.reject.compactness))
        w = self.weights(compact, gather(truth.float()))
        weight = w[rank() * n :][:n]  # of this rank's dialogues
        loss = self.losses(c.loss, e, device, w if c.reject.downweight_negatives else None)
        losses.terms[c.loss] = ((weight * loss).sum(), n)
        # Effective sample size, as a share of the dialogues.
        share = w.sum().square() / (w.square().sum() * len(w)).clamp_min(1e-12)
        if self.training:
            self.effective += torch.stack([share, torch.ones_like(share)])
        losses.stats |= {
            "compactness": (compact.sum() * n / len(w), n),
            "compactness_std": (compact.std(correction=0) * n, n),
            "effective": (share * n, n),
            "rejected": ((weight < 0.1).float().sum(), n),
            "weight": (weight.sum(), n),
            "scale": (self.log_w.detach().exp() * n, n),
        }

    @torch.no_grad()
    def weights(self, compact: Tensor, truth: Tensor) -> Tensor:
        """Weights w [N] of all ranks' dialogues: 1 before the warm-up, then on a ramp to those of the rejection."""
        reject = self.config.reject
        if self.training:
            now = torch.stack([compact.mean(), compact.std(correction=0)])
            mean_std = 0.9 * self.running[:2] + 0.1 * now if self.running[2] else now
            self.running.copy_(torch.cat([mean_std, torch.ones_like(now[:1])]))
        full = normalized(truth) if reject.kind == "oracle" else rejection(compact, reject, *self.running[:2])
        share = ramp(self.epoch_now, *reject.warmup_epochs, 0.0, 1.0)
        return torch.lerp(torch.ones_like(full), full, share)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        total, steps = self.effective.tolist()
        self.effective.zero_()
        share = total / max(steps, 1)
        if share >= ALARM:
            return {}
        if rank() == 0:
            print(
                f"warning: epoch {epoch + 1}: the weights leave an effective {100 * share:.0f} % of the dialogues "
                f"(alarm below {100 * ALARM:.0f} %): lower objective.reject.gamma or use a longer warm-up"
            )
        return {"effective_alarm": 1.0}


def per_dialogue(group: Tensor) -> int:
    """How many utterances M each dialogue of a batch has; they stand side by side in group int64 [B]."""
    m = int((group == group[0]).sum())
    if m < 2 or len(group) % m or not bool((group.view(-1, m) == group[::m, None]).all()):
        raise UserError(
            "objective dialogue needs at least two utterances of each dialogue in a batch",
            hint="use sampler: dialogues",
        )
    return m
