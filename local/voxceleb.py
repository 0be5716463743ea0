#!/usr/bin/env python3
"""VoxCeleb2 dev (training) and VoxCeleb1 (evaluation) as published -> data directories and trials.

    VOX2/dev/{wav,aac}/id*/VIDEO/*.wav     VOX1/{dev,test}/wav/id*/VIDEO/*.wav (or VOX1/wav/...)

Utterance id: speaker-video-file. The test trials are a published list (veri_test2.txt: `1 enrol.wav
test.wav`). Dev has speakers of VoxCeleb1 that the test trials do not name; it is used for thresholds and
calibration. VoxCeleb2's .m4a files must be converted to .wav or .flac first.
"""

import argparse
from pathlib import Path

from pyspkv.base.errors import UserError, natural, run
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import decode

ENDINGS = (".wav", ".flac")


def find_audio(root: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """Utterance id -> file, in those of `folders` that exist.

    UserError when none exists or there is no audio.
    """
    places = [root / f for f in folders if (root / f).is_dir()]
    if not places:
        raise UserError(f"contains none of {', '.join(folders)}", file=root, hint="give the unpacked folder")
    wav = {}
    for place in places:
        for speaker in sorted(place.glob("id*")):
            for f in sorted(speaker.glob("*/*")):
                if f.suffix in ENDINGS:
                    wav[f"{speaker.name}-{f.parent.name}-{f.stem}"] = str(f)
    if not wav:
        raise UserError(
            f"no id*/video/*.wav in {places[0]}",
            file=root,
            hint="convert the .m4a files to .wav at 16 kHz first",
        )
    return wav


def read_list(file: Path) -> list[str]:
    """Convert a published list (`1 id/video/00001.wav id/video/00002.wav`) to `enrol test target|nontarget`,
    our ids.

    Raises UserError with the line when it has another form.
    """
    out = []
    for number, line in enumerate(decode(file).splitlines(), 1):
        label, *paths = line.split() or [""]
        if label not in ("0", "1") or len(paths) != 2 or any(p.count("/") != 2 for p in paths):
            rule = "the line must be `1|0 speaker/video/file.wav speaker/video/file.wav`"
            raise UserError(rule, file=file, line=number)
        a, b = (str(Path(p).with_suffix("")).replace("/", "-") for p in paths)
        out.append(f"{a} {b} {'target' if label == '1' else 'nontarget'}")
    return out


def directory(folder: Path, wav: dict[str, str], utts: list[str]) -> DataDir:
    return DataDir(folder, utts, [u.split("-")[0] for u in utts], {u: wav[u] for u in utts})


def main() -> int:
    p = argparse.ArgumentParser(
        prog="local/voxceleb.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("vox1", metavar="VOX1", type=Path)
    p.add_argument("vox2", metavar="VOX2", type=Path)
    p.add_argument(
        "dir", metavar="DATADIR", type=Path, help="output folder of train, train_labeled, dev, test and truth"
    )
    p.add_argument(
        "--trials", type=Path, required=True, help="veri_test2.txt, list_test_all2.txt or list_test_hard2.txt"
    )
    p.add_argument("--num-dev-spk", type=int, default=40, help="number of dev speakers (default: 40)")
    p.add_argument(
        "--max-trials",
        type=int,
        default=100_000,
        help="most trials of dev; a quarter are targets (default: 100000)",
    )
    p.add_argument("--seed", type=natural, default=0, help="seed of dev speakers and trials")
    args = p.parse_args()
    import numpy as np

    from pyspkv.data.make_trials import make_trials

    if args.num_dev_spk < 2 or args.max_trials < 4:
        p.error("--num-dev-spk must be at least 2, --max-trials at least 4")
    vox1 = find_audio(args.vox1.absolute(), ("dev/wav", "test/wav", "wav"))
    vox2 = find_audio(args.vox2.absolute(), ("dev/wav", "dev/aac", "wav", "aac"))
    lines = read_list(args.trials)
    needed = sorted({u for line in lines for u in line.split()[:2]})
    if missing := [u for u in needed if u not in vox1]:
        raise UserError(
            f"{len(missing)} utterances of the trials do not exist; the first is {missing[0]}", file=args.vox1
        )
    test_speakers = {u.split("-")[0] for u in needed}
    others = sorted({u.split("-")[0] for u in vox1} - test_speakers)
    rng = np.random.default_rng(args.seed)
    held = set(rng.choice(others, min(args.num_dev_spk, len(others)), replace=False).tolist())
    if len(held) < 2:
        raise UserError("all speakers are in the trials, so there is no dev set", file=args.vox1)
    test = directory(args.dir / "test", vox1, needed)
    test.trials = {"trials": lines}
    dev = directory(args.dir / "dev", vox1, sorted(u for u in vox1 if u.split("-")[0] in held))
    videos = {u: u.rsplit("-", 1)[0] for u in dev.utts}
    limits = {"max_targets": args.max_trials // 4, "max_nontargets": args.max_trials - args.max_trials // 4}
    dev.trials = {"trials": make_trials(dev.utts, dev.spk, seed=args.seed, session=videos, **limits)}
    train = directory(args.dir / "train", vox2, sorted(vox2))
    train.write_training_set(args.dir)
    dev.write(args.dir / "dev")
    test.write(args.dir / "test")
    for name, data in (("train", train), ("dev", dev), ("test", test)):
        print(f"{name}: {len(set(data.spk))} speakers, {len(data.utts)} utterances")
    return 0


if __name__ == "__main__":
    run(main)
