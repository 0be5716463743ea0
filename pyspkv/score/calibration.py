"""Calibration: map scores to log-likelihood ratios by logistic regression, and store a decision threshold."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError
from pyspkv.base.foreign import read_json
from pyspkv.score.metrics import Curve


class CalibrationError(UserError):
    """These scores and labels cannot be calibrated, although files and machine are in order."""


@dataclass(frozen=True)
class Calibration:
    """llr = scale * score + offset (natural log); a trial is accepted if score >= threshold.

    At the threshold, llr equals log((1 - prior) / prior). This is the decision of lowest cost when a share
    `prior` of trials are targets and both errors cost the same. `source` names the trials that it was fitted
    on. `eer_threshold` is the score threshold at the EER.
    """

    scale: float
    offset: float
    threshold: float
    prior: float
    source: str
    num_target: int
    num_nontarget: int
    eer_threshold: float

    def llr(self, scores: np.ndarray) -> np.ndarray:
        """Log-likelihood ratios (natural log) of scores, in the same shape; Inf where they overflow."""
        with np.errstate(over="ignore"):  # Inf raises an error later, when scores are written or measured
            return self.scale * scores + self.offset

    def write(self, path: str | Path) -> None:
        with atomic_file(path, own=True) as f:
            json.dump(asdict(self), f, indent=1)
            f.write("\n")

    @classmethod
    def read(cls, path: str | Path) -> "Calibration":
        """Read a file that `write` has made. UserError: it is something else, or a number is not finite."""
        hint = "calibrate the model again"
        try:
            out = cls(**read_json(path, hint=hint, nan=True))
            numbers = [getattr(out, key) for key in cls.__annotations__ if key != "source"]
            if any(type(n) not in (int, float) for n in numbers) or not isinstance(out.source, str):
                raise TypeError("a value is not a number")
        except TypeError as err:
            raise UserError(f"is not a calibration ({err})", file=path, hint=hint) from None
        except UserError as err:
            why = str(err).partition("\n")[0].removeprefix(f"{path}: ")
            raise UserError(f"is not a calibration ({why})", file=path, hint=hint) from None
        if not all(map(math.isfinite, numbers)) or out.scale <= 0:
            raise UserError("scale must be above 0 and every number finite", file=path, hint=hint)
        return out


def fit(scores: np.ndarray, target: np.ndarray, prior: float, source: str) -> Calibration:
    """Fit a prior-weighted logistic regression to scores [n] and target bool [n], by Newton's method.

    Minimises  p/T sum_targets log(1 + exp(-l - logit p)) + (1-p)/N sum_nontargets log(1 + exp(l + logit p)),
    l = scale * score + offset (Brummer & du Preez 2006, "Application-independent evaluation of speaker
    detection"), plus 1e-9 / 2 * (slope on standardized scores)^2, which keeps the result finite for separable
    scores.

    UserError: prior is not between 0 and 1. CalibrationError: one kind of trial is missing, all scores are
    equal, higher scores do not mean targets, or the result does not fit into floats.
    """
    if not 0 < prior < 1:
        raise UserError(f"prior {prior} is not between 0 and 1")
    try:
        curve = Curve(scores, target)
    except UserError as err:
        raise CalibrationError(str(err)) from None
    s = np.concatenate([curve.target, curve.nontarget]).astype(np.float64)
    y = np.repeat([1.0, 0.0], [len(curve.target), len(curve.nontarget)])
    weight = np.where(y > 0, prior / len(curve.target), (1 - prior) / len(curve.nontarget))
    if s.min() == s.max():
        raise CalibrationError("all scores are equal: nothing to calibrate")
    with np.errstate(over="ignore", invalid="ignore"):
        center, spread = s.mean(), s.std()
    if not (np.isfinite(center) and 0 < spread < np.inf):
        raise CalibrationError(f"scores from {s.min():.3g} to {s.max():.3g} cannot be calibrated in floats")
    x = np.stack([(s - center) / spread, np.ones(len(s))])
    logit = np.log(prior / (1 - prior))
    w = _newton(x, y, weight, logit)
    with np.errstate(over="ignore", invalid="ignore"):
        scale, offset = w[0] / spread, w[1] - w[0] * center / spread
        threshold = (-logit - offset) / scale if scale else 0.0
    if scale <= 0:
        raise CalibrationError(
            "higher scores do not go with target trials: are the labels or the scores swapped?"
        )
    if not np.isfinite([scale, offset, threshold]).all():
        raise CalibrationError("the scores' spread is too small or too large to calibrate in floats")
    return Calibration(
        scale=float(scale),
        offset=float(offset),
        threshold=float(threshold),
        prior=prior,
        source=source,
        num_target=len(curve.target),
        num_nontarget=len(curve.nontarget),
        eer_threshold=curve.eer()[1],
    )


def _newton(x: np.ndarray, y: np.ndarray, weight: np.ndarray, logit: float) -> np.ndarray:
    """Slope and offset [2] of the weighted logistic regression of y [n] (0 or 1) on x [2, n], whose second row is 1."""
    penalty = np.array([1e-9, 0.0])

    def cost(w: np.ndarray) -> float:
        z = w @ x + logit
        return float(weight @ np.logaddexp(0, np.where(y > 0, -z, z)) + penalty @ w**2 / 2)

    w = np.zeros(2)
    here = cost(w)
    for _ in range(200):
        p = 1 / (1 + np.exp(-np.clip(w @ x + logit, -500, 500)))
        gradient = x @ (weight * (p - y)) + penalty * w
        hessian = (x * (weight * p * (1 - p))) @ x.T + np.diag(penalty + [0, 1e-12])
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (there := cost(w - size * step)) > here and size > 1e-10:
            size /= 2
        before, w, here = w, w - size * step, there
        if np.abs(gradient).max() < 1e-12 or size <= 1e-10 or (w == before).all():
            break
    return w


def pseudo_trials(
    spk: Sequence[str], recording: Sequence[str] | None, num: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw pairs of utterances: (i int64 [n], j int64 [n], target bool [n]), up to `num` of each kind.

    A target trial is two utterances of one (pseudo-)speaker; all speakers are drawn equally often. Where
    `recording` [N] is given, the two come from different recordings, because pairs within a recording share
    its channel and score too high. A nontarget trial is two utterances of different speakers. No pair occurs
    twice. UserError: no such pair exists.
    """
    rng = np.random.default_rng(seed)
    _, label = np.unique(np.asarray(spk), return_inverse=True)
    place = label if recording is None else np.unique(np.asarray(recording), return_inverse=True)[1]
    order = np.argsort(label, kind="stable")
    count = np.bincount(label)
    start = np.cumsum(count) - count

    def draw(same: bool) -> tuple[np.ndarray, np.ndarray]:
        found = np.empty((0, 2), np.int64)
        for _ in range(20):  # draw again for rejected and repeated pairs
            a = rng.integers(len(count), size=2 * num)
            b = a if same else rng.integers(len(count), size=2 * num)
            i = order[start[a] + rng.integers(count[a])]
            j = order[start[b] + rng.integers(count[b])]
            good = (place[i] != place[j]) | (recording is None)
            good &= (i != j) if same else (a != b)
            pairs = np.sort(np.stack([i, j], 1)[good], 1)
            found = np.concatenate([found, pairs])
            _, first = np.unique(found, axis=0, return_index=True)
            found = found[np.sort(first)]
            if len(found) >= num:
                break
        if not len(found):
            rule = "two utterances" + (" from different recordings" if recording is not None else "")
            need = f"no speaker has {rule}" if same else "there is only one speaker"
            raise UserError(f"cannot make {'target' if same else 'nontarget'} trials: {need}")
        return found[:num, 0], found[:num, 1]

    (ti, tj), (ni, nj) = draw(True), draw(False)
    target = np.repeat([True, False], [len(ti), len(ni)])
    return np.concatenate([ti, ni]), np.concatenate([tj, nj]), target
