"""Compare clustering methods: wall time and peak memory of each, in a separate process, and ratios.

    python benchmarks/clustering.py ward --num 20000            # ours and scikit-learn, same partition?
    python benchmarks/clustering.py ward --num 50000 --only ours
    python benchmarks/clustering.py pipeline --num 100000       # k-means + Ward: ours, ours exact, faiss + scikit-learn
    python benchmarks/clustering.py kmeans                      # ways to k-means, 100,000 points, same Ward after each
    python benchmarks/clustering.py constrained                 # 1,092,009 points, 5,994 speakers, 6 % labeled
    python benchmarks/clustering.py full                        # ark/scp -> data directory by bin.cluster
    python benchmarks/clustering.py growth                      # 10 k, 100 k, 1 M, with a plot

Peak memory is that of the whole process (VmHWM), including Python and libraries. The inputs are made by
synthetic_embeddings.py and kept in --work. Times are those of the method, without imports and reading; for
`full` they are those of the whole command.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from pyspkv.clustering.kmeans import PROBES  # noqa: E402

FULL = 1_092_009


def ratio(n: int) -> tuple[int, int]:
    """(k-means centroids, clusters) in the paper's proportion: 50,000 and 7,500 for n = 1,092,009."""
    return round(n * 50_000 / FULL), round(n * 7_500 / FULL)


def made(work: Path, n: int) -> Path:
    """Folder with x.npy and speaker.npy of n synthetic embeddings, which are made if necessary."""
    folder = work / f"n{n}"
    if not (folder / "speaker.npy").exists():
        from synthetic_embeddings import generate

        folder.mkdir(parents=True, exist_ok=True)
        x, speaker, _ = generate(n)
        np.save(folder / "x.npy", x)
        np.save(folder / "speaker.npy", speaker)
    return folder


# ---- methods, run in a child process: name -> function of x ------------------------------------------------
def _ward_ours(x, n, args):
    from pyspkv.clustering.pipeline import ward

    return lambda: ward(x, int(0.15 * n), device=args.device)


def _ward_sklearn(x, n, args):
    from sklearn.cluster import AgglomerativeClustering

    return lambda: AgglomerativeClustering(int(0.15 * n), linkage="ward").fit_predict(x)


def _pipeline_ours(x, n, args, cells=None):
    from pyspkv.clustering.pipeline import kmeans, ward

    k1, k = ratio(n)

    def go():
        labels, centroids = kmeans(
            x,
            k1,
            args.seed,
            args.iterations,
            cells=cells,
            probes=args.probes,
            device=args.device,
            progress=True,
        )
        return ward(centroids, k, device=args.device)[labels]

    return go


def _pipeline_exact(x, n, args):
    return _pipeline_ours(x, n, args, cells=1)


def _pipeline_reference(x, n, args):
    import faiss
    from sklearn.cluster import AgglomerativeClustering

    k1, k = ratio(n)

    def go():
        run = faiss.Kmeans(
            x.shape[1], k1, niter=args.iterations, seed=args.seed + 1, max_points_per_centroid=n,
            min_points_per_centroid=1,
        )  # fmt: skip
        run.train(x)
        labels = run.index.search(x, 1)[1].ravel()
        return AgglomerativeClustering(k).fit_predict(run.centroids)[labels]

    return go


def _kmeans_sklearn(x, n, args, minibatch=False, **options):
    from sklearn.cluster import KMeans, MiniBatchKMeans

    from pyspkv.clustering.pipeline import ward

    k1, k = ratio(n)
    cls = MiniBatchKMeans if minibatch else KMeans
    run = cls(k1, init="random", n_init=1, max_iter=args.iterations, random_state=args.seed, **options)

    def go():
        labels = run.fit_predict(x)
        return ward(run.cluster_centers_.astype(np.float32), k)[labels]

    return go


def _kmeans_hierarchical(x, n, args):
    """k-means into sqrt(k) cells, then k-means in each, with centroids in proportion to its points."""
    from pyspkv.clustering.pipeline import kmeans, ward

    k1, k = ratio(n)

    def go():
        coarse, _ = kmeans(x, round(k1**0.5), args.seed, args.iterations)
        share = np.bincount(coarse) * (k1 / n)
        labels, centroids, done, used = np.empty(n, np.int64), [], 0.0, 0
        for cell, part in enumerate(share):
            done += part
            rows = np.flatnonzero(coarse == cell)
            here = min(len(rows), max(1, round(done) - used))
            inside, c = kmeans(x[rows], here, args.seed, args.iterations)
            labels[rows] = inside + used
            centroids.append(c)
            used += here
        return ward(np.concatenate(centroids), k)[labels]

    return go


def _constrained(x, n, args, **options):
    from pyspkv.clustering.pipeline import constrained_kmeans

    speaker = np.load(made(args.work, n) / "speaker.npy")
    index = np.flatnonzero(np.random.default_rng(0).random(n) < 0.06)
    index = np.union1d(index, np.unique(speaker, return_index=True)[1])
    stats = {}

    def go():
        labels, _ = constrained_kmeans(
            x, index, speaker[index], int(speaker.max()) + 1, stats=stats, **options
        )
        free = np.setdiff1d(np.arange(n), index)
        print(
            f"  {stats}, accuracy on unlabeled {np.mean(labels[free] == speaker[free]):.4f}", file=sys.stderr
        )
        return labels

    return go


CASES = {
    "ward ours": _ward_ours,
    "ward scikit-learn": _ward_sklearn,
    "pipeline ours": _pipeline_ours,
    "pipeline exact": _pipeline_exact,
    "pipeline faiss+scikit-learn": _pipeline_reference,
    "kmeans ours: Ward cells": _pipeline_ours,
    "kmeans exact (one cell)": _pipeline_exact,
    "kmeans hierarchical": _kmeans_hierarchical,
    "kmeans scikit-learn Lloyd": _kmeans_sklearn,
    "kmeans scikit-learn Elkan's bounds": lambda x, n, a: _kmeans_sklearn(x, n, a, algorithm="elkan"),
    "kmeans scikit-learn mini-batch 16,384": lambda x, n, a: _kmeans_sklearn(x, n, a, True, batch_size=16384),
    "constrained spherical": _constrained,
    "constrained ip-unnormalized tol 0.05": lambda x, n, a: _constrained(x, n, a, spherical=False, tol=0.05),
}


def child(args) -> None:
    """Run one method; print its time and memory as a JSON line."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    x = np.load(made(args.work, args.num) / "x.npy")
    go = CASES[args.case](x, args.num, args)
    start = time.time()
    labels = go()
    seconds = time.time() - start
    np.save(args.labels, labels)
    # ru_maxrss would not do, because a process inherits it from its parent
    peak = next(
        int(line.split()[1]) / 1024**2 for line in open("/proc/self/status") if line.startswith("VmHWM")
    )
    print(json.dumps({"seconds": round(seconds, 2), "peak_gib": round(peak, 3)}))


def case(name: str, n: int, args) -> dict:
    """Run the method `name` in a separate process: seconds, peak_gib and labels."""
    made(args.work, n)
    labels = args.work / "labels.npy"
    command = [sys.executable, __file__, "child", "--case", name, "--num", str(n), "--labels", str(labels),
               "--work", str(args.work), "--seed", str(args.seed), "--iterations", str(args.iterations),
               "--device", args.device, "--probes", str(args.probes)]  # fmt: skip
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment())
    got = json.loads(out.stdout.strip().splitlines()[-1])
    got["labels"] = np.load(labels)
    print(f"{name:<40} {n:>8}  {got['seconds']:>8.2f} s  {got['peak_gib']:.2f} GiB", flush=True)
    return got


def environment() -> dict:
    # Passive waiting: on a busy machine, spinning at OpenMP barriers makes all methods several times slower.
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}


def same(a, b) -> bool:
    return len(set(zip(a.tolist(), b.tolist()))) == len(set(a.tolist())) == len(set(b.tolist()))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("ward", "pipeline", "kmeans", "constrained", "full", "growth", "child"))
    p.add_argument("--num", type=int, default=0, help="points (default: that of the table in RESULTS.md)")
    p.add_argument("--only", default="", help="only run methods whose names contain this")
    p.add_argument("--work", type=Path, default=Path("/tmp/pyspkv_bench"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--iterations", type=int, default=10)
    p.add_argument(
        "--probes", type=int, default=PROBES, help="number of cells in which a point looks for centroids"
    )
    p.add_argument("--device", default="cpu")
    p.add_argument("--case", help=argparse.SUPPRESS)
    p.add_argument("--labels", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.what == "child":
        child(args)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    if args.what == "growth":
        growth(args)
        return
    if args.what == "full":
        full(args.num or FULL, args)
        return
    n = args.num or {"ward": 20_000, "pipeline": 100_000, "kmeans": 100_000, "constrained": FULL}[args.what]
    names = [c for c in CASES if c.startswith(args.what) and args.only in c]
    got = {name: case(name, n, args) for name in names}
    if args.what in ("pipeline", "kmeans"):
        truth(n, got, args)
    ours, theirs = got.get("ward ours"), got.get("ward scikit-learn")
    if ours and theirs:
        print(f"scikit-learn / ours: {theirs['seconds'] / ours['seconds']:.1f} x time, "
              f"{theirs['peak_gib'] / ours['peak_gib']:.1f} x memory, "
              f"same partition: {same(ours['labels'], theirs['labels'])}")  # fmt: skip


def truth(n: int, got: dict, args) -> None:
    from pyspkv.clustering.quality import diagnostics

    speaker = np.load(made(args.work, n) / "speaker.npy")
    for name, g in got.items():
        d = diagnostics(g["labels"], speaker)
        print(f"{name:<40} NMI {d['nmi']:.4f}  ARI {d['ari']:.4f}  purity {d['purity']:.4f}")


def full(n: int, args) -> dict:
    """bin.cluster from ark/scp to a written data directory, called as a user would."""
    folder = args.work / f"full{n}"
    if not (folder / "utt2spk_true").exists():
        subprocess.run(
            [sys.executable, ROOT / "benchmarks/synthetic_embeddings.py", "--num-utts", str(n), "--out", folder],
            check=True, env=environment(),
        )  # fmt: skip
    k1, k = ratio(n)
    command = [sys.executable, "-m", "pyspkv.bin.cluster", "--embeddings", folder / "embed/embedding.scp",
               "--data", folder / "data", "--out-data", folder / "round1/data", "--num-kmeans", k1,
               "--num-clusters", k, "--truth", folder / "utt2spk_true", "--iterations", args.iterations,
               "--device", args.device]  # fmt: skip
    start = time.time()
    subprocess.run(list(map(str, command)), check=True, env=environment(), cwd=ROOT)
    seconds = time.time() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss / 1024**2
    report = json.loads((folder / "round1/report.json").read_text())
    cpu, nmi = used.ru_utime + used.ru_stime, report["diagnostics"]["nmi"]
    print(
        f"{n} embeddings, {k1} -> {k}: {seconds:.0f} s ({cpu:.0f} s CPU), peak {peak:.2f} GiB, NMI {nmi:.4f}"
    )
    return {"seconds": seconds, "peak_gib": peak, "nmi": report["diagnostics"]["nmi"]}


def growth(args) -> None:
    """Time and memory of both steps, and of faiss + scikit-learn (up to 100,000 points), as N grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = {"pipeline ours": (10_000, 100_000, 1_000_000), "pipeline faiss+scikit-learn": (10_000, 100_000)}
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, sizes in curves.items():
        got = [case(name, n, args) for n in sizes]
        left.loglog(sizes, [g["seconds"] for g in got], "o-", label=name.removeprefix("pipeline "))
        right.loglog(sizes, [g["peak_gib"] for g in got], "o-", label=name.removeprefix("pipeline "))
    for axis, label in ((left, "seconds"), (right, "peak memory, GiB")):
        axis.set(xlabel="embeddings (256-d), k-means N / 22, Ward N / 146", ylabel=label)
        axis.grid(True, which="both", alpha=0.3)
    left.legend()
    fig.savefig(ROOT / "benchmarks/clustering_growth.png", dpi=110)
    print(ROOT / "benchmarks/clustering_growth.png")


if __name__ == "__main__":
    main()
