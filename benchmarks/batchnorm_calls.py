"""Time and collective calls of an ECAPA step over several processes: BatchNorm of another commit and ours.

    python -m pyspkv.bin.launch --nproc 2 benchmarks.batchnorm_calls [--old COMMIT] [--rounds N]

The two take turns, a step each, and the medians are printed. --old is a commit of this repository whose
pyspkv/models/norm.py is the other one; the default is the last one that called three times a layer.
"""

import argparse
import subprocess
import time
import types
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pyspkv.base import config as cfg
from pyspkv.base import distributed
from pyspkv.models import ecapa, norm, pooling
from pyspkv.models.registry import EncoderConfig

ENCODER = {"name": "ecapa", "channels": 64, "mfa_channels": 192, "embed_dim": 64, "se_channels": 32}
UTTS, SECONDS = 16, 2.0  # of each process's batch


def old_norm(commit: str) -> types.ModuleType:
    root = Path(__file__).resolve().parent.parent
    words = ["git", "-C", root, "show", f"{commit}:pyspkv/models/norm.py"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    module = types.ModuleType("old_norm")
    exec(compile(text, "old_norm", "exec"), module.__dict__)
    return module


def encoder(module: types.ModuleType) -> DistributedDataParallel:
    for user in (ecapa, pooling):
        user.BatchNorm = module.BatchNorm
    torch.manual_seed(0)
    built = cfg.build(cfg.validate(EncoderConfig, ENCODER)).to(distributed.init())
    return DistributedDataParallel(built.train(), broadcast_buffers=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", default="30ee106", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    args = parser.parse_args()
    device = distributed.init()
    models = {"old": encoder(old_norm(args.old)), "new": encoder(norm)}
    calls: list[int] = []
    original = dist.all_reduce
    dist.all_reduce = lambda *a, **k: (calls.append(1), original(*a, **k))[1]
    torch.manual_seed(distributed.rank())
    samples = round(16000 * SECONDS)
    wave, lengths = torch.randn(UTTS, samples, device=device), torch.full((UTTS,), samples, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    counted: dict[str, int] = {}
    for _ in range(args.rounds + 2):
        for name, model in models.items():
            calls.clear()
            distributed.barrier()
            start = time.perf_counter()
            loss = model(wave, lengths).square().mean()
            loss.backward()
            loss.item()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
            counted[name] = len(calls)
    if distributed.rank() == 0:
        for name, times in seconds.items():
            median = torch.tensor(times[2:]).median().item()
            low, high = min(times[2:]), max(times[2:])
            print(
                f"{name}: {counted[name]} calls, {1e3 * median:.0f} ms a step ({1e3 * low:.0f} to {1e3 * high:.0f})"
            )
    distributed.close()


if __name__ == "__main__":
    main()
