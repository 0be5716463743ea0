"""Utterances that share their embedding are found despite rounding, and do not count as speakers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from pyspkv.base.errors import UserError
from pyspkv.clustering import quality
from pyspkv.clustering.copies import first_of_each, shared
from pyspkv.clustering.pipeline import cluster
from pyspkv.clustering.vectors import l2_normalize, whiten


def speakers(rng, noise=0.5, dim=32, num=20, each=12):
    """Float [num x each, dim], and the speaker of each row."""
    truth = np.repeat(np.arange(num), each)
    return rng.normal(size=(num, dim))[truth] + noise * rng.normal(size=(num * each, dim)), truth


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 99), st.sampled_from([0, 1e-7]))
def test_copies_are_the_rows_of_one_vector(which, seed, rounding):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, 16))[which] * (1 + rounding * rng.normal(size=(len(which), 16)))
    first = first_of_each(l2_normalize(x))
    assert first.tolist() == [which.index(v) for v in which]
    assert shared(first).tolist() == [i for i, v in enumerate(which) if which.count(v) > 1]


def test_the_limit_for_copies_scales_with_the_spread_of_the_set():
    """A cosine distance of 1e-7 is not a copy in an ordinary set.

    Nor are neighbors copies in a set that is narrow itself.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 24))
    near = np.concatenate([x, x + 5e-4 * rng.normal(size=x.shape)])
    assert len(shared(first_of_each(l2_normalize(near)))) == 0
    narrow = rng.normal(size=24) + 1e-3 * x
    assert len(shared(first_of_each(l2_normalize(narrow)))) == 0
    assert len(shared(first_of_each(l2_normalize(np.concatenate([narrow, narrow[:7]]))))) == 14


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 7), st.integers(0, 999), st.floats(0, 1))
def test_silhouette_of_clusters_of_copies_is_scikit_learns(points, seed, cut):
    """If each cluster is copies of one vector, its center is that vector, and both definitions of silhouette
    agree.
    """
    rng = np.random.default_rng(seed)
    which = np.concatenate([np.arange(points), rng.integers(0, points, 3 * points)])
    x = rng.normal(size=(points, 6)).astype(np.float32)[which]
    labels = which + points * (rng.random(len(which)) < cut)  # some vectors have their copies in two clusters
    if len(set(labels)) == len(labels):
        return
    got = quality.similarity(x, labels)["silhouette"]
    assert got == pytest.approx(silhouette_samples(x, labels, metric="cosine").mean(), abs=1e-6)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 9999), st.sampled_from([0, 1e-9, 1e-7, 1e-5, 1e-3, 1]), st.booleans())
def test_silhouette_is_bounded_and_that_of_exact_numbers(seed, spread, double):
    """Random labels for copies and for vectors in a narrow cone, against loops in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=20) + spread * rng.normal(size=(12, 20))
    x = np.repeat(x, rng.integers(1, 4, 12), 0).astype(np.float32)
    labels = rng.integers(0, 4, len(x))
    got = quality.similarity(x.astype(np.float64) if double else x, labels)
    assert -1 <= got["silhouette"] <= 1
    if spread < 1e-5 or double:
        return
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    values = []
    for i, own in enumerate(labels):
        centers = {c: unit[(labels == c) & (np.arange(len(x)) != i)].sum(0) for c in set(labels.tolist())}
        if (labels == own).sum() == 1 or len(centers) == 1:
            values.append(0)
            continue
        far = {c: max(0, 1 - unit[i] @ v / np.linalg.norm(v)) for c, v in centers.items()}
        a, b = far[own], min(v for c, v in far.items() if c != own)
        values.append((b - a) / max(a, b) if max(a, b) > 1e-12 else 0)
    assert got["silhouette"] == pytest.approx(np.mean(values), abs=1e-2 if spread == 1e-5 else 1e-4)


@pytest.mark.parametrize("power", [None, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_copies_do_not_change_the_number_of_clusters(power, seed):
    rng = np.random.default_rng(seed)
    x, truth = speakers(rng)
    one, five = rng.normal(size=(1, 32)), rng.normal(size=(5, 32))
    for more, most in (
        (np.repeat(one, 3, 0), 22),
        (np.repeat(one, 6, 0), 22),
        (np.repeat(one, 20, 0), 22),
        (np.repeat(x[:1], 9, 0), 22),
        (np.repeat(five, 6, 0), 27),
        (x, 22),
        (x * (1 + 1e-7 * rng.normal(size=x.shape)), 22),
    ):
        y = l2_normalize(np.concatenate([x, more]))
        y = y if power is None else whiten(y, power)
        labels, info = cluster(y, "kmeans-ahc", "auto", num_kmeans=len(y), seed=seed)
        assert 18 <= labels.max() + 1 <= most, (len(more), labels.max() + 1)
        assert all(-1 <= point["silhouette"] <= 1 for point in info["auto"])
        first = first_of_each(y)
        assert (labels == labels[first]).all(), "copies are in one cluster"


@pytest.mark.parametrize("each", [3, 15])
def test_ungrouped_sets_of_copies_become_a_cluster_each(each):
    """A model that outputs only twenty distinct vectors, which form no groups: there are twenty clusters."""
    x = l2_normalize(np.repeat(np.random.default_rng(each).normal(size=(20, 64)), each, 0))
    labels, _ = cluster(x, "kmeans-ahc", "auto", num_kmeans=len(x))
    assert labels.tolist() == np.repeat(np.arange(20), each).tolist()


def test_narrow_embeddings_keep_their_groups_and_one_point_is_refused():
    x, _ = speakers(np.random.default_rng(3))
    for width in (1e-2, 1e-3):
        labels, _ = cluster(l2_normalize(5 + width * x), "ahc", "auto", num_kmeans=len(x))
        assert 19 <= labels.max() + 1 <= 21
    with pytest.raises(UserError, match="one way.*collapsed"):
        cluster(l2_normalize(np.ones((40, 8))), "ahc", "auto", num_kmeans=40)
