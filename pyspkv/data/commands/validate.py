"""Check data directories: every file, every line."""

import argparse

from pyspkv.base.errors import Shown, UserError, printable
from pyspkv.data.commands.common import summary_line
from pyspkv.data.datadir import DataDir


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dirs", nargs="+", metavar="DIR")
    sub.add_argument("--no-wav", action="store_true", help="wav.scp may be missing")
    sub.add_argument(
        "--disjoint",
        nargs="+",
        metavar="DIR2",
        help="after DIR: directories that must not share an utterance, speaker, dialogue or device with it",
    )
    for name in ("--no-text", "--no-feats", "--no-spk-sort", "--non-print"):
        sub.add_argument(name, action="store_true", help="accepted for Kaldi's scripts; this is always so")


def run(args: argparse.Namespace) -> None:
    if args.disjoint and len(args.dirs) > 1:
        args.parser.error("--disjoint needs exactly one DIR before it")
    faults = []
    for path in args.dirs:
        try:
            _validate(path, args)
        except (UserError, OSError) as err:
            if len(args.dirs) == 1:
                raise
            if isinstance(err, OSError) and err.filename:
                faults.append(printable(f"{err.filename}: {err.strerror}"))
            else:
                faults.append(str(err))
    if faults:
        raise UserError(Shown("\nerror: ".join(faults)))


def _validate(path: str, args: argparse.Namespace) -> None:
    from pyspkv.data.dialogues import check_disjoint, dialogue_lines

    data = DataDir.read(path, need_wav=not args.no_wav)
    for other in args.disjoint or ():
        check_disjoint(data, DataDir.read(other, need_wav=False))
    print(f"Successfully validated data-directory {path}: {summary_line(data)}")
    if "utt2dialogue" in data.utt_tables:
        for line in dialogue_lines(data):
            print(f"{path}: {line}")
