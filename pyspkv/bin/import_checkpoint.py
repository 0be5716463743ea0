"""Make a run folder of a foreign WavLM: Microsoft's WavLM-Base+.pt, the authors' speaker model, a Hugging Face folder.

    python -m pyspkv.bin.import_checkpoint --from WavLM-Base+.pt --out exp/wavlm_base_plus

DIR then works wherever a model does: bin.extract, bin.verify, --init, encoder.pretrained.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from pyspkv.errors import UserError, run


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.import_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--from", dest="source", required=True, metavar="FILE|DIR", help="the foreign checkpoint")
    p.add_argument("--out", required=True, metavar="DIR", help="run folder to make")
    p.add_argument(
        "--pooling",
        choices=["mhfa", "mean"],
        default="mhfa",
        help="mean: all layers and frames averaged, for first labels straight from a trunk. mhfa of a file without one "
        "is new (seed 0)",
    )
    return p.parse_args()


def digest(source: Path) -> str:
    """SHA-256 of a checkpoint file, or of a folder's files one after the other by name."""
    found = hashlib.sha256()
    for file in sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]:
        with open(file, "rb") as f:
            found.update(hashlib.file_digest(f, "sha256").digest())
    return found.hexdigest()


def main() -> None:
    args = parse()
    import torch

    from pyspkv import checkpoint
    from pyspkv import config as cfg
    from pyspkv.models import wavlm_import

    source, out = Path(args.source), Path(args.out)
    made_of = {"sha256": digest(source), "pooling": args.pooling}
    if (out / "LATEST").exists() and made_of.items() <= json.loads((out / "run.json").read_text()).items():
        print(f"imported already: {out}")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds another model" if (out / "LATEST").exists() else "is there already, and not empty"
        raise UserError(what, file=out, mend="give another --out")
    trunk, backend, head = wavlm_import.read(source)
    sizes = wavlm_import.config_of(trunk, backend, source)
    sizes.pooling = args.pooling
    torch.manual_seed(0)
    config = cfg.resolve("encoder", {"name": "wavlm", **cfg.dump(sizes)})
    encoder = cfg.build("encoder", config)
    checkpoint.load_exactly(encoder.trunk, trunk, source)
    if backend and args.pooling == "mhfa":
        checkpoint.load_exactly(encoder.backend, backend, source)
    checkpoint.save_import(out, encoder, config, {"command": sys.argv, "source": str(source), **made_of})
    count = sum(p.numel() for p in encoder.parameters())
    with_head = f", {len(head)} class centres left out" if head is not None else ""
    mhfa = "with its MHFA" if backend else "pooling: " + args.pooling
    print(f"{config.layers} layers of {config.dim}, {mhfa}, {count:,} parameters{with_head}: {out}")


if __name__ == "__main__":
    run(main)
