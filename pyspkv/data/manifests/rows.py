"""Make a checked data directory from the rows of any list."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyspkv.base.atomic import atomic_dir, atomic_file
from pyspkv.base.errors import Shown, UserError, printable
from pyspkv.base.garbage import no_gc
from pyspkv.data.datadir import DataDir, check_replaceable
from pyspkv.data.manifests.ids import unique_ids
from pyspkv.data.tables import has_bad_characters

_GENDERS = {"m": "m", "male": "m", "f": "f", "female": "f"}
_LAST = frozenset("0123456789]")  # last characters of `archive.ark:123` and of a range
WHOLE = -1.0  # as an end: the end of the recording


@dataclass(slots=True)
class Row:
    """One utterance of a list. `line` is its line in the list, for messages."""

    path: str  # absolute, or `command |`
    utt: str = ""  # a name for it; empty: made from the recording's name and the times
    speaker: str = ""  # empty: unknown
    session: str = ""
    gender: str = ""
    recording: str = ""  # a name for the recording; empty: made from its path
    start: float | None = None  # s; None: the whole recording
    end: float = WHOLE  # s
    seconds: float | None = None  # duration of the whole recording, if the list gives it
    source: str = ""  # path relative to the folder that was searched
    line: int | None = None


@dataclass
class Skipped:
    """Entries of a list that the data directory leaves out, as (name, reason), in the order of the list."""

    items: list[tuple[str, str]]

    def add(self, name: str, reason: str) -> None:
        self.items.append((name, reason))

    def write(self, file: Path) -> None:
        """Write `reason<TAB>name` per line; unprintable characters in a name are escaped (`\\n`)."""
        with atomic_file(file, own=True) as f:
            f.writelines(f"{printable(reason)}\t{printable(name)}\n" for name, reason in self.items)

    def report(self, file: Path) -> None:
        """Print the reasons with their counts to stdout."""
        counts: dict[str, int] = {}
        for _, reason in self.items:
            kind = reason.partition(": ")[0]
            counts[kind] = counts.get(kind, 0) + 1
        for kind, number in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])):
            print(f"dropped {number}: {printable(kind)}")
        print(f"dropped {len(self.items)} in all, listed in {file}")


def unusable(path: str) -> str:
    """Why an absolute path cannot be an entry of wav.scp; "" if it can."""
    if not (path.isascii() and path.isprintable()) and has_bad_characters(path):
        return "the name holds a line end, a control character or an odd blank"
    if path != path.strip(" ") or path.endswith("|"):
        return "the name begins or ends in a blank or ends in |"
    if path[-1:] in _LAST and re.search(r":\d+$|\]$", path):
        return "the name ends like a place in an ark (:123 or ])"
    return ""


def absolute(text: str, root: Path) -> str:
    """Make a path of a list absolute; relative paths start at `root`."""
    joined = os.path.join(os.path.abspath(root), text)
    # Normpath would be wrong for a link before `..`
    return joined if ".." in text else os.path.normpath(joined)


def _checked(rows: list[Row], file: Path, skipped: Skipped, allow_pipes: bool) -> list[Row]:
    """The rows that a data directory can hold; others go to `skipped`.

    UserError for a command that is not allowed.
    """
    kept = []
    for row in rows:
        if row.path.endswith("|"):
            if not allow_pipes:
                rule = f"{row.path[:60]!a} is a command, which is not accepted from a list"
                raise UserError(
                    rule, file=file, line=row.line, hint="give --allow-pipes if you trust the list"
                )
            reason = (
                "the command contains a line end or a control character"
                if has_bad_characters(row.path)
                else ""
            )
        else:
            reason = unusable(row.path)
        if reason:
            skipped.add(row.source or row.path, reason)
        else:
            kept.append(row)
    return kept


def _utterance_names(rows: list[Row], recordings: dict[str, str], segmented: bool, file: Path) -> list[str]:
    """A name for each row. UserError when a name, or a segment of a recording, occurs twice."""
    seen: dict[str, int | None] = {}
    out = []
    for row in rows:
        name = row.utt
        if not name:
            name = row.source or recordings[row.recording or row.path]
            if segmented and row.start is not None:
                end = "end" if row.end < 0 else f"{round(100 * row.end):07d}"
                name = f"{name}-{round(100 * row.start):07d}-{end}"
        if name in seen:
            other = f", as in line {seen[name]}" if seen[name] else ""
            raise UserError(
                f"the utterance {name[:80]!a} is given twice{other}",
                file=file,
                line=row.line,
                hint="give each utterance a name of its own, or remove the repeated line",
            )
        seen[name] = row.line
        out.append(name)
    return out


def to_data_dir(
    out: Path, rows: Iterable[Row], file: Path, skipped: Skipped, *, allow_pipes: bool = False
) -> DataDir:
    """Make a data directory from rows; it is not written yet. Ids are made by `ids.unique_ids`.

    file: the list, for messages. Besides the usual tables there may be utt2session, spk2gender, utt2dur, and
    utt2name and spk2name with the original names of renamed utterances and speakers.

    Raises UserError when no row is left, a name occurs twice, a recording has two paths, or a speaker two
    genders.
    """
    with no_gc():
        rows = _checked(list(rows), file, skipped, allow_pipes)
        if not rows:
            what = f"; the first: {skipped.items[0][1]}" if skipped.items else ""
            raise UserError(f"lists no usable audio{what}", file=file)
        segmented = any(row.start is not None for row in rows)
        named = not segmented and all(row.utt for row in rows)
        recordings = {} if named else _recordings(rows, file)
        names = _utterance_names(rows, recordings, segmented, file)
        utt = unique_ids(names)
        known = unique_ids({row.speaker for row in rows if row.speaker})
        spk = {utt[n]: known[r.speaker] if r.speaker else utt[n] for n, r in zip(names, rows)}
        tables: dict[str, dict] = {"utt2spk": spk}
        if segmented:
            ids = {key: recordings[key] for key in (row.recording or row.path for row in rows)}
            tables["wav.scp"] = {ids[r.recording or r.path]: r.path for r in rows}
            tables["segments"] = {
                utt[n]: (ids[r.recording or r.path], r.start or 0.0, r.end) for n, r in zip(names, rows)
            }
        else:
            tables["wav.scp"] = {utt[n]: r.path for n, r in zip(names, rows)}
            if all(row.seconds for row in rows):
                tables["utt2dur"] = {utt[n]: repr(r.seconds) for n, r in zip(names, rows)}
        tables |= _more_tables(rows, names, utt, known, file)
        return DataDir.from_tables(out, tables, {})


def _recordings(rows: list[Row], file: Path) -> dict[str, str]:
    """Recording (its name, or its path) -> id.

    A path gives its file name if that is unique, else the whole path.
    """
    paths: dict[str, str] = {}
    for row in rows:
        if paths.setdefault(row.recording or row.path, row.path) != row.path:
            rule = f"the recording {row.recording[:60]!a} has two paths"
            raise UserError(rule, file=file, line=row.line, hint="give each recording one name and one path")
    short = {key: Path(key).stem if path == key else key for key, path in paths.items()}
    number = Counter(short.values())
    names = {
        key: name if number[name] == 1 and (name == key or name not in paths) else key
        for key, name in short.items()
    }
    ids = unique_ids(names.values())
    return {key: ids[name] for key, name in names.items()}


def _more_tables(
    rows: list[Row], names: list[str], utt: dict[str, str], spk: dict[str, str], file: Path
) -> dict[str, dict[str, str]]:
    """utt2path or utt2name, spk2name, utt2session and spk2gender, as far as the rows have the information."""
    out: dict[str, dict[str, str]] = {}
    if any(row.source for row in rows):
        out["utt2path"] = {utt[n]: r.source or r.path for n, r in zip(names, rows)}
    elif any(utt[n] != n for n in names):
        out["utt2name"] = {utt[n]: _in_table(n) for n in names}
    if any(row.session for row in rows):
        session = unique_ids({row.session for row in rows if row.session})
        out["utt2session"] = {
            utt[n]: session[r.session] if r.session else utt[n] for n, r in zip(names, rows)
        }
    speakers = {n: spk[r.speaker] if r.speaker else utt[n] for n, r in zip(names, rows)}
    if any(spk[name] != name for name in spk):
        before = {new: _in_table(old) for old, new in spk.items()}
        out["spk2name"] = {s: before.get(s, s) for s in speakers.values()}
    gender: dict[str, str] = {}
    for name, row in zip(names, rows):
        found = _GENDERS.get(row.gender.lower())
        if found and gender.setdefault(speakers[name], found) != found:
            rule = f"the speaker {row.speaker[:60]!a} has both m and f"
            raise UserError(rule, file=file, line=row.line, hint="correct the list")
    missing = set(speakers.values()) - gender.keys()
    if gender and missing:
        print(f"no spk2gender: {len(missing)} of {len(set(speakers.values()))} speakers have no m or f")
    elif gender:
        out["spk2gender"] = gender
    return out


def _in_table(name: str) -> str:
    """A name as a table can hold it: unchanged if possible, else in Python's notation (`'a\\nb'`)."""
    return name if name and name == name.strip(" ") and not has_bad_characters(name) else ascii(name)


def write(data: DataDir, out: Path) -> None:
    """Write a data directory atomically, after checking it in the same way as validate_data_dir.sh."""
    check_replaceable(out)
    with no_gc(), atomic_dir(out, own=True) as tmp:
        data._write_files(tmp)
        try:
            DataDir.read(tmp)
        except UserError as err:
            raise UserError(Shown(str(err).replace(str(tmp), printable(str(out))))) from None
