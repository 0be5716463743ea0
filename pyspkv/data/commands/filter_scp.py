"""Print the lines whose column is an id in a list."""

import argparse
import sys

from pyspkv.base.errors import UserError
from pyspkv.data.commands.common import whole


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--exclude", action="store_true", help="print the other lines")
    sub.add_argument("-f", dest="field", type=whole, default=1, help="column of the id, from 1")
    sub.add_argument("idlist")
    sub.add_argument("file", nargs="?", help="default: standard input")


def run(args: argparse.Namespace) -> None:
    """Filter lines as bytes, because the rest of a line may be in any encoding."""
    keep = set()
    with open(args.idlist, "rb") as f:
        for number, line in enumerate(f, 1):
            parts = line.removeprefix(b"\xef\xbb\xbf").split(None, 1)
            if not parts:
                raise UserError("empty line in the list of ids", file=args.idlist, line=number)
            keep.add(parts[0])
    at = args.field - 1
    with open(args.file, "rb") if args.file else sys.stdin.buffer as f:
        for number, line in enumerate(f, 1):
            parts = line.split(None, args.field)
            if at < 0 or len(parts) <= at:
                raise UserError(
                    f"the line has no column {args.field}", file=args.file or "stdin", line=number
                )
            if (parts[at] in keep) != args.exclude:
                sys.stdout.buffer.write(line)
