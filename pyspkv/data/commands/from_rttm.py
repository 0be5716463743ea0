"""Diarized recordings (RTTM: who speaks when) become a data directory with segments."""

import argparse
from pathlib import Path

from pyspkv.data.commands import importing
from pyspkv.data.manifests import rttm


def add_arguments(sub: argparse.ArgumentParser) -> None:
    where = sub.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--wav-dir", metavar="DIR", help="folder of the recordings, named as in the RTTM plus an ending"
    )
    where.add_argument("--wav-scp", metavar="FILE", help="`recording path` lines")
    sub.add_argument(
        "--same-speakers",
        action="store_true",
        help="a name means the same speaker in all recordings (default: each recording has its own speakers, "
        "because diarization numbers them separately)",
    )
    importing.add_common(sub, root=False)
    sub.set_defaults(min_seconds=0.5)
    sub.add_argument("rttm", nargs="+")
    sub.add_argument("out")


def run(args: argparse.Namespace) -> None:
    audio = rttm.recordings_in(Path(args.wav_dir)) if args.wav_dir else rttm.recordings_of(Path(args.wav_scp))
    files = [Path(f) for f in args.rttm]
    importing.make(args, files[0], lambda skipped: rttm.rows(files, audio, not args.same_speakers, skipped))
