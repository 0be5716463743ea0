#!/usr/bin/env python3
"""VoxCeleb2 dev (training) and VoxCeleb1 (evaluation) as published -> data directories and trials.

    VOX2/dev/{wav,aac}/id*/VIDEO/*.wav     VOX1/{dev,test}/wav/id*/VIDEO/*.wav (or VOX1/wav/...)

Utterance id: speaker-video-file. A .flac is taken as a .wav is; local/m4a_to_flac.py converts VoxCeleb2's .m4a.

test has the utterances of all published lists that are given. Its `trials` are the first list; of several lists
each is also trials_NAME: O for veri_test2.txt, E for list_test_all2.txt, H for list_test_hard2.txt.

dev, for thresholds and calibration, has speakers of VoxCeleb1 that no trial names. Where there are none (E names all
of them), it has speakers of VoxCeleb2, which are then left out of train. They are drawn by --seed and written to
DATADIR/dev_speakers. Targets of dev are of two videos. Without VoxCeleb2's labels there is no dev.
"""

import argparse
import os
import re
from collections import Counter
from pathlib import Path

from pyspkv.base.errors import UserError, natural, run
from pyspkv.data.datadir import DataDir
from pyspkv.data.tables import decode

ENDINGS = (".wav", ".flac")
# The lists as cleaned by their authors, and as first published.
OFFICIAL = {"veri_test2": "O", "list_test_all2": "E", "list_test_hard2": "H"}
OFFICIAL |= {"veri_test": "O_original", "list_test_all": "E_original", "list_test_hard": "H_original"}


def listed(folder: str, files: bool = False) -> list[str]:
    """Names of the folders in a folder, or of its files; sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() != files)


def find_audio(root: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """Utterance id -> file below the first-level folders that exist. Only names are read, no audio."""
    places = [str(root / f) for f in folders if (root / f).is_dir()]
    if not places:
        raise UserError(f"contains none of {', '.join(folders)}", file=root, hint="give the unpacked folder")
    wav, m4a = {}, set()
    for place in places:
        for speaker in listed(place):
            if not speaker.startswith("id"):
                continue
            for video in listed(f"{place}/{speaker}"):
                for name in listed(f"{place}/{speaker}/{video}", files=True):
                    stem, ending = os.path.splitext(name)
                    if ending in ENDINGS:
                        wav[f"{speaker}-{video}-{stem}"] = f"{place}/{speaker}/{video}/{name}"
                    elif ending == ".m4a":
                        m4a.add(f"{speaker}-{video}-{stem}")
    if not wav:
        hint = (
            "convert the .m4a files first: python local/m4a_to_flac.py" if m4a else "give the unpacked folder"
        )
        raise UserError(f"no id*/video/*.wav in {places[0]}", file=root, hint=hint)
    if left := m4a - wav.keys():
        raise UserError(
            f"{len(left)} .m4a files have no .wav or .flac, the first is {min(left)}",
            file=root,
            hint="run local/m4a_to_flac.py again, or remove the .m4a files that cannot be converted",
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
        a, b = (os.path.splitext(p)[0].replace("/", "-") for p in paths)
        out.append(f"{a} {b} {'target' if label == '1' else 'nontarget'}")
    return out


def named_lists(given: list[str]) -> dict[str, Path]:
    """Name -> file of the lists, in their order. Of a single list the name is not needed.

    UserError: several lists, of which one has no name or two have the same.
    """
    out: dict[str, Path] = {}
    for text in given:
        found = None if os.path.isfile(text) else re.fullmatch(r"(\w+)=(.+)", text, re.ASCII)
        name, file = (found[1], Path(found[2])) if found else (OFFICIAL.get(Path(text).stem, ""), Path(text))
        if len(given) > 1 and not name:
            raise UserError("has no official name of a list", file=file, hint=f"give --trials NAME={file}")
        if name in out:
            rule = f"is another list of the name {name} (the first is {out[name]})"
            raise UserError(rule, file=file, hint=f"give --trials NAME={file}")
        out[name] = file
    return out


def directory(folder: Path, wav: dict[str, str], utts: list[str]) -> DataDir:
    return DataDir(folder, utts, [u.split("-")[0] for u in utts], {u: wav[u] for u in utts})


def test_directory(folder: Path, vox1: dict[str, str], lists: dict[str, Path], root: Path) -> DataDir:
    """The utterances of all lists, with `trials`, the first list, and of several lists each as trials_NAME.

    UserError: a list names an utterance that VoxCeleb1 (`root`) does not have.
    """
    lines = {name: read_list(file) for name, file in lists.items()}
    needed = set()
    for name, file in lists.items():
        own = {u for line in lines[name] for u in line.split()[:2]}
        if missing := sorted(own - vox1.keys()):
            rule = f"{len(missing)} utterances of {file} do not exist; the first is {missing[0]}"
            raise UserError(rule, file=root)
        needed |= own
    test = directory(folder, vox1, sorted(needed))
    test.trials = {"trials": next(iter(lines.values()))}
    if len(lines) > 1:
        test.trials |= {f"trials_{name}": found for name, found in lines.items()}
    return test


def dev_speakers(vox1: dict, vox2: dict, test: DataDir, wanted: int, seed: int) -> tuple[list[str], str]:
    """(Speakers drawn by `seed`, sorted; VoxCeleb1 or VoxCeleb2, whose they are); ([], the reason) without any.

    They are of VoxCeleb1 where at least two of its speakers are in no trial. Else they are of VoxCeleb2: at most half
    of its speakers, and only of those with two videos, as no other speaker gives a target trial of two videos.
    """
    import numpy as np

    if not wanted:
        return [], "--num-dev-spk is 0"
    source, most = "VoxCeleb1", wanted
    pool = sorted({u.split("-")[0] for u in vox1} - set(test.spk))
    if len(pool) < 2:
        source = "VoxCeleb2"
        videos = Counter(video.split("-", 1)[0] for video in {u.rsplit("-", 1)[0] for u in vox2})
        pool = sorted(spk for spk, num in videos.items() if num > 1)
        most = min(wanted, len(videos) // 2)
    count = min(most, len(pool))
    if count < 2:
        why = "VoxCeleb2 has too few labeled speakers with two videos" if vox2 else "there is no VoxCeleb2"
        return [], f"the trials name all speakers of VoxCeleb1, and {why}"
    return sorted(np.random.default_rng(seed).choice(pool, count, replace=False).tolist()), source


def dev_directory(
    folder: Path, wav: dict[str, str], speakers: list[str], max_trials: int, seed: int
) -> DataDir:
    """All utterances of these speakers, and trials: targets are of two videos."""
    from pyspkv.data.make_trials import make_trials

    chosen = set(speakers)
    dev = directory(folder, wav, sorted(u for u in wav if u.split("-")[0] in chosen))
    videos = {u: u.rsplit("-", 1)[0] for u in dev.utts}
    limits = {"max_targets": max_trials // 4, "max_nontargets": max_trials - max_trials // 4}
    dev.trials = {"trials": make_trials(dev.utts, dev.spk, seed=seed, session=videos, **limits)}
    return dev


def without_shared_videos(lines: list[str]) -> list[str]:
    """The trials whose two utterances are of two videos, whoever speaks in them: two people may share a video."""

    def video(utt: str) -> str:
        return utt.split("-", 1)[1].rsplit("-", 1)[0]

    return [line for line in lines if len({video(u) for u in line.split()[:2]}) == 2]


def main() -> int:
    p = argparse.ArgumentParser(
        prog="local/voxceleb.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("vox1", metavar="VOX1", type=Path)
    p.add_argument("vox2", metavar="VOX2", type=Path, nargs="?", help="without it there is no train")
    p.add_argument(
        "dir", metavar="DATADIR", type=Path, help="output folder of train, train_labeled, dev, test and truth"
    )
    p.add_argument(
        "--trials",
        action="append",
        required=True,
        metavar="FILE|NAME=FILE",
        help="a published list: veri_test2.txt (O), list_test_all2.txt (E), list_test_hard2.txt (H), or another one "
        "with its name; may be given several times, and the first is the headline of the report",
    )
    p.add_argument("--num-dev-spk", type=natural, default=40, help="dev speakers; 0: no dev (default: 40)")
    p.add_argument(
        "--max-trials",
        type=int,
        default=100_000,
        help="most trials of dev; a quarter are targets (default: 100000)",
    )
    p.add_argument("--seed", type=natural, default=0, help="seed of dev speakers and trials")
    args = p.parse_args()
    from pyspkv.base.atomic import atomic_file, command_line

    if args.num_dev_spk == 1 or args.max_trials < 4:
        p.error("--num-dev-spk must be 0 or at least 2, --max-trials at least 4")
    lists = named_lists(args.trials)
    vox1 = find_audio(args.vox1.absolute(), ("dev/wav", "test/wav", "wav"))
    vox2 = find_audio(args.vox2.absolute(), ("dev/wav", "dev/aac", "wav", "aac")) if args.vox2 else {}
    test = test_directory(args.dir / "test", vox1, lists, args.vox1)
    speakers, source = dev_speakers(vox1, vox2, test, args.num_dev_spk, args.seed)
    sets = {"test": test}
    if speakers:
        wav = vox1 if source == "VoxCeleb1" else vox2
        sets["dev"] = dev_directory(args.dir / "dev", wav, speakers, args.max_trials, args.seed)
        if source == "VoxCeleb2":
            held = set(speakers)
            vox2 = {u: file for u, file in vox2.items() if u.split("-")[0] not in held}
            sets["dev"].trials["trials"] = without_shared_videos(sets["dev"].trials["trials"])
    elif (args.dir / "dev").exists():
        rule = f"is of an earlier run, and now there are no dev speakers: {source}"
        raise UserError(rule, file=args.dir / "dev", hint=command_line("rm", "-r", args.dir / "dev"))
    if vox2:
        train = directory(args.dir / "train", vox2, sorted(vox2))
        train.write_training_set(args.dir)
        sets["train"] = train
    for name in ("dev", "test"):
        if name in sets:
            sets[name].write(args.dir / name)
    with atomic_file(args.dir / "dev_speakers", inside=args.dir) as f:
        f.writelines(f"{spk}\n" for spk in speakers)
    for name in sorted(sets, key=["train", "dev", "test"].index):
        data = sets[name]
        trials = "".join(f", {len(lines)} {file}" for file, lines in data.trials.items())
        print(f"{name}: {len(set(data.spk))} speakers, {len(data.utts)} utterances{trials}")
    if speakers:
        out = " and are left out of train" if source == "VoxCeleb2" else ""
        print(f"the dev speakers are of {source}{out}: {args.dir}/dev_speakers")
    else:
        print(f"no dev, so nothing is calibrated: {source}")
    return 0


if __name__ == "__main__":
    run(main)
