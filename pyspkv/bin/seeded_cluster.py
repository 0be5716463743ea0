"""Pseudo-labels of unlabelled utterances from a few labelled ones: constrained seed k-means, or label propagation.

    python -m pyspkv.bin.seeded_cluster --embeddings embed/embedding.scp --labelled split/labelled \\
        --unlabelled split/unlabelled --out-data round1/data

--out-data holds the unlabelled utterances, each with one of the labelled speakers; labelled utterances keep theirs.
Labels that are there already are kept or refused as by bin.cluster.
"""

import argparse
import os
from pathlib import Path

from pyspkv.base.errors import UserError, natural, run

METHODS = ("constrained", "propagation")
OPTIONS = (
    "method",
    "faithful",
    "whiten",
    "neighbours",
    "flip",
    "seed",
    "with_labelled",
)  # what labels depend on


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.seeded_cluster",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--embeddings", required=True, metavar="SCP", help="embedding.scp with all utterances")
    p.add_argument("--labelled", required=True, metavar="DIR", help="data directory with true speakers")
    p.add_argument(
        "--unlabelled", required=True, metavar="DIR", help="data directory; its speakers are not used"
    )
    p.add_argument("--out-data", required=True, metavar="DIR", help="the unlabelled one with pseudo-labels")
    p.add_argument("--with-labelled", action="store_true", help="--out-data has the labelled utterances too")
    p.add_argument(
        "--method", choices=METHODS, default="constrained", help="k-means (GLL), or label spreading"
    )
    p.add_argument(
        "--faithful",
        action="store_true",
        help="k-means of GLL's early code: means as they are, tolerance 0.05",
    )
    p.add_argument(
        "--whiten", type=float, metavar="P", help="centre and whiten first, by this power (0 to 1)"
    )
    p.add_argument("--neighbours", type=int, default=15, metavar="N", help="of the propagation's graph")
    p.add_argument("--flip", type=float, default=0.0, metavar="SHARE",
                   help="an experiment: give so many another label; --out-data/../flipped lists them")  # fmt: skip
    p.add_argument("--truth", metavar="UTT2SPK", help="true speakers, only for the report's diagnostics")
    p.add_argument("--seed", type=natural, default=0, help="of --flip")
    p.add_argument("--report", metavar="FILE", help="report.json; default beside --out-data")
    args = p.parse_args(argv)
    if args.whiten is not None and not 0 <= args.whiten <= 1:
        p.error(f"--whiten {args.whiten}: must be in 0..1")
    if not 1 <= args.neighbours < 10**9:
        p.error("--neighbours is at least 1")
    if not 0 <= args.flip < 1:
        p.error(f"--flip {args.flip}: must be in 0..1")
    return args


def main() -> None:
    args = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before OpenMP is loaded, see bin.cluster
    from pyspkv.clustering import made
    from pyspkv.data.datadir import check_replaceable

    for option in ("labelled", "unlabelled"):
        if Path(args.out_data).resolve() == Path(getattr(args, option)).resolve():
            raise UserError(f"is --{option} itself", file=args.out_data, mend="give another --out-data")
    path = Path(args.report) if args.report else Path(args.out_data).with_name("report.json")
    asked = {name: getattr(args, name) for name in OPTIONS} | {
        "labelled": made.data_digest(args.labelled, speakers=True),
        "unlabelled": made.data_digest(args.unlabelled),
    }
    if made.is_kept(args.out_data, path, asked, [args.embeddings]):
        return
    check_replaceable(Path(args.out_data))
    with made.sole_writer(args.out_data):
        if not made.is_kept(args.out_data, path, asked, [args.embeddings]):  # by another process, just now
            label(args, path, asked)


def label(args: argparse.Namespace, path: Path, asked: dict) -> None:
    """Make the labels; write the report to `path`, then the data directory."""
    from pyspkv.audio import silence
    from pyspkv.clustering import made
    from pyspkv.data.datadir import DataDir, combine, read_table
    from pyspkv.data.tables import of_each

    labelled, unlabelled = (DataDir.read(d) for d in (args.labelled, args.unlabelled))
    if both := set(labelled.utts) & set(unlabelled.utts):
        raise UserError(
            f"{len(both)} utterances are also in --labelled, the first {min(both)}",
            file=args.unlabelled,
            mend="utils/split_labels.sh",
        )
    truth = of_each(read_table(args.truth, "id"), unlabelled.utts, args.truth) if args.truth else None
    import numpy as np

    from pyspkv.base.atomic import atomic_file
    from pyspkv.clustering import kmeans, pipeline, quality, vectors
    from pyspkv.clustering.round import unit_vectors, write_round
    from pyspkv.data.ark import read_embeddings

    digest = made.embeddings_digest(args.embeddings)
    silent = silence.among([args.embeddings], labelled.utts + unlabelled.utts)
    silence.warn(silent, args.unlabelled)
    emb = read_embeddings(args.embeddings)
    x = np.concatenate([unit_vectors(emb, data, args.embeddings) for data in (labelled, unlabelled)])
    if args.whiten is not None:
        x = vectors.whiten(x, args.whiten)
    speakers = sorted(set(labelled.spk))
    given = np.searchsorted(speakers, labelled.spk)
    seeds, first = np.arange(len(given)), len(given)
    report = {
        "method": args.method,
        "whiten": args.whiten,
        "num_labelled": first,
        "num_clusters": len(speakers),
    }
    if args.method == "constrained":
        how = {"spherical": False, "tol": 0.05} if args.faithful else {}
        labels, _ = kmeans.constrained_kmeans(
            x, seeds, given, len(speakers), stats=report, progress=True, **how
        )
    else:
        labels = pipeline.propagate(x, seeds, given, len(speakers), neighbours=args.neighbours)
    found, flipped = quality.spoil(labels[first:], args.flip, len(speakers), args.seed)
    out = unlabelled.with_speakers([speakers[k] for k in found])
    report["sizes"] = quality.sizes(found)
    if truth is not None:
        true = np.array(truth)
        report["diagnostics"] = quality.diagnostics(found, true)
        report["diagnostics"]["label_accuracy"] = float(np.mean(np.array(out.spk) == true))
    if args.flip:
        with atomic_file(Path(args.out_data).with_name("flipped")) as f:
            f.writelines(f"{out.utts[row]}\n" for row in flipped)
    if args.with_labelled:
        out, _ = combine(args.out_data, [labelled, out], [])
    report |= {"silent": len(silent), "label_hash": out.label_hash(), "asked": asked, "embeddings": [digest]}
    write_round(out, report, args.out_data, path)
    s = report["sizes"]
    each = f"{s['size_min']} to {s['size_max']} each"
    print(f"{len(found)} unlabelled utterances of {s['num_clusters']} speakers, {each}: {args.out_data}")


if __name__ == "__main__":
    run(main)
