"""Hugging Face data sets as `save_to_disk` writes them: Arrow files, read by pyarrow without decoding any
audio.

The audio column holds structs of `bytes` and `path`, as with `Audio(decode=False)`. The bytes are written to
files.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pyspkv.base import foreign
from pyspkv.base.errors import UserError
from pyspkv.data.manifests.folder import READ
from pyspkv.data.manifests.lines import text
from pyspkv.data.manifests.rows import Row, Skipped, absolute

_AGAIN = "save it again with save_to_disk"
_MAGIC = [
    (b"RIFF", "wav"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"ID3", "mp3"),
    (b"FORM", "aiff"),
    (b"RF64", "wav"),
]
FOLDER = 10_000  # most files in one folder


def files_of(folder: Path) -> tuple[list[Path], dict]:
    """(Arrow files in order, features by column).

    UserError for a folder of several splits or of another kind.
    """
    if (folder / "dataset_dict.json").is_file():
        names = foreign.read_json(folder / "dataset_dict.json").get("splits")
        known = ", ".join(map(str, names[:10])) if isinstance(names, list) else "?"
        raise UserError(f"contains the splits {known}", file=folder, hint="give one of these folders")
    if not (folder / "state.json").is_file():
        rule = "is not a data set saved with save_to_disk (it has no state.json)"
        raise UserError(rule, file=folder, hint="in Python: datasets.load_dataset(...).save_to_disk(FOLDER)")
    listed = foreign.read_json(folder / "state.json").get("_data_files")
    listed = listed if isinstance(listed, list) else []
    names = [item.get("filename") for item in listed if isinstance(item, dict)]
    if not names or not all(isinstance(n, str) and "/" not in n and n.endswith(".arrow") for n in names):
        raise UserError("lists no Arrow files", file=folder / "state.json", hint=_AGAIN)
    info = folder / "dataset_info.json"
    features = foreign.read_json(info).get("features") if info.is_file() else None
    return [folder / n for n in names], features if isinstance(features, dict) else {}


def records(files: list[Path], columns: list[str]) -> Iterator[dict]:
    """Yield each row's values in those of `columns` that exist; the first column must.

    Raises UserError when pyarrow or the first column is missing, or a file is damaged.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise UserError("Arrow files need the package pyarrow", hint="pip install pyarrow") from None
    for file in files:
        foreign.regular(file)
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                there = [name for name in columns if name in stream.schema.names]
                if columns[0] not in there:
                    known = ", ".join(stream.schema.names[:10])
                    rule = f"has no column {foreign.short(columns[0])}; there are {known}"
                    raise UserError(rule, file=file, hint="see the --*-column options")
                for batch in stream:
                    for k in range(batch.num_rows):  # row by row, because a batch may hold 1 GB of audio
                        yield {name: batch.column(name)[k].as_py() for name in there}
        except (pa.ArrowException, ValueError, OSError) as err:
            raise UserError(f"cannot be read as Arrow data ({err})", file=file, hint=_AGAIN) from None


def names_of(features: dict, column: str) -> list[str] | None:
    """The names for the numbers in a ClassLabel column; None for another column."""
    found = features.get(column)
    names = found.get("names") if isinstance(found, dict) and found.get("_type") == "ClassLabel" else None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def _ending(data: bytes, path: str) -> str:
    """File name extension for audio bytes: by their first bytes, else by the original file name."""
    for magic, ending in _MAGIC:
        if data.startswith(magic):
            return ending
    ending = os.path.splitext(path)[1][1:].lower()
    return ending if ending in READ else "mp3" if data[:1] == b"\xff" else "bin"


def rows(
    folder: Path, audio: str, speaker: str, utt: str, session: str, out: Path, place: Path, skipped: Skipped
) -> Iterator[Row]:
    """Yield a Row for each row of the data set, and write audio bytes below `out`.

    Args:
        folder: the data set.
        audio, speaker, utt, session: names of columns. Without an `utt` column the utterance is named after
            its file, with the number of the row appended if that name is not unique.
        out: folder for the audio now.
        place: the final name of that folder.
        skipped: gets rows that have neither bytes nor a path.

    Raises UserError as `records`, or when the audio column holds something else.
    """
    files, features = files_of(folder)
    wanted = [audio, *(c for c in (speaker, utt, session) if c)]
    labels = {c: names_of(features, c) for c in wanted[1:]}
    seen: set[str] = set()
    for number, record in enumerate(records(files, wanted)):
        held = record[audio]
        if isinstance(held, str):
            held = {"path": held}
        if not isinstance(held, dict):
            rule = f"row {number}: '{audio}' holds {foreign.short(held)}, neither a path nor bytes and path"
            raise UserError(
                rule, file=folder, hint="in Python: data.cast_column('audio', Audio(decode=False))"
            )
        data, path = held.get("bytes"), text(held.get("path"), f"row {number}: path", folder, None)

        def value(column: str, record=record, number=number) -> str:
            found, names = record.get(column), labels.get(column)
            if names and isinstance(found, int) and 0 <= found < len(names):
                return names[found]
            return text(found, f"row {number}: '{column}'", folder, None)

        name = value(utt) or os.path.splitext(os.path.basename(path))[0] or f"{number:08d}"
        if name in seen and not value(utt):
            name = f"{name}-{number:08d}"
        seen.add(name)
        if isinstance(data, bytes) and data:
            below = f"{number // FOLDER:04d}/{number:08d}.{_ending(data, path)}"
            (out / below).parent.mkdir(exist_ok=True)
            (out / below).write_bytes(data)
            where = absolute(below, place)
        elif path:
            where = absolute(path, folder)
        else:
            skipped.add(f"row {number}", "it has neither bytes nor a path")
            continue
        yield Row(where, utt=name, speaker=value(speaker), session=value(session))
