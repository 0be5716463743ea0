"""Choose the number of clusters from the embeddings alone, from cuts of one tree (--num-clusters auto).

benchmarks/num_clusters.py compares four criteria on synthetic embeddings; the sampled silhouette came nearest
to the true number. Its curve often has two peaks: one at the number of speakers and another, far above, at
the number of sessions. The coarser one is wanted, so the first peak is taken if it is nearly as high as the
highest. The curve may also start high, with two clusters of women and men, and then fall. That start is not a
peak, so the height of a peak is measured from the lowest point before it.
"""

import numpy as np

SAMPLE = 5_000  # utterances that the silhouette is computed on
NEARLY = 0.8  # a peak must reach this share of the highest peak
DROP = 0.02  # and the curve must fall by this share of the peak before it rises above the peak
RISE = 0.1  # the highest peak must rise this share of the curve's maximum above the lowest point before it


def auto_factor(num_clusters: int | str) -> float | None:
    """F of `auto*F`, 1 of `auto`; None where the number of clusters is given."""
    return float(num_clusters.partition("*")[2] or 1) if isinstance(num_clusters, str) else None


def first_peak(curve: np.ndarray) -> int:
    """Index of the first clear peak of curve [G] (rules above), or of its highest point if there is none."""
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
    """Choose the number of clusters of embeddings x [N, D] with k-means labels [N] and centroids [K1, D].

    Returns (K, curve). The curve is a list of {"num_clusters", "silhouette"}: 40 cuts of the centroids' tree,
    then a dozen more around the peak. The silhouette is `quality.silhouette` of up to 5,000 utterances drawn
    with `seed`.
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
