"""Score trials: cosine of embeddings, optionally mean-subtracted, AS-normalised, calibrated."""

import argparse
import zipfile

import numpy as np

from pyspkv import scoring
from pyspkv.embeddings import Embeddings, read_embeddings
from pyspkv.errors import UserError, run
from pyspkv.tables import read_table
from pyspkv.trials import read_trials


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.score",
        description="Write `enrol test score` for every trial, in the order of the trial list.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--trials", required=True, help="`enrol test target|nontarget` lines")
    p.add_argument(
        "--enrol",
        required=True,
        nargs="+",
        metavar="SCP",
        help="embeddings of the enrolment side; several (whole utterances and their crops): the mean of their scores",
    )
    p.add_argument("--test", required=True, nargs="+", metavar="SCP", help="of the test side, as many")
    p.add_argument("--out", required=True, help="score file to write")
    p.add_argument(
        "--enrol-map",
        metavar="FILE",
        help="`model utt1 utt2 ...` lines: a model is the length-normalised mean of its directions",
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
        p.error("--enrol and --test take as many files; several go with neither --cohort nor --mean")
    if args.cohort_utt2spk and not args.cohort:
        p.error("--cohort-utt2spk needs --cohort")
    return args


def read_mean(path: str) -> np.ndarray:
    """float32 [D]: the vector in a .npy file, or the mean over the raw rows of an embedding set."""
    if not path.endswith(".npy"):
        return read_embeddings(path).x.mean(0, dtype=np.float64).astype(np.float32)
    try:
        mean = np.load(path, allow_pickle=False)
        if not isinstance(mean, np.ndarray):
            raise ValueError("an archive of several")
    except (ValueError, EOFError, zipfile.BadZipFile) as err:
        raise UserError(f"is not an array of numbers ({err})", file=path) from None
    if mean.ndim != 1 or mean.dtype.kind != "f" or not np.isfinite(mean).all():
        raise UserError("must hold one vector of finite floats", file=path)
    return mean


def read_cohort(scp: str, utt2spk: str | None, mean: np.ndarray | None, dim: int) -> np.ndarray:
    """float32 [C, D]: directions of the cohort, of utterances or of (pseudo-)speakers. Prints its size."""
    embeddings = read_embeddings(scp)
    check_dim(embeddings, dim, scp)
    x = scoring.directions(embeddings, mean)
    if utt2spk is None:
        print(f"AS-norm cohort: {len(x)} utterances of {scp}")
        return x
    members: dict[str, list[str]] = {}
    for utt, spk in read_table(utt2spk, "id").items():
        members.setdefault(spk, []).append(utt)
    _, means = scoring.group_means(embeddings.ids, x, members, file=utt2spk)
    print(f"AS-norm cohort: {len(means)} (pseudo-)speakers of {utt2spk}, each the mean of its utterances")
    return means


def check_dim(embeddings: Embeddings, dim: int, file: str) -> None:
    if embeddings.dim != dim:
        raise UserError(
            f"has {embeddings.dim} dimensions, the test embeddings have {dim}",
            file=file,
            mend="extract all embeddings with the same model",
        )


def score(args, enrol_scp: str, test_scp: str, mean, enrol: list[str], test: list[str]) -> np.ndarray:
    """float64 scores of the trials by one pair of embedding sets."""
    embeddings = read_embeddings(test_scp)
    test_ids, test_x = embeddings.ids, scoring.directions(embeddings, mean)
    enrol_ids, enrol_x = test_ids, test_x
    if enrol_scp != test_scp:
        embeddings = read_embeddings(enrol_scp)
        check_dim(embeddings, test_x.shape[1], enrol_scp)
        enrol_ids, enrol_x = embeddings.ids, scoring.directions(embeddings, mean)
    if args.enrol_map:
        models = {m: utts.split(" ") for m, utts in read_table(args.enrol_map, "ids").items()}
        names, means = scoring.group_means(enrol_ids, enrol_x, models, file=args.enrol_map)
        others = set(enrol) - set(models)  # trials may name models and utterances
        keep = [k for k, utt in enumerate(enrol_ids) if utt in others]
        enrol_ids, enrol_x = names + [enrol_ids[k] for k in keep], np.concatenate([means, enrol_x[keep]])
    i = scoring.rows_of(enrol, enrol_ids, "enrolment", args.trials)
    j = scoring.rows_of(test, test_ids, "test", args.trials)
    if args.cohort:
        cohort = read_cohort(args.cohort, args.cohort_utt2spk, mean, test_x.shape[1])
        return scoring.as_norm(enrol_x, test_x, i, j, cohort, args.top_n)
    return scoring.cosine(enrol_x, test_x, i, j)


def main() -> None:
    args = parse_args()
    calibration = None
    if args.calibration:
        from pyspkv.calibration import Calibration

        calibration = Calibration.read(args.calibration)
    enrol, test, _ = read_trials(args.trials)
    mean = read_mean(args.mean) if args.mean else None
    scores = np.mean([score(args, *pair, mean, enrol, test) for pair in zip(args.enrol, args.test)], 0)
    if calibration:
        scores = calibration.llr(scores)
    scoring.write_scores(args.out, enrol, test, scores)
    print(f"{len(scores)} scores in {args.out}")


if __name__ == "__main__":
    run(main)
