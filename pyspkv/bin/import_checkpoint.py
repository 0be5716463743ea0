"""Make a model folder from a WavLM checkpoint: WavLM-Base+.pt, a speaker model, a Hugging Face folder.

    python -m pyspkv.bin.import_checkpoint --from WavLM-Base+.pt --out exp/wavlm_base_plus

The folder can be used like any model: by bin.extract, bin.verify, --init, encoder.pretrained. A speaker model
is one that the authors have fine-tuned with MHFA.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from pyspkv.base.errors import UserError, run
from pyspkv.base.foreign import read_json

HINT = "import WavLM-Base, WavLM-Base+ or a model fine-tuned from one: other kinds have other layers"


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
        choices=["mhfa", "mean"],
        default="mhfa",
        help="mean: the mean of all layers and frames, for first labels from a pre-trained trunk. mhfa: "
        "multi-head factorised attentive pooling, initialised at random (seed 0) if the checkpoint has none",
    )
    return p.parse_args()


def source_digest(source: Path) -> str:
    """SHA-256 of a checkpoint file, or of all files of a folder in the order of their names."""
    found = hashlib.sha256()
    for file in sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]:
        with open(file, "rb") as f:
            found.update(hashlib.file_digest(f, "sha256").digest())
    return found.hexdigest()


def is_made_of(record: Path, made_of: dict[str, str]) -> bool:
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
    made_of = {"sha256": source_digest(source), "pooling": args.pooling}
    if (out / "LATEST").exists() and is_made_of(out / "run.json", made_of):
        print(f"imported already: {out}")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "contains another model" if (out / "LATEST").exists() else "exists and is not empty"
        raise UserError(what, file=out, hint="give another --out")

    import torch

    from pyspkv.base import checkpoint
    from pyspkv.base import config as cfg
    from pyspkv.models import wavlm_import
    from pyspkv.models.load import check_sizes

    trunk, backend, head = wavlm_import.read(source)
    config = wavlm_import.config_of(trunk, backend, source, args.pooling)
    torch.manual_seed(0)
    weights = {f"trunk.{k}": v for k, v in trunk.items()}
    part = backend if args.pooling == "mhfa" else {}
    weights |= {f"backend.{k}": v for k, v in part.items()}
    # Embedding does not use the mask vector of pre-training, so a checkpoint without it gets the initial one.
    made = {"trunk.masked_spec_embed"} - weights.keys() | ({"backend."} if not part else set())
    check_sizes(config, weights, source, tuple(made), hint=HINT)
    encoder = cfg.build(config)
    own = {k: v for k, v in encoder.state_dict().items() if k.startswith(tuple(made))} if made else {}
    checkpoint.load_state_strict(encoder, {**own, **weights}, source, hint=HINT)
    checkpoint.save_import(out, encoder, config, {"command": sys.argv, "source": str(source), **made_of})
    count = sum(p.numel() for p in encoder.parameters())
    with_head = f", {len(head)} class centers left out" if head is not None else ""
    mhfa = "with its MHFA" if backend else "pooling: " + args.pooling
    print(f"{config.layers} layers of {config.dim}, {mhfa}, {count:,} parameters{with_head}: {out}")


if __name__ == "__main__":
    run(main)
