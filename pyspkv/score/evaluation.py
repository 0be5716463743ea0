"""Scores and metrics of systems on trial lists. Work that lists or systems share is done once.

A system is a folder with `embed/<set>/embedding.scp`, `model/` and `score/`. `wanted` decides which score
files are needed; this module makes them.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError
from pyspkv.data.ark import Embeddings, read_embeddings
from pyspkv.data.trials import read_trials
from pyspkv.score import metrics, qmf, scoring
from pyspkv.score.calibration import CalibrationError, fit


@dataclass
class TrialList:
    """The trials of a data directory with their bootstrap draws over speakers, read once for all systems."""

    name: str  # of the set of embeddings
    data: str
    file: str  # DATA/trials, or a further list, DATA/trials_X
    _others: dict[str, tuple[np.ndarray, np.ndarray | None]] = field(default_factory=dict)

    @cached_property
    def trials(self) -> tuple[list[str], list[str], np.ndarray]:
        """(enrolment ids, test ids, target bool [n]). UserError: one kind of trial is missing."""
        enrol, test, target = read_trials(self.file)
        metrics.check_kinds(target, self.file)
        return enrol, test, target

    @cached_property
    def enrol_map(self) -> str | None:
        """Path of the enrolment map, or None if the data directory has none."""
        path = f"{self.data}/enrol_map"
        return path if Path(path).is_file() else None

    @cached_property
    def models(self) -> dict[str, list[str]] | None:
        """Enrolment model -> its utterances; None without an enrolment map."""
        return scoring.read_models(self.enrol_map) if self.enrol_map else None

    def utts(self) -> Iterator[str]:
        """The utterances that the trials use, with repetitions."""
        enrol, test, _ = self.trials
        return chain(enrol, test, *(self.models or {}).values())

    @cached_property
    def durations(self) -> tuple[dict[str, float], str]:
        """Seconds of each utterance behind its trials, and the file that they are from."""
        enrol, test, _ = self.trials
        models = self.models or {}
        members = chain.from_iterable(models.get(name, [name]) for name in dict.fromkeys(enrol))
        return qmf.durations(self.data, chain(members, test))

    @cached_property
    def units(self) -> metrics.Resampling:
        """The speakers that the bootstrap draws."""
        return metrics.resampling(*self.trials, f"{self.data}/utt2spk", self.enrol_map)

    def eers(self, scores: np.ndarray) -> np.ndarray | None:
        """EER in percent of each bootstrap replicate [replicates]; None with fewer than 3 speakers."""
        if self.units.num < 3:
            return None
        target = self.trials[2]
        return metrics.weighted_eers(scores, target, self.units, metrics.replicates_for(len(target)))

    def other(self, path: str) -> tuple[np.ndarray, np.ndarray | None]:
        """(scores [n], bootstrap EERs) of the system that others are compared with; computed once."""
        if path not in self._others:
            scores = scoring.read_scores(path, *self.trials[:2])
            self._others[path] = scores, self.eers(scores)
        return self._others[path]


def write(
    trials: TrialList,
    path: str,
    scores: np.ndarray,
    llr: Callable[[np.ndarray], np.ndarray] | None = None,
    other: str | None = None,
) -> np.ndarray:
    """Write the score file `path` (NAME.scores) and its metrics beside it (NAME.json).

    Args:
        scores: float64 [n], in the order of the trials.
        llr: makes log-likelihood ratios of the scores as written; adds actDCF and Cllr.
        other: a score file; adds the paired bootstrap of the EER difference.

    Returns the scores as read back from the file (9 digits), float64 [n]; the metrics are computed from these.
    """
    enrol, test, target = trials.trials
    scoring.write_scores(path, enrol, test, scores)
    scores = scoring.read_scores(path, enrol, test)
    units, replicates, eers = trials.units, metrics.replicates_for(len(target)), trials.eers(scores)
    out: dict[str, Any] = metrics.summary(scores, target, llr=llr(scores) if llr else None)
    out |= metrics.bootstrap(scores, target, units, replicates, eers)
    if other:
        their, their_eers = trials.other(other)
        out |= metrics.compare(scores, their, target, units, replicates, eers, their_eers)
    out |= {"scores": str(Path(path).absolute()), "trials": str(Path(trials.file).absolute())}
    with atomic_file(path.removesuffix(".scores") + ".json") as f:
        f.write(json.dumps(out, indent=1) + "\n")
    return scores


def calibrate(trials: TrialList, scores: np.ndarray, path: str) -> str | None:
    """Fit a calibration on dev scores [n] and write it to `path`; returns None.

    If these scores cannot be calibrated, returns the reason, and removes an older file, which belongs to
    other scores.
    """
    try:
        result = fit(scores, trials.trials[2], 0.5, f"trials {trials.file}")
    except CalibrationError as err:
        Path(path).unlink(missing_ok=True)
        return str(err)
    result.write(path)
    return None


def calibrate_with_measures(
    system: "System", trials: TrialList, cohort: "Cohort | None", path: str
) -> str | None:
    """Fit a calibration with quality measures on dev trials and write it to `path`; None, or why it cannot be fitted.

    Prints the weights, and warns of those that are hard to believe.
    """
    scores, measures = system.with_measures(trials, cohort)
    sources = {"trials": trials.file, "durations": trials.durations[1]}
    sources |= {"scores": "asnorm", "cohort": cohort.utt2spk} if cohort else {"scores": "cosine"}
    try:
        result = qmf.fit(scores, measures, trials.trials[2], 0.5, sources)
    except CalibrationError as err:
        return str(err)
    print(f"{path}: {result}")
    for sign in result.signs():
        print(f"warning: {path}: {sign}", file=sys.stderr)
    result.write(path)
    return None


@dataclass(frozen=True)
class Cohort:
    """The AS-norm cohort: the (pseudo-)speakers of the file `utt2spk` in the embeddings `set`, `top_n` for a side."""

    utt2spk: str
    set: str
    top_n: int


class System:
    """The embeddings of one system. Each set is read once and each score computed once."""

    def __init__(self, folder: str):
        self.folder = folder
        self._sets: dict[str, Embeddings] = {}
        self._unit_means: dict[str, np.ndarray] = {}
        self._cohort: tuple[str, np.ndarray] | None = None
        self._last_normed: tuple[TrialList, Cohort, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None
        self._plain: tuple[str, scoring.Sides, np.ndarray] | None = None

    def _scp(self, name: str) -> str:
        return f"{self.folder}/embed/{name}/embedding.scp"

    def _set(self, name: str, dim: int | None = None) -> Embeddings:
        if name not in self._sets:
            self._sets[name] = read_embeddings(self._scp(name))
        if dim is not None:
            scoring.check_dim(self._sets[name], dim, self._scp(name))
        return self._sets[name]

    def _sides(self, trials: TrialList, name: str, mean: np.ndarray | None = None) -> scoring.Sides:
        embeddings = self._set(name)
        if mean is not None:
            x = scoring.unit_means(embeddings, mean)
        else:
            if name not in self._unit_means:
                self._unit_means[name] = scoring.unit_means(embeddings)
            x = self._unit_means[name]
        both = embeddings.ids, x
        enrol, test, _ = trials.trials
        return scoring.sides(both, both, enrol, test, trials.models, trials.file, trials.enrol_map)

    def _plain_sides(self, trials: TrialList) -> tuple[scoring.Sides, np.ndarray]:
        if self._plain is None or self._plain[0] != trials.file:
            sides = self._sides(trials, trials.name)
            self._plain = trials.file, sides, scoring.cosine(*sides)
        return self._plain[1:]

    def plain(self, trials: TrialList) -> np.ndarray:
        """Cosine scores, float64 [n]."""
        return self._plain_sides(trials)[1]

    def crops(self, trials: TrialList) -> np.ndarray:
        """Mean of the scores of whole utterances and of their crops, float64 [n] (arXiv 2406.02285)."""
        crops = self._sides(trials, f"{trials.name}-crops")
        return np.mean([self.plain(trials), scoring.cosine(*crops)], 0)

    def mean(self, trials: TrialList, cohort: str) -> np.ndarray:
        """Cosine scores after the mean of the embedding set `cohort` is subtracted, float64 [n]."""
        x = self._set(cohort, self._set(trials.name).dim).x
        mean = x.mean(0, dtype=np.float64).astype(np.float32)
        return scoring.cosine(*self._sides(trials, trials.name, mean))

    def _normed(self, trials: TrialList, cohort: Cohort) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """AS-normed scores, and the cohort mean of either side, float64 [n] each."""
        sides = self._plain_sides(trials)[0]
        if self._last_normed is None or self._last_normed[0] is not trials or self._last_normed[1] != cohort:
            directions, top_n = self._cohort_directions(trials, cohort)
            of = scoring.sides_statistics(*sides, directions, top_n)
            scores = scoring.as_norm(*sides, directions, top_n, of)
            means = of.enrol_mean[sides.i], of.test_mean[sides.j]
            self._last_normed = trials, cohort, (scores, *means)
        return self._last_normed[2]

    def _cohort_directions(self, trials: TrialList, cohort: Cohort) -> tuple[np.ndarray, int]:
        """Directions of the cohort's speakers, float32 [C, D], and how many of them AS-norm takes."""
        if self._cohort is None or self._cohort[0] != cohort.utt2spk:
            train = self._set(cohort.set, self._set(trials.name).dim)
            means = scoring.speaker_means(train.ids, scoring.unit_means(train), cohort.utt2spk)
            self._cohort = cohort.utt2spk, means
            if len(means) < cohort.top_n:
                what = f"has {len(means)} (pseudo-)speakers, all are used as the AS-norm cohort"
                print(f"{cohort.utt2spk} {what}")
        means = self._cohort[1]
        if len(means) < 2:
            raise UserError("AS-norm needs a cohort of at least 2 speakers", file=cohort.utt2spk)
        return means, min(cohort.top_n, len(means))

    def asnorm(self, trials: TrialList, cohort: Cohort) -> np.ndarray:
        """AS-normed scores, float64 [n]; of a cohort of fewer than `top_n` speakers all are used."""
        return self._normed(trials, cohort)[0]

    def with_measures(
        self, trials: TrialList, cohort: Cohort | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Scores, float64 [n], and quality measures of the trials, name -> [n]: what `qmf` calibrates.

        The scores are AS-normed where there is a cohort, else cosines.
        """
        if cohort:
            scores, enrol_means, test_means = self._normed(trials, cohort)
            means = enrol_means, test_means
        else:
            scores, means = self.plain(trials), None
        lengths, seconds = qmf.norms(self._set(trials.name)), trials.durations[0]
        return scores, qmf.measures(trials.trials[:2], trials.models, seconds, lengths, means)
