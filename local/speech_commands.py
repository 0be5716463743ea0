#!/usr/bin/env python3
"""Google Speech Commands (ROOT/<word>/<speaker>_nohash_<n>.opus, or .flac, .wav) -> test sets of one-second
words.

ROOT/dev_speakers and ROOT/test_speakers list the speakers of each set; other speakers are left out. Nothing
of this corpus is used in training. Utterance id: speaker-word-n.
"""

import argparse
import re
from pathlib import Path

from speaker_lists import add_trial_options, given_trials, num_targets, speakers_of

from pyspkv.base.errors import UserError, run
from pyspkv.data.datadir import DataDir

WHERE = "give the corpus's folder, with the folders of words, dev_speakers and test_speakers"
_NAME = re.compile(r"([0-9a-z]+)_nohash_([0-9]+)\.(opus|flac|wav)")


def find_audio(root: Path) -> dict[str, dict[str, str]]:
    """Speaker -> utterance -> file. UserError when there is no audio, or an utterance has two files."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(root.glob("*/*_nohash_*")):
        word, name = file.parent.name, _NAME.fullmatch(file.name)
        if not name or word.startswith("_"):  # _background_noise_
            continue
        own, utt = found.setdefault(name[1], {}), f"{name[1]}-{word}-{name[2]}"
        if utt in own:
            raise UserError("a second file of this utterance", file=file, hint=f"the first is {own[utt]}")
        own[utt] = str(file)
    if not found:
        raise UserError("no <word>/<speaker>_nohash_<n>.opus is there", file=root, hint=WHERE)
    return found


def read_set(root: Path, name: str, found: dict[str, dict[str, str]]) -> DataDir:
    """The utterances of a list's speakers. UserError when the list, or a speaker's audio, does not exist."""
    listed = root / f"{name}_speakers"
    wav = {}
    for line, speaker in speakers_of(listed, WHERE):
        if speaker not in found:
            hint = "fetch the corpus again, or remove the line"
            raise UserError(f"speaker {speaker} has no audio", file=listed, line=line, hint=hint)
        wav |= found[speaker]
    utts = sorted(wav)
    return DataDir(root, utts, [u.split("-")[0] for u in utts], {u: wav[u] for u in utts})


def trials_of(data: DataDir, given: Path | None, seed: int) -> list[str]:
    """The lines of a given list; else trials of two different words.

    These are all pairs of one speaker and up to three times as many pairs of different speakers.
    """
    from pyspkv.data.make_trials import make_trials

    if given:
        return given_trials(given, data)
    word = {u: u.split("-")[1] for u in data.utts}
    lines = make_trials(data.utts, data.spk, seed=seed, max_nontargets=3 * num_targets(data), session=word)
    return [line for line in lines if word[line.split()[0]] != word[line.split()[1]]]


def main() -> int:
    p = argparse.ArgumentParser(
        prog="local/speech_commands.py",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("root", metavar="ROOT", type=Path, help="the corpus's folder")
    p.add_argument(
        "dir", metavar="DATADIR", type=Path, help="folder for speech_commands_dev and speech_commands_test"
    )
    add_trial_options(p)
    args = p.parse_args()
    root = args.root.absolute()
    if not root.is_dir():
        raise UserError("no such folder", file=root, hint=f'{WHERE}; run.sh --words "" goes without')
    found = find_audio(root)
    sets = {name: read_set(root, name, found) for name in ("dev", "test")}
    if both := sorted(set(sets["dev"].spk) & set(sets["test"].spk)):
        rule = f"speaker {both[0]} is in dev_speakers too"
        raise UserError(rule, file=root / "test_speakers", hint="list each speaker once")
    for name, given in (("dev", args.dev_trials), ("test", args.test_trials)):
        sets[name].trials = {"trials": trials_of(sets[name], given, args.seed)}
    for name, data in sets.items():
        data.write(args.dir / f"speech_commands_{name}")
        trials = len(data.trials["trials"])
        print(f"{name}: {len(set(data.spk))} speakers, {len(data.utts)} utterances, {trials} trials")
    return 0


if __name__ == "__main__":
    run(main)
