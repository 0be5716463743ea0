"""Wall time of utils/slurm.sh against utils/run.sh for the same jobs, on a SLURM cluster simulated on this
machine.

    python benchmarks/slurm.py [--jobs 50] [--seconds 10] [--nodes 2] [--cpus 5] [--turns 1]

The jobs sleep, so the nodes can claim more CPUs than there are. Needs Debian's slurmctld, slurmd,
slurm-client and munge; the daemons run in a temporary folder and listen on 127.0.0.1 only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from slurm_cluster import Cluster  # noqa: E402


def wall(runner: str, folder: Path, env: dict, jobs: int, at_once: int, seconds: float) -> float:
    """Wall time in s of one call."""
    words = [ROOT / "utils" / runner, "--max-jobs-run", at_once, f"JOB=1:{jobs}", f"log/{runner}.JOB.log"]
    start = time.monotonic()
    subprocess.run([str(w) for w in [*words, "sleep", seconds]], cwd=folder, env=env, check=True)
    return time.monotonic() - start


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("jobs", 50), ("nodes", 2), ("cpus", 5), ("turns", 1)):
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--seconds", type=float, default=10.0, help="length of a job")
    args = p.parse_args()
    at_once = args.nodes * args.cpus
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(Path(name) / "slurm", args.nodes, args.cpus)
        env = {
            **os.environ,
            "SPKV_PYTHON": sys.executable,
            **{k: cluster.env[k] for k in ("SLURM_CONF", "PATH")},
        }
        try:
            cluster.start()
            for _ in range(args.turns):
                took = [
                    wall(r, Path(name), env, args.jobs, at_once, args.seconds) for r in ("run.sh", "slurm.sh")
                ]
                print(f"{args.jobs} jobs of {args.seconds:g} s, {at_once} at a time: run.sh {took[0]:.1f} s, "
                      f"slurm.sh {took[1]:.1f} s, {took[1] / took[0]:.2f} x", flush=True)  # fmt: skip
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
