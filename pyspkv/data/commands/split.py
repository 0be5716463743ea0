"""Split a data directory into parts."""

import argparse

from pyspkv.data.commands.common import whole
from pyspkv.data.datadir import DataDir


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--per-utt", action="store_true", help="split by utterances, into DIR/split<N>utt")
    sub.add_argument("dir")
    sub.add_argument("n", type=whole)


def run(args: argparse.Namespace) -> None:
    folder = DataDir.read(args.dir, need_wav=False).write_split(args.n, per_utt=args.per_utt)
    print(f"{folder}: {args.n} parts")
