"""What an encoder is: wave -> features -> frames -> embedding."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pyspkv.audio.fbank import Fbank, frame_mask, rows_at_once


class Encoder(nn.Module):
    """Base of all encoders. `forward`: float32 [B, T] at 16 kHz, lengths int64 [B] -> float32 [B, embed_dim].

    Subclasses with their own front end override `features`; all define `frames` and `pool`.
    """

    embed_dim: int
    min_samples: int = 1200  # what `features` needs: a few frames
    frame_dim: int  # of a causal encoder's frames
    epoch_now: float = 0.0  # of the training, a real number; the objective sets it before each step
    causal: bool = False  # a frame's output depends on no later frame; such encoders have a `frame_dim` C

    def __init__(self, n_mels: int = 80):
        super().__init__()
        self.fbank = Fbank(n_mels)

    def features(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] -> (input of the trainable part [B, F, M], valid frames [B])."""
        return self.fbank(wave, lengths)

    def frames(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, F, M] -> (frame-level [B, F', C], mask [B, F'] or None when nothing is padded)."""
        raise NotImplementedError

    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """[B, F', C] -> [B, embed_dim]."""
        raise NotImplementedError

    def embed(self, feats: Tensor, lengths: Tensor) -> Tensor:
        return self.pool(*self.frames(feats, lengths)).float()

    def forward(self, wave: Tensor, lengths: Tensor) -> Tensor:
        rows = len(wave) if self.training or torch.is_grad_enabled() else rows_at_once(wave)
        parts = zip(wave.split(rows), lengths.split(rows))
        return torch.cat([self.embed(*self.features(*part)) for part in parts])

    def param_groups(self) -> list[dict]:
        """Optimizer groups; `lr_scale` multiplies the run's learning rate (layer-wise rates). Frozen parts stay out."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr_scale": 1.0}]

    @staticmethod
    def needs_models(config) -> list[str]:
        """`DIR[@best|last]` of the trained models that `load_pretrained` reads; their weights identify the run."""
        return []

    def load_pretrained(self) -> None:
        """Before a training: load pre-trained parts that the config names. Extraction has no need of them."""

    def initial(self, weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
        """`--init`: the weights of another run's model, from its checkpoint `folder`, as this encoder takes them."""
        return weights

    def pull(self) -> Tensor | None:
        """Penalty that holds the weights near the pre-trained ones, if the encoder has one (`models.pull`)."""
        return None

    @property
    def normalizes_loss(self) -> bool:
        """Beside a pull, the main loss L is minimized as L / sg(L)."""
        return False

    def drift(self) -> dict[str, float]:
        """Layer -> relative distance of its weights from the pre-trained ones; empty where there are none."""
        return {}

    mask = staticmethod(frame_mask)
