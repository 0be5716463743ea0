"""A folder of audio files becomes a data directory."""

import argparse
import os
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.commands import importing
from pyspkv.data.manifests import folder, ids


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.epilog = (
        "Utterance ids are the paths below FOLDER without their ending: "
        f"{ids.RULE}. The table utt2path names the path of each."
    )
    who = sub.add_mutually_exclusive_group()
    who.add_argument(
        "--pattern",
        metavar="'{speaker}/{session}/{utterance}.wav'",
        help="pattern of the path below FOLDER, with {speaker}, {session}, {gender}, {utterance}; * is any part, "
        "** any path; without it (and --regex) the speakers are unknown",
    )
    who.add_argument(
        "--regex", metavar="EXPR", help="the same as a regular expression, as (?P<speaker>[^/]+)/.*"
    )
    sub.add_argument("--endings", default=" ".join(folder.READ), help="endings of the names of audio files")
    importing.add_common(sub, root=False)
    sub.add_argument("folder")
    sub.add_argument("out")


def run(args: argparse.Namespace) -> None:
    root = Path(args.folder)
    endings = [e.lower().lstrip(".") for e in args.endings.split()]
    pattern = folder.pattern_of(args.pattern) if args.pattern else None
    if args.regex:
        pattern = folder.expression(args.regex)
    if not root.is_dir():
        raise UserError("is not a folder", file=root, hint="give the folder that holds the audio files")
    importing.make(args, root, lambda skipped: _rows(root, endings, pattern, skipped))


def _rows(root: Path, endings: list[str], pattern, skipped):
    found = folder.scan(root, endings, skipped)
    if found.others:
        shown = ", ".join(
            f"{n} .{e}" if e else f"{n} without an ending" for e, n in found.others.most_common(8)
        )
        print(f"{root}: other files: {shown}")
    if not found.files:
        seen = f"; the first that was left out: {skipped.items[0][1]}" if skipped.items else ""
        raise UserError(f"contains no audio file{seen}", file=root, hint="check --endings")
    out = list(folder.rows(root, found.files, pattern, skipped))
    if not out:
        example = os.fsencode(found.files[0]).decode(errors="replace")
        rule = f"the pattern matches none of {len(found.files)} paths, such as {example}"
        raise UserError(rule, file=root, hint="'{speaker}/*/*' takes the first folder as the speaker")
    return out
