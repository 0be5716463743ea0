"""A published list of pseudo-labels gives a data directory its speakers."""

import argparse
from pathlib import Path

from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError
from pyspkv.data.commands.common import write_new
from pyspkv.data.datadir import DataDir
from pyspkv.data.manifests.lines import text_lines
from pyspkv.data.published_names import end_of, match


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.epilog = (
        "A path names the utterance of that id, or the one whose path in wav.scp (or utt2path) has the same last three "
        "parts, whatever the ending. Every utterance of SRC needs a label; further lines are passed over."
    )
    sub.add_argument("list", help="`label path` or `path label` lines")
    sub.add_argument("src", help="data directory of the utterances")
    sub.add_argument("dst", help="data directory to write: SRC with the labels as speakers")


def run(args: argparse.Namespace) -> None:
    data = DataDir.read(args.src)
    labels, names = read(Path(args.list), data)
    rows = match(names, data, args.list)
    labeled = data.with_speakers([labels[row] for row in rows])
    if Path(args.dst, "utt2spk").exists():
        _check_same(labeled, args.dst)
        print(f"kept: {args.dst}")
        return
    write_new(labeled, args.src, args.dst)
    if others := len(names) - len(rows):
        print(f"{args.list}: {others} of {len(names)} lines are of no utterance in {args.src}")


def read(file: Path, data: DataDir) -> tuple[list[str], list[str]]:
    """(labels, names) of a list. The names are the column that names more utterances of `data`, or the second.

    UserError with the line: not two columns.
    """
    columns: tuple[list[str], list[str]] = ([], [])
    for number, line in text_lines(file):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2:
            raise UserError("the line must be `label path` or `path label`", file=file, line=number)
        for column, field in zip(columns, fields):
            column.append(field)
    if not columns[0]:
        raise UserError("contains no label", file=file, hint="give `label path` or `path label` lines")
    paths = data.utt_tables.get("utt2path") or data.wav
    known = {*data.utts, *map(end_of, paths.values())}
    first, second = (sum(name in known or end_of(name) in known for name in column) for column in columns)
    return (columns[1], columns[0]) if first > second else columns


def _check_same(labeled: DataDir, dst: str) -> None:
    """UserError: `dst` has other utterances or labels."""
    stands = DataDir.read(dst)
    if (stands.utts, stands.spk) != (labeled.utts, labeled.spk):
        hint = command_line("rm", "-r", Path(dst))
        raise UserError("has other labels than the list gives", file=dst, hint=hint)
