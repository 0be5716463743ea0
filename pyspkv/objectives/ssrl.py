"""SSRL, self-supervised reflective learning (Cai et al., arXiv 2401.01473): labels move while a student learns them.

The student learns each utterance's pseudo-label on short augmented crops; the teacher, its moving average, labels a
long clean crop with its classifier over the classes that are alive. A queue of the last votes gives the label by its
mode, a mixture of two Gaussians on the teacher's log loss the weight. Written from the equations of arXiv
2401.01473; where the released code differs for no good reason, `match_released_code` follows it.
"""

import logging
from copy import deepcopy
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig
from pyspkv.base.config import Config, Count, NotNegative, Seconds, Share, implements
from pyspkv.base.distributed import all_reduce_sum, broadcast, gather, rank
from pyspkv.batches.dataset import Batch, View
from pyspkv.clustering.vectors import whitening
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.aam import margin_logits
from pyspkv.objectives.base import Losses, Objective, RunInfo, class_sums, ema, spread
from pyspkv.objectives.loss_gates import merge_rows, two_gaussians

CHUNK = 1 << 16  # rows at once in the bookkeeping
START_STEPS = 10  # of 2-means in every class, before the first epoch
WHITEN = 0.5  # power: channels take the first axes of embeddings, where speakers should part
log = logging.getLogger(__name__)


class SSRLConfig(Config):
    """Self-supervised reflective learning (arXiv 2401.01473): the teacher corrects labels while the student learns."""

    name: Literal["ssrl"] = "ssrl"
    student_seconds: Seconds = Field(
        2.0, description="Length of the student's augmented crop (2 s in the paper)."
    )
    teacher_seconds: Seconds = Field(
        6.0,
        description="Length of the teacher's clean crop (6 s in the paper). Not longer than most utterances.",
    )
    spec_augment: SpecAugmentConfig = Field(
        SpecAugmentConfig(),
        description="Time and frequency masks on the features (SpecAugment). Off by default.",
    )
    head: Literal["aam", "linear"] = Field(
        "aam", description="Classifier: cosine with margin, or a linear layer with bias after dropout."
    )
    scale: float = Field(32.0, gt=0, description="aam: factor on the cosines before the softmax.")
    margin: float = Field(
        0.2, ge=0, lt=1.6, description="aam: angular margin in radians, of the student alone."
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="linear: dropout before the layer.")
    fixed_epochs: int = Field(
        5,
        ge=0,
        le=10**6,
        description="Epochs in which labels do not change (5 in the paper). The student must have "
        "learnt them first.",
    )
    queue_length: Count = Field(
        5,
        description="Votes of the teacher that are kept for each utterance; their mode is the label (5 in the "
        "paper).",
    )
    ema_momentum: tuple[Share, Share] = Field(
        (0.999, 0.9999),
        description="Momentum of the teacher a step, from the start of the run to its end, linear in the steps "
        "(as released). For thousands of steps: with 0.999 the teacher follows over 1000 of them.",
    )
    ema_epochs: tuple[NotNegative, NotNegative] | None = Field(
        None,
        description="In place of ema_momentum: epochs over which the teacher forgets, from the start of the "
        "run to its end; the momentum is 1 - 1 / (this x steps an epoch). Use [0.44, 4.4] for small corpora.",
    )
    noise_model: bool = Field(
        True,
        description="Weigh utterances by a mixture of two Gaussians on the teacher's losses. Off: all "
        "weigh the same.",
    )
    sinkhorn_iterations: int = Field(
        0,
        ge=0,
        le=1000,
        description="Sinkhorn iterations that balance the votes of a batch over the classes. 0: plain argmax.",
    )
    merge_ratio: NotNegative = Field(
        0.0,
        description="Two classes become one when their members are this alike across, as a ratio to how "
        "alike they are within. 0: never (the paper); 0.7 when there are too many clusters.",
    )
    split_ratio: NotNegative = Field(
        0.0,
        description="A class becomes two when its halves are less alike across than this ratio to how "
        "alike they are within. 0: never (the paper); 0.65 when there are too few clusters.",
    )
    min_cluster_size: int = Field(
        0, ge=0, description="Members of smaller classes go to the nearest class. 0: never (the paper)."
    )
    match_released_code: bool = Field(
        False,
        description="Follow the authors' released code: the margin on the current label in the teacher's "
        "vote and loss.",
    )


class Classifier(nn.Module):
    """Embeddings [B, D] to logits [B, K]: the cosine times the scale (aam), or a linear layer after dropout."""

    def __init__(self, dim: int, classes: int, c: SSRLConfig):
        super().__init__()
        self.config = c
        self.weight = nn.Parameter(torch.empty(classes, dim))
        nn.init.xavier_normal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(classes)) if c.head == "linear" else None

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """With `label` [B], its margin is subtracted (aam)."""
        c = self.config
        if c.head == "linear":
            return F.linear(F.dropout(z, c.dropout, self.training), self.weight, self.bias)
        cos = F.linear(F.normalize(z), F.normalize(self.weight))
        return c.scale * (cos if label is None else margin_logits(cos, label, c.margin))


def mode(queue: Tensor) -> Tensor:
    """The most frequent entry of each row of `queue`, int [N, L]. Of tied entries the oldest wins.

    -1 stands for an empty place and does not count; a row of empty places gives -1.
    """
    out = []
    for q in queue.split(CHUNK):
        counts = (q[:, :, None] == q[:, None]).sum(2)
        counts = counts.masked_fill(q < 0, 0)
        out.append(q.gather(1, counts.argmax(1, keepdim=True))[:, 0])
    return torch.cat(out)


def sinkhorn(p: Tensor, iterations: int, eps: float = 0.05) -> Tensor:
    """Even out probabilities p [B, K] over the classes: `iterations` times scale the columns to sum to 1 / K, then the
    rows to sum to 1 / B."""
    q = (p / eps).exp()
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-12) / q.shape[1]
        q = q / q.sum(1, keepdim=True).clamp_min(1e-12) / q.shape[0]
    return q


def inner(s: Tensor, n: Tensor) -> Tensor:
    """Mean cosine of pairs of different vectors among n unit vectors whose sum is s: [..., D], [...] -> [...]."""
    return (s.square().sum(-1) - n) / (n * (n - 1)).clamp_min(1)


@implements(SSRLConfig)
class SSRL(Objective):
    """Student and teacher, and what is known of each utterance.

    That is its label, its queue of L votes, its last vote and its side (int32), its loss and its weight (float32):
    20 + 4 L bytes an utterance.
    """

    eval_module = "teacher"
    needs_initial_embeddings = True
    supports_speed_perturb = supports_unlabeled = False
    needs_speakers = True

    label: Tensor
    queue: Tensor
    vote: Tensor
    side: Tensor
    loss: Tensor
    weight: Tensor
    dead: Tensor
    moments: Tensor
    seen: Tensor
    sums: Tensor
    whitened_sums: Tensor
    centers: Tensor
    mean: Tensor
    axes: Tensor

    def __init__(self, config: SSRLConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        self.config = c = config
        self.classifier = Classifier(encoder.embed_dim, info.num_classes, c)
        self.teacher, self.teacher_classifier = deepcopy(encoder), deepcopy(self.classifier)
        self.teacher.requires_grad_(False)
        self.teacher_classifier.requires_grad_(False)
        n = info.num_rows
        self.register_buffer("label", torch.full((n,), -1, dtype=torch.int32))
        self.register_buffer("queue", torch.full((n, c.queue_length), -1, dtype=torch.int32))
        self.register_buffer("vote", torch.full((n,), -1, dtype=torch.int32))
        self.register_buffer("side", torch.full((n,), -1, dtype=torch.int32))  # half of its class, this epoch
        self.register_buffer("loss", torch.full((n,), torch.nan))
        self.register_buffer("weight", torch.ones(n))
        self.register_buffer("dead", torch.zeros(info.num_classes, dtype=torch.bool))
        # The teacher's embeddings of this epoch: sums of (1, z) (1, z)^T, and by class and half their number and their
        # sums, as they are and whitened; the halves' centers of the epoch before.
        k, d = info.num_classes, encoder.embed_dim
        self.register_buffer("moments", torch.zeros(d + 1, d + 1))
        self.register_buffer("seen", torch.zeros(k, 2))
        self.register_buffer("sums", torch.zeros(k, 2, d))
        self.register_buffer("whitened_sums", torch.zeros(k, 2, d))
        self.register_buffer("centers", torch.zeros(k, 2, d))
        # x -> (x - mean) axes, of the epoch before
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("axes", torch.eye(d))

    def init_from_embeddings(self, embeddings: Tensor, label: Tensor) -> None:
        """Labels [N] of the data directory; prototypes = mean embeddings [N, D] of the start encoder, by label.

        The queue is seeded with floor(L / 2) copies of the label.
        """
        c = self.config
        unit, sums = F.normalize(embeddings), class_sums(embeddings, label, self.info.num_classes)
        with torch.no_grad():
            for classifier in (self.classifier, self.teacher_classifier):
                classifier.weight.copy_(F.normalize(sums))
        if self.unites:
            for chunk in unit.split(CHUNK):
                self.add_moments(chunk)
            self.rewhiten()
        if c.split_ratio:
            size = torch.bincount(label, minlength=len(sums))[:, None]
            self.reseed(torch.arange(len(sums), device=sums.device), sums / size.clamp_min(1))
            for _ in range(START_STEPS):
                for rows in torch.arange(len(unit), device=unit.device).split(CHUNK):
                    self.tally(label[rows], unit[rows])
                self.recenter()
                self.clear()
        self.label.copy_(label)
        self.queue[:, c.queue_length - c.queue_length // 2 :] = label[:, None].int()
        self.dead.copy_(torch.bincount(label, minlength=self.info.num_classes) == 0)

    def labels(self) -> Tensor:
        return self.label.long()

    def rows(self) -> dict[str, Tensor]:
        return {"label": self.label, "weight": self.weight}

    def train(self, training: bool = True) -> "SSRL":
        super().train(training)
        self.teacher.eval()
        self.teacher_classifier.eval()
        return self

    def views(self) -> dict[str, View]:
        c = self.config
        return {"student": View(c.student_seconds, augment=True), "teacher": View(c.teacher_seconds)}

    @property
    def votes(self) -> bool:
        """Whether the teacher votes already. It begins so early that the queues are full at the first update."""
        return self.epoch_now >= self.config.fixed_epochs - (self.config.queue_length // 2 + 1)

    @property
    def unites(self) -> bool:
        """Whether any of the extensions is on: classes merge, divide, or give up their members where they are small."""
        return bool(self.config.merge_ratio or self.config.split_ratio or self.config.min_cluster_size)

    @property
    def updates(self) -> bool:
        """Whether this epoch ends with new labels."""
        return int(self.epoch_now) + 1 >= self.config.fixed_epochs

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        label, weight = self.label[batch.index].long(), self.weight[batch.index]
        embedding = self.encode(batch.views["student"], c.spec_augment)
        with torch.autocast(embedding.device.type, enabled=False):
            logits = self.classifier(embedding.float(), label).masked_fill(self.dead, -1e4)
            loss = F.cross_entropy(logits, label, reduction="none")
        voting = self.training and self.votes
        if voting:
            self.reflect(batch, label)
        right = (logits.detach().argmax(1) == label).float()
        return Losses(
            {"reflective": ((weight * loss).sum(), weight.sum())},
            {"accuracy": (right.sum(), len(label))},
            spread(F.normalize(embedding)),
            {"teacher": len(label) if voting else 0},
        )

    @torch.no_grad()
    def reflect(self, batch: Batch, label: Tensor) -> None:
        """The teacher's vote k_i and loss l_i = CE(teacher, label that the vote would give)."""
        c = self.config
        z = self.teacher(*batch.views["teacher"]).float()
        with torch.autocast(z.device.type, enabled=False):
            logits = self.teacher_classifier(z, label if c.match_released_code else None).masked_fill(
                self.dead, -1e4
            )
        vote = logits.argmax(1)
        if c.sinkhorn_iterations:  # evenly over the classes that are alive
            alive = torch.nonzero(~self.dead)[:, 0]
            vote = alive[sinkhorn(logits[:, alive].softmax(1), c.sinkhorn_iterations).argmax(1)]
        target = vote
        if self.updates:
            queue = torch.cat([self.queue[batch.index, 1:], vote[:, None].int()], 1)
            target = mode(self.alive(queue)).long()
        self.vote[batch.index] = vote.int()
        self.loss[batch.index] = F.cross_entropy(logits, target, reduction="none")
        if self.unites:
            unit, this_rank = gather(F.normalize(z)), slice(rank() * len(z), (rank() + 1) * len(z))
            with torch.autocast(z.device.type, enabled=False):
                self.add_moments(unit)
                self.side[batch.index] = self.tally(gather(label), unit)[this_rank]

    def add_moments(self, unit: Tensor) -> None:
        one_unit = torch.cat([torch.ones_like(unit[:, :1]), unit], 1)
        self.moments += one_unit.T @ one_unit

    def tally(self, label: Tensor, unit: Tensor) -> Tensor:
        """Add each of the unit vectors [B, D] to the sum of its class's nearer half; which half that is, int32 [B]."""
        white = self.whiten(unit)
        side = (self.whiten(self.centers[label]) @ white[:, :, None])[..., 0].argmax(1)
        half = 2 * label + side
        self.seen.view(-1).index_add_(0, half, torch.ones_like(half, dtype=self.seen.dtype))
        self.sums.flatten(0, 1).index_add_(0, half, unit)
        self.whitened_sums.flatten(0, 1).index_add_(0, half, white)
        return side.int()

    def clear(self) -> None:
        for sums in (self.seen, self.sums, self.whitened_sums):
            sums.zero_()

    def whiten(self, x: Tensor) -> Tensor:
        return F.normalize((x - self.mean) @ self.axes, dim=-1)

    def reseed(self, classes: Tensor, mean: Tensor) -> None:
        """Halves of `classes` begin on both sides of their means [n, D], in a direction that the coming epochs turn."""
        generator = torch.Generator().manual_seed(0)
        step = 0.1 * F.normalize(torch.randn(mean.shape[1], generator=generator), dim=0).to(mean)
        self.centers[classes] = torch.stack([mean + step, mean - step], 1)

    def recenter(self) -> None:
        """Move the center of each half to the mean of this epoch's members: a step of 2-means in every class."""
        classes = torch.nonzero(self.seen.sum(1) > 0)[:, 0]
        n, sums = self.seen[classes], self.sums[classes]
        self.centers[classes] = sums / n[..., None].clamp_min(1)
        empty = (n == 0).any(1)
        self.reseed(classes[empty], (sums.sum(1) / n.sum(1, keepdim=True))[empty])

    def rewhiten(self) -> None:
        """Compute mean and axes from the moments; the axes whiten with half power, as for the first clusters."""
        if self.moments[0, 0] > 0:
            m = (self.moments / self.moments[0, 0]).double().cpu().numpy()
            self.mean.copy_(torch.from_numpy(m[0, 1:]))
            self.axes.copy_(torch.from_numpy(whitening(m[1:, 1:] - np.outer(m[0, 1:], m[0, 1:]), WHITEN)))
            self.moments.zero_()

    def alive(self, queue: Tensor) -> Tensor:
        """The queue with an empty place (-1) for each vote for a dead class."""
        return torch.where((queue >= 0) & ~self.dead[queue.clamp_min(0).long()], queue, -1)

    def after_step(self) -> None:
        c, steps, done = self.config, self.info.steps_per_epoch, min(1.0, self.epoch_now / self.info.epochs)
        low, high = c.ema_epochs or c.ema_momentum
        a = low + (high - low) * done
        if c.ema_epochs:
            a = 1 - 1 / max(1.0, steps * a)
        pairs = ((self.teacher, self.encoder), (self.teacher_classifier, self.classifier))
        with torch.no_grad():
            for teacher, student in pairs:
                ema(teacher, student, a)
                for old, new in zip(teacher.buffers(), student.buffers()):
                    old.lerp_(new, 1 - a) if old.is_floating_point() else old.copy_(new)

    def sync(self) -> None:
        self.loss.copy_(merge_rows(self.loss))
        for rows in (self.vote, self.side):
            known = rows >= 0  # the ranks that know a row's vote agree on it
            total, count = all_reduce_sum(torch.where(known, rows, 0).long()), all_reduce_sum(known.long())
            rows.copy_(torch.where(count > 0, total // count.clamp_min(1), -1))

    def end_epoch(self, epoch: int) -> dict[str, float]:
        c = self.config
        self.sync()
        voted = self.vote >= 0
        self.queue[voted] = torch.cat([self.queue[voted, 1:], self.vote[voted, None]], 1)
        if c.split_ratio:
            self.recenter()
        changed, divided = 0.0, 0
        if epoch + 1 >= c.fixed_epochs:
            before = self.label.clone()
            voted_label = mode(self.alive(self.queue))
            self.label.copy_(torch.where(voted_label >= 0, voted_label, before))
            divided = self.unite_and_divide(before)
            changed = (self.label != before).float().mean().item()
        if voted.any() and c.noise_model:
            self.weight.copy_(self.weights())
        self.vote.fill_(-1)
        self.side.fill_(-1)
        self.loss.fill_(torch.nan)
        self.clear()
        self.rewhiten()
        size = torch.bincount(self.label.long(), minlength=self.info.num_classes)
        self.dead.copy_(size == 0)
        share = size[size > 0] / size.sum()
        return {
            "labels/live": float((size > 0).sum()),
            "labels/effective": (-(share * share.log()).sum()).exp().item(),
            "labels/flipped": changed,
            "labels/divided": float(divided),
            "labels/weight": self.weight.mean().item(),
        }

    def unite_and_divide(self, before: Tensor) -> int:
        """Classes whose members are as alike across as within become the larger of the two; classes below
        `min_cluster_size` go to the nearest; a class whose halves are not alike becomes two. Returns how many did so.
        `before` int [N]: the epoch's labels, which its sums of whitened embeddings are of. Needs no true label and no
        scale:

        mean cosine of pairs across / average of the two mean cosines of pairs within > merge, or < split. Only classes
        that are each other's best partner unite, so that an epoch builds no chains.
        """
        c, classes = self.config, self.info.num_classes
        size = torch.bincount(self.label.long(), minlength=classes)
        live = torch.nonzero((size > 0) & (self.seen.sum(1) > 0))[:, 0]
        small = size[live] < c.min_cluster_size
        if small.all() or not self.unites:
            return 0
        s, n = self.whitened_sums[live].sum(1), self.seen[live].sum(1)
        index = torch.arange(len(live), device=size.device)
        direction, apart, within = F.normalize(s), small | (n < 2), inner(s, n)
        alike, partner, nearest = torch.empty_like(n), index.clone(), index.clone()
        for rows in index.split(1024):  # never K x K at once
            across = s[rows] @ s.T / (n[rows, None] * n)
            across[torch.arange(len(rows)), rows] = -1.0
            nearest[rows] = (direction[rows] @ direction.T).masked_fill_(small, -2.0).argmax(1)
            ratio = across / ((within[rows, None] + within) / 2).clamp_min(1e-3)
            alike[rows], partner[rows] = ratio.masked_fill_(apart, -1.0).max(1)
        united = (partner[partner] == index) & (alike > c.merge_ratio) & ~apart & (c.merge_ratio > 0)
        loses = (size[live] < size[live][partner]) | ((size[live] == size[live][partner]) & (partner < index))
        goes = torch.where(united & loses, partner, index)
        goes = torch.where(small, goes[nearest], goes)
        to = torch.arange(classes, device=live.device)
        to[live] = live[goes]
        self.label.copy_(to[self.label.long()])
        self.queue.copy_(torch.where(self.queue >= 0, to[self.queue.clamp_min(0).long()].int(), -1))
        if not c.split_ratio:
            return 0
        lost = united & loses  # the halves of what it joins are from now on the two that have joined
        whole = self.sums.sum(1) / self.seen.sum(1, keepdim=True).clamp_min(1)
        self.centers[live[partner[lost]]] = torch.stack([whole[live[partner[lost]]], whole[live[lost]]], 1)
        unchanged = live[(goes == index) & ~small & ~(united & ~loses)]
        return self.divide(unchanged, before)

    def divide(self, classes: Tensor, before: Tensor) -> int:
        """Halves of `classes` [n] that are apart become classes: those least alike first, as far as there are dead
        classes to take."""
        s, n = self.whitened_sums[classes], self.seen[classes]
        across = (s[:, 0] * s[:, 1]).sum(1) / n.prod(1).clamp_min(1)
        alike = across / inner(s, n).mean(1).clamp_min(1e-3)
        alike[(n < max(2, self.config.min_cluster_size)).any(1)] = torch.inf
        free = torch.nonzero(torch.bincount(self.label.long(), minlength=len(self.seen)) == 0)[:, 0]
        alike, order = alike.sort()
        old = classes[order[alike < self.config.split_ratio]][: len(free)]
        new = free[: len(old)]
        to = torch.arange(len(self.seen), device=new.device)
        to[old] = new
        moves = (self.side == 1) & (self.label == before)
        self.queue[moves] = torch.where(
            self.queue[moves] == before[moves, None],
            to[before[moves].long()][:, None].int(),
            self.queue[moves],
        )
        self.label[moves] = to[self.label[moves].long()].int()
        mean = self.sums[old] / self.seen[old][..., None]
        with torch.no_grad():
            for classifier in (self.classifier, self.teacher_classifier):
                norm = classifier.weight[old].norm(dim=1, keepdim=True)
                for half, rows in enumerate((old, new)):
                    classifier.weight[rows] = norm * F.normalize(mean[:, half])
                if classifier.bias is not None:
                    classifier.bias[new] = classifier.bias[old]
        for half, rows in enumerate((old, new)):
            self.reseed(rows, mean[:, half])
        return len(old)

    def weights(self) -> Tensor:
        """p(clean) [N] by the mixture on log losses within their 0.1 and 99.9 percentiles; 1 where the fit fails, its
        means are nearer than a deviation, or the utterance was not seen."""
        out = torch.ones_like(self.weight)
        if rank() == 0:
            known = self.loss.isfinite()
            u = np.log(self.loss[known].double().cpu().numpy() + 1e-12)
            low, high = max(np.percentile(u, 0.1), -20.0), np.percentile(u, 99.9)
            fit = two_gaussians(u[(u >= low) & (u <= high)])
            if fit and fit[1][1] - fit[1][0] >= np.sqrt(fit[0] @ fit[2]):
                w, mu, var = (v[:, None] for v in fit)
                log_density = np.log(w) - 0.5 * np.log(var) - (np.clip(u, low, high) - mu) ** 2 / (2 * var)
                posterior = 1 / (1 + np.exp(np.clip(log_density[1] - log_density[0], -500, 500)))
                out[known] = torch.from_numpy(posterior).to(out)
            else:
                log.warning("the losses do not form two groups; every utterance has the same weight")
        return broadcast(out)
