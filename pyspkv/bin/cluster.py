"""Cluster embeddings into pseudo-speakers and write the round's data directory.

    python -m pyspkv.bin.cluster --embeddings embed/embedding.scp --data data --out-data round1/data \\
        --num-clusters 7500 --report round1/report.json
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from pyspkv.errors import UserError, natural, run

METHODS = ("kmeans-ahc", "kmeans", "ahc")


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.cluster",
        description="Cluster embeddings; write a data directory whose utt2spk holds the clusters.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--embeddings",
        required=True,
        action="append",
        metavar="SCP",
        help="embedding.scp of bin.extract; given again, other models' of the same utterances, to be set side by side",
    )
    p.add_argument("--data", required=True, metavar="DIR", help="data directory; its speakers are not used")
    p.add_argument(
        "--out-data", required=True, metavar="DIR", help="new data directory, all of --data relabelled"
    )
    p.add_argument("--method", choices=METHODS, default="kmeans-ahc", help="two steps, or one of them")
    p.add_argument("--num-clusters", default="auto", metavar="K", help="number of clusters, or auto")
    p.add_argument(
        "--num-kmeans",
        type=int,
        default=0,
        metavar="K1",
        help="k-means centroids; 0: N / 22, or none and AHC of all where N is at most 20,000",
    )
    p.add_argument("--iterations", type=int, default=20, metavar="N", help="k-means iterations at most")
    p.add_argument(
        "--whiten",
        type=float,
        metavar="P",
        help="centre and whiten first, by this power (0 to 1; 0.5 is half)",
    )
    p.add_argument("--linkage", choices=("ward", "average", "complete"), default="ward")
    p.add_argument("--metric", choices=("euclidean", "cosine"), default="euclidean")
    p.add_argument(
        "--previous", metavar="DIR", help="the round before: its cluster ids are kept where they match"
    )
    p.add_argument(
        "--min-size", type=int, default=1, metavar="N", help="drop the utterances of smaller clusters"
    )
    p.add_argument("--truth", metavar="UTT2SPK", help="true speakers, only for the report's diagnostics")
    p.add_argument("--seed", type=natural, default=0)
    p.add_argument("--report", metavar="FILE", help="report.json; default beside --out-data")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = p.parse_args(argv)
    if args.num_clusters != "auto":
        if not args.num_clusters.isdecimal() or int(args.num_clusters) < 1:
            p.error(f"--num-clusters {args.num_clusters}: a number from 1, or auto")
        args.num_clusters = int(args.num_clusters)
    if args.whiten is not None and not 0 <= args.whiten <= 1:
        p.error(f"--whiten {args.whiten}: must be in 0..1")
    for name in ("num_kmeans", "min_size", "iterations"):
        if getattr(args, name) < (0 if name == "num_kmeans" else 1):
            p.error(f"--{name.replace('_', '-')} {getattr(args, name)}: too small")
    if args.linkage == "ward" and args.metric != "euclidean":
        p.error("--linkage ward is defined for --metric euclidean (embeddings are normalised either way)")
    return args


def _numbers(speakers: list[str]):
    """`c00012` -> 12; any other speaker name -> -1 (no cluster id of ours)."""
    import numpy as np

    return np.array(
        [int(s[1:]) if s[:1] == "c" and s[1:].isdigit() else -1 for s in speakers], dtype=np.int64
    )


def match_previous(labels, utts: list[str], previous):
    """Ids matched to the previous round's (int64 [N]) and the stability figures over the common utterances."""
    import numpy as np

    from pyspkv.labels import quality

    old_of = dict(zip(previous.utts, previous.spk))
    common = np.array([u in old_of for u in utts])
    if not common.any():
        raise UserError("shares no utterance with --data", file=previous.path, mend="pass the round before")
    names = [old_of.get(u, "") for u in utts]
    old = _numbers(names)
    foreign = (old[common] < 0).any() or old.max() > 100_000_000
    if foreign:  # speakers of another source: keep their order as ids
        uniq, codes = np.unique(np.array(names)[common], return_inverse=True)
        old[common] = codes
    matched = quality.match_labels(labels, old)
    return matched, quality.stability(labels[common], old[common])


def main() -> int | None:
    args = parse()
    # Threads that spin at barriers cost a busy machine 5 x the time; must be set before OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    start = time.time()
    from pyspkv.atomic import atomic_file
    from pyspkv.datadir import DataDir, check_replaceable, read_table
    from pyspkv.tables import of_each

    if Path(args.out_data).resolve() == Path(args.data).resolve():
        raise UserError("is --data itself", file=args.out_data, mend="give another --out-data")
    check_replaceable(Path(args.out_data))
    if args.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: there is no GPU here", mend="leave --device out")
    data = DataDir.read(args.data)
    previous = DataDir.read(args.previous, need_wav=False) if args.previous else None
    truth = of_each(read_table(args.truth), data.utts, args.truth) if args.truth else None
    import numpy as np

    from pyspkv.labels import clustering, quality

    x = side_by_side(args.embeddings, data, args.whiten)
    n = len(x)
    wanted = args.num_clusters
    if wanted != "auto" and wanted > n:
        raise UserError(f"--num-clusters {wanted} is more than the {n} utterances", file=args.data)
    k1 = min(args.num_kmeans or clustering.default_num_kmeans(n, wanted), n)
    if wanted != "auto" and args.method == "kmeans-ahc" and k1 < wanted:
        raise UserError(f"--num-kmeans {k1} is less than --num-clusters {wanted}", mend="raise --num-kmeans")
    print(
        clustering.memory_estimate(n, x.shape[1], args.method, k1, args.linkage, args.metric), file=sys.stderr
    )
    state = Path(f"{args.out_data}.kmeans.npz")  # a killed run goes on from there
    labels, info = clustering.cluster(
        x, args.method, wanted, num_kmeans=k1, linkage=args.linkage, metric=args.metric,
        max_iter=args.iterations, seed=args.seed, device=args.device, checkpoint=state,
    )  # fmt: skip
    report = {
        "num_clusters": 0,
        "method": "ahc" if k1 == n and args.method == "kmeans-ahc" else args.method,
        "seed": args.seed,
        **info,
    }
    if previous is not None:
        labels, report["stability"] = match_previous(labels, data.utts, previous)
    counts = np.bincount(labels)
    keep = counts[labels] >= args.min_size
    if not keep.any():
        raise UserError(f"no cluster has --min-size {args.min_size} utterances", file=args.data)
    width = max(5, len(str(int(labels.max()))))
    speakers = [f"c{label:0{width}d}" for label in labels.tolist()]
    report["dropped_utts"] = int((~keep).sum())
    report["dropped_clusters"] = int(((counts > 0) & (counts < args.min_size)).sum())
    out = data.with_speakers(speakers)
    if not keep.all():
        out = out.subset([u for u, good in zip(data.utts, keep) if good])
    report["sizes"] = quality.sizes(labels[keep])
    report["num_clusters"] = report["sizes"]["num_clusters"]
    report["quality"] = quality.similarity(x[keep] if not keep.all() else x, labels[keep], seed=args.seed)
    if truth is not None:
        report["diagnostics"] = quality.diagnostics(labels[keep], np.array(truth)[keep])
    report["label_hash"] = out.label_hash()
    report["seconds"] = round(time.time() - start, 2)
    path = Path(args.report) if args.report else Path(args.out_data).with_name("report.json")
    with atomic_file(path) as f:
        json.dump(report, f, indent=1)
        f.write("\n")
    if report.get("auto"):
        from pyspkv import plots

        plots.num_clusters(
            report["auto"], report["num_clusters_chosen"], path.with_suffix(".num_clusters.png")
        )
    out.write(args.out_data)  # the last: where it stands, all does
    state.unlink(missing_ok=True)
    s = report["sizes"]
    print(f"{s['num_clusters']} clusters, sizes {s['size_min']} / {s['size_median']:g} / {s['size_max']} "
          f"(min / median / max), {s['singletons']} singletons; report: {path}")  # fmt: skip
    print(f"data directory: {args.out_data}")
    return 0


def side_by_side(scps: list[str], data, power: float | None):
    """float32 [N, D] unit vectors in the order of data.utts: each model's, whitened by `power`, side by side."""
    import numpy as np

    from pyspkv.embeddings import read_embeddings
    from pyspkv.labels import clustering

    parts = []
    for scp in scps:
        x = unit_vectors(read_embeddings(scp), data, scp)
        parts.append(x if power is None else clustering.whiten(x, power))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 1) / np.float32(len(parts) ** 0.5)


def unit_vectors(emb, data, scp):
    """float32 [N, D] unit vectors in the order of data.utts. UserError names utterances without an embedding."""
    import numpy as np

    from pyspkv.labels.clustering import unit_rows

    row = {u: i for i, u in enumerate(emb.ids)}
    missing = [u for u in data.utts if u not in row]
    if missing:
        some = " ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise UserError(
            f"{len(missing)} of {len(data.utts)} utterances have no embedding: {some}",
            file=scp,
            mend=f"python -m pyspkv.bin.extract --data {data.path}, or utils/subset_data_dir.sh",
        )
    x = emb.vectors()
    order = np.fromiter((row[u] for u in data.utts), dtype=np.int64, count=len(data.utts))
    if len(order) != len(x) or (order != np.arange(len(x))).any():
        x = x[order]
    bad = unit_rows(x)
    if len(bad):
        raise UserError(f"embedding of utterance {data.utts[bad[0]]} is all zeros", file=scp)
    return x


if __name__ == "__main__":
    run(main)
