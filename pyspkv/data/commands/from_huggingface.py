"""A Hugging Face data set on disk (save_to_disk) becomes a data directory; audio inside it is written to
files."""

import argparse
import os
import shutil
from pathlib import Path

from pyspkv.base.atomic import atomic_dir, command_line
from pyspkv.base.errors import UserError
from pyspkv.data.commands import importing
from pyspkv.data.datadir import check_replaceable
from pyspkv.data.manifests import arrow


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--audio-column", default="audio", metavar="NAME")
    sub.add_argument("--speaker-column", default="speaker_id", metavar="NAME", help="optional column")
    sub.add_argument("--utt-column", default="id", metavar="NAME", help="optional column")
    sub.add_argument("--session-column", default="", metavar="NAME", help="optional column")
    sub.add_argument(
        "--audio-dir", metavar="DIR", help="a new folder for the audio files (default: OUT.audio)"
    )
    importing.add_common(sub, root=False)
    sub.add_argument("folder", help="folder that save_to_disk wrote, of one split")
    sub.add_argument("out")


def run(args: argparse.Namespace) -> None:
    folder, place = Path(args.folder), Path(os.path.abspath(args.audio_dir or f"{args.out}.audio"))
    check_replaceable(Path(args.out))
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        rule = "exists and is not empty; give another --audio-dir, or remove it"
        raise UserError(rule, file=place, hint=command_line("rm", "-r", place))
    written = False

    def read(skipped):
        nonlocal written
        columns = args.audio_column, args.speaker_column, args.utt_column, args.session_column
        with atomic_dir(place, own=True) as new:
            rows = list(arrow.rows(folder, *columns, new, place, skipped))
        written = True
        return rows

    try:
        importing.make(args, folder, read)
    except BaseException:
        if written:  # the audio is useless without its data directory
            shutil.rmtree(place, ignore_errors=True)
        raise
    if not any(place.iterdir()):  # the data set only named paths, so no audio was written
        place.rmdir()
