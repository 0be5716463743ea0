"""APC pre-training (Chung, Hsu, Tang, Glass 2019, arXiv 1904.03240): predict the frame n ahead from those before."""

from dataclasses import dataclass

import torch
from torch import nn

from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.base import Losses, Objective, RunInfo


@dataclass(kw_only=True)
class APCConfig:
    crop_seconds: float = 1.0
    ahead: int = 1  # n, in frames of 10 ms


class APC(Objective):
    """L1 between the features at t + n and a linear prediction from the encoder's frame t; the predictor goes."""

    Config = APCConfig

    def __init__(self, config: APCConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        if not encoder.causal:
            raise UserError(
                "objective apc needs an encoder that does not see the future: this one would copy its input",
                hint="encoder: {name: dvector}",
            )
        if not 1 <= config.ahead < 100 * config.crop_seconds - 3:  # frames of 25 ms, 10 ms apart
            raise UserError(f"objective.ahead {config.ahead} is not in 1 .. frames of crop_seconds")
        self.config = config
        for behind in (encoder.fc, encoder.out_norm):  # the frames: this loss does not reach them
            behind.requires_grad_(False)
        self.predictor = nn.Linear(encoder.frame_dim, encoder.fbank.mel.shape[1])

    def views(self) -> dict[str, View]:
        return {"main": View(self.config.crop_seconds)}

    def forward(self, batch: Batch) -> Losses:
        n = self.config.ahead
        feats, lengths = self.encoder.features(*batch.views["main"])
        frames, _ = self.encoder.frames(feats, lengths)  # crops: all of one length
        with torch.autocast(feats.device.type, enabled=False):
            loss = (self.predictor(frames[:, :-n].float()) - feats[:, n:]).abs().mean((1, 2))
        return Losses({"apc": (loss.sum(), len(loss))})
