"""Read lists from untrusted sources line by line: CSV, TSV and JSON lines, optionally compressed by gzip."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyspkv.base import foreign
from pyspkv.base.errors import UserError

MAX_LINE = 16 << 20  # bytes: a cut of lhotse with all its supervisions has a few MB
MAX_LIST = 16 << 30  # bytes of a list after decompression


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end) of a UTF-8 list; a file name in .gz is decompressed.

    Raises UserError when it is not UTF-8, has a line above MAX_LINE or more than MAX_LIST bytes, or is
    damaged.
    """
    foreign.regular(path)
    packed, total, number = str(path).endswith(".gz"), 0, 0
    with gzip.open(path, "rb") if packed else open(path, "rb") as f:
        while True:
            number += 1
            try:
                raw = f.readline(MAX_LINE + 1)
            except (EOFError, gzip.BadGzipFile, zlib.error) as err:
                raise UserError(f"is damaged gzip data ({err})", file=path, hint=foreign.AGAIN) from None
            total += len(raw)
            if not raw:
                return
            if len(raw) > MAX_LINE or total > MAX_LIST:
                raise UserError("is too long for a list of audio", file=path, line=number)
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError("is not UTF-8 text", file=path, line=number) from None
            yield number, text.rstrip("\r\n")


def json_lines(path: str | Path, hint: str | None = None) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) for each line that is not blank.

    UserError when a line is not a JSON object.
    """
    for number, text in text_lines(path):
        if text.strip():
            yield number, foreign.parse_json(text, file=path, line=number, hint=hint)


def table_rows(path: str | Path, delimiter: str | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, column -> cell) for each row of a CSV or TSV file; its first line names the
    columns.

    delimiter: by default a tab if the first line has one, `;` if it has `;` and no comma, else a comma.
    Quoted cells follow RFC 4180 and may contain line ends. UserError when a column name is empty or repeated,
    a row has more or fewer cells than columns, or quotes are broken.
    """
    numbered = text_lines(path)
    first = next(numbered, None)
    if first is None:
        raise UserError("is empty", file=path, hint="write a line of column names, followed by the rows")
    at = [1]
    if delimiter is None:
        comma = ";" if ";" in first[1] and "," not in first[1] else ","
        delimiter = "\t" if "\t" in first[1] else comma

    def feed() -> Iterator[str]:
        yield first[1] + "\n"
        for number, text in numbered:
            at[0] = number
            yield text + "\n"

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    names, start = None, 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as err:
            raise UserError(f"is not a row of CSV ({err})", file=path, line=at[0]) from None
        if cells is None:
            return
        start, line = at[0] + 1, start
        if names is None:
            names = [cell.strip() for cell in cells]
            if "" in names or len(set(names)) < len(names):
                rule = f"two columns have the same name, or a column has none: {foreign.short(names)}"
                raise UserError(rule, file=path, line=1, hint="the first line names the columns")
        elif cells and len(cells) != len(names):
            raise UserError(f"has {len(cells)} cells for {len(names)} columns", file=path, line=line)
        elif cells:
            yield line, dict(zip(names, map(str.strip, cells)))


def inner(record: dict, key: str) -> Any:
    """record[key].

    A key with dots, such as `audio.path`, names a nested value; None when it does not exist.
    """
    if key in record:
        return record[key]
    found: Any = record
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return None
        found = found[part]
    return found


def text(value: Any, name: str, file, line: int | None) -> str:
    """A name or path as text; whole numbers are converted and None gives "".

    UserError for any other value.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{name} is {foreign.short(value)}, not text", file=file, line=line)


def seconds(value: Any, name: str, file, line: int | None) -> float | None:
    """A time from 0 in seconds, given as a number or text; None for None or "".

    UserError for any other value.
    """
    from pyspkv.data.tables import plain_number

    if value is None or value == "":
        return None
    number = plain_number(value) if isinstance(value, str) else value
    return float(foreign.number(number, name, 0, 1e9, file=file, line=line, hint="write seconds"))
