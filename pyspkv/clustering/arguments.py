"""The command-line options of a clustering, for bin.cluster and bin.kmeans."""

import argparse

from pyspkv.base.errors import natural
from pyspkv.clustering.options import MOST, count_or_auto

METHODS = ("kmeans-ahc", "kmeans", "ahc")


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
    p.add_argument(
        "--num-clusters",
        default="auto",
        metavar="K",
        help="number of clusters, auto, or auto*F (F times auto)",
    )
    p.add_argument(
        "--num-kmeans",
        type=int,
        default=0,
        metavar="K1",
        help="k-means centroids; 0: N / 22, or AHC alone if N is at most 20,000",
    )
    p.add_argument(
        "--iterations",
        type=int,
        default=300,
        metavar="N",
        help="maximum number of k-means iterations; it stops where it converges",
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
    """End the program if an option has an impossible value. num_clusters becomes the result of `count_or_auto`."""
    args.num_clusters = count_or_auto(args.num_clusters)
    if args.whiten is not None and not 0 <= args.whiten <= 1:
        p.error(f"--whiten {args.whiten}: must be from 0 to 1")
    for name, least in {"num_kmeans": 0, "min_size": 1, "iterations": 1}.items():
        if not least <= getattr(args, name) < MOST:
            p.error(f"--{name.replace('_', '-')} {getattr(args, name)}: must be from {least} to {MOST - 1}")
    if args.linkage == "ward" and args.metric != "euclidean":
        p.error(
            "--linkage ward is defined for --metric euclidean (embeddings are length-normalized in any case)"
        )
