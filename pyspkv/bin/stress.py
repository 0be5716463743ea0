"""Test a model on short, noisy and reverberant speech: EER of one trial list under each condition.

    python -m pyspkv.bin.stress --model exp/finetune/model --data data/test --noise data/noise_test --out
    exp/stress

Every utterance of both sides is changed: cut to a random segment of N seconds, or mixed with noise at an SNR,
or reverberated by simulated rooms with one reverberation time. The changes are drawn from (seed, condition,
row), so two models are tested on the same audio.

A condition that was measured is kept in OUT/parts: the same command goes on at the next one. On several machines run
the same command with another K each, and then once --merge (steps/stress.sh does both); the results are the same,
byte for byte:

    python -m pyspkv.bin.stress --model exp/finetune/model --data data/test --out exp/stress --part 1/4
    python -m pyspkv.bin.stress --model exp/finetune/model --data data/test --out exp/stress --merge 4
"""

import argparse
import math
from contextlib import ExitStack
from pathlib import Path

from pyspkv.base.errors import UserError, natural, run
from pyspkv.base.parts import part, parts


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.stress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", required=True, metavar="DIR[@best|last]")
    p.add_argument("--data", required=True, metavar="DIR", help="data directory with trials, of any corpus")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="output folder of stress.json, stress.md and stress.png"
    )
    p.add_argument(
        "--noise",
        default="",
        metavar="DIR",
        help="data directory of noises not used in training (default: no noise rows)",
    )
    p.add_argument(
        "--durations",
        type=float,
        nargs="*",
        default=[1, 2, 3, 5],
        metavar="S",
        help="durations in seconds (1 2 3 5)",
    )
    p.add_argument(
        "--snr", type=float, nargs="*", default=[20, 10, 5, 0], metavar="DB", help="SNRs in dB (20 10 5 0)"
    )
    p.add_argument(
        "--rt60",
        type=float,
        nargs="*",
        default=[0.3, 0.6, 0.9],
        metavar="S",
        help="reverberation times in seconds (0.3 0.6 0.9)",
    )
    p.add_argument("--seed", type=natural, default=0)
    how = p.add_mutually_exclusive_group()
    how.add_argument("--part", type=part, metavar="K/N", help="test only part K of N of the conditions")
    how.add_argument("--merge", type=parts, metavar="N", help="write the results of the N parts")
    args = p.parse_args()
    if not all(0.1 <= s < math.inf for s in args.durations) or not all(0.1 <= s <= 1.5 for s in args.rt60):
        p.error("--durations must be at least 0.1 s, --rt60 from 0.1 to 1.5 s")
    return args


def main() -> None:
    args = parse()
    from pyspkv.base.atomic import folder_lock
    from pyspkv.experiments import stress

    out = Path(args.out)
    if not (Path(args.data) / "trials").is_file():
        raise UserError("has no trials", file=args.data, hint="give a data directory with a trials file")
    makers = stress.conditions(args, out / "rooms")
    names = list(makers)
    made_with = stress.identity(args, names)
    k, n = args.part or (1, 1)
    with ExitStack() as locks:
        if not args.part:
            locks.enter_context(folder_lock(out))
        if not args.merge:
            locks.enter_context(folder_lock(out, f".lock.{k}-of-{n}"))
            stress.measure_part(args, k, n, makers, made_with)
        if not args.part:
            stress.write_results(args, args.merge or 1, names, made_with)


if __name__ == "__main__":
    run(main)
