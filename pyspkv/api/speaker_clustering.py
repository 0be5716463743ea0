"""Cluster embeddings in Python, without labels: the same as bin.cluster, for an array."""

from typing import Literal

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin

from pyspkv.base.errors import UserError
from pyspkv.clustering.options import Options
from pyspkv.clustering.pipeline import cluster as _cluster
from pyspkv.clustering.vectors import unit_rows, whiten

METHODS = ("kmeans-ahc", "kmeans", "ahc")


def cluster(
    x: np.ndarray,
    num_clusters: int | Literal["auto"] = "auto",
    *,
    method: str = "kmeans-ahc",
    whiten_power: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Cluster embeddings by speaker: int64 labels [N] from 0, the same as bin.cluster's.

    Args:
        x: embeddings [N, D], one per row; they are copied and length-normalized.
        num_clusters: number of speakers, 1 to N; "auto" estimates it.
        method: "kmeans-ahc" (k-means if N is above 20,000, then Ward linkage of its centroids), "kmeans",
            "ahc".
        whiten_power: 0 to 1, first center and whiten with this power; None: no whitening. The ssl recipes use
            0.5.
        seed: of the first centroids of k-means, from 0.

    Raises UserError when x is not a finite [N, D], has a row of zeros, or all rows are equal; or for invalid
    options.
    """
    x = _rows(x)
    k = _count(num_clusters, len(x))
    if method not in METHODS:
        raise UserError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UserError(f"seed {seed!r} is not a whole number from 0")
    if whiten_power is not None:
        if not 0 <= whiten_power <= 1:
            raise UserError(f"whiten_power {whiten_power} is not between 0 and 1")
        x = whiten(x, whiten_power)
    if len(x) == 1:
        return np.zeros(1, np.int64)
    options = Options(num_clusters=k, method=method, seed=int(seed))
    options.check(len(x), None)
    return _cluster(x, method, k, num_kmeans=options.centroids(len(x)), seed=int(seed))[0]


def _rows(x: np.ndarray) -> np.ndarray:
    """A length-normalized copy, float32 [N, D]. UserError when x is not an array of embeddings."""
    try:
        x = np.array(x, dtype=np.float32, order="C")
    except (TypeError, ValueError) as err:
        raise UserError(f"embeddings must be an array of numbers [N, D] ({err})") from None
    if x.ndim != 2 or not x.size:
        raise UserError(
            f"embeddings have shape {x.shape}, not [N, D]",
            hint="one embedding per row; x[None] for a single one",
        )
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        raise UserError(f"the embedding in row {bad[0]} is not finite (and {len(bad) - 1} others)")
    bad = unit_rows(x)
    if len(bad):
        raise UserError(f"the embedding in row {bad[0]} is all zeros (and {len(bad) - 1} others)")
    return x


def _count(num_clusters: int | str, n: int) -> int | str:
    if isinstance(num_clusters, str) and num_clusters == "auto":
        return "auto"
    whole = isinstance(num_clusters, (int, np.integer)) and not isinstance(num_clusters, bool)
    if isinstance(num_clusters, str) or not whole or not 1 <= num_clusters <= n:
        raise UserError(f"num_clusters {num_clusters!r} is neither auto nor a whole number from 1 to {n}")
    return int(num_clusters)


class SpeakerClustering(ClusterMixin, BaseEstimator):
    """`cluster` as a scikit-learn estimator, with the same parameters.

        labels = pyspkv.SpeakerClustering(num_clusters=40).fit_predict(x)

    Attributes after fitting: labels_ int64 [N], n_clusters_ (number of clusters), n_features_in_ (D).
    """

    def __init__(
        self,
        num_clusters: int | Literal["auto"] = "auto",
        *,
        method: str = "kmeans-ahc",
        whiten_power: float | None = None,
        seed: int = 0,
    ):
        self.num_clusters, self.method, self.whiten_power, self.seed = (
            num_clusters,
            method,
            whiten_power,
            seed,
        )

    def fit(self, X: np.ndarray, y: None = None) -> "SpeakerClustering":
        """Cluster embeddings X [N, D]; y is ignored. UserError as in `cluster`."""
        self.labels_ = cluster(
            X, self.num_clusters, method=self.method, whiten_power=self.whiten_power, seed=self.seed
        )
        self.n_clusters_ = int(self.labels_.max()) + 1
        self.n_features_in_ = np.shape(X)[1]
        return self
