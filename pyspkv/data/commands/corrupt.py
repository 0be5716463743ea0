"""Label noise: give some utterances a wrong speaker on purpose."""

import argparse

from pyspkv.base.errors import UserError
from pyspkv.data.commands.common import share, whole, write_new
from pyspkv.data.datadir import DataDir


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--share", type=share, required=True, help="share of the utterances to relabel, from 0 to 1"
    )
    sub.add_argument("--seed", type=whole, default=0)
    sub.add_argument("--list", required=True, metavar="FILE", help="file for the ids of those utterances")
    sub.add_argument("src")
    sub.add_argument("dst")


def run(args: argparse.Namespace) -> None:
    import numpy as np

    from pyspkv.base.atomic import atomic_file
    from pyspkv.data.label_noise import corrupt_labels

    data = DataDir.read(args.src, need_wav=False)
    names = sorted(set(data.spk))
    if len(names) < 2:
        rule = "has one speaker; a wrong label needs another"
        raise UserError(rule, file=f"{args.src}/utt2spk", hint="give a directory with at least two speakers")
    found, rows = corrupt_labels(np.searchsorted(names, data.spk), args.share, len(names), args.seed)
    with atomic_file(args.list, own=True) as f:
        f.writelines(f"{data.utts[row]}\n" for row in rows)
    write_new(data.with_speakers([names[k] for k in found]), args.src, args.dst)
