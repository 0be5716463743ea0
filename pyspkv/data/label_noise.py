"""Labels made wrong on purpose, as an experiment."""

import numpy as np


def corrupt_labels(
    labels: np.ndarray, share: float, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Another of `num_classes` for round(share N) random labels int64 [N], to see what copes with that.

    Returns (labels [N], rows that were changed, ascending).
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(labels), round(share * len(labels)), replace=False))
    out = labels.copy()
    out[rows] = (labels[rows] + rng.integers(1, num_classes, len(rows))) % num_classes
    return out, rows
