"""DINO against the paper's double loop, and the state of its teacher, center and alarm."""

import math

import pytest
import torch
from torch.nn import functional as F

from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import Batch
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives import dino
from pyspkv.objectives.base import RunInfo
from pyspkv.objectives.registry import ObjectiveConfig

ENCODER = {
    "name": "ecapa",
    "channels": 16,
    "mfa_channels": 24,
    "embed_dim": 8,
    "se_channels": 4,
    "n_mels": 40,
}
SMALL = {"name": "dino", "global_seconds": 0.6, "local_seconds": 0.3, "local_crops": 2, "head_hidden_dim": 12,
         "head_bottleneck_dim": 6, "num_prototypes": 20}  # fmt: skip


def objective(**fields):
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, ENCODER))
    return cfg.build(cfg.validate(ObjectiveConfig, {**SMALL, **fields}), encoder, RunInfo(6, 6, 10, 4))


def batch(o, size=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    rows, none = torch.arange(size), torch.full((size,), -1)
    views = {
        name: (0.1 * torch.randn(size, v.samples, generator=g), torch.full((size,), v.samples))
        for name, v in o.views().items()
    }
    return Batch(0, 0, rows, torch.zeros_like(rows), rows, none, none, torch.zeros_like(rows), views)


def test_loss_is_the_papers_double_loop():
    o = objective(teacher_temperature=[0.04, 0.08], teacher_temperature_epochs=2.0).eval()
    o.before_step(10)  # epoch 1: temperature 0.06
    o.center.copy_(torch.linspace(-0.2, 0.2, 20))
    data = batch(o)
    names = ["global0", "global1", "local0", "local1"]
    student = {n: o.head(o.encoder(*data.views[n]))[0] / 0.1 for n in names}
    teacher = {n: (o.teacher_head(o.teacher(*data.views[n]))[0] - o.center) / 0.06 for n in names[:2]}
    want, count = 0.0, 0
    for q in names[:2]:
        for v in names:
            if q != v:
                want = want - (teacher[q].softmax(1) * student[v].log_softmax(1)).sum(1)
                count += 1
    assert count == 6
    total, weight = o(data).terms["dino"]
    torch.testing.assert_close(total / weight, (want / count).mean())


def test_regularizers_are_zero_for_spread_and_uncorrelated_outputs():
    o = objective(regularized_dim=4, variance_weight=10.0, covariance_weight=1.0)
    x = 2 * torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    x = torch.cat([x, -x])  # uncorrelated columns with a standard deviation above 1
    both = torch.cat([x, x])
    assert [v.item() for v in o.regularize(both, both)] == [0, 0]
    flat = torch.zeros(16, 4)
    variance, covariance = o.regularize(flat, both)
    assert variance.item() == pytest.approx(0.5 * (1 - 1e-2), abs=1e-6) and covariance.item() == 0
    y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    mean = (y[:8] + y[8:]) / 2
    cov = torch.cov(mean.T)
    _, covariance = o.regularize(y, y)
    assert covariance.item() == pytest.approx(
        (cov.square().sum() - cov.diag().square().sum()).item() / 20, rel=1e-4
    )
    assert set(o(batch(o)).terms) == {"dino", "regularizer"}


def test_teacher_follows_by_the_schedule_and_gets_no_gradient():
    o = objective(ema_momentum=[0.9, 1.0]).train()
    o.before_step(20)  # the middle of 4 epochs of 10 steps: momentum 0.95
    before = [p.clone() for p in o.teacher.parameters()]
    o(batch(o)).terms["dino"][0].backward()
    assert all(p.grad is None for p in (*o.teacher.parameters(), *o.teacher_head.parameters()))
    with torch.no_grad():
        for p in o.encoder.parameters():
            p.add_(1.0)
    o.after_step()
    for old, new, student in zip(before, o.teacher.parameters(), o.encoder.parameters()):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * student)


def test_center_is_the_moving_mean_of_the_teachers_logits():
    o = objective().train()
    data = batch(o)
    with torch.no_grad():
        logits = o.teacher_head(o.teacher(*dino._cat(data.views, ["global0", "global1"])))[0]
    o(data)
    torch.testing.assert_close(o.center, 0.1 * logits.mean(0), atol=1e-6, rtol=1e-4)
    kept = o.center.clone()
    o.eval()(data)
    torch.testing.assert_close(o.center, kept)


def test_last_layer_is_frozen_at_first_yet_takes_part():
    o = objective(freeze_last_layer_epochs=1.0).train()
    for step, moves in ((0, False), (10, True)):
        o.zero_grad()
        o.before_step(step)
        o(batch(o)).terms["dino"][0].backward()
        assert bool(o.head.last.grad.abs().sum() > 0) is moves
    last = [g for g in o.optimizers()["main"] if g["params"] == [o.head.last]]
    assert len(last) == 1 and last[0]["weight_decay"] == 0.0
    grouped = [id(p) for g in o.optimizers()["main"] for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in o.parameters() if p.requires_grad)


def test_a_loss_that_stays_at_the_ceiling_stops_the_run(monkeypatch):
    monkeypatch.setattr(dino, "FLAT_STEPS", 3)
    o = objective()
    taught, loss = torch.zeros(4, 20), torch.full((4,), math.log(20))
    o.before_step(10)
    for _ in range(5):
        o.remember(taught, loss)  # before alarm_epoch
    o.before_step(20)
    o.remember(taught, loss)
    o.remember(taught, 0.5 * loss)
    o.remember(taught, loss)
    o.remember(taught, loss)
    with pytest.raises(UserError, match="collapsed"):
        o.remember(taught, loss)


def test_it_learns_to_agree_and_embeds_with_the_teacher():
    o = objective(student_temperature=0.2).train()
    assert o.eval_module == "teacher"
    optimizer = torch.optim.SGD([p for p in o.parameters() if p.requires_grad], lr=0.1)
    values = []
    for step in range(12):
        o.before_step(step + 10)
        optimizer.zero_grad()
        total, weight = o(batch(o)).terms["dino"]
        (total / weight).backward()
        optimizer.step()
        o.after_step()
        values.append((total / weight).item())
    assert values[-1] < values[0] and all(math.isfinite(v) for v in values)
    assert not torch.equal(F.normalize(o.head.last), F.normalize(o.teacher_head.last))
