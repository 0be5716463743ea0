"""torchaudio and transformers, imported in one place: a torchaudio of CUDA does not load beside a CPU-only torch.

transformers imports torchaudio wherever it is installed, so one that is broken breaks WavLM. Here it is tried first.
If it does not load, `sys.modules["torchaudio"]` is None, Python's own word for a module that shall not be imported:
`importlib.util.find_spec`, by which transformers looks for it, then finds none. We need of it the mel filters alone.
"""

import functools
import math
import sys
from types import ModuleType

import torch
from torch import Tensor


@functools.cache
def torchaudio() -> ModuleType | None:
    """The package; None where it is not installed or cannot be loaded."""
    try:
        import torchaudio
        import torchaudio.compliance.kaldi
    except (
        Exception
    ):  # OSError: libcudart is not there; RuntimeError: of another CUDA than torch; ImportError
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # so that no import finds it
        return None
    return torchaudio


def transformers() -> ModuleType:
    """The package; from now on a torchaudio that is broken is none to it. ImportError: it is not installed."""
    torchaudio()
    import transformers

    return transformers


def mel_banks(num_bins: int, fft: int, low_hz: float, high_hz: float, rate: float = 16000.0) -> Tensor:
    """Kaldi's triangular mel filters, float32 [num_bins, fft / 2]: torchaudio's, else the same by us."""
    package = torchaudio()
    if package is None:
        return plain_mel_banks(num_bins, fft, low_hz, high_hz, rate)
    return package.compliance.kaldi.get_mel_banks(num_bins, fft, rate, low_hz, high_hz, 100.0, -500.0, 1.0)[0]


def plain_mel_banks(num_bins: int, fft: int, low_hz: float, high_hz: float, rate: float = 16000.0) -> Tensor:
    """The same values, to the last bit, without torchaudio: mel = 1127 ln(1 + Hz / 700), no VTLN."""
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (low_hz, high_hz))
    step = (high - low) / (num_bins + 1)
    k = torch.arange(num_bins).unsqueeze(1)
    left, center, right = low + k * step, low + (k + 1.0) * step, low + (k + 2.0) * step  # [num_bins, 1]
    mel = (1127.0 * (1.0 + rate / fft * torch.arange(fft / 2) / 700.0).log()).unsqueeze(0)  # [1, fft / 2]
    return torch.max(
        torch.zeros(1), torch.min((mel - left) / (center - left), (right - mel) / (right - center))
    )
