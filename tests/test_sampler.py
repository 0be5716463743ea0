"""Samplers are pure functions of (seed, epoch) and keep their guarantees for any labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import draw_crop_start
from pyspkv.batches.sampler import SamplerConfig, even, pool_batches, rank_slice


def make(name, label, batch, seed=0, source=None, **fields):
    config = cfg.validate(SamplerConfig, {"name": name, **fields})
    return cfg.build(config, np.asarray(label), batch, seed, None if source is None else {"source": source})


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 5))
def test_plain_visits_each_row_at_most_once(n, batch, epoch):
    if n < batch:
        with pytest.raises(UserError, match="batch_size"):
            make("shuffle", np.zeros(n), batch)
        return
    rows = make("shuffle", np.zeros(n), batch).epoch(epoch)
    assert rows.shape == (n // batch, batch)
    assert len(np.unique(rows)) == rows.size
    np.testing.assert_array_equal(rows, make("shuffle", np.zeros(n), batch).epoch(epoch))


def test_epochs_and_seeds_differ():
    a, b = make("shuffle", np.zeros(100), 10), make("shuffle", np.zeros(100), 10, seed=1)
    assert (a.epoch(0) != a.epoch(1)).any() and (a.epoch(0) != b.epoch(0)).any()


@given(st.lists(st.integers(0, 12), min_size=30, max_size=150), st.integers(1, 6), st.integers(0, 3))
def test_one_per_label_never_repeats_a_label_in_a_batch(label, batch, epoch):
    label = np.asarray(label)
    if len(np.unique(label)) < batch:
        with pytest.raises(UserError):
            make("unique_label", label, batch)
        return
    rows = make("unique_label", label, batch, max_per_label=4).epoch(epoch)
    assert all(len(set(label[step])) == batch for step in rows)
    assert len(np.unique(rows)) == rows.size
    assert np.bincount(label[rows.ravel()]).max() <= 4


def greedy(label, batch, most):
    """The plain way to as many batches as can be: each takes the labels that have most utterances left."""
    left, batches = np.minimum(np.bincount(label), most), 0
    while np.count_nonzero(left) >= batch:
        left[np.argsort(-left, kind="stable")[:batch]] -= 1
        batches += 1
    return batches


@given(st.lists(st.integers(0, 9), min_size=20, max_size=120), st.integers(1, 6), st.integers(1, 12))
def test_one_per_label_has_as_many_batches_as_the_greedy_way(label, batch, most):
    label = np.asarray(label)
    if len(np.unique(label)) < batch:
        return
    sampler = make("unique_label", label, batch, max_per_label=most)
    epochs = [sampler.epoch(e) for e in range(3)]
    assert [len(rows) for rows in epochs] == [greedy(label, batch, most)] * 3
    if epochs[0].size > 30:
        assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(epochs[2], make("unique_label", label, batch, max_per_label=most).epoch(2))


def test_one_per_label_loses_no_tail_of_clusters_like_voxcelebs():
    """A tenth of VoxCeleb2, of its clusters (log-normal) and of a batch: all but a batch of what the 500 leave."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1, 750)
    count = 1 + rng.multinomial(108_000, share / share.sum())
    label = rng.permutation(np.repeat(np.arange(750), count))
    kept = np.minimum(count, 500)
    used = np.zeros(750)
    sampler = make("unique_label", label, 24, max_per_label=500)
    for epoch in range(2):
        rows = sampler.epoch(epoch)
        assert all(len(set(label[step])) == 24 for step in rows)
        assert len(np.unique(rows)) == rows.size > kept.sum() - 24
        used += np.bincount(label[rows.ravel()], minlength=750) / 2
    large = count >= np.quantile(count, 0.9)
    assert used[large].sum() >= 0.98 * kept[large].sum()
    assert (used <= kept).all()
    # and none is at home in one part of the epoch: the largest are in its first and second half alike
    half = len(rows) // 2
    in_large = large[label[rows]].sum(1)
    assert in_large[:half].mean() == pytest.approx(in_large[half:].mean(), rel=0.1)


def test_fewer_labels_than_a_batch_are_named():
    with pytest.raises(UserError, match="needs 6 labels for a batch, but there are 5"):
        make("unique_label", np.repeat(np.arange(5), 20), 6)


def test_one_per_label_uses_all_of_a_balanced_set():
    rows = make("unique_label", np.repeat(np.arange(10), 7), 5).epoch(0)
    assert sorted(rows.ravel()) == list(range(70))


def test_parts_of_all_ranks_make_the_batch():
    rows = np.arange(12)
    assert [list(rank_slice(rows, r, 3)) for r in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@given(st.integers(1, 100), st.integers(1, 60), st.integers(0, 1000))
def test_paired_crops_do_not_overlap_where_they_can(length, num, seed):
    rng = np.random.default_rng(seed)
    a = draw_crop_start(length, num, rng, None, pair=num)
    b = draw_crop_start(length, num, rng, (a, num))
    assert 0 <= a <= max(0, length - num) and 0 <= b <= max(0, length - num)
    if length >= 2 * num:
        assert abs(a - b) >= num


def test_paired_crops_reach_everywhere():
    rng = np.random.default_rng(0)
    pairs = set()
    for _ in range(2000):
        a = draw_crop_start(7, 3, rng, None, pair=3)
        pairs.add((a, draw_crop_start(7, 3, rng, (a, 3))))
    assert pairs == {(0, 3), (0, 4), (1, 4), (3, 0), (4, 0), (4, 1)}


@given(st.integers(1, 30), st.integers(1, 100), st.integers(2, 24), st.integers(1, 12), st.integers(0, 3))
def test_two_stream_passes_once_over_the_unlabeled_and_goes_on_with_the_labeled(
    few, many, batch, asked, epoch
):
    source = np.repeat([0, 1], [few, many])
    each = min(asked, few)
    if batch <= each or many < batch - each:
        with pytest.raises(UserError):
            make("two_stream", source, batch, source=source, labeled_batch_size=asked)
        return
    rows = make("two_stream", source, batch, source=source, labeled_batch_size=asked).epoch(epoch)
    assert rows.shape == (many // (batch - each), batch)
    assert (np.sum(source[rows] == 0, axis=1) == each).all()
    unlabeled = rows[source[rows] == 1]
    assert len(np.unique(unlabeled)) == len(unlabeled)
    for row in rows:
        assert len(set(row)) == batch
    counts = np.bincount(rows[source[rows] == 0], minlength=few)[:few]
    assert counts.max() - counts.min() <= 1 or few % each, (
        "every pass sees each once, but for what fills no batch"
    )
    for ranks in (2, 4):
        if each % ranks == 0 and batch % ranks == 0:
            shares = [np.sum(source[rank_slice(rows[0], r, ranks)] == 0) for r in range(ranks)]
            assert shares == [each // ranks] * ranks


def test_two_stream_shuffles_the_labeled_anew_each_pass():
    source = np.repeat([0, 1], [8, 100])
    rows = make("two_stream", source, 12, source=source, labeled_batch_size=4).epoch(0)
    labeled = rows[source[rows] == 0].reshape(-1, 8)
    assert len({tuple(p) for p in labeled}) > 1
    with pytest.raises(UserError, match="--unlabeled"):
        make("two_stream", source, 12)


def test_repeat_fills_its_steps_from_few_utterances():
    rows = make("fixed_steps", np.zeros(5), 5, steps=7).epoch(0)
    assert rows.shape == (7, 5) and (np.bincount(rows.ravel()) == 7).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=120), st.integers(1, 6), st.integers(0, 9))
def test_even_fills_as_many_batches_as_can_be_filled(label, size, seed):
    label = np.asarray(label)
    rows = even(label, size, np.random.default_rng(seed))
    count = np.bincount(label)
    most = max((b for b in range(1, 121) if np.minimum(count, b).sum() >= b * size), default=0)
    assert rows.shape == (most, size)
    assert all(len(set(label[step])) == size for step in rows), "no label twice in a batch"
    assert len(np.unique(rows)) == rows.size


def dialogues(device, size, seed=0):
    """Dialogues of two utterances, one for each entry of `device`: epoch -> the dialogues of its batches."""
    group = np.repeat(np.arange(len(device)), 2)
    columns = {"group": group, "device": np.repeat(device, 2), "source": 0 * group}
    config = cfg.validate(SamplerConfig, {"name": "dialogues"})
    sampler = cfg.build(config, group, 2 * size, seed, columns)
    return lambda epoch: group[sampler.epoch(epoch)][:, ::2]


def test_batches_of_dialogues_do_not_tell_busy_devices_from_others():
    """Device usage is log-normal.

    The mean log usage of a batch is as in random batches, anywhere in the epoch.
    """
    rng = np.random.default_rng(0)
    weight = rng.lognormal(0, 1.5, 6000)
    device = rng.choice(6000, 30_000, p=weight / weight.sum())
    use = np.log(np.bincount(device)[device])
    found, epoch = [], dialogues(device, 32)
    for e in range(4):
        batches = epoch(e)
        assert len(batches) > 0.99 * 30_000 / 32, "hardly a dialogue is left out"
        mean = use[batches].mean(1)
        found.append(np.corrcoef(np.arange(len(mean)), mean)[0, 1])
        assert mean.std() == pytest.approx(use.std() / 32**0.5, rel=0.1)
        assert (batches == dialogues(device, 32)(e)).all(), "a function of seed and epoch"
    assert np.abs(found).max() < 4 / len(mean) ** 0.5
    assert (epoch(0)[:5] != dialogues(device, 32, seed=1)(0)[:5]).any()


def test_every_dialogue_comes_equally_often_and_devices_meet_by_chance():
    """Devices have 1 to 12 dialogues, at most as many as there are batches: 52 of 54 dialogues are in each
    epoch.
    """
    use = np.array([1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 12])
    device, epochs, size = np.repeat(np.arange(12), use), 400, 4
    epoch = dialogues(device, size)
    batches = np.concatenate([epoch(e) for e in range(epochs)])
    steps = len(batches) // epochs
    assert steps == 13 and use.max() <= steps
    share = 13 * size / use.sum()
    times = np.bincount(batches.ravel(), minlength=len(device))
    assert np.abs(times - share * epochs).max() < 4.5 * np.sqrt(share * (1 - share) * epochs)
    there = np.zeros((len(batches), 12))
    there[np.arange(len(batches))[:, None], device[batches]] = 1
    by_step = there.reshape(epochs, steps, 12).mean(0)  # how often a device is in batch t
    p = share * use / steps
    assert np.abs(by_step - p).max() < 4.5 * np.sqrt(0.25 / epochs), "the same at any place in the epoch"
    met = there.T @ there / len(batches)
    i, j = np.triu_indices(12, 1)
    assert np.corrcoef(met[i, j], p[i] * p[j])[0, 1] > 0.98


def test_devices_of_equal_use_are_drawn_in_pools():
    device = np.repeat(np.arange(20), 6)
    rng = np.random.default_rng((0, 3))
    assert (dialogues(device, 5)(3) == pool_batches(device, 5, rng)).all()


@pytest.mark.parametrize("use", [[4, 9, 9, 30], [5, 5, 6, 6, 400]])
def test_a_batch_of_nearly_all_devices(use):
    """The busiest device can be in every batch, but only once."""
    device = np.repeat(np.arange(len(use)), use)
    batches = dialogues(device, 4)(0)
    most = {4: 4, 5: (5 + 5 + 6 + 6) // 3}[len(use)]
    assert len(batches) == most and (np.sum(device[batches] == len(use) - 1, axis=1) == 1).all()
