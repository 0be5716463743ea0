"""Trial lists from elsewhere, whose sides are paths or ids, with or without labels."""

import os
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir
from pyspkv.data.manifests.lines import text_lines
from pyspkv.data.trials import other_form

_RULE = (
    "the line must be `1 path path` (VoxCeleb), `path path 1`, `enrol test target|nontarget`, or two columns"
)


def names(data: DataDir) -> dict[str, str]:
    """Map every name by which a list may mean an utterance to its id.

    Names are the id, the path in utt2path or wav.scp, and the last one, two and three parts of that path,
    each with and without its extension. A name that fits several utterances is left out.
    """
    out = {u: u for u in data.utts}
    paths = data.utt_tables.get("utt2path", {})
    whole = {} if data.segments else data.wav
    ends: dict[str, str | None] = {}
    for utt in data.utts:
        for path in filter(None, (paths.get(utt), whole.get(utt))):
            parts = path.split("/")
            for piece in {path, *("/".join(parts[-n:]) for n in (1, 2, 3) if n <= len(parts))}:
                for name in (piece, os.path.splitext(piece)[0]):
                    if ends.setdefault(name, utt) != utt:
                        ends[name] = None  # ambiguous
    return {name: utt for name, utt in ends.items() if utt} | out


def read(file: Path, data: DataDir) -> tuple[list[str], bool]:
    """Read a list: (lines `enrol test target|nontarget`, True), or for a blind list (`enrol test`, False).

    Both sides are ids of this directory. UserError with the line when it has another form, or a side is
    neither an utterance nor a model of enrol_map.
    """
    numbered = [(line, text) for line, text in text_lines(file) if text.strip()]
    raw = [text for _, text in numbered]
    found = other_form("\n".join(raw).encode())
    rows = [line.split() for line in (found[0] if found else raw)]
    blind = bool(rows) and all(len(row) == 2 for row in rows)
    known = names(data)
    models = data.enrol_map or {}
    out = []
    for (line, _), row in zip(numbered, rows):
        labeled = len(row) == 3 and row[2] in ("target", "nontarget")
        if not (labeled or blind):
            raise UserError(_RULE, file=file, line=line)
        ids = [row[0] if row[0] in models else known.get(row[0]), known.get(row[1])]
        for name, utt in zip(row, ids):
            if utt is None:
                rule = f"{name[:100]!a} is not an utterance of {data.path}, nor the path of exactly one"
                raise UserError(
                    rule, file=file, line=line, hint="make the directory of the audio that the list names"
                )
        out.append(" ".join([*filter(None, ids), *row[2:]]))
    if not out:
        raise UserError("contains no trial", file=file, hint=_RULE)
    return out, not blind
