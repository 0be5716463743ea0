"""Read the customers' turns of a voice-assistant log (Kaldi directory, JSON lines, CSV) and make dialogues of
them."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pyspkv.audio.reader import SAMPLE_RATE, AudioReader
from pyspkv.base.errors import UserError
from pyspkv.data import tables
from pyspkv.data.datadir import DataDir, segment_seconds


@dataclass
class Turns:
    """The turns of one side, one per utterance; `device` and `time` (start, s) are aligned with data.utts."""

    data: DataDir
    device: list[str]
    time: np.ndarray  # float64 [N]
    dropped: int  # number of turns by the source that was dropped

    def seconds(self) -> np.ndarray:
        """Durations [N] in s, from utt2dur, segments, or the audio's headers.

        UserError for commands in wav.scp.
        """
        if "utt2dur" in self.data.utt_tables:
            return np.array([float(self.data.utt_tables["utt2dur"][u]) for u in self.data.utts])
        to_end = any(end < 0 for _, _, end in (self.data.segments or {}).values())
        if to_end and "reco2dur" in self.data.reco_tables:
            seconds = segment_seconds(self.data)
            return np.array([seconds[u] for u in self.data.utts])
        by_header = self.data.segments is None or to_end
        if by_header and any(entry.endswith("|") for entry in self.data.wav.values()):
            rule = "entries of wav.scp are commands, which are not run here"
            raise UserError(rule, file=self.data.path, hint="write utt2dur (`utterance seconds`)")
        reader = AudioReader(self.data)
        return np.array([reader.num_samples(row) for row in range(len(reader))]) / SAMPLE_RATE


@dataclass
class Fields:
    """Names of a log's columns; the columns `source` and `duration` are optional."""

    utt: str = "utt"
    audio: str = "audio"
    device: str = "device"
    time: str = "time"
    source: str = "source"
    duration: str = "duration"


def _check_dropped(path: Path, field: str, drop: str, sources: set[str], dropped: int, left: int) -> None:
    """UserError when there are several sources but not the one to drop, or dropping it leaves nothing."""
    if len(sources) > 1 and not dropped:
        rule = f"no '{field}' is '{drop}'; there are {', '.join(sorted(sources)[:5])}"
        raise UserError(rule, file=path, hint="give --drop-source, the source that is not a customer")
    if not left:
        raise UserError(f"no turn remains of {dropped}", file=path, hint="see --drop-source")


def from_kaldi(path: Path, drop_source: str) -> Turns:
    """Read a data directory with utt2time and utt2device (`utt device`), and optionally utt2source.

    drop_source: the source in utt2source whose turns are left out. UserError when a table is missing.
    """
    data = DataDir.read(path)
    for name, what in (("utt2time", "start in seconds"), ("utt2device", "device")):
        if name not in data.utt_tables:
            raise UserError(
                "no such file", file=path / name, hint=f"write `utt {what}` per line, sorted in C order"
            )
    source = data.utt_tables.get("utt2source", {})
    left = [u for u in data.utts if source.get(u, "").lower() != drop_source.lower()]
    _check_dropped(
        path / "utt2source",
        "source",
        drop_source,
        set(source.values()),
        len(data.utts) - len(left),
        len(left),
    )
    kept = data.subset(left, trials=False)
    extra = dict(kept.utt_tables)
    time, device = extra.pop("utt2time"), extra.pop("utt2device")
    for name in ("utt2source", "utt2dialogue"):
        extra.pop(name, None)
    kept.utt_tables, kept.dialogue2device, kept.dialogue2mixed = extra, None, None
    return Turns(
        kept,
        [device[u] for u in kept.utts],
        np.array([float(time[u]) for u in kept.utts]),
        len(data.utts) - len(kept.utts),
    )


def from_log(path: Path, kind: str, fields: Fields, drop_source: str) -> Turns:
    """Read a jsonl or csv file with one turn per line. Relative audio paths start at its folder.

    Raises UserError with the line: not a JSON object, a missing value, a blank in an id, a repeated id, a
    time that is neither seconds nor ISO 8601, or times of which only some have a zone.
    """
    rows: dict[str, tuple[str, str, float, str | None] | None] = {}
    optional: tuple[str, ...] | None = None
    zoned, dropped, sources = None, 0, set()
    plain = (fields.time, fields.source, fields.duration)  # ids and paths are checked more strictly below
    for line, raw in _jsonl(path) if kind == "jsonl" else _csv(path):

        def value(name: str, raw=raw, line=line) -> str:
            held = raw.get(name)
            text = "" if held is None else str(held).strip()
            if not text:
                raise UserError(
                    f"there is no '{name}'", file=path, line=line, hint="see the --*-field options"
                )
            if isinstance(held, bool) or not isinstance(held, str | int | float):
                raise UserError(f"'{name}' is neither text nor a number", file=path, line=line)
            # JSON can express half of a surrogate pair, which no file or terminal can take.
            if name in plain and re.search("[\ud800-\udfff]", text):
                raise UserError(f"{ascii(text)} contains half a character", file=path, line=line)
            return text

        has = tuple(name for name in (fields.source, fields.duration) if raw.get(name) not in (None, ""))
        if optional is not None and has != optional:
            odd = min(set(has) ^ set(optional))
            raise UserError(f"'{odd}' is in some lines but not in others", file=path, line=line)
        optional = has
        utt, device = value(fields.utt), value(fields.device)
        audio = value(fields.audio)
        for name in (utt, device):
            if " " in name or tables.has_bad_characters(name):
                raise UserError(f"{ascii(name)}: an id must not hold a blank", file=path, line=line)
        if tables.has_bad_characters(audio):
            rule = "a path must not contain line ends or non-ASCII blanks"
            raise UserError(f"{ascii(audio)}: {rule}", file=path, line=line, hint="rename the file")
        if utt in rows:
            raise UserError(f"{utt} is given twice", file=path, line=line)
        time, zone = _parse_time(value(fields.time), path, line)
        if abs(time) > 1e11:
            rule = f"'{raw.get(fields.time)}' is thousands of years away: milliseconds, or a date without dashes?"
            raise UserError(
                rule, file=path, line=line, hint="write seconds, or ISO 8601 such as 2026-03-01T18:02:11Z"
            )
        if zoned is not None and zone != zoned:
            raise UserError(
                "some times have a time zone (or are seconds) but others do not", file=path, line=line
            )
        zoned = zone
        seconds = None
        if fields.duration in has:
            seconds = value(fields.duration)
            if not _positive(seconds):
                raise UserError(f"'{seconds}' is not a duration above 0 seconds", file=path, line=line)
        if fields.source in has:
            sources.add(value(fields.source))
        if fields.source in has and value(fields.source).lower() == drop_source.lower():
            rows[utt], dropped = None, dropped + 1
        else:
            rows[utt] = (str(path.absolute().parent / audio), device, time, seconds)
    if not rows:
        raise UserError("contains no turn", file=path)
    kept = {utt: row for utt in sorted(rows) if (row := rows[utt]) is not None}
    _check_dropped(path, fields.source, drop_source, sources, dropped, len(kept))
    utts = list(kept)
    lengths = {u: row[3] for u, row in kept.items() if row[3] is not None}
    extra = {"utt2dur": lengths} if optional and fields.duration in optional else {}
    data = DataDir(path, utts, utts, {u: row[0] for u, row in kept.items()}, utt_tables=extra)
    return Turns(data, [r[1] for r in kept.values()], np.array([r[2] for r in kept.values()]), dropped)


def _jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    with _text(path) as f:
        for line, text in enumerate(f, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError("the line is not a JSON object", file=path, line=line)
            yield line, row


def _csv(path: Path) -> Iterator[tuple[int, dict]]:
    with _text(path) as f:
        reader = csv.DictReader(f)
        try:
            for row in reader:
                if None in row:
                    raise UserError("more columns than the first line names", file=path, line=reader.line_num)
                yield reader.line_num, row
        except csv.Error as err:
            raise UserError(f"is not CSV: {err}", file=path, line=reader.line_num) from None


def _text(path: Path) -> io.StringIO:
    """The text of a log; Excel begins it with a byte-order mark.

    UserError with the line when it is not UTF-8.
    """
    return io.StringIO(tables.decode(path), newline="")


def _positive(text: str) -> bool:
    return tables.plain_number(text) > 0


def _parse_time(text: str, path: Path, line: int) -> tuple[float, bool]:
    """(seconds since 1970, whether the zone is known) of a number or an ISO 8601 time; UTC if it is not."""
    seconds = tables.plain_number(text)
    if not math.isnan(seconds):
        return seconds, True
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"'{text}' is neither seconds nor an ISO 8601 time", file=path, line=line) from None
    zoned = time.tzinfo is not None
    return (time if zoned else time.replace(tzinfo=UTC)).timestamp(), zoned


def gaps(device: list[str], time: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Pauses (s) between consecutive turns on the same device, [N - devices]; negative for overlaps."""
    order = np.lexsort((time, np.unique(device, return_inverse=True)[1]))
    name = np.array(device)[order]
    gap = time[order][1:] - (time + seconds)[order][:-1]
    return gap[name[1:] == name[:-1]]


def sessionize(
    device: list[str],
    time: np.ndarray,
    seconds: np.ndarray,
    *,
    max_gap: float = 60.0,
    max_span: float = 600.0,
    max_utts: int = 20,
    min_utts: int = 2,
    min_dur: float = 0.5,
) -> list[str | None]:
    """Group turns into dialogues; returns the dialogue of each turn, None for turns in no dialogue.

    Args:
        device, time, seconds: device, start (s) and duration (s) of each turn.
        max_gap: a longer pause (s) between two turns on a device starts a new dialogue.
        max_span: a turn that would end later than this (s) after the dialogue's start begins a new one.
        max_utts: most turns in a dialogue.
        min_utts: smaller groups are not dialogues.
        min_dur: shorter turns (s) are ignored.

    A dialogue is named `<device>-<start in whole seconds>`, so that the names stay different when two logs of
    the same device are combined.
    """
    found: list[str | None] = [None] * len(device)
    parts: list[list[int]] = []
    last, first, latest = None, 0.0, 0.0  # device, start and end of the current dialogue
    for row in sorted(np.flatnonzero(seconds >= min_dur).tolist(), key=lambda r: (device[r], time[r])):
        start, end = float(time[row]), float(time[row] + seconds[row])
        new = (
            device[row] != last
            or start - latest > max_gap
            or end - first > max_span
            or len(parts[-1]) == max_utts
        )
        if new:
            parts.append([])
            first, latest, last = start, end, device[row]
        parts[-1].append(row)
        latest = max(latest, end)
    taken: dict[str, int] = {}
    for part in parts:
        if len(part) >= min_utts:
            name = f"{device[part[0]]}-{math.floor(time[part[0]])}"
            taken[name] = taken.get(name, 0) + 1
            for row in part:
                found[row] = name if taken[name] == 1 else f"{name}.{taken[name]}"
    return found
