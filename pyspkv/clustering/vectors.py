"""Prepare embeddings for clustering: unit length and whitening."""

import numpy as np

from pyspkv.base.errors import UserError

COLLAPSED = "all embeddings point one way: the model that made them has collapsed"


COLLAPSED_HINT = "look at `spread` in its train.jsonl; lower optim.lr, or train longer"


def unit_rows(x: np.ndarray) -> np.ndarray:
    """L2-normalize float32 x [N, D] in place, in blocks.

    Rows of zeros stay; returns their indices, int64 [M].
    """
    bad = []
    for first in range(0, len(x), 8192):
        part = x[first : first + 8192]
        norm = np.sqrt(np.einsum("nd,nd->n", part, part, dtype=np.float64))
        bad.append(first + np.flatnonzero(norm == 0))
        part /= np.where(norm > 0, norm, 1)[:, None].astype(np.float32)
    return np.concatenate(bad) if bad else np.zeros(0, dtype=np.int64)


def l2_normalize(x: np.ndarray) -> np.ndarray:
    """A copy of x [N, D] with rows of length 1, float32. ValueError: a row of zeros."""
    x = np.array(x, dtype=np.float32, order="C")
    if len(bad := unit_rows(x)):
        raise ValueError(f"{len(bad)} embeddings are zero, the first in row {bad[0]}")
    return x


def whiten(x: np.ndarray, power: float) -> np.ndarray:
    """Whiten unit vectors x float32 [N, D] in place: center, times covariance^(-power / 2), normalize again.

    power 1 is whitening with length normalization (Garcia-Romero & Espy-Wilson, Interspeech 2011); power 0
    only centers. The first principal axes of embeddings trained without labels also carry the channel. Half
    the power reduces them without amplifying the noise of the last axes. Memory O(D^2) besides x. UserError:
    all embeddings are (nearly) equal.
    """
    mean = x.mean(0, dtype=np.float64)
    covariance = np.zeros((x.shape[1],) * 2)
    for first in range(0, len(x), 8192):
        part = x[first : first + 8192] - mean
        covariance += part.T @ part
    return shrink(x, mean, whitening(covariance / len(x), power))


def shrink(x: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Subtract the mean [D] from x float32 [N, D], multiply by axes [D, D] and length-normalize, in place."""
    for first in range(0, len(x), 8192):
        x[first : first + 8192] = (x[first : first + 8192] - mean.astype(np.float32)) @ axes
    unit_rows(x)
    return x


def whitening(covariance: np.ndarray, power: float) -> np.ndarray:
    """covariance [D, D]^(-power / 2), float32. Eigenvalues below 1e-3 of the largest are raised to that.

    This is the symmetric root: unlike principal axes it is unique, because it has no free sign.
    UserError: all vectors are one.
    """
    if np.trace(covariance) < 1e-9:  # of unit vectors: 1 - |mean|^2
        raise UserError(COLLAPSED, hint=COLLAPSED_HINT)
    values, axes = np.linalg.eigh(covariance)
    return (axes * np.maximum(values, 1e-3 * values[-1]) ** (-power / 2) @ axes.T).astype(np.float32)
