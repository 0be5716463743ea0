"""Accuracy of `pyspkv plan`: its estimate for each training against the wall time of that training.

    python benchmarks/plan.py DATA --conf CONF [--stages pretrain round2]

DATA is any data directory. For stages that train on classes its utterances are assigned to N / 20 made-up
speakers.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pyspkv.data.datadir import DataDir
from pyspkv.data.plan import PER_CLUSTER
from pyspkv.experiments.plan import plan, stages_of
from pyspkv.report.warnings import seconds_of


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data")
    p.add_argument("--conf", type=Path, required=True)
    p.add_argument("--stages", nargs="+")
    args = p.parse_args()
    data = DataDir.read(args.data)
    classes = max(2, len(data.utts) // PER_CLUSTER)
    print("stage      planned s   real s   planned / real")
    for name, files in stages_of(args.conf, 2):
        if args.stages and name not in args.stages:
            continue
        planned = 60 * plan(name, files, data, seconds_of(data), classes).minutes
        with tempfile.TemporaryDirectory() as tmp:
            dealt = [f"c{i % classes:05d}" for i in range(len(data.utts))]
            (data if name == "pretrain" else data.with_speakers(dealt)).write(Path(tmp) / "data")
            words = [sys.executable, "-m", "pyspkv.bin.train", "--config", *files, "--data", f"{tmp}/data"]
            start = time.perf_counter()
            words += ["--exp", f"{tmp}/model"]
            subprocess.run([str(w) for w in words], check=True, capture_output=True)
            real = time.perf_counter() - start
        print(f"{name:10} {planned:9.0f} {real:8.0f} {planned / real:16.2f}", flush=True)


if __name__ == "__main__":
    main()
