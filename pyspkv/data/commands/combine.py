"""Combine data directories into one."""

import argparse
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.commands.common import summary_line
from pyspkv.data.datadir import DataDir, combine


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--extra-files", default="", metavar="'F1 F2'", help="further files that every source must have"
    )
    sub.add_argument(
        "--skip-fix", default="false", help="accepted for Kaldi's scripts; the result never needs to be fixed"
    )
    sub.add_argument("dst")
    sub.add_argument("src", nargs="+")


def run(args: argparse.Namespace) -> None:
    if Path(args.dst).resolve() in [Path(s).resolve() for s in args.src]:
        raise UserError(
            "the destination is one of the sources", file=args.dst, hint="choose another destination"
        )
    sources = [DataDir.read(s, need_wav=False) for s in args.src]
    data, left_out = combine(args.dst, sources, args.extra_files.split())
    for name in sorted(left_out):
        print(f"{args.dst}: dropped {name}, which some source does not have")
    data.write(args.dst, own=True)
    print(f"{args.dst}: {summary_line(data)}")
