"""Making a trial list for a data set that has none."""

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from pyspkv.base.errors import UserError


def make_trials(
    utts: Sequence[str],
    spks: Sequence[str],
    *,
    seed: int = 0,
    max_targets: int | None = None,
    max_nontargets: int | None = None,
    session: dict[str, str] | None = None,
    group: dict[str, str] | None = None,
) -> list[str]:
    """Make lines `enrol test target|nontarget`, sorted; each unordered pair appears once.

    Args:
        utts, spks: the utterances and their speakers, aligned.
        seed: of the random sample.
        max_targets, max_nontargets: sample at most so many trials without replacement; None: all pairs.
        session: utterance -> session; makes target trials from two different sessions only.
        group: speaker -> group (gender); makes nontarget trials within a group only.

    Raises UserError when there would be no target or no nontarget trial.
    """
    rng = np.random.default_rng(seed)
    by_spk = defaultdict(list)
    for u, s in sorted(zip(utts, spks)):
        by_spk[s].append(u)
    targets = [
        (a, b)
        for own in by_spk.values()
        for i, a in enumerate(own)
        for b in own[i + 1 :]
        if session is None or session[a] != session[b]
    ]
    if max_targets is not None and len(targets) > max_targets:
        targets = [targets[i] for i in np.sort(rng.choice(len(targets), max_targets, replace=False))]
    by_group = defaultdict(list)
    for s in by_spk:
        by_group[group[s] if group else ""].append(s)
    speakers = list(by_group.values())
    groups = [[(u, s) for s in own for u in by_spk[s]] for own in speakers]
    pairs = np.array([len(g) * (len(g) - 1) // 2 for g in groups])
    across = sum(pairs) - sum(len(own) * (len(own) - 1) // 2 for own in by_spk.values())
    if max_nontargets is None or across <= 4 * max_nontargets:
        every = sorted(
            (a, b)
            for own in speakers
            for i, s in enumerate(own)
            for t in own[i + 1 :]
            for a in by_spk[s]
            for b in by_spk[t]
        )
        if max_nontargets is not None and len(every) > max_nontargets:
            every = [every[i] for i in rng.choice(len(every), max_nontargets, replace=False)]
        nontargets: Collection[tuple[str, str]] = every
    else:
        nontargets = _drawn(groups, pairs / pairs.sum(), max_nontargets, rng)
    if not targets or not nontargets:
        kind = "target" if not targets else "nontarget"
        raise UserError(f"no {kind} trial can be made of {len(utts)} utterances of {len(by_spk)} speakers")
    return sorted([f"{a} {b} target" for a, b in targets] + [f"{a} {b} nontarget" for a, b in nontargets])


def _drawn(groups: list[list[tuple[str, str]]], share: np.ndarray, num: int, rng) -> set[tuple[str, str]]:
    """Draw `num` pairs of utterances by two speakers of one group; there must be at least 4 num such pairs.

    Args:
        groups: lists of (utterance, speaker), sorted by speaker.
        share: probability of each group.

    Pairs are drawn from all pairs of a group, and those of one speaker are rejected, so memory grows only
    with `num`. If one speaker has nearly all utterances, most draws are rejected; then the first speaker is
    drawn by his share.
    """
    found: set[tuple[str, str]] = set()
    while len(found) < num:
        before = len(found)
        for g in rng.choice(len(groups), num, p=share):
            (a, s), (b, t) = (groups[g][i] for i in rng.integers(len(groups[g]), size=2))
            if s != t and len(found) < num:
                found.add((min(a, b), max(a, b)))
        if len(found) - before < num / 20:
            break
    blocks = []  # one speaker each: group, first utterance, number of utterances
    for g, members in enumerate(groups):
        _, first, count = np.unique([s for _, s in members], return_index=True, return_counts=True)
        blocks += [(g, f, n) for f, n in zip(first.tolist(), count.tolist())]
    weight = np.array([n * (len(groups[g]) - n) for g, _, n in blocks], float)
    while len(found) < num:
        for k in rng.choice(len(blocks), num - len(found), p=weight / weight.sum()):
            g, first, n = blocks[k]
            other = int(rng.integers(len(groups[g]) - n))
            a = groups[g][first + int(rng.integers(n))][0]
            b = groups[g][other if other < first else other + n][0]
            found.add((min(a, b), max(a, b)))
    return found
