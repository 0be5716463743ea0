"""Make a model folder from a pre-trained encoder: WavLM-Base+.pt, WavLM-Large.pt, the WavLM-MHFA authors' model, or a
Hugging Face folder of WavLM, Whisper, wav2vec 2.0, XLS-R, HuBERT or w2v-BERT 2.0.

    python -m pyspkv.bin.import_checkpoint --from WavLM-Base+.pt --out exp/wavlm_base_plus
    python -m pyspkv.bin.import_checkpoint --from whisper-tiny.en --out exp/whisper --layers 3

The folder can be used like any model: by bin.extract, bin.verify, --init, encoder.pretrained. A speaker model
is one that the authors have fine-tuned with MHFA.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from pyspkv.base.errors import UserError, run
from pyspkv.base.foreign import read_json

HINT = "import WavLM-Base, WavLM-Base+ or a model fine-tuned from one: other kinds have other layers"
TRUNK_HINT = "its config.json describes another network than its weights: download both again"


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.import_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--from", dest="source", required=True, metavar="FILE|DIR", help="the foreign checkpoint")
    p.add_argument("--out", required=True, metavar="DIR", help="model folder to write")
    p.add_argument(
        "--pooling",
        choices=["mhfa", "attentive", "weighted", "mean"],
        default="mhfa",
        help="mean: the mean of all layers and frames, for first labels from a pre-trained trunk. The others are to be "
        "trained, and new (seed 0) if the file has none",
    )
    p.add_argument("--layers", type=int, default=None, metavar="N", help="keep only the lowest N layers")
    return p.parse_args()


def source_digest(source: Path) -> str:
    """SHA-256 of a checkpoint file, or of all files of a folder in the order of their names."""
    found = hashlib.sha256()
    for file in sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]:
        with open(file, "rb") as f:
            found.update(hashlib.file_digest(f, "sha256").digest())
    return found.hexdigest()


def weights_digest(files: list[Path]) -> dict[str, str]:
    """SHA-256 of each file of the weights, by its name: as `sha256sum` and the sites of models give it."""
    out = {}
    for file in files:
        with open(file, "rb") as f:
            out[file.name] = hashlib.file_digest(f, "sha256").hexdigest()
    return out


def is_made_of(record: Path, made_of: dict) -> bool:
    """Whether run.json of a finished import names the same source and options. UserError: it is damaged."""
    hint = "give another --out, or remove this folder"
    found = read_json(record, hint=hint) if record.exists() else {}
    return all(found.get(key) == value for key, value in made_of.items())


def main() -> None:
    args = parse()
    source, out = Path(args.source), Path(args.out)
    if not source.is_dir() and not source.is_file():
        rule = "is not a plain file" if source.exists() else "no such file"
        raise UserError(rule, file=source, hint="give WavLM-Base+.pt, a speaker checkpoint, or a folder")
    if args.layers is not None and args.layers < 1:
        raise UserError(f"--layers {args.layers} must be above 0")
    made_of = {"sha256": source_digest(source), "pooling": args.pooling, "layers": args.layers}
    if (out / "LATEST").exists() and is_made_of(out / "run.json", made_of):
        print(f"imported already: {out}")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "contains another model" if (out / "LATEST").exists() else "exists and is not empty"
        raise UserError(what, file=out, hint="give another --out")

    import torch

    from pyspkv.base import checkpoint
    from pyspkv.base import config as cfg
    from pyspkv.models import trunk_import
    from pyspkv.models.load import check_sizes

    torch.manual_seed(0)
    read = read_trunk if trunk_import.is_trunk(source) else read_wavlm
    config, weights, made, told = read(source, args.pooling, args.layers)
    hint = TRUNK_HINT if config.name == "trunk" else HINT
    check_sizes(config, weights, source, tuple(made), hint=hint)
    encoder = cfg.build(config)
    own = {k: v for k, v in encoder.state_dict().items() if k.startswith(tuple(made))} if made else {}
    checkpoint.load_state_strict(encoder, {**own, **weights}, source, hint=hint)
    files = trunk_import.weight_files(source) if source.is_dir() else [source]
    record = {"command": sys.argv, "source": str(source), **made_of, "weights_sha256": weights_digest(files)}
    checkpoint.save_import(out, encoder, config, record)
    print(f"{told[0]}, {sum(p.numel() for p in encoder.parameters()):,} parameters{told[1]}: {out}")


def read_wavlm(source: Path, pooling: Any, layers: int | None) -> tuple[Any, dict, set[str], tuple[str, str]]:
    """A WavLM: its config, its weights, how the names begin that these may lack, and what to say of it."""
    from pyspkv.models import trunk_import, wavlm_import

    trunk, backend, head = wavlm_import.read(source)
    if trunk_import.is_large(trunk):
        return as_trunk(*trunk_import.of_large(trunk, source, pooling, layers or 0))
    config = wavlm_import.config_of(trunk, backend, source, pooling)
    if layers is not None:
        if layers > config.layers:
            raise UserError(f"--layers {layers}, but the model has {config.layers}", file=source)
        unused = tuple(f"encoder.layers.{n}." for n in range(layers, config.layers))
        trunk = {k: v for k, v in trunk.items() if not k.startswith(unused)} if unused else trunk
        backend = {} if unused else backend  # its shares are of all layers
        config = config.model_copy(update={"layers": layers})
    weights = {f"trunk.{k}": v for k, v in trunk.items()}
    part = backend if pooling == "mhfa" else {}
    weights |= {f"backend.{k}": v for k, v in part.items()}
    # Embedding does not use the mask vector of pre-training, so a checkpoint without it gets the initial one.
    made = {"trunk.masked_spec_embed"} - weights.keys() | ({"backend."} if not part else set())
    what = "with its MHFA" if part else f"pooling: {pooling}"
    with_head = f", {len(head)} class centers left out" if head is not None else ""
    return config, weights, made, (f"{config.layers} layers of {config.dim}, {what}", with_head)


def read_trunk(source: Path, pooling: Any, layers: int | None) -> tuple[Any, dict, set[str], tuple[str, str]]:
    """The same of another encoder."""
    from pyspkv.models import trunk_import

    return as_trunk(*trunk_import.read(source, pooling, layers or 0))


def as_trunk(config: Any, trunk: dict) -> tuple[Any, dict, set[str], tuple[str, str]]:
    """The same of a config and weights that `trunk_import` gives."""
    sizes = config.sizes()
    used = f"{config.layers or sizes.depth} of {sizes.depth} layers of {sizes.dim}"
    weights = {f"trunk.{k}": v for k, v in trunk.items()}
    return config, weights, {"backend."}, (f"{config.family}, {used}, pooling: {config.pooling}", "")


if __name__ == "__main__":
    run(main)
