"""Turn utt2spk into spk2utt."""

import argparse
import sys

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import spk2utt_lines
from pyspkv.data.tables import decode, decode_bytes


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", nargs="?", help="default: standard input")


def run(args: argparse.Namespace) -> None:
    utts, spk, name = [], [], args.file or "stdin"
    text = decode(args.file) if args.file else decode_bytes(sys.stdin.buffer.read(), name)
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        parts = line.split()
        if len(parts) != 2:
            raise UserError("the line must be `utterance speaker`", file=name, line=number)
        utts.append(parts[0])
        spk.append(parts[1])
    sys.stdout.buffer.writelines(f"{line}\n".encode() for line in spk2utt_lines(utts, spk))
