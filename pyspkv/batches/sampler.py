"""Which utterances form which batch: pure functions of (seed, epoch), so that a mid-epoch resume is exact.

A sampler answers `epoch(e)` with rows int64 [steps, batch] of the corpus; process r of n takes the r-th n-th of
each batch (`rank_slice`), so n processes see together what one would.
"""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from pyspkv.base.config import Config, implements
from pyspkv.base.errors import UserError


class ShuffleConfig(Config):
    """Every utterance once an epoch, in random order."""

    name: Literal["shuffle"] = "shuffle"


class UniqueLabelConfig(Config):
    """No label twice in a batch, so that large clusters weigh less (arXiv 2406.02285)."""

    name: Literal["unique_label"] = "unique_label"
    max_per_label: int = Field(
        500,
        ge=1,
        description="Most utterances of one label in an epoch. Lower it when a few clusters are huge.",
    )


class DialoguesConfig(Config):
    """Dialogues of different devices, several utterances of each, for the objective dialogue."""

    name: Literal["dialogues"] = "dialogues"
    utts_per_dialogue: int = Field(
        2,
        ge=2,
        le=1_000_000,
        description="Utterances of each dialogue in a batch; batch_size is a multiple of it. More show "
        "better how similar a dialogue is, but shorter dialogues are dropped.",
    )
    num_labeled: int = Field(
        0,
        ge=0,
        description="Dialogues (speakers) of the labeled directory in a batch; used with an unlabeled one. "
        "About a third.",
    )
    steps: int = Field(
        0, ge=0, description="Batches in an epoch; the data is repeated as needed. 0: one pass."
    )


class FixedStepsConfig(Config):
    """An epoch is a fixed number of batches, for small labeled sets."""

    name: Literal["fixed_steps"] = "fixed_steps"
    steps: int = Field(100, ge=1, description="Batches in an epoch, whatever the number of utterances.")


class TwoStreamConfig(Config):
    """Labeled and unlabeled utterances in every batch, for semi-supervised objectives."""

    name: Literal["two_stream"] = "two_stream"
    labeled_batch_size: int = Field(
        100,
        ge=1,
        description="Labeled utterances in a batch (at most all there are); the rest is unlabeled. "
        "Half of batch_size in GLL.",
    )


SamplerConfig = Annotated[
    ShuffleConfig | UniqueLabelConfig | DialoguesConfig | FixedStepsConfig | TwoStreamConfig,
    Field(discriminator="name"),
]


def rank_slice(rows: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The contiguous part of one global batch that belongs to this rank."""
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]


class Sampler:
    """The base of all samplers.

    Args:
        label: int64 [N], the label of each row.
        batch: the number of utterances of a batch over all processes.
        columns: the corpus's other columns (source, group, device), int64 [N] each, for the samplers that use them.

    UserError: there are too few utterances for one batch.
    """

    def __init__(
        self,
        config: Any,
        label: np.ndarray,
        batch: int,
        seed: int,
        columns: dict[str, np.ndarray] | None = None,
    ):
        self.config, self.label, self.batch, self.seed = config, label, batch, seed
        self.columns = {"source": np.zeros(len(label), np.int64)} | (columns or {})
        self.steps = len(self.epoch(0))
        if self.steps == 0:
            raise UserError(
                f"{len(label)} utterances are fewer than one batch of {batch}", hint="lower batch_size"
            )

    def rng(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch))

    def epoch(self, epoch: int) -> np.ndarray:
        raise NotImplementedError


@implements(ShuffleConfig)
class Shuffle(Sampler):
    """Every utterance once per epoch in random order; what does not fill a batch waits for another epoch."""

    def epoch(self, epoch: int) -> np.ndarray:
        rows = self.rng(epoch).permutation(len(self.label))
        return rows[: len(rows) // self.batch * self.batch].reshape(-1, self.batch)


@implements(UniqueLabelConfig)
class UniqueLabel(Sampler):
    """No label twice in a batch, at most `max_per_label` utterances of a label per epoch (arXiv 2406.02285).

    A label with more utterances takes part with `max_per_label` of them, drawn anew each epoch. All of these are used
    but for what fills no last batch, or, where few labels hold most utterances, finds no batch without its label:
    there are as many batches as can be filled, and a label's utterances are spread evenly over them (`even`).
    """

    def __init__(self, config, label, batch, seed, columns=None):
        if (labels := len(np.unique(label))) < batch:
            raise UserError(
                f"sampler unique_label needs {batch} labels for a batch, but there are {labels}",
                hint=f"lower batch_size to {labels} or less, or use sampler: shuffle",
            )
        super().__init__(config, label, batch, seed, columns)

    def epoch(self, epoch: int) -> np.ndarray:
        rng = self.rng(epoch)
        order, turn = turns(self.label, rng)
        rows = order[turn < self.config.max_per_label]
        return rows[even(self.label[rows], self.batch, rng)]


def turns(label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of label int64 [N], label by label and in random order within each; the how-manieth of its label each is."""
    order = rng.permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    return order, np.arange(len(order)) - np.searchsorted(label[order], label[order])


def pool_batches(label: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows int64 [batches, batch_size], each row once: no label int64 [N] twice in a batch.

    The j-th rows of all labels (in random order) form a pool that is cut into batches, for each j; a pool's remainder
    is left out. For labels with equally many rows.
    """
    order, turn = turns(label, rng)
    shuffled = rng.permutation(len(order))
    order, turn = order[shuffled], turn[shuffled]
    by_turn = np.argsort(turn, kind="stable")
    order, turn = order[by_turn], turn[by_turn]
    ends = np.flatnonzero(np.diff(turn, append=-1)) + 1
    batches = [np.empty((0, batch_size), np.int64)]
    for start, end in zip(np.concatenate([[0], ends[:-1]]), ends):
        full = (end - start) // batch_size * batch_size
        batches.append(order[start : start + full].reshape(-1, batch_size))
    rows = np.concatenate(batches)
    return rows[rng.permutation(len(rows))]


def even(label: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows int64 [batches, size], no label int64 [N] twice in a batch, each row once at most, every batch a fair draw.

    There are as many batches B as can be filled. A label with c rows takes part with min(c, B) of them, less what no
    batch has room for, and is in every batch with the same probability, whether it has many rows or few (pools of j-th
    rows, as `pool_batches` makes them, would put those with many into batches of their own).

    The B batches are halved again and again, and each label's rows are shared out by the halves' sizes; what is
    no whole number is decided by systematic sampling in random order (Madow 1949), which gives each label its exact
    probability and each half its exact number of rows. A label never has more rows than batches to be in.
    """
    _, code, count = np.unique(label, return_inverse=True, return_counts=True)
    code = code.reshape(-1)
    low, high = 0, len(label) // size
    while low < high:  # the most batches B with sum min(count, B) >= B size
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(count, middle).sum() >= middle * size else (low, middle - 1)
    if low == 0:
        return np.empty((0, size), np.int64)
    order = rng.permutation(len(label))
    order = order[np.argsort(code[order], kind="stable")]  # by label, random inside
    turn = np.arange(len(order)) - (np.cumsum(count) - count)[code[order]]
    order = order[turn < low]
    order = order[np.sort(rng.permutation(len(order))[: low * size])]
    ids, count = np.unique(code[order], return_counts=True)
    batches = np.empty((low, size), np.int64)  # labels first
    todo = [(0, low, ids, count)]
    while todo:
        first, last, ids, count = todo.pop()
        whole, half = last - first, (last - first) // 2
        if whole == 1:
            batches[first] = ids
            continue
        share, rest = np.divmod(count * half, whole)
        shuffled = rng.permutation(len(ids))
        passed = np.cumsum(rest[shuffled]) + rng.integers(whole)
        share[shuffled[passed // whole > (passed - rest[shuffled]) // whole]] += 1
        for a, b, part in ((first, first + half, share), (first + half, last, count - share)):
            todo.append((a, b, ids[part > 0], part[part > 0]))
    place = np.argsort(batches, axis=None, kind="stable")
    batches.reshape(-1)[place] = order
    return rng.permuted(batches, axis=1)


@implements(DialoguesConfig)
class Dialogues(Sampler):
    """N dialogues of N devices x M utterances in a batch (N M = batch_size), the utterances of a dialogue side by side.

    Each epoch cuts every dialogue, in random order, into draws of M utterances (what is left over waits), and no device
    has two draws in a batch. Every batch is a fair draw: where devices have equally many draws, their j-th ones form a
    pool (`pool_batches`); else `even` spreads each device's over the epoch. With a second, unlabeled
    data directory, `num_labeled` of the N are of the first one, in even distances, and a pass is over when one of the
    two is used up; `num_labeled` must then be a multiple of the number of processes.
    """

    def __init__(self, config, label, batch, seed, columns):
        m = config.utts_per_dialogue
        if batch % m:
            raise UserError(f"batch_size {batch} is not a multiple of sampler.utts_per_dialogue {m}")
        from pyspkv.base import distributed

        world = distributed.world_size()
        if batch % (m * world) or config.num_labeled % world:
            raise UserError(
                f"{batch // m} dialogues in a batch, {config.num_labeled} of them labeled, are not multiples of "
                f"{world} processes",
                hint="change batch_size or sampler.num_labeled",
            )
        num, source = batch // m, columns["source"]
        both = bool(source.any())
        if both != bool(config.num_labeled) or config.num_labeled >= num:
            directories = "two directories" if both else "one directory"
            raise UserError(
                f"sampler.num_labeled is {config.num_labeled}, with {directories} and {num} dialogues in a batch",
                hint=f"set it to 1 .. {num - 1} with --unlabeled, and to 0 without",
            )
        parts = (
            [(source == 0, config.num_labeled), (source > 0, num - config.num_labeled)]
            if both
            else [(source == 0, num)]
        )
        self.streams = [Stream(columns["group"], columns["device"], part, m, share) for part, share in parts]
        at = np.concatenate([(np.arange(s.num) + 0.5) / s.num for s in self.streams])
        self.order = np.argsort(at, kind="stable")
        super().__init__(config, label, batch, seed, columns)

    def epoch(self, epoch: int) -> np.ndarray:
        rng, wanted = self.rng(epoch), self.config.steps
        cuts, steps = [], 0
        while True:
            drawn = [stream.draw(rng) for stream in self.streams]  # [steps, dialogues, M] each
            each = min(map(len, drawn))
            cuts.append(np.concatenate([d[:each] for d in drawn], 1)[:, self.order])
            steps += each
            if not each or steps >= wanted:
                return np.concatenate(cuts).reshape(-1, self.batch)[: wanted or None]


class Stream:
    """Draws `num` dialogues at a time, `per` utterances of each, from the rows in `part` (bool [N]).

    Dialogues with fewer than `per` utterances are left out. UserError: too few devices.
    """

    def __init__(self, group: np.ndarray, device: np.ndarray, part: np.ndarray, per: int, num: int):
        self.per, self.num = per, num
        rows = np.flatnonzero(part)
        rows = rows[np.argsort(group[rows], kind="stable")]
        _, count = np.unique(group[rows], return_counts=True)
        self.rows, self.owner = rows, np.repeat(np.arange(len(count)), count)  # by dialogue
        draws = count // per
        first = np.cumsum(count) - count
        turn = np.arange(draws.sum()) - np.repeat(np.cumsum(draws) - draws, draws)
        self.first = np.repeat(first, draws) + per * turn  # of each draw, its place in `rows`
        self.device = device[rows[self.first]]
        devices = len(np.unique(self.device))
        if devices < num:
            lower = (
                f"lower batch_size to {devices * per} or less" if devices > 1 else "give at least two devices"
            )
            raise UserError(
                f"a batch needs {num} dialogues of {num} devices, but only {devices} devices have a dialogue of "
                f"{per} utterances or more",
                hint=f"{lower}; without utt2dialogue, each speaker is one dialogue",
            )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of one pass, int64 [steps, num, per]."""
        _, uses = np.unique(self.device, return_counts=True)
        if (uses == uses[0]).all():
            batches = pool_batches(self.device, self.num, rng)
        else:
            batches = even(self.device, self.num, rng)
        shuffled = self.rows[np.lexsort((rng.random(len(self.rows)), self.owner))]  # inside each dialogue
        return shuffled[self.first[batches][..., None] + np.arange(self.per)]


def epoch_passes(rng: np.random.Generator, rows: np.ndarray, batch: int, steps: int) -> np.ndarray:
    """Batches int64 [steps, batch]: pass after pass over `rows` [N], each in a new random order and cut into whole
    batches. What does not fill a batch of a pass is left out of it."""
    each = len(rows) // batch
    if each == 0:
        return np.empty((0, batch), np.int64)
    cut = [
        rng.permutation(rows)[: each * batch].reshape(each, batch) for _ in range(max(1, -(-steps // each)))
    ]
    return np.concatenate(cut)[:steps]


@implements(FixedStepsConfig)
class FixedSteps(Sampler):
    """An epoch is `steps` batches, whatever the number of utterances (for a small labeled set)."""

    def epoch(self, epoch: int) -> np.ndarray:
        return epoch_passes(self.rng(epoch), np.arange(len(self.label)), self.batch, self.config.steps)


@implements(TwoStreamConfig)
class TwoStream(Sampler):
    """An epoch is one pass over the unlabeled utterances; the labeled ones are gone through again and again.

    Both are spread evenly over the batch, so that each process gets its share of both.
    """

    def epoch(self, epoch: int) -> np.ndarray:
        labeled, unlabeled = (np.flatnonzero(self.columns["source"] == s) for s in (0, 1))
        if not len(unlabeled):
            raise UserError("sampler two_stream needs unlabeled data", hint="pass bin.train --unlabeled DIR")
        wanted = self.config.labeled_batch_size
        num_labeled = min(wanted, len(labeled))
        num_unlabeled = self.batch - num_labeled
        if num_labeled < 1 or num_unlabeled < 1:
            raise UserError(
                f"batch_size {self.batch} with sampler.labeled_batch_size {wanted} leaves no utterance "
                "for one of the two parts",
                hint="0 < sampler.labeled_batch_size < batch_size",
            )
        rng = self.rng(epoch)
        second = epoch_passes(rng, unlabeled, num_unlabeled, len(unlabeled) // num_unlabeled)
        first = epoch_passes(rng, labeled, num_labeled, len(second))
        at = np.concatenate([(np.arange(n) + 0.5) / n for n in (num_labeled, num_unlabeled)])
        return np.concatenate([first, second], 1)[:, np.argsort(at, kind="stable")]
