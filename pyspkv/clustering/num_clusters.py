"""How many speakers? A choice from the embeddings alone, from cuts of one tree.

benchmarks/num_clusters.py compares four criteria on synthetic embeddings; the sampled silhouette came nearest to
the truth. Its curve often has two peaks, speakers and, far above, the sessions of each speaker; the coarser one is
wanted, so the first peak counts if it is nearly as high as the highest. It may also start high, with two clusters of
women and men, and fall: that end of the curve is no peak, so heights are told from the lowest point before.
"""

import numpy as np

SAMPLE = 5_000
NEARLY = 0.8  # a peak counts from this share of the highest silhouette
DROP = 0.02  # and only where the curve falls by this share of it before it rises above it
RISE = 0.1  # the highest peak stands this share of the curve's height above the lowest point before it


def first_peak(curve: np.ndarray) -> int:
    """Index of the first clear peak of curve [G] (rules above); the highest point where there is none."""
    rise = curve - np.minimum.accumulate(curve)
    top = int(np.argmax(rise))
    if rise[top] < RISE * abs(curve).max():
        return int(np.argmax(curve))
    start = int(np.argmin(curve[: top + 1]))
    for i in range(start + 1, top):
        higher = i + 1 + int(np.argmax(curve[i + 1 :] > curve[i]))
        valley = curve[i:higher].min()
        if curve[i] >= NEARLY * curve[top] and curve[i] - valley >= DROP * curve[i]:
            return i
    return top


def choose_num_clusters(
    x: np.ndarray,
    labels: np.ndarray,
    centroids: np.ndarray,
    *,
    linkage: str = "ward",
    seed: int = 0,
    device: str = "cpu",
) -> tuple[int, list[dict]]:
    """Number of clusters for embeddings x [N, D], whose k-means labels [N] and centroids [K1, D] are given.

    Returns (K, curve): the curve is a list of {"num_clusters", "silhouette"} over 40 cuts of the centroids' tree,
    then a dozen around the peak. The silhouette is `quality.silhouette` of up to 5,000 utterances drawn from `seed`.
    """
    from pyspkv.clustering.quality import center_sums

    if len(centroids) < 3:
        return len(centroids), []
    sums, counts = center_sums(x, labels, len(centroids))
    rows = sampled(len(x), seed)
    own = labels[rows]
    return choose_from(x[rows], own, sums, counts, centroids, linkage=linkage, device=device)


def sampled(n: int, seed: int) -> np.ndarray:
    """The rows of n, ascending, whose silhouette counts."""
    return np.sort(np.random.default_rng([seed, 3]).choice(n, min(n, SAMPLE), replace=False))


def choose_from(
    points: np.ndarray,
    own: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
    centroids: np.ndarray,
    *,
    linkage: str = "ward",
    device: str = "cpu",
) -> tuple[int, list[dict]]:
    """`choose_num_clusters` from the `sampled` points [M, D], their labels [M], and the sums [K1, D] and counts [K1]
    of the unit vectors of each centroid."""
    from pyspkv.clustering.agglomerative import cuts
    from pyspkv.clustering.quality import silhouette

    k1 = len(centroids)
    if k1 < 3:
        return k1, []

    def curve_at(grid: np.ndarray) -> np.ndarray:
        values = []
        for cut in cuts(centroids, grid.tolist(), linkage=linkage, device=device):
            total = np.zeros((int(cut.max()) + 1, points.shape[1]))
            np.add.at(total, cut, sums)
            size = np.bincount(cut, counts, len(total)).astype(np.int64)
            values.append(silhouette(points, cut[own], total, size)["silhouette"])
        return np.array(values)

    grid = np.unique(np.round(np.geomspace(2, k1 - 1, 40)).astype(np.int64))
    curve = curve_at(grid)
    best = first_peak(curve)
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    fine = np.setdiff1d(np.round(np.linspace(low, high, 14)).astype(np.int64), grid)
    if len(fine):
        near = curve_at(fine)
        if near.max() > curve[best]:
            chosen = int(fine[int(np.argmax(near))])
        else:
            chosen = int(grid[best])
        grid, curve = np.concatenate([grid, fine]), np.concatenate([curve, near])
    else:
        chosen = int(grid[best])
    order = np.argsort(grid)
    return chosen, [
        {"num_clusters": int(g), "silhouette": float(v)} for g, v in zip(grid[order], curve[order])
    ]
