"""Rows from tables and JSON lines with named columns or keys, including NeMo's and WeSpeaker's lists."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.manifests.lines import inner, json_lines, seconds, text, text_lines
from pyspkv.data.manifests.rows import WHOLE, Row, Skipped, absolute


@dataclass(frozen=True)
class Keys:
    """Names of a list's columns or keys; "" means that the list does not have it.

    `start` with `end` or `duration` gives segments; `duration` alone is that of the recording.
    """

    audio: str = "path"
    utt: str = "utt"
    speaker: str = "speaker"
    session: str = "session"
    gender: str = "gender"
    start: str = "start"
    end: str = "end"
    duration: str = "duration"
    unknown: tuple[str, ...] = ("", "-")  # values that mean an unknown speaker


NEMO = Keys(
    "audio_filepath", "utt", "label", "session", "gender", "offset", "", "duration", ("", "-", "infer")
)
WESPEAKER = Keys("wav", "key", "spk", "", "", "", "", "", ("", "-"))


def rows(records: Iterable[tuple[int, dict]], keys: Keys, file: Path, root: Path) -> Iterator[Row]:
    """Yield a Row for each record.

    UserError with the line when audio is missing, a value is wrong, or end <= start.
    """
    for line, record in records:

        def value(key: str, record=record, line=line) -> str:
            return text(inner(record, key), f"'{key}'", file, line) if key else ""

        def time(key: str, record=record, line=line) -> float | None:
            return seconds(inner(record, key), f"'{key}'", file, line) if key else None

        path = value(keys.audio)
        if not path:
            there = ", ".join(map(str, list(record)[:10]))
            rule = f"has no '{keys.audio}'; there are {there}"
            raise UserError(
                rule, file=file, line=line, hint="see the options that name columns or keys in --help"
            )
        start, end, duration = time(keys.start), time(keys.end), time(keys.duration)
        if start is None and end is not None:
            start = 0.0
        if start is not None and end is None:
            end = WHOLE if duration is None else round(start + duration, 9)
        if start is not None and end is not None and end != WHOLE and end <= start:
            raise UserError(f"ends at {end:g} s but starts at {start:g} s", file=file, line=line)
        speaker = value(keys.speaker)
        yield Row(
            path if path.rstrip().endswith("|") else absolute(path, root),
            utt=value(keys.utt),
            speaker="" if speaker in keys.unknown else speaker,
            session=value(keys.session),
            gender=value(keys.gender),
            start=start,
            end=WHOLE if end is None else end,
            seconds=duration if start is None else None,
            line=line,
        )


def wespeaker(file: Path, root: Path, skipped: Skipped) -> Iterator[Row]:
    """Yield Rows of WeSpeaker's raw.list (a JSON object with key, wav and spk per line).

    UserError for a shard.list.
    """
    for _, first in text_lines(file):
        if first.strip():
            if not first.lstrip().startswith("{"):
                rule = (
                    "is a list of archives (shard.list), not a raw.list"
                    if ".tar" in first
                    else "is not a raw.list"
                )
                hint = (
                    "give the raw.list that tools/make_raw_list.py makes, or unpack the shards: from-folder"
                )
                raise UserError(rule, file=file, line=1, hint=hint)
            break
    with_vad = 0
    for line, record in json_lines(file):
        with_vad += "vad" in record
        yield from rows([(line, record)], WESPEAKER, file, root)
    if with_vad:
        print(f"{file}: 'vad' of {with_vad} lines is not used; from-jsonl takes start and end")
