"""Split a data directory into two with different speakers."""

import argparse
import random
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.commands.common import share, summary_line, whole
from pyspkv.data.datadir import DataDir, check_replaceable


def add_arguments(sub: argparse.ArgumentParser) -> None:
    size = sub.add_mutually_exclusive_group(required=True)
    size.add_argument("--num-speakers", type=whole, metavar="N", help="number of speakers for OUT")
    size.add_argument("--fraction", type=share, help="share of the speakers for OUT, rounded, at least one")
    sub.add_argument(
        "--seed",
        type=whole,
        default=0,
        help="seed of the draw; with the same seed, a smaller N draws a subset",
    )
    sub.add_argument("src")
    sub.add_argument("out", help="directory of the drawn speakers")
    sub.add_argument("rest", help="directory of all others")


def run(args: argparse.Namespace) -> None:
    data = DataDir.read(args.src, need_wav=False)
    names = sorted(set(data.spk))
    n = args.num_speakers
    if n is None:
        n = max(1, round(args.fraction * len(names)))
    if not 1 <= n < len(names):
        rule = f"cannot draw {n} of {len(names)} speakers"
        hint = f"give 1 to {len(names) - 1}" if len(names) > 1 else "both parts need a speaker"
        raise UserError(rule, file=f"{args.src}/utt2spk", hint=hint)
    folders = [Path(args.src), Path(args.out), Path(args.rest)]
    if len({f.resolve() for f in folders}) < 3:
        raise UserError("SRC, OUT and REST must be three folders", file=args.out, hint="choose other names")
    for folder in folders[1:]:
        check_replaceable(folder)
    random.Random(args.seed).shuffle(names)
    drawn = set(names[:n])
    for folder, inside in ((folders[2], False), (folders[1], True)):
        part = data.subset(u for u, s in zip(data.utts, data.spk) if (s in drawn) == inside)
        part.write(folder, own=True)
        print(f"{folder}: {summary_line(part)}")
