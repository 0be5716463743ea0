"""Options of a clustering.

This module imports nothing heavy, because they are compared before anything is made.
"""

import re
from dataclasses import dataclass

from pyspkv.base.errors import UserError

MOST = 10**9  # numbers in options must be below this


def count_or_auto(text: str) -> int | str:
    """--num-clusters: a number from 1 to MOST - 1, or `auto` or `auto*F` in their shortest form. UserError: neither."""
    if re.fullmatch("[0-9]{1,9}", text) and int(text):
        return int(text)
    factor = re.fullmatch(r"auto(?:\*([0-9]{1,3}(?:\.[0-9]{1,6})?))?", text)
    if factor and 0.1 <= (value := float(factor[1] or 1)) <= 100:
        return "auto" if value == 1 else f"auto*{value:.6f}".rstrip("0").rstrip(".")
    raise UserError(
        f"--num-clusters {text if len(text) < 40 else text[:37] + '...'}: a number from 1 to {MOST - 1}, auto, or "
        "auto*F (F from 0.1 to 100)",
        hint="use --num-clusters auto, or auto*1.25 for a quarter more clusters",
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of bin.cluster, explained by its --help. num_clusters: a result of `count_or_auto`."""

    num_clusters: int | str = "auto"
    method: str = "kmeans-ahc"
    linkage: str = "ward"
    metric: str = "euclidean"
    whiten: float | None = None
    min_size: int = 1
    num_kmeans: int = 0
    iterations: int = 300
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
