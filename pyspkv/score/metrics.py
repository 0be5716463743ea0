"""Verification metrics: EER, minDCF, actDCF, Cllr, bootstrap intervals.

A trial is accepted if score >= threshold.

Interpolation of the EER: the operating points (FPR, FNR) at all distinct scores are joined by straight lines,
and the EER is where this line meets FPR = FNR. Without ties between a target and a nontarget this is a corner
or a step of the ROC. A tie is one oblique segment, so constant scores give 50 %. The usual recipe,
`brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1)` on sklearn's roc_curve, gives the same value.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.data.tables import read_table

REPLICATES = 1000
LARGE = 2_000_000  # lists with more trials get fewer replicates, so that an interval takes only minutes


class Curve:
    """Both error rates as functions of the threshold, from one sort per kind of trial.

    scores [n], target bool [n]. Attributes target and nontarget: the sorted scores. UserError: a kind is
    missing, or a score is not finite.
    """

    def __init__(self, scores: np.ndarray, target: np.ndarray):
        scores, target = np.asarray(scores), np.asarray(target, dtype=bool)
        self.target, self.nontarget = np.sort(scores[target]), np.sort(scores[~target])
        for name, part in (("target", self.target), ("nontarget", self.nontarget)):
            if not len(part):
                raise UserError(f"there is no {name} trial; error rates need both kinds")
            if not np.isfinite(part[[0, -1]]).all():  # enough to check the ends: NaN is sorted to the end
                raise UserError(f"a {name} trial has a score that is not finite")

    def fnr(self, threshold) -> np.ndarray:
        """Share of targets rejected at each threshold."""
        return np.searchsorted(self.target, threshold, side="left") / len(self.target)

    def fpr(self, threshold) -> np.ndarray:
        """Share of nontargets accepted at each threshold."""
        return 1 - np.searchsorted(self.nontarget, threshold, side="left") / len(self.nontarget)

    def eer(self) -> tuple[float, float]:
        """(EER as a fraction, threshold at which the two error rates are closest)."""
        target, nontarget = self.target, self.nontarget
        # FNR changes only at target scores, so the crossing is at or just above the last one with FNR < FPR.
        low, high = 0, len(target)
        while low < high:
            mid = (low + high) // 2
            if self.fnr(target[mid]) < self.fpr(target[mid]):
                low = mid + 1
            else:
                high = mid
        if low == 0:  # no nontarget reaches the lowest target score: perfect separation
            return 0.0, float(target[0])
        a = target[low - 1]
        fnr_a, fpr_a = self.fnr(a), self.fpr(a)
        fnr_b = np.searchsorted(target, a, side="right") / len(target)
        fpr_b = 1 - np.searchsorted(nontarget, a, side="right") / len(nontarget)
        if fnr_b >= fpr_b:  # on the segment between the threshold a and the next score above it
            share = (fpr_a - fnr_a) / ((fpr_a - fnr_a) + (fnr_b - fpr_b))
            eer = fnr_a + share * (fnr_b - fnr_a)
        else:  # FNR stays constant while nontargets are rejected one by one
            eer = fnr_b
        near = len(nontarget) - int(fnr_b * len(nontarget))  # a share fnr_b of nontargets lies above this one
        steps = nontarget[[min(max(near - k, 0), len(nontarget) - 1) for k in (0, 1)]]
        candidates = [a, target[min(low, len(target) - 1)], *steps, *np.nextafter([a, *steps], np.inf)]
        gap = [abs(self.fnr(c) - self.fpr(c)) for c in candidates]
        return float(eer), float(candidates[int(np.argmin(gap))])

    def min_dcf(self, p_target: float) -> tuple[float, float]:
        """(minDCF, its threshold) for C_miss = C_fa = 1.

        The cost is normalized by min(p, 1 - p), the cost of a constant decision.
        Between two target scores a higher threshold only lowers FPR, so the minimum is at a target score, or
        where everything is rejected.
        """
        t = np.append(self.target, np.nextafter(max(self.target[-1], self.nontarget[-1]), np.inf))
        cost = p_target * self.fnr(t)
        cost += (1 - p_target) * self.fpr(t)
        best = int(np.argmin(cost))
        return float(cost[best] / min(p_target, 1 - p_target)), float(t[best])

    def act_dcf(self, p_target: float) -> float:
        """Normalized DCF of log-likelihood ratios (natural log) at Bayes' threshold log((1 - p) / p)."""
        t = np.log((1 - p_target) / p_target)
        cost = p_target * self.fnr(t) + (1 - p_target) * self.fpr(t)
        return float(cost / min(p_target, 1 - p_target))

    def cllr(self) -> float:
        """Cllr in bits of natural-log likelihood ratios: 0 is perfect, 1 that of llr = 0 for all trials.

        Brummer & du Preez, "Application-independent evaluation of speaker detection", 2006.
        """
        miss = np.logaddexp(0, -self.target).mean()
        alarm = np.logaddexp(0, self.nontarget).mean()
        return float((miss + alarm) / 2 / np.log(2))


def eer(scores: np.ndarray, target: np.ndarray) -> float:
    """EER in percent of scores [n] with target bool [n]. UserError: as in `Curve`."""
    return 100 * Curve(scores, target).eer()[0]


def summary(
    scores: np.ndarray, target: np.ndarray, *, llr: np.ndarray | None = None
) -> dict[str, float | int]:
    """Metrics of scores [n] with target bool [n] as a flat dict; `eer` in percent.

    llr [n]: the scores as log-likelihood ratios (natural log); adds actDCF and Cllr. UserError: as in
    `Curve`.
    """
    curve = Curve(scores, target)
    rate, threshold = curve.eer()
    out: dict[str, float | int] = {"eer": 100 * rate, "threshold": threshold}
    for p in (0.01, 0.05):
        out[f"min_dcf_{p}"], out[f"threshold_min_dcf_{p}"] = curve.min_dcf(p)
    if llr is not None:
        calibrated = Curve(llr, target)
        out |= {f"act_dcf_{p}": calibrated.act_dcf(p) for p in (0.01, 0.05)}
        out["cllr"] = calibrated.cllr()
    return out | {"num_target": len(curve.target), "num_nontarget": len(curve.nontarget)}


class Resampling:
    """Bootstrap units (speakers or enrolment ids), drawn with replacement, as weights of trials.

    The weight of a trial is the product of the multiplicities of its two units. A trial within one unit (a
    target trial) has the multiplicity of that unit once. So a speaker drawn twice brings its trials twice,
    and trials that share a speaker are drawn together.
    """

    def __init__(self, first: Sequence[str], second: Sequence[str] | None, over: str, seed: int = 0):
        """first, second: unit of each trial's enrolment and test side [n]; None: only `first` is drawn."""
        names = {name: i for i, name in enumerate(sorted(set(first) | set(second or ())))}
        a = np.fromiter((names[s] for s in first), np.int64, len(first))
        b = np.full(len(a), len(names))  # index of an extra unit that always has multiplicity 1
        if second is not None:
            b = np.fromiter((names[s] for s in second), np.int64, len(second))
            b[a == b] = len(names)
        self.a, self.b, self.num, self.over, self.seed = a, b, len(names), over, seed
        self.drawn: np.ndarray | None = None

    def multiplicities(self, replicates: int) -> np.ndarray:
        """int64 [replicates, units + 1]; the last column is 1.

        Drawn once, so all systems get the same draws.
        """
        if self.drawn is None or len(self.drawn) != replicates:
            rng = np.random.default_rng(self.seed)
            drawn = rng.multinomial(self.num, np.full(self.num, 1 / self.num), size=replicates)
            self.drawn = np.concatenate([drawn, np.ones((replicates, 1), dtype=drawn.dtype)], axis=1)
        return self.drawn


def resampling(
    enrol: Sequence[str],
    test: Sequence[str],
    target: np.ndarray,
    utt2spk: str | Path | None,
    enrol_map: str | Path | None,
) -> Resampling:
    """Units of the trials: the speakers of both sides if `utt2spk` is given, else the enrolment ids.

    enrol_map: gives the speaker of each enrolment model from its utterances. UserError: an id has no speaker,
    a model has two, or a trial's target does not agree with the speakers.
    """
    if utt2spk is None:
        return Resampling(enrol, None, "enrolment ids")
    speaker = read_table(utt2spk, "id")
    models = read_table(enrol_map, "ids") if enrol_map else {}
    for line, (model, utts) in enumerate(models.items(), 1):
        found = sorted({speaker[u] for u in utts.split(" ") if u in speaker})
        if len(found) > 1:
            raise UserError(
                f"model {model} has utterances of {found[0]} and of {found[1]}",
                file=enrol_map,
                line=line,
                hint="give each model one speaker's utterances, or drop --utt2spk",
            )
        if found:
            speaker[model] = found[0]
    missing = list(dict.fromkeys(u for u in (*enrol, *test) if u not in speaker))
    if missing:
        raise UserError(
            f"{len(missing)} ids of the trials have no speaker; the first is {missing[0]}",
            file=utt2spk,
            hint="add them (enrolment models: give --enrol-map), or drop --utt2spk",
        )
    first, second = [speaker[e] for e in enrol], [speaker[t] for t in test]
    wrong = [k for k, (a, b) in enumerate(zip(first, second)) if (a == b) != target[k]]
    if wrong:
        k = wrong[0]
        raise UserError(
            f"{len(wrong)} trials contradict it; the first, {enrol[k]} {test[k]}, is "
            f"{'target' if target[k] else 'nontarget'} and of speakers {first[k]} and {second[k]}",
            file=utt2spk,
            hint="give the true utt2spk of the test set",
        )
    return Resampling(first, second, "speakers")


def check_kinds(target: np.ndarray, file: str | Path) -> None:
    """UserError: the trials of `file` are all target or all nontarget."""
    if target.all() or not target.any():
        kind = "target" if not target.any() else "nontarget"
        raise UserError(f"there is no {kind} trial; error rates need both kinds", file=file)


def replicates_for(num_trials: int) -> int:
    """Number of bootstrap replicates for a list: fewer for a large one, to stay within minutes."""
    return REPLICATES if num_trials <= LARGE else REPLICATES // 10


def weighted_eers(scores: np.ndarray, target: np.ndarray, units: Resampling, replicates: int) -> np.ndarray:
    """EER in percent of each replicate, float64 [replicates]; NaN where one kind of trial was not drawn.

    Weights are integers, so their sums are exact. FNR - FPR never falls as the threshold rises, so a
    bisection finds where it crosses 0.
    """
    order = np.argsort(scores, kind="stable")
    values, is_target = np.asarray(scores)[order], np.asarray(target, dtype=bool)[order]
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # the last trial of each group of ties
    targets_to = np.cumsum(is_target)[ends]  # how many trials of a kind score up to a group's value
    nontargets_to = ends + 1 - targets_to
    a_t, b_t = units.a[order[is_target]], units.b[order[is_target]]
    a_n, b_n = units.a[order[~is_target]], units.b[order[~is_target]]
    targets, nontargets = np.zeros(len(a_t) + 1, np.int64), np.zeros(len(a_n) + 1, np.int64)
    out = np.full(replicates, np.nan)
    for r, times in enumerate(units.multiplicities(replicates)):
        np.cumsum(times[a_t] * times[b_t], out=targets[1:])
        np.cumsum(times[a_n] * times[b_n], out=nontargets[1:])
        if not (targets[-1] and nontargets[-1]):
            continue

        def rates(group: int) -> tuple[float, float]:  # FNR - FPR and FNR if the threshold is just above it
            fnr = targets[targets_to[group]] / targets[-1]
            return fnr + nontargets[nontargets_to[group]] / nontargets[-1] - 1, fnr

        low, high = 0, len(ends) - 1
        while low < high:
            mid = (low + high) // 2
            low, high = (low, mid) if rates(mid)[0] >= 0 else (mid + 1, high)
        d, f = rates(low)
        d0, f0 = rates(low - 1) if low else (-1.0, 0.0)
        out[r] = 100 * (f0 + (f - f0) * -d0 / (d - d0))
    return out


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of bootstrap replicates, ignoring NaN."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap(
    scores: np.ndarray,
    target: np.ndarray,
    units: Resampling,
    replicates: int = REPLICATES,
    eers: np.ndarray | None = None,
) -> dict[str, float | int | str]:
    """Bootstrap interval of the EER as flat keys; the bounds are None with fewer than 3 units.

    eers: `weighted_eers` of the same scores and draws, if computed already.
    """
    out: dict = {
        "eer_ci_low": None,
        "eer_ci_high": None,
        "eer_ci_over": units.over,
        "eer_ci_units": units.num,
    }
    if units.num >= 3:  # with two units, all replicates that have both kinds of trial are the same
        eers = weighted_eers(scores, target, units, replicates) if eers is None else eers
        out["eer_ci_low"], out["eer_ci_high"] = interval(eers)
    return out | {"eer_ci_replicates": replicates}


def compare(
    scores: np.ndarray,
    other: np.ndarray,
    target: np.ndarray,
    units: Resampling,
    replicates: int = REPLICATES,
    eers: np.ndarray | None = None,
    other_eers: np.ndarray | None = None,
) -> dict[str, float | bool]:
    """Paired bootstrap of EER(scores) - EER(other) in percent points, on the same trials and the same draws.

    eers, other_eers: `weighted_eers` of the two with the same draws, if computed already. UserError: fewer
    than 3 units.
    """
    if units.num < 3:
        raise UserError(f"{units.num} {units.over} are too few to compare two systems; at least 3 are needed")
    eers = weighted_eers(scores, target, units, replicates) if eers is None else eers
    other_eers = weighted_eers(other, target, units, replicates) if other_eers is None else other_eers
    low, high = interval(eers - other_eers)
    return {
        "eer_other": eer(other, target),
        "eer_difference": eer(scores, target) - eer(other, target),
        "eer_difference_ci_low": low,
        "eer_difference_ci_high": high,
        "eer_differs": bool(low > 0 or high < 0),
    }
