"""Losses and gates against plain loops, hand values and the equations."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyspkv import config as cfg
from pyspkv.dataset import Batch
from pyspkv.objectives.contrastive import angular_proto, nt_xent
from pyspkv.objectives.margin import AAMHead
from pyspkv.objectives.objective import Info, margin_logits, spread

ENCODER = {"name": "ecapa", "channels": 16, "mfa_channels": 24, "embed_dim": 8, "bottleneck": 4}


def unit(*shape, seed=0):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    )


def test_aam_logits_are_cos_of_theta_plus_m():
    theta = torch.linspace(0.01, math.pi - 0.01, 50, dtype=torch.float64)
    cos, m = torch.stack([theta.cos(), torch.zeros_like(theta)], 1), 0.3
    got = margin_logits(cos, torch.zeros(50, dtype=torch.long), m)
    inside = theta + m < math.pi
    torch.testing.assert_close(got[inside, 0], (theta + m).cos()[inside])
    torch.testing.assert_close(got[~inside, 0], (theta.cos() - m * math.sin(m))[~inside])
    assert (got[:, 0].diff() < 0).all() and (got[:, 1] == 0).all()
    torch.testing.assert_close(margin_logits(cos, torch.zeros(50, dtype=torch.long), 0.0), cos)


def test_margin_gradient_is_finite_at_both_poles():
    cos = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    margin_logits(cos, torch.tensor([0, 0]), 0.2).sum().backward()
    assert cos.grad.isfinite().all()


def test_sub_centres_take_the_nearest():
    head = AAMHead(8, classes=3, sub_centres=2).double()
    e, w = unit(5, 8), F.normalize(head.weight)
    want = torch.stack([torch.maximum(e @ w[2 * k], e @ w[2 * k + 1]) for k in range(3)], 1)
    torch.testing.assert_close(head(e), want)


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_nt_xent_is_the_papers_double_loop(margin):
    a, b, tau = unit(6, 8), unit(6, 8, seed=1), 0.1
    got = nt_xent(a, b, a, b, 0, torch.tensor(1 / tau, dtype=torch.float64), margin)
    z, want = torch.cat([a, b]), []
    for i in range(12):
        j = (i + 6) % 12
        pos = math.exp((z[i] @ z[j] - margin) / tau)
        neg = sum(math.exp(z[i] @ z[k] / tau) for k in range(12) if k not in (i, j))
        want.append(-math.log(pos / (pos + neg)))
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_nt_xent_of_a_ranks_share_is_its_rows():
    a, b, scale = unit(6, 8), unit(6, 8, seed=1), torch.tensor(10.0, dtype=torch.float64)
    whole = nt_xent(a, b, a, b, 0, scale, 0.1).view(2, 6)
    share = nt_xent(a[2:4], b[2:4], a, b, 2, scale, 0.1).view(2, 2)
    torch.testing.assert_close(share, whole[:, 2:4])


def test_angular_prototypical_by_hand():
    a, b = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    got = angular_proto(a, b, 0, torch.tensor(10.0, dtype=torch.float64), 0.0)
    torch.testing.assert_close(got, torch.full((2,), math.log(1 + math.exp(-10.0)), dtype=torch.float64))


def test_spread_of_a_collapsed_and_an_even_batch():
    same, size = spread(torch.ones(4, 1))
    even, _ = spread(torch.tensor([[1.0], [-1.0]]))
    assert (same / size).item() == 0 and (even / 2).item() == 1


def gate(n=6, **spec):
    return cfg.build("gate", cfg.resolve("gate", spec), n)


def test_loss_gate_keeps_at_most_the_threshold_and_logs_the_share():
    g = gate(name="lgl", threshold=1.0, start_epoch=1.0)
    loss = torch.tensor([0.5, 1.0, 1.5])
    assert g(torch.tensor([0, 1, 2]), loss, epoch=0.9).tolist() == [1, 1, 1]
    assert g(torch.tensor([0, 1, 2]), loss, epoch=1.0).tolist() == [1, 1, 0]
    assert g.loss.tolist()[:3] == [0.5, 1.0, 1.5] and g.loss[3:].isnan().all()
    assert g.end_epoch(1)["gate/below_threshold"] == pytest.approx(2 / 3)
    assert g.loss.isnan().all()


def margin_objective(**fields):
    torch.manual_seed(0)
    encoder = cfg.build("encoder", cfg.resolve("encoder", ENCODER))
    return cfg.build(
        "objective", cfg.resolve("objective", {"name": "margin", **fields}), encoder, Info(4, 3, 10, 5)
    )


def batch(views, label):
    rows, none = torch.arange(len(label)), torch.full((len(label),), -1)
    wave = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (len(label), 8000)).astype(np.float32))
    views = {name: (wave, torch.full((len(label),), 8000)) for name in views}
    return Batch(0, 0, rows, torch.zeros_like(rows), torch.tensor(label), none, none, views)


def test_margin_objective_is_cross_entropy_of_scaled_margin_logits():
    o = margin_objective(scale=20.0, margin=0.3, margin_warmup_epochs=[0, 2]).eval()
    data = batch(["main"], [0, 2, 1, 0])
    for epoch, margin in ((0.0, 0.0), (1.0, 0.15), (3.0, 0.3)):
        o.before_step(int(epoch * 10))
        total, weight = o(data).terms["aam"]
        cos = F.normalize(o.encoder(*data.views["main"])) @ F.normalize(o.head.weight).T
        want = F.cross_entropy(20 * margin_logits(cos, data.label, margin), data.label)
        torch.testing.assert_close(total / weight, want)


def test_a_gate_that_rejects_all_gives_no_loss_and_no_nan():
    o = margin_objective(gate={"name": "lgl", "threshold": -1.0, "start_epoch": 0.0})
    total, weight = o(batch(["main"], [0, 2, 1, 0])).terms["aam"]
    assert total.item() == 0 and weight.item() == 0
    (total * 0.0).backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in o.parameters())


def test_every_parameter_is_in_exactly_one_group():
    o = margin_objective()
    grouped = [id(p) for groups in o.optimisers().values() for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in o.parameters() if p.requires_grad)
