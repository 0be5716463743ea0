"""A manifest of NeMo (audio_filepath, offset, duration, label) becomes a data directory."""

import argparse
from pathlib import Path

from pyspkv.data.commands import importing
from pyspkv.data.manifests import lines, records


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.epilog = (
        "A line with an offset is a segment of its file. The label `infer` stands for an unknown speaker."
    )
    importing.add_common(sub)
    sub.add_argument("manifest")
    sub.add_argument("out")


def run(args: argparse.Namespace) -> None:
    file = Path(args.manifest)
    root = Path(args.root or file.parent)
    importing.make(args, file, lambda _: records.rows(lines.json_lines(file), records.NEMO, file, root))
