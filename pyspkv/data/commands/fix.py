"""Sort and correct a data directory."""

import argparse

from pyspkv.data.fix import fix


def add_arguments(sub: argparse.ArgumentParser) -> None:
    about = "open every recording: cut segments that end after it; stop with an error if audio cannot be read"
    sub.add_argument("--check-audio", action="store_true", help=about)
    sub.add_argument("dir")


def run(args: argparse.Namespace) -> None:
    for note in fix(args.dir, args.check_audio) or [f"{args.dir}: nothing to fix"]:
        print(note)
