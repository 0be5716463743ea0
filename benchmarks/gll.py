"""Cost of gated label learning against supervised training on the same number of augmented rows: milliseconds
a step.

export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296   # as steps/train.sh
OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/gll.py [--labeled 100] [--unlabeled 100] [--channels 128]
"""

import argparse
import statistics
import time

import torch

from pyspkv.base import config as cfg
from pyspkv.batches.dataset import Batch
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.base import RunInfo
from pyspkv.objectives.registry import ObjectiveConfig


def build(args, spec: dict):
    torch.manual_seed(0)
    encoder = cfg.validate(
        EncoderConfig,
        {"name": "ecapa", "channels": args.channels, "mfa_channels": 3 * args.channels, "se_channels": 64},
    )
    spec = {"crop_seconds": args.seconds, **spec}
    info = RunInfo(10_000, 24, 100, 10, num_labeled=1000)
    o = cfg.build(cfg.validate(ObjectiveConfig, spec), cfg.build(encoder), info)
    return o.train(), torch.optim.Adam(o.optimizers()["main"], lr=1e-4)


def batch(o, labeled: int, unlabeled: int) -> Batch:
    size = labeled + unlabeled
    source = (torch.arange(size) >= labeled).long()
    views = {
        n: (0.1 * torch.randn(size, v.samples), torch.full((size,), v.samples)) for n, v in o.views().items()
    }
    rows, none = torch.arange(size), torch.full((size,), -1)
    return Batch(0, 0, rows + 1000 * source, source, rows % 24, none, none, 0 * rows, views)


def step(o, optimizer, data: Batch) -> float:
    start = time.perf_counter()
    losses = o(data)
    optimizer.zero_grad(set_to_none=True)
    sum(total / weight for total, weight in losses.terms.values()).backward()
    optimizer.step()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--labeled", type=int, default=100)
    p.add_argument("--unlabeled", type=int, default=100)
    p.add_argument("--channels", type=int, default=128)
    p.add_argument("--seconds", type=float, default=0.9)
    p.add_argument("--turns", type=int, default=5)
    args = p.parse_args()
    num = args.labeled, args.unlabeled
    systems = {
        "supervised": build(args, {"name": "aam"}),
        "gll": build(args, {"name": "gll", "gate": {"name": "flexible"}}),
    }
    times: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(args.turns + 1):  # alternate, so that the machine's load affects both in the same way
        for name, (o, optimizer) in systems.items():
            ms = step(o, optimizer, batch(o, *num))
            if turn:
                times[name].append(ms)
    supervised, gll = (statistics.median(times[name]) for name in systems)
    print(
        f"{num[0]} labeled + {num[1]} unlabeled rows, ECAPA-{args.channels}, {args.seconds} s: supervised on "
        f"{sum(num)} strong rows {supervised:.0f} ms, GLL {gll:.0f} ms, {gll / supervised:.2f} x"
    )


if __name__ == "__main__":
    main()
