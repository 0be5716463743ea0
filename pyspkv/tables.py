"""Kaldi tables (`key value...` lines): strict reading with file and line in errors, salvage for the fixer."""

import gc
import math
import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from pyspkv.errors import UserError

# Bytes that no table may hold; CR is reported on its own because it is so common.
_CONTROL = bytes([*range(0x09), *range(0x0B, 0x0D), *range(0x0E, 0x20), 0x7F])
# Blanks and marks beyond ASCII that split an id for one tool and not for another (and the byte-order mark).
_ODD = re.compile("[\x80-\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff]")
_BLANKS = re.compile("[ \t]+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _number(text: str) -> float:
    """A finite number in plain notation, else NaN (Python alone would also take `1_0` and `inf`)."""
    return value if _NUMBER.fullmatch(text) and math.isfinite(value := float(text)) else math.nan


def parse_segment(value: str) -> tuple[str, float, float] | None:
    """`recording start end` in seconds with 0 <= start < end, or None."""
    parts = value.split(" ")
    if len(parts) != 3:
        return None
    start, end = _number(parts[1]), _number(parts[2])
    return (parts[0], start, end) if 0 <= start < end else None


def _count(value: str) -> bool:
    return value.isascii() and value.isdigit() and int(value) > 0


# What may follow the key: a test of one value, and the rule in words. Blanks inside were made single before.
VALUES: dict[str, tuple[Callable[[str], object], str]] = {
    "any": (lambda v: True, ""),
    "rest": (bool, "at least two columns"),
    "id": (lambda v: v and " " not in v, "exactly two columns"),
    "ids": (bool, "an id followed by one or more ids"),
    "entry": (
        lambda v: v and v[0] != "~",
        "an id and a path, `ark:offset` or `command |` (no path starting with ~)",
    ),
    "segment": (parse_segment, "`utterance recording start end` in seconds with 0 <= start < end"),
    "seconds": (lambda v: _number(v) > 0, "an id and a duration in seconds above 0"),
    "time": (lambda v: not math.isnan(_number(v)), "an id and a time in seconds"),
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
# Kaldi itself leaves blanks at the line end of these (awk-made spk2utt, empty transcripts).
_TRAILING_OK = ("any", "ids")


@contextmanager
def no_gc():
    """Building millions of strings: the cycle collector would walk them over and over and find nothing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _line_of(raw: bytes, pos: int) -> int:
    return raw.count(b"\n", 0, pos) + 1


def read_text(path: str | Path, mend: str | None = None, odd_ok: bool = False) -> str:
    """The file as text. UserError: empty, not UTF-8, CR, no final LF, control characters, odd blanks."""
    raw = Path(path).read_bytes()
    if not raw:
        raise UserError("the file is empty", file=path, mend=mend)
    if raw.translate(None, _CONTROL) != raw:
        pos = re.search(b"[" + re.escape(_CONTROL) + b"]", raw).start()
        raise UserError(f"control character 0x{raw[pos]:02x}", file=path, line=_line_of(raw, pos), mend=mend)
    if b"\r" in raw:
        line = _line_of(raw, raw.index(b"\r"))
        raise UserError(
            "carriage return (Windows line ends); lines end in LF", file=path, line=line, mend=mend
        )
    if raw[-1:] != b"\n":
        line = _line_of(raw, len(raw))
        raise UserError(
            "the last line has no line end: was the file cut short?", file=path, line=line, mend=mend
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as err:
        raise UserError("not UTF-8 text", file=path, line=_line_of(raw, err.start), mend=mend) from None
    if not text.isascii() and not odd_ok and (odd := _ODD.search(text)):
        line = text.count("\n", 0, odd.start()) + 1
        raise UserError(f"blank or mark U+{ord(odd[0]):04X} outside ASCII", file=path, line=line, mend=mend)
    return text


def read_columns(
    path: str | Path, value: str = "rest", mend: str | None = None, in_order: bool = True
) -> tuple[list[str], list[str]]:
    """Keys and values of a table, one per line (line number = index + 1), values of kind `VALUES[value]`.

    With `in_order` the keys must be unique and in C order (code points, which is the order of the bytes).
    UserError names file, line, rule and `mend`.
    """
    text = read_text(path, mend, odd_ok=value == "any")
    wide = "\t" in text or ("  " in text and value not in ("entry", "rest", "any"))
    lines = text.split("\n")
    lines.pop()
    del text
    keys, values = [], []
    for line in lines:
        if wide or line[:1] == " ":
            parts = _BLANKS.split(line, 1 if value in ("entry", "rest", "any") else 0)
            key, rest = parts[0], " ".join(parts[1:])
        else:
            key, _, rest = line.partition(" ")
            if rest[:1] == " ":
                rest = rest.lstrip(" ")
        keys.append(key)
        values.append(rest)
    del lines
    if value in _TRAILING_OK:
        values = [v.rstrip(" \t") for v in values]
    good, rule = VALUES[value]
    for i, v in enumerate(values):
        if not keys[i]:
            raise UserError("the line is empty or starts with a blank", file=path, line=i + 1, mend=mend)
        if v[-1:] in (" ", "\t"):
            raise UserError("blank at the line end", file=path, line=i + 1, mend=mend)
        if not good(v):
            raise UserError(f"the rule is {rule}", file=path, line=i + 1, mend=mend)
    if in_order:
        check_order(keys, path, mend)
    return keys, values


def check_order(keys: list[str], path: str | Path, mend: str | None) -> None:
    last = ""
    for i, key in enumerate(keys):
        if key <= last:
            why = (
                f"{key} appears twice"
                if key == last
                else f"{key} after {last}: not in C order (LC_ALL=C sort)"
            )
            raise UserError(why, file=path, line=i + 1, mend=mend)
        last = key


def read_table(path: str | Path, value: str = "rest", mend: str | None = None) -> dict[str, str]:
    """A `key value` file as a dict: keys unique and in C order, values of the kind `VALUES[value]`."""
    return dict(zip(*read_columns(path, value, mend)))


def salvage(path: str | Path, value: str, unique: bool = True) -> tuple[list[str], list[str], list[str]]:
    """What can be saved of a broken table: keys, values (in C order when `unique`), notes on what went.

    Line ends, blanks and order are mended; lines that break the rule, are not UTF-8 or hold control
    characters are dropped; of lines with the same key the first stays.
    """
    good, rule = VALUES[value]
    pairs: list[tuple[str, str]] = []
    dropped: dict[str, list[int]] = {}
    seen: set[str] = set()
    odd_ok = value == "any"
    keep_inner = 1 if value in ("entry", "rest", "any") else 0
    for number, raw in enumerate(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        raw = raw.strip(b" \t\r")
        if not raw:
            continue
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            dropped.setdefault("not UTF-8", []).append(number)
            continue
        if raw.translate(None, _CONTROL + b"\r") != raw or (
            not odd_ok and not line.isascii() and _ODD.search(line)
        ):
            dropped.setdefault("control character or odd blank", []).append(number)
            continue
        parts = _BLANKS.split(line, keep_inner)
        key, rest = parts[0], " ".join(parts[1:])
        if not good(rest):
            dropped.setdefault(f"the rule is {rule}", []).append(number)
        elif unique and key in seen:
            dropped.setdefault("id seen before", []).append(number)
        else:
            seen.add(key)
            pairs.append((key, rest))
    if unique:
        pairs.sort(key=lambda pair: pair[0])
    notes = [f"{path}: dropped {len(at)} lines (first: line {at[0]}): {why}" for why, at in dropped.items()]
    return [k for k, _ in pairs], [v for _, v in pairs], notes
