"""Options of a clustering.

This module imports nothing heavy, because they are compared before anything is made.
"""

from dataclasses import dataclass

from pyspkv.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a clustering: those of bin.cluster, where --help explains them."""

    num_clusters: int | str = "auto"
    method: str = "kmeans-ahc"
    linkage: str = "ward"
    metric: str = "euclidean"
    whiten: float | None = None
    min_size: int = 1
    num_kmeans: int = 0
    iterations: int = 20
    seed: int = 0

    def check(self, n: int, file) -> None:
        """UserError: these options are impossible for n utterances.

        `file` names their source in the message.
        """
        if not isinstance(self.num_clusters, str) and self.num_clusters > n:
            raise UserError(
                f"--num-clusters {self.num_clusters} is more than the {n} utterances",
                file=file,
                hint=f"give --num-clusters auto, or at most {n}",
            )
        k1 = self.centroids(n)
        count = self.num_clusters
        if not isinstance(count, str) and self.method == "kmeans-ahc" and k1 < count:
            raise UserError(
                f"--num-kmeans {k1} is less than --num-clusters {self.num_clusters}",
                hint="raise --num-kmeans",
            )

    def centroids(self, n: int) -> int:
        """Number of k-means centroids for n utterances."""
        from pyspkv.clustering import pipeline

        return min(self.num_kmeans or pipeline.default_num_kmeans(n, self.num_clusters), n)
