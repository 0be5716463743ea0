"""Foreign WavLM files -> our encoder's config and weights: key names of unilm and of the paper's speaker checkpoint.

The weights of other encoders are read by `trunk_import`, with the checks of files that are here.

Three layouts are known: Microsoft's `{cfg, model}` (WavLM-Base+.pt), the authors' speaker
model (259 tensors `__S__.model.*`, `__S__.backend.*`, `__L__.weight`), and a Hugging Face folder. Files are read with
weights_only: nothing in them is executed.
"""

import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyspkv.base.errors import UserError
from pyspkv.base.foreign import first_bytes, read_json, regular, safetensors_header, short
from pyspkv.models.layer_pooling import Pooling
from pyspkv.models.wavlm import WavLMConfig

AGAIN = "copy or download it again"
NO_MODEL = "has no config.json with model.safetensors or pytorch_model.bin"
MAX_LAYERS = 200  # WavLM-Large has 24
MAX_FILES = 500  # of the weights of one model

_RENAMES = [  # unilm -> transformers, in this order
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.weight$", r"feature_extractor.conv_layers.\1.conv.weight"),
    (
        r"^feature_extractor\.conv_layers\.(\d+)\.2\.1\.",
        r"feature_extractor.conv_layers.\1.layer_norm.",
    ),  # Large
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.bias$", r"feature_extractor.conv_layers.\1.conv.bias"),
    (r"^feature_extractor\.conv_layers\.0\.2\.", "feature_extractor.conv_layers.0.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^encoder\.pos_conv\.0\.bias$", "encoder.pos_conv_embed.conv.bias"),
    (
        r"^encoder\.pos_conv(\.0|_embed\.conv)\.weight_g$",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    ),
    (
        r"^encoder\.pos_conv(\.0|_embed\.conv)\.weight_v$",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    ),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
]


def rename(key: str) -> str:
    """unilm's (or an older transformers') name of a trunk tensor -> transformers' name."""
    for pattern, new in _RENAMES:
        key = re.sub(pattern, new, key)
    return key


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """(trunk by transformers' names, MHFA or {}, class centers or None) of a foreign file or folder."""
    if path.is_dir():
        return _trunk(_folder(path)), {}, None
    if not path.is_file():
        raise UserError(
            "no such file", file=path, hint="give WavLM-Base+.pt, a speaker checkpoint, or a folder"
        )
    if path.name == "config.json":
        raise UserError("contains no weights", file=path, hint=give_folder(path.parent))
    found = _load(path)
    if isinstance(found.get("model"), dict) and all(isinstance(v, Tensor) for v in found["model"].values()):
        return _trunk(_sound(found["model"], path)), {}, None  # its cfg says nothing that the shapes do not
    if not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError("contains neither {cfg, model} nor named tensors", file=path)
    parts: dict[str, dict[str, Tensor]] = {"__S__.model.": {}, "__S__.backend.": {}, "__L__.": {}}
    for key, value in _sound(found, path).items():
        prefix = next((p for p in parts if key.startswith(p)), None)
        if prefix is None:
            hint = give_folder(path.parent) if (path.parent / "config.json").is_file() else None
            raise UserError(f"its tensor {short(key)} belongs to no known layout", file=path, hint=hint)
        parts[prefix][key[len(prefix) :]] = value
    trunk, backend, head = parts.values()
    return _trunk(trunk), {k: v.float() for k, v in backend.items()}, head.get("weight")


def named_tensors(path: Path) -> dict[str, Tensor]:
    """A dictionary name -> tensor of floats, as torch.save writes one. UserError: it is another thing. Nothing in the
    file is executed."""
    found = _load(path)
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError("contains no dictionary of tensors", file=path)
    return _sound(found, path)


def _load(path: Path) -> dict:
    """The dictionary in a checkpoint file. Nothing in it is executed; what torch says of a broken file, which may be
    the advice to load it unsafely, is not passed on."""
    first_bytes(path)
    if path.suffix == ".safetensors":
        safetensors_header(path)
    with open(path, "rb") as f:
        zipped = f.read(4) == b"PK\x03\x04"
    if zipped:
        check_zip(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception,
        RecursionError,
    ) as err:  # torch raises many kinds of errors for broken or hostile files
        raise UserError(f"cannot be read as a checkpoint{_why(err)}", file=path, hint=AGAIN) from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError("contains no dictionary of tensors", file=path)
    return found


def _why(err: BaseException) -> str:
    """What torch's unpickler found, in our words."""
    if wanted := re.search(r"GLOBAL ([\w.]{1,100})", str(err)):
        return f" without running its code ({wanted[1]})"
    if isinstance(err, (EOFError, struct.error)):
        return ": it is cut short"
    return f" without running its code ({type(err).__name__})"


def check_zip(path: Path) -> None:
    """UserError: the archive that torch writes is cut short, or its parts are packed or lie over one another."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError):
        raise UserError(
            "is cut short, or damaged: its table of contents is missing", file=path, hint=AGAIN
        ) from None
    packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if packed or sum(part.file_size for part in parts) > regular(path):
        raise UserError("is packed: its tensors are larger than the file", file=path, hint="unpack it first")


def weight_files(folder: Path) -> list[Path]:
    """The files of the weights. UserError: there are none, or the index names something else than files beside it."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            named = read_json(index, hint=AGAIN).get("weight_map")
            names = set(named.values()) if isinstance(named, dict) and _all_text(named) else set()
            if not names or len(names) > MAX_FILES:
                raise UserError("has no weight_map of tensors and files", file=index, hint=AGAIN)
            for file in sorted(names):
                if not re.fullmatch(r"[\w.-]{1,100}\.(safetensors|bin)", file):
                    raise UserError(
                        f"names {short(file)}, which is no file beside it", file=index, hint=AGAIN
                    )
                if not (folder / file).is_file():
                    raise UserError("no such file", file=folder / file, hint=AGAIN)
            return [folder / file for file in sorted(names)]
    raise UserError(NO_MODEL, file=folder, hint="download the weights of PyTorch, too")


def give_folder(folder: Path) -> str:
    return f"give its folder, {folder}"


def _all_text(named: dict) -> bool:
    return all(isinstance(file, str) for file in named.values())


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's files of weights, by the names there."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= _sound({k: v for k, v in _load(file).items() if isinstance(v, Tensor)}, file)
    return tensors


def _folder(path: Path) -> dict[str, Tensor]:
    if not (path / "config.json").is_file():
        found = sorted(file.parent for file in path.glob("snapshots/*/config.json"))  # of a cache of the hub
        raise UserError(NO_MODEL, file=path, hint=f"give the folder in it, {found[-1]}" if found else None)
    kind = read_json(path / "config.json", hint=AGAIN, nan=True).get("model_type")
    if kind is None:
        raise UserError("has no model_type", file=path / "config.json")
    if kind != "wavlm":
        raise UserError(f"model_type is {short(kind)}, not 'wavlm'", file=path / "config.json")
    tensors = folder_tensors(path)
    inner = {k[6:]: v for k, v in tensors.items() if k.startswith("wavlm.")}  # a model with a head around it
    return inner or tensors


def _sound(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors themselves. UserError: one is no plain array of numbers that lies in the file as a whole."""
    total = 0
    for key, v in tensors.items():
        odd = None
        if v.layout != torch.strided or v.is_quantized or v.is_nested:
            odd = "is sparse, quantised or nested"
        elif v.device.type != "cpu":
            odd = "is a shape without numbers"
        elif not (v.is_floating_point() and v.element_size() >= 2):
            odd = f"is of type {str(v.dtype).removeprefix('torch.')}"
        elif v.numel() == 0:
            odd = "is empty"
        elif v.untyped_storage().nbytes() < v.numel() * v.element_size():
            odd = "repeats its numbers (expanded)"
        if odd:
            raise UserError(
                f"its tensor {short(key)} {odd}", file=path, hint="save the weights as plain float tensors"
            )
        total += v.numel() * v.element_size()
    if total > 4 * regular(path):  # many names may share one array, but not without end
        raise UserError("its tensors are larger than the file", file=path, hint="save each tensor once")
    return tensors


def _trunk(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {rename(k): v.float() for k, v in tensors.items()}


def config_of(
    trunk: dict[str, Tensor], backend: dict[str, Tensor], file, pooling: Pooling = "mhfa"
) -> WavLMConfig:
    """The sizes, from the shapes."""
    try:
        proj = trunk["feature_projection.projection.weight"]
        heads = trunk["encoder.layers.0.attention.rel_attn_embed.weight"].shape[1]
        pos = trunk["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
        sizes: dict[str, Any] = {
            "layers": _count_layers(trunk, file),
            "dim": proj.shape[0],
            "heads": heads,
            "ffn": trunk["encoder.layers.0.feed_forward.intermediate_dense.weight"].shape[0],
            "conv_dim": proj.shape[1],
            "pos_conv_kernel": pos.shape[2],
            "pos_conv_groups": pos.shape[0] // pos.shape[1],
        }
        if backend:
            sizes["mhfa_heads"], sizes["mhfa_dim"] = backend["att_head.weight"].shape
            sizes["embed_dim"] = backend["pooling_fc.weight"].shape[0]
        c = WavLMConfig(pooling=pooling, **sizes)
    except KeyError as err:
        raise UserError(f"is not a WavLM: tensor {err.args[0]} is missing", file=file) from None
    except (ValueError, IndexError, ZeroDivisionError):
        raise UserError("is not a WavLM: its tensors have other names or shapes", file=file) from None
    if bad := next((k for k, v in {**trunk, **backend}.items() if not v.isfinite().all()), None):
        raise UserError(f"tensor {short(bad)} contains NaN or infinity", file=file)
    return c


def _count_layers(trunk: dict[str, Tensor], file) -> int:
    """Layers 0 .. L-1, each with tensors."""
    named = {k.split(".")[2] for k in trunk if k.startswith("encoder.layers.")}
    if len(named) > MAX_LAYERS or named != {str(n) for n in range(len(named))}:
        rule = (
            f"is not a WavLM: its {len(named)} layers are not numbered 0 to {min(len(named), MAX_LAYERS) - 1}"
        )
        raise UserError(rule, file=file)
    return len(named)
