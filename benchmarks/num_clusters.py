"""Which label-free criterion finds the number of speakers? Synthetic embeddings, one Ward tree of k-means centroids.

    python benchmarks/num_clusters.py

Each row: the true number and what every criterion chose, as a ratio to the truth.
"""

import numpy as np
from synthetic_embeddings import generate

from pyspkv.labels import quality
from pyspkv.labels.agglomerative import agglomerate, cuts
from pyspkv.labels.kmeans import kmeans
from pyspkv.labels.num_clusters import choose_num_clusters


def eigengap(centroids: np.ndarray, neighbours: int = 10) -> int:
    """Largest gap of the smallest eigenvalues of the kNN graph's normalised Laplacian (von Luxburg 2007, 8.3)."""
    from scipy.sparse.csgraph import laplacian
    from sklearn.neighbors import kneighbors_graph

    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    graph = kneighbors_graph(unit, min(neighbours, len(unit) - 1))
    values = np.linalg.eigvalsh(laplacian(graph.maximum(graph.T), normed=True).toarray())
    values = values[: len(values) // 2]
    return int(np.argmax(np.diff(values)[1:])) + 2


def choose(x: np.ndarray, k1: int, seed: int = 0) -> dict[str, int]:
    labels, centroids = kmeans(x, k1, seed, 10)
    grid = np.unique(np.round(np.geomspace(2, k1 - 1, 40)).astype(int))
    tree = cuts(centroids, grid.tolist())
    sums, counts = quality.centre_sums(x, labels, k1)
    rows = np.random.default_rng(seed).choice(len(x), min(len(x), 5000), replace=False)
    curve = []
    for cut in tree:
        total = np.zeros((cut.max() + 1, x.shape[1]))
        np.add.at(total, cut, sums)
        size = np.bincount(cut, counts, len(total)).astype(int)
        curve.append(quality.silhouette(x[rows], cut[labels[rows]], total, size)["silhouette"])
    # stability: trees of two halves, compared on the points of both through their nearest centroids
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


def main() -> None:
    print(
        f"{'utts':>7} {'speakers':>8} {'noise':>12}  first peak  silhouette   stability  height gap    eigengap"
    )
    errors: dict[str, list[float]] = {}
    for n, speakers in ((1500, 20), (3000, 60), (6000, 33), (10_000, 55), (10_000, 500), (30_000, 165)):
        for session, noise in ((0.75, 0.85), (1.1, 1.3), (1.2, 1.5)):
            x, truth, _ = generate(n, num_speakers=speakers, session=session, noise=noise, seed=n)
            k1 = min(n // 4, max(n * 50_000 // 1_092_009, 4 * speakers)) if speakers > 100 else n // 4
            got = choose(x, k1)
            true = len(np.unique(truth))
            ratios = "  ".join(f"{v / true:>10.2f}" for v in got.values())
            print(f"{n:>7} {true:>8} {session:>6} {noise:>5}  {ratios}", flush=True)
            for name, v in got.items():
                if v:
                    errors.setdefault(name, []).append(abs(np.log(v / true)))
    print("mean |ln(chosen / true)|: " + ", ".join(f"{k} {np.mean(v):.3f}" for k, v in errors.items()))


if __name__ == "__main__":
    main()
