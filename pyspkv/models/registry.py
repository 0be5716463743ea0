"""All encoders: the section `encoder` of a config."""

from typing import Annotated

from pydantic import Field

from pyspkv.models.dvector import DVectorConfig
from pyspkv.models.ecapa import ECAPAConfig
from pyspkv.models.resnet import ResNetConfig
from pyspkv.models.trunks import TrunkConfig
from pyspkv.models.wavlm import WavLMConfig
from pyspkv.models.xvector import XVectorConfig

EncoderConfig = Annotated[
    ECAPAConfig | ResNetConfig | WavLMConfig | TrunkConfig | DVectorConfig | XVectorConfig,
    Field(discriminator="name"),
]
