#!/usr/bin/env python3
"""Arabic Speech Commands in speaker folds for dialogues: of the 30 speakers of all three lists, a fold tests on 6.

DATADIR gets `speech` (the other 24, with true speakers: what dialogues are simulated from), `labelled-<n>` (n of them
with 20 s each, nested in n), `dev` (6 that are in no labelled set) and `test`, both with trials, and truth/utt2session
(the round) and truth/utt2content (word and round). Dialogue pre-training uses all 24 without labels, dev included.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from arabic_speech_commands_data import SPLITS, read_list

from pyspkv.atomic import atomic_file
from pyspkv.datadir import DataDir
from pyspkv.errors import natural, run


def trials(data: DataDir, targets: int, nontargets: int, seed: int) -> list[str]:
    """Pairs of another word and another round: all, or so many drawn."""
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


def main() -> None:
    p = argparse.ArgumentParser(
        prog="local/arabic_speech_commands_folds.sh",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "root", metavar="ROOT", type=Path, help="the corpus's folder, with dataset/ and the three .csv"
    )
    p.add_argument("dir", metavar="DATADIR", type=Path)
    p.add_argument("--fold", type=int, default=0, help="0 .. folds - 1")
    p.add_argument("--folds", type=int, default=5)
    p.add_argument(
        "--labelled", type=int, nargs="+", default=[4, 8, 12, 18], help="speakers of the labelled sets"
    )
    p.add_argument("--utts", type=int, default=20, help="utterances (of a second) of each of them")
    p.add_argument(
        "--seed",
        type=natural,
        default=0,
        help="of folds, labelled sets and trials; keep it fixed in a comparison",
    )
    args = p.parse_args()
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
        p.error("--folds is at least 3, --utts at least 2")
    folds = [sorted(part.tolist()) for part in np.array_split(order, args.folds)]
    if not 0 <= args.fold < args.folds or len(folds[-1]) < 2:
        p.error(
            f"--fold is 0 .. --folds - 1, and {len(speakers)} speakers make 3 to {len(speakers) // 2} folds"
        )
    test, dev = folds[args.fold], folds[(args.fold + 1) % args.folds]
    rest = [s for s in order if s not in test and s not in dev]
    if not min(args.labelled) >= 2 or max(args.labelled) > len(rest):
        p.error(f"--labelled is 2 to {len(rest)} (those that are neither test nor dev)")

    def of(names, per: int | None = None) -> list[str]:
        """The utterances of these speakers, or so many drawn of each."""
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
            part.trials = {"trials": trials(part, targets, 3 * targets, args.seed)}
        part.write(args.dir / name)

    write("speech", of(sorted(set(speakers) - set(test))))
    write("dev", of(dev, 2 * args.utts), targets=4000)
    write("test", of(test), targets=20000)
    for old in args.dir.glob("labelled-*"):  # of another fold it may hold what is test here
        shutil.rmtree(old)
    for n in args.labelled:
        write(f"labelled-{n}", of(rest[:n], args.utts))
    for name, value in (
        ("utt2session", lambda u: u.rsplit("-", 1)[1]),
        ("utt2content", lambda u: u.split("-", 1)[1]),
    ):
        with atomic_file(args.dir / "truth" / name) as f:
            f.writelines(f"{u} {value(u)}\n" for u in data.utts)
    print(
        f"{args.dir}: {listed} files are listed, {len(data.utts)} are there; test {' '.join(test)}; dev {' '.join(dev)}"
    )


if __name__ == "__main__":
    run(main)
