"""Pseudo-labels from embeddings: the public calls (k-means, Ward and other AHC, the two steps together)."""

import numpy as np

from pyspkv.errors import UserError
from pyspkv.labels.agglomerative import agglomerate
from pyspkv.labels.kmeans import kmeans

__all__ = ["l2_normalise", "unit_rows", "kmeans", "ward", "ahc", "kmeans_ahc", "cluster"]


def unit_rows(x: np.ndarray) -> np.ndarray:
    """L2-normalise float32 x [N, D] in place, in blocks; the rows that are all zeros (left so), int64 [M]."""
    bad = []
    for first in range(0, len(x), 8192):
        part = x[first : first + 8192]
        norm = np.sqrt(np.einsum("nd,nd->n", part, part, dtype=np.float64))
        bad.append(first + np.flatnonzero(norm == 0))
        part /= np.where(norm > 0, norm, 1)[:, None].astype(np.float32)
    return np.concatenate(bad) if bad else np.zeros(0, dtype=np.int64)


def l2_normalise(x: np.ndarray) -> np.ndarray:
    """Rows of x [N, D] on the unit sphere, float32, a new array. ValueError: a row of zeros."""
    x = np.array(x, dtype=np.float32, order="C")
    if len(bad := unit_rows(x)):
        raise ValueError(f"{len(bad)} embeddings are zero, the first in row {bad[0]}")
    return x


def ward(
    x: np.ndarray, num_clusters: int, weights: np.ndarray | None = None, *, device: str = "cpu"
) -> np.ndarray:
    """Exact Ward clustering of x [N, D] into `num_clusters`: int64 labels [N], numbered by first row.

    weights [N]: count each row as that many equal points. Memory O(N x D); the partition is scikit-learn's and
    scipy's where no heights tie (`pyspkv.labels.agglomerative` says how ties go).
    """
    return agglomerate(x, num_clusters=num_clusters, weights=weights, device=device)[0]


PAIRS_LIMIT = 20_000  # rows for linkages that need all pairwise distances (1.6 GB of them, in float64)


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

    Heights are scipy's; metric cosine is 1 - cos. Ward (Euclidean) and average cosine run in O(N x D) memory at
    any N. Complete linkage and average Euclidean need all pairs: 4 N (N - 1) bytes, at most PAIRS_LIMIT rows, no
    weights (UserError).
    """
    if (linkage, metric) in (("ward", "euclidean"), ("average", "cosine")):
        return agglomerate(
            x, num_clusters=num_clusters, threshold=threshold, linkage=linkage, weights=weights,
            device=device, progress=progress,
        )[0]  # fmt: skip
    from scipy.cluster.hierarchy import fcluster
    from scipy.cluster.hierarchy import linkage as scipy_linkage

    if linkage == "ward":
        raise UserError("Ward linkage is defined for Euclidean distances", mend="--metric euclidean")
    if (num_clusters is None) == (threshold is None):
        raise ValueError("give num_clusters or threshold")
    if weights is not None:
        raise UserError(f"{linkage} linkage with metric {metric} takes no weights")
    if len(x) > PAIRS_LIMIT:
        raise UserError(
            f"{linkage} linkage with metric {metric} needs all pairwise distances, "
            f"{4 * len(x) * (len(x) - 1) / 2**30:.1f} GiB for {len(x)} rows; at most {PAIRS_LIMIT} rows are taken",
            mend="--linkage ward, --linkage average --metric cosine, or a smaller --num-kmeans",
        )
    if len(x) == 1:
        return np.zeros(1, dtype=np.int64)
    tree = scipy_linkage(x, linkage, metric)
    if num_clusters is None:
        return fcluster(tree, threshold, "distance").astype(np.int64) - 1
    return fcluster(tree, num_clusters, "maxclust").astype(np.int64) - 1


def kmeans_ahc(x, num_kmeans, num_clusters, *, linkage="ward", metric="euclidean", seed=0, max_iter=20):
    """The two steps of arXiv 2406.02285 on x [N, D]: k-means, AHC on the centroids. int64 labels [N]."""
    return cluster(l2_normalise(x), "kmeans-ahc", num_clusters, num_kmeans=num_kmeans, linkage=linkage,
                   metric=metric, seed=seed, max_iter=max_iter)[0]  # fmt: skip


def cluster(
    x: np.ndarray,
    method: str,
    num_clusters: int | str,
    *,
    num_kmeans: int,
    linkage: str = "ward",
    metric: str = "euclidean",
    max_iter: int = 20,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[np.ndarray, dict]:
    """Unit vectors x float32 [N, D] -> (int64 labels [N], what the report says about how).

    method kmeans-ahc: k-means into num_kmeans, AHC of the centroids; kmeans; ahc. num_clusters "auto": estimated.
    """
    info: dict = {}
    if num_clusters == "auto":
        num_clusters = estimate_num_clusters(x)
        info["num_clusters_chosen_by"] = "estimate"
    if method == "kmeans":
        labels, _ = kmeans(x, min(num_clusters, len(x)), seed, max_iter)
    elif method == "ahc":
        labels = ahc(x, num_clusters, linkage=linkage, metric=metric)
    else:
        k1 = min(max(num_kmeans, num_clusters), len(x))
        labels, centroids = kmeans(x, k1, seed, max_iter)
        labels = ahc(centroids, num_clusters, linkage=linkage, metric=metric)[labels]
        info["num_kmeans"] = k1
    return np.unique(labels, return_inverse=True)[1].astype(np.int64), info


def estimate_num_clusters(x: np.ndarray, seed: int = 0) -> int:
    """Label-free K: the cut of one Ward tree of k-means centroids with the best simplified silhouette."""
    from pyspkv.labels.quality import similarity

    k1 = min(len(x), max(2, min(len(x) // 4, 5000)))
    labels, centroids = kmeans(x, k1, seed, 10)
    best = (-2.0, 1)
    for k in np.unique(np.geomspace(2, k1, 24).astype(int)):
        cut = ahc(centroids, int(k))[labels]
        best = max(best, (similarity(x, cut, sample=5000, seed=seed)["silhouette"], int(k)))
    return best[1]


def memory_estimate(n: int, dim: int, method: str, num_kmeans: int) -> str:
    gib = (4 * n * dim + 16 * n * 2 + 40 * num_kmeans * dim) / 2**30 + 0.4
    return f"clustering {n} x {dim} by {method}: about {gib:.2f} GiB of memory"
