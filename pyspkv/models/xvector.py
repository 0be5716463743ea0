"""X-vector TDNN encoder (Snyder et al., "X-vectors: Robust DNN embeddings for speaker recognition", ICASSP 2018)."""

from dataclasses import dataclass

from torch import Tensor, nn

from pyspkv.models.ecapa import ConvReluNorm, masked
from pyspkv.models.encoder import Encoder
from pyspkv.models.pooling import StatsPool


@dataclass(kw_only=True)
class XVectorConfig:
    channels: int = 512  # width of the frame-level layers
    pool_channels: int = 1500  # width of the last one, whose mean and deviation over time are the utterance's
    embed_dim: int = 512
    n_mels: int = 40


class XVector(Encoder):
    """Table 1 of the paper: five frame-level layers, statistics pooling, and segment6's affine part as embedding.

    The cheapest encoder here for short utterances: no recurrence, no attention.
    """

    Config = XVectorConfig

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
