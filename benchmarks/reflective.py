"""SSRL's bookkeeping at VoxCeleb2 size: seconds and memory of one epoch's end, on synthetic losses and votes.

OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/reflective.py [--rows 1092009] [--classes 8000]
"""

import argparse
import resource
import time

import torch

from pyspkv import config as cfg
from pyspkv.objectives.objective import Info


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=1_092_009)
    p.add_argument("--classes", type=int, default=8000)
    args = p.parse_args()
    torch.manual_seed(0)
    encoder = cfg.build(
        "encoder", cfg.resolve("encoder", {"name": "ecapa", "channels": 16, "embed_dim": 256})
    )
    spec = {"name": "reflective", "merge": 0.7, "min_size": 8}
    o = cfg.build(
        "objective", cfg.resolve("objective", spec), encoder, Info(args.rows, args.classes, 2275, 105)
    )
    label = torch.randint(args.classes, (args.rows,))
    o.label.copy_(label)
    o.seen.copy_(torch.bincount(label, minlength=args.classes))
    o.sums.copy_(o.seen[:, None] * 0.8 * torch.nn.functional.normalize(torch.randn(args.classes, 256)))
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


if __name__ == "__main__":
    main()
