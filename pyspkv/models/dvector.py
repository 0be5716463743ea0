"""LSTM d-vector encoder (Wan et al. 2018, arXiv 1710.10467): the last frame's output is the utterance's."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pyspkv.base.config import Config, Count, Size, implements
from pyspkv.models.encoder import Encoder
from pyspkv.models.norm import BatchNorm


class DVectorConfig(Config):
    """LSTM d-vectors (Wan et al. 2018): for small corpora, and the encoder that apc can pre-train."""

    name: Literal["dvector"] = "dvector"
    hidden: Size = Field(
        256, description="Units of each LSTM layer (768 in the paper). Larger is slower on a CPU."
    )
    layers: Count = Field(3, description="LSTM layers (3 in the paper).")
    embed_dim: Size = Field(256, description="Size of the embedding. 256 in the paper.")
    n_mels: Count = Field(
        40, description="Mel bands of the filterbank. --init needs a model with the same number."
    )


@implements(DVectorConfig)
class DVector(Encoder):
    """Causal: a frame's output depends on the frames up to it, so APC can pre-train it."""

    causal = True

    def __init__(self, config: DVectorConfig):
        super().__init__(config.n_mels)
        self.embed_dim, self.frame_dim = config.embed_dim, config.hidden
        self.lstm = nn.LSTM(config.n_mels, config.hidden, config.layers, batch_first=True)
        self.fc = nn.Linear(config.hidden, config.embed_dim)
        self.out_norm = BatchNorm(config.embed_dim)  # without it GE2E drew all speakers onto one point

    def frames(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        if feats.device.type == "cuda":  # whose autocast runs an LSTM in float16, where small gradients are 0
            with torch.autocast("cuda", enabled=False):
                return self.lstm(feats.float())[0], self.mask(lengths, feats.shape[1])
        return self.lstm(feats)[0], self.mask(lengths, feats.shape[1])

    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            last = frames[:, -1]
        else:
            last = frames[torch.arange(len(frames), device=frames.device), mask.sum(1) - 1]
        return self.out_norm(self.fc(last))
