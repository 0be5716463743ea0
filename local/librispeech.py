#!/usr/bin/env python3
"""LibriSpeech as published (ROOT/part/speaker/chapter/*.flac) -> data directories and trials.

Some speakers of the training parts are held out as dev. Long recordings of train and dev are cut into equal
segments of at least --segment-seconds. Test recordings stay whole, with the names of the files as utterance
ids.
"""

import argparse
from pathlib import Path

from speaker_lists import given_trials

from pyspkv.base.errors import UserError, natural, run
from pyspkv.data.datadir import DataDir


def find_audio(root: Path, part: str) -> dict[str, str]:
    """Utterance id (speaker-chapter-number) -> file of one part."""
    if not (root / part).is_dir():
        have = ", ".join(p.name for p in sorted(root.iterdir()) if p.is_dir()) if root.is_dir() else "nothing"
        raise UserError(
            f"there is no part {part} (there are: {have})",
            file=root,
            hint="give the folder that holds the parts",
        )
    files = sorted((root / part).glob("*/*/*.flac"))
    if not files:
        raise UserError("contains no speaker/chapter/*.flac", file=root / part)
    wav = {}
    for f in files:
        if f.stem.split("-")[:2] != [f.parts[-3], f.parts[-2]]:
            raise UserError(
                f"a file of speaker {f.parts[-3]}, chapter {f.parts[-2]} has another name", file=f
            )
        wav[f.stem] = str(f)
    return wav


def find_all(root: Path, parts: str) -> dict[str, str]:
    """The same of several parts, separated by blanks or commas."""
    return {u: f for part in parts.replace(",", " ").split() for u, f in find_audio(root, part).items()}


def cut(wav: dict[str, str], seconds: float) -> dict[str, tuple[str, float, float]]:
    """Cut recordings completely into segments `recording-SSSSSSS-EEEEEEE` (times in 1/100 s).

    The segments of a recording are equally long, at least `seconds` (or the whole recording, if it is
    shorter). UserError when a file cannot be read.
    """
    import numpy as np
    import soundfile
    from tqdm import tqdm

    segments = {}
    for reco, path in tqdm(wav.items(), desc="lengths", disable=None, leave=False):
        try:
            info = soundfile.info(path)
        except soundfile.LibsndfileError as err:
            raise UserError(f"libsndfile cannot read it ({err.error_string})", file=path) from None
        hundredths = info.frames * 100 // info.samplerate
        if not hundredths:
            raise UserError("is shorter than a hundredth of a second", file=path)
        ends = np.linspace(0, hundredths, max(1, int(hundredths // (seconds * 100))) + 1).astype(int).tolist()
        for a, b in zip(ends, ends[1:]):
            segments[f"{reco}-{a:07d}-{b:07d}"] = (reco, a / 100, b / 100)
    return segments


def make(folder: Path, wav: dict[str, str], seconds: float) -> DataDir:
    segments = cut(wav, seconds) if seconds else None
    utts = sorted(segments or wav)
    return DataDir(folder, utts, [u.split("-")[0] for u in utts], dict(sorted(wav.items())), segments)


def show(data: DataDir) -> None:
    """Print the sizes of a set."""
    trials = f", {len(data.trials['trials'])} trials" if data.trials else ""
    sizes = f"{len(set(data.spk))} speakers, {len(data.wav)} recordings, {len(data.utts)} utterances"
    print(f"{data.path.name}: {sizes}{trials}")


def main() -> int:
    p = argparse.ArgumentParser(
        prog="local/librispeech.py",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("root", metavar="ROOT", type=Path, help="the folder LibriSpeech")
    p.add_argument(
        "dir", metavar="DATADIR", type=Path, help="output folder of train, train_labeled, dev, test and truth"
    )
    p.add_argument("--parts", default="train-clean-100", help="training parts, separated by blanks or commas")
    p.add_argument("--test-parts", default="test-other", help="test parts")
    p.add_argument(
        "--only-test", metavar="NAME", help="write the test parts alone, as the test set DATADIR/NAME"
    )
    p.add_argument("--num-dev-spk", type=int, default=30, help="number of training speakers held out as dev")
    p.add_argument(
        "--fold",
        type=natural,
        default=0,
        help="which group of dev speakers; the groups have no speaker in common",
    )
    p.add_argument(
        "--segment-seconds",
        type=float,
        default=3.0,
        help="cut train and dev into segments; 0: keep whole recordings",
    )
    p.add_argument("--trials", type=Path, help="trials of the test parts (default: all pairs)")
    p.add_argument(
        "--max-trials",
        type=int,
        default=200000,
        help="most trials, drawn from all pairs; a quarter are targets",
    )
    p.add_argument("--seed", type=natural, default=0, help="seed of held-out speakers and sampled trials")
    args = p.parse_args()
    import numpy as np

    from pyspkv.data.make_trials import make_trials

    if not 0 <= args.segment_seconds < float("inf") or args.num_dev_spk < 2 or args.max_trials < 4:
        p.error("--segment-seconds must be at least 0, --num-dev-spk at least 2, --max-trials at least 4")

    root = args.root.absolute()
    limits = {"max_targets": args.max_trials // 4, "max_nontargets": args.max_trials - args.max_trials // 4}
    test_wav = find_all(root, args.test_parts)
    test = make(args.dir / (args.only_test or "test"), test_wav, 0)
    if args.trials:
        test.trials = {"trials": given_trials(args.trials, test)}
    else:
        test.trials = {"trials": make_trials(test.utts, test.spk, seed=args.seed, **limits)}
    if args.only_test:
        test.write(test.path)
        show(test)
        return 0
    wav = find_all(root, args.parts)
    speakers = sorted({u.split("-")[0] for u in wav})
    if both := set(speakers) & {u.split("-")[0] for u in test_wav}:
        raise UserError(f"speaker {min(both)} is in a training and a test part", file=root)
    if len(speakers) < args.num_dev_spk + 2:
        raise UserError(
            f"{args.num_dev_spk} of {len(speakers)} training speakers cannot be held out", file=root
        )
    folds = len(speakers) // args.num_dev_spk
    if args.fold >= folds:
        p.error(f"--fold {args.fold}: {len(speakers)} training speakers make {folds} folds, from 0")
    rng = np.random.default_rng(args.seed)
    held = set(rng.choice(speakers, args.num_dev_spk, replace=False))
    if args.fold:
        rest = rng.permutation(sorted(set(speakers) - held))
        held = set(rest[(args.fold - 1) * args.num_dev_spk : args.fold * args.num_dev_spk])

    train = make(
        args.dir / "train",
        {u: f for u, f in wav.items() if u.split("-")[0] not in held},
        args.segment_seconds,
    )
    dev = make(
        args.dir / "dev", {u: f for u, f in wav.items() if u.split("-")[0] in held}, args.segment_seconds
    )
    dev.trials = {"trials": make_trials(dev.utts, dev.spk, seed=args.seed, **limits)}

    train.write_training_set(args.dir)
    dev.write(dev.path)
    test.write(test.path)
    for data in (train, dev, test):
        show(data)
    return 0


if __name__ == "__main__":
    run(main)
