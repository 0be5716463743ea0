"""Imports torchaudio and transformers, because a CUDA build of torchaudio does not load with a CPU-only
torch.

transformers imports torchaudio wherever it is installed, so a broken torchaudio breaks WavLM. This module
therefore imports torchaudio first. If that fails, it sets `sys.modules["torchaudio"]` to None, Python's mark
for a module that must not be imported. `importlib.util.find_spec`, which transformers calls, then does not
find it. pyspkv itself only needs torchaudio's mel filters.
"""

import functools
import math
import sys
from types import ModuleType

import torch
from torch import Tensor


@functools.cache
def torchaudio() -> ModuleType | None:
    """The package, or None when it is not installed or cannot be loaded."""
    try:
        import torchaudio
        import torchaudio.compliance.kaldi
    except Exception:  # OSError: no libcudart; RuntimeError: built for another CUDA than torch; ImportError
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # later imports do not find it
        return None
    return torchaudio


def transformers() -> ModuleType:
    """The package; a broken torchaudio is hidden from it. ImportError when transformers is not installed."""
    torchaudio()
    import transformers

    return transformers


def mel_banks(num_bins: int, fft: int, low_hz: float, high_hz: float, rate: float = 16000.0) -> Tensor:
    """Kaldi's triangular mel filters, float32 [num_bins, fft / 2], by torchaudio or else by
    `plain_mel_banks`.

    fft: points of the FFT; low_hz, high_hz: lowest and highest edge of the filters; rate: samples per second.
    """
    package = torchaudio()
    if package is None:
        return plain_mel_banks(num_bins, fft, low_hz, high_hz, rate)
    return package.compliance.kaldi.get_mel_banks(num_bins, fft, rate, low_hz, high_hz, 100.0, -500.0, 1.0)[0]


def plain_mel_banks(num_bins: int, fft: int, low_hz: float, high_hz: float, rate: float = 16000.0) -> Tensor:
    """The same values as torchaudio's, bit for bit: mel = 1127 ln(1 + Hz / 700), without VTLN."""
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (low_hz, high_hz))
    step = (high - low) / (num_bins + 1)
    k = torch.arange(num_bins).unsqueeze(1)
    left, center, right = low + k * step, low + (k + 1.0) * step, low + (k + 2.0) * step  # [num_bins, 1]
    mel = (1127.0 * (1.0 + rate / fft * torch.arange(fft / 2) / 700.0).log()).unsqueeze(0)  # [1, fft / 2]
    return torch.max(
        torch.zeros(1), torch.min((mel - left) / (center - left), (right - mel) / (right - center))
    )
