"""Batch normalization over several processes: the rows of all of them, as one process would have them."""

import numpy as np
import pytest
import ranks
import torch
import torch.distributed as dist
import yaml
from test_trainer import CONFIG

from pyspkv.base import config as cfg
from pyspkv.models.norm import BatchNorm, frozen_statistics, merged
from pyspkv.models.registry import EncoderConfig

C = 5


def joined(rows: list[int], offset: float, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and gradient of all ranks together, [N, C] each; the last channel is the same number everywhere."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(rows), C, generator=generator, dtype=torch.float64) + offset
    x[:, -1] = offset
    return x.to(kind), torch.randn(sum(rows), C, generator=generator, dtype=torch.float64).to(kind)


def layer(kind: torch.dtype) -> BatchNorm:
    norm = BatchNorm(C).to(kind)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, C))
        norm.bias.copy_(torch.linspace(-1, 1, C))
    return norm.train()


def passed(norm: BatchNorm, x: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(grad)
    return {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
            "mean": norm.running_mean, "var": norm.running_var}  # fmt: skip


def share(rows: list[int], offset: float, kind: torch.dtype) -> dict[str, np.ndarray]:
    own = slice(sum(rows[: dist.get_rank()]), sum(rows[: dist.get_rank() + 1]))
    found = passed(layer(kind), *(whole[own] for whole in joined(rows, offset, kind)))
    return {k: v.numpy() for k, v in found.items()}


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [[6, 6], [1, 9, 4], [7, 2]], ids=str)
def test_ranks_normalize_as_one_process_does(rows, kind):
    found = ranks.run(len(rows), share, rows, 0.25, kind)
    wanted = passed(layer(kind), *joined(rows, 0.25, kind))
    near = {"atol": 1e-6, "rtol": 1e-6} if kind == torch.float32 else {"atol": 1e-12, "rtol": 1e-12}
    for name in ("y", "x"):
        np.testing.assert_allclose(np.concatenate([f[name] for f in found]), wanted[name].numpy(), **near)
    for name in ("weight", "bias"):  # DDP adds the ranks' shares up
        np.testing.assert_allclose(sum(f[name] for f in found), wanted[name].numpy(), atol=10 * near["atol"])
    for name in ("mean", "var"):
        np.testing.assert_allclose(found[0][name], wanted[name].numpy(), **near)
        assert all(np.array_equal(found[0][name], f[name]) for f in found)  # bit for bit on all ranks


def test_a_large_mean_cancels_nothing():
    """Values around 10^4 with a deviation of 1: sums of squares in float32 would leave nothing of the variance."""
    rows = [300, 211]
    found = ranks.run(2, share, rows, 1e4, torch.float32)
    x = joined(rows, 1e4, torch.float32)[0].double()
    variance = (found[0]["var"] - 0.9) / 0.1  # of a first step with momentum 0.1
    np.testing.assert_allclose(variance[:-1], x.var(0)[:-1].numpy(), rtol=1e-4)
    assert variance[-1] == pytest.approx(0, abs=1e-5)
    unit = (x - x.mean(0)) / x.var(0, correction=0).sqrt()
    y = np.concatenate([f["y"] for f in found])
    wanted = (unit * torch.linspace(0.5, 2, C) + torch.linspace(-1, 1, C)).numpy()
    np.testing.assert_allclose(y[:, :-1], wanted[:, :-1], atol=3e-3)  # a float32 near 10^4 has steps of 10^-3


def test_the_merging_is_exact_for_any_cut():
    """Against numpy's mean and variance of all rows, in float64."""
    x = np.random.default_rng(0).normal(1e4, 1, (50, 3))
    for cuts in ([25], [1, 2, 3], [10, 10, 50]):  # the last one leaves an empty part
        pieces = np.split(x, cuts)
        means = [p.mean(0) if len(p) else np.zeros(3) for p in pieces]
        parts = [[len(p), *m, *((p - m) ** 2).sum(0)] for p, m in zip(pieces, means)]
        count, mean, squares = merged(torch.from_numpy(np.array(parts)))
        assert count == 50
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-15)
        np.testing.assert_allclose(squares / count, x.var(0), rtol=1e-10)


def _frozen() -> list[float]:
    norm = layer(torch.float32)
    with frozen_statistics(norm):
        norm(torch.randn(4, C))
    return norm.running_mean.tolist() + norm.running_var.tolist()


def test_frozen_statistics_stay_in_every_rank():
    assert ranks.run(2, _frozen) == [[0.0] * C + [1.0] * C] * 2


def _calls() -> tuple[int, int, int]:
    """(layers, collective calls forward, calls backward) of the recipes' ECAPA."""
    encoder = cfg.build(cfg.validate(EncoderConfig, yaml.safe_load(CONFIG)["encoder"])).train()
    calls = []
    original = dist.all_reduce
    dist.all_reduce = lambda *a, **k: (calls.append(1), original(*a, **k))
    y = encoder(torch.randn(3, 8000), torch.full((3,), 8000))
    forward = len(calls)
    y.square().sum().backward()
    return sum(isinstance(m, BatchNorm) for m in encoder.modules()), forward, len(calls) - forward


def test_a_layer_calls_the_other_ranks_once_forward_and_once_backward():
    assert ranks.run(2, _calls) == [(31, 31, 31)] * 2
