"""SSRL (arXiv 2401.01473): schedule of votes and updates, modes, dead classes, the teacher, weights."""

import json
import math
import statistics

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import Batch
from pyspkv.data.datadir import DataDir
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.aam import margin_logits
from pyspkv.objectives.base import RunInfo
from pyspkv.objectives.registry import ObjectiveConfig
from pyspkv.objectives.ssrl import mode, sinkhorn
from pyspkv.train.config import TrainConfig
from pyspkv.train.trainer import Trainer

ENCODER = {
    "name": "ecapa",
    "channels": 16,
    "mfa_channels": 24,
    "embed_dim": 8,
    "se_channels": 4,
    "n_mels": 40,
}
ROWS, CLASSES, STEPS = 12, 4, 3


def objective(rows=ROWS, **fields):
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, ENCODER))
    spec = {"name": "ssrl", "student_seconds": 0.3, "teacher_seconds": 0.5, **fields}
    o = cfg.build(cfg.validate(ObjectiveConfig, spec), encoder, RunInfo(rows, CLASSES, STEPS, 20))
    g = torch.Generator().manual_seed(1)
    o.init_from_embeddings(torch.randn(rows, 8, generator=g), torch.arange(rows) % CLASSES)
    return o.train()


def batch(o, rows):
    rows = torch.as_tensor(rows)
    none, g = torch.full((len(rows),), -1), torch.Generator().manual_seed(int(rows[0]))
    views = {
        n: (0.1 * torch.randn(len(rows), v.samples, generator=g), torch.full((len(rows),), v.samples))
        for n, v in o.views().items()
    }
    return Batch(0, 0, rows, 0 * rows, 0 * rows, none, none, 0 * rows, views)


def epoch(o, e, votes=None):
    """One epoch of three batches; `votes` [N] replace the teacher's votes."""
    for step, rows in enumerate(torch.arange(len(o.label)).view(STEPS, -1)):
        o.before_step(e * STEPS + step)
        o(batch(o, rows))
    if votes is not None and (o.vote >= 0).any():
        o.vote.copy_(votes)
    return o.end_epoch(e)


def test_the_teachers_crops_count_from_its_first_vote_on_and_keep_their_speed():
    o = objective()
    for e, share in (
        (0, 0.0),
        (1, 0.0),
        (2, 1.0),
        (5, 1.0),
    ):  # floor(L / 2) + 1 epochs before the first update
        o.before_step(e * STEPS)
        assert o(batch(o, range(4))).encoded["teacher"] == 4 * share
    for info, words in (
        (RunInfo(6, 2, 1, 9, num_speeds=3), "augment.speed_perturb"),
        (RunInfo(6, 2, 1, 9, num_labeled=4), "one data"),
    ):
        with pytest.raises(UserError, match=words):
            cfg.build(cfg.validate(ObjectiveConfig, {"name": "ssrl"}), o.encoder, info)


def test_first_update_has_two_votes_of_the_start_and_three_of_the_teacher():
    o = objective()
    start = o.label.clone()
    for e in range(5):
        votes = (start + 1 + (e == 2)) % CLASSES
        epoch(o, e, votes.int())
        assert (o.vote == -1).all() and o.loss.isnan().all()
        if e < 2:
            assert (o.queue[:, :3] == -1).all() and (o.queue[:, 3:] == start[:, None]).all()
        if e < 4:
            assert torch.equal(o.label, start), "labels are fixed"
    want = torch.stack([start, start, (start + 2) % 4, (start + 1) % 4, (start + 1) % 4], 1)
    assert torch.equal(o.queue, want.int())
    assert torch.equal(o.label, start), "the oldest of two tied labels wins"
    epoch(o, 5, ((start + 1) % 4).int())
    assert torch.equal(o.label, (start + 1) % 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 3), min_size=5, max_size=5), min_size=1, max_size=20))
def test_mode_is_pythons_mode_without_the_empty_places(rows):
    got = mode(torch.tensor(rows, dtype=torch.int32)).tolist()
    want = [statistics.mode(filled) if (filled := [v for v in row if v >= 0]) else -1 for row in rows]
    assert got == want  # statistics.mode: the first of tied values


def test_dead_classes_get_no_gradient_no_vote_and_no_say_in_the_queue():
    o = objective()
    o.dead[2] = True
    o.label[o.label == 2] = 3
    with torch.no_grad():
        o.teacher_classifier.weight[2] = 100 * o.teacher(*batch(o, range(4)).views["teacher"])[0]
    o.before_step(5 * STEPS)
    total, _ = o(batch(o, range(4))).terms["reflective"]
    total.backward()
    assert (o.classifier.weight.grad[2] == 0).all() and (o.classifier.weight.grad[3] != 0).any()
    assert (o.vote[:4] != 2).all() and o.loss[:4].isfinite().all()
    o.queue[5] = torch.tensor([2, 2, 2, 1, 0])
    assert mode(o.alive(o.queue))[5] == 1


def test_loss_is_the_weighted_mean_and_the_mean_where_all_weigh_the_same():
    o = objective(noise_model=False).eval()
    data = batch(o, range(6))
    cos = F.normalize(o.encoder(*data.views["student"])) @ F.normalize(o.classifier.weight).T
    loss = F.cross_entropy(
        32 * margin_logits(cos, o.label[:6].long(), 0.2), o.label[:6].long(), reduction="none"
    )
    total, weight = o(data).terms["reflective"]
    torch.testing.assert_close(total / weight, loss.mean())
    o.weight[:6] = torch.tensor([1.0, 0.5, 0.0, 0.25, 1.0, 0.1])
    total, weight = o(data).terms["reflective"]
    torch.testing.assert_close(total / weight, (o.weight[:6] * loss).sum() / o.weight[:6].sum())


@pytest.mark.parametrize("faithful", [False, True])
def test_teacher_votes_without_margin_unless_faithful(faithful):
    o = objective(match_released_code=faithful)
    data = batch(o, range(6))
    with torch.no_grad():
        z = F.normalize(o.teacher(*data.views["teacher"]))
        cos = z @ F.normalize(o.teacher_classifier.weight).T
    label = o.label[:6].long()
    want = 32 * (margin_logits(cos, label, 0.2) if faithful else cos)
    o.before_step(2 * STEPS)  # the teacher votes, but labels are not updated at the end of this epoch
    o(data)
    assert torch.equal(o.vote[:6].long(), want.argmax(1))
    torch.testing.assert_close(o.loss[:6], F.cross_entropy(want, want.argmax(1), reduction="none"))


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({}, (0.999, 0.99945, 0.9999)),  # linear in the steps, as released
        ({"ema_momentum": [0.5, 0.9]}, (0.5, 0.7, 0.9)),
        ({"ema_epochs": [1.0, 10.0]}, (1 - 1 / 3.0, 1 - 1 / 16.5, 1 - 1 / 30.0)),  # 3 steps an epoch
        ({"ema_epochs": [1.0, 10.0], "match_released_code": True}, (1 - 1 / 3.0, 1 - 1 / 16.5, 1 - 1 / 30.0)),
    ],
)
def test_teacher_forgets_by_the_schedule(changes, at):
    o = objective(**changes)
    for step, a in zip((0, 10 * STEPS, 20 * STEPS), at):
        o.before_step(step)
        before = [p.clone() for p in o.teacher.parameters()]
        with torch.no_grad():
            for p in o.encoder.parameters():
                p.add_(1.0)
            for b in o.encoder.buffers():
                if b.is_floating_point():
                    b.add_(2.0)
        mean = o.teacher.out_norm.running_mean.clone()
        o.after_step()
        for old, new, student in zip(before, o.teacher.parameters(), o.encoder.parameters()):
            torch.testing.assert_close(new, a * old + (1 - a) * student)
        torch.testing.assert_close(
            o.teacher.out_norm.running_mean, a * mean + (1 - a) * o.encoder.out_norm.running_mean
        )
    assert not o.teacher.training and o.encoder.training


def test_weights_are_the_posterior_of_the_lower_mean():
    o = objective(rows=3000)
    rng = np.random.default_rng(0)
    clean = rng.random(3000) < 0.7
    u = np.where(clean, rng.normal(-4, 0.8, 3000), rng.normal(1, 0.6, 3000))
    o.loss.copy_(torch.from_numpy(np.exp(u)))
    o.loss[:10] = torch.nan
    w = o.weights().numpy()
    assert (w[:10] == 1).all() and w[10:][clean[10:]].mean() > 0.97 and w[10:][~clean[10:]].mean() < 0.05
    o.loss.copy_(torch.from_numpy(np.exp(rng.normal(0, 1, 3000))))
    assert (o.weights() == 1).all(), "one kind of losses"


def test_classes_as_alike_across_as_within_unite_and_small_ones_go_to_the_nearest():
    label = torch.tensor([0] * 5 + [1] * 3 + [2] * 3 + [3])
    center = torch.eye(8)[:4].clone()
    center[1] = torch.eye(8)[0] + 0.3 * torch.eye(8)[1]  # near class 0
    center[3] = torch.eye(8)[2] + torch.eye(8)[3]  # nearest to class 2, but alone
    unit = F.normalize(center[label] + 0.2 * torch.randn(12, 8, generator=torch.Generator().manual_seed(0)))
    cos = unit @ unit.T
    a, b = cos[:5, :5], cos[5:8, 5:8]
    within = (a.sum() - 5) / 20, (b.sum() - 3) / 6
    ratio = float(cos[:5, 5:8].mean() / (sum(within) / 2))

    def united(merge, min_size=2):
        o = objective(merge_ratio=merge, min_cluster_size=min_size)
        o.label.copy_(label)
        o.queue[0] = torch.tensor([-1, 1, 3, 2, 0])
        o.whitened_sums[:, 0].index_add_(0, label, unit)
        o.seen[:, 0].index_add_(0, label, torch.ones(12))
        o.unite_and_divide(o.label.clone())
        return o.label.tolist(), o.queue[0].tolist()

    assert united(ratio - 1e-3) == ([0] * 8 + [2] * 4, [-1, 0, 2, 2, 0])
    assert united(ratio + 1e-3) == ([0] * 5 + [1] * 3 + [2] * 4, [-1, 1, 2, 2, 0])
    assert united(0.0) == united(2.0)
    assert united(ratio - 1e-3, min_size=0)[0] == [0] * 8 + [2] * 3 + [3]


def test_sinkhorn_evens_out_the_classes():
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    q = sinkhorn(p, 50)
    torch.testing.assert_close(q.sum(0), torch.full((2,), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(q.sum(1), torch.full((4,), 0.25), atol=1e-3, rtol=0)
    assert q.argmax(1).tolist() == [0, 0, 1, 1]


def test_sinkhorn_leaves_dead_classes_dead():
    o = objective(sinkhorn_iterations=5, fixed_epochs=1)
    o.dead[torch.tensor([1, 2])] = True
    o.label.copy_(torch.arange(ROWS) % 2 * 3)
    o.before_step(0)
    o(batch(o, range(ROWS)))
    assert set(o.vote.tolist()) == {0, 3} and torch.isfinite(o.loss).all()


def test_votes_are_taken_in_float32():
    """With many classes, bf16 would produce ties between cosines."""
    o = objective(fixed_epochs=1)
    o.queue.fill_(-1)  # so that only the vote decides the next label
    o.before_step(0)
    data = batch(o, range(ROWS))
    with torch.autocast("cpu", torch.bfloat16):
        z = o.teacher(*data.views["teacher"]).float()
        o(data)
    logits = o.teacher_classifier(z)
    assert o.vote.tolist() == logits.argmax(1).tolist()
    torch.testing.assert_close(o.loss, F.cross_entropy(logits, o.vote.long(), reduction="none"))


def test_bookkeeping_stays_below_64_bytes_an_utterance():
    o = objective()
    per_row = (o.label, o.queue, o.vote, o.side, o.loss, o.weight)
    assert sum(b.element_size() * b[0].numel() for b in per_row) == 40


def test_a_run_moves_labels_writes_them_and_resumes(tmp_path):
    data = toy.make(tmp_path / "toy")
    wrong = [data.spk[0] if k % 6 == 5 else s for k, s in enumerate(data.spk)]  # a sixth of the labels
    config = tmp_path / "config.yaml"
    config.write_text(
        f"encoder: {ENCODER}\n".replace("'", "")
        + "objective: {name: ssrl, student_seconds: 0.5, teacher_seconds: 0.8, fixed_epochs: 2, queue_length: 3}\n"
        "augment: {rir_bank: 0}\nbatch_size: 8\nprecision: fp32\nepochs: 6\nsave_every_steps: 2\nnum_workers: 0\n"
    )
    c = cfg.load(TrainConfig, config)
    given = data.with_speakers(wrong)
    Trainer(c, given, tmp_path / "whole", labels_out=tmp_path / "out").run()
    found = DataDir.read(tmp_path / "out")
    assert found.utts == data.utts and set(found.spk) <= set(wrong)

    toy.killed_at([5, 11], lambda: Trainer(c, given, tmp_path / "killed", labels_out=tmp_path / "out2").run())
    assert DataDir.read(tmp_path / "out2").spk == found.spk
    # the dev list is evaluated for teacher and student, and changes nothing
    dev = toy.make(tmp_path / "dev", speakers=3, utts=3, seed=5).renamed(
        lambda utt, spk: f"x-{utt}", "x-{}".format
    )
    trials = toy.trials(tmp_path / "dev", dev)
    Trainer(c, given, tmp_path / "watched", dev=dev, dev_trials=trials).run()
    last = json.loads((tmp_path / "watched/train.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["dev_eer"] <= 100 and 0 <= last["dev_eer_student"] <= 100
    whole, *others = (
        resumed(c, given, tmp_path / "whole").objective.state_dict(),
        resumed(c, given, tmp_path / "killed").objective.state_dict(),
        resumed(c, given, tmp_path / "watched", dev=dev, dev_trials=trials).objective.state_dict(),
    )
    for other in others:
        for name in whole:
            torch.testing.assert_close(whole[name], other[name], atol=0, rtol=0, equal_nan=True)
    assert all(math.isfinite(v) for v in whole["weight"].tolist())


def resumed(c, data, exp, **options):
    t = Trainer(c, data, exp, **options)
    t._start_or_resume()
    return t


def test_labels_out_needs_an_objective_that_moves_them(tmp_path):
    data = toy.make(tmp_path / "toy", speakers=2, utts=4)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"encoder: {ENCODER}\n".replace("'", "")
        + "objective: {name: aam, crop_seconds: 0.5, augment: false}\nbatch_size: 8\nepochs: 1\nnum_workers: 0\n"
    )
    with pytest.raises(UserError, match="does not change labels"):
        Trainer(cfg.load(TrainConfig, config), data, tmp_path / "exp", labels_out=tmp_path / "out").run()


def test_a_class_of_two_speakers_divides_and_one_of_one_does_not():
    o = objective(rows=24, split_ratio=0.5, min_cluster_size=2, fixed_epochs=4, queue_length=3)
    g = torch.Generator().manual_seed(3)
    center = torch.eye(8)[[0, 1, 2]]
    speaker = torch.tensor([0, 1] * 6 + [2] * 12)
    unit = F.normalize(center[speaker] + 0.15 * torch.randn(24, 8, generator=g))
    label = torch.tensor([0] * 12 + [1] * 12)  # 2 and 3 are free
    o.init_from_embeddings(unit, label)
    o.teacher.forward = lambda wave, lengths: unit[lengths]
    o.teacher_classifier.forward = lambda z, label=None: (
        10.0 * F.one_hot(o.label[rows].long(), CLASSES).float()
    )
    logged = []
    for e in range(5):
        for step, rows in enumerate(torch.arange(24).view(STEPS, -1)):
            o.before_step(e * STEPS + step)
            b = batch(o, rows)
            b.views["teacher"] = (b.views["teacher"][0], rows)
            o(b)
        before = [c.weight.detach().norm(dim=1) for c in (o.classifier, o.teacher_classifier)]
        logged.append(o.end_epoch(e))
    assert [line["labels/divided"] for line in logged] == [0, 0, 0, 1, 0]
    assert logged[3]["labels/live"] == 3 and logged[3]["labels/flipped"] == pytest.approx(6 / 24)
    found = o.label[:12].view(6, 2)
    assert (found == found[0]).all() and set(found[0].tolist()) == {0, 2} and (o.label[12:] == 1).all()
    assert ((o.queue < 0) | (o.queue == o.label[:, None])).all()
    for c, norm in zip((o.classifier, o.teacher_classifier), before):
        mean = unit[:12].view(6, 2, 8).mean(0)
        rows = found[0].long()
        torch.testing.assert_close(F.normalize(c.weight[rows].detach()), F.normalize(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(c.weight[rows].detach().norm(dim=1), norm[[0, 0]])
