"""Split a data directory into a few labelled utterances and many unlabelled ones."""

import argparse

from pyspkv.data.commands.common import whole
from pyspkv.data.datadir import DataDir


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--seed",
        type=whole,
        default=0,
        help="seed of the draw; with the same seed, a smaller N draws a subset",
    )
    sub.add_argument("dir")
    sub.add_argument("n", type=whole)
    sub.add_argument("out")


def run(args: argparse.Namespace) -> None:
    few, many = DataDir.read(args.dir).write_label_split(args.out, args.n, args.seed)
    print(f"{args.out}: {few} labeled and {many} unlabeled utterances")
