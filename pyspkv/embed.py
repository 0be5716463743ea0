"""Embeddings of a data directory: batches of similar length, evaluation mode, one vector per utterance or crop.

An utterance above `MAX_SECONDS` is cut into equal parts below it, and its embedding is the mean of theirs; one
shorter than the encoder takes is repeated until it is long enough.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from pyspkv import distributed
from pyspkv.audio import SAMPLE_RATE, AudioReader
from pyspkv.datadir import DataDir
from pyspkv.embeddings import Embeddings
from pyspkv.errors import UserError

MAX_SECONDS = 60
BATCH_SECONDS = {"cpu": 120, "cuda": 300}  # audio per batch, padding included: WavLM-Base in fp32 takes 7 GiB


def choose_precision(asked: str, device: torch.device) -> str:
    """`auto` -> bf16 where the hardware multiplies it fast, else fp32: GPUs since Ampere, CPUs with AMX, and AMD's with
    AVX-512 BF16, which multiply it twice as fast as fp32 (Intel's do not: benchmarks/RESULTS.md)."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities()
    amd = str(has.get("cpu_name", "")).startswith("AMD")
    return "bf16" if has.get("amx_bf16") or (amd and has.get("avx512_bf16")) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class _PackedLinear:
    """A linear layer's product in bf16 with its weights in the blocks that oneDNN wants, and its bias added in it."""

    def __init__(self, layer: torch.nn.Linear):
        weight, bias = layer.weight.detach(), layer.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), None)
        self.bias = None if bias is None else bias.detach().bfloat16()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, "none", [], "")


@contextmanager
def packed(encoder, device: torch.device, precision: str) -> Iterator[None]:
    """For many forward passes without gradient in bf16 on a CPU: the weights of linear layers are converted and laid
    out once, here, not in each pass. Takes 2 bytes a weight."""
    op = torch.ops.mkldnn
    there = torch.backends.mkldnn.is_available() and op._is_mkldnn_bf16_supported()
    if device.type != "cpu" or precision != "bf16" or not there:
        yield
        return
    layers = [m for m in encoder.modules() if type(m) is torch.nn.Linear]
    for layer in layers:
        layer.forward = _PackedLinear(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


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


@torch.inference_mode()
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
    from tqdm import tqdm

    reader = AudioReader(data, allow_pipes)
    most = MAX_SECONDS * SAMPLE_RATE
    least = max(encoder.min_samples, crops[1] if crops else 0)

    def starts(samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Different starts of crops, and how many crops each stands for: all, where the utterance is no longer."""
        spaced = np.linspace(0, max(samples - least, 0), crops[0]).astype(int)
        return np.unique(spaced, return_counts=True)

    def pieces(row: int) -> tuple[list[np.ndarray], np.ndarray]:
        wave = reader.read(row)
        if change is not None:
            wave = change(row, wave)
        given = len(wave)
        if given < least:
            wave = np.resize(wave, least)
        if crops:
            first, counts = starts(given)
            return [wave[start : start + least] for start in first], counts
        parts = np.array_split(wave, -(-len(wave) // most))
        return parts, np.ones(len(parts), int)

    def batch(rows: list[int]) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
        found = [pieces(row) for row in rows]
        parts = [piece for own, _ in found for piece in own]
        sizes = [len(piece) for piece in parts]
        wave = np.zeros((len(parts), max(sizes)), np.float32)
        for out, piece in zip(wave, parts):
            out[: len(piece)] = piece
        owners = np.repeat(rows, [len(own) for own, _ in found])
        counts = np.concatenate([times for _, times in found])
        return owners, counts, torch.from_numpy(wave), torch.tensor(sizes)

    lengths = [reader.num_samples(row) for row in range(len(reader))]
    if crops:
        lengths = [len(starts(length)[0]) * least for length in lengths]
    plans = list(_plan(lengths, BATCH_SECONDS[device.type] * SAMPLE_RATE))
    quiet = None if distributed.rank() == 0 else True
    bar = tqdm(total=len(lengths), unit="utt", desc="embed", disable=quiet, leave=False)
    with (
        packed(encoder, device, precision),
        bar,
        ThreadPoolExecutor(1) as pool,
    ):  # reads the next batch while this one is embedded
        ahead = pool.submit(batch, plans[0]) if plans else None
        for i, plan in enumerate(plans):
            owners, counts, wave, sizes = ahead.result()
            ahead = pool.submit(batch, plans[i + 1]) if i + 1 < len(plans) else None
            with autocast(device, precision):
                vectors = encoder(wave.to(device), sizes.to(device)).float().cpu().numpy()
            for row in plan:
                own = owners == row
                vector = np.repeat(vectors[own], counts[own], axis=0)
                if not crops:
                    vector = vector.mean(0)
                if not np.isfinite(vector).all():
                    raise UserError(
                        f"utterance {data.utts[row]}: its embedding is not finite",
                        file=data.path,
                        mend="listen to it; with --precision bf16 try fp32",
                    )
                yield row, vector
            bar.update(len(plan))


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
    return Embeddings(list(data.utts), x, np.arange(len(data.utts) + 1))
