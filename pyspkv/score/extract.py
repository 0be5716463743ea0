"""Embeddings of a data directory: batches of similar length, evaluation mode, one vector per utterance or crop.

An utterance above `MAX_SECONDS` is cut into equal parts below it, and its embedding is the mean of theirs; one
shorter than the encoder takes is repeated until it is long enough.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import torch

from pyspkv.audio.reader import SAMPLE_RATE, AudioReader
from pyspkv.base import distributed
from pyspkv.base.device import autocast
from pyspkv.base.errors import UserError
from pyspkv.data.ark import Embeddings
from pyspkv.data.datadir import DataDir
from pyspkv.fast.packed_linear import packed

MAX_SECONDS = 60
BATCH_SECONDS = {"cpu": 120, "cuda": 300}  # audio per batch, padding included: WavLM-Base in fp32 takes 7 GiB


def _plan(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Rows in order of length, cut so that a batch's padded samples stay below `most`."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda r: (lengths[r], r)):
        if batch and (len(batch) + 1) * lengths[row] > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class Batches:
    """The batches in which a data directory is read and embedded, shortest utterances first.

    They follow from the lengths alone, so that every process that takes a share of them makes the same ones.

    Args:
        device: a batch's size depends on its type.
        least: samples that the encoder takes; a shorter utterance or crop is repeated.
        crops: (n, samples), as in `embed_rows`, as is `change`.

    Attributes:
        plans: the rows of each batch; costs: its samples, padding included.
    """

    def __init__(
        self,
        data: DataDir,
        device: torch.device,
        least: int,
        allow_pipes: bool = False,
        crops: tuple[int, int] | None = None,
        change: Callable[[int, np.ndarray], np.ndarray] | None = None,
    ):
        self.data, self.crops, self.change = data, crops, change
        self.reader = AudioReader(data, allow_pipes)
        self.least = max(least, crops[1] if crops else 0)
        lengths = [self.reader.num_samples(row) for row in range(len(self.reader))]
        if crops:
            lengths = [len(self._starts(length)[0]) * self.least for length in lengths]
        self.plans = list(_plan(lengths, BATCH_SECONDS[device.type] * SAMPLE_RATE))
        self.costs = [len(rows) * lengths[rows[-1]] for rows in self.plans]

    def share(self, k: int, n: int) -> list[list[int]]:
        """Batches of part `k` (from 1) of `n`: consecutive ones of about the same cost, none where there are fewer."""
        total, before, out = sum(self.costs) or 1, 0, []
        for rows, cost in zip(self.plans, self.costs):
            if (2 * before + cost) * n // (
                2 * total
            ) == k - 1:  # the part in which the middle of the batch lies
                out.append(rows)
            before += cost
        return out

    def read(self, rows: list[int]) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
        """The pieces of a batch: row of each [P], how many crops it stands for [P], wave [P, T], samples [P]."""
        found = [self._pieces(row) for row in rows]
        parts = [piece for own, _ in found for piece in own]
        sizes = [len(piece) for piece in parts]
        wave = np.zeros((len(parts), max(sizes)), np.float32)
        for out, piece in zip(wave, parts):
            out[: len(piece)] = piece
        owners = np.repeat(rows, [len(own) for own, _ in found])
        counts = np.concatenate([times for _, times in found])
        return owners, counts, torch.from_numpy(wave), torch.tensor(sizes)

    def _starts(self, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Different starts of crops, and how many crops each stands for: all, where the utterance is no longer."""
        assert self.crops is not None  # only asked with them
        spaced = np.linspace(0, max(samples - self.least, 0), self.crops[0]).astype(int)
        return np.unique(spaced, return_counts=True)

    def _pieces(self, row: int) -> tuple[list[np.ndarray], np.ndarray]:
        wave = self.reader.read(row)
        if self.change is not None:
            wave = self.change(row, wave)
        given = len(wave)
        if given < self.least:
            wave = np.resize(wave, self.least)
        if self.crops:
            first, counts = self._starts(given)
            return [wave[start : start + self.least] for start in first], counts
        parts = np.array_split(wave, -(-len(wave) // (MAX_SECONDS * SAMPLE_RATE)))
        return parts, np.ones(len(parts), int)


@torch.inference_mode()
def embed_batches(
    encoders: Sequence, batches: Batches, plans: list[list[int]], device: torch.device, precision: str
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield (row, each encoder's float32 [D], or [n, D] of crops) for every row of `plans`, batches of `batches`.

    Audio is read once for all encoders, one batch ahead. They must be in eval mode, and their `min_samples` those of
    `batches`. UserError: audio that cannot be read, an embedding that is not finite.
    """
    from tqdm import tqdm

    data = batches.data
    quiet = None if distributed.rank() == 0 else True
    with ExitStack() as stack:
        for encoder in encoders:
            stack.enter_context(packed(encoder, device, precision))
        bar = stack.enter_context(
            tqdm(total=sum(map(len, plans)), unit="utt", desc="embed", disable=quiet, leave=False)
        )
        pool = stack.enter_context(ThreadPoolExecutor(1))  # reads the next batch while this one is embedded
        ahead = pool.submit(batches.read, plans[0]) if plans else None
        for i, plan in enumerate(plans):
            assert ahead is not None  # there is a plan
            owners, counts, wave, sizes = ahead.result()
            ahead = pool.submit(batches.read, plans[i + 1]) if i + 1 < len(plans) else None
            wave, sizes = wave.to(device), sizes.to(device)
            found = []
            for encoder in encoders:
                with autocast(device, precision):
                    found.append(encoder(wave, sizes).float().cpu().numpy())
            for row in plan:
                own = owners == row
                vectors = [np.repeat(vectors[own], counts[own], axis=0) for vectors in found]
                if not batches.crops:
                    vectors = [vector.mean(0) for vector in vectors]
                if not all(np.isfinite(vector).all() for vector in vectors):
                    raise UserError(
                        f"utterance {data.utts[row]}: its embedding is not finite",
                        file=data.path,
                        hint="listen to it; with --precision bf16, try fp32",
                    )
                yield row, vectors
            bar.update(len(plan))


def embed_rows(
    encoder,
    data: DataDir,
    device,
    precision: str,
    allow_pipes: bool = False,
    crops: tuple[int, int] | None = None,
    change: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (row, float32 [D]) for every utterance of `data`, shortest first. The encoder must be in eval mode.

    crops (n, samples): (row, [n, D]) of n crops evenly spaced from start to end, which overlap where they must; an
    utterance shorter than one is repeated, and equal crops are embedded once. change(row, wave) -> wave that is
    embedded in its place, no longer than it.
    """
    batches = Batches(data, device, encoder.min_samples, allow_pipes, crops, change)
    for row, (vector,) in embed_batches([encoder], batches, batches.plans, device, precision):
        yield row, vector


def embed(
    encoder, data: DataDir, device, precision: str, allow_pipes: bool = False, change=None
) -> Embeddings:
    """All embeddings of `data` in memory, in its order; `change` as in `embed_rows`.

    UserError: audio that cannot be read, an embedding that is not finite.
    """
    x = None
    for row, vector in embed_rows(encoder, data, device, precision, allow_pipes, change=change):
        if x is None:
            x = np.empty((len(data.utts), len(vector)), np.float32)
        x[row] = vector
    assert x is not None  # a data directory has utterances
    return Embeddings(list(data.utts), x, np.arange(len(data.utts) + 1))


def embed_over_ranks(
    encoder, data: DataDir, device: torch.device, precision: str, allow_pipes: bool = False
) -> torch.Tensor:
    """All embeddings of `data` float32 [N, D] on `device`, in its order, on every rank: each embeds its share.

    The batches are those of one process, so the digits are, too. UserError: as `embed`.
    """
    batches = Batches(data, device, encoder.min_samples, allow_pipes)
    own = batches.share(distributed.rank() + 1, distributed.world_size())
    x = np.zeros((len(data.utts), encoder.embed_dim), np.float32)
    for row, (vector,) in embed_batches([encoder], batches, own, device, precision):
        x[row] = vector
    return distributed.all_reduce_sum(torch.from_numpy(x).to(device))  # of the others a row is zero
