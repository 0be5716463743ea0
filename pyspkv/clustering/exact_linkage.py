"""Complete and average linkage where centroids do not give the distance, from blocks of all pairs.

An N x N matrix is never held. Both linkages are reducible (see `agglomerative`), so all pairs of mutual
nearest neighbors merge at once, and a cluster keeps its nearest neighbor until that one merges. Each search
compares the points of a cluster with all others: O(N x D) memory, several times N^2 products in all. It takes
minutes where Ward takes seconds.
"""

from collections.abc import Callable

import numpy as np

from pyspkv.clustering.agglomerative import cut_tree

BLOCK = 64 << 20  # bytes of one block of distances


def agglomerate_pairs(
    x: np.ndarray,
    *,
    num_clusters: int | None = None,
    threshold: float | None = None,
    linkage: str = "complete",
    metric: str = "euclidean",
    weights: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster x float [N, D] down to `num_clusters`, or as long as heights are at most `threshold`.

    Args:
        linkage, metric: "complete" or "average" of "euclidean" or "cosine" (1 - cos) distances; heights as in
            scipy.
        weights: [N] > 0; a row of weight w counts as w equal points.

    Of several nearest neighbors at the same distance the one with the lowest first row is taken. Returns and
    errors are those of `agglomerate`.
    """
    if (num_clusters is None) == (threshold is None):
        raise ValueError("give num_clusters or threshold")
    n = len(x)
    if weights is not None and (np.shape(weights) != (n,) or not np.all(np.asarray(weights) > 0)):
        raise ValueError(f"weights must be {n} positive numbers")
    wanted = n - 1 if num_clusters is None else n - num_clusters
    ceiling = np.inf if threshold is None else float(threshold)
    x = np.array(x, np.float64)  # a copy
    if metric == "cosine":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    else:
        x -= x.mean(0)  # smaller numbers, smaller rounding in the products
    weight = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    slot = np.arange(n)  # the cluster of each point, named by its first row
    near, dist = np.full(n, -1), np.full(n, np.inf)
    bottom = np.zeros(n)  # height of each cluster's last merge
    merges: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    stale = np.arange(n)
    while n > 1 and wanted:
        alive = _find_nearest(x, slot, stale, near, dist, weight, linkage, metric)
        # the lowest `wanted` merges are final once no remaining pair can merge below them
        made = np.concatenate([m[2] for m in merges]) if merges else np.zeros(0)
        floor = dist[alive].min()
        if (made <= floor).sum() >= wanted or floor > ceiling:
            break
        mutual = alive[(near[near[alive]] == alive) & (alive < near[alive])]
        if not len(mutual):  # rounding broke the symmetry of a tie: merge the closest pair
            mutual = alive[[dist[alive].argmin()]]
        gone = near[mutual]
        mutual, gone = np.minimum(mutual, gone), np.maximum(mutual, gone)
        bottom[mutual] = np.maximum(dist[mutual], np.maximum(bottom[mutual], bottom[gone]))
        merges.append((gone, mutual, bottom[mutual]))
        into = np.arange(n)
        into[gone] = mutual
        slot = into[slot]
        touched = np.zeros(n, bool)
        touched[gone] = touched[mutual] = True
        alive = np.setdiff1d(alive, gone, assume_unique=True)
        stale = alive[touched[alive] | touched[near[alive]]]
        if len(alive) == 1:
            break
        if progress:
            progress(min(n - len(alive), wanted), wanted)
    return cut_tree(n, merges, wanted, ceiling)


def _find_nearest(
    x: np.ndarray,
    slot: np.ndarray,
    stale: np.ndarray,
    near: np.ndarray,
    dist: np.ndarray,
    weight: np.ndarray,
    linkage: str,
    metric: str,
) -> np.ndarray:
    """Update `near` and `dist` [N] of the clusters in `stale`; return all clusters (first rows, ascending).

    slot [N]: the cluster of each point x [N, D]. Memory: BLOCK bytes of distances at a time.
    """
    n, square = len(x), np.einsum("nd,nd->n", x, x)
    order = np.argsort(slot, kind="stable")
    alive, starts = np.unique(slot[order], return_index=True)
    ends = np.append(starts[1:], n)
    reduce = np.maximum.reduceat
    if linkage == "average":
        reduce, total = np.add.reduceat, np.add.reduceat(weight[order], starts)
    columns = x[order]
    at = np.searchsorted(alive, stale)
    for part in _parts(ends[at] - starts[at], BLOCK // (8 * n)):
        mine = at[part]
        rows = np.concatenate([np.arange(starts[k], ends[k]) for k in mine])
        first = np.cumsum(ends[mine] - starts[mine]) - (ends[mine] - starts[mine])
        block = columns[rows] @ columns.T
        if metric == "cosine":
            np.subtract(1, block, out=block)
        else:
            block *= -2
            block += square[order[rows]][:, None]
            block += square[order]
            np.sqrt(np.maximum(block, 0, out=block), out=block)
        if linkage == "average":
            block *= weight[order[rows]][:, None] * weight[order]
            scale = total[mine][:, None] * total
        if len(starts) < n:
            block = reduce(reduce(block, first, 0), starts, 1)
        if linkage == "average":
            block /= scale
        block[np.arange(len(mine)), mine] = np.inf
        best = block.argmin(1)
        near[stale[part]], dist[stale[part]] = alive[best], block[np.arange(len(mine)), best]
    return alive


def _parts(sizes: np.ndarray, most: int):
    """Slices of consecutive entries whose sizes add up to at most `most`, but at least one entry each."""
    first = 0
    total = np.cumsum(sizes)
    while first < len(sizes):
        end = max(first + 1, int(np.searchsorted(total, (total[first - 1] if first else 0) + most, "right")))
        yield slice(first, end)
        first = end
