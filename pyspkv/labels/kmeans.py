"""k-means for pseudo-labels: through faiss."""

import numpy as np


def kmeans(x: np.ndarray, k: int, seed: int = 0, max_iter: int = 20, *, spherical: bool = False):
    """k-means of x float32 [N, D]: (labels int64 [N], centroids float32 [k, D])."""
    import faiss

    x = np.ascontiguousarray(x, dtype=np.float32)
    run = faiss.Kmeans(
        x.shape[1], k, niter=max_iter, seed=seed, spherical=spherical,
        min_points_per_centroid=1, max_points_per_centroid=len(x),
    )  # fmt: skip
    run.train(x)
    return run.index.search(x, 1)[1].ravel().astype(np.int64), run.centroids
