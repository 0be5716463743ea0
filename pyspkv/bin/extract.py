"""Embed every utterance of a data directory: writes OUT/embedding.ark and OUT/embedding.scp."""

import argparse
import math

from pyspkv.errors import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pyspkv.bin.extract", description=__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR[@best|last]", help="run folder of bin.train, or an import"
    )
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--crops", type=int, default=0, metavar="N", help="embed N evenly spaced crops: entries of [N, D]"
    )
    parser.add_argument("--crop-seconds", type=float, default=4.0, metavar="S", help="their length")
    parser.add_argument("--allow-pipes", action="store_true", help="run `command |` entries of wav.scp")
    args = parser.parse_args()
    if args.crops < 0 or not 0.1 <= args.crop_seconds < math.inf:
        parser.error("--crops is a number from 0, --crop-seconds at least 0.1")
    from pyspkv import distributed
    from pyspkv.audio import SAMPLE_RATE
    from pyspkv.checkpoint import load_encoder
    from pyspkv.datadir import DataDir
    from pyspkv.embed import embed_rows
    from pyspkv.embeddings import EmbeddingWriter

    data = DataDir.read(args.data)
    device = distributed.device()
    encoder = load_encoder(args.model).to(device)
    crops = (args.crops, round(args.crop_seconds * SAMPLE_RATE)) if args.crops else None
    rows = embed_rows(encoder, data, device, args.precision, args.allow_pipes, crops)
    with EmbeddingWriter(args.out) as write:
        for row, vector in rows:
            write(data.utts[row], vector)
    print(f"embeddings: {args.out}/embedding.scp")


if __name__ == "__main__":
    run(main)
