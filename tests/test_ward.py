"""Exact agglomerative clustering against scipy and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from pyspkv.base.errors import UserError
from pyspkv.clustering import exact_linkage, pipeline
from pyspkv.clustering.agglomerative import agglomerate, cuts
from pyspkv.clustering.pipeline import ahc, ward


def same(a, b) -> bool:
    """Whether two labelings are the same partition."""
    pairs = {(int(i), int(j)) for i, j in zip(a, b)}
    return len(pairs) == len(set(a)) == len(set(b))


def points(n, dim, clusters, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(clusters, dim))[rng.integers(0, clusters, n)] + 0.5 * rng.normal(size=(n, dim))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 160), st.integers(2, 12), st.integers(1, 30), st.integers(0, 10_000), st.data())
def test_ward_partition_and_heights_are_scipys(n, dim, clusters, seed, data):
    x = points(n, dim, clusters, seed)
    k = data.draw(st.integers(1, n))
    tree = linkage(x, "ward")
    labels, heights = agglomerate(x, num_clusters=k)
    assert same(labels, fcluster(tree, k, "maxclust"))
    np.testing.assert_allclose(heights, tree[: n - k, 2], rtol=1e-9, atol=1e-9)
    t = data.draw(st.floats(0.01, float(tree[-1, 2]) * 1.1))
    if np.abs(tree[:, 2] - t).min() > 1e-7:
        assert same(ahc(x, threshold=t), fcluster(tree, t, "distance"))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 120), st.integers(2, 12), st.integers(0, 10_000), st.data())
def test_average_cosine_is_scipys(n, dim, seed, data):
    x = points(n, dim, 7, seed)
    k = data.draw(st.integers(1, n))
    tree = linkage(pdist(x, "cosine"), "average")
    labels, heights = agglomerate(x, num_clusters=k, linkage="average")
    assert same(labels, fcluster(tree, k, "maxclust"))
    np.testing.assert_allclose(heights, tree[: n - k, 2], rtol=1e-8, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 60), st.integers(0, 10_000), st.sampled_from(["ward", "average"]), st.data())
def test_weights_are_repeated_points(n, seed, link, data):
    rng = np.random.default_rng(seed)
    x, weights = points(n, 6, 5, seed), rng.integers(1, 6, n)
    k = data.draw(st.integers(1, n))
    many = np.repeat(x, weights, axis=0)
    metric = "euclidean" if link == "ward" else "cosine"
    want = fcluster(linkage(pdist(many, metric) if link == "average" else many, link), k, "maxclust")
    got = ahc(x, k, linkage=link, metric=metric, weights=weights)
    assert same(np.repeat(got, weights), want)
    assert same(np.repeat(got, weights), ahc(many, k, linkage=link, metric=metric))


def test_many_lists_and_groups_against_scikit_learn():
    from sklearn.cluster import AgglomerativeClustering

    x = points(3000, 24, 150, 0).astype(np.float32)
    want = AgglomerativeClustering(400, linkage="ward").fit_predict(x.astype(np.float64))
    got = ward(x, 400)
    assert got.dtype == np.int64 and same(got, want)
    assert got[0] == 0 and len(set(got[:50])) <= got[:50].max() + 1  # clusters are numbered by first row
    first = [int(np.argmax(got == c)) for c in range(400)]
    assert first == sorted(first)


def test_duplicates_and_ties_end_with_the_asked_count():
    copies = np.repeat(np.eye(5), 40, axis=0)
    assert same(ward(copies, 5), np.repeat(np.arange(5), 40))
    grid = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), -1).reshape(-1, 2)  # all gaps are tied
    for k in (1, 7, 199, 400):
        labels, heights = agglomerate(grid, num_clusters=k)
        assert len(set(labels)) == k and (np.diff(heights) >= 0).all() and len(heights) == 400 - k
    assert np.array_equal(agglomerate(grid, num_clusters=7)[0], agglomerate(grid, num_clusters=7)[0])


@pytest.mark.parametrize("link", ["ward", "average"])
def test_equal_rows_are_merged_first(link):
    """The tree is that of the distinct rows, weighted by their number of copies."""
    rng = np.random.default_rng(3)
    different = rng.normal(size=(40, 5))
    rows = np.concatenate([np.arange(40), np.repeat(7, 3000), rng.integers(40, size=500)])
    labels, heights = agglomerate(different[rows], num_clusters=6, linkage=link)
    weights = np.bincount(rows).astype(float)
    want, merged = agglomerate(different, num_clusters=6, linkage=link, weights=weights)
    np.testing.assert_array_equal(labels, want[rows])
    np.testing.assert_array_equal(heights[:3500], 0)
    np.testing.assert_allclose(heights[3500:], merged, atol=1e-9)
    assert len(set(agglomerate(np.ones((50, 3)), num_clusters=7, linkage=link)[0])) == 7


def test_near_ties_below_float32_are_resolved():
    """Gaps that float32 products cannot resolve, far from the origin."""
    rng = np.random.default_rng(0)
    x = 50 + np.cumsum(1e-6 * (1 + rng.random(300)))[:, None] * np.array([[0.6, 0.8]])
    x = np.concatenate([x, rng.normal(size=(300, 2)) + 60])
    for k in (2, 40, 350):
        labels, heights = agglomerate(x, num_clusters=k)
        np.testing.assert_allclose(heights, linkage(x, "ward")[: 600 - k, 2], rtol=1e-6, atol=1e-11)


def test_an_outlier_of_huge_norm_changes_nothing_else():
    x = points(300, 8, 10, 1)
    far = np.concatenate([x, [[1e5] * 8]])
    assert same(ward(far, 21)[:300], fcluster(linkage(x, "ward"), 20, "maxclust"))


def test_cuts_of_one_tree_are_nested_and_equal_single_cuts():
    x = points(400, 8, 20, 2)
    for k, labels in zip((100, 20, 3), cuts(x, (100, 20, 3))):
        assert same(labels, ward(x, k))


def test_more_rows_than_one_block(monkeypatch):
    import pyspkv.clustering.agglomerative as module

    x = points(500, 8, 20, 3)
    want = ward(x, 60)
    plain = module._Clusters.__init__

    def small(self, *args):
        plain(self, *args)
        self.block_bytes = 16 << 10

    monkeypatch.setattr(module._Clusters, "__init__", small)
    assert np.array_equal(ward(x, 60), want)


PAIRWISE = st.sampled_from(["complete", "average"]), st.sampled_from(["euclidean", "cosine"])


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 120), st.integers(2, 12), st.integers(0, 10_000), *PAIRWISE, st.data())
def test_linkages_by_pairs_are_scipys(n, dim, seed, link, metric, data):
    x = points(n, dim, 7, seed)
    k = data.draw(st.integers(1, n))
    tree = linkage(pdist(x, metric), link)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_linkage, "BLOCK", 8 * n * data.draw(st.integers(1, n)))  # several blocks
        labels, heights = exact_linkage.agglomerate_pairs(x, num_clusters=k, linkage=link, metric=metric)
    assert same(labels, fcluster(tree, k, "maxclust"))
    np.testing.assert_allclose(heights, tree[: n - k, 2], rtol=1e-6, atol=1e-6)
    t = data.draw(st.floats(0.01, float(tree[-1, 2]) * 1.1))
    if np.abs(tree[:, 2] - t).min() > 1e-5:
        got = exact_linkage.agglomerate_pairs(x, threshold=t, linkage=link, metric=metric)[0]
        assert same(got, fcluster(tree, t, "distance"))


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 40), st.integers(0, 10_000), *PAIRWISE)
def test_weighted_linkages_by_pairs_are_those_of_repeated_points(n, seed, link, metric):
    x, weights = points(n, 6, 5, seed), np.random.default_rng(seed).integers(1, 6, n)
    k = max(1, n // 3)
    want = fcluster(linkage(pdist(np.repeat(x, weights, axis=0), metric), link), k, "maxclust")
    assert same(np.repeat(ahc(x, k, linkage=link, metric=metric, weights=weights), weights), want)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_complete_linkage_is_the_same_on_both_sides_of_the_limit(metric, monkeypatch):
    x = points(80, 5, 6, 4)
    want = fcluster(linkage(pdist(x, metric), "complete"), 9, "maxclust")
    assert same(ahc(x, 9, linkage="complete", metric=metric), want)
    monkeypatch.setattr(pipeline, "PAIRS_LIMIT", 79)
    assert same(ahc(x, 9, linkage="complete", metric=metric), want)


def test_wrong_arguments():
    x = points(10, 3, 2, 5)
    for bad in ({"num_clusters": 11}, {"num_clusters": 0}, {}, {"num_clusters": 2, "threshold": 1.0}):
        with pytest.raises(ValueError):
            ahc(x, **bad)
    for link in ("ward", "complete"):
        with pytest.raises(ValueError, match="weights"):
            ahc(x, 2, linkage=link, weights=np.zeros(10))
    with pytest.raises(UserError, match="Euclidean"):
        ahc(x, 2, linkage="ward", metric="cosine")
    assert ward(x[:1], 1).tolist() == [0]
