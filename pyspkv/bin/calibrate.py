"""Fit the calibration and decision threshold of a model on dev or pseudo-speaker trials, and store them."""

import argparse
from typing import TYPE_CHECKING

from pyspkv.base.errors import UserError, natural, run

if TYPE_CHECKING:
    import numpy as np

MOST_TRIALS = 10**8  # of each kind drawn from data; more would not fit into memory


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.calibrate",
        description="Write calibration.json (logistic regression: score -> log-likelihood ratio, threshold). "
        "Never fit it on the test trials. Either --scores and --trials of a dev list, or --from-data and --embeddings: "
        "cosine scores of pairs drawn within and between the (pseudo-)speakers of a data directory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--scores",
        metavar="FILE",
        help="scores of dev trials; use plain cosine scores if `verify` will use the result",
    )
    p.add_argument("--trials", metavar="FILE", help="dev trials")
    p.add_argument(
        "--from-data", metavar="DIR", help="data directory whose utt2spk holds the (pseudo-)speakers"
    )
    p.add_argument("--embeddings", metavar="SCP", help="embeddings of --from-data")
    p.add_argument(
        "--num-trials", type=int, default=50000, help="number of pairs of each kind to draw from --from-data"
    )
    p.add_argument("--seed", type=natural, default=0, help="seed of the drawn pairs")
    p.add_argument(
        "--prior", type=float, default=0.5, help="share of target trials that the threshold assumes"
    )
    p.add_argument("--model", metavar="DIR", help="write DIR/calibration.json, where `verify` finds it")
    p.add_argument("--out", metavar="FILE", help="write this file instead")
    args = p.parse_args()
    dev, pseudo = (args.scores, args.trials), (args.from_data, args.embeddings)
    if not ((all(dev) and not any(pseudo)) or (all(pseudo) and not any(dev))):
        p.error("give --scores and --trials, or --from-data and --embeddings")
    if bool(args.model) == bool(args.out):
        p.error("give --model or --out")
    if not 1 <= args.num_trials <= MOST_TRIALS:
        p.error(f"--num-trials must be from 1 to {MOST_TRIALS}")
    args.out = args.out or f"{args.model}/calibration.json"
    return args


def pseudo_scores(args: argparse.Namespace) -> "tuple[np.ndarray, np.ndarray, str]":
    """(scores [n], target [n], their source) of pairs drawn from --from-data."""
    from pyspkv.data.ark import read_embeddings
    from pyspkv.data.datadir import DataDir
    from pyspkv.score import calibration, scoring

    data = DataDir.read(args.from_data)
    embeddings = read_embeddings(args.embeddings)
    rows = scoring.rows_of(data.utts, embeddings.ids, "data", args.embeddings)
    recording, source = recordings(data)
    i, j, target = calibration.pseudo_trials(data.spk, recording, args.num_trials, args.seed)
    x = scoring.unit_means(embeddings)
    scores = scoring.cosine(x, x, rows[i], rows[j])
    return scores, target, f"pairs within and between the speakers of {args.from_data}{source}"


def recordings(data) -> tuple[list[str] | None, str]:
    """(recording of each utterance, a remark).

    None if unknown, or if every speaker has one recording only.
    """
    if not data.segments:
        return None, ""
    recording = [data.segments[utt][0] for utt in data.utts]
    several = len({*zip(data.spk, recording)}) > len(set(data.spk))
    return (recording, ", different recordings") if several else (None, ", one recording a speaker")


def main() -> None:
    args = parse_args()
    from pyspkv.score import calibration
    from pyspkv.score.metrics import Curve

    if args.scores:
        from pyspkv.data.trials import read_trials
        from pyspkv.score.scoring import read_scores

        enrol, test, target = read_trials(args.trials)
        scores, source = read_scores(args.scores, enrol, test), f"trials {args.trials}"
    else:
        scores, target, source = pseudo_scores(args)
    try:
        result = calibration.fit(scores, target, args.prior, source)
    except UserError as err:
        raise UserError(str(err), file=args.scores or args.from_data) from None
    result.write(args.out)
    curve = Curve(result.llr(scores), target)
    print(
        f"{result.source}: {result.num_target} targets, {result.num_nontarget} nontargets, "
        f"EER {100 * curve.eer()[0]:.2f} %, Cllr {curve.cllr():.3f}"
    )
    print(f"threshold {result.threshold:.4f} at prior {result.prior}; written to {args.out}")


if __name__ == "__main__":
    run(main)
