"""Kaldi tables (lines `key value...`): strict reading with file and line in errors, and salvage of broken
tables."""

import math
import re
from collections.abc import Callable, Sequence
from itertools import islice, repeat
from operator import lt
from pathlib import Path

from pyspkv.base.errors import UserError

# Bytes that no table may hold. CR is not among them, because it gets a message of its own.
_CONTROL = bytes([*range(0x09), *range(0x0B, 0x0D), *range(0x0E, 0x20), 0x7F])
# Spaces and marks beyond ASCII (and the byte-order mark): some tools split an id there and others do not.
_ODD = re.compile("[\x80-\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff]")
_BAD = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_BLANKS = re.compile("[ \t]+")
_WHOLE = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def plain_number(text: str) -> float:
    """A finite number in plain notation, else NaN (Python itself also reads `1_0`, `inf`, Arabic digits)."""
    return value if _NUMBER.fullmatch(text) and math.isfinite(value := float(text)) else math.nan


def whole_number(text: str) -> int | None:
    """A whole number from 0 in at most 18 ASCII digits (so it fits into int64), else None."""
    return int(text) if _WHOLE.fullmatch(text) else None


def has_bad_characters(text: str) -> bool:
    """True for an id or a path with control characters, or with spaces or marks beyond ASCII."""
    return bool(_BAD.search(text) or _ODD.search(text) or "\t" in text)


def decode(path: str | Path) -> str:
    """Text of a list or log, without the byte-order mark that some editors write.

    UserError when it is not UTF-8.
    """
    return decode_bytes(Path(path).read_bytes(), path)


def decode_bytes(raw: bytes, path: str | Path) -> str:
    """Like `decode`, for bytes that were read from `path`."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise UserError("not UTF-8 text", file=path, line=_line_at(raw, err.start)) from None


def parse_segment(value: str) -> tuple[str, float, float] | None:
    """Parse `recording start end`, in seconds; None when it is not valid.

    Valid is 0 <= start < end, or an end of -1, which means the end of the recording.
    """
    parts = value.split(" ")
    if len(parts) != 3:
        return None
    start, end = plain_number(parts[1]), plain_number(parts[2])
    return (parts[0], start, end) if 0 <= start < end or (end == -1 and start >= 0) else None


def checked_segment(value: str) -> tuple[str, float, float]:
    """`parse_segment` for a value that was checked when it was read."""
    segment = parse_segment(value)
    assert segment is not None
    return segment


def _count(value: str) -> bool:
    return bool(whole_number(value))


# Kind -> (test of the value after the key, the rule in words). Repeated blanks were merged before.
VALUES: dict[str, tuple[Callable[[str], object], str]] = {
    "any": (lambda v: True, ""),
    "rest": (bool, "at least two columns"),
    "id": (lambda v: v and " " not in v, "exactly two columns"),
    "ids": (bool, "an id followed by one or more ids"),
    "entry": (
        lambda v: v and v[0] != "~",
        "an id and a path, `ark:offset` or `command |` (no path starting with ~)",
    ),
    "segment": (
        parse_segment,
        "`utterance recording start end` in seconds with 0 <= start < end (or -1: to the end)",
    ),
    "seconds": (lambda v: plain_number(v) > 0, "an id and a duration in seconds above 0"),
    "time": (lambda v: not math.isnan(plain_number(v)), "an id and a time in seconds"),
    "count": (_count, "an id and a whole number above 0"),
    "gender": (lambda v: v in ("m", "f"), "a speaker and m or f"),
    "source": (lambda v: v in ("customer", "device"), "an utterance and customer or device"),
    "flag": (lambda v: v in ("0", "1"), "an id and 0 or 1"),
    "channel": (
        lambda v: v.count(" ") == 1 and v.rsplit(" ", 1)[1] in ("A", "B", "1"),
        "`recording file A|B`",
    ),
    "trial": (
        lambda v: v.count(" ") == 1 and v.rsplit(" ", 1)[1] in ("target", "nontarget"),
        "`enrol test target|nontarget`",
    ),
}
# The same tests for all values at once, for kinds without inner blanks. If one returns False, the reader
# checks line by line and names the wrong one. "entry" needs no test here, because a value with ~ never gets
# this far.
_FAST: dict[str, Callable[[list[str]], bool]] = {
    "id": lambda vs: True,
    "rest": lambda vs: True,
    "entry": lambda vs: True,
    "seconds": lambda vs: (
        all(map(_NUMBER.fullmatch, vs)) and 0 < min(map(float, vs)) <= max(map(float, vs)) < math.inf
    ),
    "count": lambda vs: all(map(_WHOLE.fullmatch, vs)) and min(map(int, vs)) > 0,
    "time": lambda vs: all(map(_NUMBER.fullmatch, vs)) and max(map(abs, map(float, vs))) < math.inf,
    "gender": lambda vs: set(vs) <= {"m", "f"},
    "source": lambda vs: set(vs) <= {"customer", "device"},
    "flag": lambda vs: set(vs) <= {"0", "1"},
}
_FREE = ("entry", "rest", "any")  # kinds whose inner blanks stay as they are
# Kaldi itself leaves blanks at the line end of these (awk-made spk2utt, empty transcripts).
_TRAILING_OK = ("any", "ids")


def _line_at(raw: bytes, pos: int) -> int:
    return raw.count(b"\n", 0, pos) + 1


def read_text(path: str | Path, hint: str | None = None, odd_ok: bool = False) -> str:
    """The file as text.

    UserError when it is empty, not UTF-8, has CR, control characters or odd spaces, or no final LF.
    """
    raw = Path(path).read_bytes()
    if not raw:
        raise UserError("the file is empty", file=path, hint="write it again, or remove it")
    if raw.translate(None, _CONTROL) != raw:
        pos = next(i for i, byte in enumerate(raw) if byte in _CONTROL)
        raise UserError(f"control character 0x{raw[pos]:02x}", file=path, line=_line_at(raw, pos), hint=hint)
    if b"\r" in raw:
        line = _line_at(raw, raw.index(b"\r"))
        raise UserError(
            "carriage return (Windows line ends); lines end in LF", file=path, line=line, hint=hint
        )
    if raw[-1:] != b"\n":
        line = _line_at(raw, len(raw))
        raise UserError(
            "the last line does not end in a newline: the file may be cut short",
            file=path,
            line=line,
            hint=hint,
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as err:
        raise UserError("not UTF-8 text", file=path, line=_line_at(raw, err.start), hint=hint) from None
    if text[0] == "\ufeff":
        raise UserError("byte-order mark (U+FEFF)", file=path, line=1, hint=hint)
    if not text.isascii() and not odd_ok and (found := _ODD.search(text)):
        line = text.count("\n", 0, found.start()) + 1
        raise UserError(f"blank or mark U+{ord(found[0]):04X} outside ASCII", file=path, line=line, hint=hint)
    return text


def read_columns(
    path: str | Path, value: str = "rest", hint: str | None = None, in_order: bool = True
) -> tuple[list[str], list[str]]:
    """Keys and values of a table, in the order of its lines (line number = index + 1).

    value: kind of the values, a key of `VALUES`.
    in_order: require unique keys in C order (by code points, which is also the order of the UTF-8 bytes).
    Raises UserError with file, line, rule and `hint`.
    """
    text = read_text(path, hint, odd_ok=value == "any")
    # The common case, two columns with one blank between them, uses built-ins only (a million lines in a
    # second).
    if "\t" not in text and (value in _FAST) and " ~" not in text:
        lines = text.split("\n")
        lines.pop()
        if set(map(str.count, lines, repeat(" "))) == {1}:
            tokens = text.split()
            if len(tokens) == 2 * len(lines):
                del lines, text
                keys, values = tokens[0::2], tokens[1::2]
                if _FAST[value](values):
                    if in_order:
                        check_order(keys, path, hint)
                    return keys, values
                text = read_text(path, hint)
    lines = text.split("\n")
    lines.pop()
    wide = "\t" in text or ("  " in text and value not in _FREE)
    del text
    keys, values = [], []
    good, rule = VALUES[value]
    for number, line in enumerate(lines, 1):
        if wide or line[:1] == " ":
            key, *parts = _BLANKS.split(line, 1 if value in _FREE else 0)
            rest = " ".join(parts)
        else:
            key, _, rest = line.partition(" ")
            if rest[:1] == " ":
                rest = rest.lstrip(" ")
        if value in _TRAILING_OK:
            rest = rest.rstrip(" \t")
        if not key:
            raise UserError("the line is empty or starts with a blank", file=path, line=number, hint=hint)
        if rest[-1:] in (" ", "\t"):
            raise UserError("the line ends in a blank", file=path, line=number, hint=hint)
        if not good(rest):
            raise UserError(f"the line must be {rule}", file=path, line=number, hint=hint)
        keys.append(key)
        values.append(rest)
    if in_order:
        check_order(keys, path, hint)
    return keys, values


def check_order(keys: list[str], path: str | Path, hint: str | None) -> None:
    """UserError when keys are not unique and in C order."""
    if all(map(lt, keys, islice(keys, 1, None))):
        return
    last = ""
    for i, key in enumerate(keys):
        if key <= last:
            why = (
                f"{key} appears twice"
                if key == last
                else f"{key} after {last}: not in C order (LC_ALL=C sort)"
            )
            raise UserError(why, file=path, line=i + 1, hint=hint)
        last = key


def read_table(path: str | Path, value: str = "rest", hint: str | None = None) -> dict[str, str]:
    """A `key value` file as a dict.

    Keys must be unique and in C order, values of the kind `VALUES[value]`.
    """
    return dict(zip(*read_columns(path, value, hint)))


def values_for(table: dict[str, str], utts: Sequence[str], path: str | Path) -> list[str]:
    """Values of `utts` in a table of true speakers. UserError when one is missing."""
    if missing := [u for u in utts if u not in table]:
        raise UserError(
            f"has no line for {len(missing)} of {len(utts)} utterances; the first is {missing[0]}", file=path
        )
    return [table[u] for u in utts]


def salvage(path: str | Path, value: str, unique: bool = True) -> tuple[list[str], list[str], list[str]]:
    """Read what is usable of a broken table; returns keys, values and notes on what was dropped.

    Line ends and blanks are repaired. Lines that break the rule, are not UTF-8 or hold control characters are
    dropped. With `unique`, the first of several lines with the same key is kept. The order of lines stays.
    UserError when more than half of the lines would be dropped, because then the file is probably something
    else.
    """
    good, rule = VALUES[value]
    table: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    dropped: dict[str, list[int]] = {}
    odd_ok, repeats = value == "any", 0
    for number, raw in enumerate(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.decode("utf-8").strip(" \t\r")
        except UnicodeDecodeError:
            dropped.setdefault("not UTF-8", []).append(number)
            continue
        if not line:
            continue
        if not line.isprintable() and (_BAD.search(line) or (not odd_ok and _ODD.search(line))):
            dropped.setdefault("control character or odd blank", []).append(number)
            continue
        key, _, rest = line.partition(" ")
        if "\t" in line or "  " in line:
            key, *parts = _BLANKS.split(line, 1 if value in _FREE else 0)
            rest = " ".join(parts)
        before = len(table)
        if not good(rest):
            dropped.setdefault(f"the line must be {rule}", []).append(number)
        elif not unique:
            pairs.append((key, rest))
        elif table.setdefault(key, rest) == rest:
            repeats += before == len(table)
        else:
            dropped.setdefault("id seen before", []).append(number)
    if unique:
        pairs = list(table.items())
    lost = sum(map(len, dropped.values()))
    if lost > len(pairs):
        why, at = max(dropped.items(), key=lambda item: len(item[1]))
        raise UserError(
            f"{lost} of {lost + len(pairs)} lines cannot be read: {why}",
            file=path, line=at[0], hint="correct the file, or move it out of the folder; nothing was changed",
        )  # fmt: skip
    notes = [f"{path}: dropped {len(at)} lines (first: line {at[0]}): {why}" for why, at in dropped.items()]
    notes += [f"{path}: dropped {repeats} repeated lines"] if repeats else []
    return [k for k, _ in pairs], [v for _, v in pairs], notes
