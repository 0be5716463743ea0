"""k-means (exact, IVF, constrained, resumed), the two steps together, and the number of clusters without
labels.
"""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import pyspkv.clustering.kmeans as module
from pyspkv.clustering import pipeline, vectors
from pyspkv.clustering.kmeans import constrained_kmeans, kmeans
from pyspkv.clustering.num_clusters import choose_num_clusters, first_peak
from pyspkv.clustering.pipeline import ahc, cluster
from pyspkv.clustering.vectors import l2_normalize


def blobs(n, dim, clusters, noise, seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, clusters, n)
    x = rng.normal(size=(clusters, dim))[truth] + noise * rng.normal(size=(n, dim))
    return l2_normalize(x), truth


def test_exact_kmeans_is_lloyds():
    """Same start and same number of updates as scikit-learn's Lloyd: same labels and centroids."""
    x, _ = blobs(600, 8, 12, 0.5, 0)
    start = x[np.sort(np.random.default_rng([3, 0]).choice(600, 20, replace=False))]
    for steps in (1, 4, 60):
        labels, centroids = kmeans(x, 20, 3, steps, tol=0)
        ref = KMeans(20, init=start, n_init=1, max_iter=steps, tol=0, algorithm="lloyd").fit(x)
        assert np.array_equal(labels, ref.labels_)
        # only after convergence: before it, scikit-learn returns the centers of the previous step
        if steps == 60:
            np.testing.assert_allclose(centroids, ref.cluster_centers_, atol=1e-5)


@pytest.mark.parametrize("spherical", [False, True])
def test_kmeans_stops_where_it_converges(spherical):
    """By itself, before the cap, with nothing to gain: as good as scikit-learn's run to the end from the same start."""
    x, _ = blobs(4000, 16, 30, 0.6, 7)
    start = x[np.sort(np.random.default_rng([5, 0]).choice(4000, 60, replace=False))]
    stats = {}
    labels, c = kmeans(x, 60, 5, spherical=spherical, stats=stats)
    assert stats["converged"] and 10 < stats["iterations"] < module.MAX_ITERATIONS
    again, _ = module.Assigner(x)(c, module._bias(c, spherical))
    sums, counts = module.sums_of(x, again, 60)
    new = sums / counts[:, None]
    if spherical:
        new /= np.linalg.norm(new, axis=1, keepdims=True)
    assert (again == labels).all() and np.abs(new - c).max() < 0.02, "a further step moves next to nothing"
    if not spherical:
        ref = KMeans(60, init=start, n_init=1, max_iter=1000, tol=0, algorithm="lloyd").fit(x)
        assert stats["objective"] == pytest.approx(ref.inertia_ / 4000, rel=2e-5)
    capped = {}
    kmeans(x, 60, 5, 4, spherical=spherical, stats=capped)
    assert capped["iterations"] == 4 and not capped["converged"]
    assert capped["objective"] > stats["objective"] * 1.001


def test_objective_is_the_mean_squared_distance():
    x, _ = blobs(500, 6, 8, 0.4, 1)
    for spherical in (False, True):
        stats = {}
        labels, c = kmeans(x, 12, 0, spherical=spherical, stats=stats)
        want = (1 - (x * c[labels]).sum(1)).mean() if spherical else ((x - c[labels]) ** 2).sum(1).mean()
        assert stats["objective"] == pytest.approx(want, abs=1e-5)
        if spherical:
            np.testing.assert_allclose(np.linalg.norm(c, axis=1), 1, atol=1e-6)
        score = x @ c.T - (0 if spherical else (c**2).sum(1) / 2)
        # the nearest centroids, found by comparing with all
        assert (score.max(1) - score[np.arange(500), labels]).max() < 1e-5


def test_cells_find_nearly_all_nearest_centroids():
    x, _ = blobs(20_000, 32, 120, 0.6, 2)
    labels, c = kmeans(x, 1000, 0, 6, cells=125, probes=16)
    score = x @ c.T - (c**2).sum(1) / 2
    assert (score.argmax(1) == labels).mean() > 0.99
    exact, ivf = {}, {}
    kmeans(x, 1000, 0, 6, cells=1, stats=exact)
    kmeans(x, 1000, 0, 6, cells=125, probes=16, stats=ivf)
    assert ivf["objective"] < exact["objective"] * 1.005


def test_top_columns_are_the_largest():
    import torch

    rng = np.random.default_rng(0)
    for width, num in ((7, 9), (50, 5), (531, 8), (1600, 32)):
        score = torch.from_numpy(rng.normal(size=(20, width)))
        got = np.sort(module._top(torch, score.clone(), num).numpy(), axis=1)
        assert np.array_equal(got, np.sort(score.argsort(1, descending=True)[:, :num].numpy(), axis=1))


def test_empty_clusters_are_repaired_and_counted():
    x = np.concatenate(
        [np.repeat(np.eye(4), 30, axis=0), l2_normalize(np.random.default_rng(0).normal(size=(30, 4)))]
    )
    stats = {}
    labels, c = kmeans(
        x.astype(np.float32), 25, 0, 15, stats=stats
    )  # starting from copies must leave clusters empty
    assert stats["empty_repaired"] > 0
    assert len(np.unique(labels)) > 20 and np.isfinite(c).all()


@pytest.mark.parametrize(("points", "copies", "k"), [(100, 3, 250), (40, 5, 150), (5, 10, 45)])
def test_fewer_distinct_points_than_clusters(points, copies, k):
    """Copied or silent files: most clusters are empty in every iteration, and there must be enough donors."""
    x = np.repeat(np.random.default_rng(0).normal(size=(points, 8)), copies, axis=0).astype(np.float32)
    for seed in range(3):
        stats = {}
        labels, c = kmeans(x, k, seed, stats=stats)
        assert np.isfinite(c).all() and labels.max() < k
        assert stats["converged"] and stats["iterations"] < 60


def test_seeded_and_deterministic():
    x, _ = blobs(3000, 16, 40, 0.5, 3)
    a = kmeans(x, 100, 5, cells=20, probes=5)
    b = kmeans(x, 100, 5, cells=20, probes=5)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    assert not np.array_equal(a[0], kmeans(x, 100, 6, cells=20, probes=5)[0])


@pytest.mark.parametrize(("stop_after", "tol"), [(1, 0), (3, 0), (4, 0), (4, 3e-3), (6, 3e-3), (7, 3e-3)])
def test_a_killed_run_goes_on_with_the_same_digits(tmp_path, monkeypatch, stop_after, tol):
    x, _ = blobs(3000, 16, 40, 0.8, 4)
    args = {"k": 150, "seed": 1, "max_iter": 20 if tol else 7, "cells": 20, "probes": 4, "tol": tol}
    stats = {}
    want = kmeans(x, **args, stats=stats)
    assert stats["iterations"] == 7 and stats["converged"] == (tol > 0)
    path, save, calls = tmp_path / "state.npz", module._save, []

    def killed(*a):
        save(*a)
        calls.append(1)
        if len(calls) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        kmeans(x, **args, checkpoint=path)
    monkeypatch.setattr(module, "_save", save)
    for _ in range(2):  # the second call starts from the finished state
        got = kmeans(x, **args, checkpoint=path)
        assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])
    other = {**args, "seed": 2}
    assert np.array_equal(kmeans(x, **other, checkpoint=path)[0], kmeans(x, **other)[0]), (
        "another run starts anew"
    )


def test_a_damaged_or_foreign_state_is_replaced_with_a_warning(tmp_path, caplog):
    x, _ = blobs(400, 8, 10, 0.8, 4)
    args, path = {"k": 30, "seed": 1, "max_iter": 4, "tol": 0}, tmp_path / "state.npz"
    want = kmeans(x, **args, checkpoint=path)
    whole = path.read_bytes()
    precious = tmp_path / "precious"
    precious.write_bytes(whole)

    def rewritten(**changes):
        with np.load(tmp_path / "precious", allow_pickle=False) as f:
            np.savez(path, **{**f, **changes})

    def link():
        path.unlink()
        path.symlink_to(precious)

    changed = x.copy()
    changed[7] = -changed[7]
    bad_labels = np.full(400, 30, np.int32)
    for name, damage in {
        "empty": lambda: path.write_bytes(b""),
        "garbage": lambda: path.write_bytes(b"x" * 50),
        "a head": lambda: path.write_bytes(b"PK nonsense"),
        "cut": lambda: path.write_bytes(whole[:-9]),
        "a flipped bit": lambda: path.write_bytes(whole[:700] + bytes([whole[700] ^ 8]) + whole[701:]),
        "fewer labels": lambda: rewritten(labels=np.zeros(9, np.int32)),
        "labels out of range": lambda: rewritten(labels=bad_labels),
        "NaN": lambda: rewritten(centroids=np.full((30, 8), np.nan, np.float32)),
        "pickles": lambda: rewritten(numbers=np.array([1, None, {}], dtype=object)),
        "a large one": lambda: rewritten(more=np.zeros(10**6)),
        "a link": link,
    }.items():
        damage()
        caplog.clear()
        got = kmeans(x, **args, checkpoint=path)
        assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1]), name
        assert "k-means starts again" in caplog.text, name
        assert not path.is_symlink() and precious.read_bytes() == whole, name
    caplog.clear()
    kmeans(x, **args, checkpoint=path)
    assert not caplog.text, "a sound one is gone on with"
    kmeans(changed, **args, checkpoint=path)
    assert "other embeddings" in caplog.text, "one row differs"
    assert np.array_equal(kmeans(changed, **args)[0], kmeans(changed, **args, checkpoint=path)[0])


# ---- constrained ------------------------------------------------------------------------------------------
def plain_constrained(x, index, label, k, spherical, tol, max_iter=100):
    """Constrained seed k-means as GLL (IJCAI 2024) describes it, by plain loops."""
    free = np.setdiff1d(np.arange(len(x)), index)
    c = np.stack([x[index[label == j]].mean(0) for j in range(k)])
    for _ in range(max_iter):
        if spherical:
            c = c / np.linalg.norm(c, axis=1, keepdims=True)
        assigned = np.full(len(x), -1)
        assigned[index] = label
        assigned[free] = (x[free] @ c.T).argmax(1)
        new = np.stack([x[assigned == j].mean(0) for j in range(k)])
        if spherical:
            new = new / np.linalg.norm(new, axis=1, keepdims=True)
        moved = np.abs(new - c).max()
        c = new
        if moved < tol:
            break
    return assigned, c


@pytest.mark.parametrize(("spherical", "tol"), [(True, 1e-4), (False, 0.05)])
def test_constrained_is_the_plain_algorithm(spherical, tol):
    x, truth = blobs(800, 12, 15, 0.9, 5)
    index = np.concatenate([np.flatnonzero(truth == j)[:3] for j in range(15)])
    labels, c = constrained_kmeans(x, index, truth[index], 15, spherical=spherical, tol=tol)
    want, centroids = plain_constrained(x.astype(np.float64), index, truth[index], 15, spherical, tol)
    assert np.array_equal(labels, want)
    np.testing.assert_allclose(c, centroids, atol=1e-5)


def test_the_bounds_skip_only_points_that_keep_their_centroid():
    x, _ = blobs(3000, 24, 40, 0.5, 9)
    rng = np.random.default_rng(0)
    c, find = x[rng.choice(3000, 40, replace=False)].copy(), module.Bounded(x)
    for step in range(12):
        np.testing.assert_array_equal(find(c), (x @ c.T).argmax(1))
        c = c + 0.1 * 0.4**step * rng.normal(size=c.shape).astype(np.float32)
        if step == 7:
            c[3] = x[11]  # the new start of an empty cluster
    assert 3000 * 2 < find.looked_at < 3000 * 8


def test_labeled_points_never_move_even_when_wrong():
    x, truth = blobs(600, 12, 6, 0.3, 6)
    index = np.arange(0, 600, 7)
    wrong = (truth[index] + 1 * (np.arange(len(index)) % 3 == 0)) % 6
    labels, _ = constrained_kmeans(x, index, wrong, 6)
    assert np.array_equal(labels[index], wrong)
    assert adjusted_rand_score(truth, labels) < 1
    everything, _ = constrained_kmeans(x, np.arange(600), truth, 6)
    assert np.array_equal(everything, truth)


def test_clusters_without_a_label_start_from_unlabeled_points():
    x, truth = blobs(900, 16, 6, 0.2, 7)
    index = np.flatnonzero(truth < 4)[:200]
    stats = {}
    labels, _ = constrained_kmeans(x, index, truth[index], 6, seed=1, stats=stats)
    assert len(np.unique(labels)) == 6 and stats["iterations"] >= 2
    with pytest.raises(ValueError, match="out of range"):
        constrained_kmeans(x, index, truth[index] + 5, 6)
    with pytest.raises(ValueError, match="without a labeled point"):
        constrained_kmeans(x[:20], np.arange(19), np.zeros(19, int), 6)


def test_whitening_is_a_power_of_the_covariance():
    a = np.random.default_rng(0).normal(size=(50, 6))
    covariance = a.T @ a / 50
    half, whole = (vectors.whitening(covariance, p).astype(np.float64) for p in (0.5, 1))
    np.testing.assert_allclose(whole @ covariance @ whole, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(half @ half, whole, atol=1e-5)
    np.testing.assert_allclose(vectors.whitening(covariance, 0), np.eye(6), atol=1e-6)
    x = l2_normalize(a)
    want = (x - x.mean(0)) @ vectors.whitening(np.cov(x.T, bias=True), 0.5)
    np.testing.assert_allclose(vectors.whiten(x, 0.5), l2_normalize(want), atol=1e-5)


# ---- together ---------------------------------------------------------------------------------------------
def test_two_steps_find_the_speakers():
    x, truth = blobs(4000, 32, 60, 0.6, 8)
    labels, _ = cluster(x, "kmeans-ahc", 60, num_kmeans=600)
    assert adjusted_rand_score(truth, labels) > 0.95
    labels, info = cluster(x, "kmeans-ahc", 60, num_kmeans=600, linkage="average", metric="cosine")
    assert adjusted_rand_score(truth, labels) > 0.95 and info["kmeans"]["iterations"] > 1
    assert set(labels) == set(range(60))


def test_no_kmeans_if_there_are_as_many_centroids_as_points():
    x, _ = blobs(300, 16, 12, 0.6, 8)
    labels, info = cluster(x, "kmeans-ahc", 12, num_kmeans=300)
    np.testing.assert_array_equal(labels, ahc(x, 12))
    assert "kmeans" not in info


@pytest.mark.parametrize("method", ["kmeans-ahc", "kmeans", "ahc"])
def test_number_of_clusters_without_labels(method):
    x, truth = blobs(3000, 32, 40, 0.6, 9)
    labels, info = cluster(x, method, "auto", num_kmeans=600)
    assert 34 <= len(set(labels)) <= 46
    assert len(info["auto"]) > 30


def test_sessions_do_not_hide_the_speakers():
    """The curve has two peaks for 30 speakers with 8 tight sessions each; the coarser one is chosen."""
    rng = np.random.default_rng(10)
    center = rng.normal(size=(30, 64))
    session = np.repeat(center, 8, axis=0) + 1.1 * rng.normal(size=(240, 64))
    x = l2_normalize(np.repeat(session, 10, axis=0) + 1.2 * rng.normal(size=(2400, 64)))
    labels, c = kmeans(x, 600, 0)
    k, curve = choose_num_clusters(x, labels, c)
    best = max(curve, key=lambda p: p["silhouette"])
    assert best["num_clusters"] > 150  # the highest peak belongs to the sessions
    assert 26 <= k <= 34


def test_first_peak_rules():
    assert first_peak(np.array([0.1, 0.3, 0.5, 0.4, 0.52, 0.2])) == 2
    assert first_peak(np.array([0.1, 0.3, 0.31, 0.309, 0.52, 0.2])) == 4  # neither deep nor high enough
    assert first_peak(np.array([0.1, 0.3, 0.1, 0.1, 0.52, 0.2])) == 4  # not high enough
    assert first_peak(np.array([0.5, 0.4, 0.3])) == 0
    assert first_peak(np.array([0.33, 0.25, 0.255, 0.11, 0.15, 0.2, 0.12])) == 5, "women and men are no peak"
    assert first_peak(np.array([0.1, 0.2, 0.3])) == 2


def test_zero_rows_and_impossible_counts():
    with pytest.raises(ValueError, match="row 1"):
        l2_normalize(np.array([[1.0, 0], [0, 0]]))
    with pytest.raises(ValueError, match="5 clusters of 3 points"):
        kmeans(np.eye(3), 5)
    assert pipeline.default_num_kmeans(1_092_009, 7500) == 50_000
    assert pipeline.default_num_kmeans(20_000, 60) == 20_000, "AHC of all points is affordable"
    assert pipeline.default_num_kmeans(20_001, 60) == 10_000
    assert pipeline.default_num_kmeans(30_000, 9_000) == 18_000


@pytest.mark.slow
def test_a_hundred_thousand_points_with_proportional_settings():
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from sklearn.metrics import normalized_mutual_info_score
    from synthetic_embeddings import generate

    x, truth, _ = generate(100_000)
    labels, _ = cluster(x, "kmeans-ahc", 687, num_kmeans=4579)
    assert normalized_mutual_info_score(truth, labels) > 0.95


@pytest.mark.parametrize("linkage", ["complete", "average"])
def test_tied_heights_are_cut_by_count_too(linkage):
    x = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1], [5, 5], [6, 5]])
    assert [len(set(ahc(x, k, linkage=linkage))) for k in range(1, 7)] == [1, 2, 3, 4, 5, 6]
