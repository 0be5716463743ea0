"""Signal processing for the synthetic corpus: turns espeak's samples into a recording in a room."""

import io
from pathlib import Path

import mini_espeak as espeak
import numpy as np

from pyspkv.audio.reader import SAMPLE_RATE
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError

KNOTS = np.geomspace(80, 8000, 8)  # Hz: points at which frequency responses are given


def curve(freqs: np.ndarray, knots_db, low: float = 0.0, high: float = 0.0) -> np.ndarray:
    """Gain at `freqs` (Hz): `knots_db` at KNOTS, interpolated in log f; 12 dB/octave outside low..high."""
    f = np.maximum(freqs, 20.0)
    gain = 10 ** (np.interp(np.log(f), np.log(KNOTS), knots_db) / 20)
    if low:
        gain /= 1 + (low / f) ** 2
    if high:
        gain /= 1 + (f / high) ** 4
    return gain


def shaped(x: np.ndarray, gain=None, rir: np.ndarray | None = None) -> np.ndarray:
    """`x` [n] convolved with `rir` and multiplied by gain(freqs) in the frequency domain; float32 [n]."""
    from scipy import fft

    length = len(x) + (0 if rir is None else len(rir))
    length = fft.next_fast_len(length, real=True)  # a prime length would take ten times as long
    spectrum = fft.rfft(x.astype(np.float32), length)
    if rir is not None:
        spectrum *= fft.rfft(rir.astype(np.float32), length)
    if gain is not None:
        spectrum *= gain(np.fft.rfftfreq(length, 1 / SAMPLE_RATE)).astype(np.float32)
    return fft.irfft(spectrum, length)[: len(x)]


def noise(rng: np.random.Generator, kind: str, num: int, color: float, fixed: float) -> np.ndarray:
    """`num` samples of noise with RMS 1.

    kind: one of NOISES. color: slope of the spectrum (0 white, 2 brown). fixed: a number in [0, 1) that sets
    further properties, such as the frequency of hum.
    """
    x = shaped(rng.standard_normal(num, np.float32), lambda f: np.maximum(f, 50.0) ** (-color / 2))
    x /= x.std()
    time = np.arange(num) / SAMPLE_RATE
    if kind == "hum":
        base = (50 if fixed < 0.5 else 60) * (1 + 3 * (fixed > 0.8))
        weights = rng.random(12) * 0.85 ** np.arange(12)
        hum = sum(
            w * np.sin(2 * np.pi * (base * (k + 1) * time + rng.random())) for k, w in enumerate(weights)
        )
        x = 0.3 * x + hum / hum.std()
    elif kind == "traffic":
        knots = np.arange(0, time[-1] + 1.4, 0.7)
        x = x * 10 ** (np.interp(time, knots, rng.normal(0, 5, len(knots))) / 20)
    elif kind == "clatter":
        hits = (rng.random(num) < 6 / SAMPLE_RATE) * rng.exponential(1, num)
        ring = np.exp(-np.arange(4000) / SAMPLE_RATE * (20 + 60 * fixed)) * rng.standard_normal(4000)
        hits = shaped(hits, rir=ring)
        x = 0.3 * x + hits / max(hits.std(), 1e-3)
    return x / x.std()


def samples(pcm: np.ndarray, tract: float, seconds: float) -> np.ndarray:
    """Convert espeak's int16 samples at 22.05 kHz to float at 16 kHz, at most `seconds` long, with RMS 1.

    tract: factor on pitch and formants, applied by resampling. UserError when the samples are silent.
    """
    import soxr

    loud = np.flatnonzero(np.abs(pcm) > 300)
    if not len(loud):
        raise UserError("espeak-ng produced silence", hint="reinstall the pinned espeakng-loader")
    x = pcm[loud[0] : loud[-1] + 1].astype(np.float32) / np.float32(32768)
    x = soxr.resample(x, espeak.RATE * tract, SAMPLE_RATE)[: int(seconds * SAMPLE_RATE)]
    ramp = np.linspace(0, 1, 160, dtype=np.float32)
    x[:160] *= ramp
    x[-160:] *= ramp[::-1]
    return x / x.std()


def write_flac(path: Path, x: np.ndarray) -> None:
    """Write x [n] in [-1, 1] at 16 kHz as 16-bit FLAC, atomically."""
    import soundfile

    pcm = np.rint(np.clip(x, -1, 1) * 32767).astype(np.int16)
    with atomic_file(path, "wb") as f:
        whole = io.BytesIO()  # because soundfile raises an AssertionError when the disk is full
        soundfile.write(whole, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        f.write(whole.getvalue())
