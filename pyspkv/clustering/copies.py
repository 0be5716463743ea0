"""Find utterances that share their embedding: one file under two ids, silence, a beep.

Copies carry no information about speakers, but each set of them looks like a very tight cluster.
"""

import numpy as np

LIKE = 1e-5  # two embeddings are equal up to this distance, as a share of the spread of all embeddings
FLOOR = 2e-7  # rounding error of float32 unit vectors
NEXT = 4  # neighbors in the order of a projection that are compared


def first_of_each(x: np.ndarray) -> np.ndarray:
    """For each unit vector in x float32 [N, D], the first row that equals it but for rounding: int64 [N].

    Embeddings of the same audio differ in their last digits when it was in batches of other sizes. So two
    rows count as equal when they are no further apart than `LIKE`. Such rows are neighbors when all rows are
    sorted by their projection on any direction; three random directions are tried. O(N log N) time.
    """
    return first_of_placed(x, places(x), x.mean(0, dtype=np.float64))


def places(x: np.ndarray) -> np.ndarray:
    """Projections of the rows of x [N, D] on three random directions, float64 [N, 3]."""
    axes = np.random.default_rng(0).normal(size=(x.shape[1], 3))
    axes /= np.linalg.norm(axes, axis=0)
    return np.concatenate([x[i : i + 8192].astype(np.float64) @ axes for i in range(0, len(x), 8192)])


def first_of_placed(x, place: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """`first_of_each` where `places(x)` and the mean [D] of all are known; x need only give rows, x[int64 [M]]."""
    n = len(place)
    limit = max(LIKE * np.sqrt(max(1 - mean @ mean, 0)), FLOOR)
    found = [np.zeros((0, 2), np.int64)]
    for order in np.argsort(place, axis=0, kind="stable").T:
        for step in range(1, min(NEXT, n - 1) + 1):
            a, b = order[:-step], order[step:]
            near = (np.abs(place[a] - place[b]) <= limit).all(1)
            found.append(np.stack([a[near], b[near]], 1))
    pairs = np.concatenate(found)
    same = np.concatenate(
        [_apart(x, some) <= limit for some in np.split(pairs, range(8192, len(pairs), 8192))]
    )
    return _joined(n, pairs[same])


def _apart(x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Distances [P] between the two rows of each pair [P, 2]."""
    return np.linalg.norm(x[pairs[:, 0]].astype(np.float64) - x[pairs[:, 1]], axis=1)


def _joined(n: int, pairs: np.ndarray) -> np.ndarray:
    """For each of n rows, the lowest row that it is connected to by pairs [P, 2]: int64 [n]."""
    if not len(pairs):
        return np.arange(n)
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs), bool), tuple(pairs.T)), shape=(n, n))
    _, first, group = np.unique(
        connected_components(graph, directed=False)[1], return_index=True, return_inverse=True
    )
    return first[group.reshape(-1)]


def shared(first: np.ndarray) -> np.ndarray:
    """Rows whose embedding occurs more than once, int64 [M], from the output [N] of `first_of_each`."""
    return np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
