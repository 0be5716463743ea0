"""Pseudo-labels of unlabeled utterances from a few labeled ones: constrained seed k-means, or label propagation.

    python -m pyspkv.bin.seeded_cluster --embeddings embed/embedding.scp --labeled-data split/labeled \
        --unlabeled split/unlabeled --out-data round1/data

--out-data gets the unlabeled utterances, each with the name of one of the labeled speakers. Existing labels
in --out-data are treated as in bin.cluster.
"""

import argparse
import os

from pyspkv.base.errors import natural, run

METHODS = ("constrained", "propagation")


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.seeded_cluster",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--embeddings", required=True, metavar="SCP", help="embedding.scp of all utterances")
    p.add_argument("--labeled-data", required=True, metavar="DIR", help="data directory with true speakers")
    p.add_argument(
        "--unlabeled", required=True, metavar="DIR", help="data directory; its speakers are not used"
    )
    p.add_argument(
        "--out-data", required=True, metavar="DIR", help="output: the unlabeled directory with pseudo-labels"
    )
    p.add_argument(
        "--with-labeled", action="store_true", help="also put the labeled utterances into --out-data"
    )
    p.add_argument(
        "--method", choices=METHODS, default="constrained", help="k-means (GLL), or label spreading"
    )
    p.add_argument(
        "--match-released-code",
        action="store_true",
        help="k-means as in GLL's early code: means are not normalized, tolerance 0.05",
    )
    p.add_argument(
        "--whiten", type=float, metavar="P", help="center and whiten the embeddings with this power (0 to 1)"
    )
    p.add_argument(
        "--neighbors",
        type=int,
        default=15,
        metavar="N",
        help="neighbors of each utterance in the graph of the propagation",
    )
    p.add_argument("--label-noise", type=float, default=0.0, metavar="SHARE",
                   help="experiment: share of pseudo-labels to change; --out-data/../corrupted lists them")  # fmt: skip
    p.add_argument("--truth", metavar="UTT2SPK", help="true speakers, for the report's diagnostics only")
    p.add_argument("--seed", type=natural, default=0, help="seed of --label-noise")
    p.add_argument("--report", metavar="FILE", help="report.json (default: next to --out-data)")
    args = p.parse_args(argv)
    if args.whiten is not None and not 0 <= args.whiten <= 1:
        p.error(f"--whiten {args.whiten}: must be from 0 to 1")
    if not 1 <= args.neighbors < 10**9:
        p.error("--neighbors must be at least 1")
    if not 0 <= args.label_noise < 1:
        p.error(f"--label-noise {args.label_noise}: must be from 0 to 1")
    return args


def main() -> None:
    args = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # set before OpenMP is loaded, see bin.cluster
    from pyspkv.clustering.seeded import SeededOptions, make_seeded_round

    options = SeededOptions(**{name: getattr(args, name) for name in SeededOptions.__dataclass_fields__})
    folders = args.embeddings, args.labeled_data, args.unlabeled, args.out_data
    report = make_seeded_round(*folders, options, truth=args.truth, report=args.report)
    if report is None:
        return
    s = report["sizes"]
    each = f"{s['size_min']} to {s['size_max']} each"
    print(f"{s['num_utts']} unlabeled utterances of {s['num_clusters']} speakers, {each}: {args.out_data}")


if __name__ == "__main__":
    run(main)
