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
MAX_LENGTH = SAMPLE_RATE // 2  # an impulse response is cut after so many samples
# Highest order of image sources: takes about 15 ms, and the cost grows with the third power of the order
_ORDER = 17


def align(rir: np.ndarray) -> np.ndarray:
    """Align an impulse response, so that it does not delay speech; returns float32 [m], m <= n.

    `rir` [n] is cut to start at its strongest sample and to end where the remaining energy is 60 dB below the
    total, or after 0.5 s; then it is scaled to energy 1. UserError when it is silent.
    """
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
    """Simulate one impulse response of a random shoebox room; float32 [n] at 16 kHz, aligned.

    Args:
        rng: source of all random numbers.
        rt60: range of the reverberation time, in seconds.
        distance: range of the distance from source to microphone, in metres.

    The image-source method (Allen & Berkley 1979, by pyroomacoustics) gives the part up to the time at which
    the first order that was left out would arrive. From there on the response is Gaussian noise with the
    room's decay, at the level of the second half of the first part.
    """
    import pyroomacoustics as pra

    seconds = rng.uniform(*rt60)
    # Long reverberation needs a large room, so its size grows with it. Sabine's formula has no solution for a
    # large room with little reverberation.
    while True:
        side = 2.5 + 6 * np.sqrt(seconds) * rng.uniform(0.5, 1.0, 2)
        size = np.array([side[0], side[1], rng.uniform(2.4, 3.2)])
        try:
            absorption, order = pra.inverse_sabine(seconds, size)
            break
        except ValueError:  # the room is too large for this time, which is near 0.1 s: draw another room
            continue
    order = min(order, _ORDER)
    room = pra.ShoeBox(size, fs=SAMPLE_RATE, materials=pra.Material(absorption), max_order=order)
    mic = rng.uniform(0.3, size - 0.3)
    far = rng.uniform(distance[0], max(distance[0], min(distance[1], 0.6 * side.min())))
    for tries in itertools.count(1):
        if tries % 1000 == 0:  # probably no two points of this room are so far apart
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
    """`num` impulse responses; the same arguments always give the same responses.

    With `cache_dir` they are kept there in one .npy file. A cached file is used if it holds `num` aligned
    responses; otherwise they are simulated again, with a warning. `rt60` and `distance` are as in `simulate`.
    """
    key = hashlib.sha256(repr((num, seed, tuple(map(float, (*rt60, *distance))))).encode()).hexdigest()[:12]
    file = Path(cache_dir) / f"rir_bank-{key}.npy" if cache_dir else None
    if file and os.path.lexists(file):
        if kept := _read(file, num):
            return kept
        file.unlink()  # removes a link itself, not the file that it points to
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
    """The `num` impulse responses in `file`; [] with a warning when it holds anything else."""
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
    except Exception as err:  # np.load raises errors of many classes for a damaged file
        why = err if isinstance(err, UserError) else "it is damaged"
        log.warning("%s cannot be used (%s); the rooms are simulated again", file, why)
        return []
    return [row[: _length(row)] for row in table]


def _length(row: np.ndarray) -> int:
    return int(np.flatnonzero(row)[-1]) + 1
