"""Make a model folder from a pre-trained encoder: WavLM-Base+.pt, WavLM-Large.pt, the WavLM-MHFA authors' model, or a
Hugging Face folder of WavLM, Whisper, wav2vec 2.0, XLS-R, HuBERT or w2v-BERT 2.0.

    python -m pyspkv.bin.import_checkpoint --from WavLM-Base+.pt --out exp/wavlm_base_plus
    python -m pyspkv.bin.import_checkpoint --from whisper-tiny.en --out exp/whisper --layers 3

The folder can be used like any model: by bin.extract, bin.verify, --init, encoder.pretrained. A speaker model
is one that the authors have fine-tuned with MHFA. A WavLM of Base's kind becomes an encoder `name: wavlm`, all others
become `name: trunk`.
"""

import argparse
import hashlib
import sys
from pathlib import Path

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
    p.add_argument(
        "--as-trunk",
        action="store_true",
        help="make an encoder `name: trunk` of WavLM-Base as well, which has LoRA, adapters and frozen_epochs",
    )
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
    made_of["as_trunk"] = args.as_trunk or None  # folders from before this option have no such entry
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
    from pyspkv.models.wavlm_import import weight_files

    torch.manual_seed(0)
    if trunk_import.is_trunk(source):
        found = trunk_import.parts(*trunk_import.read(source, args.pooling, args.layers or 0))
    else:
        found = trunk_import.read_wavlm(source, args.pooling, args.layers, args.as_trunk)
    config, weights, made, told = found
    hint = TRUNK_HINT if config.name == "trunk" else HINT
    check_sizes(config, weights, source, tuple(made), hint=hint)
    encoder = cfg.build(config)
    own = {k: v for k, v in encoder.state_dict().items() if k.startswith(tuple(made))} if made else {}
    checkpoint.load_state_strict(encoder, {**own, **weights}, source, hint=hint)
    files = weight_files(source) if source.is_dir() else [source]
    record = {"command": sys.argv, "source": str(source), **made_of, "weights_sha256": weights_digest(files)}
    checkpoint.save_import(out, encoder, config, record)
    print(f"{told[0]}, {sum(p.numel() for p in encoder.parameters()):,} parameters{told[1]}: {out}")


if __name__ == "__main__":
    run(main)
