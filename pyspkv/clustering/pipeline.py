"""The public calls of clustering: k-means, Ward and other AHC, the two steps together, label spreading."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.clustering.agglomerative import agglomerate
from pyspkv.clustering.kmeans import MAX_ITERATIONS, kmeans, sums_of
from pyspkv.clustering.num_clusters import auto_factor
from pyspkv.clustering.vectors import COLLAPSED, COLLAPSED_HINT, l2_normalize

if TYPE_CHECKING:
    from pyspkv.clustering.options import Options


def ward(
    x: np.ndarray, num_clusters: int, weights: np.ndarray | None = None, *, device: str = "cpu"
) -> np.ndarray:
    """Exact Ward clustering of x [N, D] into `num_clusters`: int64 labels [N], numbered by first row.

    weights [N]: a row of weight w counts as w equal points. Memory O(N x D). Without tied heights the
    partition is that of scikit-learn and scipy; `pyspkv.clustering.agglomerative` describes how ties are
    broken.
    """
    return agglomerate(x, num_clusters=num_clusters, weights=weights, device=device)[0]


PAIRS_LIMIT = 20_000  # up to this many rows scipy may hold all pairwise distances (1.6 GB in float64)


def ahc(
    x: np.ndarray,
    num_clusters: int | None = None,
    threshold: float | None = None,
    linkage: str = "ward",
    metric: str = "euclidean",
    weights: np.ndarray | None = None,
    *,
    device: str = "cpu",
    progress=None,
) -> np.ndarray:
    """Agglomerative clustering of x [N, D], cut by count or by distance: int64 labels [N] from 0.

    Heights are those of scipy; the cosine metric is 1 - cos. Ward (Euclidean) and average cosine linkage are
    fast and need O(N x D) memory. The other linkages cannot be computed from centroids. Up to PAIRS_LIMIT
    rows scipy computes them with all pairwise distances in memory; above it, or with weights,
    `agglomerate_pairs` needs little memory but many times as long. UserError: Ward with another metric than
    euclidean.
    """
    if linkage == "ward" and metric != "euclidean":
        raise UserError("Ward linkage is defined for Euclidean distances", hint="use --metric euclidean")
    cut: dict[str, Any] = {"num_clusters": num_clusters, "threshold": threshold}
    if (linkage, metric) in (("ward", "euclidean"), ("average", "cosine")):
        return agglomerate(x, linkage=linkage, weights=weights, device=device, progress=progress, **cut)[0]
    if len(x) > PAIRS_LIMIT or weights is not None:
        from pyspkv.clustering.exact_linkage import agglomerate_pairs

        return agglomerate_pairs(
            x, linkage=linkage, metric=metric, weights=weights, progress=progress, **cut
        )[0]
    from scipy.cluster.hierarchy import cut_tree as scipy_cut
    from scipy.cluster.hierarchy import fcluster
    from scipy.cluster.hierarchy import linkage as scipy_linkage

    if (num_clusters is None) == (threshold is None):
        raise ValueError("give num_clusters or threshold")
    if len(x) == 1:
        return np.zeros(1, dtype=np.int64)
    tree = scipy_linkage(x, linkage, metric)
    if num_clusters is None:
        return fcluster(tree, threshold, "distance").astype(np.int64) - 1
    return scipy_cut(tree, num_clusters).reshape(-1).astype(np.int64)  # fcluster cuts tied heights together


AHC_POINTS = 20_000  # up to this many points AHC needs no k-means first (8.5 s, 0.4 GiB)


def cluster(
    x: np.ndarray,
    method: str,
    num_clusters: int | str,
    *,
    num_kmeans: int,
    linkage: str = "ward",
    metric: str = "euclidean",
    max_iter: int = MAX_ITERATIONS,
    seed: int = 0,
    device: str = "cpu",
    checkpoint=None,
    first: np.ndarray | None = None,
) -> tuple[np.ndarray, dict]:
    """Cluster unit vectors x float32 [N, D]: (int64 labels [N] from 0, entries for the report).

    Args:
        method: "kmeans-ahc", the two steps of arXiv 2406.02285: k-means into `num_kmeans` centroids (none if
            that is N), then AHC of the centroids, unweighted as in the authors' code. Or "kmeans", or "ahc".
        num_clusters: a number, or "auto": `num_clusters.choose_num_clusters` on the distinct vectors; each
            copy then gets the label of its first occurrence. "auto*F": F times that number, at most one cluster for
            each vector or centroid.
        first: output of `copies.first_of_each`, if it has been computed already.
        checkpoint: see `kmeans`.

    UserError: "auto", and all vectors are equal.
    """
    if not isinstance(num_clusters, str):
        labels, info = _cluster(
            x, method, num_clusters, num_kmeans, linkage, metric, max_iter, seed, device, checkpoint
        )
        return _codes(labels), info
    from pyspkv.clustering.copies import first_of_each

    first = first_of_each(x) if first is None else first
    rows, of_each = np.unique(first, return_inverse=True)
    if len(rows) == 1 < len(x):
        raise UserError(COLLAPSED, hint=COLLAPSED_HINT)
    some = x if len(rows) == len(x) else x[rows]
    labels, info = _cluster(
        some, method, num_clusters, num_kmeans, linkage, metric, max_iter, seed, device, checkpoint
    )
    curve = {point["num_clusters"]: point["silhouette"] for point in info["auto"]}
    estimate = info.get("num_clusters_estimate", info["num_clusters_chosen"])
    if len(x) >= OFTEN * len(rows) and curve.get(estimate, 0.0) < GROUPED:
        labels, info["num_clusters_chosen"] = np.arange(len(rows)), len(rows)
    return _codes(labels[of_each.reshape(-1)]), info


OFTEN, GROUPED = (
    3,
    0.3,
)  # if distinct vectors occur this often on average, with a silhouette below this, each becomes a cluster


def _codes(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _cluster(
    x, method, num_clusters, num_kmeans, linkage, metric, max_iter, seed, device, checkpoint
) -> tuple[np.ndarray, dict]:
    n = len(x)
    info: dict[str, Any] = {}
    factor = auto_factor(num_clusters)
    auto = factor is not None
    k1 = min(max(num_kmeans, 2 if auto else num_clusters), n)
    if k1 == n and method == "kmeans-ahc":
        method = "ahc"
    labels, centroids = np.arange(n), x  # without k-means each point is its own centroid
    if method == "kmeans-ahc" or (auto and (method == "kmeans" or n > AHC_POINTS)):
        info["num_kmeans"], info["kmeans"] = k1, {}
        labels, centroids = kmeans(
            x, k1, seed, max_iter, device=device, checkpoint=checkpoint, progress=True, stats=info["kmeans"]
        )
    if auto:
        from pyspkv.clustering.num_clusters import choose_num_clusters

        num_clusters = _chosen(
            info,
            factor,
            n if method == "kmeans" else len(centroids),
            linkage,
            metric,
            device,
            partial(choose_num_clusters, x, labels, centroids, seed=seed),
        )
    if method == "kmeans":
        stats = info["kmeans"] = {}
        labels, _ = kmeans(x, num_clusters, seed, max_iter, device=device, progress=True, stats=stats)
    else:
        two = method == "kmeans-ahc"
        rows = centroids if two else x
        tree = ahc(rows, num_clusters, linkage=linkage, metric=metric, device=device, progress=_bar(linkage))
        labels = tree[labels] if two else tree
    return labels, info


def cut_centroids(
    centroids: np.ndarray,
    options: "Options",
    device: str,
    info: dict,
    choose: Callable[..., tuple[int, list]],
) -> np.ndarray:
    """The second step alone: AHC of k-means centroids [K1, D]; int64 labels [K1] from 0.

    choose(linkage=, device=): what `choose_num_clusters` gives, for --num-clusters auto; `info` gets it.
    """
    num, linkage, metric = options.num_clusters, options.linkage, options.metric
    if isinstance(num, str):
        num = _chosen(info, auto_factor(num), len(centroids), linkage, metric, device, choose)
    return ahc(centroids, num, linkage=linkage, metric=metric, device=device, progress=_bar(linkage))


def _chosen(info: dict, factor, most: int, linkage: str, metric: str, device: str, choose) -> int:
    """Number of clusters: `factor` times what choose(linkage=, device=) finds, at most `most`; `info` gets it."""
    like = "average" if linkage == "average" and metric == "cosine" else "ward"
    num, info["auto"] = choose(linkage=like, device=device)
    if factor != 1:
        info["num_clusters_estimate"] = num
        num = min(max(1, round(factor * num)), most)
    info["num_clusters_chosen"] = num
    return num


def _bar(name: str):
    """A progress callback for `ahc` that draws a bar on a terminal."""
    from tqdm import tqdm

    bar = tqdm(desc=f"AHC ({name})", disable=None)

    def update(done: int, wanted: int) -> None:
        bar.total = wanted
        bar.update(done - bar.n)
        if done >= wanted:
            bar.close()

    return update


def default_num_kmeans(n: int, num_clusters: int | str) -> int:
    """Number of k-means centroids for n utterances.

    It is n, which means no k-means, while AHC of all points is cheap; above that the paper's 50,000 per
    1,092,009. Centroids of a few points each only blur what AHC would tell apart (benchmarks/RESULTS.md).
    """
    if n <= AHC_POINTS:
        return n
    k1 = max(round(n * 50_000 / 1_092_009), AHC_POINTS // 2)
    return min(n, k1 if isinstance(num_clusters, str) else max(k1, 2 * num_clusters))


def memory_estimate(n: int, dim: int, method: str, num_kmeans: int, linkage: str, metric: str) -> str:
    """A line that states the peak memory of `cluster` beforehand (the benchmarks check the estimate)."""
    from pyspkv.clustering.kmeans import EXACT_BELOW, PROBES

    rows = n if method == "ahc" else num_kmeans
    tree = rows * (8 * dim + 4 * dim + 200)  # float64 and float32 centroids, lists
    if (linkage, metric) not in (("ward", "euclidean"), ("average", "cosine")):
        tree = 4 * rows * rows if rows <= PAIRS_LIMIT else rows * 24 * dim + (256 << 20)
    ivf = n * PROBES * 28 if method != "ahc" and num_kmeans >= EXACT_BELOW else 0
    sums = 0 if method == "ahc" else num_kmeans * dim * 20
    total = 4 * n * dim + 900 * n + max(tree, ivf + sums) + (450 << 20)
    return f"clustering {n} x {dim} by {method}: about {total / 2**30:.1f} GiB of memory at the peak"


def propagate(
    x: np.ndarray,
    seeds_index: np.ndarray,
    seeds_label: np.ndarray,
    k: int,
    *,
    neighbors: int = 15,
    alpha: float = 0.95,
    iterations: int = 50,
) -> np.ndarray:
    """Label spreading (Zhou et al., NIPS 2003) over the graph of nearest neighbors: int64 labels [N].

    x [N, D] is normalized here. Rows `seeds_index` [L] have the labels `seeds_label` [L] (0..k-1) and keep
    them. Two points are joined by an edge of weight max(cos, 0) if either is among the `neighbors` nearest of
    the other. Then F <- alpha D^-1/2 W D^-1/2 F + (1 - alpha) Y is iterated. Points that no label reaches get
    the label of the nearest mean of labeled points. Memory O(N (neighbors + k)).
    """
    from scipy.sparse import coo_matrix, diags
    from sklearn.neighbors import NearestNeighbors

    x = l2_normalize(x)
    n, neighbors = len(x), min(neighbors, len(x) - 1)
    _, near = NearestNeighbors(n_neighbors=neighbors).fit(x).kneighbors()  # leaves out the point itself
    rows = np.repeat(np.arange(n), neighbors)
    weight = np.maximum(np.einsum("nd,nd->n", x[rows], x[near.ravel()]), 0)
    w = coo_matrix((weight, (rows, near.ravel())), shape=(n, n)).tocsr()
    w = w.maximum(w.T)
    degree = np.asarray(w.sum(1)).ravel()
    root = diags(1 / np.sqrt(np.maximum(degree, 1e-12)))
    s = root @ w @ root
    y = np.zeros((n, k), dtype=np.float32)
    y[seeds_index, seeds_label] = 1
    f = y
    for _ in range(iterations):
        f = alpha * (s @ f) + (1 - alpha) * y
    labels = f.argmax(1).astype(np.int64)
    unreached = np.flatnonzero(f.max(1) <= 0)
    if len(unreached):
        means = l2_normalize(sums_of(x[seeds_index], seeds_label, k)[0])
        labels[unreached] = (x[unreached] @ means.T).argmax(1)
    labels[seeds_index] = seeds_label
    return labels
