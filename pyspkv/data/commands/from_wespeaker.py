"""A raw.list of WeSpeaker (key, wav, spk) becomes a data directory."""

import argparse
from pathlib import Path

from pyspkv.data.commands import importing
from pyspkv.data.manifests import records


def add_arguments(sub: argparse.ArgumentParser) -> None:
    importing.add_common(sub)
    sub.add_argument("list", metavar="raw.list")
    sub.add_argument("out")


def run(args: argparse.Namespace) -> None:
    file = Path(args.list)
    root = Path(args.root or file.parent)
    importing.make(args, file, lambda skipped: records.wespeaker(file, root, skipped))
