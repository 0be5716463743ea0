#!/usr/bin/env python3
"""speechocean762 (ROOT/{train,test}/<speaker>/<utterance>.opus, or .flac, .wav) -> data directories and trials.

ROOT/train_speakers, dev_speakers and test_speakers list the speakers of each set (dev speakers come from the
official training set); spk2gender and spk2age describe them. Utterance id: name of the file without
extension.
"""

import argparse
from pathlib import Path

from speaker_lists import add_trial_options, given_trials, num_targets, speakers_of

from pyspkv.base.errors import UserError, run
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import read_table

FOLDERS = {"train": "train", "dev": "train", "test": "test"}  # set -> its folder
ENDINGS = (".opus", ".flac", ".wav")
WHERE = "give the corpus's folder, with train/, test/ and the lists of speakers"


def read_set(root: Path, name: str) -> DataDir:
    """The utterances of a list's speakers.

    UserError when the list, or a speaker's audio or table line, is missing.
    """
    listed, wav, spk = root / f"{name}_speakers", {}, {}
    for line, speaker in speakers_of(listed, WHERE):
        folder = root / FOLDERS[name] / speaker
        files = [f for f in sorted(folder.glob("*")) if f.suffix.lower() in ENDINGS]
        if "/" in speaker or not files:
            hint = "fetch the corpus again, or remove the line"
            raise UserError(f"speaker {speaker} has no audio in {folder}", file=listed, line=line, hint=hint)
        for f in files:
            if f.stem in wav:
                raise UserError("a second file of this utterance", file=f, hint=f"the first is {wav[f.stem]}")
            wav[f.stem], spk[f.stem] = str(f), speaker
    utts = sorted(wav)
    data = DataDir(root, utts, [spk[u] for u in utts], {u: wav[u] for u in utts})
    for table, kind in (("spk2gender", "gender"), ("spk2age", "id")):
        data.spk_tables[table] = described(root / table, kind, sorted(set(data.spk)))
    return data


def described(file: Path, kind: str, speakers: list[str]) -> dict[str, str]:
    """The lines of these speakers in a table. UserError when one is missing."""
    if not file.is_file():
        raise UserError("no such file", file=file, hint=WHERE)
    known = read_table(file, kind)
    if lost := [s for s in speakers if s not in known]:
        raise UserError(f"no line for speaker {lost[0]}", file=file, hint="fetch the corpus again")
    return {s: known[s] for s in speakers}


def trials_of(data: DataDir, given: Path | None, seed: int) -> list[str]:
    """A given list's lines; else all pairs of one speaker, and up to four nontargets of one gender for
    each."""
    from pyspkv.data.make_trials import make_trials

    if given:
        return given_trials(given, data)
    gender = data.spk_tables["spk2gender"]
    return make_trials(data.utts, data.spk, seed=seed, max_nontargets=4 * num_targets(data), group=gender)


def main() -> int:
    p = argparse.ArgumentParser(
        prog="local/speechocean762.py",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("root", metavar="ROOT", type=Path, help="the corpus's folder")
    p.add_argument(
        "dir", metavar="DATADIR", type=Path, help="output folder of train, train_labeled, dev, test and truth"
    )
    add_trial_options(p)
    args = p.parse_args()
    root = args.root.absolute()
    if not root.is_dir():
        raise UserError("no such folder", file=root, hint=WHERE)
    sets, set_of = {name: read_set(root, name) for name in FOLDERS}, {}
    for name, data in sets.items():
        for speaker in sorted(set(data.spk)):
            if set_of.setdefault(speaker, name) != name:
                rule = f"speaker {speaker} is in {set_of[speaker]}_speakers too"
                raise UserError(rule, file=root / f"{name}_speakers", hint="list each speaker once")
    for name, given in (("dev", args.dev_trials), ("test", args.test_trials)):
        sets[name].trials = {"trials": trials_of(sets[name], given, args.seed)}
    sets["train"].write_training_set(args.dir)
    sets["dev"].write(args.dir / "dev")
    sets["test"].write(args.dir / "test")
    for name, data in sets.items():
        trials = f", {len(data.trials['trials'])} trials" if data.trials else ""
        print(f"{name}: {len(set(data.spk))} speakers, {len(data.utts)} utterances{trials}")
    return 0


if __name__ == "__main__":
    run(main)
