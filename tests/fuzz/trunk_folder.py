"""Fuzz target: a Hugging Face folder of a Whisper or a WavLM-Large with one replaced file.

It is imported, with all of its tensors finite, or refused with a UserError.
"""

import functools
import json
import tempfile
from pathlib import Path

from safetensors.torch import save

from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.models import trunk_import
from pyspkv.models.load import check_sizes
from pyspkv.models.trunks import TrunkConfig

WHISPER = {"d_model": 8, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 8}
WHISPER |= {"num_mel_bins": 80, "max_source_positions": 20}
WAVLM = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
WAVLM |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "conv_dim": [4] * 7}
WAVLM |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
NAMES = ("config.json", "preprocessor_config.json", "model.safetensors.index.json", "model-1.safetensors")


@functools.cache
def folder(family: str) -> dict[str, bytes]:
    """The files of a sound folder."""
    sizes = WHISPER if family == "whisper" else WAVLM
    prefix = "model.encoder." if family == "whisper" else ""
    trunk = cfg.build(TrunkConfig(family=family, arch=sizes, pooling="mean")).trunk
    weights = {prefix + name: value.contiguous() for name, value in trunk.state_dict().items()}
    index = {"weight_map": dict.fromkeys(weights, NAMES[3])}
    texts = [{"model_type": family, **sizes}, {"do_normalize": family == "wavlm"}, index]
    return dict(zip(NAMES, [*(json.dumps(t).encode() for t in texts), save(weights)]))


def seeds() -> list[bytes]:
    return [
        bytes([4 * (family == "wavlm") + i]) + raw
        for family in ("whisper", "wavlm")
        for i, raw in enumerate(folder(family).values())
    ]


def target(data: bytes) -> None:
    """The first byte chooses model and file; the other bytes are the file's content."""
    family, file = divmod(data[0] % 8 if data else 0, 4)
    with tempfile.TemporaryDirectory() as path:
        source = Path(path)
        for name, raw in {**folder(("whisper", "wavlm")[family]), NAMES[file]: data[1:]}.items():
            (source / name).write_bytes(raw)
        if not trunk_import.is_trunk(source):
            return
        config, weights = trunk_import.read(source, "mean")
        weights = {f"trunk.{name}": value for name, value in weights.items()}
        check_sizes(config, weights, source)
        encoder = cfg.build(config)
        checkpoint.load_state_strict(encoder, weights, source)
        assert all(value.isfinite().all() for value in encoder.state_dict().values())
