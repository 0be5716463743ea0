"""Hugging Face folders of other encoders than WavLM-Base -> config and weights of a `trunk`; and a WavLM as a `trunk`.

A folder holds config.json, the weights (model.safetensors or pytorch_model.bin, in one file or in several with an
index), and often preprocessor_config.json or processor_config.json. It may be of a larger model, of which the encoder
alone is taken.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pyspkv.audio.reader import SAMPLE_RATE
from pyspkv.base.errors import UserError
from pyspkv.base.foreign import read_json, short
from pyspkv.models import wavlm_import
from pyspkv.models.layer_pooling import Pooling
from pyspkv.models.trunk_arch import MODEL_TYPES, Family, WavLMArch, essential
from pyspkv.models.trunks import TrunkConfig, as_trunk
from pyspkv.models.wavlm import CONV_KERNELS, WavLMConfig
from pyspkv.models.wavlm_import import AGAIN, folder_tensors

Parts = tuple[Any, dict, set[str], tuple[str, str]]
_PREFIXES: dict[Family, tuple[str, ...]] = {  # of the encoder's names in a larger model, the longest first
    "whisper": ("model.encoder.", "encoder."),
    "wav2vec2": ("wav2vec2.",),
    "hubert": ("hubert.",),
    "w2v_bert": ("wav2vec2_bert.",),
    "wavlm": ("wavlm.",),
}
_BASE_SIZES = (  # of config.json, which a WavLMConfig has, too
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "conv_dim",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
)
_UNUSED = (
    "masked_spec_embed",
    "adapter.",
    "intermediate_ffn.",
)  # of pre-training, and of what lies behind the layers


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder. UserError: it names no family that is known here."""
    found = read_json(folder / "config.json", hint=AGAIN, nan=True)
    kind = found.get("model_type")
    if kind is None:
        raise UserError("has no model_type", file=folder / "config.json")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise UserError(
            f"model_type is {short(kind)}, not one of {', '.join(MODEL_TYPES)}", file=folder / "config.json"
        )
    return found


def is_trunk(source: Path) -> bool:
    """Whether a source is a folder that `name: wavlm` cannot compute: all but WavLM-Base's network, of any size."""
    if not (source / "config.json").is_file():
        return False
    family, arch = read_arch(source)
    return family != "wavlm" or not is_base(arch)


def is_base(arch: dict[str, Any]) -> bool:
    """Whether the sizes of a WavLM are those of a `WavLMConfig`: all that such a config cannot set is as in Base."""
    base = WavLMArch(do_normalize=False).model_dump(mode="json")
    same = all(arch[key] == value for key, value in base.items() if key not in _BASE_SIZES)
    return same and arch["conv_dim"] == arch["conv_dim"][:1] * len(CONV_KERNELS)


def read_arch(folder: Path) -> tuple[Family, dict[str, Any]]:
    """Family, and what the network is built from. UserError: config.json has what is not known here."""
    found = read_config(folder)
    family, file = MODEL_TYPES[found["model_type"]], folder / "config.json"
    more = _preprocessing(folder, family, found)
    if found.get("conv_pos_batch_norm"):
        raise UserError("conv_pos_batch_norm is not known here", file=file)
    if found.get("adapter_attn_dim"):
        raise UserError("adapter_attn_dim is not known here", file=file, hint="import the model without it")
    try:
        return family, essential(family, {**found, **more})
    except ValueError as err:
        raise UserError(_first_line(err), file=file) from None


def read(folder: Path, pooling: Pooling = "mhfa", layers: int = 0) -> tuple[TrunkConfig, dict[str, Tensor]]:
    """(config, the trunk's weights by transformers' names, float32) of a folder; `layers` 0: all."""
    family, arch = read_arch(folder)
    try:
        config = TrunkConfig(family=family, arch=arch, pooling=pooling, layers=layers)
    except ValueError as err:
        raise UserError(_first_line(err), file=folder / "config.json") from None
    weights = {k: v.float() for k, v in _of_encoder(folder_tensors(folder), config).items()}
    if bad := next((k for k, v in weights.items() if not v.isfinite().all()), None):
        raise UserError(f"tensor {short(bad)} contains NaN or infinity", file=folder)
    return config, weights


def is_large(trunk: dict[str, Tensor]) -> bool:
    """Whether the tensors of a WavLM, by transformers' names, have the layer norms of WavLM-Large."""
    return "feature_extractor.conv_layers.1.layer_norm.weight" in trunk


def of_wavlm(
    config: WavLMConfig, trunk: dict[str, Tensor], file: Path, layers: int = 0
) -> tuple[TrunkConfig, dict[str, Tensor]]:
    """A WavLM's config and trunk as those of a `trunk`. Large is told by its tensors; its samples are normalized."""
    large: dict[str, Any] = {}
    if is_large(trunk):
        bias = "feature_extractor.conv_layers.0.conv.bias" in trunk
        large = {
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "do_normalize": True,
            "conv_bias": bias,
        }
    made = as_trunk(config, file, **large).model_copy(update={"layers": layers})
    return made, _of_encoder(trunk, made)


def read_wavlm(source: Path, pooling: Pooling, layers: int | None, wanted: bool) -> Parts:
    """`parts` of a WavLM, as a `trunk` where it is a Large, or where one is `wanted`."""
    trunk, backend, head = wavlm_import.read(source)
    config: Any = wavlm_import.config_of(trunk, backend, source, pooling)
    if layers is not None and layers > config.layers:
        raise UserError(f"--layers {layers}, but the model has {config.layers}", file=source)
    unused = tuple(f"encoder.layers.{n}." for n in range(layers or config.layers, config.layers))
    part = backend if pooling == "mhfa" and not unused else {}  # its shares are of all layers
    if wanted or is_large(trunk):
        config, trunk = of_wavlm(config, trunk, source, layers or 0)
    elif unused:
        trunk = {k: v for k, v in trunk.items() if not k.startswith(unused)}
        config = config.model_copy(update={"layers": layers})
    left = ["its MHFA"] if backend and not part else []
    left += [f"{len(head)} class centers"] if head is not None else []
    return parts(config, trunk, part, left)


def parts(config: Any, trunk: dict, backend: dict | None = None, left: Sequence[str] = ()) -> Parts:
    """The config, the weights, how the names begin that these may lack, and what to say of the model. left: what of
    the source is not in it."""
    weights = {f"trunk.{k}": v for k, v in trunk.items()}
    weights |= {f"backend.{k}": v for k, v in (backend or {}).items()}
    made = set() if backend else {"backend."}
    if config.name == "trunk":
        sizes = config.sizes()
        used = f"{config.family}, {config.layers or sizes.depth} of {sizes.depth} layers of {sizes.dim}"
    else:
        used = f"{config.layers} layers of {config.dim}"
        # Embedding does not use the mask vector of pre-training, so a checkpoint without it gets the initial one.
        made |= {"trunk.masked_spec_embed"} - weights.keys()
    what = "with its MHFA" if backend else f"pooling: {config.pooling}"
    return config, weights, made, (f"{used}, {what}", f", {' and '.join(left)} left out" if left else "")


def _first_line(err: ValueError) -> str:
    """The reason alone, where pydantic says it in several lines."""
    errors = getattr(err, "errors", None)
    if errors is None:
        return str(err)
    first = errors()[0]
    return str(first.get("ctx", {}).get("error", first["msg"]))


def _preprocessing(folder: Path, family: Family, found: dict[str, Any]) -> dict[str, Any]:
    """do_normalize of the feature extractor; where none is told as transformers takes it, but for WavLM-Base.

    UserError: the model hears another sampling rate.
    """
    file, told = _feature_extractor(folder)
    rate = told.get("sampling_rate")
    if rate not in (None, SAMPLE_RATE):
        rule = f"sampling_rate is {short(rate)}, but all audio here is resampled to {SAMPLE_RATE} Hz"
        raise UserError(rule, file=file, hint=f"import a model of {SAMPLE_RATE} Hz")
    if family in ("whisper", "w2v_bert"):
        return {}
    said = told.get("do_normalize")
    if said is not None and not isinstance(said, bool):
        raise UserError(f"do_normalize is {short(said)}", file=file)
    default = family != "wavlm" or found.get("feat_extract_norm") == "layer"
    return {"do_normalize": default if said is None else said}


def _feature_extractor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the settings of the feature extractor, and the settings, {} where there are none.

    transformers 5 writes them into processor_config.json when it saves a processor, and reads them there first.
    """
    file = folder / "processor_config.json"
    inner = read_json(file, hint=AGAIN, nan=True).get("feature_extractor") if file.is_file() else None
    if inner is not None and not isinstance(inner, dict):
        raise UserError(f"feature_extractor is {short(inner)}", file=file, hint=AGAIN)
    if inner is not None:
        return file, inner
    file = folder / "preprocessor_config.json"
    return file, read_json(file, hint=AGAIN, nan=True) if file.is_file() else {}


def _of_encoder(tensors: dict[str, Tensor], config: TrunkConfig) -> dict[str, Tensor]:
    """The tensors that the encoder's layers in use have, by the names of transformers' encoder."""
    assert config.family is not None
    for prefix in _PREFIXES[config.family]:
        inner = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        inner = {} if prefix == "encoder." and any(k.startswith("model.") for k in tensors) else inner
        if inner:
            tensors = inner
            break
    layers, depth = config.layers or config.sizes().depth, config.sizes().depth
    out = {}
    for key, value in tensors.items():
        key = re.sub(r"conv\.weight_g$", "conv.parametrizations.weight.original0", key)
        key = re.sub(r"conv\.weight_v$", "conv.parametrizations.weight.original1", key)
        number = re.match(r"(?:encoder\.)?layers\.(\d{1,4})\.", key)
        above = number is not None and layers <= int(number[1]) < depth
        if not above and not key.startswith(_UNUSED) and not (layers < depth and _is_final_norm(key, config)):
            out[key] = value
    return out


def _is_final_norm(key: str, config: TrunkConfig) -> bool:
    if config.family == "whisper":
        return key.startswith("layer_norm.")
    return bool(config.arch.get("do_stable_layer_norm")) and key.startswith("encoder.layer_norm.")
