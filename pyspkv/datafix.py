"""Mend a data directory in place: order, blanks, repeated ids, broken lines, and ids that some file lacks."""

import os
import shutil
from itertools import count, islice
from operator import gt
from pathlib import Path

from pyspkv.atomic import atomic_dir
from pyspkv.datadir import list_tables, spk2utt_lines
from pyspkv.errors import UserError
from pyspkv.tables import no_gc, parse_segment, read_columns, salvage
from pyspkv.trials import contradiction, cut_trials

# Measured from the audio, so an incomplete one is set aside rather than allowed to cost utterances.
_DERIVED = ("utt2dur", "utt2num_samples", "utt2num_frames", "reco2dur")


def fix(path: str | Path) -> list[str]:
    """Mend the directory so that `DataDir.read` takes it; return notes on what was done (empty: nothing).

    Only utterances that every file has remain; `spk2utt` is made anew; files measured from the audio
    (utt2dur, ...) and speaker files go when incomplete. The replaced files are kept in PATH/.backup,
    of later times in PATH/.backup.2 and so on. Each
    file is replaced whole; after a kill between two files a rerun ends in the same state. UserError when
    nothing would remain, with nothing changed.
    """
    path = Path(path)
    present = list_tables(path)
    for needed in ("utt2spk", "wav.scp") if "segments" in present else ("utt2spk",):
        if needed not in present:
            raise UserError(
                "no such file", file=path / needed, mend="write it (`utt spk`; `id path` for wav.scp)"
            )
    with no_gc():
        changed: set[str] = set()
        tables, trials, notes = _read(path, present, changed)
        _cut(path, tables, trials, notes, changed)
        _replace(path, present, tables, trials, notes, changed)
    return notes


def _read(path: Path, present: dict, changed: set[str]):
    """(tables, trials, notes); adds to `changed` the files that will have to be written again."""
    tables: dict[str, dict[str, str]] = {}
    trials: dict[str, list[str]] = {}
    notes: list[str] = []
    for name, (keyed, kind) in present.items():
        if name == "spk2utt":
            continue
        unique = keyed != "trials"
        try:
            keys, values = read_columns(path / name, kind, in_order=False)
            if unique and len(set(keys)) < len(keys):
                raise UserError("repeated ids")
        except UserError:
            keys, values, dropped = salvage(path / name, kind, unique)
            notes += dropped
            changed.add(name)
        if unique:
            if any(map(gt, keys, islice(keys, 1, None))):
                changed.add(name)
            tables[name] = dict(zip(keys, values))
        else:
            trials[name] = [f"{k} {v}" for k, v in zip(keys, values)]
            if pair := contradiction(trials[name]):
                raise UserError(
                    f"{pair} is both target and nontarget", file=path / name, mend="delete the wrong line"
                )
    return tables, trials, notes


def _cut(path: Path, tables: dict[str, dict], trials: dict, notes: list[str], changed: set[str]) -> None:
    """Bring all tables to the utterances that every table has."""
    lines = {name: len(table) for name, table in tables.items()}
    utt2spk, segments, wav = tables["utt2spk"], tables.get("segments"), tables.get("wav.scp")
    known = set(utt2spk)
    if segments is not None:
        dur = {r: float(d) for r, d in tables.get("reco2dur", {}).items()}
        for utt, (reco, _, end) in {u: parse_segment(v) for u, v in segments.items()}.items():
            if reco not in wav or end > dur.get(reco, end) + 0.5:
                del segments[utt]
    dialogue = tables.get("utt2dialogue")
    for name in ("dialogue2device", "dialogue2mixed"):
        if name in tables and dialogue is None:
            notes.append(f"{path / name}: removed, for there is no utt2dialogue")
            del tables[name]
        elif name not in tables:
            continue
        elif name == "dialogue2mixed" and not tables[name].keys() >= set(dialogue.values()):
            notes.append(f"{path / name}: removed, for it lacks dialogues of utt2dialogue")
            del tables[name]  # for evaluation only: no reason to lose utterances
        else:
            tables["utt2dialogue"] = dialogue = {u: d for u, d in dialogue.items() if d in tables[name]}

    by_utt = [n for n in tables if n.startswith("utt2") or n in ("segments", "text", "feats.scp", "vad.scp")]
    if segments is None and wav is not None:
        by_utt.append("wav.scp")
    keep = set(utt2spk)
    for name in by_utt:
        if name not in _DERIVED:
            if not keep.intersection(tables[name]):
                mend = f"mend it by hand, or remove it: rm {path / name}"
                raise UserError("no utterance of the other files is in this one", file=path / name, mend=mend)
            keep.intersection_update(tables[name])
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
                notes.append(f"{path / name}: removed, for it has {len(tables[name])} of {len(left)} ids")
                del tables[name]
            else:
                notes.append(f"{path / name}: {lines[name]} -> {len(left)} lines")
    models, cut = cut_trials(keep, known, tables.get("enrol_map"), trials)
    if "enrol_map" in tables and models != tables["enrol_map"]:
        notes.append(f"{path / 'enrol_map'}: {len(tables['enrol_map'])} -> {len(models or ())} models")
        tables.pop("enrol_map")
        tables |= {"enrol_map": models} if models else {}
        changed.add("enrol_map")
    for name in list(trials):
        if len(cut.get(name, ())) < len(trials[name]):
            notes.append(f"{path / name}: {len(trials[name])} -> {len(cut.get(name, ()))} trials")
            changed.add(name)
        del trials[name]
    trials |= cut


def _keyed(name: str) -> str:
    return "dialogue" if name.startswith("dialogue") else "reco" if name.startswith("reco") else "spk"


def _replace(
    path: Path, present: dict, tables: dict, trials: dict, notes: list[str], changed: set[str]
) -> None:
    """Stage the changed files, keep the old ones in .backup, then put the new ones in place."""
    utts = sorted(tables["utt2spk"])
    derived = spk2utt_lines(utts, [tables["utt2spk"][u] for u in utts])
    if "spk2utt" not in present or (path / "spk2utt").read_bytes() != ("\n".join(derived) + "\n").encode():
        changed.add("spk2utt")
    new = sorted(changed & {"spk2utt", *tables, *trials})
    gone = sorted(present.keys() - {"spk2utt", *tables, *trials})
    if not new and not gone:
        return
    staged = path / ".fix"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
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
    kept = path / ".backup"
    for number in count(2):  # those of earlier times stay
        if not kept.exists():
            break
        kept = path / f".backup.{number}"
    with atomic_dir(kept) as backup:
        for name in present.keys() & {*new, *gone}:
            try:  # the old file itself: its name here goes to the new one
                os.link(os.path.realpath(path / name), backup / name)
            except OSError:
                shutil.copy2(path / name, backup / name)
    for name in new:
        os.replace(staged / name, path / name)
    for name in gone:
        (path / name).unlink()
    shutil.rmtree(staged, ignore_errors=True)
    notes.append(f"{path}: rewrote {', '.join(new) or 'nothing'}; the old files are in {kept}")
