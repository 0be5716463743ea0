"""Reading small files from untrusted sources, with limits on size, depth and numbers; problems are one-line
errors."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError

MAX_JSON = 16 << 20  # bytes: the largest state.json or curve written by this project has a few hundred KB
MAX_DEPTH = 50  # levels of nested lists and mappings
MAX_INT = 2**63 - 1
AGAIN = "copy it again, or download it again from the address of the file"

_WEB = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
_PACKED = {
    b"\x1f\x8b\x08": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"(\xb5/\xfd": "zstd",
}


def regular(path: str | Path, hint: str | None = None) -> int:
    """The size of a regular file, in bytes.

    UserError when it is a folder, a pipe or a device (except /dev/fd/N).
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) and not str(path).startswith(
        ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
    ):
        raise UserError("is not a plain file", file=path, hint=hint)
    return found.st_size


def read_bytes(path: str | Path, limit: int, hint: str | None = None) -> bytes:
    """Content of a regular file. UserError when it has more than `limit` bytes or is not a regular file."""
    regular(path, hint)
    with open(path, "rb") as f:
        raw = f.read(limit + 1)
    if len(raw) > limit:
        raise UserError(
            f"is longer than {limit:,} bytes, which is too long for such a file", file=path, hint=hint
        )
    return raw


def read_text(path: str | Path, limit: int, hint: str | None = None) -> str:
    """UTF-8 text of a file, without a byte-order mark.

    UserError when it is not UTF-8 or exceeds `limit` bytes.
    """
    raw = read_bytes(path, limit, hint)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = raw.count(b"\n", 0, err.start) + 1
        raise UserError("is not UTF-8 text", file=path, line=line, hint=hint) from None


def read_json(
    path: str | Path, kind: type = dict, *, hint: str | None = None, limit: int = MAX_JSON, nan: bool = False
) -> Any:
    """The JSON object in a file, or the list with `kind=list`. UserError when it is not one.

    nan: allow NaN and Infinity, which Python's json module writes.
    """
    return parse_json(read_text(path, limit, hint), kind, file=path, hint=hint, nan=nan)


def read_json_or_empty(path: str | Path, *, limit: int = MAX_JSON) -> dict:
    """`read_json`, or {} when the file cannot be read.

    For records whose loss only means to do some work again.
    """
    try:
        return read_json(path, limit=limit)
    except (OSError, UserError, ValueError):  # ValueError: the name is not a valid file name
        return {}


def parse_json(
    text: str,
    kind: type = dict,
    *,
    file,
    line: int | None = None,
    hint: str | None = None,
    nan: bool = False,
    most: int = MAX_INT,
) -> Any:
    """Parse JSON text and check its limits.

    Args:
        kind: dict or list, the type that the text must have.
        file, line, hint: where the text comes from and what to do, for error messages.
        nan: allow NaN and Infinity.
        most: largest absolute value of a whole number.

    Raises UserError when it is not JSON of that kind, or is nested deeper than MAX_DEPTH.
    """
    try:
        hooks: dict[str, Any] = {} if nan else {"parse_constant": _no_constant, "parse_float": _finite}
        found = json.loads(text, parse_int=lambda digits: _int(digits, most), **hooks)
        if "\\ud" in text.lower():  # half of a surrogate pair cannot be written to any file
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        found = None
        raise UserError(
            f"is not JSON (nested deeper than {MAX_DEPTH})", file=file, line=line, hint=hint
        ) from None
    except ValueError as err:
        raise UserError(f"is not JSON ({err})", file=file, line=line, hint=hint) from None
    if not isinstance(found, kind):
        name = "object" if kind is dict else "list"
        raise UserError(f"is not a JSON {name}", file=file, line=line, hint=hint)
    if _deeper(found, MAX_DEPTH):
        raise UserError(f"is nested deeper than {MAX_DEPTH}", file=file, line=line, hint=hint)
    return found


def _int(text: str, most: int) -> int:
    if len(text) > len(str(most)) + 1 or abs(int(text)) > most:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if abs(value := float(text)) == float("inf"):
        raise ValueError(f"the number {text[:20]} is out of range")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


def _deeper(found: Any, most: int) -> bool:
    """True when lists and mappings are nested more than `most` levels deep.

    A loop, as recursion could overflow.
    """
    level = [found]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def is_number(value: Any) -> bool:
    """True for a finite int or float, but not for True and False."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def number(
    value: Any,
    name: str,
    low: float | None = None,
    high: float | None = None,
    *,
    whole: bool = False,
    file,
    line: int | None = None,
    hint: str | None = None,
) -> Any:
    """`value` if it is a number (with `whole`: an int) within [low, high]; else UserError with its `name`."""
    fits = is_number(value) and (not whole or isinstance(value, int))
    if not fits or (low is not None and value < low) or (high is not None and value > high):
        span = (
            ""
            if low is None and high is None
            else f" from {low:g}"
            if high is None
            else f" of {low:g} to {high:g}"
        )
        kind = "whole number" if whole else "number"
        raise UserError(f"{name} is {short(value)}, not a {kind}{span}", file=file, line=line, hint=hint)
    return value


def short(value: Any, most: int = 60) -> str:
    """`value` as text of limited length, for a message."""
    import reprlib

    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = cut.maxlong = most
    text = " ".join(cut.repr(value).split())
    return text if len(text) <= 2 * most else text[: 2 * most] + " ..."


def first_bytes(path: str | Path) -> None:
    """UserError when a file of weights is really a Git LFS pointer, a web page, compressed, or empty."""
    regular(path)
    with open(path, "rb") as f:
        head = f.read(512)
    if not head:
        raise UserError("is empty", file=path, hint=AGAIN)
    if head.startswith(b"version https://git-lfs"):
        rule = "is a Git LFS pointer, not the weights themselves"
        raise UserError(rule, file=path, hint=command_line("git", "-C", Path(path).parent, "lfs", "pull"))
    if _WEB.match(head):
        raise UserError("is a web page, not weights", file=path, hint=AGAIN)
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise UserError(f"is packed ({name})", file=path, hint="unpack it first")


def safetensors_header(path: str | Path) -> dict[str, Any]:
    """The header of a safetensors file: name -> {dtype, shape, data_offsets}.

    Layout: 8 bytes with a little-endian length N, N bytes of JSON, then the data.
    Raises UserError when the header is not valid, or promises more data than the file has.
    """
    first_bytes(path)
    size = regular(path)
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > size - 8:
            rule = f"is cut short, or is not a safetensors file: its header has {length:,} bytes, the file {size:,}"
            raise UserError(rule, file=path, hint=AGAIN)
        if length > MAX_JSON:
            raise UserError(
                f"is not a safetensors file: its header has {length:,} bytes", file=path, hint=AGAIN
            )
        raw = f.read(length)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise UserError("is not a safetensors file: its header is not UTF-8", file=path, hint=AGAIN) from None
    header = parse_json(text, file=path, hint=AGAIN)
    header.pop("__metadata__", None)
    end = 0
    for name, entry in header.items():
        span = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(span, list) or len(span) != 2 or not all(isinstance(x, int) for x in span):
            raise UserError(
                f"is not a safetensors file: it has no offsets for {short(name)}", file=path, hint=AGAIN
            )
        end = max(end, *span)
    if end > size - 8 - length:
        rule = f"is cut short: its header promises {end:,} bytes of tensors, {size - 8 - length:,} follow"
        raise UserError(rule, file=path, hint=AGAIN)
    return header


def read_rows(path: str | Path) -> dict[str, Any]:
    """The arrays of a safetensors file (rows/epoch-N.safetensors of a run), by name.

    UserError when unreadable.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    safetensors_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as err:
        raise UserError(f"is not a readable safetensors file ({err})", file=path, hint=AGAIN) from None


def is_finished(model: Path) -> bool:
    """True when the training of this model folder is complete; an imported or exported model always is."""
    try:
        name = read_text(model / "LATEST", 4096).strip()
        state = read_json(model / name / "state.json", nan=True)
    except (OSError, UserError, ValueError):  # ValueError: the name is not a valid file name
        return False
    return "/" not in name and state.get("done", True) is True
