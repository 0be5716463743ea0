"""Run a module in several processes of this machine: `python -m pyspkv.bin.launch --nproc 2 pyspkv.bin.train ...`.

The module gets the environment variables that torchrun would set. If one process fails, the others are ended too, and
one message says why. No process is left, whatever ends the launcher. The exit code is 0 or 1; or 75, if the processes
were asked to end (SIGTERM, SIGUSR1) and the same command goes on from there.
"""

import argparse
import importlib.util

from pyspkv.base.errors import run


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pyspkv.bin.launch", description=__doc__)
    parser.add_argument("--nproc", type=int, required=True, metavar="N", help="number of processes")
    parser.add_argument("module", metavar="MODULE", help="run as `python -m MODULE`")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="ARG", help="arguments of each process")
    args = parser.parse_args()
    if args.nproc < 1:
        parser.error(f"--nproc {args.nproc} is below 1")
    try:
        known = importlib.util.find_spec(args.module)
    except (ImportError, ValueError):
        known = None
    if known is None:
        parser.error(f"there is no module {args.module}")
    return args


def main() -> int:
    args = parse()
    from pyspkv.base.launch import run_together

    return run_together(args.module, args.args, args.nproc)


if __name__ == "__main__":
    run(main)
