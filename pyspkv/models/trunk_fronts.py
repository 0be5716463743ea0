"""The front ends of trunks, as the feature extractors of transformers compute them on each utterance alone.

All take waves [B, T] in [-1, 1] at 16 kHz with lengths [B], and leave zeros behind each utterance's own frames. They
run in fp32 and keep no gradient.
"""

import torch
from torch import Tensor, nn

from pyspkv.audio.fbank import HOP, WINDOW, Fbank, frame_mask, rows_at_once
from pyspkv.base.guarded import transformers


def _beyond(x: Tensor, lengths: Tensor) -> Tensor:
    """[B, F, M] with zeros behind each row's frames."""
    mask = frame_mask(lengths, x.shape[1])
    return x if mask is None else x * mask[..., None]


class WhisperLogMel(nn.Module):
    """Whisper's log-mel spectrogram: [B, T] -> ([B, F, n_mels], frames [B]), F = T // 160.

    As transformers' WhisperFeatureExtractor on the utterance's own length: reflected at both ends, floored at 8 below
    the utterance's maximum (of log10), then (x + 4) / 4.
    """

    mel: Tensor  # [201, n_mels]
    window: Tensor  # [400]

    def __init__(self, n_mels: int):
        super().__init__()
        transformers()  # before its parts are imported: see guarded
        from transformers.audio_utils import mel_filter_bank

        mel = mel_filter_bank(1 + WINDOW // 2, n_mels, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
        self.register_buffer("mel", torch.from_numpy(mel).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    @torch.no_grad()
    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(wave.device.type, enabled=False):
            padded = _reflected(wave.float(), lengths, WINDOW // 2)
            x = torch.cat([self._log(part) for part in padded.split(rows_at_once(wave))])
            frames = lengths // HOP
            x = x[:, : wave.shape[1] // HOP]
            mask = frame_mask(frames, x.shape[1])
            known = x if mask is None else x.masked_fill(~mask[..., None], float("-inf"))
            x = torch.maximum(x, known.amax((1, 2), keepdim=True) - 8.0)
            return _beyond((x + 4.0) / 4.0, frames), frames

    def _log(self, padded: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(padded.unfold(1, WINDOW, HOP) * self.window)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        return (power @ self.mel).clamp_min_(1e-10).log10_()


def _reflected(wave: Tensor, lengths: Tensor, more: int) -> Tensor:
    """[B, T] -> [B, T + 2 more]: `more` samples mirrored at both ends of each utterance."""
    at = (torch.arange(wave.shape[1] + 2 * more, device=wave.device) - more).abs().expand(len(wave), -1)
    last = lengths[:, None] - 1
    at = torch.where(at > last, 2 * last - at, at).clamp(0, wave.shape[1] - 1)
    return wave.gather(1, at)


class StackedFbank(nn.Module):
    """w2v-BERT's filterbanks: [B, T] -> ([B, F, 2 n_mels], frames [B]).

    As transformers' SeamlessM4TFeatureExtractor: Kaldi's filterbanks up to 8 kHz, each band of an utterance of mean 0
    and variance 1, two frames side by side; an odd last frame, which the model does not attend to, is left out.
    """

    def __init__(self, n_mels: int):
        super().__init__()
        self.fbank = Fbank(n_mels, high_hz=8000.0)

    @torch.no_grad()
    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.float()
            x = torch.cat([self.fbank.log_mel(part) for part in wave.split(rows_at_once(wave))])
            frames = 1 + (lengths - WINDOW) // HOP
            count = frames[:, None, None]
            x = _beyond(x, frames)
            x = _beyond(x - x.sum(1, keepdim=True) / count, frames)
            x = x * torch.rsqrt(x.square().sum(1, keepdim=True) / (count - 1) + 1e-7)
            pairs = frames // 2
            x = x[:, : x.shape[1] // 2 * 2].unflatten(1, (-1, 2)).flatten(2)
            return _beyond(x, pairs), pairs


@torch.no_grad()
def normalized(wave: Tensor, lengths: Tensor) -> Tensor:
    """[B, T] -> [B, T]: each utterance of mean 0 and variance 1 (Wav2Vec2FeatureExtractor's do_normalize)."""
    wave, count = wave.float(), lengths[:, None]
    mask = torch.arange(wave.shape[1], device=wave.device) < count
    wave = wave * mask
    wave = (wave - wave.sum(1, keepdim=True) / count) * mask
    return wave * torch.rsqrt(wave.square().sum(1, keepdim=True) / count + 1e-7)
