"""Manifests of lhotse become a data directory; lhotse itself is not needed."""

import argparse
from pathlib import Path

from pyspkv.data.commands import importing
from pyspkv.data.manifests import lhotse


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--recordings", metavar="FILE", help="recordings, .jsonl or .jsonl.gz")
    sub.add_argument("--supervisions", metavar="FILE", help="supervisions: each one is an utterance")
    sub.add_argument("--cuts", metavar="FILE", help="cuts, instead of both: each one is an utterance")
    importing.add_common(sub)
    sub.add_argument("out")


def run(args: argparse.Namespace) -> None:
    if bool(args.cuts) == bool(args.recordings) or (args.cuts and args.supervisions):
        args.parser.error("give --recordings (and --supervisions), or --cuts")
    file = Path(args.cuts or args.supervisions or args.recordings)
    root = Path(args.root or file.parent)

    def read(skipped):
        if args.cuts:
            return lhotse.from_cuts(file, root, skipped)
        supervisions = Path(args.supervisions) if args.supervisions else None
        return lhotse.from_recordings(Path(args.recordings), supervisions, root, skipped)

    importing.make(args, file, read)
