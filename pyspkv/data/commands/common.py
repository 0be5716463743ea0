"""Functions that several subcommands use."""

import argparse
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import plain_number, whole_number


def summary_line(data: DataDir) -> str:
    """A line with the numbers of utterances, speakers and, if known, recordings, dialogues and hours."""
    text = f"{len(data.utts)} utterances, {len(set(data.spk))} speakers"
    if data.segments is not None:
        text += f", {len(data.wav)} recordings"
    if "utt2dialogue" in data.utt_tables:
        text += f", {len(set(data.utt_tables['utt2dialogue'].values()))} dialogues"
    if "utt2dur" in data.utt_tables:
        text += f", {sum(map(float, data.utt_tables['utt2dur'].values())) / 3600:.2f} hours"
    return text


def write_new(data: DataDir, src: str, dst: str) -> None:
    """Write a directory made from `src` to `dst` and print a summary.

    UserError when both are the same folder.
    """
    if Path(src).resolve() == Path(dst).resolve():
        raise UserError(
            "source and destination are the same folder", file=dst, hint="choose another destination"
        )
    data.write(dst, own=True)
    print(f"{dst}: {summary_line(data)}")


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    if not 0 <= (share := plain_number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"a share lies from 0 to 1, not {text[:40]}")
    return share


def whole(text: str) -> int:
    """argparse type: a whole number from 0."""
    if (value := whole_number(text)) is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 0")
    return value


def positive(text: str) -> float:
    """argparse type: a number from 0."""
    if not (value := plain_number(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 0")
    return value
