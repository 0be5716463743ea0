"""Dialogue losses, soft rejection and their sampler (arXiv 2202.03484): plain loops, properties, whole runs."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import Batch, TrainingRows
from pyspkv.batches.sampler import SamplerConfig
from pyspkv.data.datadir import DataDir
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.base import RunInfo
from pyspkv.objectives.dialogue import LOSSES, RejectConfig, compactness, normalized, per_dialogue, rejection
from pyspkv.objectives.registry import ObjectiveConfig
from pyspkv.train.config import TrainConfig
from pyspkv.train.trainer import Trainer

ENCODER = {"name": "dvector", "hidden": 12, "layers": 1, "embed_dim": 8}
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


# ---- losses -------------------------------------------------------------------------------------------------------
def unit(n=4, m=3, d=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, m, d, generator=g, dtype=torch.float64), dim=-1)


def softmax_loss(own, others, w, b):
    """-S_own + log(exp S_own + sum exp S_other) with S = w cos + b, as the papers write it."""
    s = [w * own + b] + [w * x + b for x in others]
    return -s[0] + math.log(sum(math.exp(x) for x in s))


def cosine(a, b):
    return float(a @ b) / (float(a.norm()) * float(b.norm()))


def naive(name, e, device, w, b):
    """Plain loops over dialogues and utterances, one number per dialogue."""
    n, m, _ = e.shape
    out = []
    for j in range(n):
        foreign = [k for k in range(n) if device[k] != device[j]]
        if name == "ge2e":
            terms = []
            for i in range(m):
                rest = sum(e[j, q] for q in range(m) if q != i) / (m - 1)
                others = [cosine(e[j, i], sum(e[k]) / m) for k in foreign]
                terms.append(softmax_loss(cosine(e[j, i], rest), others, w, b))
        elif name == "aproto":
            prototype = [sum(e[k, 1:]) / (m - 1) for k in range(n)]
            others = [cosine(e[j, 0], prototype[k]) for k in foreign]
            terms = [softmax_loss(cosine(e[j, 0], prototype[j]), others, w, b)]
        else:
            terms = []
            for i in range(m):
                others = [cosine(e[j, i], e[k, q]) for k in foreign for q in range(m)]
                pairs = [softmax_loss(cosine(e[j, i], e[j, q]), others, w, b) for q in range(m) if q != i]
                terms.append(sum(pairs) / len(pairs))
        out.append(sum(terms) / len(terms))
    return torch.tensor(out, dtype=torch.float64)


def loss_of(name, e, device, w=10.0, weight=1.0):
    """weight: weight of dialogue k as a negative, [N]."""
    device, log_weight = torch.as_tensor(device), torch.as_tensor(weight).to(e).log()
    against = torch.where(device[:, None] != device, log_weight, -torch.inf)
    return LOSSES[name](e, e, against, torch.tensor(w).to(e))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("device", [[0, 1, 2, 3], [0, 1, 1, 2]])
def test_losses_equal_plain_loops_whatever_the_bias(name, m, device):
    e = unit(m=m)
    for b in (-5.0, 0.0):  # b cancels in every softmax loss, so the code has no b
        torch.testing.assert_close(loss_of(name, e, device), naive(name, e, device, 10.0, b))


def test_two_dialogues_of_two_by_hand():
    """e = (x, y), (y, y): the cosines are 0 or 1, and w = 1."""
    x, y = torch.eye(2).double()
    e = torch.stack([torch.stack([x, y]), torch.stack([y, y])])
    one, zero = math.log(1 + math.e), math.log(2)
    # A-Proto: q_1 = x, p_1 = p_2 = y: cos 0 and 0. q_2 = y: 1 and 1.
    torch.testing.assert_close(loss_of("aproto", e, [0, 1], 1.0), torch.tensor([zero, zero]).double())
    # AvA: x to y: 0, negatives 0, 0. y to x: 0, negatives 1, 1. y to y: 1, negatives 0 and 1, for both.
    both = [(math.log(3) + math.log(1 + 2 * math.e)) / 2, -1 + math.log(2 * math.e + 1)]
    torch.testing.assert_close(loss_of("ava", e, [0, 1], 1.0), torch.tensor(both).double())
    # GE2E: own without itself 0 and 0; c_2 = y. Second: own 1, c_1 = (x + y) / 2 at cosine 1 / sqrt 2.
    half = 1 / math.sqrt(2)
    want = [(zero + one) / 2, -1 + math.log(math.e + math.exp(half))]
    torch.testing.assert_close(loss_of("ge2e", e, [0, 1], 1.0), torch.tensor(want).double())


@pytest.mark.parametrize("name", LOSSES)
def test_permuted_dialogues_permute_their_losses(name):
    e, order = unit(n=6), torch.tensor([3, 0, 5, 1, 4, 2])
    device = torch.tensor([0, 1, 2, 2, 3, 4])
    torch.testing.assert_close(loss_of(name, e[order], device[order]), loss_of(name, e, device)[order])


@pytest.mark.parametrize("name", LOSSES)
def test_dialogues_of_one_device_do_not_repel_each_other(name):
    """Moving another dialogue of the same device changes nothing for this dialogue; moving one of another
    device does.
    """
    e = unit(n=4).requires_grad_()
    loss_of(name, e, [0, 0, 1, 2])[0].backward()
    assert (e.grad[1] == 0).all() and (e.grad[2] != 0).any() and (e.grad[3] != 0).any()


def test_all_versus_all_of_pairs_is_nt_xent():
    from pyspkv.objectives.contrastive import nt_xent

    e = unit(n=5, m=2)
    both = nt_xent(e[:, 0], e[:, 1], e[:, 0], e[:, 1], 0, torch.tensor(7.0), 0.0)
    torch.testing.assert_close(loss_of("ava", e, range(5), 7.0), (both[:5] + both[5:]) / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_negative_of_weight_three_counts_as_three(name):
    """Weights against copies of columns: dialogue 2 occurs three times among the negatives, dialogue 3 not at
    all.
    """
    e = unit(n=5)
    got = loss_of(name, e, range(5), 3.0, weight=[1.0, 1.0, 3.0, 0.0, 1.0])
    copies, device = e[[0, 1, 2, 2, 2, 4]], [0, 1, 2, 2, 2, 4]
    want = loss_of(name, copies, device, 3.0)
    torch.testing.assert_close(got[[0, 1, 2, 4]], want[[0, 1, 2, 5]])


# ---- compactness and weights --------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 1000))
def test_compactness_equals_its_definitions(m, seed):
    e = unit(n=3, m=m, seed=seed)
    for j, own in enumerate(e):
        pairs = [float(own[a] @ own[b]) for a in range(m) for b in range(m) if a != b]
        assert float(compactness(e)[j]) == pytest.approx(np.mean(pairs), abs=1e-9)
        assert float(compactness(e, "length")[j]) == pytest.approx(float(own.mean(0).norm()))
        rest = [cosine(own[i], own.sum(0) - own[i]) for i in range(m)]
        assert float(compactness(e, "centroid")[j]) == pytest.approx(np.mean(rest))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=20),
    st.sampled_from(["none", "power", "adaptive", "sigmoid", "softmax"]),
    st.integers(1, 3),
)
def test_weights_have_mean_one_grow_with_compactness_and_ignore_order(c, kind, gamma):
    c = torch.tensor(c)
    config = RejectConfig(kind=kind, gamma=float(gamma))
    w = rejection(c, config, c.mean(), c.std())
    assert float(w.mean()) == pytest.approx(1, abs=1e-4) and (w >= 0).all()
    order = torch.randperm(len(c), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rejection(c[order], config, c.mean(), c.std()), w[order])
    assert (torch.diff(w[c.argsort()]) >= -1e-5).all()


def test_weight_forms():
    c = torch.tensor([0.9, 0.3, -0.5])
    mean, std = torch.tensor(0.2), torch.tensor(0.4)

    def raw(**fields):
        return rejection(c, RejectConfig(normalize=False, **fields), mean, std).tolist()

    assert raw(kind="power") == pytest.approx([0.81, 0.09, 0])
    assert raw(kind="power", gamma=1.0) == pytest.approx([0.9, 0.3, 0])
    assert raw(kind="adaptive", slope=5.0) == pytest.approx([0.81, 0.09, 0])
    assert raw(kind="sigmoid")[0] == pytest.approx(1 / (1 + math.exp(-(0.7 / 0.1 + 1))))
    e = [math.exp(x / 0.2) for x in c.tolist()]
    assert raw(kind="softmax") == pytest.approx([3 * x / sum(e) for x in e])
    assert normalized(torch.zeros(4)).tolist() == [1, 1, 1, 1]


# ---- the objective ------------------------------------------------------------------------------------------------
def objective(rows=12, classes=4, **fields):
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, ENCODER))
    spec = {"name": "dialogue", "crop_seconds": 0.3, "augment": False, **fields}
    return cfg.build(cfg.validate(ObjectiveConfig, spec), encoder, RunInfo(rows, classes, 10, 20)).train()


def batch(group, device=None, label=None, source=None, seed=0):
    group = torch.tensor(group)
    rows = torch.arange(len(group))
    wave = 0.1 * torch.randn(len(group), 4800, generator=torch.Generator().manual_seed(seed))
    columns = [group if x is None else torch.tensor(x) for x in (label, device)]
    source = 0 * group if source is None else torch.tensor(source)
    views = {"main": (wave, torch.full((len(group),), 4800))}
    return Batch(0, 0, rows, source, columns[0], group, columns[1], 0 * group, views)


def embedded(o, data, m):
    return F.normalize(o.encoder(*data.views["main"]), dim=-1).unflatten(0, (-1, m))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_weighted_mean_and_without_rejection_the_plain_one(name):
    data = batch([0, 0, 1, 1, 2, 2, 3, 3])
    for kind, columns in (("none", False), ("power", False), ("power", True)):
        o = objective(
            loss=name, reject={"kind": kind, "downweight_negatives": columns, "warmup_epochs": [0.0, 0.0]}
        )
        e = embedded(o, data, 2).detach()
        u = compactness(e).clamp_min(0) ** 2 if kind == "power" else torch.ones(4)
        w = 4 * u / u.sum()
        total, weight = o(data).terms[name]
        assert weight == 4
        want = loss_of(name, e, range(4), weight=w.clamp_min(1e-4) if columns else 1.0)
        torch.testing.assert_close(total, (w * want).sum())


def test_warm_up_then_ramp():
    o = objective(reject={"kind": "power", "warmup_epochs": [2.0, 4.0]})
    c, truth = torch.tensor([0.8, 0.2]), torch.ones(2)
    full = rejection(c, RejectConfig(kind="power"), *o.running[:2])
    for epoch, share in ((0, 0), (2, 0), (3, 0.5), (4, 1), (9, 1)):
        o.before_step(epoch * 10)
        torch.testing.assert_close(o.weights(c, truth), 1 + share * (full - 1))


def test_no_gradient_flows_through_the_weights():
    """The gradient equals that of the losses with the weights as constants."""
    data = batch([0, 0, 1, 1, 2, 2])
    o = objective(reject={"kind": "power", "warmup_epochs": [0.0, 0.0]})
    total, _ = o(data).terms["ava"]
    total.backward()
    got = [p.grad.clone() for p in o.encoder.parameters()]
    o.zero_grad()
    e = embedded(o, data, 2)
    w = torch.tensor(normalized(compactness(e).clamp_min(0) ** 2).tolist())
    (w * loss_of("ava", e, range(3))).sum().backward()
    for a, p in zip(got, o.encoder.parameters()):
        torch.testing.assert_close(a, p.grad, atol=1e-6, rtol=1e-4)
    assert not o.weights(torch.tensor([0.5, 0.1], requires_grad=True), torch.ones(2)).requires_grad


def test_the_oracle_gives_no_weight_to_draws_of_two_speakers_and_wants_the_truth():
    data = batch([0, 0, 1, 1, 2, 2], label=[0, 0, 1, 3, 2, 2])
    o = objective(reject={"kind": "oracle", "warmup_epochs": [0.0, 0.0]})
    e = embedded(o, data, 2)
    plain = loss_of("ava", e, range(3))
    torch.testing.assert_close(o(data).terms["ava"][0], 1.5 * (plain[0] + plain[2]))
    with pytest.raises(UserError, match="true speakers"):
        objective(rows=12, classes=12, reject={"kind": "oracle"})


def test_sigmoid_standardizes_by_running_moments_that_are_remembered():
    o = objective(reject={"kind": "sigmoid", "warmup_epochs": [0.0, 0.0]})
    first, second = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.0, 0.2, 0.4])
    o.weights(first, torch.ones(3))
    got = o.weights(second, torch.ones(3))
    mean = 0.9 * first.mean() + 0.1 * second.mean()
    std = 0.9 * first.std(correction=0) + 0.1 * second.std(correction=0)
    torch.testing.assert_close(o.running[:2], torch.stack([mean, std]))
    torch.testing.assert_close(got, normalized(torch.sigmoid((second - mean) / (0.25 * std) + 1)))
    assert "running" in o.state_dict()


def test_unnormalized_weights_may_reject_a_whole_batch(monkeypatch):
    o = objective(reject={"kind": "power", "normalize": False, "warmup_epochs": [0.0, 0.0]})
    monkeypatch.setattr("pyspkv.objectives.dialogue.compactness", lambda e, kind: torch.full((len(e),), -0.5))
    losses = o(batch([0, 0, 1, 1, 2, 2]))
    assert losses.terms["ava"][0] == 0 and o.effective.tolist() == [0, 1]


def test_alarm_when_few_dialogues_carry_the_loss(capsys):
    o = objective()
    o.effective.copy_(torch.tensor([0.5, 2.0]))
    assert o.end_epoch(3) == {"effective_alarm": 1.0} and "epoch 4" in capsys.readouterr().out
    o.effective.copy_(torch.tensor([0.7, 2.0]))
    assert o.end_epoch(4) == {} and (o.effective == 0).all()


def test_labeled_speakers_beside_dialogues_have_a_loss_of_their_own():
    data = batch(
        [0, 0, 1, 1, 4, 4, 5, 5, 6, 6],
        source=[0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
        device=[0] * 4 + [0, 0, 1, 1, 2, 2],
    )
    data.device[2:4] = 9
    o = objective(labeled_weight=0.5)
    e = embedded(o, data, 2)
    losses = o(data)
    torch.testing.assert_close(losses.terms["labeled"][0], 0.5 * loss_of("ge2e", e[:2], range(2)).sum())
    torch.testing.assert_close(losses.terms["ava"][0], loss_of("ava", e[2:], range(3)).sum())
    assert losses.terms["labeled"][1] == 2 and losses.terms["ava"][1] == 3


@pytest.mark.parametrize("group", [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 0, 1], [0, 0, 0, 1]])
def test_batches_without_dialogues_are_refused(group):
    with pytest.raises(UserError, match="sampler: dialogues"):
        per_dialogue(torch.tensor(group))
    with pytest.raises(UserError, match="one device"):
        objective()(batch([0, 0, 1, 1], device=[5, 5, 5, 5]))


# ---- the sampler --------------------------------------------------------------------------------------------------
def sampler(group, device, size, m=2, seed=0, source=None, labeled=0):
    columns = {"group": np.asarray(group), "device": np.asarray(device)}
    columns["source"] = np.zeros(len(group), np.int64) if source is None else np.asarray(source)
    spec = {"name": "dialogues", "utts_per_dialogue": m, "num_labeled": labeled}
    return cfg.build(cfg.validate(SamplerConfig, spec), columns["group"], size * m, seed, columns)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 25), min_size=10, max_size=200),
    st.integers(1, 9),
    st.integers(2, 4),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_batches_of_the_dialogue_sampler(group, devices, m, size, epoch):
    group = np.asarray(group)
    device = (7 * group) % devices
    usable = np.flatnonzero(np.bincount(group) >= m)
    if len(set((7 * usable) % devices)) < size:
        with pytest.raises(UserError, match="devices"):
            sampler(group, device, size, m)
        return
    s = sampler(group, device, size, m)
    rows = s.epoch(epoch)
    assert rows.shape == (s.steps, size * m)
    np.testing.assert_array_equal(rows, sampler(group, device, size, m).epoch(epoch))
    seen = []
    for step in rows.reshape(s.steps, size, m):
        dialogues = group[step]
        assert (dialogues == dialogues[:, :1]).all()
        assert len(set(device[step[:, 0]])) == size, "two dialogues of one device share a batch"
        assert all(len(set(utts)) == m for utts in step.tolist())
        seen += dialogues[:, 0].tolist()
    assert len(np.unique(rows)) == rows.size, "an utterance comes once an epoch"
    assert all(seen.count(d) <= (group == d).sum() // m for d in set(seen)) and set(seen) <= set(
        usable.tolist()
    )


def test_seeds_and_epochs_draw_other_dialogues_and_utterances():
    group = np.repeat(np.arange(20), 5)
    a, b = sampler(group, group, 10), sampler(group, group, 10, seed=1)
    assert (a.epoch(0) != a.epoch(1)).any() and (a.epoch(0) != b.epoch(0)).any()
    assert set(np.concatenate([a.epoch(e).ravel() for e in range(20)])) == set(range(100))


def test_two_streams_are_spread_evenly_and_so_over_ranks():
    group = np.repeat(np.arange(30), 4)
    s = sampler(group, group, 8, source=np.repeat([0, 1], [40, 80]), labeled=2)
    for step in s.epoch(0).reshape(s.steps, 2, 8):
        assert [(group[half] < 10).sum() for half in step] == [2, 2]
    with pytest.raises(UserError, match="sampler.num_labeled is 0"):
        sampler(group, group, 8, source=np.repeat([0, 1], [40, 80]))
    with pytest.raises(UserError, match="sampler.num_labeled is 2"):
        sampler(group, group, 8, labeled=2)


def test_an_epoch_has_the_steps_asked_for_in_pass_after_pass():
    group = np.repeat(np.arange(4), 20)
    rows = sampler(group, group, 4, 4).epoch(0)
    assert sorted(rows.ravel()) == list(range(80)) and rows.shape == (5, 16)
    spec = {"name": "dialogues", "utts_per_dialogue": 4}
    columns = {"group": group, "device": group, "source": 0 * group}
    for steps in (3, 12):
        found = cfg.build(cfg.validate(SamplerConfig, spec | {"steps": steps}), group, 16, 0, columns).epoch(
            0
        )
        assert found.shape == (steps, 16)
        assert (found[:5] == rows[:steps]).all(), "the first pass is the same"
        assert len(set(found[:5].ravel())) == 16 * min(steps, 5), "no utterance twice in a pass"
    assert sorted(found[5:10].ravel()) == list(range(80)) and (found[:5] != found[5:10]).any()


def test_one_utterance_per_dialogue_is_refused():
    with pytest.raises(UserError, match="'utts_per_dialogue'.* greater than or equal to 2, got 1"):
        sampler([0, 0, 1, 1], [0, 0, 1, 1], 2, m=1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"warmup_epochs": [3, 1]}, "'reject.warmup_epochs': the lower value must come first"),
        ({"gamma": -1.0}, "'reject.gamma': .* greater than 0"),
        ({"tau": 0.0}, "'reject.tau': .* greater than 0"),
    ],
)
def test_rejection_out_of_range_is_refused(wrong, words):
    spec = {"name": "dialogue", "reject": {"kind": "power", **wrong}}
    encoder = cfg.build(
        cfg.validate(EncoderConfig, {"name": "dvector", "hidden": 12, "layers": 1, "embed_dim": 8})
    )
    with pytest.raises(UserError, match=words):
        cfg.build(cfg.validate(ObjectiveConfig, spec), encoder, RunInfo(8, 4, 1, 20))


def test_rejection_that_never_begins_gives_a_warning(capsys):
    encoder = cfg.build(
        cfg.validate(EncoderConfig, {"name": "dvector", "hidden": 12, "layers": 1, "embed_dim": 8})
    )
    spec = {"name": "dialogue", "reject": {"kind": "power"}}
    cfg.build(cfg.validate(ObjectiveConfig, spec), encoder, RunInfo(8, 4, 1, 5))
    assert "nothing is rejected in epochs" in capsys.readouterr().out


# ---- runs ---------------------------------------------------------------------------------------------------------
CONFIG = """
encoder: {name: dvector, hidden: 12, layers: 1, embed_dim: 8}
objective: {name: dialogue, crop_seconds: 0.5, reject: {kind: sigmoid, warmup_epochs: [1, 2]}}
sampler: {name: dialogues}
augment: {rir_bank: 4}
optim: {lr: 0.01}
batch_size: 8
precision: fp32
epochs: 4
log_every_steps: 2
save_every_steps: 2
num_workers: 0
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataDir:
    """Five speakers of eight utterances, two dialogues each, speakers unknown."""
    folder = tmp_path_factory.mktemp("toy")
    found = toy.make(folder, speakers=5, utts=8)
    spk = dict(zip(found.utts, found.spk))
    found.utt_tables["utt2dialogue"] = {u: f"{spk[u]}-{int(u[-2:]) // 4}" for u in found.utts}
    found.dialogue2device = {d: d[:3] for d in sorted(set(found.utt_tables["utt2dialogue"].values()))}
    found.write_training_set(folder / "set")
    return DataDir.read(folder / "set/train")


def config(folder, *changes):
    (folder / "config.yaml").write_text(CONFIG)
    return cfg.load(TrainConfig, folder / "config.yaml", list(changes))


def weights(exp):
    return load_file(checkpoint.latest(exp) / "model.safetensors")


def same(a, b):
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=0, rtol=0)


def test_a_run_logs_rejection_and_resumes_to_the_same_weights(tmp_path, data):
    c = config(tmp_path)
    Trainer(c, data, tmp_path / "whole").run()
    log = [json.loads(x) for x in (tmp_path / "whole/train.jsonl").read_text().splitlines()]
    last = log[-1]
    assert last["weight"] == pytest.approx(1, abs=1e-5) and 0.2 <= last["effective"] < 1
    assert {"compactness", "compactness_std", "rejected", "scale", "spread"} <= set(last)
    assert log[0]["effective"] == pytest.approx(1), "the warm-up weighs all alike"
    toy.killed_at([3, 6], lambda: Trainer(c, data, tmp_path / "killed").run())
    same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_shuffled_speakers_change_nothing(tmp_path, data):
    c = config(tmp_path)
    rng = np.random.default_rng(0)
    Trainer(c, data, tmp_path / "a").run()
    Trainer(c, data.with_speakers(list(rng.permutation(data.spk))), tmp_path / "b").run()
    Trainer(c, data.with_speakers(list(rng.permutation(list("vwxyz") * 8))), tmp_path / "c").run()
    same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_other_dialogues_are_another_run(tmp_path, data):
    c = config(tmp_path, "epochs=1")
    Trainer(c, data, tmp_path / "exp").run()
    moved = dict(data.utt_tables["utt2dialogue"])
    moved[data.utts[0]] = moved[data.utts[-1]]
    other = DataDir(
        data.path,
        data.utts,
        data.spk,
        data.wav,
        utt_tables={"utt2dialogue": moved},
        dialogue2device=data.dialogue2device,
    )
    with pytest.raises(UserError, match="other utterances or labels"):
        Trainer(c, other, tmp_path / "exp").run()


def test_two_processes_equal_one(tmp_path, data):
    c = config(tmp_path, "epochs=2", "optim={name: sgd, lr: 0.1}")
    (tmp_path / "config.yaml").write_text(cfg.to_yaml(c))
    Trainer(c, data, tmp_path / "one").run()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += [
        "pyspkv.bin.train",
        "--config",
        tmp_path / "config.yaml",
        "--data",
        data.path,
        "--exp",
        tmp_path / "two",
    ]
    done = subprocess.run(list(map(str, command)), env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


def test_a_directory_without_dialogues_trains_on_its_speakers_and_joins_dialogues(tmp_path, data):
    labeled = DataDir.read(data.path.parent / "train_labeled")
    labeled = DataDir(labeled.path, labeled.utts, labeled.spk, labeled.wav)
    corpus = TrainingRows(labeled, data)
    assert len(set(zip(corpus.group[:40], corpus.device[:40]))) == len(set(corpus.group[:40])) == 5
    assert not set(corpus.group[:40]) & set(corpus.group[40:])
    assert len(set(corpus.group[40:])) == 10 and len(set(corpus.device[40:])) == 5
    Trainer(config(tmp_path, "epochs=1", "objective.loss=ge2e"), labeled, tmp_path / "labeled").run()
    c = config(tmp_path, "epochs=1", "sampler.num_labeled=2", "batch_size=10")
    Trainer(c, labeled, tmp_path / "joint", unlabeled=data, init=str(tmp_path / "labeled")).run()
    last = json.loads((tmp_path / "joint/train.jsonl").read_text().splitlines()[-1])
    assert math.isfinite(last["labeled"]) and math.isfinite(last["ava"])


def test_utterances_without_dialogues_are_refused_with_the_way_out(tmp_path, data):
    bare = DataDir(data.path, data.utts, data.utts, data.wav)
    with pytest.raises(UserError, match="without utt2dialogue, each speaker is one dialogue"):
        Trainer(config(tmp_path), bare, tmp_path / "exp")


# ---- what dialogues are compared to ---------------------------------------------------------------------------------
def test_the_lstm_encoder_is_causal_and_ignores_padding():
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, ENCODER)).eval()
    feats = torch.randn(2, 30, 40)
    lengths = torch.tensor([30, 30])
    changed = feats.clone()
    changed[:, 20:] = 0
    a, b = (encoder.frames(x, lengths)[0] for x in (feats, changed))
    torch.testing.assert_close(a[:, :20], b[:, :20])
    assert (a[:, 20:] != b[:, 20:]).any()
    short = encoder.embed(feats[:1, :18], torch.tensor([18]))
    padded = encoder.embed(feats, torch.tensor([18, 30]))
    torch.testing.assert_close(padded[:1], short)


def test_frozen_statistics_stay_while_weights_learn(tmp_path, data):
    Trainer(config(tmp_path, "epochs=1"), data, tmp_path / "before").run()
    changes = ["epochs=1", "objective.freeze_batchnorm_stats=true"]
    init = str(tmp_path / "before")
    Trainer(config(tmp_path, *changes), data, tmp_path / "frozen", init=init).run()
    Trainer(config(tmp_path, *changes[:1]), data, tmp_path / "free", init=init).run()
    before, frozen, free = (weights(tmp_path / name) for name in ("before", "frozen", "free"))
    changed = {n for n in before if n.startswith("encoder.") and not torch.equal(before[n], frozen[n])}
    statistics = {n for n in before if "running_" in n and n.startswith("encoder.")}
    assert statistics and not statistics & changed, "the speakers at hand do not move them"
    assert {"encoder.out_norm.weight", "encoder.fc.weight"} <= changed, "all weights learn"
    assert all(not torch.equal(before[n], free[n]) for n in statistics)


def test_cola_is_the_cross_entropy_of_bilinear_similarities():
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, ENCODER))
    spec = {"name": "cola", "crop_seconds": 0.3, "head_dim": 10}
    o = cfg.build(cfg.validate(ObjectiveConfig, spec), encoder, RunInfo(4, 4, 1, 1)).eval()
    data = batch(range(4))
    data.views = {"a": data.views["main"], "b": batch(range(4), seed=1).views["main"]}
    a, b = (o.head(o.encoder(*data.views[name])) for name in "ab")
    s = a @ o.similarity.weight.T @ b.T
    want = sum(-s[k, k] + torch.logsumexp(s[k], 0) for k in range(4))
    torch.testing.assert_close(o(data).terms["cola"][0], want)


def test_apc_predicts_frames_ahead_and_refuses_encoders_that_see_them():
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, ENCODER))
    spec = cfg.validate(ObjectiveConfig, {"name": "apc", "crop_seconds": 0.3, "ahead": 2})
    o = cfg.build(spec, encoder, RunInfo(4, 4, 1, 1)).eval()
    data = batch(range(3))
    feats, lengths = encoder.features(*data.views["main"])
    out = encoder.frames(feats, lengths)[0]
    size = feats.shape[1]
    wrong = [(o.predictor(out[:, t]) - feats[:, t + 2]).abs().mean(1) for t in range(size - 2)]
    torch.testing.assert_close(o(data).terms["apc"][0], torch.stack(wrong).mean(0).sum())
    grouped = {id(p) for g in o.optimizers()["main"] for p in g["params"]}
    assert not grouped & {id(p) for p in encoder.fc.parameters()}
    o(data).terms["apc"][0].backward()  # DDP waits for the gradient of every parameter
    assert all(p.grad is not None for p in o.parameters() if p.requires_grad)
    ecapa = cfg.build(cfg.validate(EncoderConfig, {"name": "ecapa", "channels": 16, "mfa_channels": 24}))
    with pytest.raises(UserError, match="future"):
        cfg.build(spec, ecapa, RunInfo(4, 4, 1, 1))
