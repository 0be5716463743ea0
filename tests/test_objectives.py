"""Losses and gates against plain loops, values computed by hand, and the equations."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.batches.dataset import Batch
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.aam import AAMHead, margin_logits
from pyspkv.objectives.base import RunInfo, spread
from pyspkv.objectives.contrastive import angular_proto, nt_xent
from pyspkv.objectives.loss_gates import GateConfig, crossing_of, two_gaussians
from pyspkv.objectives.registry import ObjectiveConfig

ENCODER = {"name": "ecapa", "channels": 16, "mfa_channels": 24, "embed_dim": 8, "se_channels": 4}


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


def test_sub_centers_take_the_nearest():
    head = AAMHead(8, classes=3, sub_centers=2).double()
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
    return cfg.build(cfg.validate(GateConfig, spec), n)


def test_loss_gate_keeps_at_most_the_threshold_and_logs_the_share():
    g = gate(name="lgl", threshold=1.0, start_epoch=1.0)
    loss = torch.tensor([0.5, 1.0, 1.5])
    assert g(torch.tensor([0, 1, 2]), loss, epoch=0.9).tolist() == [1, 1, 1]
    assert g(torch.tensor([0, 1, 2]), loss, epoch=1.0).tolist() == [1, 1, 0]
    assert g.loss.tolist()[:3] == [0.5, 1.0, 1.5] and g.loss[3:].isnan().all()
    assert g.end_epoch(1)["gate/below_threshold"] == pytest.approx(2 / 3)
    assert g.loss.isnan().all()


def test_dynamic_gate_closes_where_the_two_gaussians_cross():
    """Against a grid search for the sign change, as in the authors' code."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-2, 1.0, 3000), rng.normal(2.5, 0.6, 1000)])
    w, mu, var = two_gaussians(x)
    np.testing.assert_allclose(mu, [-2, 2.5], atol=0.1)
    np.testing.assert_allclose(w, [0.75, 0.25], atol=0.02)
    grid = np.linspace(mu[0], mu[1], 100_001)
    density = [w[k] / np.sqrt(var[k]) * np.exp(-((grid - mu[k]) ** 2) / (2 * var[k])) for k in (0, 1)]
    change = np.flatnonzero(np.diff(np.sign(density[0] - density[1])))
    assert len(change) == 1
    assert crossing_of(w, mu, var) == pytest.approx(grid[change[0]], abs=1e-4)

    g = gate(4000, name="dlg", start_epoch=0.0)
    everything = torch.arange(4000)
    loss = torch.from_numpy(np.exp(x))
    assert g(everything, loss, 0.0).sum() == 4000, "open until an epoch was seen"
    g.end_epoch(0)
    assert math.log(g.threshold()) == pytest.approx(crossing_of(w, mu, var), abs=1e-3)
    kept = g(everything, loss, 1.0)
    np.testing.assert_array_equal(kept.numpy(), x <= math.log(g.threshold()))
    assert g.rows()["weight"].sum() == 4000, "the gate was open in the epoch that ended"
    g.end_epoch(1)
    np.testing.assert_array_equal(g.rows()["weight"], kept)


def test_crossing_with_equal_variances_and_without_any():
    half, one = np.array([0.5, 0.5]), np.array([1.0, 1.0])
    assert crossing_of(half, np.array([-1.0, 3.0]), one) == pytest.approx(1.0)
    assert crossing_of(np.array([0.999, 0.001]), np.array([0.0, 0.5]), one) is None


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_dynamic_gate_stays_open_where_it_would_keep_a_minority(least):
    rng = np.random.default_rng(0)
    loss = np.exp(np.concatenate([rng.normal(-2, 1.0, 500), rng.normal(2.5, 0.3, 1500)]))
    g = gate(2000, name="dlg", start_epoch=0.0, min_keep_ratio=least)
    g(torch.arange(2000), torch.from_numpy(loss), 0.0)
    g.end_epoch(0)
    assert (g.threshold() == math.inf) is (least == 0.3)


@pytest.mark.parametrize("loss", [[0.0] * 20, [1.0] * 20, [math.inf] + [1.0] * 19, [0.1, 0.2]])
def test_dynamic_gate_keeps_its_threshold_when_the_fit_fails(loss):
    g = gate(20, name="dlg", start_epoch=0.0)
    g.tau.fill_(3.0)
    g(torch.arange(len(loss)), torch.tensor(loss), 0.0)
    assert g.end_epoch(0)["gate/tau"] == 3.0


def test_dynamic_gate_takes_no_threshold_from_long_before_it_starts():
    """If its first fit fails the gate is open, whatever the losses of earlier epochs were."""
    rng, rows = np.random.default_rng(0), torch.arange(2000)
    two = torch.from_numpy(np.exp(np.concatenate([rng.normal(-3, 0.5, 1000), rng.normal(0, 0.5, 1000)])))
    g = gate(2000, name="dlg", start_epoch=4.0)
    for epoch, loss in enumerate([two, two, two, torch.ones(2000)]):
        g(rows, loss, epoch)
        g.end_epoch(epoch)
    assert g(rows, two, 4.0).all()
    g.end_epoch(4)
    assert g(rows, two, 5.0).sum() == pytest.approx(1000, abs=20)
    g = gate(2000, name="dlg", start_epoch=1.5)  # within an epoch the threshold of the previous epoch is used
    g(rows, two, 0.0)
    g.end_epoch(0)
    assert math.isfinite(g.threshold())


@pytest.mark.parametrize("faithful", [False, True])
def test_label_correction_by_hand(faithful):
    """The loss of arXiv 2406.02285 with the gate open, with the gate closed, and with label correction."""
    torch.manual_seed(0)
    spec = {"name": "dlg", "start_epoch": 1.0, "label_correction_epoch": 2.0, "confidence": 0.4}
    o = margin_objective(gate=spec, scale=10.0, margin=0.2, match_released_code=faithful).eval()
    data = batch(["main", "clean"], [0, 2, 1, 0])
    wave, lengths = data.views["main"]
    data.views["clean"] = (wave.flip(0), lengths)  # another input, so that the two views differ
    e, clean = (F.normalize(o.encoder(*data.views[v])).detach() for v in ("main", "clean"))
    raw = o.encoder(*data.views["clean"]).detach()
    cos = e @ F.normalize(o.head.weight).T
    u = 10 * margin_logits(cos, data.label, 0.2)
    loss = F.cross_entropy(u, data.label, reduction="none")
    tau = loss.sort().values[1:3].mean()  # two utterances kept, two rejected
    o.gate.tau.fill_(tau)

    def step(epoch):
        o.before_step(int(epoch * 10))
        out = o(data)
        total, weight = out.terms["aam"]
        return (total / weight).item()

    assert step(0) == pytest.approx(loss.mean().item(), rel=1e-5)
    keep = loss <= tau
    assert step(1) == pytest.approx(loss[keep].mean().item(), rel=1e-5)
    posterior = (
        raw @ o.head.weight.T / 0.1 if faithful else 10 * clean @ F.normalize(o.head.weight).T
    ).softmax(1)
    terms = []
    for i in range(4):
        target = posterior[i].argmax()
        if keep[i]:
            terms.append(loss[i])
        elif posterior[i, target] > 0.4 and (faithful or target != data.label[i]):
            logits = u[i] if faithful else 10 * margin_logits(cos[i : i + 1], target[None], 0.2)[0]
            terms.append(F.cross_entropy(logits, target))
    assert len(terms) > 2, "the case must correct something"
    want = sum(terms) / (4 if faithful else len(terms))
    assert step(2) == pytest.approx(want.item(), rel=1e-5)


def test_released_correction_joins_every_ranks_statistics_and_knows_sub_centers():
    """In training mode the clean pass all-reduces, so a rank that rejects nothing must run it, too."""
    spec = {"name": "dlg", "start_epoch": 0.0, "label_correction_epoch": 0.0, "confidence": 0.1}
    o = margin_objective(gate=spec, match_released_code=True, sub_centers=3).train()
    data = batch(["main", "clean"], [0, 2, 1, 0])
    for tau, passes in ((torch.inf, 2), (0.0, 4)):
        o.gate.tau.fill_(tau)
        out = o(data)
        assert o.encoder.out_norm.num_batches_tracked == passes
    assert out.stats["corrected"][0] > 0 and torch.isfinite(out.terms["aam"][0])


# (label, speed, cosines of the clean crop with some classes, the class it should get or None);
# class = 3 speed + speaker
CORRECTED = {
    3: [
        (
            0,
            0,
            {4: 0.9, 2: 0.4},
            2,
        ),  # the nearest class is another speaker at another speed; at its own speed the nearest is speaker 2
        (1, 2, {7: 0.9}, None),  # the rejected label again
        # the nearest class is its own speaker at another speed, which says nothing
        (2, 1, {2: 0.9, 3: 0.4}, 3),
        (0, 0, {8: 0.9, 1: 0.3, 2: 0.3}, None),  # not confident at its own speed
        (1, 1, {0: 0.9, 4: 0.4}, None),  # the rejected label, after a class of another speed
    ],
    1: [
        (0, 0, {2: 0.4}, 2),
        (1, 0, {1: 0.9}, None),
        (2, 0, {0: 0.5, 1: 0.5}, None),
        (0, 0, {1: 0.7, 0: 0.2}, 1),
    ],
}


@pytest.mark.parametrize("speeds", CORRECTED)
@pytest.mark.parametrize("faithful", [False, True])
def test_a_corrected_label_is_another_speaker_at_the_crops_own_speed(speeds, faithful):
    """All utterances are rejected.

    The centers are the axes, so the entries of an embedding are its cosines.
    """
    rows, classes = CORRECTED[speeds], 3 * speeds
    spec = {"name": "dlg", "start_epoch": 0.0, "label_correction_epoch": 0.0, "confidence": 0.6}
    o = margin_objective(
        num_speeds=speeds, gate=spec, scale=20.0, margin=0.2, match_released_code=faithful
    ).eval()
    o.gate.tau.fill_(-1.0)
    o.gate.loss = torch.full((len(rows),), torch.nan)
    o.head.weight = torch.nn.Parameter(torch.eye(classes, classes + len(rows)))
    clean = torch.zeros(len(rows), classes + len(rows))
    for i, (_, _, cosines, _) in enumerate(rows):
        for k, value in cosines.items():
            clean[i, k] = value
        clean[i, classes + i] = math.sqrt(
            1 - sum(v**2 for v in cosines.values())
        )  # the other classes, far from all centers
    main = unit(len(rows), classes + len(rows), seed=3).float()
    seen = {1: main, 2: clean}
    o.encode = lambda view, spec=None: seen[int(view[0][0, 0])][view[1]]
    data = batch(["main", "clean"], [r[0] for r in rows], speed=[r[1] for r in rows])
    number = torch.arange(len(rows))
    data.views = {
        "main": (torch.full((len(rows), 1), 1.0), number),
        "clean": (torch.full((len(rows), 1), 2.0), number),
    }

    out = o(data)
    terms, same = [], 0
    for i, (label, speed, cosines, target) in enumerate(rows):
        old = 3 * speed + label
        again = max(range(3 * speed, 3 * speed + 3), key=lambda k: cosines.get(k, 0)) == old
        same += again
        if target is None and not (faithful and again):
            continue
        target = old if target is None else target
        cos = main[i, :classes].tolist()
        at = old if faithful else target  # the class that gets the margin
        cos[at] = math.cos(math.acos(cos[at]) + 0.2)
        terms.append(math.log(sum(math.exp(20 * v) for v in cos)) - 20 * cos[target])
    assert out.stats["corrected"][0] == len(terms) >= 2 and out.stats["corrected_same"][0] == same > 0
    total, weight = out.terms["aam"]
    assert total.item() == pytest.approx(sum(terms), rel=1e-5)
    assert weight == (len(rows) if faithful else len(terms))


def test_gate_may_see_the_loss_without_the_margin():
    o = margin_objective(
        gate={"name": "lgl", "start_epoch": 0.0}, scale=10.0, margin=0.3, gate_on_margin_loss=False
    ).eval()
    data = batch(["main"], [0, 2, 1, 0])
    cos = F.normalize(o.encoder(*data.views["main"])) @ F.normalize(o.head.weight).T
    o(data)
    want = F.cross_entropy(10 * cos, data.label, reduction="none")
    torch.testing.assert_close(o.gate.loss[data.index], want.detach())


def test_every_speed_of_a_speaker_is_a_class():
    o = margin_objective(num_speeds=3, scale=20.0, margin=0.0).eval()
    data = batch(["main"], [0, 2, 1, 0], speed=[0, 1, 2, 2])
    total, weight = o(data).terms["aam"]
    cos = F.normalize(o.encoder(*data.views["main"])) @ F.normalize(o.head.weight).T
    assert cos.shape == (4, 9)
    torch.testing.assert_close(total / weight, F.cross_entropy(20 * cos, torch.tensor([0, 5, 7, 6])))


def margin_objective(num_speeds=1, **fields):
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, ENCODER))
    info = RunInfo(4, 3, 10, 12, num_speeds)
    return cfg.build(cfg.validate(ObjectiveConfig, {"name": "aam", **fields}), encoder, info)


@pytest.mark.parametrize("sub_centers", [1, 3])
def test_centers_start_at_the_class_means(sub_centers):
    o = margin_objective(num_speeds=2, head_init="class_means", sub_centers=sub_centers)
    assert o.needs_initial_embeddings and not margin_objective().needs_initial_embeddings
    dim = o.head.weight.shape[1]
    x, label = 5 * torch.rand(40, 1) * unit(40, dim, seed=4).float(), torch.arange(40) % 3
    o.init_from_embeddings(x, label)
    rows = o.head.weight.detach().view(2, 3, sub_centers, dim)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2, 3, sub_centers))
    for k in range(3):
        mean = F.normalize(F.normalize(x)[label == k].mean(0), dim=0)
        if sub_centers == 1:
            torch.testing.assert_close(rows[:, k, 0], mean.expand(2, dim))
        else:
            assert (rows[:, k] @ mean > 0.99).all(), "near the mean"
            assert len(torch.unique(rows[:, k].flatten(0, 1), dim=0)) == 6, "and each another one"


def batch(views, label, speed=None):
    rows, none = torch.arange(len(label)), torch.full((len(label),), -1)
    wave = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (len(label), 8000)).astype(np.float32))
    views = {name: (wave, torch.full((len(label),), 8000)) for name in views}
    speed = torch.zeros_like(rows) if speed is None else torch.tensor(speed)
    return Batch(0, 0, rows, torch.zeros_like(rows), torch.tensor(label), none, none, speed, views)


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
    grouped = [id(p) for groups in o.optimizers().values() for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in o.parameters() if p.requires_grad)


def groups_of(objective: dict, encoder: dict = ENCODER) -> tuple:
    model = cfg.build(cfg.validate(ObjectiveConfig, objective),
                      cfg.build(cfg.validate(EncoderConfig, encoder)), RunInfo(8, 4, 2, 1))  # fmt: skip
    name_of = {id(p): n for n, p in model.named_parameters()}
    rates = {name_of[id(p)]: g["lr_scale"] for g in model.optimizers()["main"] for p in g["params"]}
    return model, rates


@pytest.mark.parametrize("name", ["aam", "supervised"])
def test_the_encoder_has_its_own_learning_rate(name):
    """Every trained parameter is in one group, and the encoder's group has its factor of optim.lr."""
    model, rates = groups_of({"name": name, "encoder_lr_scale": 0.25})
    assert rates.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(rate == (0.25 if n.startswith("encoder.") else 1.0) for n, rate in rates.items())


@pytest.mark.parametrize("learn", [True, False])
def test_the_temperature_is_learnt_only_where_it_is_asked_for(learn):
    adversarial = {"name": "contrastive", "learn_temperature": learn, "adversarial_weight": 3.0}
    model, rates = groups_of(adversarial)
    assert ("log_scale" in rates) == learn
    # those parameters have an optimizer of their own
    assert not any(n.startswith("discriminator") for n in rates)
    assert model.log_scale.exp().item() == pytest.approx(1 / model.config.temperature)


@pytest.mark.parametrize(
    "objective, words",
    [
        ({"name": "contrastive", "temperature": 0.005}, "greater than or equal to 0.01, got 0.005"),
        ({"name": "dialogue", "scale": 0.0}, "greater than 0, got 0.0"),
        ({"name": "dialogue", "scale": 1000.0}, "less than or equal to 100, got 1000.0"),
        ({"name": "ssrl", "queue_length": 0}, "'queue_length'.* greater than or equal to 1, got 0"),
    ],
)
def test_settings_that_would_prevent_learning_are_refused(objective, words):
    with pytest.raises(UserError, match=words):
        groups_of(objective)


@pytest.mark.parametrize("objective", ["aam", "supervised", "ssrl"])
def test_a_single_class_is_refused(objective):
    with pytest.raises(UserError, match="one speaker"):
        cfg.build(cfg.validate(ObjectiveConfig, {"name": objective}),
                  cfg.build(cfg.validate(EncoderConfig, ENCODER)), RunInfo(8, 1, 2, 1))  # fmt: skip


@pytest.mark.parametrize("objective", ["dialogue", "ssrl", "supervised", "gcl"])
def test_other_speeds_are_refused_where_a_speaker_is_one_voice(objective):
    with pytest.raises(UserError, match="speed_perturb makes new voices"):
        cfg.build(cfg.validate(ObjectiveConfig, {"name": objective}),
                  cfg.build(cfg.validate(EncoderConfig, ENCODER)), RunInfo(8, 4, 2, 1, num_speeds=3))  # fmt: skip
