"""Embed a data directory: batches of similar length, encoder in eval mode, a vector per utterance or crop.

An utterance longer than `MAX_SECONDS` is cut into equal parts, and its embedding is the mean of theirs. An
utterance shorter than the encoder's minimum is repeated until it is long enough.
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
BATCH_SECONDS = {"cpu": 120, "cuda": 300}  # audio per batch with padding; WavLM-Base in fp32 needs 7 GiB


def _plan(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Sort rows by length and cut them into batches whose padded size is at most `most` samples."""
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

    They depend only on the lengths, so all processes that take a share of them form the same batches.

    Args:
        device: its type sets the batch size.
        least: minimum number of samples of the encoder; a shorter utterance or crop is repeated.
        crops, change: as in `embed_rows`.

    Attributes:
        plans: the rows of each batch.
        costs: number of samples of each batch, padding included.
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
        """Batches of part `k` (from 1) of `n`: a range of about equal cost; may be empty if there are few."""
        total, before, out = sum(self.costs) or 1, 0, []
        for rows, cost in zip(self.plans, self.costs):
            if (2 * before + cost) * n // (
                2 * total
            ) == k - 1:  # a batch belongs to the part in which its middle lies
                out.append(rows)
            before += cost
        return out

    def read(self, rows: list[int]) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
        """Read a batch as P pieces of audio.

        Returns the row of each piece [P], the number of crops it stands for [P], waves [P, T], and lengths
        [P] in samples.
        """
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
        """Distinct starts of the crops [P], and how many crops each stands for [P].

        An utterance that is not longer than a crop has one start, which stands for all crops.
        """
        assert self.crops is not None  # only called if there are crops
        spaced = np.linspace(0, max(samples - self.least, 0), self.crops[0]).astype(int)
        return np.unique(spaced, return_counts=True)

    def _pieces(self, row: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Pieces of an utterance (crops, or parts up to MAX_SECONDS), and how many crops each stands for."""
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
    """Yield (row, the vectors of all encoders) for every row of `plans`, which are batches of `batches`.

    A vector is float32 [D], or [n, D] with crops. Audio is read once for all encoders, one batch ahead. The
    encoders must be in eval mode and need no more samples than `batches.least`. UserError: audio cannot be
    read, or an embedding is not finite.
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
            assert ahead is not None  # `plans` is not empty here
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
    """Yield (row, float32 [D]) for every utterance of `data`, shortest first.

    The encoder must be in eval mode.

    Args:
        crops: (n, samples); yields (row, float32 [n, D]) of n crops, evenly spaced from start to end,
            overlapping if needed. An utterance shorter than a crop is repeated. Equal crops are embedded
            once.
        change: called as change(row, wave); the wave that it returns, which must not be longer, is embedded
            instead.

    UserError: as in `embed_batches`.
    """
    batches = Batches(data, device, encoder.min_samples, allow_pipes, crops, change)
    for row, (vector,) in embed_batches([encoder], batches, batches.plans, device, precision):
        yield row, vector


def embed(
    encoder, data: DataDir, device, precision: str, allow_pipes: bool = False, change=None
) -> Embeddings:
    """All embeddings of `data` in memory, in its order; `change` as in `embed_rows`.

    UserError: audio cannot be read, or an embedding is not finite.
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
