"""The encoder of a model folder."""

import math
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.models.encoder import Encoder
from pyspkv.models.registry import EncoderConfig
from pyspkv.models.trunks import TrunkConfig, merged


def encoder_config(folder: Path) -> EncoderConfig:
    """The encoder's config from config.yaml of the model folder (next to its checkpoints)."""
    return cfg.read_section(folder.parent / "config.yaml", "encoder", EncoderConfig)


def resolved(config: EncoderConfig) -> EncoderConfig:
    """The config with all that it takes from the model that it names: a model folder needs no other one. UserError: it
    has that already, as the config.yaml of a model folder does, but of another network."""
    if not isinstance(config, TrunkConfig) or not config.pretrained:
        return config
    folder = checkpoint.resolve_model(config.pretrained)
    found = config.with_sizes_of(encoder_config(folder), folder)
    if config.family is None:
        return found
    if (config.family, config.sizes()) != (found.family, found.sizes()):
        raise UserError(
            "is another network than encoder.family and encoder.arch of the config",
            file=folder,
            hint="leave both out of the config: they are taken from encoder.pretrained",
        )
    return config


def load_encoder(model: str | Path, which: str = "last") -> Encoder:
    """Encoder of a model folder (`DIR`, `DIR@best`) in evaluation mode: wave [B, T], lengths [B] -> [B, D]. Low-rank
    updates (LoRA) are merged into their matrices."""
    folder = checkpoint.resolve_model(
        model if str(model).endswith(("@best", "@last")) else f"{model}@{which}"
    )
    config, weights = encoder_config(folder), checkpoint.encoder_weights(folder)
    check_sizes(config, weights, folder)
    encoder = cfg.build(merged_config(config))
    checkpoint.load_state_strict(encoder, merged(weights, folder), folder)
    return encoder.eval()


def merged_config(config: EncoderConfig) -> EncoderConfig:
    """The config of the same encoder without low-rank updates."""
    return config.model_copy(update={"lora_rank": 0}) if isinstance(config, TrunkConfig) else config


class _Shapes(TorchFunctionMode):
    """Large parameters start from shapes alone, on the meta device, which take no memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            sizes = args[0] if args and isinstance(args[0], (tuple, list)) else args
            if math.prod(n for n in sizes if isinstance(n, int)) > 4096:
                kwargs["device"] = "meta"
        return func(*args, **kwargs)


def check_sizes(
    config: EncoderConfig,
    weights: dict[str, torch.Tensor],
    folder: Path,
    made: tuple[str, ...] = (),
    hint: str | None = None,
) -> None:
    """UserError: the encoder of `config` has other tensors. Nothing of its size is allocated to find out.

    made: how the names begin that `weights` need not hold.
    """
    for name in ("layers", "blocks"):
        found = getattr(config, name, 0)
        if (count := sum(found) if isinstance(found, (tuple, list)) else found) > len(weights):
            rule = f"config.yaml has {count} {name}, but its checkpoint contains {len(weights)} tensors"
            raise UserError(rule, file=folder, hint=hint or checkpoint.AGAIN)
    try:
        with torch.random.fork_rng(devices=[]), _Shapes():
            ours = cfg.build(config).state_dict()
    except UserError:  # the true one says it better
        return
    checkpoint.compare(
        {k: v for k, v in ours.items() if k in weights or not k.startswith(made)}, weights, folder, hint
    )
