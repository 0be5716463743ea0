#!/usr/bin/env python3
"""Arabic Speech Commands with its official split by speaker -> data directories and trials (val is dev).

The lists {train,val,test}.csv name rounds and .wav files that a copy may not hold: a .flac of the same name serves
as well, and what is missing is counted and left out. Utterance id: speaker-keyword-round, blanks as `_`.
"""

import argparse
import csv
import io
import re
from pathlib import Path

from pyspkv.datadir import DataDir
from pyspkv.errors import UserError, natural, run
from pyspkv.make_trials import make_trials
from pyspkv.tables import decode

SPLITS = {"train": "train", "dev": "val", "test": "test"}
_TRIAL = re.compile(r"(\d{8}-\D+-\d\d) (\d{8}-\D+-\d\d) (target|nontarget)")


def read_list(root: Path, name: str) -> tuple[dict[str, str], int]:
    """(utterance -> file of those present, number of rows) of an official list."""
    file, wav, rows = root / f"{name}.csv", {}, 0
    if not file.exists():
        raise UserError(
            "no such list", file=file, mend="give the corpus's folder, with dataset/ and the three .csv"
        )
    with io.StringIO(decode(file), newline="") as f:
        for line, row in enumerate(csv.DictReader(f), 2):
            match = re.fullmatch(r"dataset/([^/]+)/(\d+)_NO_(\d+)\.wav", (row.get("file") or ""))
            if not match:
                raise UserError(
                    "the rule is dataset/keyword/speaker_NO_round.wav,keyword", file=file, line=line
                )
            rows += 1
            keyword, speaker, number = match.groups()
            paths = [(root / row["file"]).with_suffix(end) for end in (".wav", ".flac")]
            if found := next((p for p in paths if p.exists()), None):
                wav[f"{speaker}-{keyword.replace(' ', '_')}-{number}"] = str(found)
    if not wav:
        raise UserError(f"none of the {rows} files is there", file=file)
    return dict(sorted(wav.items())), rows


def given_trials(file: Path, known: set[str]) -> list[str]:
    """A given list with our ids: its keywords may hold blanks."""
    out = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        match = _TRIAL.fullmatch(line)
        if not match:
            raise UserError("the rule is `enrol test target|nontarget`", file=file, line=number)
        enrol, test = (u.replace(" ", "_") for u in match.groups()[:2])
        for utt in (enrol, test):
            if utt not in known:
                raise UserError(f"{utt} is not among the utterances", file=file, line=number)
        out.append(f"{enrol} {test} {match[3]}")
    return out


def own_trials(data: DataDir, seed: int) -> list[str]:
    """The rule of the given lists: never one keyword twice; 6,000 targets of two rounds, 18,000 nontargets."""
    keyword = {u: u.split("-")[1] for u in data.utts}
    rounds = {u: u.rsplit("-", 1)[1] for u in data.utts}
    lines = make_trials(
        data.utts, data.spk, seed=seed, max_targets=12000, max_nontargets=36000, session=rounds
    )
    kept = {"target": [], "nontarget": []}
    for line in lines:
        a, b, label = line.split()
        if keyword[a] != keyword[b]:
            kept[label].append(line)
    step = {
        label: max(1, len(kept[label]) // most) for label, most in (("target", 6000), ("nontarget", 18000))
    }
    return sorted(kept["target"][:: step["target"]][:6000] + kept["nontarget"][:: step["nontarget"]][:18000])


def main() -> int:
    p = argparse.ArgumentParser(
        prog="local/arabic_speech_commands_data.sh",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "root", metavar="ROOT", type=Path, help="the corpus's folder, with dataset/ and the three .csv"
    )
    p.add_argument(
        "dir", metavar="DATADIR", type=Path, help="where train, train_labelled, dev, test, truth go"
    )
    p.add_argument("--dev-trials", type=Path, help="given list; without it trials are made by the same rule")
    p.add_argument("--test-trials", type=Path, help="given list; without it trials are made by the same rule")
    p.add_argument("--seed", type=natural, default=0, help="of trials that are made")
    args = p.parse_args()
    root = args.root.absolute()
    sets = {}
    for name, listed in SPLITS.items():
        wav, rows = read_list(root, listed)
        sets[name] = DataDir(args.dir / name, list(wav), [u.split("-")[0] for u in wav], wav)
        print(
            f"{name}: {listed}.csv lists {rows} files, {len(wav)} are there, of {len(set(sets[name].spk))} speakers"
        )
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        if both := set(sets[a].spk) & set(sets[b].spk):
            raise UserError(f"speaker {min(both)} is in {SPLITS[a]}.csv and {SPLITS[b]}.csv", file=root)
    for name, given in (("dev", args.dev_trials), ("test", args.test_trials)):
        data = sets[name]
        data.trials = {
            "trials": given_trials(given, set(data.utts)) if given else own_trials(data, args.seed)
        }
    sets["train"].write_training_set(args.dir)
    sets["dev"].write(args.dir / "dev")
    sets["test"].write(args.dir / "test")
    return 0


if __name__ == "__main__":
    run(main)
