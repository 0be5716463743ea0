"""X-vector TDNN encoder (Snyder et al., "X-vectors: Robust DNN embeddings for speaker recognition", ICASSP 2018)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from pyspkv.base.config import Config, Count, Size, implements
from pyspkv.models.ecapa import ConvReluNorm, masked
from pyspkv.models.encoder import Encoder
from pyspkv.models.pooling import StatsPool


class XVectorConfig(Config):
    """X-vector TDNN (Snyder et al. 2018): the cheapest encoder for short utterances."""

    name: Literal["xvector"] = "xvector"
    channels: Size = Field(512, description="Width of the frame-level layers (512 in the paper).")
    pool_channels: Size = Field(
        1500,
        description="Width of the last frame-level layer, whose mean and deviation over time are pooled "
        "(1500 in the paper).",
    )
    embed_dim: Size = Field(512, description="Size of the embedding. 512 in the paper.")
    n_mels: Count = Field(
        40, description="Mel bands of the filterbank. --init needs a model with the same number."
    )


@implements(XVectorConfig)
class XVector(Encoder):
    """Table 1 of the paper: five frame-level layers, statistics pooling, and segment6's affine part as embedding.

    The cheapest encoder here for short utterances: no recurrence, no attention.
    """

    def __init__(self, config: XVectorConfig):
        super().__init__(config.n_mels)
        c = config
        self.embed_dim = c.embed_dim
        self.layers = nn.ModuleList(
            ConvReluNorm(inputs, outputs, kernel, dilation)
            for inputs, outputs, kernel, dilation in (
                (c.n_mels, c.channels, 5, 1),
                (c.channels, c.channels, 3, 2),
                (c.channels, c.channels, 3, 3),
                (c.channels, c.channels, 1, 1),
                (c.channels, c.pool_channels, 1, 1),
            )
        )
        self.stats = StatsPool()
        self.fc = nn.Linear(2 * c.pool_channels, c.embed_dim)

    def frames(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        mask = self.mask(lengths, feats.shape[1])
        x = feats
        for layer in self.layers:
            x = masked(layer(x), mask)  # padded frames must look like the zeros beyond an utterance's end
        return x, mask

    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        return self.fc(self.stats(frames, mask))
