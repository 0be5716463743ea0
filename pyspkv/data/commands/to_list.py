"""Write a data directory as a list for another toolkit."""

import argparse
from pathlib import Path

from pyspkv.base.atomic import atomic_dir, atomic_file
from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir
from pyspkv.data.manifests import export

_LINES = {"to-wespeaker": export.wespeaker, "to-jsonl": export.nemo, "to-csv": export.table}
_WHAT = {
    "to-wespeaker": "raw.list: one JSON object with key, wav and spk per line",
    "to-jsonl": "a manifest of NeMo: audio_filepath, offset (with segments), duration, label",
    "to-csv": "a table with the columns that from-csv reads",
    "to-lhotse": "a new folder, which gets recordings.jsonl.gz and supervisions.jsonl.gz",
}


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dir", help="the data directory")
    sub.add_argument("out", help=_WHAT[sub.prog.split()[-1]])


def run(args: argparse.Namespace) -> None:
    out, data = Path(args.out), DataDir.read(args.dir)
    if args.command == "to-lhotse":
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError("exists and is not empty", file=out, hint="give another folder")
        with atomic_dir(out, own=True) as new:
            export.lhotse(data, new)
    else:
        if out.is_dir():
            raise UserError("is a folder", file=out, hint="give the name of a file")
        with atomic_file(out, own=True) as f:
            f.writelines(_LINES[args.command](data))
    print(f"{out}: {len(data.utts)} utterances of {args.dir}")
