"""All objectives: the section `objective` of a config."""

from typing import Annotated

from pydantic import Field

from pyspkv.objectives.aam import AAMConfig
from pyspkv.objectives.apc import APCConfig
from pyspkv.objectives.cola import COLAConfig
from pyspkv.objectives.contrastive import ContrastiveConfig
from pyspkv.objectives.dialogue import DialogueConfig
from pyspkv.objectives.dino import DINOConfig
from pyspkv.objectives.gll import GLLConfig, SupervisedConfig
from pyspkv.objectives.semi_supervised import (
    CDVATConfig,
    DistilConfig,
    GCLConfig,
    MeanTeacherConfig,
    PseudoLabelConfig,
)
from pyspkv.objectives.ssrl import SSRLConfig

ObjectiveConfig = Annotated[
    AAMConfig
    | ContrastiveConfig
    | DINOConfig
    | SSRLConfig
    | DialogueConfig
    | COLAConfig
    | APCConfig
    | SupervisedConfig
    | GLLConfig
    | PseudoLabelConfig
    | MeanTeacherConfig
    | DistilConfig
    | CDVATConfig
    | GCLConfig,
    Field(discriminator="name"),
]
