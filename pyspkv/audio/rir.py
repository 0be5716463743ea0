"""Simulated room impulse responses: image sources for the early part, decaying noise for the late part."""

import hashlib
import itertools
import logging
import os
from pathlib import Path

import numpy as np

from pyspkv.audio.reader import SAMPLE_RATE
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError

log = logging.getLogger(__name__)
SPEED_OF_SOUND = 343.0
MAX_LENGTH = SAMPLE_RATE // 2  # samples of an impulse response that are kept
_ORDER = 17  # image sources to this order take about 15 ms; the cost grows with its third power


def align(rir: np.ndarray) -> np.ndarray:
    """`rir` [n] from its strongest sample on (so it delays nothing), cut at -60 dB or 0.5 s, energy 1."""
    rir = np.asarray(rir, np.float64)
    if not rir.any():
        raise UserError("an impulse response of augment.rir is silent", hint="remove it from the list")
    rir = rir[int(np.argmax(np.abs(rir))) :][:MAX_LENGTH]
    left = np.cumsum((rir**2)[::-1])[::-1]
    rir = rir[: max(1, int(np.count_nonzero(left > 1e-6 * left[0])))]
    return (rir / np.sqrt((rir**2).sum())).astype(np.float32)


def simulate(
    rng: np.random.Generator, rt60: tuple[float, float], distance: tuple[float, float]
) -> np.ndarray:
    """One impulse response of a random shoebox room, float32 [n] at 16 kHz, aligned.

    Args:
        rt60: range of the reverberation time, seconds. distance: range of source to microphone, metres.

    The image-source method (Allen & Berkley 1979, by pyroomacoustics) is complete up to the time at which the
    next order would arrive; from there on Gaussian noise with the room's decay takes over at the same level.
    """
    import pyroomacoustics as pra

    seconds = rng.uniform(*rt60)
    # A dead large room and a live small one are rare, and Sabine's formula has no absorption for the former.
    while True:
        side = 2.5 + 6 * np.sqrt(seconds) * rng.uniform(0.5, 1.0, 2)
        size = np.array([side[0], side[1], rng.uniform(2.4, 3.2)])
        try:
            absorption, order = pra.inverse_sabine(seconds, size)
            break
        except ValueError:  # still too large, of a time near 0.1 s
            continue
    order = min(order, _ORDER)
    room = pra.ShoeBox(size, fs=SAMPLE_RATE, materials=pra.Material(absorption), max_order=order)
    mic = rng.uniform(0.3, size - 0.3)
    far = rng.uniform(distance[0], max(distance[0], min(distance[1], 0.6 * side.min())))
    for tries in itertools.count(1):
        if tries % 1000 == 0:  # no such distance in this room
            far *= 0.8
        direction = rng.standard_normal(3) * [1, 1, 0.3]
        source = mic + direction / np.linalg.norm(direction) * far
        if ((source > 0.2) & (source < size - 0.2)).all():
            break
        mic = rng.uniform(0.3, size - 0.3)
    room.add_source(source)
    room.add_microphone(mic)
    room.compute_rir()
    rir = np.asarray(room.rir[0][0])
    whole = int(order * size.min() / SPEED_OF_SOUND * SAMPLE_RATE)
    length = max(whole, int(seconds * SAMPLE_RATE))
    time = np.arange(length) / SAMPLE_RATE
    decay = np.exp(-3 * np.log(10) * time / seconds)
    out = np.zeros(length)
    out[: min(whole, len(rir))] = rir[:whole]
    before = slice(whole // 2, whole)
    level = np.sqrt((out[before] ** 2).sum() / (decay[before] ** 2).sum())
    out[whole:] = level * decay[whole:] * rng.standard_normal(length - whole)
    return align(out)


def bank(
    num: int, seed: int, rt60: tuple[float, float], distance: tuple[float, float], cache_dir: str | Path = ""
) -> list[np.ndarray]:
    """`num` impulse responses, a function of the arguments; kept as one .npy in `cache_dir` if given.

    What is there is used where it is `num` responses as `align` leaves them; else it is made anew, with a warning.
    """
    key = hashlib.sha256(repr((num, seed, tuple(map(float, (*rt60, *distance))))).encode()).hexdigest()[:12]
    file = Path(cache_dir) / f"rir_bank-{key}.npy" if cache_dir else None
    if file and os.path.lexists(file):
        if kept := _read(file, num):
            return kept
        file.unlink()  # a link goes itself, not what it points to
    from tqdm import tqdm

    todo = tqdm(range(num), desc="simulate rooms", disable=None, leave=False)
    rirs = [simulate(np.random.default_rng((seed, i)), rt60, distance) for i in todo]
    if file:
        table = np.zeros((num, max(map(len, rirs))), np.float32)
        for row, rir in zip(table, rirs):
            row[: len(rir)] = rir
        with atomic_file(file, "wb") as f:
            np.save(f, table, allow_pickle=False)
    return rirs


def _read(file: Path, num: int) -> list[np.ndarray]:
    """The `num` impulse responses kept in `file`; empty, and a warning, where it holds anything else."""
    try:
        if not file.is_file():
            raise UserError("it is not a file")
        table = np.load(file, allow_pickle=False)
        shape: tuple[int, ...] = getattr(table, "shape", ())
        if len(shape) != 2 or shape[0] != num or not 0 < shape[1] <= MAX_LENGTH or table.dtype != np.float32:
            raise UserError(f"it does not contain {num} impulse responses")
        energy = np.einsum("rn,rn->r", table, table, dtype=np.float64)
        if not (np.abs(energy - 1) < 1e-3).all() or (np.abs(table).argmax(1) != 0).any():
            raise UserError("its values are not aligned impulse responses")
    except Exception as err:  # whatever np.load makes of a damaged file
        why = err if isinstance(err, UserError) else "it is damaged"
        log.warning("%s cannot be used (%s); the rooms are simulated again", file, why)
        return []
    return [row[: _length(row)] for row in table]


def _length(row: np.ndarray) -> int:
    return int(np.flatnonzero(row)[-1]) + 1
