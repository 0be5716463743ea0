"""Write data directories as lists for other toolkits: WeSpeaker's raw.list, NeMo's JSON lines, CSV,
lhotse."""

import csv
import gzip
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import plain_number

COLUMNS = ("utt", "path", "speaker", "session", "gender", "start", "end")


@dataclass(frozen=True)
class Entry:
    """An utterance as other toolkits see it. start, end: seconds in its file; end None: the file's end."""

    utt: str
    path: str
    speaker: str  # empty: unknown
    recording: str
    start: float
    end: float | None


def entries(data: DataDir, what: str) -> Iterator[Entry]:
    """Yield the entries of `data`.

    UserError when wav.scp has a command or an ark, which `what` cannot name.
    """
    for reco, path in data.wav.items():
        if path.endswith("|") or re.search(r":\d+(\[.*\])?$", path):
            rule = f"{what} names files, but {reco} is a command or a place in an ark"
            raise UserError(rule, file=data.path / "wav.scp", hint="first write the audio to files")
    for utt, spk in zip(data.utts, data.spk):
        reco, start, end = data.segments[utt] if data.segments else (utt, 0.0, -1.0)
        speaker = "" if spk == utt else spk
        yield Entry(utt, os.path.abspath(data.wav[reco]), speaker, reco, start, end if end >= 0 else None)


def _line(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def wespeaker(data: DataDir) -> Iterator[str]:
    """Lines of raw.list.

    An unknown speaker is written as the utterance's id. UserError when there are segments.
    """
    if data.segments:
        rule = "raw.list lists whole files, but this directory has segments"
        raise UserError(rule, file=data.path / "segments", hint="to-jsonl, to-csv or to-lhotse keep them")
    for e in entries(data, "raw.list"):
        yield _line({"key": e.utt, "wav": e.path, "spk": e.speaker or e.utt})


def _durations(data: DataDir) -> dict[str, float]:
    """Recording -> seconds, from reco2dur or utt2dur, else from the audio's header."""
    known = data.reco_tables.get("reco2dur") or (None if data.segments else data.utt_tables.get("utt2dur"))
    if known:
        return {r: plain_number(d) for r, d in known.items()}
    from pyspkv.audio.reader import AudioReader

    ids = sorted(data.wav)
    reader = AudioReader(DataDir(data.path, ids, ids, data.wav))
    return {r: reader.num_samples(row) / 16000 for row, r in enumerate(ids)}


def nemo(data: DataDir) -> Iterator[str]:
    """Lines of a NeMo manifest, with the id in an extra key `utt`.

    An unknown speaker gets the label `infer`.
    """
    whole = _durations(data)
    for e in entries(data, "the manifest"):
        record: dict[str, Any] = {"audio_filepath": e.path}
        end = whole[e.recording] if e.end is None else min(e.end, max(whole[e.recording], e.start))
        if data.segments:
            record["offset"] = e.start
        yield _line(
            record | {"duration": round(end - e.start, 9), "label": e.speaker or "infer", "utt": e.utt}
        )


def table(data: DataDir) -> Iterator[str]:
    """Lines of a CSV file with from-csv's default columns; columns without content are left out."""
    session, gender = data.utt_tables.get("utt2session", {}), data.spk_tables.get("spk2gender", {})
    columns = [c for c in COLUMNS if data.segments or c not in ("start", "end")]
    columns = [c for c in columns if (c != "session" or session) and (c != "gender" or gender)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for e, spk in zip(entries(data, "the table"), data.spk):
        row = {"utt": e.utt, "path": e.path, "speaker": e.speaker, "session": session.get(e.utt)}
        row |= {
            "gender": gender.get(spk),
            "start": repr(e.start),
            "end": "" if e.end is None else repr(e.end),
        }
        writer.writerow([row[c] for c in columns])
        yield out.getvalue()
        out.seek(0)
        out.truncate()


def _info(path: str, data: DataDir, reco: str) -> tuple[int, int, int]:
    """(sample rate, samples, channels) from the file's header. UserError when it cannot be opened."""
    import soundfile

    try:
        found = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as err:
        raise UserError(f"{reco}: {path} cannot be opened ({err})", file=data.path / "wav.scp") from None
    return found.samplerate, found.frames, found.channels


def lhotse(data: DataDir, folder: Path) -> None:
    """Write lhotse's recordings.jsonl.gz and supervisions.jsonl.gz into an existing folder."""
    gender, length, channels = data.spk_tables.get("spk2gender", {}), {}, {}
    listed = list(entries(data, "a recording of lhotse"))
    with _packed(folder / "recordings.jsonl.gz") as f:
        for reco, path in sorted({(e.recording, e.path) for e in listed}):
            rate, frames, n = _info(path, data, reco)
            length[reco], channels[reco] = frames / rate, list(range(n))
            source = {"type": "file", "channels": channels[reco], "source": path}
            record = {"id": reco, "sources": [source], "sampling_rate": rate, "num_samples": frames}
            f.write(_line(record | {"duration": frames / rate, "channel_ids": channels[reco]}))
    with _packed(folder / "supervisions.jsonl.gz") as f:
        for e, spk in zip(listed, data.spk):
            end = length[e.recording] if e.end is None else min(e.end, length[e.recording])
            channel = channels[e.recording] if len(channels[e.recording]) > 1 else 0
            record = {
                "id": e.utt,
                "recording_id": e.recording,
                "start": e.start,
                "duration": round(end - e.start, 9),
            }
            record["channel"] = channel
            record |= {"speaker": e.speaker} if e.speaker else {}
            record |= {"gender": gender[spk]} if spk in gender else {}
            f.write(_line(record))


def _packed(file: Path) -> io.TextIOWrapper:
    """A gzip file for text, without a time stamp, so that the same text gives the same bytes."""
    return io.TextIOWrapper(gzip.GzipFile(file, "wb", mtime=0), encoding="utf-8", newline="\n")
