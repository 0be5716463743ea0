"""The config of a training: bin.train reads it, and the model folder keeps it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from pyspkv.base import config as cfg
from pyspkv.base.config import Config, NotNegative, Positive
from pyspkv.base.schedules import LRScheduleConfig
from pyspkv.batches.augment import AugmentConfig
from pyspkv.batches.sampler import SamplerConfig, ShuffleConfig
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.registry import ObjectiveConfig


class OptimConfig(Config):
    """The optimizer and its learning rate."""

    name: Literal["adam", "adamw", "sgd"] = Field(
        "adamw", description="adamw works for most trainings; use adam and sgd to follow papers."
    )
    lr: Positive = Field(
        1e-3,
        description="Learning rate after the warm-up. Lower it when the loss jumps or a run collapses; "
        "scale it with batch_size.",
    )
    weight_decay: NotNegative = Field(
        1e-2,
        description="Weight decay of weight matrices; biases and norms have none. Raise it when a small corpus is "
        "overfitted.",
    )
    momentum: float = Field(
        0.9, ge=0, lt=1, description="Momentum of sgd; the other optimizers do not use it."
    )
    grad_clip_norm: Positive | None = Field(
        5.0, description="Largest norm of the gradient; larger ones are scaled down. null: no clipping."
    )
    clip_per_parameter: bool = Field(
        False, description="Clip the gradient of each parameter separately, as the authors of DINO do."
    )
    lr_schedule: LRScheduleConfig = Field(
        LRScheduleConfig(), description="How the learning rate moves over the run."
    )


class TrainConfig(Config):
    """A training: network, loss, batches, augmentation and optimizer."""

    encoder: EncoderConfig = Field(description="The network that extraction uses.")
    objective: ObjectiveConfig = Field(description="The loss, its heads and its crops.")
    sampler: SamplerConfig = Field(ShuffleConfig(), description="Which utterances form a batch.")
    augment: AugmentConfig = Field(AugmentConfig(), description="Noise, reverberation and speed.")
    optim: OptimConfig = Field(OptimConfig(), description="Optimizer, learning rate and its schedule.")
    epochs: int = Field(
        10,
        ge=0,
        le=10**6,
        description="Passes over the data. 0: no training, as a baseline.",
    )
    batch_size: int = Field(
        64,
        ge=1,
        le=10**6,
        description="Utterances of a batch over all processes, not more than there are. Contrastive losses "
        "gain from large ones.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: bf16 if the hardware is fast with it. Set fp32 if a loss is not finite.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="Seed of everything random. Runs that differ only in the seed show how certain a figure is.",
    )
    allow_pipes: bool = Field(
        False, description="Run `command |` entries of wav.scp. Only for lists that you trust."
    )
    num_workers: int = Field(
        1,
        ge=0,
        le=1024,
        description="Processes that prepare batches; 0: the training process does it. Raise it when "
        "`data_wait` in train.jsonl is high.",
    )
    cache_mb: NotNegative = Field(
        1024,
        description="Decoded audio kept in memory, in MB. Raise it when the corpus nearly fits; 0: none.",
    )
    log_every_steps: int = Field(50, ge=1, le=10**12, description="Steps between two records in train.jsonl.")
    save_every_steps: int = Field(
        1000,
        ge=1,
        le=10**12,
        description="Steps between two checkpoints; there is one at every epoch's end, too. Lower it where "
        "jobs are often killed.",
    )
    rooms_dir: str | None = Field(
        None,
        description="Folder of simulated rooms, to share them between trainings. null: the model folder.",
    )


# These keys say how a run computes, not what. A resumed run may change them.
MAY_CHANGE_ON_RESUME = ("num_workers", "cache_mb", "log_every_steps", "save_every_steps", "rooms_dir")


def load_config(
    files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    where_known: Sequence[str] = (),
    warn: Callable[[str], None] | None = None,
) -> TrainConfig:
    """The config of a training, from files and `key.sub=value` overrides; `warn` as in `config.load`.

    where_known: overrides that hold where the chosen encoder, objective, ... has the key. `overrides` are stronger.
    """
    if where_known:
        chosen = cfg.load(TrainConfig, files, overrides)
        overrides = [*cfg.known(chosen, where_known), *overrides]
    return cfg.load(TrainConfig, files, overrides, warn)
