"""Gated label learning and its baselines (GLL, IJCAI 2024).

Invariants of the gates, equation 5 by hand, losses against independent computations, independence of the
truth, runs that are killed.
"""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_trainer import ENV, epochs, train_command
from torch.nn import functional as F

from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.batches.augment import Profile
from pyspkv.batches.dataset import Batch, Batches, TrainingRows, View
from pyspkv.bin import gate_curves, seeded_cluster, train
from pyspkv.clustering.pipeline import propagate
from pyspkv.clustering.vectors import l2_normalize
from pyspkv.data.ark import EmbeddingWriter
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import read_table
from pyspkv.models.norm import frozen_statistics
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.aam import margin_logits
from pyspkv.objectives.base import RunInfo
from pyspkv.objectives.confidence_gates import ConfidenceGateConfig
from pyspkv.objectives.contrastive import reverse_gradient
from pyspkv.objectives.registry import ObjectiveConfig
from pyspkv.objectives.semi_supervised import contrast
from pyspkv.report.gate_curves import curves, selection
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
K, FEW, MANY = 4, 6, 10  # numbers of classes, labeled and unlabeled rows


def objective(name="gll", **fields):
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, ENCODER))
    spec = {"name": name, "crop_seconds": 0.3, **fields}
    info = RunInfo(FEW + MANY, K, 5, 10, num_labeled=FEW)
    return cfg.build(cfg.validate(ObjectiveConfig, spec), encoder, info).train()


def batch(o, few=FEW, many=MANY, seed=1):
    """A batch of `few` labeled and `many` unlabeled rows, alternating; unlabeled rows carry pseudo-labels."""
    g = torch.Generator().manual_seed(seed)
    index = torch.cat([torch.arange(few), FEW + torch.arange(many)])
    index = index[torch.randperm(len(index), generator=g)]
    views = {
        n: (0.1 * torch.randn(len(index), v.samples, generator=g), torch.full((len(index),), v.samples))
        for n, v in o.views().items()
    }
    none = torch.full_like(index, -1)
    return Batch(0, 0, index, (index >= FEW).long(), index % K, none, none, 0 * index, views)


def gate(name, num_classes=K, **fields):
    spec = cfg.validate(ConfidenceGateConfig, {"name": name, **fields})
    return cfg.build(spec, num_classes, FEW + MANY, FEW).train()


def total(losses):
    return sum(value / weight for value, weight in losses.terms.values())


def gradients(o, data):
    o.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    total(o(data)).backward()
    return {n: p.grad.clone() for n, p in o.named_parameters() if p.grad is not None}


def cosines(o, view, rows, encoder=None, head=None):
    """Cosines with the class centers in evaluation mode, written out."""
    z = (encoder or o.encoder)(view[0][rows], view[1][rows])
    return F.normalize(z) @ F.normalize((head or o.head).weight).T


probabilities = st.lists(
    st.lists(st.floats(0, 5, width=32), min_size=K, max_size=K), min_size=1, max_size=MANY
).map(lambda rows: torch.tensor(rows).softmax(1))


# ---- gates -------------------------------------------------------------------------------------------------
@settings(max_examples=50, deadline=None)
@given(probabilities)
def test_t_lets_everything_through_and_v_the_agreeing(q):
    label, index = torch.arange(len(q)) % K, FEW + torch.arange(len(q))
    t, v = gate("all"), gate("verification")
    assert (t(index, q, label) == 1).all() and t.threshold == 1 / K
    assert torch.equal(v(index, q, label).bool(), q.argmax(1) == label)
    assert torch.equal(t.kept[index], torch.ones(len(q))) and t.kept[:FEW].isnan().all()


def test_stage_t_has_quantity_one_for_any_weights():
    o = objective(gate={"name": "all"})
    for weights in (lambda p: p, torch.zeros_like, torch.randn_like):
        with torch.no_grad():
            for p in o.head.parameters():
                p.copy_(weights(p))
        kept, size = o(batch(o)).stats["kept"]
        assert kept == size == MANY
        assert o.end_epoch(0) == {"gate/threshold": 1 / K}


def test_l_below_one_over_k_equals_t():
    losses = []
    for name in ("all", "flexible"):
        o = objective(gate={"name": name})
        if name == "flexible":
            o.gate.tau.fill_(1 / K - 1e-3)
        losses.append(gradients(o, batch(o)))
    assert losses[0].keys() == losses[1].keys()
    for n in losses[0]:
        torch.testing.assert_close(losses[0][n], losses[1][n], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("indicator", 0.5 * 0.3 + 0.5 * (0.5 + 0.0 + 0.0) / 3),
        ("mean_all", 0.5 * 0.3 + 0.5 * (0.5 + 0.3 + 0.28) / 3),
    ],
)
def test_equation_5_by_hand(mode, want):
    """q_max = 0.5, 0.3, 0.28 with tau = 0.3: one is strictly above; the divisor is the batch size; mask
    first, then update tau.
    """
    g = gate("flexible", mode=mode)
    assert g.tau == 1 / K
    g.tau.fill_(0.3)
    q = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.3, 0.25, 0.25, 0.2], [0.24, 0.24, 0.28, 0.24]])
    assert g(FEW + torch.arange(3), q, torch.zeros(3, dtype=torch.long)).tolist() == [1, 0, 0]
    assert g.tau.item() == pytest.approx(want, abs=1e-7)
    nobody = gate("flexible", momentum=0.9, mode=mode)
    nobody.tau.fill_(0.9)
    nobody(FEW + torch.arange(3), q, torch.zeros(3, dtype=torch.long))
    assert nobody.tau.item() == pytest.approx(0.81 + (0.1 * 0.36 if mode == "mean_all" else 0), abs=1e-6)


def test_tau_starts_anew_and_stays_over_epochs():
    g = gate("flexible")
    g(FEW + torch.arange(2), torch.full((2, K), 0.1) + 0.6 * torch.eye(K)[:2], torch.zeros(2).long())
    moved = g.tau.item()
    assert g.end_epoch(0) == {"gate/threshold": moved} and g.tau.item() == moved != 1 / K
    assert g.rows()["kept"][FEW : FEW + 2].tolist() == [1, 1] and g.kept.isnan().all()


def test_flexmatch_thresholds_by_hand():
    g = gate("flexmatch", threshold=0.8)
    q = torch.full((MANY, K), 0.05) + 0.8 * torch.eye(K)[torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])]
    q[9] = torch.tensor([0.2, 0.2, 0.4, 0.2])  # never confident
    index = FEW + torch.arange(MANY)
    assert (g(index, q, q.argmax(1)) == 1).all(), "nobody was sure before, so nothing is asked"
    assert g.sure[FEW:].tolist() == [0] * 6 + [1] * 3 + [-1] and (g.sure[:FEW] == -1).all()
    want = torch.tensor([0.8, 0.8 * 0.5 / 1.5, 0, 0])  # sigma is 6, 3, 0, 0 of at most 6
    torch.testing.assert_close(g.thresholds(), want)
    q[7] = torch.tensor([0.26, 0.27, 0.26, 0.21])  # above the threshold of class 1, 0.2667
    q[0] = torch.tensor([0.7, 0.1, 0.1, 0.1])  # below the threshold of class 0, 0.8
    assert g(index, q, q.argmax(1)).tolist() == [0] + [1] * 9
    assert g.sure[FEW] == 0, "the last sure prediction counts"


def test_flexmatch_that_is_never_sure_lets_everything_through():
    o = objective(target="prediction", gate={"name": "flexmatch", "threshold": 0.9})
    for _ in range(2):
        kept, size = o(batch(o)).stats["kept"]
        assert kept == size
    assert (o.gate.sure == -1).all()


# ---- the objective ----------------------------------------------------------------------------------------
def test_loss_is_equations_6_to_8_spelt_out():
    o = objective(gate={"name": "verification"}, unlabeled_weight=0.7).eval()
    data = batch(o)
    l, u = (torch.nonzero(data.source == s)[:, 0] for s in (0, 1))
    q = cosines(o, data.views["weak"], u).softmax(1)
    label = data.label[u]
    ce = [
        F.cross_entropy(30 * margin_logits(c, y, 0.2), y, reduction="none")
        for c, y in (
            (cosines(o, data.views["weak"], l), data.label[l]),
            (cosines(o, data.views["strong"], l), data.label[l]),
            (cosines(o, data.views["strong"], u), label),
        )
    ]
    mask = (q.argmax(1) == label).float()
    assert 0 < mask.sum() < MANY
    want = torch.cat(ce[:2]).mean() + 0.7 * (mask * ce[2]).sum() / MANY
    torch.testing.assert_close(total(o(data)), want)


def test_fixmatch_at_0_9_of_unscaled_cosines_is_supervised_only():
    o = objective(target="prediction", gate={"name": "fixed", "threshold": 0.9})
    data = batch(o)
    value, _ = o(data).terms["unlabeled"]
    assert value.item() == 0
    none = objective(target="prediction", gate={"name": "fixed", "threshold": 0.9}, unlabeled_weight=0.0)
    a, b = (
        gradients(objective(target="prediction", gate={"name": "fixed", "threshold": 0.9}), data),
        gradients(none, data),
    )
    for n in a:
        torch.testing.assert_close(a[n], b[n], atol=0, rtol=0)


def test_masking_everything_out_leaves_zero_and_finite_gradients():
    o = objective(gate={"name": "fixed", "threshold": 1.1})
    assert o(batch(o)).terms["unlabeled"][0] == 0
    assert all(g.isfinite().all() for g in gradients(o, batch(o)).values())


def test_lambda_zero_is_supervised_only_where_statistics_are_fixed():
    plain, o = objective("supervised"), objective(unlabeled_weight=0.0)
    for x in (plain, o):
        x.encoder.eval()
    few = batch(plain)
    keep = few.source == 0
    columns = {c: getattr(few, c)[keep] for c in ("index", "source", "label", "group", "device", "speed")}
    views = {n: (w[keep], s[keep]) for n, (w, s) in few.views.items()}
    a, b = gradients(plain, Batch(0, 0, **columns, views=views)), gradients(o, few)
    assert a.keys() == b.keys()
    for n in a:
        torch.testing.assert_close(a[n], b[n])


def test_the_weak_pass_is_free_of_autograd_and_repeatable(monkeypatch):
    o = objective(gate={"name": "verification"})
    seen, encode = [], o.encode

    def spy(view, spec=None):
        z = encode(view, spec)
        seen.append((len(z), z.requires_grad))
        return z

    monkeypatch.setattr(o, "encode", spy)
    first = o(batch(o))
    assert seen == [(2 * FEW + MANY, True), (MANY, False)]
    kept = o.gate.kept.clone()
    assert first.stats["agreement"] == first.stats["kept"]
    assert 0 < kept.nansum() < MANY
    again = objective(gate={"name": "verification"})
    again(batch(again))
    torch.testing.assert_close(again.gate.kept, kept, equal_nan=True, atol=0, rtol=0)


def test_unlabeled_rows_without_a_known_speaker_are_refused():
    o = objective()
    data = batch(o)
    data.label[data.source == 1] = -1
    with pytest.raises(UserError, match="seeded_cluster"):
        o(data)
    own = objective(target="prediction", gate={"name": "fixed", "threshold": 0.0})
    kept, size = own(data).stats["kept"]
    assert kept == size


def test_reversed_gradient_is_minus_weight_times_the_discriminators():
    x = torch.randn(5, 3, requires_grad=True)
    y = reverse_gradient(x, 1.0)
    w = torch.randn(5, 3)
    assert torch.equal(y, x)
    (y * w).sum().backward()
    assert torch.equal(x.grad, -w)
    x.grad = None
    (reverse_gradient(x, 3.0) * w).sum().backward()
    torch.testing.assert_close(x.grad, -3 * w)


# ---- stage I: AAT ------------------------------------------------------------------------------------------
def test_aat_has_its_own_optimizer_and_pulls_the_encoder_the_other_way():
    o = objective("contrastive", adversarial_weight=3.0)
    groups = o.optimizers()
    own = {id(p) for p in o.discriminator.parameters()}
    assert {id(p) for g in groups["discriminator"] for p in g["params"]} == own
    assert not own & {id(p) for g in groups["main"] for p in g["params"]}
    assert groups["discriminator"][0]["lr"] == 1e-3 and groups["discriminator"][0]["fixed_lr"]
    z = torch.randn(3 * 5, 8, requires_grad=True)
    loss, right = o.tell_apart(z)
    a, b, like = z.detach().clone().chunk(3)
    pairs = torch.cat([torch.cat([a, like], 1), torch.cat([a, b], 1)]).requires_grad_()
    layers = o.discriminator.layers
    want = F.cross_entropy(layers(pairs), torch.tensor([1] * 5 + [0] * 5), reduction="none")
    torch.testing.assert_close(loss, want)
    loss.sum().backward()
    want.sum().backward()
    g = pairs.grad
    torch.testing.assert_close(z.grad, -3 * torch.cat([g[:5, :8] + g[5:, :8], g[5:, 8:], g[:5, 8:]]))
    losses = o(batch(o))
    assert losses.terms["adversarial"][1] == 2 * (FEW + MANY) and len(right) == 10
    assert objective("contrastive").optimizers().keys() == {"main"}


def test_aats_third_view_has_the_seconds_crop_and_the_firsts_augmentation(tmp_path):
    data = toy.make(tmp_path, speakers=2, utts=2)
    draws = iter(range(100))
    augmenter = SimpleNamespace(
        config=SimpleNamespace(speed_perturb=()),
        draw_speed=lambda rng: 0,
        draw=lambda rng, speed: Profile(kind="noise", snr=float(next(draws))),
    )
    o = objective("contrastive", adversarial_weight=3.0)
    for row in range(4):
        found = Batches(TrainingRows(data), o.views(), augmenter, 0).crops(row, np.random.default_rng(row), 0)
        (a, of_a), (b, of_b), (b_like_a, of_b_like_a) = (found[name] for name in ("a", "b", "b_like_a"))
        assert of_b_like_a == of_a != of_b
        np.testing.assert_array_equal(b_like_a, b)
        assert (a != b).any()


def test_crops_kept_apart_stay_so_at_every_speed(tmp_path, monkeypatch):
    """At speed 1.1 a crop of 0.3 s takes 0.33 s of the file, and so does the other crop."""
    corpus = TrainingRows(toy.make(tmp_path, speakers=1, utts=1, seconds=0.662))
    augmenter = SimpleNamespace(
        config=SimpleNamespace(speed_perturb=(1.1,)), draw=lambda rng, speed: Profile(speed)
    )
    batches = Batches(corpus, objective("contrastive").views(), augmenter, 0)
    taken, read = [], corpus.readers[0].read

    def spy(row, start, num, back=False):
        taken.append((start, start + num))
        return read(row, start, num, back)

    monkeypatch.setattr(corpus.readers[0], "read", spy)
    for seed in range(50):
        taken.clear()
        batches.crops(0, np.random.default_rng(seed), 0)
        (_, end), (start, _) = sorted(taken)
        assert end <= start


# ---- baselines ---------------------------------------------------------------------------------------------
def test_pseudo_label_by_hand():
    o = objective("pseudo_label", gate={"name": "fixed", "threshold": 0.6}).eval()
    o.epoch_now = 2.0  # of 10: halfway up the ramp
    data = batch(o)
    u = torch.nonzero(data.source == 1)[:, 0]
    cos = cosines(o, data.views["weak"], u)
    confidence, label = (30 * cos).softmax(1).max(1)
    o.gate.config = o.gate.config.model_copy(update={"threshold": confidence.median().item()})
    kept = (confidence >= o.gate.config.threshold).float()
    assert 0 < kept.sum() < MANY
    ce = F.cross_entropy(30 * margin_logits(cos, label, 0.2), label, reduction="none")
    value, weight = o(data).terms["unlabeled"]
    torch.testing.assert_close(value / weight, 0.5 * (kept * ce).mean())


def test_mean_teacher_by_hand():
    o = objective("mean_teacher").eval()
    with torch.no_grad():
        for p in (*o.teacher.parameters(), *o.teacher_head.parameters()):
            p.add_(0.05 * torch.randn_like(p))
    o.epoch_now = 3.0
    data = batch(o)
    u = torch.nonzero(data.source == 1)[:, 0]
    teacher = (30 * cosines(o, data.views["weak"], u, o.teacher, o.teacher_head)).softmax(1)
    student = (30 * cosines(o, data.views["strong"], u)).softmax(1)
    value, weight = o(data).terms["unlabeled"]
    torch.testing.assert_close(value / weight, 50 * 0.75 * ((student - teacher) ** 2).mean())
    value.backward()
    assert all(p.grad is None for p in o.teacher.parameters()) and o.head.weight.grad.abs().sum() > 0


def test_mean_teachers_average():
    o = objective("mean_teacher")
    for step, momentum in ((0, 0.0), (3, 0.75), (49_999, 0.999)):
        o.before_step(step)
        with torch.no_grad():
            for p in (*o.encoder.parameters(), *o.head.parameters()):
                p.add_(1.0)
        before = [p.clone() for p in o.teacher.parameters()]
        o.after_step()
        for old, new, student in zip(before, o.teacher.parameters(), o.encoder.parameters()):
            torch.testing.assert_close(new, momentum * old + (1 - momentum) * student)
    o(batch(o))
    assert not o.teacher.training and o.encoder.training


def test_consistency_passes_leave_the_running_statistics():
    for name in ("mean_teacher", "pseudo_label", "cdvat"):
        mixed, few = objective(name), objective("supervised")
        mixed(batch(mixed))
        data = batch(few)
        keep = data.source == 0
        columns = {
            c: getattr(data, c)[keep] for c in ("index", "source", "label", "group", "device", "speed")
        }
        views = {n: (w[keep], s[keep]) for n, (w, s) in data.views.items()}
        few(Batch(0, 0, **columns, views=views))
        torch.testing.assert_close(mixed.encoder.out_norm.running_mean, few.encoder.out_norm.running_mean)
    norm = mixed.encoder.out_norm
    with frozen_statistics(mixed.encoder):
        before = norm.running_var.clone()
        y = norm(torch.randn(20, 8) * 3 + 1)
    assert torch.equal(norm.running_var, before) and norm.momentum == 0.1
    torch.testing.assert_close(y.mean(0), norm.bias.expand(8), atol=1e-5, rtol=0)


def test_cdvat_turns_the_embedding_more_than_chance(monkeypatch):
    torch.manual_seed(3)
    o = objective("cdvat", epsilon=0.02).eval()
    data = batch(o)
    u = torch.nonzero(data.source == 1)[:, 0]
    x, lengths = o.encoder.features(*(part[u] for part in data.views["weak"]))
    inputs, embed = [], o.encoder.embed
    monkeypatch.setattr(o.encoder, "embed", lambda f, n: inputs.append(f.detach()) or embed(f, n))
    value, weight = o(data).terms["unlabeled"]
    r = inputs[-1] - x
    norm = x.flatten(1).norm(dim=1)
    torch.testing.assert_close(r.flatten(1).norm(dim=1), 0.02 * norm, rtol=1e-3, atol=0)

    def distance(r):
        return 1 - F.cosine_similarity(embed(x, lengths), embed(x + r, lengths))

    torch.testing.assert_close(value / weight, distance(r).mean(), rtol=1e-3, atol=1e-7)
    for _ in range(5):
        noise = torch.randn_like(x)
        noise *= 0.02 * (norm / noise.flatten(1).norm(dim=1))[:, None, None]
        assert value / weight > 2 * distance(noise).mean()
    value.backward()
    assert all(p.grad.isfinite().all() for p in o.encoder.parameters() if p.grad is not None)


def test_gcl_loss_by_loops():
    g = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(8, 5, generator=g))
    group = torch.tensor([0, 0, 7, 9, 0, 0, 7, 9])
    found = contrast(unit, group, unit, group, 0, torch.tensor(4.0))
    for i in range(8):
        others = [j for j in range(8) if j != i]
        z = sum(math.exp(4 * unit[i] @ unit[j]) for j in others)
        positive = [j for j in others if group[j] == group[i]]
        want = -sum(math.log(math.exp(4 * unit[i] @ unit[j]) / z) for j in positive) / len(positive)
        assert found[i].item() == pytest.approx(want, rel=1e-5)
    o = objective("gcl")
    losses = o(batch(o))
    assert losses.terms["gcl"][1] == 2 * (FEW + MANY) and losses.terms["gcl"][0].isfinite()


# ---- runs --------------------------------------------------------------------------------------------------
CONFIG = """
encoder: {name: ecapa, channels: 16, mfa_channels: 24, embed_dim: 8, se_channels: 4, n_mels: 40}
objective: {name: gll, crop_seconds: 0.4}
sampler: {name: two_stream, labeled_batch_size: 4}
augment: {rir_bank: 0, babble_list: train, prob: 1.0}
batch_size: 12
precision: fp32
epochs: 3
log_every_steps: 2
save_every_steps: 2
num_workers: 0
"""


def config(tmp_path, **changes) -> TrainConfig:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return cfg.load(TrainConfig, path, [f"{k}={json.dumps(v)}" for k, v in changes.items()])


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Four speakers, one labeled utterance each, a quarter of the pseudo-labels wrong."""
    folder = tmp_path_factory.mktemp("split")
    data = toy.make(folder, utts=8)
    data.write_label_split(folder / "split", 1, seed=0)
    labeled, unlabeled = (DataDir.read(folder / "split" / n) for n in ("labeled", "unlabeled"))
    truth = dict(zip(data.utts, data.spk))
    names = sorted(set(data.spk))
    pseudo = [names[(names.index(truth[u]) + (i % 4 == 0)) % 4] for i, u in enumerate(unlabeled.utts)]
    unlabeled.with_speakers(pseudo).write(folder / "round1/data")
    return SimpleNamespace(
        folder=folder,
        labeled=labeled,
        plain=unlabeled,
        given=DataDir.read(folder / "round1/data"),
        truth=truth,
    )


TIMES = ("seconds", "utts_per_s", "data_wait")


def embeddings(folder, split, spread=0.5):
    """Embeddings of all utterances, each near a random direction of its speaker."""
    rng = np.random.default_rng(1)
    center = {s: rng.normal(size=8) for s in sorted(set(split.labeled.spk))}
    with EmbeddingWriter(folder) as write:
        for utt, spk in sorted(split.truth.items()):
            write(utt, center[spk] + spread * rng.normal(size=8))
    return folder / "embedding.scp"


def seeded(split, scp, folder, *options) -> dict:
    """Run bin.seeded_cluster into folder/round1; returns its report."""
    args = ["--embeddings", scp, "--labeled-data", split.labeled.path, "--unlabeled", split.plain.path]
    args += ["--out-data", folder / "round1/data", *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["seeded_cluster", *map(str, args)])
        seeded_cluster.main()
    return json.loads((folder / "round1/report.json").read_text())


def final(exp) -> dict:
    return load_file(checkpoint.latest(exp) / "model.safetensors")


def assert_same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], atol=0, rtol=0, equal_nan=True, msg=lambda m, k=k: f"{k}: {m}")


FLEXIBLE = {"objective.gate": {"name": "flexible"}}
FLEXMATCH = {"objective.gate": {"name": "flexmatch", "threshold": 0.3}, "objective.target": "prediction"}
MEAN_TEACHER = {"objective.name": "mean_teacher"}
AAT = {
    "objective": {"name": "contrastive", "crop_seconds": 0.4, "adversarial_weight": 3.0},
    "sampler": {"name": "shuffle"},
}


@pytest.mark.parametrize(
    "changes", [FLEXIBLE, FLEXMATCH, MEAN_TEACHER, AAT], ids=["flexible", "flexmatch", "mean_teacher", "aat"]
)
def test_a_killed_run_ends_with_the_same_digits(tmp_path, split, changes):
    c = config(tmp_path, **changes)
    more = (
        {} if changes is AAT else {"unlabeled": split.plain if "objective.name" in changes else split.given}
    )
    data = split.given if changes is AAT else split.labeled
    Trainer(c, data, tmp_path / "whole", **more).run()
    # before any checkpoint, within an epoch
    toy.killed_at([1, 4], lambda: Trainer(c, data, tmp_path / "killed", **more).run())
    assert_same(final(tmp_path / "killed"), final(tmp_path / "whole"))
    for file in sorted((tmp_path / "whole/rows").glob("*")):
        assert_same(load_file(file), load_file(tmp_path / "killed/rows" / file.name))


@pytest.mark.parametrize("changes", [FLEXIBLE, FLEXMATCH], ids=["flexible", "flexmatch"])
def test_two_processes_equal_one(tmp_path, split, changes):
    """Thresholds follow the confidences of all ranks, and FlexMatch counts the predictions of all ranks."""
    sgd = {"optim.name": "sgd", "optim.lr": 0.0005, "epochs": 2}  # Adam amplifies rounding errors
    c = config(tmp_path, **sgd, **changes)
    (tmp_path / "config.yaml").write_text(cfg.to_yaml(c))
    Trainer(c, split.labeled, tmp_path / "one", unlabeled=split.given).run()
    command = train_command(
        tmp_path, split.labeled, tmp_path / "two", "--unlabeled", str(split.given.path), nproc=2
    )
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for one, two in zip(epochs(tmp_path / "one"), epochs(tmp_path / "two")):
        for key in ("loss", "kept", "confidence", "gate/threshold"):
            assert two[key] == pytest.approx(one[key], rel=1e-3), key
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    for k in one:
        torch.testing.assert_close(
            one[k], two[k], atol=2e-4, rtol=1e-2, equal_nan=True, msg=lambda m, k=k: f"{k}: {m}"
        )


def test_permuting_the_truth_changes_nothing_but_the_logged_quality(tmp_path, split):
    """All steps from clustering on, with the true speakers and with other speakers as truth of the unlabeled
    part.
    """
    utts = split.plain.utts
    other = np.random.default_rng(0).permutation([split.truth[u] for u in utts]).tolist()
    scp = embeddings(tmp_path / "embed", split)
    found, reports = {}, {}
    for name, true in (("true", [split.truth[u] for u in utts]), ("permuted", other)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "truth").write_text("".join(f"{u} {s}\n" for u, s in zip(utts, true)))
        reports[name] = seeded(split, scp, folder, "--truth", folder / "truth")
        given = DataDir.read(folder / "round1/data")
        c = config(tmp_path, epochs=2, **FLEXIBLE)
        Trainer(c, split.labeled, folder / "L", unlabeled=given).run()
        found[name] = curves(folder / "L", given, dict(zip(utts, true)), None)
        for other_data in (given.subset(utts[1:]), given.with_speakers(given.spk[::-1])):
            with pytest.raises(UserError, match="other unlabeled utterances or labels"):
                curves(folder / "L", other_data, None, None)
    assert_same(final(tmp_path / "true/L"), final(tmp_path / "permuted/L"))
    logs = [(tmp_path / n / "L/train.jsonl").read_text().splitlines() for n in found]
    for a, b in zip(*logs):
        assert [(k, v) for k, v in json.loads(a).items() if k not in TIMES] == [
            (k, v) for k, v in json.loads(b).items() if k not in TIMES
        ]
    a, b = found["true"], found["permuted"]
    assert [e["quantity"] for e in a] == [e["quantity"] for e in b]
    assert a[0]["quality"] > 0.7 > b[0]["quality"]
    assert reports["true"]["diagnostics"] != reports["permuted"]["diagnostics"]
    assert {k: v for k, v in reports["true"].items() if k != "diagnostics"} == {
        k: v for k, v in reports["permuted"].items() if k != "diagnostics"
    }


def test_stages_start_from_the_weights_they_should(tmp_path, split):
    """C -> T: Stage I's encoder and a new classifier. T -> V: the best epoch of T and a new gate."""
    dev = toy.make(tmp_path / "dev", speakers=3, utts=4, seed=7)
    dev = dev.renamed(lambda utt, _: f"dev-{utt}", lambda spk: f"dev-{spk}")  # other speakers
    more = {"unlabeled": split.given, "dev": dev, "dev_trials": toy.trials(tmp_path / "dev", dev)}
    Trainer(config(tmp_path, **{**AAT, "epochs": 1}), split.given, tmp_path / "stage1").run()
    start = checkpoint.encoder_weights(checkpoint.resolve_model(tmp_path / "stage1"))
    t = Trainer(config(tmp_path), split.labeled, tmp_path / "T", init=str(tmp_path / "stage1"), **more)
    assert_same(t.objective.encoder.state_dict(), start)
    t.run()
    best = load_file(checkpoint.resolve_model(f"{tmp_path}/T@best") / "model.safetensors")
    c = config(tmp_path, **{"objective.gate": {"name": "verification"}})
    v = Trainer(c, split.labeled, tmp_path / "V", init=f"{tmp_path}/T@best", keep_head=True, **more)
    ours = v.objective.state_dict()
    assert_same(
        {k: x for k, x in ours.items() if "gate." not in k},
        {k: x for k, x in best.items() if "gate." not in k},
    )
    assert ours["gate.kept"].isnan().all()
    again = Trainer(
        config(tmp_path, seed=1), split.labeled, tmp_path / "T2", init=str(tmp_path / "stage1"), **more
    )
    assert_same(again.objective.encoder.state_dict(), start)
    assert (again.objective.head.weight != t.objective.head.weight).all()


def test_distil_learns_the_teachers_softened_probabilities(tmp_path, split):
    only = config(tmp_path, epochs=1, batch_size=4, objective={"name": "supervised", "crop_seconds": 0.4},
                  sampler={"name": "fixed_steps", "steps": 3})  # fmt: skip
    Trainer(only, split.labeled, tmp_path / "teacher").run()
    o = objective("distil", teacher=str(tmp_path / "teacher"), temperature=2.0).eval()
    assert_same(
        o.teacher.state_dict(), checkpoint.encoder_weights(checkpoint.resolve_model(tmp_path / "teacher"))
    )
    data = batch(o)
    u = torch.nonzero(data.source == 1)[:, 0]
    taught = cosines(o, data.views["weak"], u, o.teacher, o.teacher_head)
    p = (15 * taught).softmax(1)
    log_q = (15 * cosines(o, data.views["strong"], u)).log_softmax(1)
    value, weight = o(data).terms["unlabeled"]
    torch.testing.assert_close(value / weight, -(p * log_q).sum(1).mean())
    with pytest.raises(UserError, match="objective.teacher"):
        objective("distil")
    c = config(tmp_path, objective={"name": "distil", "teacher": str(tmp_path / "teacher")})
    Trainer(c, split.labeled, tmp_path / "student", unlabeled=split.given)
    assert Trainer(c, split.labeled, tmp_path / "student", unlabeled=split.given)._init_digest() == (
        checkpoint.digest(tmp_path / "teacher")
    )
    names = {spk: f"other-{spk}" for spk in split.labeled.spk}  # as many others
    others = split.labeled.with_speakers([names[spk] for spk in split.labeled.spk])
    with pytest.raises(UserError, match="was trained on other speakers"):
        Trainer(c, others, tmp_path / "student", unlabeled=split.given)


def test_speeds_are_refused_where_classes_are_speakers(tmp_path, split):
    with pytest.raises(UserError, match="speed_perturb"):
        Trainer(
            config(tmp_path, **{"augment.speed_perturb": [0.9, 1.1]}),
            split.labeled,
            tmp_path / "x",
            unlabeled=split.given,
        )


def test_dev_utterances_among_the_unlabeled_are_refused(tmp_path, split, monkeypatch):
    config(tmp_path)
    dev = split.plain.with_speakers(["x"] * len(split.plain.utts))
    dev.write(tmp_path / "dev")
    pairs = toy.trials(tmp_path, dev)
    args = [
        "--config",
        tmp_path / "config.yaml",
        "--data",
        split.labeled.path,
        "--unlabeled",
        split.plain.path,
    ]
    args += ["--dev", tmp_path / "dev", "--dev-trials", pairs, "--exp", tmp_path / "exp"]
    monkeypatch.setattr(sys, "argv", ["train", *map(str, args)])
    with pytest.raises(UserError, match="share 28 utterances"):
        train.main()


# ---- diagnostics -------------------------------------------------------------------------------------------
def test_quality_and_quantity_by_hand():
    nan = np.nan
    kept = np.array([1, 1, 0, 1, 0, nan])
    target, true = np.array([0, 1, 2, 3, 0, nan]), np.array([0, 1, 2, 0, 1, 1])
    corrupted = np.array([False, False, True, True, True, True])
    found = selection(kept, target, true, corrupted)
    want = {
        "quantity": 3 / 5,
        "quality": 2 / 3,
        "label_accuracy": 3 / 5,
        "corrupted_passed": 1 / 3,
        "others_passed": 1.0,
    }
    assert found == pytest.approx(want)
    assert math.isnan(selection(np.zeros(3), target[:3], true[:3])["quality"])


def test_view_of_one_crop(tmp_path):
    o = objective()
    assert o.views() == {"weak": View(0.3), "strong": View(0.3, augment=True, share_crop="weak")}


# ---- labels ------------------------------------------------------------------------------------------------
def test_split_draws_labels_and_hides_the_rest(tmp_path):
    data = toy.make(tmp_path, utts=6)
    drawn = {}
    for n in (1, 3):
        assert data.write_label_split(tmp_path / f"n{n}", n, seed=5) == (4 * n, 24 - 4 * n)
        labeled, unlabeled = (DataDir.read(tmp_path / f"n{n}" / k) for k in ("labeled", "unlabeled"))
        truth = read_table(tmp_path / f"n{n}/truth/unlabeled_utt2spk")
        assert sorted(labeled.utts + unlabeled.utts) == data.utts
        assert unlabeled.spk == unlabeled.utts, "no speaker is told"
        assert {**truth, **dict(zip(labeled.utts, labeled.spk))} == dict(zip(data.utts, data.spk))
        assert [labeled.spk.count(s) for s in sorted(set(data.spk))] == [n] * 4
        for file in (tmp_path / f"n{n}/unlabeled").iterdir():
            assert not set(file.read_text().split()) & set(data.spk)
        drawn[n] = set(labeled.utts)
    assert drawn[1] < drawn[3], "one seed draws nested parts"
    data.write_label_split(tmp_path / "other", 3, seed=6)
    assert set(DataDir.read(tmp_path / "other/labeled").utts) != drawn[3]
    for n in (0, 6):
        with pytest.raises(UserError, match="at least one"):
            data.write_label_split(tmp_path / "bad", n, seed=5)


def test_seeded_cluster_keeps_labeled_speakers_and_corrupts_what_it_is_told(tmp_path, split):
    scp = embeddings(tmp_path / "embed", split)
    report = seeded(split, scp, tmp_path)
    found = DataDir.read(tmp_path / "round1/data")
    assert found.utts == split.plain.utts and set(found.spk) <= set(split.labeled.spk)
    right = np.mean([split.truth[u] == s for u, s in zip(found.utts, found.spk)])
    assert right > 0.9 and report["num_labeled"] == 4 and "diagnostics" not in report
    seeded(split, scp, tmp_path / "all", "--with-labeled")
    everything = dict(zip((d := DataDir.read(tmp_path / "all/round1/data")).utts, d.spk))
    assert everything == {
        **dict(zip(found.utts, found.spk)),
        **dict(zip(split.labeled.utts, split.labeled.spk)),
    }
    seeded(split, scp, tmp_path / "noisy", "--label-noise", "0.3")
    corrupted = set((tmp_path / "noisy/round1/corrupted").read_text().split())
    changed = {
        u
        for u, a, b in zip(found.utts, found.spk, DataDir.read(tmp_path / "noisy/round1/data").spk)
        if a != b
    }
    assert corrupted == changed and len(changed) == round(0.3 * len(found.utts))
    assert seeded(split, scp, tmp_path / "white", "--whiten", 0.5)["whiten"] == 0.5
    white = DataDir.read(tmp_path / "white/round1/data").spk
    assert np.mean([split.truth[u] == s for u, s in zip(found.utts, white)]) > 0.8
    with pytest.raises(UserError, match="also in --labeled"):
        seeded(SimpleNamespace(labeled=split.labeled, plain=split.labeled), scp, tmp_path / "x")


def test_propagation_is_the_closed_form_of_label_spreading(tmp_path, split):
    rng = np.random.default_rng(2)
    truth = np.arange(60) % 3
    x = l2_normalize(rng.normal(size=(3, 6))[truth] + 0.8 * rng.normal(size=(60, 6)))
    seeds = np.arange(6)
    found = propagate(x, seeds, truth[seeds], 3, neighbors=7, alpha=0.9, iterations=500)
    cos = x @ x.T - 2 * np.eye(60)
    w = np.zeros((60, 60))
    for i in range(60):
        near = np.argsort(-cos[i])[:7]
        w[i, near] = np.maximum(cos[i, near], 0)
    w = np.maximum(w, w.T)
    d = np.diag(w.sum(1) ** -0.5)
    y = np.eye(60)[:, :6] @ np.eye(3)[truth[seeds]]
    want = np.linalg.solve(np.eye(60) - 0.9 * d @ w @ d, y).argmax(1)
    np.testing.assert_array_equal(found[6:], want[6:])
    wrong = (truth[seeds] + 1) % 3
    np.testing.assert_array_equal(propagate(x, seeds, wrong, 3)[seeds], wrong)
    seeded(
        split, embeddings(tmp_path / "embed", split), tmp_path, "--method", "propagation", "--neighbors", 5
    )
    spk = DataDir.read(tmp_path / "round1/data").spk
    assert np.mean([split.truth[u] == s for u, s in zip(split.plain.utts, spk)]) > 0.9


def test_curves_of_runs_in_a_row_and_of_systems_together(tmp_path, split, monkeypatch):
    """A small corruption test: T lets all changed labels through, V checks them.

    Only this plot reads the truth.
    """
    report = seeded(split, embeddings(tmp_path / "embed", split), tmp_path, "--label-noise", 0.3)
    assert report["num_clusters"] == 4
    given = DataDir.read(tmp_path / "round1/data")
    for name, changes in (("T", {}), ("V", {"objective.gate": {"name": "verification"}})):
        c = config(tmp_path, epochs=1, **changes)
        Trainer(c, split.labeled, tmp_path / "round1" / name, unlabeled=given).run()
    truth = tmp_path / "truth"
    truth.write_text("".join(f"{u} {split.truth[u]}\n" for u in split.plain.utts))
    out = tmp_path / "gates.json"

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["gate_curves", *map(str, args)])
        gate_curves.main()

    runs = [tmp_path / "round1/T", tmp_path / "round1/V"]
    call("--runs", *runs, "--unlabeled", given.path, "--truth", truth, "--corrupted", tmp_path / "round1/corrupted",
         "--out", out)  # fmt: skip
    t, v = json.loads(out.read_text())
    assert (t["run"], t["quantity"], t["corrupted_passed"], t["others_passed"]) == ("round1/T", 1, 1, 1)
    assert v["run"] == "round1/V" and v["quantity"] < 1
    logged = [json.loads(line) for line in (runs[1] / "train.jsonl").read_text().splitlines()]
    assert v["quantity"] == pytest.approx(next(r["kept"] for r in logged if r["kind"] == "epoch"), abs=0.05)
    call("--compare", f"a={out}", f"b={out}", "--out", tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 5000 and out.with_suffix(".png").exists()
    with pytest.raises(SystemExit):
        call("--runs", *runs, "--out", out)


def test_cdvat_turns_the_input_of_a_frozen_encoder():
    """The gradient of the distance reaches the features through frozen layers."""
    import test_wavlm

    for freeze in ("front", "trunk", "none"):
        encoder = test_wavlm.build(freeze=freeze, dropout=0.0, attention_dropout=0.0, layerdrop=0.0)
        feats, lengths = encoder.features(0.1 * torch.randn(2, 6000), torch.tensor([6000, 6000]))
        x = feats.detach().requires_grad_()
        (g,) = torch.autograd.grad(encoder.embed(x, lengths).square().sum(), x)
        assert g.abs().sum() > 0
