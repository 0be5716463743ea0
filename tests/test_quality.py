"""Cluster statistics, matching of ids and diagnostics, against scikit-learn, scipy and counting by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, pair_confusion_matrix

from pyspkv.clustering import quality

labelings = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 8), min_size=n, max_size=n)] * 2)
)


@settings(deadline=None, max_examples=150)
@given(labelings)
def test_ami_is_scikit_learns(pair):
    a, b = pair
    assert quality.adjusted_mutual_info(a, b) == pytest.approx(adjusted_mutual_info_score(a, b), abs=1e-8)


def test_ami_of_many_clusters():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 150, 20_000)
    b = np.where(rng.random(20_000) < 0.6, a, rng.integers(0, 300, 20_000))
    assert quality.adjusted_mutual_info(a, b) == pytest.approx(adjusted_mutual_info_score(a, b), abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(labelings)
def test_matching_has_the_greatest_overlap(pair):
    new, old = map(np.array, pair)
    got = quality.match_labels(new, old)
    table = np.array([[np.sum((new == i) & (old == j)) for j in range(9)] for i in range(9)])
    r, c = linear_sum_assignment(table, maximize=True)
    assert (got == old).sum() == table[r, c].sum()
    assert len(set(zip(new.tolist(), got.tolist()))) == len(set(new.tolist())) == len(set(got.tolist()))
    fresh = sorted(set(got.tolist()) - set(old.tolist()))
    assert fresh == list(range(old.max() + 1, old.max() + 1 + len(fresh)))


def test_matching_by_hand():
    new = np.array([5, 5, 5, 2, 2, 9, 9])
    old = np.array([1, 1, 0, 0, 0, -1, -1])
    assert quality.match_labels(new, old).tolist() == [1, 1, 1, 0, 0, 2, 2]
    assert quality.match_labels(new, np.full(7, -1)).tolist() == [0, 0, 0, 1, 1, 2, 2]
    relabeled = np.array([3, 1, 2])[np.array([0, 1, 2, 0, 1, 2])]
    assert quality.match_labels(np.array([0, 1, 2, 0, 1, 2]), relabeled).tolist() == relabeled.tolist()


def test_stability_counts_the_kept():
    old = np.repeat([0, 1, 2, 3], 10)
    new = old.copy()
    new[:3] = 1
    got = quality.stability(np.array([7, 5, 6, 4])[new], old)
    assert got["kept"] == pytest.approx(37 / 40) and got["common_utts"] == 40
    assert quality.stability(old, old)["ami"] == pytest.approx(1) and quality.stability(old, old)["ari"] == 1


def test_sizes_by_hand():
    got = quality.sizes(["a"] * 6 + ["b"] * 3 + ["c"])
    assert (got["num_clusters"], got["num_utts"], got["singletons"]) == (3, 10, 1)
    assert (got["size_min"], got["size_median"], got["size_max"]) == (1, 3, 6)
    entropy = -sum(p * np.log(p) for p in (0.6, 0.3, 0.1))
    assert got["effective_clusters"] == pytest.approx(np.exp(entropy))
    assert quality.sizes([0, 1, 2, 3])["effective_clusters"] == pytest.approx(4)


def test_similarity_by_loops():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(60, 5)), rng.integers(0, 6, 60)
    labels[7] = 6  # a singleton
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    within, between, value = [], [], []
    for i in range(60):
        own = [j for j in range(60) if labels[j] == labels[i] and j != i]
        center = {c: unit[labels == c].sum(0) for c in set(labels)}
        cos = [unit[i] @ v / np.linalg.norm(v) for c, v in center.items() if c != labels[i]]
        between.append(max(cos))
        if own:
            v = unit[own].sum(0)
            within.append(unit[i] @ v / np.linalg.norm(v))
            a, b = 1 - within[-1], 1 - max(cos)
            value.append((b - a) / max(a, b))
        else:
            value.append(0.0)
    got = quality.similarity(x, labels)
    assert got["within_similarity"] == pytest.approx(np.mean(within), abs=1e-6)
    assert got["between_similarity"] == pytest.approx(np.mean(between), abs=1e-6)
    assert got["silhouette"] == pytest.approx(np.mean(value), abs=1e-6)
    assert quality.similarity(x, labels, sample=10)["sampled_utts"] == 10
    one = quality.similarity(x, np.zeros(60))
    assert one["silhouette"] == 0 and one["between_similarity"] is None


@settings(deadline=None, max_examples=60)
@given(labelings)
def test_diagnostics_by_counting(pair):
    labels, truth = map(np.array, pair)
    got = quality.diagnostics(labels, truth)
    purity = sum(max(np.bincount(truth[labels == c])) for c in set(labels.tolist())) / len(labels)
    assert got["purity"] == pytest.approx(purity)
    table = np.array(
        [[((labels == c) & (truth == s)).sum() for s in set(truth.tolist())] for c in set(labels.tolist())]
    )
    assert got["accuracy"] == pytest.approx(
        table[linear_sum_assignment(table, maximize=True)].sum() / len(labels)
    )
    both = found = real = 0
    for i, j in itertools.combinations(range(len(labels)), 2):
        found += labels[i] == labels[j]
        real += truth[i] == truth[j]
        both += labels[i] == labels[j] and truth[i] == truth[j]
    precision, recall = both / found if found else 1, both / real if real else 1
    assert got["pair_precision"] == pytest.approx(precision) and got["pair_recall"] == pytest.approx(recall)
    assert got["pair_f"] == pytest.approx(
        2 * precision * recall / (precision + recall) if both else got["pair_f"]
    )
    if both:
        (_, fp), (fn, tp) = pair_confusion_matrix(truth, labels)
        assert got["pair_f"] == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_right_is_the_clusters_majority():
    truth = ["a", "a", "b", "b", "b", "c"]
    assert quality.right([7, 7, 7, 2, 2, 2], truth).tolist() == [True, True, False, True, True, False]
