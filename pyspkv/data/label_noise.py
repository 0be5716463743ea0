"""Label noise for experiments: labels that are made wrong on purpose."""

import numpy as np


def corrupt_labels(
    labels: np.ndarray, share: float, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the labels of round(share * N) random rows by another class, drawn uniformly.

    labels: int64 [N], each below `num_classes`. Returns (new labels [N], changed rows in ascending order).
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(labels), round(share * len(labels)), replace=False))
    out = labels.copy()
    out[rows] = (labels[rows] + rng.integers(1, num_classes, len(rows))) % num_classes
    return out, rows
