"""Ward clustering."""

import numpy as np


def ward(x: np.ndarray, num_clusters: int, weights=None) -> np.ndarray:
    from scipy.cluster.hierarchy import fcluster, ward

    if weights is not None:
        raise NotImplementedError
    return fcluster(ward(x), num_clusters, "maxclust").astype(np.int64) - 1
