"""What a gate lets through in each epoch: quantity and, with a truth file, quality (GLL, eq. 2 and 3).

These are diagnostics only.
"""

import argparse
from pathlib import Path

from pyspkv.base.errors import run


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.gate_curves",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--compare", nargs="+", metavar="NAME=JSON",
                   help="only draw these curves together")  # fmt: skip
    p.add_argument(
        "--exp", type=Path, metavar="EXP", help="experiment of a gll recipe: curves of all its gates"
    )
    p.add_argument("--runs", nargs="+", type=Path, metavar="DIR", help="or model folders, in order")
    p.add_argument("--unlabeled", nargs="+", metavar="DIR",
                   help="the --unlabeled of these trainings: one for all or one per model (with --exp: "
                   "that of the baseline)")  # fmt: skip
    p.add_argument("--truth", metavar="UTT2SPK", help="true speakers of the unlabeled utterances")
    p.add_argument(
        "--corrupted", metavar="FILE", help="utterances whose label bin.seeded_cluster --label-noise changed"
    )
    p.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="JSON",
        help="file of the curves; a .png is written next to it",
    )
    args = p.parse_args()
    if sum(map(bool, (args.compare, args.runs, args.exp))) != 1 or not (args.compare or args.unlabeled):
        p.error("give --exp or --runs with --unlabeled, or --compare")
    if args.compare and not all(pair.partition("=")[2] for pair in args.compare):
        p.error("--compare needs NAME=JSON")
    if args.runs and len(args.unlabeled) not in (1, len(args.runs)):
        p.error("--unlabeled needs one folder, or as many as --runs")
    return args


def main() -> None:
    args = parse_args()
    from pyspkv.report import gate_curves

    if args.compare:
        files = {name: Path(file) for name, _, file in (pair.partition("=") for pair in args.compare)}
        gate_curves.compare(files, args.out.with_suffix(".png"))
        return
    if args.exp:
        models = gate_curves.models_of(args.exp, args.unlabeled[0])
        if not models:
            print(f"{args.exp}: no training in it has a gate")
            return
        if (there := args.exp / "round1/corrupted").is_file():
            args.corrupted = there
    else:
        each = args.unlabeled * (len(args.runs) if len(args.unlabeled) == 1 else 1)
        models = list(zip(args.runs, each))
    found = gate_curves.write(models, args.out, args.truth, args.corrupted)
    last = {k: v for k, v in found[-1].items() if isinstance(v, float)}
    print(f"{args.out}: last epoch " + ", ".join(f"{k} {v:.3f}" for k, v in last.items()))


if __name__ == "__main__":
    run(main)
