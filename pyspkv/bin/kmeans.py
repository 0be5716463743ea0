"""Cluster more embeddings than memory holds: the k-means of bin.cluster in parts, as an array of jobs.

    python -m pyspkv.bin.kmeans start --nj 8 --embeddings embed/embedding.scp --data data --out-data round1/data \\
        --num-clusters 7500
    python -m pyspkv.bin.kmeans assign --out-data round1/data --part 1/8     # and 2/8 ... 8/8, on any machines
    python -m pyspkv.bin.kmeans update --out-data round1/data
    python -m pyspkv.bin.kmeans finish ...                                   # with the options of start, but for --nj

`assign` and `update` take turns until the file round1/data.kmeans/next says "last"; one more `assign` then labels the
rows, and `finish` clusters the centroids and writes what bin.cluster writes. steps/cluster.sh --nj 8 does all of it.
"""

import argparse
import os
import shutil
from pathlib import Path

from pyspkv.base.errors import run
from pyspkv.base.parts import part, parts
from pyspkv.clustering.arguments import add_options, check

STEPS = {
    "start": "begin: draw the first centroids",
    "assign": "do one part of a step",
    "update": "add the parts of a step: the next centroids",
    "finish": "AHC of the centroids; write the data directory and the report",
}


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.kmeans",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subs = p.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, about in STEPS.items():
        formatter = argparse.ArgumentDefaultsHelpFormatter
        s = subs.add_parser(name, help=about, description=about, formatter_class=formatter)
        if name in ("start", "finish"):
            add_options(s)
        else:
            s.add_argument("--out-data", required=True, metavar="DIR", help="the --out-data of start")
            s.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
        if name == "start":
            s.add_argument("--nj", type=parts, required=True, metavar="N", help="number of parts")
        if name == "assign":
            s.add_argument("--part", type=part, required=True, metavar="K/N", help="part K of N")
    args = p.parse_args()
    if args.step in ("start", "finish"):
        check(p, args)
    return args


def main() -> None:
    args = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in bin.cluster
    folder = Path(f"{os.path.normpath(args.out_data)}.kmeans")
    if args.step == "assign":
        from pyspkv.clustering import kmeans_parts

        k, n = args.part
        kmeans_parts.assign(folder, k, n, args.device)
    elif args.step == "update":
        from pyspkv.clustering import kmeans_parts

        kmeans_parts.update(folder, args.device)
    else:
        start_or_finish(args, folder)


def start_or_finish(args: argparse.Namespace, folder: Path) -> None:
    from pyspkv.clustering import made
    from pyspkv.clustering.options import Options
    from pyspkv.clustering.round import asked_of, make_round
    from pyspkv.data.datadir import check_replaceable
    from pyspkv.report.clusters import draw, say

    options = Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__})
    report = Path(args.report) if args.report else Path(args.out_data).with_name("report.json")
    if args.step == "finish":
        more = {"previous": args.previous, "truth": args.truth, "device": args.device, "draw": draw}
        found = make_round(
            args.embeddings, args.data, args.out_data, options, report=report, parts=folder, **more
        )
        if found is not None:
            say(found, report, args.out_data)
        return
    asked = asked_of(options, args.data, args.out_data, args.previous)
    if made.is_kept(args.out_data, report, asked, args.embeddings):
        if folder.is_dir():  # of a finish that was killed at its very end
            shutil.rmtree(folder)
        return
    check_replaceable(Path(args.out_data))
    from pyspkv.clustering import kmeans_parts

    kmeans_parts.start(folder, args.embeddings, args.data, options, asked, args.nj, args.device)


if __name__ == "__main__":
    run(main)
