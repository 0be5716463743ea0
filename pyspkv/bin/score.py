"""Score trials: cosine of embeddings, optionally with mean subtraction, AS-norm and calibration."""

import argparse
from typing import TYPE_CHECKING

from pyspkv.base.errors import run

if TYPE_CHECKING:
    import numpy as np


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.score",
        description="Write `enrol test score` for every trial, in the order of the trial list.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--trials", required=True, help="`enrol test target|nontarget` lines, or `enrol test`")
    p.add_argument(
        "--enrol",
        required=True,
        nargs="+",
        metavar="SCP",
        help="embeddings of the enrolment side; with several files (whole utterances and their crops), the "
        "scores are averaged",
    )
    p.add_argument(
        "--test",
        required=True,
        nargs="+",
        metavar="SCP",
        help="embeddings of the test side, as many as for --enrol",
    )
    p.add_argument("--out", required=True, help="score file to write")
    p.add_argument(
        "--enrol-map",
        metavar="FILE",
        help="`model utt1 utt2 ...` lines: a model is the normalized mean of length-normalized embeddings",
    )
    p.add_argument(
        "--cohort", metavar="SCP", help="embeddings of the AS-norm cohort; without it, plain cosine"
    )
    p.add_argument(
        "--cohort-utt2spk", metavar="FILE", help="average the cohort by the (pseudo-)speakers of this utt2spk"
    )
    p.add_argument("--top-n", type=int, default=300, help="cohort entries per side in AS-norm")
    p.add_argument("--mean", metavar="SCP|NPY", help="subtract the mean of these embeddings (or a vector)")
    p.add_argument(
        "--calibration",
        metavar="FILE",
        help="calibration.json: write log-likelihood ratios instead of scores",
    )
    args = p.parse_args()
    if len(args.enrol) != len(args.test) or (len(args.test) > 1 and (args.cohort or args.mean)):
        p.error("--enrol and --test need the same number of files; --cohort and --mean need one each")
    if args.cohort_utt2spk and not args.cohort:
        p.error("--cohort-utt2spk needs --cohort")
    return args


def read_cohort(scp: str, utt2spk: str | None, mean: "np.ndarray | None", dim: int) -> "np.ndarray":
    """Directions of the cohort, of utterances or of (pseudo-)speakers: float32 [C, D].

    Prints their number.
    """
    from pyspkv.data.ark import read_embeddings
    from pyspkv.score import scoring

    embeddings = read_embeddings(scp)
    scoring.check_dim(embeddings, dim, scp)
    x = scoring.unit_means(embeddings, mean)
    if utt2spk is None:
        print(f"AS-norm cohort: {len(x)} utterances of {scp}")
        return x
    means = scoring.speaker_means(embeddings.ids, x, utt2spk)
    print(f"AS-norm cohort: {len(means)} (pseudo-)speakers of {utt2spk}, each the mean of its utterances")
    return means


def score(args, enrol_scp: str, test_scp: str, mean, enrol: list[str], test: list[str]) -> "np.ndarray":
    """Scores of the trials with one pair of embedding sets, float64 [n]."""
    from pyspkv.data.ark import read_embeddings
    from pyspkv.score import scoring

    embeddings = read_embeddings(test_scp)
    enrol_set = test_set = embeddings.ids, scoring.unit_means(embeddings, mean)
    dim = embeddings.dim
    if enrol_scp != test_scp:
        embeddings = read_embeddings(enrol_scp)
        scoring.check_dim(embeddings, dim, enrol_scp)
        enrol_set = embeddings.ids, scoring.unit_means(embeddings, mean)
    models = scoring.read_models(args.enrol_map) if args.enrol_map else None
    sides = scoring.sides(enrol_set, test_set, enrol, test, models, args.trials, args.enrol_map)
    if args.cohort:
        cohort = read_cohort(args.cohort, args.cohort_utt2spk, mean, dim)
        return scoring.as_norm(*sides, cohort, args.top_n)
    return scoring.cosine(*sides)


def main() -> None:
    args = parse_args()
    import numpy as np

    from pyspkv.data.trials import read_pairs
    from pyspkv.score import scoring

    calibration = None
    if args.calibration:
        from pyspkv.score.calibration import Calibration

        calibration = Calibration.read(args.calibration)
    enrol, test = read_pairs(args.trials)
    mean = scoring.read_mean(args.mean) if args.mean else None
    scores = np.mean([score(args, *pair, mean, enrol, test) for pair in zip(args.enrol, args.test)], 0)
    if calibration:
        scores = calibration.llr(scores)
    scoring.write_scores(args.out, enrol, test, scores)
    print(f"{len(scores)} scores in {args.out}")


if __name__ == "__main__":
    run(main)
