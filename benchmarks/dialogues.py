"""Time to draw batches from a log of the paper's size (927,000 dialogues) and to sessionize it, against a
training step.

OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/dialogues.py [--dialogues 927000] [--batch 256] [--devices 300000]
"""

import argparse
import resource
import time

import numpy as np
import torch

from pyspkv.base import config as cfg
from pyspkv.batches.dataset import Batch
from pyspkv.batches.sampler import SamplerConfig
from pyspkv.dialogue.sessionize import sessionize
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.base import RunInfo
from pyspkv.objectives.registry import ObjectiveConfig


def step_seconds(num: int) -> float:
    """Seconds of an optimizer step of ECAPA-512 on `num` dialogues with two crops of 2 s; median of three."""
    encoder = cfg.build(cfg.validate(EncoderConfig, {"name": "ecapa"}))
    o = cfg.build(
        cfg.validate(ObjectiveConfig, {"name": "dialogue"}), encoder, RunInfo(100, 3, 10, 10)
    ).train()
    group = torch.arange(num).repeat_interleave(2)
    wave, lengths = 0.1 * torch.randn(2 * num, 32000), torch.full((2 * num,), 32000)
    columns = [torch.arange(2 * num), 0 * group, group, group, group, 0 * group]
    batch = Batch(0, 0, *columns, views={"main": (wave, lengths)})
    optimizer = torch.optim.Adam(o.parameters())
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        optimizer.zero_grad()
        total, weight = o(batch).terms["ava"]
        (total / weight).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[1]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dialogues", type=int, default=927_000)
    p.add_argument("--devices", type=int, default=300_000)
    p.add_argument("--batch", type=int, default=256, help="dialogues in a batch")
    p.add_argument(
        "--step",
        type=int,
        default=16,
        help="number of dialogues in the training step that is timed (0: none)",
    )
    args = p.parse_args()
    rng = np.random.default_rng(0)
    size = rng.integers(2, 6, args.dialogues)
    group = np.repeat(np.arange(args.dialogues), size)
    device = np.repeat(rng.integers(args.devices, size=args.dialogues), size)
    columns = {"group": group, "device": device, "source": np.zeros(len(group), np.int64)}
    start = time.perf_counter()
    sampler = cfg.build(cfg.validate(SamplerConfig, {"name": "dialogues"}), group, 2 * args.batch, 0, columns)
    built = time.perf_counter() - start
    start = time.perf_counter()
    rows = sampler.epoch(1)
    drawn = time.perf_counter() - start
    print(
        f"{args.dialogues} dialogues, {len(group)} utterances, {args.devices} devices: {len(rows)} batches of "
        f"{args.batch} dialogues; set up {built:.1f} s, an epoch {drawn:.1f} s = {1e3 * drawn / len(rows):.2f} ms a "
        f"batch; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at the peak"
    )
    if args.step:
        seconds = step_seconds(args.step)
        whole = seconds * args.batch / args.step
        print(
            f"one step of ECAPA-512 on {args.step} dialogues: {seconds:.1f} s, so about {whole:.0f} s on {args.batch}; "
            f"drawing is {100 * drawn / len(rows) / whole:.4f} % of it"
        )
    turns = 100_000
    time_ = np.sort(rng.uniform(0, 3e7, turns))
    names = [f"d{k}" for k in rng.integers(turns // 50, size=turns)]
    start = time.perf_counter()
    sessionize(names, time_, np.full(turns, 2.0))
    print(f"sessionize {turns} turns: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
