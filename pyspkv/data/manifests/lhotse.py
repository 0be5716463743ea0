"""Read manifests of lhotse (https://lhotse.readthedocs.io), JSON lines: recordings with supervisions, or
cuts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.base.foreign import short
from pyspkv.data.manifests.lines import json_lines, seconds, text
from pyspkv.data.manifests.rows import Row, Skipped, absolute

_NEAR = 0.01  # s: a segment that is as long as the recording up to this difference is the whole recording
_HINT = "lhotse writes such a file with to_file('x.jsonl.gz')"


@dataclass(frozen=True)
class Recording:
    """The parts of lhotse's Recording that are needed here; seconds is its duration."""

    name: str
    path: str
    seconds: float
    channels: tuple[int, ...]


class Unusable(Exception):
    """Raised with the reason when an entry of a manifest cannot be used as an utterance."""


def _list(value, name: str, file: Path, line: int) -> list:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"{name} is {short(value)}, not a list", file=file, line=line, hint=_HINT)
    return value


def _objects(value, name: str, file: Path, line: int) -> list[dict]:
    found = _list(value, name, file, line)
    if not all(isinstance(item, dict) for item in found):
        raise UserError(f"{name} has an element that is not an object", file=file, line=line, hint=_HINT)
    return found


def _id(record: dict, file: Path, line: int) -> str:
    name = text(record.get("id"), "'id'", file, line)
    if not name:
        raise UserError("has no 'id'", file=file, line=line, hint=_HINT)
    return name


def recording(record: dict, file: Path, line: int, root: Path) -> Recording:
    """Parse a recording. UserError when a field is missing.

    Raises Unusable for several sources, audio in memory or behind a URL, or transforms.
    """
    name = _id(record, file, line)
    sources = _objects(record.get("sources"), "'sources'", file, line)
    length = seconds(record.get("duration"), "'duration'", file, line)
    if not sources or length is None:
        raise UserError(
            "is not a recording: it has no 'sources' or no 'duration'", file=file, line=line, hint=_HINT
        )
    if len(sources) > 1:
        raise Unusable("the recording has several sources")
    if record.get("transforms"):
        raise Unusable(
            "the recording has transforms, which are not applied here; save the audio with them first"
        )
    kind = sources[0].get("type")
    if kind not in ("file", "command"):
        raise Unusable(f"the source is of type {short(kind)}, not a file")
    source = text(sources[0].get("source"), "'source'", file, line)
    if not source:
        raise UserError("has a source without 'source'", file=file, line=line, hint=_HINT)
    found = _list(record.get("channel_ids") or sources[0].get("channels"), "'channels'", file, line)
    channels = tuple(c for c in found if isinstance(c, int)) or (0,)
    path = f"{source.rstrip(' |')} |" if kind == "command" else absolute(source, root)
    return Recording(name, path, length, channels)


def _channel(record: dict, source: Recording, file: Path, line: int) -> None:
    """Unusable when only some of several channels are wanted: channels are averaged when audio is read."""
    value = record.get("channel", 0)
    wanted = {value} if isinstance(value, int) else set(map(str, _list(value, "'channel'", file, line)))
    if len(source.channels) > 1 and len(wanted) < len(source.channels):
        raise Unusable(
            "it is one channel of several, and channels are averaged here; write it to a file first"
        )


def _row(name: str, source: Recording, start: float, length: float, who: dict, file: Path, line: int) -> Row:
    if length <= 0:
        raise UserError(f"'duration' is {length:g}", file=file, line=line, hint=_HINT)
    whole = start == 0 and abs(length - source.seconds) < _NEAR
    return Row(
        source.path,
        utt=name,
        speaker=text(who.get("speaker"), "'speaker'", file, line),
        gender=text(who.get("gender"), "'gender'", file, line),
        session="" if whole else source.name,
        recording=source.name,
        start=None if whole else start,
        end=-1.0 if whole else round(start + length, 9),
        seconds=source.seconds if whole else None,
        line=line,
    )


def _span(record: dict, file: Path, line: int) -> tuple[float, float]:
    start, length = (seconds(record.get(k), f"'{k}'", file, line) for k in ("start", "duration"))
    if start is None or length is None:
        raise UserError("has no 'start' or no 'duration'", file=file, line=line, hint=_HINT)
    return start, length


def from_recordings(
    recordings: Path, supervisions: Path | None, root: Path, skipped: Skipped
) -> Iterator[Row]:
    """Yield a Row for each supervision, or for each recording if there are no supervisions."""
    known: dict[str, Recording | str] = {}
    lines: dict[str, int] = {}
    for line, record in json_lines(recordings, _HINT):
        name = _id(record, recordings, line)
        if name in known:
            raise UserError(f"the recording {short(name)} is given twice", file=recordings, line=line)
        lines[name] = line
        try:
            known[name] = recording(record, recordings, line, root)
        except Unusable as err:
            known[name] = str(err)
    if supervisions is None:
        for name, source in known.items():
            if isinstance(source, str):
                skipped.add(name, source)
            else:
                yield _row(name, source, 0, source.seconds, {}, recordings, lines[name])
        return
    for line, record in json_lines(supervisions, _HINT):
        name = _id(record, supervisions, line)
        found = known.get(of := text(record.get("recording_id"), "'recording_id'", supervisions, line))
        span = _span(record, supervisions, line)
        if found is None:
            rule = f"the recording {short(of)} is not in {recordings}"
            raise UserError(rule, file=supervisions, line=line, hint="give the two files of one corpus")
        try:
            if isinstance(found, str):
                raise Unusable(found)
            _channel(record, found, supervisions, line)
            yield _row(name, found, *span, record, supervisions, line)
        except Unusable as err:
            skipped.add(name, str(err))


def from_cuts(cuts: Path, root: Path, skipped: Skipped) -> Iterator[Row]:
    """Yield a Row for each cut. Its speaker is that of its supervisions, if they have one."""
    for line, record in json_lines(cuts, _HINT):
        name = _id(record, cuts, line)
        try:
            yield _cut(name, record, cuts, line, root)
        except Unusable as err:
            skipped.add(name, str(err))


def _cut(name: str, record: dict, cuts: Path, line: int, root: Path) -> Row:
    kind = record.get("type", "MonoCut")
    if kind not in ("MonoCut", "MultiCut"):
        raise Unusable(f"it is a {short(kind)}; save_audios() of lhotse makes plain cuts")
    span, found = _span(record, cuts, line), record.get("recording")
    if not isinstance(found, dict):
        raise Unusable("the cut has no recording (only features)")
    source = recording(found, cuts, line, root)
    _channel(record, source, cuts, line)
    who: dict[str, dict] = {}
    for item in _objects(record.get("supervisions"), "'supervisions'", cuts, line):
        who[text(item.get("speaker"), "'speaker'", cuts, line)] = item
    if len(who) > 1:
        raise Unusable("the cut has several speakers; trim_to_supervisions() of lhotse separates them")
    return _row(name, source, *span, next(iter(who.values()), {}), cuts, line)
