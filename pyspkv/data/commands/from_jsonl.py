"""JSON lines that name audio become a data directory."""

import argparse
from pathlib import Path

from pyspkv.data.commands import importing
from pyspkv.data.commands.from_csv import add_fields, keys_of
from pyspkv.data.manifests import lines, records


def add_arguments(sub: argparse.ArgumentParser) -> None:
    add_fields(sub, "key")
    sub.epilog = "A key with dots names a value inside: audio.path."
    importing.add_common(sub)
    sub.add_argument("list", help="one JSON object per line; may be .gz")
    sub.add_argument("out")


def run(args: argparse.Namespace) -> None:
    file = Path(args.list)
    root = Path(args.root or file.parent)
    keys = keys_of(args, "key")
    importing.make(args, file, lambda _: records.rows(lines.json_lines(file), keys, file, root))
