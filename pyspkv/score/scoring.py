"""Scores of trials from embeddings: cosine, enrolment models, mean subtraction, AS-norm; score files.

Every entry becomes one "direction": its length-normalized vector or, for [n, D], the mean of its n
length-normalized rows, which is not normalized again. So the product of two directions is the mean of all
pairwise cosines.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyspkv.base.arrays import NUMPY_ERRORS
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError
from pyspkv.base.garbage import no_gc
from pyspkv.data.ark import Embeddings, normalize, read_embeddings
from pyspkv.data.tables import read_table

BLOCK = 1 << 10  # trials per block: their gathered rows stay in the cache
COHORT_BLOCK = 1024  # rows per block against the cohort: 24 MiB of scores for 6,000 cohort entries
# One line of a score file. `_score_line` finds the reason if a line does not match.
_LINE = re.compile(
    r"[ \t]*(\S+)[ \t]+(\S+)[ \t]+([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[ \t]*\r?\n?", re.ASCII
)


def unit_means(embeddings: Embeddings, mean: np.ndarray | None = None) -> np.ndarray:
    """float32 [N, D], one direction per entry; `mean` [D] is first subtracted from every raw row."""
    x = embeddings.x if mean is None else _less(embeddings.x, mean)
    return embeddings.entry_means(normalize(x))


def _less(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """x - mean, float32 [R, D]. A row that overflows float32 is scaled by 1/4, which keeps its direction.

    UserError: the mean has another D, or values too large for float32.
    """
    if mean.shape != x.shape[1:]:
        raise UserError(f"the mean has shape {list(mean.shape)}, but the embeddings have D = {x.shape[1]}")
    with np.errstate(over="ignore"):
        mean = mean.astype(np.float32)
        out = x - mean
    if not np.isfinite(mean).all():
        raise UserError("the mean has values that are too large for float32")
    over = ~np.isfinite(out).all(1)
    if over.any():
        out[over] = x[over] / 4 - mean / 4
    return out


def read_mean(path: str) -> np.ndarray:
    """Read the vector in a .npy file, or take the mean over the raw rows of an embedding set: floats [D].

    UserError: the file is not one vector of finite floats, or they are too large for float32.
    """
    if not path.endswith(".npy"):
        return read_embeddings(path).x.mean(0, dtype=np.float64).astype(np.float32)
    try:
        mean = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a false header allocates no memory
        if not isinstance(mean, np.ndarray):
            raise ValueError("it is an archive of several arrays")
    except NUMPY_ERRORS as err:
        raise UserError(f"is not an array of numbers ({err})", file=path) from None
    if mean.ndim != 1 or not mean.size or mean.dtype.kind != "f" or not np.isfinite(mean).all():
        raise UserError("must contain one vector of finite floats", file=path)
    if np.abs(mean).max() > np.finfo(np.float32).max:
        rule = f"holds {np.abs(mean).max():.3g}, too large for float32 embeddings"
        raise UserError(rule, file=path, hint="give the mean of embeddings")
    return np.array(mean)


def group_means(
    ids: Sequence[str], x: np.ndarray, groups: Mapping[str, Sequence[str]], file=None
) -> tuple[list[str], np.ndarray]:
    """Enrolment models or pseudo-speakers: (names, length-normalized means of directions, float32 [G, D]).

    x: directions [N, D] of the utterances `ids`. groups: name -> utterance ids. UserError: a member is not in
    `ids`.
    """
    row = {utt: i for i, utt in enumerate(ids)}
    missing = [utt for members in groups.values() for utt in members if utt not in row]
    if missing:
        raise _missing(missing, "have no embedding but are listed", file)
    members = np.fromiter((row[u] for m in groups.values() for u in m), np.int64)
    starts = np.cumsum([0] + [len(m) for m in groups.values()])
    out = np.empty((len(groups), x.shape[1]), dtype=np.float32)
    for g in range(len(groups)):
        out[g] = x[members[starts[g] : starts[g + 1]]].mean(0, dtype=np.float64)
    return list(groups), normalize(out)


def _missing(ids: Sequence[str], what: str, file) -> UserError:
    unique = list(dict.fromkeys(ids))
    few = ", ".join(unique[:3]) + (", ..." if len(unique) > 3 else "")
    return UserError(
        f"{len(unique)} ids {what}: {few}", file=file, hint="extract embeddings of the whole data directory"
    )


def rows_of(ids: Sequence[str], known: Sequence[str], side: str, file=None) -> np.ndarray:
    """int64 [n]: the row of each id in `known`. UserError counts the missing ids and names the first."""
    row = {utt: i for i, utt in enumerate(known)}
    missing = [utt for utt in ids if utt not in row]
    if missing:
        raise _missing(missing, f"on the {side} side have no embedding", file)
    return np.fromiter((row[utt] for utt in ids), np.int64, len(ids))


def score_trials(embeddings: Embeddings, trials: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Cosine scores float64 [n] and target bool [n] of `trials` (from `read_trials`) within `embeddings`.

    UserError: an id has no embedding.
    """
    enrol, test, target = trials
    i, j = (rows_of(ids, embeddings.ids, side) for ids, side in ((enrol, "enrolment"), (test, "test")))
    x = unit_means(embeddings)
    return cosine(x, x, i, j), target


def cosine(enrol: np.ndarray, test: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """float64 [n]: enrol[i[k]] . test[j[k]] for directions [E, D] and [T, D].

    Memory: the scores and two blocks.

    If the trials fill at least a quarter of the E x T matrix (all-against-all lists), blocks of that matrix
    are computed and the scores picked from them. Otherwise the two rows of each trial are gathered and summed
    in float64, because AS-norm divides rounding errors by a standard deviation of about 0.02.
    """
    out = np.empty(len(i))
    if len(i) * 4 < len(enrol) * len(test):
        for start in range(0, len(i), BLOCK):
            block = slice(start, start + BLOCK)
            np.einsum("nd,nd->n", enrol[i[block]], test[j[block]], dtype=np.float64, out=out[block])
        return out
    order = np.argsort(i, kind="stable")
    step = max(1, (1 << 24) // max(1, len(test)))  # 64 MiB of scores
    bounds = np.searchsorted(i[order], np.arange(0, len(enrol) + step, step))
    for b, start in enumerate(range(0, len(enrol), step)):
        trials = order[bounds[b] : bounds[b + 1]]
        out[trials] = (enrol[start : start + step] @ test.T)[i[trials] - start, j[trials]]
    return out


class Sides(NamedTuple):
    """Both sides of a trial list: trial k compares the direction `enrol[i[k]]` with `test[j[k]]`."""

    enrol: np.ndarray  # float32 [E, D]
    test: np.ndarray  # float32 [T, D]; the same array as `enrol` where the sides are one set
    i: np.ndarray  # int64 [n]
    j: np.ndarray  # int64 [n]


def read_models(path: str | Path) -> dict[str, list[str]]:
    """Read an enrolment map, lines `model utt1 utt2 ...`: model -> utterances."""
    return {model: utts.split(" ") for model, utts in read_table(path, "ids").items()}


def sides(
    enrol_set: tuple[Sequence[str], np.ndarray],
    test_set: tuple[Sequence[str], np.ndarray],
    enrol: Sequence[str],
    test: Sequence[str],
    models: dict[str, list[str]] | None = None,
    trials_file=None,
    models_file=None,
) -> Sides:
    """Find the trials (enrol[k], test[k]) in each side's (ids, directions [N, D]).

    UserError: an id has no direction.

    Args:
        models: enrolment models, name -> utterances; the direction of a model is the length-normalized mean
            of theirs. Trials may name models and utterances.
        trials_file, models_file: used in messages only.
    """
    enrol_ids, enrol_x = enrol_set
    if models:
        names, means = group_means(enrol_ids, enrol_x, models, file=models_file)
        others = set(enrol) - set(models)
        keep = [k for k, utt in enumerate(enrol_ids) if utt in others]
        enrol_ids, enrol_x = names + [enrol_ids[k] for k in keep], np.concatenate([means, enrol_x[keep]])
    i = rows_of(enrol, enrol_ids, "enrolment", trials_file)
    return Sides(enrol_x, test_set[1], i, rows_of(test, test_set[0], "test", trials_file))


def speaker_means(ids: Sequence[str], x: np.ndarray, utt2spk: str | Path) -> np.ndarray:
    """Length-normalized mean of the directions x [N, D] of each speaker, float32 [S, D]; utt2spk: a file."""
    members: dict[str, list[str]] = {}
    for utt, spk in read_table(utt2spk, "id").items():
        members.setdefault(spk, []).append(utt)
    return group_means(ids, x, members, file=utt2spk)[1]


def check_dim(embeddings: Embeddings, dim: int, file: str | Path) -> None:
    """UserError: the embeddings of `file` do not have `dim` dimensions, as the test embeddings have."""
    if embeddings.dim != dim:
        raise UserError(
            f"has {embeddings.dim} dimensions, the test embeddings have {dim}",
            file=file,
            hint="extract all embeddings with the same model",
        )


def cohort_statistics(x: np.ndarray, cohort: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float64 [N] each, of each row's `top_n` highest scores against the cohort.

    x [N, D] and cohort [C, D] are directions. Computed in blocks: beyond the result, memory does not grow
    with N. UserError: top_n is below 2 or above C.
    """
    if not 2 <= top_n <= len(cohort):
        raise UserError(
            f"top-n {top_n} must be at least 2 and at most the cohort's size, {len(cohort)}",
            hint="give a smaller --top-n or a larger cohort",
        )
    mean, std = np.empty(len(x)), np.empty(len(x))
    cut = len(cohort) - top_n

    def block(start: int) -> None:
        scores = x[start : start + COHORT_BLOCK] @ cohort.T
        scores.partition(cut, axis=1)
        top = scores[:, cut:]
        mean[start : start + COHORT_BLOCK] = top.mean(1, dtype=np.float64)
        std[start : start + COHORT_BLOCK] = top.std(1, dtype=np.float64)

    # threads help because `partition` releases the GIL; the product uses BLAS threads of its own
    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(block, range(0, len(x), COHORT_BLOCK)))
    return mean, std


class CohortStatistics(NamedTuple):
    """Of both sides' rows, float64 [E] and [T]: mean and deviation of the top cohort scores. Unused rows: 0 and 1."""

    enrol_mean: np.ndarray
    enrol_std: np.ndarray
    test_mean: np.ndarray
    test_std: np.ndarray


def sides_statistics(
    enrol: np.ndarray, test: np.ndarray, i: np.ndarray, j: np.ndarray, cohort: np.ndarray, top_n: int
) -> CohortStatistics:
    """What AS-norm takes from the cohort, once for each row of the sides that occurs in a trial."""
    used_e, used_t = np.zeros(len(enrol), bool), np.zeros(len(test), bool)
    used_e[i], used_t[j] = True, True
    if enrol is test:
        used_e = used_t = used_e | used_t
    stats_t = _spread(test, used_t, cohort, top_n)
    stats_e = stats_t if enrol is test else _spread(enrol, used_e, cohort, top_n)
    return CohortStatistics(*stats_e, *stats_t)


def as_norm(
    enrol: np.ndarray,
    test: np.ndarray,
    i: np.ndarray,
    j: np.ndarray,
    cohort: np.ndarray,
    top_n: int,
    statistics: CohortStatistics | None = None,
) -> np.ndarray:
    """Adaptive symmetric score normalization (AS-norm) of cosine scores, float64 [n].

    s' = ((s - mean_e) / std_e + (s - mean_t) / std_t) / 2. mean_e and std_e (population) are over the `top_n`
    cohort entries closest to the enrolment side, mean_t and std_t over those closest to the test side. This
    is "adaptive S-norm 1" of Matejka et al., "Analysis of score normalization in multilingual speaker
    recognition", Interspeech 2017. statistics: the result of `sides_statistics`, if it is known already.
    UserError: as in `cohort_statistics`; an embedding is zero; the closest cohort scores of an utterance are
    all equal.
    """
    scores = cosine(enrol, test, i, j)
    of = statistics or sides_statistics(enrol, test, i, j, cohort, top_n)
    z_e = (scores - of.enrol_mean[i]) / of.enrol_std[i]
    z_t = (scores - of.test_mean[j]) / of.test_std[j]
    return (z_e + z_t) / 2


def _spread(x: np.ndarray, used: np.ndarray, cohort: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
    mean, std = np.zeros(len(x)), np.ones(len(x))
    mean[used], std[used] = cohort_statistics(x if used.all() else x[used], cohort, top_n)
    if not x[used].any(1).all():
        raise UserError("an embedding is all zeros", hint="listen to its utterance, or extract it again")
    if std.min() < 1e-6:
        raise UserError(
            f"the {top_n} closest cohort scores of an utterance are all equal: the cohort contains copies",
            hint="build the cohort from different speakers, or average it with --cohort-utt2spk",
        )
    return mean, std


def write_scores(path: str | Path, enrol: Sequence[str], test: Sequence[str], scores: np.ndarray) -> None:
    """Write lines `enrol test score` with 9 significant digits, enough for any float32.

    UserError: NaN or Inf.
    """
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        k = wrong[0]
        raise UserError(
            f"{len(wrong)} scores are not finite; the first, {enrol[k]} {test[k]}, is {scores[k]}",
            file=path,
            hint="check the embeddings of these two, and the calibration if there is one",
        )
    with atomic_file(path, own=True) as f:
        f.writelines(f"{e} {t} {s:.9g}\n" for e, t, s in zip(enrol, test, scores.tolist()))


def _score_line(line: str, path: str | Path, number: int, hint: str) -> tuple[str, str, float]:
    """Parse a line `enrol test score`. UserError names the rule that the line breaks."""
    found = _LINE.fullmatch(line)
    if found:
        score = float(found[3])
        if math.isfinite(score):
            return found[1], found[2], score
    text = line.split()[2] if len(line.split()) == 3 else ""
    if found or text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        raise UserError(f"score {text[:20]} is not finite", file=path, line=number, hint=hint)
    rule = "a line must be `enrol test score`"
    if text:
        rule += f", the score in plain decimal notation, not {text[:20]!r}"
    raise UserError(rule, file=path, line=number, hint=hint)


def read_scores(path: str | Path, enrol: Sequence[str], test: Sequence[str]) -> np.ndarray:
    """Scores of the trials (enrol[k], test[k]), float64 [n], from lines `enrol test score` in any order.

    A byte-order mark at the start and Windows line ends are accepted. A pair listed m times in the trials
    needs m lines. UserError with the line: wrong columns, no finite decimal number, a pair that is not a
    trial or is scored twice. UserError with a count: trials without a score.
    """
    out = np.full(len(enrol), np.nan)
    place: dict[tuple[str, str], list[int]] | None = None  # only built if the lines are in another order
    again = "score exactly this trial list"
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as f, no_gc():
        for number, line in enumerate(f, 1):
            e, t, score = _score_line(line, path, number, again)
            k = number - 1
            if place is None and (k >= len(enrol) or e != enrol[k] or t != test[k]):
                place = {}
                for n in range(len(enrol) - 1, k - 1, -1):
                    place.setdefault((enrol[n], test[n]), []).append(n)
                done = set(zip(enrol[:k], test[:k]))
            if place is not None:
                left = place.get((e, t))
                if not left:
                    twice = left is not None or (e, t) in done
                    what = "is scored twice" if twice else "is not in the trial list"
                    raise UserError(f"{e} {t} {what}", file=path, line=number, hint=again)
                k = left.pop()
            out[k] = score
    missing = np.flatnonzero(np.isnan(out))
    if len(missing):
        k = missing[0]
        raise UserError(
            f"{len(missing)} of {len(out)} trials have no score; the first is {enrol[k]} {test[k]}",
            file=path,
            hint=again,
        )
    return out
