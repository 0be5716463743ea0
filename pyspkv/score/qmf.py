"""Calibration with quality measures: a log-likelihood ratio from a trial's score and from how good its two sides are.

    llr = offset + sum over columns c of  weight[c] (x[c] - center[c]) / spread[c]

The columns are the score and the quality measures. Weights are those of logistic regression on dev trials: the
quality-aware calibration of Thienpondt et al., "The IDLab VoxSRC-20 Submission", ICASSP 2021 (arXiv 2010.11255). A
measure of a trial is the smaller or the larger one of its two sides, so that swapping the sides changes nothing.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError
from pyspkv.base.foreign import is_number, read_json
from pyspkv.data.ark import Embeddings
from pyspkv.data.tables import read_table
from pyspkv.score.calibration import CalibrationError, newton
from pyspkv.score.metrics import Curve

SCORE = "score"
FRAME = 0.01  # seconds from one frame of utt2num_frames to the next: Kaldi's frame shift
CONSTANT = (
    1e-6  # a measure whose spread is at most this share of its largest value is constant but for rounding
)


@dataclass(frozen=True)
class Column:
    """One column of the regression: its mean and standard deviation on dev, and the weight of (x - center) / spread."""

    weight: float
    center: float
    spread: float


@dataclass(frozen=True)
class QMF:
    """A fitted calibration. columns: `score` first, then measures by name. constant: measures that were left out."""

    columns: dict[str, Column]
    offset: float
    prior: float
    sources: dict[str, str]
    num_target: int
    num_nontarget: int
    constant: list[str]

    def llr(self, scores: np.ndarray, measures: Mapping[str, np.ndarray]) -> np.ndarray:
        """Log-likelihood ratios (natural log), float64 [n], of scores [n] with measures, name -> [n].

        UserError: a measure that it was fitted with is not given.
        """
        given = {SCORE: scores, **measures}
        if missing := [name for name in self.columns if name not in given]:
            raise UserError(f"the calibration needs the quality measure {missing[0]}", hint="fit it again")
        out = np.full(len(scores), self.offset)
        with np.errstate(over="ignore"):  # Inf is an error when scores are written
            for name, c in self.columns.items():
                out += c.weight * ((given[name] - c.center) / c.spread)
        return out

    def signs(self) -> list[str]:
        """What about the weights is hard to believe, in words; [] where nothing is."""
        score, out = self.columns[SCORE].weight, []
        if score <= 0:
            out.append(f"the score's weight is {score:.3g}: higher scores do not go with target trials")
        for name, c in self.columns.items():
            if name != SCORE and abs(c.weight) > abs(score):
                what = f"{name} weighs {c.weight:+.3g}, more than the score's {score:+.3g}"
                out.append(f"{what}: on dev it tells targets from nontargets by itself")
        return out

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {c.weight:+.3f}" for name, c in self.columns.items())
        left_out = f"; constant, left out: {', '.join(self.constant)}" if self.constant else ""
        return f"weights of standardized columns: {shown}{left_out}"

    def write(self, path: str | Path) -> None:
        with atomic_file(path, own=True) as f:
            json.dump(asdict(self), f, indent=1)
            f.write("\n")

    @classmethod
    def read(cls, path: str | Path) -> "QMF":
        """Raises UserError when the file is not what `write` makes."""
        hint = "score again with --qmf and --dev"
        found = read_json(path, hint=hint, nan=True)
        try:
            columns = {name: Column(**c) for name, c in found.get("columns", {}).items()}
            out = cls(**{**found, "columns": columns})
            numbers = [out.offset, out.prior, out.num_target, out.num_nontarget]
            numbers += [n for c in columns.values() for n in (c.weight, c.center, c.spread)]
            if not all(is_number(n) and math.isfinite(n) for n in numbers):
                raise TypeError("a value is not a finite number")
            if SCORE not in columns or any(c.spread <= 0 for c in columns.values()):
                raise TypeError("it has no column `score`, or a spread that is not above 0")
            if not isinstance(out.sources, dict) or not isinstance(out.constant, list):
                raise TypeError("sources or constant are of another kind")
        except (TypeError, AttributeError, OverflowError) as err:
            raise UserError(
                f"is not a calibration with quality measures ({err})", file=path, hint=hint
            ) from None
        return out


def fit(
    scores: np.ndarray,
    measures: Mapping[str, np.ndarray],
    target: np.ndarray,
    prior: float,
    sources: dict[str, str],
) -> QMF:
    """Prior-weighted logistic regression on scores [n] and measures, name -> [n], of dev trials; target: bool [n].

    The cost is that of `calibration.fit`, with a penalty of 1e-9 / 2 on each squared weight of a standardized column.
    Measures that are the same for all trials are left out. Weights of any sign are kept: `QMF.signs` says which are
    hard to believe. Raises CalibrationError: one kind of trial, all scores equal, values that floats cannot hold.
    """
    if not 0 < prior < 1:
        raise UserError(f"prior {prior} is not between 0 and 1")
    try:
        curve = Curve(scores, target)  # checks the scores
    except UserError as err:
        raise CalibrationError(str(err)) from None
    num_target, num_nontarget = len(curve.target), len(curve.nontarget)
    columns, rows, constant = {}, [], []
    for name, values in {SCORE: scores, **measures}.items():
        x = np.asarray(values, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            center, spread = x.mean(), x.std()
        if not np.isfinite([center, spread]).all():
            raise CalibrationError(f"{name} has values that cannot be calibrated in floats")
        if spread <= (0 if name == SCORE else CONSTANT * np.abs(x).max()) or x.min() == x.max():
            constant.append(name)
            continue
        columns[name] = (float(center), float(spread))
        rows.append((x - center) / spread)
    if SCORE in constant:
        raise CalibrationError("all scores are equal: nothing to calibrate")
    weight = np.where(target, prior / num_target, (1 - prior) / num_nontarget)
    x = np.stack([*rows, np.ones(len(scores))])
    w = newton(x, np.asarray(target, np.float64), weight, np.log(prior / (1 - prior)))
    if not np.isfinite(w).all():
        raise CalibrationError("the weights cannot be held in floats")
    fitted = {name: Column(float(v), *columns[name]) for name, v in zip(columns, w)}
    return QMF(fitted, float(w[-1]), prior, sources, num_target, num_nontarget, constant)


def durations(data: str | Path, utts: Iterable[str]) -> tuple[dict[str, float], str]:
    """(utterance -> seconds, where they are from): utt2dur, else utt2num_frames, else segments or the audio's headers.

    UserError: a data directory with none of them, an utterance without one, or commands in wav.scp, which are not run.
    """
    data, wanted = Path(data), dict.fromkeys(utts)
    for name, kind, unit in (("utt2dur", "seconds", 1.0), ("utt2num_frames", "count", FRAME)):
        if (data / name).exists():
            table = read_table(data / name, kind)
            _check_known(wanted, table, data / name)
            return {utt: float(table[utt]) * unit for utt in wanted}, str(data / name)
    return _measured(data, wanted)


def _measured(data: Path, wanted: Mapping[str, None]) -> tuple[dict[str, float], str]:
    """As `durations`, by what the reader of audio finds: segments, utt2num_samples, or headers."""
    hint = "write utt2dur (`utterance seconds`)"
    if not (data / "wav.scp").exists():
        rule = "durations are not known: there is no utt2dur, utt2num_frames or wav.scp"
        raise UserError(rule, file=data, hint=f"{hint}, or leave out --qmf")
    from pyspkv.audio.reader import SAMPLE_RATE, AudioReader
    from pyspkv.data.datadir import DataDir

    found = DataDir.read(data)
    row = {utt: k for k, utt in enumerate(found.utts)}
    _check_known(wanted, row, data / "utt2spk")
    if any(entry.endswith("|") for entry in found.wav.values()):
        raise UserError("its audio are commands, which are not run here", file=data / "wav.scp", hint=hint)
    reader = AudioReader(found)
    return {utt: reader.num_samples(row[utt]) / SAMPLE_RATE for utt in wanted}, str(data / "wav.scp")


def _check_known(wanted: Iterable[str], known: Mapping[str, object], file: Path) -> None:
    """UserError counts the utterances of trials that a table does not have, and names the first."""
    if missing := [utt for utt in wanted if utt not in known]:
        rule = f"has no line for {len(missing)} utterances of the trials; the first is {missing[0]}"
        raise UserError(rule, file=file, hint="add them, or leave out --qmf")


def norms(embeddings: Embeddings) -> dict[str, float]:
    """Utterance -> length of its raw embedding; the mean length of its rows where it has several."""
    length = np.sqrt(np.einsum("rd,rd->r", embeddings.x, embeddings.x, dtype=np.float64))
    mean = np.add.reduceat(length, embeddings.offsets[:-1]) / np.diff(embeddings.offsets)
    return dict(zip(embeddings.ids, mean.tolist()))


def measures(
    trials: tuple[Sequence[str], Sequence[str]],
    models: Mapping[str, Sequence[str]] | None,
    seconds: Mapping[str, float],
    lengths: Mapping[str, float],
    cohort_means: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Name -> float64 [n]: the quality measures of trials, each as the smaller and the larger of the two sides.

    Args:
        trials: ids of the n enrolment and the n test sides.
        models: enrolment ids that are several utterances: they are as long as all together, and have the mean of their
            embeddings' lengths.
        seconds, lengths: of each utterance: duration, and length of the raw embedding.
        cohort_means: mean of the top cohort scores of either side, [n] each, as AS-norm subtracts them.
    """
    members = [{} if side else models or {} for side in range(2)]  # only the enrolment side has models

    def per_trial(of) -> list[np.ndarray]:
        out = []
        for ids, groups in zip(trials, members):
            value = {name: of(groups.get(name, [name])) for name in dict.fromkeys(ids)}
            out.append(np.fromiter((value[name] for name in ids), np.float64, len(ids)))
        return out

    pairs = {
        "log_seconds": per_trial(lambda utts: math.log(sum(seconds[utt] for utt in utts))),
        "norm": per_trial(lambda utts: sum(lengths[utt] for utt in utts) / len(utts)),
    }
    if cohort_means is not None:
        pairs["cohort_mean"] = list(cohort_means)
    return {
        f"{name}_{end}": pick(*both)
        for name, both in pairs.items()
        for end, pick in (("min", np.minimum), ("max", np.maximum))
    }
