"""APC pre-training (Chung, Hsu, Tang, Glass 2019, arXiv 1904.03240): predict the frame n ahead from those before."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from pyspkv.base.config import Config, Seconds, implements
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.objectives.base import Losses, Objective, RunInfo


class APCConfig(Config):
    """APC (Chung et al. 2019): predict a frame from those before it; needs the encoder dvector."""

    name: Literal["apc"] = "apc"
    crop_seconds: Seconds = Field(1.0, description="Length of a training crop.")
    ahead: int = Field(
        1,
        ge=1,
        description="How many frames of 10 ms the predicted frame lies ahead (n in the paper, 1 to 20). It "
        "is below the frames of crop_seconds.",
    )

    @model_validator(mode="after")
    def _inside_the_crop(self) -> "APCConfig":
        if self.ahead >= 100 * self.crop_seconds - 3:  # frames of 25 ms, 10 ms apart
            raise ValueError(f"ahead {self.ahead} is not in 1 .. frames of crop_seconds")
        return self


@implements(APCConfig)
class APC(Objective):
    """L1 between the features at t + n and a linear prediction from the encoder's frame t; the predictor goes."""

    def __init__(self, config: APCConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        if not encoder.causal:
            raise UserError(
                "objective apc needs an encoder that does not see the future: this one would copy its input",
                hint="encoder: {name: dvector}",
            )
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
