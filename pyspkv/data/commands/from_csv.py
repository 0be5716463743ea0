"""A table of audio (CSV, TSV) becomes a data directory."""

import argparse
from pathlib import Path

from pyspkv.data.commands import importing
from pyspkv.data.manifests import lines, records

FIELDS = ("audio", "utt", "speaker", "session", "gender", "start", "end", "duration")


def add_fields(sub: argparse.ArgumentParser, what: str) -> None:
    """Add --audio-<what> and so on; the defaults are the names that to-csv writes."""
    for field in FIELDS:
        about = " (required)" if field == "audio" else " (optional)"
        default = getattr(records.Keys(), field)
        sub.add_argument(
            f"--{field}-{what}", default=default, metavar="NAME", help=f"{what} of the {field}{about}"
        )


def keys_of(args: argparse.Namespace, what: str) -> records.Keys:
    return records.Keys(**{field: getattr(args, f"{field}_{what}") for field in FIELDS})


def add_arguments(sub: argparse.ArgumentParser) -> None:
    add_fields(sub, "column")
    sub.add_argument(
        "--delimiter",
        metavar="CHARACTER",
        help="default: a tab, `;` or a comma, whichever is in the first line",
    )
    importing.add_common(sub)
    sub.add_argument("table", help="its first line holds the column names; may be .gz")
    sub.add_argument("out")


def run(args: argparse.Namespace) -> None:
    if args.delimiter is not None and len(args.delimiter) != 1:
        args.parser.error("--delimiter must be one character")
    file = Path(args.table)
    root = Path(args.root or file.parent)
    keys = keys_of(args, "column")
    importing.make(
        args, file, lambda _: records.rows(lines.table_rows(file, args.delimiter), keys, file, root)
    )
