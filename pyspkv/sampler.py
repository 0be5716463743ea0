"""Which utterances form which batch: pure functions of (seed, epoch), so that a mid-epoch resume is exact.

A sampler answers `epoch(e)` with rows int64 [steps, batch] of the corpus; process r of n takes the r-th n-th of
each batch (`part`), so n processes see together what one would.
"""

from dataclasses import dataclass

import numpy as np

from pyspkv.errors import UserError


def part(rows: np.ndarray, rank: int, world: int) -> np.ndarray:
    """This rank's contiguous share of one global batch."""
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]


class Sampler:
    """Base: keeps what every sampler needs. `label` int64 [N] and `source` int64 [N] (dataset.LABELLED or UNLABELLED,
    zeros by default) by row; `batch` is the global batch size."""

    @dataclass(kw_only=True)
    class Config:
        pass

    def __init__(self, config, label: np.ndarray, batch: int, seed: int, source: np.ndarray | None = None):
        self.config, self.label, self.batch, self.seed = config, label, batch, seed
        self.source = np.zeros(len(label), np.int64) if source is None else source
        self.steps = len(self.epoch(0))
        if self.steps == 0:
            raise UserError(
                f"{len(label)} utterances do not fill one batch of {batch}", mend="lower batch_size"
            )

    def rng(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch))

    def epoch(self, epoch: int) -> np.ndarray:
        raise NotImplementedError


class Plain(Sampler):
    """Every utterance once per epoch in random order; what does not fill a batch waits for another epoch."""

    def epoch(self, epoch: int) -> np.ndarray:
        rows = self.rng(epoch).permutation(len(self.label))
        return rows[: len(rows) // self.batch * self.batch].reshape(-1, self.batch)


class OnePerLabel(Sampler):
    """No label twice in a batch, at most `per_label` utterances of a label per epoch (spec wavlm_ssl, section 3).

    The j-th utterances of all labels (in random order) form a pool that is cut into batches, for each j; a pool's
    remainder is left out of this epoch. Large clusters therefore weigh less than their size.
    """

    @dataclass(kw_only=True)
    class Config:
        per_label: int = 500

    def epoch(self, epoch: int) -> np.ndarray:
        rng = self.rng(epoch)
        order = rng.permutation(len(self.label))
        order = order[np.argsort(self.label[order], kind="stable")]  # by label, random inside
        first = np.searchsorted(self.label[order], self.label[order])
        turn = np.arange(len(order)) - first  # the how-manieth of its label
        keep = turn < self.config.per_label
        order, turn = order[keep], turn[keep]
        shuffled = rng.permutation(len(order))
        order, turn = order[shuffled], turn[shuffled]
        by_turn = np.argsort(turn, kind="stable")
        order, turn = order[by_turn], turn[by_turn]
        ends = np.flatnonzero(np.diff(turn, append=-1)) + 1
        batches = []
        for start, end in zip(np.concatenate([[0], ends[:-1]]), ends):
            full = (end - start) // self.batch * self.batch
            batches.append(order[start : start + full].reshape(-1, self.batch))
        rows = np.concatenate(batches) if batches else np.empty((0, self.batch), np.int64)
        return rows[rng.permutation(len(rows))]


def passes(rng: np.random.Generator, rows: np.ndarray, batch: int, steps: int) -> np.ndarray:
    """int64 [steps, batch]: pass after pass over `rows` [N], each in a new random order and cut into whole batches."""
    each = len(rows) // batch
    if each == 0:
        return np.empty((0, batch), np.int64)
    cut = [
        rng.permutation(rows)[: each * batch].reshape(each, batch) for _ in range(max(1, -(-steps // each)))
    ]
    return np.concatenate(cut)[:steps]


class Repeat(Sampler):
    """An epoch is `steps` batches, however few the utterances (training on the labelled part alone)."""

    @dataclass(kw_only=True)
    class Config:
        steps: int = 100

    def epoch(self, epoch: int) -> np.ndarray:
        return passes(self.rng(epoch), np.arange(len(self.label)), self.batch, self.config.steps)


class TwoStream(Sampler):
    """An epoch is one pass over the unlabelled utterances; the labelled ones are gone through again and again.

    Both are spread evenly over the batch, so that each process gets its share of both.
    """

    @dataclass(kw_only=True)
    class Config:
        labelled: int = (
            100  # labelled utterances of a batch, or all where there are fewer; the rest is unlabelled
        )

    def epoch(self, epoch: int) -> np.ndarray:
        labelled, unlabelled = (np.flatnonzero(self.source == s) for s in (0, 1))
        if not len(unlabelled):
            raise UserError(
                "sampler two_stream needs unlabelled data", mend="pass bin.train --unlabelled DIR"
            )
        few = min(self.config.labelled, len(labelled))
        many = self.batch - few
        if few < 1 or many < 1:
            raise UserError(
                f"batch_size {self.batch} with sampler.labelled {self.config.labelled} leaves no row for one part",
                mend="0 < sampler.labelled < batch_size",
            )
        rng = self.rng(epoch)
        second = passes(rng, unlabelled, many, len(unlabelled) // many)
        first = passes(rng, labelled, few, len(second))
        at = np.concatenate([(np.arange(n) + 0.5) / n for n in (few, many)])
        return np.concatenate([first, second], 1)[:, np.argsort(at, kind="stable")]
