"""Seconds and peak memory of validate, fix and split on a VoxCeleb2-size data directory.

    python benchmarks/datadir.py [--utts 1092009] [--speakers 5994] [--parts 32]

`fix` gets the same directory shuffled, with 1 % of the wav.scp lines lost and spk2utt missing.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make(path: Path, utts: int, speakers: int) -> dict[str, list[str]]:
    """Make a directory as stage 1 would write it for VoxCeleb2."""
    rng = random.Random(0)
    files: dict[str, list[str]] = {"wav.scp": [], "utt2spk": [], "utt2dur": [], "utt2num_samples": []}
    by_spk: dict[str, list[str]] = {}
    for i in range(utts):
        spk = f"id{i * speakers // utts:05d}"
        utt = f"{spk}-{rng.getrandbits(64):011x}-{i:07d}"
        by_spk.setdefault(spk, []).append(utt)
    for spk, ids in by_spk.items():
        for utt in sorted(ids):
            samples = rng.randrange(64000, 320000)
            files["wav.scp"].append(f"{utt} /data/voxceleb2/dev/wav/{spk}/{utt[8:]}.wav")
            files["utt2spk"].append(f"{utt} {spk}")
            files["utt2dur"].append(f"{utt} {samples / 16000:.3f}")
            files["utt2num_samples"].append(f"{utt} {samples}")
    files["spk2utt"] = [f"{spk} {' '.join(sorted(ids))}" for spk, ids in by_spk.items()]
    write(path, files)
    return files


def write(path: Path, files: dict[str, list[str]]) -> None:
    path.mkdir()
    for name, lines in files.items():
        (path / name).write_text("\n".join(lines) + "\n")


def measure(name: str, *args: str) -> None:
    """Run one subcommand under a small parent process, so that RUSAGE_CHILDREN gives its peak memory only."""
    code = (
        "import resource, subprocess, sys, time; t = time.perf_counter(); "
        "rc = subprocess.run([sys.executable, '-m', 'pyspkv.bin.datadir', *sys.argv[1:]]).returncode; "
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20; "
        f"print(f'{name}: {{time.perf_counter() - t:.1f}} s, peak {{peak:.2f}} GiB', flush=True); "
        "sys.exit(rc)"
    )
    subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utts", type=int, default=1092009)
    parser.add_argument("--speakers", type=int, default=5994)
    parser.add_argument("--parts", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        good, broken = Path(tmp, "good"), Path(tmp, "broken")
        files = make(good, args.utts, args.speakers)
        measure("validate", "validate", str(good))
        measure("fix (sound)", "fix", str(good))
        measure(f"split {args.parts}", "split", str(good), str(args.parts))
        del files["spk2utt"]
        rng = random.Random(1)
        for lines in files.values():
            rng.shuffle(lines)
        files["wav.scp"] = files["wav.scp"][args.utts // 100 :]
        write(broken, files)
        del files
        start = time.perf_counter()
        measure("fix (broken)", "fix", str(broken))
        print(f"(wall with start-up {time.perf_counter() - start:.1f} s)")
        measure("validate the repaired", "validate", str(broken))


if __name__ == "__main__":
    main()
