"""Describe a data directory, with warnings about what would harm training or testing."""

import argparse
import json

from pyspkv.data.commands.common import positive, whole
from pyspkv.data.datadir import DataDir


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.epilog = "Every utterance is decoded once. Warnings do not change the exit code, which is 0."
    sub.add_argument(
        "--json",
        action="store_true",
        help="print JSON, with the name of every silent, clipped or duplicate file",
    )
    sub.add_argument(
        "--crop-seconds", type=positive, default=1.5, help="crop length of the training you plan"
    )
    sub.add_argument("--nj", type=whole, default=1, help="number of processes that read audio")
    sub.add_argument("--allow-pipes", action="store_true", help="run entries that are commands (`... |`)")
    sub.add_argument("dir")


def run(args: argparse.Namespace) -> None:
    from pyspkv.audio.reader import AudioReader
    from pyspkv.base.errors import printable
    from pyspkv.data.manifests.check import each_row
    from pyspkv.data.summary import as_text, measure, summarize

    data = DataDir.read(args.dir)
    reader = AudioReader(data, args.allow_pipes)
    measured = list(each_row(measure, reader, range(len(data.utts)), args.nj, "audio"))
    facts = summarize(data, measured, args.crop_seconds)
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print("\n".join(map(printable, as_text(facts).split("\n"))))
