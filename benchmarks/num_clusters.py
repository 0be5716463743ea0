"""Compare label-free criteria for the number of speakers. All cut the same Ward tree of k-means centroids.

    python benchmarks/num_clusters.py               # the synthetic sets that the rule's constants were tuned on
    python benchmarks/num_clusters.py --held-out    # other sizes, sessions, noises, seeds
    python benchmarks/num_clusters.py --real exp/pretrain/embed/train/embedding.scp data/truth/train_utt2spk

Each row has the true number, and the choice of each criterion divided by it. Real embeddings are whitened
with power 0.5, as in the recipes.
"""

import argparse

import numpy as np
from synthetic_embeddings import generate

from pyspkv.clustering import quality
from pyspkv.clustering.agglomerative import agglomerate, cuts
from pyspkv.clustering.kmeans import kmeans
from pyspkv.clustering.num_clusters import choose_num_clusters


def eigengap(centroids: np.ndarray, neighbors: int = 10) -> int:
    """Number of clusters by the largest gap among the smallest eigenvalues of a kNN graph's Laplacian.

    The Laplacian is normalized. Source: von Luxburg 2007, section 8.3.
    """
    from scipy.sparse.csgraph import laplacian
    from sklearn.neighbors import kneighbors_graph

    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    graph = kneighbors_graph(unit, min(neighbors, len(unit) - 1))
    values = np.linalg.eigvalsh(laplacian(graph.maximum(graph.T), normed=True).toarray())
    values = values[: len(values) // 2]
    return int(np.argmax(np.diff(values)[1:])) + 2


def choose(x: np.ndarray, k1: int, seed: int = 0) -> dict[str, int]:
    labels, centroids = kmeans(x, k1, seed, 10)
    grid = np.unique(np.round(np.geomspace(2, k1 - 1, 40)).astype(int))
    tree = cuts(centroids, grid.tolist())
    sums, counts = quality.center_sums(x, labels, k1)
    rows = np.random.default_rng(seed).choice(len(x), min(len(x), 5000), replace=False)
    curve = []
    for cut in tree:
        total = np.zeros((cut.max() + 1, x.shape[1]))
        np.add.at(total, cut, sums)
        size = np.bincount(cut, counts, len(total)).astype(int)
        curve.append(quality.silhouette(x[rows], cut[labels[rows]], total, size)["silhouette"])
    # stability: trees of two halves are compared on all points, each assigned to the nearest centroid of
    # either half
    half = np.random.default_rng([seed, 1]).permutation(len(x))
    sides = [np.sort(half[: len(x) // 2]), np.sort(half[len(x) // 2 :])]
    parts = []
    for side in sides:
        _, c = kmeans(x[side], k1 // 2, seed, 10)
        bias = (c**2).sum(1) / 2
        own = np.concatenate([(x[i : i + 4096] @ c.T - bias).argmax(1) for i in range(0, len(x), 4096)])
        small = [min(g, len(c)) for g in grid.tolist()]
        parts.append([cut[own] for cut in cuts(c, small)])
    agree = [quality.adjusted_mutual_info(a[rows], b[rows]) for a, b in zip(*parts)]
    inside = grid < k1 // 2
    _, heights = agglomerate(centroids, num_clusters=1)
    top = np.log(heights[len(heights) // 4 :])
    jump = len(heights) - (len(heights) // 4 + int(np.argmax(np.diff(top))))
    return {
        "first peak": choose_num_clusters(x, labels, centroids, seed=seed)[0],
        "silhouette": int(grid[int(np.argmax(curve))]),
        "stability": int(grid[inside][int(np.argmax(np.array(agree)[inside]))]),
        "height gap": jump,
        "eigengap": eigengap(centroids) if k1 <= 2500 else 0,
    }


SEEN = ((1500, 20), (3000, 60), (6000, 33), (10_000, 55), (10_000, 500), (30_000, 165))
SEEN_NOISE = ((0.75, 0.85), (1.1, 1.3), (1.2, 1.5))
HELD_OUT = ((2000, 40), (4000, 25), (5000, 150), (12_000, 80), (12_000, 300), (20_000, 220))
HELD_OUT_NOISE = ((0.6, 1.1), (0.9, 1.0), (1.0, 1.4))


def synthetic(sizes, noises):
    """Yield (name, x [N, D], truth [N], k-means centroids)."""
    for n, speakers in sizes:
        for session, noise in noises:
            x, truth, _ = generate(n, num_speakers=speakers, session=session, noise=noise, seed=n)
            k1 = min(n // 4, max(n * 50_000 // 1_092_009, 4 * speakers)) if speakers > 100 else n // 4
            yield f"session {session} noise {noise}", x, truth, k1


def real(pairs):
    from pyspkv.clustering.vectors import l2_normalize, whiten
    from pyspkv.data.ark import read_embeddings
    from pyspkv.data.tables import read_table

    for scp, utt2spk in pairs:
        found, spk = read_embeddings(scp), read_table(utt2spk, "id")
        yield (
            scp,
            whiten(l2_normalize(found.x), 0.5),
            np.array([spk[u] for u in found.ids]),
            len(found.ids) // 2,
        )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--held-out", action="store_true")
    p.add_argument("--real", nargs=2, action="append", metavar=("SCP", "UTT2SPK"))
    args = p.parse_args()
    sets = synthetic(HELD_OUT, HELD_OUT_NOISE) if args.held_out else synthetic(SEEN, SEEN_NOISE)
    print(f"{'utts':>7} {'speakers':>8}  first peak  silhouette   stability  height gap    eigengap")
    errors: dict[str, list[float]] = {}
    for name, x, truth, k1 in real(args.real) if args.real else sets:
        got, true = choose(x, k1), len(np.unique(truth))
        ratios = "  ".join(f"{v / true:>10.2f}" for v in got.values())
        print(f"{len(x):>7} {true:>8}  {ratios}  {name}", flush=True)
        for criterion, v in got.items():
            if v:
                errors.setdefault(criterion, []).append(abs(np.log(v / true)))
    print("mean |ln(chosen / true)|: " + ", ".join(f"{k} {np.mean(v):.3f}" for k, v in errors.items()))


if __name__ == "__main__":
    main()
