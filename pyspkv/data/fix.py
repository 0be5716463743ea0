"""Correct a data directory in place: order, blanks, repeated ids, broken lines, and ids missing from some file."""

import os
import shutil
from itertools import count, islice
from operator import gt
from pathlib import Path

from pyspkv.base.atomic import atomic_dir, command_line, scratch_dir
from pyspkv.base.errors import Shown, UserError, printable
from pyspkv.base.garbage import no_gc
from pyspkv.data.datadir import OVERSHOOT, DataDir, list_tables, spk2utt_lines
from pyspkv.data.tables import checked_segment, read_columns, salvage
from pyspkv.data.trials import contradiction, cut_trials, enrol_side, other_form

# These are measured from the audio. An incomplete one is removed, because it must not cost utterances.
_DERIVED = ("utt2dur", "utt2num_samples", "utt2num_frames", "reco2dur")
# These are edited by hand: to shorten one of them and then fix the rest is Kaldi's way to cut a directory.
_CHOSEN = ("utt2spk", "wav.scp", "segments")
_BY_HAND = "correct the file, or move it out of the folder; nothing was changed"


def fix(path: str | Path, check_audio: bool = False) -> list[str]:
    """Correct the directory so that `DataDir.read` accepts it; return notes on the changes (empty: none).

    - Only utterances that every file has are kept.
    - utt2spk or spk2utt is made from the other one.
    - A trial list in another common form (`1 enrol test`, paths) is converted.
    - Segments are cut at the end of their recording, according to reco2dur or else to the audio's header.
    - Files measured from the audio (utt2dur, ...) and speaker files are removed when they are incomplete.
    - With `check_audio` every recording's header is read.

    The new files are first written to a temporary folder and checked there. The replaced files are kept in
    PATH/.backup, PATH/.backup.2 and so on. After a kill between two files, a second run gives the same
    result.

    Raises UserError, with nothing changed: when more than half of a file or of the utterances would be lost,
    when a list of trials or models is mostly about unknown utterances, when audio cannot be read (with
    `check_audio`), or when no rule repairs a problem.
    """
    path = Path(path)
    present = list_tables(path)
    if "utt2spk" not in present and "spk2utt" not in present:
        raise UserError("no such file", file=path / "utt2spk", hint="write it: `utt spk` per line")
    if "segments" in present and "wav.scp" not in present:
        raise UserError("no such file", file=path / "wav.scp", hint="write it: `id path` per line")
    with no_gc():
        changed: set[str] = set()
        tables, trials, notes = _read(path, present, changed)
        _cut(path, tables, trials, notes, changed)
        if _fit_to_audio(path, tables, check_audio, notes, changed):
            _cut(path, tables, trials, notes, changed)
        _replace(path, present, tables, trials, notes, changed)
    return notes


def _columns(file: Path, kind: str, unique: bool, notes: list[str], changed: set[str]):
    """Keys and values of a table; for a broken table those that `salvage` can read."""
    try:
        keys, values = read_columns(file, kind, in_order=False)
        if unique and len(set(keys)) < len(keys):
            raise UserError("repeated ids")
    except UserError:
        keys, values, dropped = salvage(file, kind, unique)
        notes += dropped
        changed.add(file.name)
    return keys, values


def _read(path: Path, present: dict, changed: set[str]):
    """(tables, trials, notes). Adds the names of files that must be written again to `changed`."""
    tables: dict[str, dict[str, str]] = {}
    trials: dict[str, list[str]] = {}
    notes: list[str] = []
    for name, (keyed, kind) in present.items():
        if keyed == "trials" or (name == "spk2utt" and "utt2spk" in present):
            continue
        keys, values = _columns(path / name, kind, True, notes, changed)
        if not keys and name not in _DERIVED and keyed in ("utt", "model"):
            hint = "write it: `utt spk` per line" if name == "utt2spk" else command_line("rm", path / name)
            raise UserError("the file is empty", file=path / name, hint=hint)
        if any(map(gt, keys, islice(keys, 1, None))):
            changed.add(name)
        tables[name] = dict(zip(keys, values))
    if "utt2spk" not in present:
        tables["utt2spk"] = _inverse(path / "spk2utt", tables.pop("spk2utt"))
        changed.add("utt2spk")
        notes.append(f"{path / 'utt2spk'}: made from spk2utt")
    for name in (n for n, (keyed, _) in present.items() if keyed == "trials"):
        trials[name] = _read_trials(path / name, tables, notes, changed)
        if pair := contradiction(trials[name]):
            hint = "delete the wrong line"
            raise UserError(f"{pair} is both target and nontarget", file=path / name, hint=hint)
    return tables, trials, notes


def _inverse(file: Path, spk2utt: dict[str, str]) -> dict[str, str]:
    utt2spk: dict[str, str] = {}
    for spk, utts in spk2utt.items():
        for utt in utts.split(" "):
            if utt2spk.setdefault(utt, spk) != spk:
                raise UserError(f"{utt} has two speakers", file=file, hint="delete it from one of the lines")
    return utt2spk


def _read_trials(file: Path, tables: dict[str, dict], notes: list[str], changed: set[str]) -> list[str]:
    """Lines `enrol test target|nontarget`.

    A list in another form is converted, and paths in it become utterances.
    """
    try:
        keys, values = read_columns(file, "trial", in_order=False)
        return [f"{k} {v}" for k, v in zip(keys, values)]
    except UserError:
        changed.add(file.name)
    found = other_form(file.read_bytes())
    if found is None:
        keys, values = _columns(file, "trial", False, notes, changed)
        if not keys:
            raise UserError("the file is empty", file=file, hint=command_line("rm", file))
        return [f"{k} {v}" for k, v in zip(keys, values)]
    rows = [line.split(" ") for line in found[0]]
    named = {word for e, t, _ in rows for word in (e, t)}
    utt_of = _by_path(named - tables["utt2spk"].keys() - tables.get("enrol_map", {}).keys(), tables)
    paths = f", {len(utt_of)} paths to utterances" if utt_of else ""
    notes.append(f"{file}: converted to `enrol test target|nontarget`{paths}")
    return [f"{utt_of.get(e, e)} {utt_of.get(t, t)} {label}" for e, t, label in rows]


def _by_path(paths: set[str], tables: dict[str, dict]) -> dict[str, str]:
    """Path -> utterance whose audio path ends in that path (without extension), if there is exactly one."""
    if "segments" in tables or not paths:
        return {}

    def end(path: str, parts: int) -> str:
        return "/".join(os.path.splitext(path)[0].split("/")[-parts:])

    out = {}
    for parts in {p.count("/") + 1 for p in paths}:
        utts: dict[str, list[str]] = {}
        for utt, entry in tables.get("wav.scp", {}).items():
            if utt in tables["utt2spk"] and not entry.endswith("|"):
                utts.setdefault(end(entry, parts), []).append(utt)
        for path in paths:
            if path.count("/") + 1 == parts and len(of := utts.get(end(path, parts), [])) == 1:
                out[path] = of[0]
    return out


def _lengths(path: Path, wav: dict[str, str], strict: bool) -> dict[str, float]:
    """Recording -> seconds, from its header.

    Commands are not run. With `strict`, UserError for unreadable audio.
    """
    from pyspkv.audio.reader import SAMPLE_RATE, AudioReader

    recos = [r for r, entry in wav.items() if not entry.endswith("|")]
    if not strict:
        recos = [r for r in recos if os.path.isfile(wav[r])]
    reader = AudioReader(
        DataDir(None, recos, recos, wav)  # type: ignore[arg-type] # there is no folder behind it
    )
    seconds, bad = {}, []
    for row, reco in enumerate(recos):
        try:
            seconds[reco] = reader.num_samples(row) / SAMPLE_RATE
        except UserError as err:
            bad.append(str(err).partition("\n")[0].removeprefix("utterance "))
    if strict and bad:
        shown = [*bad[:100], *([f"and {len(bad) - 100} more"] if len(bad) > 100 else [])]
        hint = "put these files in place, or remove their lines from wav.scp, and run this again"
        rule = f"{len(bad)} of {len(wav)} recordings cannot be read; nothing was changed"
        raise UserError(Shown("\n  ".join([rule, *map(printable, shown)])), file=path / "wav.scp", hint=hint)
    return seconds


def _fit_to_audio(path: Path, tables: dict, check: bool, notes: list[str], changed: set[str]) -> bool:
    """Fit segments to the audio's headers, if `check` is given or reco2dur is missing.

    True if anything changed.
    """
    if not check and ("segments" not in tables or "reco2dur" in tables):
        return False
    seconds = _lengths(path, tables.get("wav.scp", {}), check)
    if check and (commands := len(tables.get("wav.scp", {})) - len(seconds)):
        notes.append(f"{path / 'wav.scp'}: {commands} entries are commands, which were not run")
    return "segments" in tables and _fit(path, tables, seconds, notes, changed)


def _fit(path: Path, tables: dict, seconds: dict[str, float], notes: list[str], changed: set[str]) -> bool:
    """Cut segments at the end of their recording, and remove those that start there. True if anything
    changed.

    utt2dur is corrected too; utt2num_samples and utt2num_frames are removed, because they no longer fit.
    """
    segments, shorter, beyond = tables["segments"], {}, []
    for utt, value in segments.items():
        reco, start, end = checked_segment(value)
        total = seconds.get(reco, float("inf"))
        if start * 16000 + 0.5 >= total * 16000:  # less than one sample would be left
            beyond.append(utt)
        elif end > total + OVERSHOOT:
            shorter[utt] = round(total - start, 6)
            segments[utt] = f"{reco} {value.split(' ')[1]} {repr(total).removesuffix('.0')}"
    for utt in beyond:
        del segments[utt]
    for utt in shorter.keys() & tables.get("utt2dur", {}).keys():
        tables["utt2dur"][utt] = repr(shorter[utt])
        changed.add("utt2dur")
    if shorter:
        notes.append(
            f"{path / 'segments'}: {len(shorter)} end where their recording does (first: {min(shorter)})"
        )
        for name in tables.keys() & {"utt2num_samples", "utt2num_frames"}:
            notes.append(f"{path / name}: removed, because segments were shortened")
            del tables[name]
    if beyond:
        notes.append(
            f"{path / 'segments'}: {len(beyond)} beyond their recording's end are removed: {beyond[0]} ..."
        )
    if shorter or beyond:
        changed.add("segments")
    return bool(shorter or beyond)


def _cut_segments(path: Path, tables: dict, notes: list[str], changed: set[str]) -> None:
    """Remove segments of unknown recordings, and fit the others to reco2dur.

    UserError when most would be lost.
    """
    segments, wav = tables["segments"], tables["wav.scp"]
    unknown = [utt for utt, value in segments.items() if value.split(" ", 1)[0] not in wav]
    if 2 * len(unknown) > len(segments):
        rule = (
            f"{len(unknown)} of {len(segments)} name recordings that are not in wav.scp (first: {unknown[0]})"
        )
        raise UserError(rule, file=path / "segments", hint=_BY_HAND)
    for utt in unknown:
        del segments[utt]
    before = dict(segments)
    _fit(path, tables, {r: float(d) for r, d in tables.get("reco2dur", {}).items()}, notes, changed)
    other = sum(segments.get(utt) != value for utt, value in before.items())
    if 2 * other > len(before):
        rule = f"by reco2dur {other} of {len(before)} lie beyond their recording's end"
        raise UserError(
            rule, file=path / "segments", hint="correct reco2dur or segments; nothing was changed"
        )


def _cut(path: Path, tables: dict[str, dict], trials: dict, notes: list[str], changed: set[str]) -> None:
    """Reduce all tables to the utterances that every table has."""
    lines = {name: len(table) for name, table in tables.items()}
    utt2spk, segments, wav = tables["utt2spk"], tables.get("segments"), tables.get("wav.scp")
    by_utt = [n for n in tables if n.startswith("utt2") or n in ("segments", "text", "feats.scp", "vad.scp")]
    if segments is None and wav is not None:
        by_utt.append("wav.scp")
    named = set().union(*(tables[n] for n in by_utt))  # all utterances that any file names
    known = set(utt2spk)
    if segments is not None:
        _cut_segments(path, tables, notes, changed)
    by_utt = [n for n in by_utt if n in tables]
    dialogue = tables.get("utt2dialogue")
    for name in ("dialogue2device", "dialogue2mixed"):
        if name not in tables:
            continue
        if dialogue is None:
            notes.append(f"{path / name}: removed, because there is no utt2dialogue")
            del tables[name]
        elif name == "dialogue2mixed" and not tables[name].keys() >= set(dialogue.values()):
            notes.append(f"{path / name}: removed, because it lacks some dialogues of utt2dialogue")
            del tables[name]  # it is for evaluation only, so no utterances are given up for it
        else:
            kept = {u: d for u, d in dialogue.items() if d in tables[name]}
            _check_cost(path / name, len(kept), len(dialogue))
            tables["utt2dialogue"] = dialogue = kept

    keep = set(utt2spk)
    for name in by_utt:
        if name not in _DERIVED:
            left = keep.intersection(tables[name])
            _check_cost(path / name, len(left), 1 if name in _CHOSEN else len(keep))
            keep = left
    if len(keep) < len(utt2spk):
        notes.append(f"{path}: kept {len(keep)} of {len(utt2spk)} utterances (those in every file)")
    recos = keep if segments is None else {segments[u].split(" ", 1)[0] for u in keep}
    ids = {
        "reco": recos,
        "spk": {utt2spk[u] for u in keep},
        "dialogue": {dialogue[u] for u in keep} if dialogue is not None else set(),
    }
    for name in list(tables):
        if name == "enrol_map":
            continue
        left = keep if name in by_utt else recos if name == "wav.scp" else ids[_keyed(name)]
        table = tables[name]
        if table.keys() != left or len(table) < lines[name]:
            changed.add(name)
            tables[name] = {k: v for k, v in table.items() if k in left}
            if len(tables[name]) < len(left):
                notes.append(f"{path / name}: removed, because it has {len(tables[name])} of {len(left)} ids")
                del tables[name]
            else:
                notes.append(f"{path / name}: {lines[name]} -> {len(left)} lines")
    _cut_trials(path, keep, known, named, tables, trials, notes, changed)


def _check_cost(file: Path, left: int, of: int) -> None:
    """UserError when a file would cost more than half of the utterances that the others have."""
    if not left:
        raise UserError("shares no utterance with the other files", file=file, hint=_BY_HAND)
    if 2 * left < of:
        rule = f"has {left} of {of} utterances; the others would be lost"
        raise UserError(
            rule, file=file, hint="complete the file, or move it out of the folder; nothing was changed"
        )


def _cut_trials(path: Path, keep: set, known: set, named: set, tables, trials, notes, changed) -> None:
    """Remove models and trials of utterances that were cut.

    UserError when a list is about other utterances.
    """
    enrol_map = tables.get("enrol_map")
    models, cut = cut_trials(keep, known, enrol_map, trials)
    if models != enrol_map:
        strange = [m for m, us in enrol_map.items() if not named.issuperset(us.split(" "))]
        _check_known(path / "enrol_map", strange, len(enrol_map), len(models or ()))
        notes.append(f"{path / 'enrol_map'}: {len(enrol_map)} -> {len(models or ())} models")
        tables.pop("enrol_map")
        tables |= {"enrol_map": models} if models else {}
        changed.add("enrol_map")
    for name, lines in list(trials.items()):
        left = cut.get(name, ())
        if len(left) < len(lines):
            sides = [line.split(" ") for line in lines]
            elsewhere = enrol_side({e for e, _, _ in sides}, known, enrol_map) is None
            enrol = named | set(enrol_map or ())
            strange = [f"{e} {t}" for e, t, _ in sides if t not in named or not (elsewhere or e in enrol)]
            _check_known(path / name, strange, len(lines), len(left))
            notes.append(f"{path / name}: {len(lines)} -> {len(left)} trials")
            changed.add(name)
        del trials[name]
    trials |= cut


def _check_known(file: Path, strange: list[str], of: int, left: int) -> None:
    """UserError when most lines name unknown utterances: such a list belongs to another directory."""
    if 2 * len(strange) > of or (strange and not left):
        rule = f"{len(strange)} of {of} lines name utterances that are in no file here (first: {strange[0]})"
        raise UserError(rule, file=file, hint="write the ids of utt2spk, or move the file out of the folder")


def _keyed(name: str) -> str:
    return "dialogue" if name.startswith("dialogue") else "reco" if name.startswith("reco") else "spk"


def _replace(
    path: Path, present: dict, tables: dict, trials: dict, notes: list[str], changed: set[str]
) -> None:
    """Stage and check the changed files, copy the old ones to .backup, then move the new ones in place."""
    utts = sorted(tables["utt2spk"])
    derived = spk2utt_lines(utts, [tables["utt2spk"][u] for u in utts])
    if "spk2utt" not in present or (path / "spk2utt").read_bytes() != ("\n".join(derived) + "\n").encode():
        changed.add("spk2utt")
    all_names = {"spk2utt", *tables, *trials}
    new, gone = sorted(changed & all_names), sorted(present.keys() - all_names)
    if not new and not gone:
        _check_whole(path, path)
        return
    with scratch_dir(path / "fix") as staged:
        for name in new:
            if name in trials or name == "spk2utt":
                lines = trials.get(name, derived)
            else:
                table = tables[name]
                ids = sorted(table)
                lines = map(" ".join, zip(ids, map(table.__getitem__, ids)))
                if name == "text":  # an empty transcript
                    lines = (line.rstrip(" ") for line in lines)
            (staged / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        for name in all_names.difference(new):
            os.symlink(os.path.realpath(path / name), staged / name)
        _check_whole(staged, path)
        kept = next(
            kept
            for kept in (path / f".backup{f'.{n}' if n > 1 else ''}" for n in count(1))
            if not os.path.lexists(kept)  # backups of earlier runs stay
        )
        with atomic_dir(kept) as backup:
            for name in present.keys() & {*new, *gone}:
                try:  # a hard link keeps the old file when its name gets the new one
                    os.link(os.path.realpath(path / name), backup / name)
                except OSError:
                    shutil.copy2(path / name, backup / name)
        for name in new:
            os.replace(staged / name, path / name)
        for name in gone:
            (path / name).unlink()
    notes.append(f"{path}: rewrote {', '.join(new) or 'nothing'}; the old files are in {kept}")


def _check_whole(folder: Path, path: Path) -> None:
    """UserError when `folder` (the content that `path` has or would get) is still not valid."""
    try:
        DataDir.read(folder, need_wav=False)
    except UserError as err:
        rule = str(err).partition("\n  ")[0].replace(str(folder), str(path))
        raise UserError(
            f"{rule}; nothing was changed", hint="correct this by hand: no rule repairs it"
        ) from None
