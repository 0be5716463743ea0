"""Score, calibrate and measure systems on trial lists: SYSTEM/score/NAME.scores and .json.

Current files are kept.
"""

import argparse
import os
from pathlib import Path

from pyspkv.base.errors import run


def count(text: str) -> int:
    """argparse type: an integer of at least 2, in plain digits."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number of at least 2")
    return int(text)


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.evaluate",
        description="Score systems on trial lists, from SYSTEM/embed/NAME/embedding.scp. It writes "
        "SYSTEM/score/NAME.scores and .json, and with --dev SYSTEM/model/calibration.json. Which variants (NAME-crops, "
        "NAME-mean, NAME-asnorm) there are follows from the options; files of other variants are removed.",
    )
    # fmt: off
    p.add_argument("--systems", required=True, nargs="+", metavar="DIR", help="folders with embed/ and model/")
    p.add_argument("--data", required=True, nargs="+", metavar="DIR",
                   help="data directories with trials, and optionally enrol_map (models of several utterances). "
                   "Further lists in them, trials_X, are scored as NAME_X from the same embeddings")
    p.add_argument("--name", nargs="+", metavar="NAME",
                   help="one name per list (default: the last component of each --data)")
    p.add_argument("--dev", metavar="DIR", help="data directory of dev trials: calibration is fitted on them")
    p.add_argument("--cohort-set", default="train", metavar="NAME",
                   help="name of the cohort's embeddings, embed/NAME (default: train)")  # fmt: skip
    p.add_argument("--cohort-data", metavar="DIR",
                   help="data directory with the (pseudo-)speakers of the cohort: adds NAME-mean, scores "
                   "after subtracting the mean of the cohort's embeddings, and NAME-asnorm, AS-normed with "
                   "these speakers")
    p.add_argument("--top-n", type=count, default=300, metavar="N",
                   help="cohort speakers per side in AS-norm; all of them if there are fewer (default: 300)")
    p.add_argument("--crops", action="store_true",
                   help="adds NAME-crops: mean of the scores with embed/NAME and with embed/NAME-crops")
    p.add_argument("--compare", metavar="DIR",
                   help="a system with the same lists: adds a paired bootstrap of the EERs. Its score files "
                   "must exist, unless it is among --systems; then it is scored first")
    # fmt: on
    args = p.parse_args()
    for option in ("dev", "cohort_data", "compare"):  # scripts give an empty value for "none"
        setattr(args, option, getattr(args, option) or None)
    args.systems = [str(Path(system)) for system in args.systems]
    args.name = args.name or [os.path.basename(os.path.abspath(d)) for d in args.data]
    if len(args.name) != len(args.data):
        p.error("--name needs one name per directory of --data")
    return args


def main() -> None:
    args = parse_args()
    from pyspkv.score.evaluate import evaluate, table
    from pyspkv.score.wanted import Wanted

    request = Wanted(**vars(args))
    systems = evaluate(request)
    print(table([system for system in args.systems if system in systems], request))
    print(f"scores and metrics are in {' '.join(f'{system}/score' for system in systems)}")


if __name__ == "__main__":
    run(main)
