#!/usr/bin/env python3
"""Arabic Speech Commands with its official split by speaker -> data directories and trials (val becomes dev).

The lists {train,val,test}.csv name .wav files that a copy of the corpus may lack. A .flac file of the same
name is used as well; files that are missing are counted and left out. Utterance id: speaker-keyword-round,
blanks as `_`.
"""

import argparse
import csv
import io
import re
import shutil
from pathlib import Path

from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError, natural, run
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import decode

SPLITS = {"train": "train", "dev": "val", "test": "test"}
_TRIAL = re.compile(r"(\d{8}-\D+-\d\d) (\d{8}-\D+-\d\d) (target|nontarget)")


def read_list(root: Path, name: str) -> tuple[dict[str, str], int]:
    """Read an official list: (utterance -> file, for the files that exist; number of rows in the list).

    Raises UserError when there is no such list, a line has another form, or none of the files exists.
    """
    file, wav, rows = root / f"{name}.csv", {}, 0
    if not file.exists():
        raise UserError(
            "no such list", file=file, hint="give the corpus's folder, with dataset/ and the three .csv"
        )
    with io.StringIO(decode(file), newline="") as f:
        for line, row in enumerate(csv.DictReader(f), 2):
            match = re.fullmatch(r"dataset/([^/]+)/(\d+)_NO_(\d+)\.wav", (row.get("file") or ""))
            if not match:
                raise UserError(
                    "the line must be dataset/keyword/speaker_NO_round.wav,keyword", file=file, line=line
                )
            rows += 1
            keyword, speaker, number = match.groups()
            paths = [(root / row["file"]).with_suffix(end) for end in (".wav", ".flac")]
            if found := next((p for p in paths if p.exists()), None):
                wav[f"{speaker}-{keyword.replace(' ', '_')}-{number}"] = str(found)
    if not wav:
        raise UserError(f"none of the {rows} files exists", file=file)
    return dict(sorted(wav.items())), rows


def given_trials(file: Path, known: set[str]) -> list[str]:
    """Read a given trial list and convert it to our ids, because its keywords may hold blanks."""
    out = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        match = _TRIAL.fullmatch(line)
        if not match:
            raise UserError("the line must be `enrol test target|nontarget`", file=file, line=number)
        enrol, test = (u.replace(" ", "_") for u in match.groups()[:2])
        for utt in (enrol, test):
            if utt not in known:
                raise UserError(f"{utt} is not among the utterances", file=file, line=number)
        out.append(f"{enrol} {test} {match[3]}")
    return out


def own_trials(data: DataDir, seed: int) -> list[str]:
    """Make trials by the rule of the published lists, at most 6,000 target and 18,000 nontarget ones.

    The two sides never have the same keyword, and those of a target trial come from different rounds.
    """
    from pyspkv.data.make_trials import make_trials

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


def other_trials(data: DataDir, targets: int, nontargets: int, seed: int) -> list[str]:
    """Make trials from pairs of different words and rounds: all, or random samples of the given sizes."""
    import numpy as np

    word, number, spk = (np.unique(x, return_inverse=True)[1] for x in (
        [u.split("-")[1] for u in data.utts], [u.rsplit("-", 1)[1] for u in data.utts], data.spk))  # fmt: skip
    i, j = np.triu_indices(len(data.utts), 1)
    other = (word[i] != word[j]) & (number[i] != number[j])
    i, j = i[other], j[other]
    same, rng, lines = spk[i] == spk[j], np.random.default_rng(seed), []
    for kind, name, most in ((same, "target", targets), (~same, "nontarget", nontargets)):
        rows = np.flatnonzero(kind)
        if len(rows) > most:
            rows = rng.choice(rows, most, replace=False)
        lines += [f"{data.utts[i[r]]} {data.utts[j[r]]} {name}" for r in rows]
    return sorted(lines)


def make_fold(args: argparse.Namespace) -> None:
    """Make one speaker fold for the dialogue recipe: of the 30 speakers in all three lists, it tests on 6.

    DATADIR gets:
    - `speech`: the other 24 with true speakers, from which dialogues are simulated;
    - `labeled-<n>`: 20 utterances of one second from each of n of these, smaller sets being part of larger
      ones;
    - `dev`: 6 of the 24 that are in no labelled set, and `test`, both with trials;
    - truth/utt2session (the round) and truth/utt2content (word and round).

    Dialogue pre-training uses all 24 without labels, including dev.
    """
    import numpy as np

    wav: dict[str, str] = {}
    listed = 0
    for name in SPLITS.values():
        found, rows = read_list(args.root.absolute(), name)
        wav |= found
        listed += rows
    data = DataDir(args.dir, sorted(wav), [u.split("-")[0] for u in sorted(wav)], wav)
    speakers = sorted(set(data.spk))
    order = [speakers[i] for i in np.random.default_rng(args.seed).permutation(len(speakers))]
    if args.folds < 3 or args.utts < 2:
        raise UserError("--folds must be at least 3, --utts at least 2")
    folds = [sorted(part.tolist()) for part in np.array_split(order, args.folds)]
    if not 0 <= args.fold < args.folds or len(folds[-1]) < 2:
        raise UserError(
            f"--fold must be from 0 to --folds - 1; {len(speakers)} speakers make 3 to {len(speakers) // 2} folds"
        )
    test, dev = folds[args.fold], folds[(args.fold + 1) % args.folds]
    rest = [s for s in order if s not in test and s not in dev]
    if not min(args.num_labeled_spk) >= 2 or max(args.num_labeled_spk) > len(rest):
        raise UserError(
            f"--num-labeled-spk must be from 2 to {len(rest)} (the speakers that are neither test nor dev)"
        )

    def of(names, per: int | None = None) -> list[str]:
        """The utterances of these speakers; with `per`, so many of each at random."""
        out = []
        for spk in names:
            own = [u for u, s in zip(data.utts, data.spk) if s == spk]
            if per is not None:
                rng = np.random.default_rng((args.seed, int(spk)))
                own = [own[i] for i in sorted(rng.permutation(len(own))[:per])]
            out += own
        return out

    def write(name: str, utts: list[str], targets: int = 0) -> None:
        part = data.subset(utts)
        if targets:
            part.trials = {"trials": other_trials(part, targets, 3 * targets, args.seed)}
        part.write(args.dir / name)

    write("speech", of(sorted(set(speakers) - set(test))))
    write("dev", of(dev, 2 * args.utts), targets=4000)
    write("test", of(test), targets=20000)
    for old in args.dir.glob("labeled-*"):  # sets of another fold may hold speakers of this test set
        shutil.rmtree(old)
    for n in args.num_labeled_spk:
        write(f"labeled-{n}", of(rest[:n], args.utts))
    for name, value in (
        ("utt2session", lambda u: u.rsplit("-", 1)[1]),
        ("utt2content", lambda u: u.split("-", 1)[1]),
    ):
        with atomic_file(args.dir / "truth" / name) as f:
            f.writelines(f"{u} {value(u)}\n" for u in data.utts)
    print(
        f"{args.dir}: {listed} files are listed, {len(data.utts)} exist; test {' '.join(test)}; dev {' '.join(dev)}"
    )


def main() -> int:
    p = argparse.ArgumentParser(
        prog="local/arabic_speech_commands.py",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "root", metavar="ROOT", type=Path, help="the corpus's folder, with dataset/ and the three .csv"
    )
    p.add_argument(
        "dir", metavar="DATADIR", type=Path, help="output folder of train, train_labeled, dev, test and truth"
    )
    p.add_argument(
        "--dev-trials", type=Path, help="trial list to use; without it, trials are made by the same rule"
    )
    p.add_argument(
        "--test-trials", type=Path, help="trial list to use; without it, trials are made by the same rule"
    )
    p.add_argument("--seed", type=natural, default=0, help="seed of trials, folds and labeled sets")
    folds = p.add_argument_group("speaker folds for dialogues")
    folds.add_argument("--fold", type=natural, help="make this fold, from 0, instead of the official split")
    folds.add_argument("--folds", type=natural, default=5)
    folds.add_argument(
        "--num-labeled-spk",
        type=natural,
        nargs="+",
        default=[4, 8, 12, 18],
        help="number of speakers of the labeled sets",
    )
    folds.add_argument(
        "--utts", type=natural, default=20, help="number of utterances (of one second) per speaker"
    )
    args = p.parse_args()
    if args.fold is not None:
        make_fold(args)
        return 0
    root = args.root.absolute()
    sets = {}
    for name, listed in SPLITS.items():
        wav, rows = read_list(root, listed)
        sets[name] = DataDir(args.dir / name, list(wav), [u.split("-")[0] for u in wav], wav)
        print(
            f"{name}: {listed}.csv lists {rows} files; {len(wav)} exist, of {len(set(sets[name].spk))} speakers"
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
