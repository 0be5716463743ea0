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


def auto_factor(num_clusters: int | str) -> float | None:
    """F of `auto*F`, 1 of `auto`; None where the number of clusters is given."""
    return float(num_clusters.partition("*")[2] or 1) if isinstance(num_clusters, str) else None


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
    from pyspkv.clustering.agglomerative import cuts
    from pyspkv.clustering.quality import center_sums, silhouette

    k1 = len(centroids)
    if k1 < 3:
        return k1, []
    sums, counts = center_sums(x, labels, k1)
    rows = np.sort(np.random.default_rng([seed, 3]).choice(len(x), min(len(x), SAMPLE), replace=False))
    points, own = x[rows], labels[rows]

    def curve_at(grid: np.ndarray) -> np.ndarray:
        values = []
        for cut in cuts(centroids, grid.tolist(), linkage=linkage, device=device):
            total = np.zeros((int(cut.max()) + 1, x.shape[1]))
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
