"""Cluster embeddings into pseudo-speakers and write the round's data directory.

    python -m pyspkv.bin.cluster --embeddings embed/embedding.scp --data data --out-data round1/data \\
        --num-clusters 7500 --report round1/report.json

Existing labels are kept if they were made from the same embeddings with the same options (they may have been
edited by hand since). Otherwise they are an error.
"""

import argparse
import os
from pathlib import Path

from pyspkv.base.errors import run
from pyspkv.clustering.arguments import add_options, check


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.cluster",
        description="Cluster embeddings; write a data directory whose utt2spk holds the clusters.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(p)
    args = p.parse_args(argv)
    check(p, args)
    return args


def main() -> None:
    args = parse()
    # Threads that spin at barriers take 5 times as long on a busy machine. Set before OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pyspkv.clustering.options import Options
    from pyspkv.clustering.round import make_round
    from pyspkv.report.clusters import draw, say

    options = Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__})
    path = Path(args.report) if args.report else Path(args.out_data).with_name("report.json")
    more = {"previous": args.previous, "truth": args.truth, "device": args.device}
    report = make_round(args.embeddings, args.data, args.out_data, options, report=path, draw=draw, **more)
    if report is not None:
        say(report, path, args.out_data)


if __name__ == "__main__":
    run(main)
