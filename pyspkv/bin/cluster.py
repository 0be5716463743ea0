"""Cluster embeddings into pseudo-speakers and write the round's data directory.

    python -m pyspkv.bin.cluster --embeddings embed/embedding.scp --data data --out-data round1/data \\
        --num-clusters 7500 --report round1/report.json

Existing labels are kept if they were made from the same embeddings with the same options, or were edited by hand since;
anything else is an error.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from pyspkv.base.errors import UserError, natural, run

METHODS = ("kmeans-ahc", "kmeans", "ahc")
MOST = 10**9  # of what is counted here


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


def add_options(p: argparse.ArgumentParser) -> None:
    """The options of a clustering; bin.kmeans has them too."""
    p.add_argument(
        "--embeddings",
        required=True,
        action="append",
        metavar="SCP",
        help="embedding.scp of bin.extract; repeat it to join the embeddings of several models of the same utterances",
    )
    p.add_argument("--data", required=True, metavar="DIR", help="data directory; its speakers are not used")
    p.add_argument(
        "--out-data", required=True, metavar="DIR", help="new data directory with all utterances of --data"
    )
    p.add_argument(
        "--method", choices=METHODS, default="kmeans-ahc", help="k-means then AHC, or one of the two"
    )
    p.add_argument("--num-clusters", default="auto", metavar="K", help="number of clusters, or auto")
    p.add_argument(
        "--num-kmeans",
        type=int,
        default=0,
        metavar="K1",
        help="k-means centroids; 0: N / 22, or AHC alone if N is at most 20,000",
    )
    p.add_argument(
        "--iterations", type=int, default=20, metavar="N", help="maximum number of k-means iterations"
    )
    p.add_argument(
        "--whiten",
        type=float,
        metavar="P",
        help="center and whiten the embeddings with this power (0 to 1; 0.5 is half)",
    )
    p.add_argument("--linkage", choices=("ward", "average", "complete"), default="ward")
    p.add_argument("--metric", choices=("euclidean", "cosine"), default="euclidean")
    p.add_argument(
        "--previous",
        metavar="DIR",
        help="data directory of the round before; clusters that match keep their ids",
    )
    p.add_argument(
        "--min-size", type=int, default=1, metavar="N", help="drop the utterances of clusters below this size"
    )
    p.add_argument("--truth", metavar="UTT2SPK", help="true speakers, for the report's diagnostics only")
    p.add_argument("--seed", type=natural, default=0)
    p.add_argument("--report", metavar="FILE", help="report.json (default: next to --out-data)")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where `add_options` has got what it cannot be; num_clusters becomes an int."""
    if args.num_clusters != "auto":
        if not re.fullmatch("[0-9]{1,9}", args.num_clusters) or int(args.num_clusters) < 1:
            given = args.num_clusters if len(args.num_clusters) < 40 else args.num_clusters[:37] + "..."
            rule = f"--num-clusters {given}: a number from 1 to {MOST - 1}, or auto"
            raise UserError(rule, hint="use --num-clusters auto")
        args.num_clusters = int(args.num_clusters)
    if args.whiten is not None and not 0 <= args.whiten <= 1:
        p.error(f"--whiten {args.whiten}: must be from 0 to 1")
    for name, least in {"num_kmeans": 0, "min_size": 1, "iterations": 1}.items():
        if not least <= getattr(args, name) < MOST:
            p.error(f"--{name.replace('_', '-')} {getattr(args, name)}: must be from {least} to {MOST - 1}")
    if args.linkage == "ward" and args.metric != "euclidean":
        p.error(
            "--linkage ward is defined for --metric euclidean (embeddings are length-normalized in any case)"
        )


def draw(report: dict, path: Path) -> None:
    """The curve that --num-clusters auto has chosen from, beside the report."""
    if report.get("auto"):
        from pyspkv.report import plots

        file = path.with_suffix(".num_clusters.png")
        plots.num_clusters(report["auto"], report["num_clusters_chosen"], file)


def main() -> None:
    args = parse()
    # Threads that spin at barriers cost a busy machine 5 x the time; must be set before OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pyspkv.clustering.options import Options
    from pyspkv.clustering.round import make_round

    options = Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__})
    path = Path(args.report) if args.report else Path(args.out_data).with_name("report.json")
    more = {"previous": args.previous, "truth": args.truth, "device": args.device}
    report = make_round(args.embeddings, args.data, args.out_data, options, report=path, draw=draw, **more)
    if report is not None:
        say(report, path, args.out_data)


def say(report: dict, path: Path, out_data: str) -> None:
    """What was found, and at once where the labels are no good."""
    s = report["sizes"]
    print(f"{s['num_clusters']} clusters, sizes {s['size_min']} / {s['size_median']:g} / {s['size_max']} "
          f"(min / median / max), {s['singletons']} singletons; report: {path}")  # fmt: skip
    print(f"data directory: {out_data}")
    warn(Path(out_data))


def warn(folder: Path) -> None:
    """Say at once where the labels just made are no good."""
    from pyspkv.data.datadir import DataDir
    from pyspkv.report import warnings

    data = DataDir.read(folder, need_wav=False)
    for sign in warnings.of_labels(folder.resolve().parent.name, data.spk, warnings.known_of(data)):
        print(sign, file=sys.stderr)


if __name__ == "__main__":
    run(main)
