"""Names in published files, such as `id/video/utt.wav`, and the utterances of a data directory that they mean.

A name is an utterance id, or the end of the utterance's path (`utt2path`, else `wav.scp`): its last three parts, or as
many as the name has if it has fewer. The ending counts in neither, so that `.m4a` and `.wav` of a file are one.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir

PARTS = 3


def end_of(path: str, parts: int = PARTS) -> str:
    """The last parts of a path, without the ending of its file."""
    return os.path.splitext("/".join(path.split("/")[-parts:]))[0]


def match(names: Sequence[str], data: DataDir, file: str | Path) -> list[int]:
    """For each utterance of `data`, in its order, the row of its name in `names`; other names are passed over.

    UserError: an utterance has no name (how many, and the first), or two; a name is the end of several paths.
    """
    ids = set(data.utts)
    row: dict[str, int] = {}
    ends: dict[str, int] = {}
    for k, name in enumerate(names):
        table, key = (row, name) if name in ids else (ends, end_of(name))
        if table.setdefault(key, k) != k:
            rule = f"names one utterance twice: {names[table[key]][:200]!a} and {name[:200]!a}"
            raise UserError(rule, file=file, hint="remove one of the two")
    _by_path(row, ends, names, data, file)
    if missing := [utt for utt in data.utts if utt not in row]:
        what = f"{len(missing)} of {len(data.utts)} utterances of {data.path}"
        rule = f"has no line for {what}; the first is {missing[0]}"
        example = f"; a name there is {names[0][:200]!a}" if names else ""
        hint = (
            "make a data directory of those that it names, or write utt2path (`utterance path`) for its paths"
        )
        raise UserError(rule + example, file=file, hint=hint)
    return [row[utt] for utt in data.utts]


def _by_path(row: dict[str, int], ends: dict[str, int], names: Sequence[str], data: DataDir, file) -> None:
    """Add to `row` the utterances whose path ends as one of `ends` does."""
    paths = data.utt_tables.get("utt2path") or ({} if data.segments else data.wav)
    lengths = {end.count("/") + 1 for end in ends}
    owner: dict[str, str] = {}
    for utt in data.utts:
        found = {end for n in lengths if utt in paths and (end := end_of(paths[utt], n)) in ends}
        for end in found:
            if (other := owner.setdefault(end, utt)) != utt:
                rule = f"{names[ends[end]][:200]!a} is the end of two paths, those of {other} and {utt}"
                raise UserError(rule, file=file, hint="give names with more of the path, or utterance ids")
            if row.setdefault(utt, ends[end]) != ends[end]:
                rule = f"names one utterance twice: {names[row[utt]][:200]!a} and {names[ends[end]][:200]!a}"
                raise UserError(rule, file=file, hint="remove one of the two")
