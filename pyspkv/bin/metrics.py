"""EER, minDCF, thresholds and bootstrap intervals of a score file."""

import argparse
import json
from pathlib import Path
from typing import Any

from pyspkv.base.errors import run


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.metrics",
        description="Print EER (percent, linear interpolation between operating points), minDCF (C_miss = C_fa = 1) "
        "and thresholds, with a 95 % bootstrap interval of the EER.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--scores", required=True, metavar="FILE", help="`enrol test score` lines in any order")
    p.add_argument("--trials", required=True, metavar="FILE", help="`enrol test target|nontarget` lines")
    p.add_argument(
        "--utt2spk",
        metavar="FILE",
        help="speakers that the bootstrap draws (default: enrolment ids)",
    )
    p.add_argument(
        "--compare", metavar="SCORES2", help="another system's scores: paired bootstrap of the EERs"
    )
    p.add_argument(
        "--enrol-map",
        metavar="FILE",
        help="`model utt1 utt2 ...`: with --utt2spk, gives the speaker of each model",
    )
    p.add_argument("--llr", action="store_true", help="scores are log-likelihood ratios: add actDCF and Cllr")
    p.add_argument(
        "--calibration",
        metavar="FILE",
        help="calibration.json: add actDCF and Cllr of the scores it calibrates",
    )
    p.add_argument("--json", action="store_true", help="print flat JSON instead of a table")
    p.add_argument("--plots", metavar="DIR", help="write det.png and scores.png into this folder")
    args = p.parse_args()
    if args.llr and args.calibration:
        p.error("--llr is for scores that are already calibrated; give one of the two")
    return args


def table(out: dict) -> str:
    """The metrics as text for people."""
    low, high = out["eer_ci_low"], out["eer_ci_high"]
    over = f"{out['eer_ci_units']} {out['eer_ci_over']}, {out['eer_ci_replicates']} replicates"
    lines = [f"trials          {out['num_target']} target, {out['num_nontarget']} nontarget"]
    lines += [f"EER             {out['eer']:.3f} %   (threshold {out['threshold']:.4f})"]
    if low is None:
        lines += [f"  no interval   ({out['eer_ci_units']} {out['eer_ci_over']} are too few to draw from)"]
    else:
        lines += [f"  95 % interval {low:.3f} .. {high:.3f} %   (bootstrap over {over})"]
    for p in ("0.01", "0.05"):
        lines += [
            f"minDCF({p})    {out[f'min_dcf_{p}']:.4f}   (threshold {out[f'threshold_min_dcf_{p}']:.4f})"
        ]
        if f"act_dcf_{p}" in out:
            lines += [f"actDCF({p})    {out[f'act_dcf_{p}']:.4f}"]
    if "cllr" in out:
        lines += [f"Cllr            {out['cllr']:.4f} bits"]
    if "eer_other" in out:
        low, high = out["eer_difference_ci_low"], out["eer_difference_ci_high"]
        verdict = "they differ" if out["eer_differs"] else "no difference shown"
        lines += [
            f"other EER       {out['eer_other']:.3f} %",
            f"  difference    {out['eer_difference']:+.3f}, 95 % interval {low:+.3f} .. {high:+.3f}   ({verdict})",
        ]
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    from pyspkv.data.trials import read_trials
    from pyspkv.score import metrics
    from pyspkv.score.scoring import read_scores

    enrol, test, target = read_trials(args.trials)
    scores = read_scores(args.scores, enrol, test)
    other = read_scores(args.compare, enrol, test) if args.compare else None
    metrics.check_kinds(target, args.trials)
    units = metrics.resampling(enrol, test, target, args.utt2spk, args.enrol_map)
    replicates = metrics.replicates_for(len(target))
    llr = scores if args.llr else None
    if args.calibration:
        from pyspkv.score.calibration import Calibration

        llr = Calibration.read(args.calibration).llr(scores)
    out: dict[str, Any] = metrics.summary(scores, target, llr=llr)
    enough = units.num >= 3
    eers = metrics.weighted_eers(scores, target, units, replicates) if enough else None
    out |= metrics.bootstrap(scores, target, units, replicates, eers)
    if other is not None:
        out |= metrics.compare(scores, other, target, units, replicates, eers)
    if args.plots:
        from pyspkv.report import plots

        systems = {args.scores: scores} | ({args.compare: other} if other is not None else {})
        plots.det({name: metrics.Curve(s, target) for name, s in systems.items()}, f"{args.plots}/det.png")
        plots.scores(scores, target, out["threshold"], f"{args.plots}/scores.png")
    out |= {"scores": str(Path(args.scores).absolute()), "trials": str(Path(args.trials).absolute())}
    print(json.dumps(out, indent=1) if args.json else table(out))


if __name__ == "__main__":
    run(main)
