"""Costs of SSRL. `end`: the end of an epoch at VoxCeleb2 size, on synthetic losses and votes. `step`: a step
in which labels move, against a plain step (encoder and crops of egs/mini/ssrl; forward, backward, optimizer,
teacher).

OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/reflective.py [end|step] [--rows 1092009] [--classes 8000]
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch

from pyspkv.base import config as cfg
from pyspkv.batches.dataset import Batch
from pyspkv.models.registry import EncoderConfig
from pyspkv.objectives.base import RunInfo
from pyspkv.objectives.registry import ObjectiveConfig

CONF = Path(__file__).resolve().parents[1] / "egs/mini/ssrl/conf"


def end_of_epoch(args) -> None:
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, {"name": "ecapa", "channels": 16, "embed_dim": 256}))
    spec = {"name": "ssrl", "merge_ratio": 0.7, "split_ratio": 0.65, "min_cluster_size": 8}
    o = cfg.build(cfg.validate(ObjectiveConfig, spec), encoder, RunInfo(args.rows, args.classes, 2275, 105))
    label = torch.randint(args.classes * 9 // 10, (args.rows,))  # the other classes are empty
    o.label.copy_(label)
    o.side.copy_(torch.randint(2, (args.rows,)))
    o.seen.copy_(torch.bincount(2 * label + o.side, minlength=2 * args.classes).view(-1, 2))
    direction = torch.nn.functional.normalize(torch.randn(args.classes, 1, 256), dim=-1)
    for sums in (o.sums, o.whitened_sums):
        sums.copy_(0.8 * o.seen[..., None] * direction)
    o.whitened_sums[::50, 1] = 0.0  # the two halves of these classes disagree
    o.queue[:] = label[:, None]
    moved = torch.rand(args.rows) < 0.1
    o.vote.copy_(torch.where(moved, torch.randint(args.classes, (args.rows,)), label))
    clean, wrong = torch.randn(args.rows) - 4, 0.6 * torch.randn(args.rows) + 1
    o.loss.copy_(torch.where(torch.rand(args.rows) < 0.8, clean, wrong).exp())
    start = time.perf_counter()
    found = o.end_epoch(10)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{args.rows} utterances, {args.classes} classes: {seconds:.1f} s, {peak:.2f} GiB at the peak; {found}"
    )


def build(file: str):
    """(objective, optimizer, batch) for one of the recipe's configs, at a time when its labels move."""
    from pyspkv.train.config import TrainConfig

    torch.manual_seed(0)
    c = cfg.load(TrainConfig, CONF / file)
    o = cfg.build(c.objective, cfg.build(c.encoder), RunInfo(2000, 133, 15, c.epochs))
    rows = torch.arange(c.batch_size)
    o.init_from_embeddings(torch.randn(2000, o.encoder.embed_dim), torch.arange(2000) % 133)
    views = {
        n: (0.1 * torch.randn(len(rows), v.samples), torch.full((len(rows),), v.samples))
        for n, v in o.views().items()
    }
    none = torch.full_like(rows, -1)
    batch = Batch(20, 0, rows, 0 * rows, rows % 133, none, none, 0 * rows, views)
    o.train().before_step(20 * 15)
    return o, torch.optim.Adam(o.optimizers()["main"], lr=1e-4), batch


def step(o, optimizer, batch: Batch) -> float:
    start = time.perf_counter()
    losses = o(batch)
    optimizer.zero_grad(set_to_none=True)
    sum(total / weight for total, weight in losses.terms.values()).backward()
    optimizer.step()
    o.after_step()
    return time.perf_counter() - start


def steps(args) -> None:
    systems = {"plain": build("offline.yaml"), "labels move": build("round.yaml")}
    seconds = {name: [] for name in systems}
    for _ in range(args.turns + 1):
        for name, system in systems.items():
            seconds[name].append(step(*system))
    plain, moving = (statistics.median(s[1:]) for s in seconds.values())
    print(f"a step of 128: plain {plain:.2f} s, labels move {moving:.2f} s: {moving / plain:.2f} x")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="?", default="end", choices=("end", "step"))
    p.add_argument("--rows", type=int, default=1_092_009)
    p.add_argument("--classes", type=int, default=8000)
    p.add_argument("--turns", type=int, default=9)
    args = p.parse_args()
    {"end": end_of_epoch, "step": steps}[args.what](args)


if __name__ == "__main__":
    main()
