"""Kaldi-compatible log mel filterbanks as a batched module, and the masks of SpecAugment."""

import torch
from pydantic import Field
from torch import Tensor, nn

from pyspkv.base.config import Config
from pyspkv.base.errors import UserError
from pyspkv.base.guarded import mel_banks

WINDOW, HOP, FFT = 400, 160, 512  # samples at 16 kHz: 25 ms windows every 10 ms
# Samples processed at once on a CPU (8 crops of 3 s), so that intermediate results fit its cache
CPU_SAMPLES = 25 * 16000


def frame_mask(lengths: Tensor, size: int) -> Tensor | None:
    """Mask of valid frames, bool [B, size], for `lengths` [B]; None when every row is full."""
    if bool((lengths == size).all()):
        return None
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def rows_at_once(wave: Tensor) -> int:
    """Number of rows of `wave` [B, T] to process at once; on a CPU small blocks are faster (CPU_SAMPLES)."""
    return len(wave) if wave.device.type != "cpu" else max(1, CPU_SAMPLES // wave.shape[1])


class Fbank(nn.Module):
    """Log mel filterbank features, mean-normalized per utterance.

    wave [B, T] in [-1, 1] at 16 kHz, lengths [B] in samples -> features [B, F, n_mels], frames [B].
    Equals torchaudio.compliance.kaldi.fbank(x * 32768, dither=0, num_mel_bins=n_mels, high_freq=7600) minus
    the mean over the valid frames of each utterance. F = 1 + (T - 400) // 160; padding frames are 0.
    Computed in float32 without gradient.

    Raises UserError when an utterance is shorter than one window (400 samples).
    """

    mel: Tensor  # [256, n_mels]
    window: Tensor  # [400]

    def __init__(self, n_mels: int = 80, low_hz: float = 20.0, high_hz: float = 7600.0):
        super().__init__()
        mel = mel_banks(n_mels, FFT, low_hz, high_hz)
        self.register_buffer("mel", mel.T.contiguous(), persistent=False)  # [256, n_mels]
        povey = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64).pow(0.85).float()
        self.register_buffer("window", povey, persistent=False)

    @torch.no_grad()
    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """wave [B, T], lengths [B] in samples -> (features [B, F, n_mels], frames [B])."""
        if int(lengths.min()) < WINDOW:
            raise UserError(
                f"an utterance of {int(lengths.min())} samples is shorter than one 25 ms frame",
                hint="drop utterances under 0.1 s",
            )
        with torch.autocast(wave.device.type, enabled=False):
            # A large offset would cancel in float32 below. It is subtracted in whole 16-bit steps, so that
            # audio without an offset stays bit for bit the same.
            offset = (wave.float().mean(1, keepdim=True) * 32768).round() / 32768
            wave = wave.float() - offset
            x = torch.cat([self.log_mel(part) for part in wave.split(rows_at_once(wave))])
            frame_lengths = 1 + (lengths - WINDOW) // HOP
            mask = frame_mask(frame_lengths, x.shape[1])
            if mask is None:
                return x - x.mean(1, keepdim=True), frame_lengths
            mask = mask[..., None]
            mean = (x * mask).sum(1, keepdim=True) / frame_lengths[:, None, None]
            return (x - mean) * mask, frame_lengths

    def log_mel(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, F, n_mels], without mean normalization."""
        spectrum = torch.fft.rfft(self.frames(wave * 32768.0))[..., :-1]
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        return (power @ self.mel).clamp_min_(torch.finfo(torch.float32).eps).log_()

    def frames(self, x: Tensor) -> Tensor:
        """[B, T] -> [B, F, 512]: frames as Kaldi makes them (mean removed, pre-emphasis 0.97, window,
        padding).

        x_t - 0.97 x_{t-1} is computed once for the whole wave. A frame's own pre-emphasis after the removal
        of its mean differs from it only by 0.03 times the mean and in the first sample.
        """
        emphasized = torch.cat([x[:, :1], x[:, 1:] - 0.97 * x[:, :-1]], 1).unfold(1, WINDOW, HOP)
        plain = x.unfold(1, WINDOW, HOP)
        mean = plain.mean(2, keepdim=True)
        out = x.new_zeros(*plain.shape[:2], FFT)
        torch.sub(emphasized, 0.03 * mean, out=out[..., :WINDOW])
        out[..., :1] = 0.03 * (plain[..., :1] - mean)
        out[..., :WINDOW] *= self.window
        return out


class SpecAugmentConfig(Config):
    """One time mask and one frequency mask for each utterance (SpecAugment, Park et al. 2019)."""

    max_time_mask: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Longest time mask in frames of 10 ms; its length is uniform from 0. 0 turns it off. "
        "GLL uses 9.",
    )
    max_freq_mask: int = Field(
        0,
        ge=0,
        le=1000,
        description="Widest frequency mask in mel bands; its width is uniform from 0. 0 turns it off. GLL "
        "uses 7.",
    )


def spec_augment(x: Tensor, config: SpecAugmentConfig) -> Tensor:
    """Apply one time and one frequency mask to each utterance of x [B, F, M]; masked values are 0, the mean.

    Source: SpecAugment, Park et al. 2019.
    """
    for axis, most in ((1, config.max_time_mask), (2, config.max_freq_mask)):
        if most:
            size = x.shape[axis]
            width = torch.randint(0, most + 1, (len(x), 1), device=x.device)
            start = (torch.rand(len(x), 1, device=x.device) * (size - width + 1)).long()
            at = torch.arange(size, device=x.device)
            hit = (at >= start) & (at < start + width)
            x = x.masked_fill(hit.unsqueeze(3 - axis), 0.0)
    return x
