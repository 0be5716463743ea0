"""Collect the results of an experiment: results.json, report.md with its tables, and plots."""

import argparse
from pathlib import Path

from pyspkv.base.errors import run


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.report",
        description="Write EXP/results.json, EXP/report.md and EXP/plots from the score files of every phase "
        "(pretrain, round1, round2, ..., finetune, supervised, and any other folder with scores) in EXP.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--exp", required=True, help="experiment folder")
    p.add_argument("--name", default="test", help="trial list of the headline figures: PHASE/score/NAME.json")
    p.add_argument("--truth", metavar="UTT2SPK", help="true speakers of the training data: adds diagnostics")
    p.add_argument(
        "--compare-with",
        nargs="+",
        default=[],
        type=Path,
        metavar="EXP2",
        help="other experiments: adds a table of paired differences, and a plot of dev EER against cost",
    )
    p.add_argument("--title", help="title of report.md (default: the name of EXP)")
    p.add_argument(
        "--unscored", action="store_true", help="there are no trials: report everything but scores"
    )
    return p.parse_args()


def main() -> None:
    args = parse_args()
    from pyspkv.report import experiment, warnings

    exp = Path(args.exp)
    out = experiment.write(exp, args.name, args.truth, args.compare_with, args.title, args.unscored)
    for name in ("pretrain", "final", "supervised"):
        if out[name]:
            print(f"{name:<11}EER {out[name]['eer']:6.2f} %   minDCF(0.01) {out[name]['min_dcf_0.01']:.3f}")
    if "not_measured" in out:
        print(out["not_measured"])
    for sign in out["warnings"]:
        print(warnings.Sign(**sign))
    print(f"report: {exp}/report.md, results: {exp}/results.json")


if __name__ == "__main__":
    run(main)
