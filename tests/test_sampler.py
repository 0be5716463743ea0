"""Samplers are pure functions of (seed, epoch) and keep what they promise, for any labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyspkv import config as cfg
from pyspkv.dataset import place
from pyspkv.errors import UserError
from pyspkv.sampler import part


def make(name, label, batch, seed=0, source=None, **fields):
    config = cfg.resolve("sampler", {"name": name, **fields})
    return cfg.build(
        "sampler", config, np.asarray(label), batch, seed, None if source is None else {"source": source}
    )


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 5))
def test_plain_visits_each_row_at_most_once(n, batch, epoch):
    if n < batch:
        with pytest.raises(UserError, match="batch_size"):
            make("plain", np.zeros(n), batch)
        return
    rows = make("plain", np.zeros(n), batch).epoch(epoch)
    assert rows.shape == (n // batch, batch)
    assert len(np.unique(rows)) == rows.size
    np.testing.assert_array_equal(rows, make("plain", np.zeros(n), batch).epoch(epoch))


def test_epochs_and_seeds_differ():
    a, b = make("plain", np.zeros(100), 10), make("plain", np.zeros(100), 10, seed=1)
    assert (a.epoch(0) != a.epoch(1)).any() and (a.epoch(0) != b.epoch(0)).any()


@given(st.lists(st.integers(0, 12), min_size=30, max_size=150), st.integers(1, 6), st.integers(0, 3))
def test_one_per_label_never_repeats_a_label_in_a_batch(label, batch, epoch):
    label = np.asarray(label)
    if len(np.unique(label)) < batch:
        with pytest.raises(UserError):
            make("one_per_label", label, batch)
        return
    rows = make("one_per_label", label, batch, per_label=4).epoch(epoch)
    assert all(len(set(label[step])) == batch for step in rows)
    assert len(np.unique(rows)) == rows.size
    assert np.bincount(label[rows.ravel()]).max() <= 4


def test_one_per_label_uses_all_of_a_balanced_set():
    rows = make("one_per_label", np.repeat(np.arange(10), 7), 5).epoch(0)
    assert sorted(rows.ravel()) == list(range(70))


def test_parts_of_all_ranks_make_the_batch():
    rows = np.arange(12)
    assert [list(part(rows, r, 3)) for r in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@given(st.integers(1, 100), st.integers(1, 60), st.integers(0, 1000))
def test_paired_crops_do_not_overlap_where_they_can(length, num, seed):
    rng = np.random.default_rng(seed)
    a = place(length, num, rng, None, pair=num)
    b = place(length, num, rng, (a, num))
    assert 0 <= a <= max(0, length - num) and 0 <= b <= max(0, length - num)
    if length >= 2 * num:
        assert abs(a - b) >= num


def test_paired_crops_reach_everywhere():
    rng = np.random.default_rng(0)
    pairs = set()
    for _ in range(2000):
        a = place(7, 3, rng, None, pair=3)
        pairs.add((a, place(7, 3, rng, (a, 3))))
    assert pairs == {(0, 3), (0, 4), (1, 4), (3, 0), (4, 0), (4, 1)}


@given(st.integers(1, 30), st.integers(1, 100), st.integers(2, 24), st.integers(1, 12), st.integers(0, 3))
def test_two_stream_passes_once_over_the_unlabelled_and_goes_on_with_the_labelled(
    few, many, batch, asked, epoch
):
    source = np.repeat([0, 1], [few, many])
    each = min(asked, few)
    if batch <= each or many < batch - each:
        with pytest.raises(UserError):
            make("two_stream", source, batch, source=source, labelled=asked)
        return
    rows = make("two_stream", source, batch, source=source, labelled=asked).epoch(epoch)
    assert rows.shape == (many // (batch - each), batch)
    assert (np.sum(source[rows] == 0, axis=1) == each).all()
    unlabelled = rows[source[rows] == 1]
    assert len(np.unique(unlabelled)) == len(unlabelled)
    for row in rows:
        assert len(set(row)) == batch
    counts = np.bincount(rows[source[rows] == 0], minlength=few)[:few]
    assert counts.max() - counts.min() <= 1 or few % each, (
        "every pass sees each once, but for what fills no batch"
    )
    for ranks in (2, 4):
        if each % ranks == 0 and batch % ranks == 0:
            shares = [np.sum(source[part(rows[0], r, ranks)] == 0) for r in range(ranks)]
            assert shares == [each // ranks] * ranks


def test_two_stream_shuffles_the_labelled_anew_each_pass():
    source = np.repeat([0, 1], [8, 100])
    rows = make("two_stream", source, 12, source=source, labelled=4).epoch(0)
    labelled = rows[source[rows] == 0].reshape(-1, 8)
    assert len({tuple(p) for p in labelled}) > 1
    with pytest.raises(UserError, match="--unlabelled"):
        make("two_stream", source, 12)


def test_repeat_fills_its_steps_from_few_utterances():
    rows = make("repeat", np.zeros(5), 5, steps=7).epoch(0)
    assert rows.shape == (7, 5) and (np.bincount(rows.ravel()) == 7).all()
