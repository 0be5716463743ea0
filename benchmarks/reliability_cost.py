"""CPU time of two checkouts in alternating turns, to find the cost of checks, locks and records.

    python benchmarks/reliability_cost.py --before ../old --after . [--turns 5] [--utts 1092009]

validate: a data directory of --utts utterances; extract: 200 utterances of 3 s by a small ECAPA-TDNN; train:
an epoch of 60 steps. Each turn is a separate process with one thread; its user and system time includes all
children.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent))
ENCODER = (
    "encoder: {name: ecapa, channels: 64, mfa_channels: 192, embed_dim: 64, se_channels: 32, n_mels: 40}\n"
)
TRAIN = (
    ENCODER
    + """objective: {name: aam, crop_seconds: 2.0}
augment: {babble_list: train, rir_bank: 0}
epochs: 1
batch_size: 10
num_workers: 0
precision: fp32
"""
)


def speech(folder: Path, speakers: int, each: int, seconds: float) -> Path:
    """Write a data directory of noisy harmonic tones; return its path."""
    rng, t = np.random.default_rng(0), np.arange(int(seconds * 16000)) / 16000
    (folder / "wav").mkdir(parents=True)
    lines = {"wav.scp": [], "utt2spk": [], "spk2utt": []}
    for s in range(speakers):
        utts = [f"s{s:02d}-u{u:03d}" for u in range(each)]
        for utt in utts:
            phase = 2 * np.pi * (90 + 10 * s) * t
            x = sum(0.5**k * np.sin(k * phase) for k in range(1, 6)) + rng.normal(0, 0.1, len(t))
            soundfile.write(folder / f"wav/{utt}.wav", (0.1 * x).astype(np.float32), 16000, subtype="PCM_16")
            lines["wav.scp"].append(f"{utt} {folder}/wav/{utt}.wav")
            lines["utt2spk"].append(f"{utt} s{s:02d}")
        lines["spk2utt"].append(f"s{s:02d} {' '.join(utts)}")
    data = folder / "data"
    data.mkdir()
    for name, text in lines.items():
        (data / name).write_text("\n".join(text) + "\n")
    return data


def seconds(checkout: Path, module: str, *args) -> float:
    """CPU seconds of one process and its children."""
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", f"pyspkv.bin.{module}", *map(str, args)]
    done = subprocess.run(command, env=env, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: {' '.join(command)}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--before", type=lambda text: Path(text).resolve(), required=True, metavar="DIR", help="a checkout"
    )
    p.add_argument(
        "--after", type=lambda text: Path(text).resolve(), required=True, metavar="DIR", help="another"
    )
    p.add_argument("--turns", type=int, default=5)
    p.add_argument(
        "--utts", type=int, default=1_092_009, help="utterances of the directory that is validated"
    )
    p.add_argument("--only", nargs="+", default=["validate", "extract", "train"])
    args = p.parse_args()
    from datadir import make  # benchmarks/datadir.py

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        make(folder / "large", args.utts, max(1, args.utts * 5994 // 1_092_009))
        data = speech(folder / "toy", 10, 20, 3.0)
        (folder / "train.yaml").write_text(TRAIN)
        ours = ["--config", folder / "train.yaml", "--data", data]
        steps = speech(folder / "long", 10, 60, 2.5)
        seconds(args.before, "train", *ours, "--exp", folder / "model", "--set", "batch_size=100")
        work = {
            "validate": lambda code, out: seconds(code, "datadir", "validate", folder / "large"),
            "extract": lambda code, out: seconds(
                code, "extract", "--model", folder / "model", "--data", data, "--out", out
            ),
            "train": lambda code, out: seconds(
                code, "train", "--config", folder / "train.yaml", "--data", steps, "--exp", out
            ),
        }
        print(f"{'CPU seconds':<12}{'before':>9}{'after':>9}{'change':>9}   each turn")
        for name in args.only:
            found = {"before": [], "after": []}
            for turn in range(args.turns):
                order = list(found) if turn % 2 == 0 else list(found)[::-1]
                for which in order:
                    out = folder / f"{name}-{which}-{turn}"
                    found[which].append(work[name](getattr(args, which), out))
            old, new = (statistics.median(found[which]) for which in found)
            turns = "; ".join(" ".join(f"{x:.2f}" for x in found[which]) for which in found)
            print(f"{name:<12}{old:9.2f}{new:9.2f}{100 * (new / old - 1):+8.1f} %   {turns}", flush=True)


if __name__ == "__main__":
    main()
