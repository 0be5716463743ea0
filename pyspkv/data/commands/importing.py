"""Shared by the from-* subcommands: options, the check of the audio, the list of dropped utterances,
writing."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.commands.common import positive, summary_line, whole
from pyspkv.data.datadir import DataDir, check_replaceable
from pyspkv.data.manifests import check, rows


def add_common(sub: argparse.ArgumentParser, *, root: bool = True) -> None:
    """Add the options of OUT; with `root` also the folder at which relative paths of the list start."""
    if root:
        sub.add_argument(
            "--root", metavar="DIR", help="folder that relative paths start from (default: the list's folder)"
        )
    sub.add_argument(
        "--check",
        choices=("audio", "headers", "none"),
        default="audio",
        help="audio: decode every file, to find damage and silence; headers: open every file; none: trust the list",
    )
    sub.add_argument("--min-seconds", type=positive, default=0.1, help="drop utterances shorter than this")
    sub.add_argument(
        "--strict", action="store_true", help="make it an error if an utterance would be dropped"
    )
    sub.add_argument(
        "--skipped", metavar="FILE", help="file that lists what was dropped (default: OUT.skipped)"
    )
    sub.add_argument("--nj", type=whole, default=1, help="number of processes that read audio")
    sub.add_argument(
        "--allow-pipes", action="store_true", help="accept and run entries that are commands (`... |`)"
    )


def make(args: argparse.Namespace, file: Path, read: Callable[[rows.Skipped], Iterable[rows.Row]]) -> DataDir:
    """Read rows, check the audio, write OUT and print a summary of what it holds and what was left out.

    Raises UserError when nothing is usable, or with --strict when anything would be dropped.
    """
    out = Path(args.out)
    check_replaceable(out)
    skipped = rows.Skipped([])
    listed = list(read(skipped))
    data = rows.to_data_dir(out, listed, file, skipped, allow_pipes=args.allow_pipes)
    data = check.check(
        data, args.check, skipped, min_seconds=args.min_seconds, nj=args.nj, allow_pipes=args.allow_pipes
    )
    names = Path(args.skipped or f"{out.resolve()}.skipped")
    if skipped.items:
        skipped.write(names)
        skipped.report(names)
    if skipped.items and args.strict:
        rule = f"{len(skipped.items)} entries cannot be used, and --strict is given; no data directory was written"
        raise UserError(rule, file=file, hint=f"see {names}")
    rows.write(data, out)
    if not skipped.items and not args.skipped:
        names.unlink(missing_ok=True)  # left by an earlier run
    say(data, out)
    return data


def say(data: DataDir, out: Path) -> None:
    """Print what the new directory holds, and for how many utterances the speakers are unknown."""
    known = sum(u != s for u, s in zip(data.utts, data.spk))
    print(f"{out}: {summary_line(data)}")
    if not known:
        print("no speaker is known: each utterance gets a speaker of its own")
    elif known < len(data.utts):
        print(
            f"the speakers of {len(data.utts) - known} utterances are unknown: each of these gets a speaker of its own"
        )
