"""Trial lists for a data set that brings none."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from pyspkv.errors import UserError


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
    """Lines `enrol test target|nontarget`, sorted, each unordered pair once.

    Args:
        max_targets, max_nontargets: at most so many, sampled without replacement by `seed`; None = all pairs.
        session: utterance -> session; target pairs are then of two sessions.
        group: speaker -> group (gender); nontarget pairs are then of one group.
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
    for s, own in by_spk.items():
        by_group[group[s] if group else ""] += [(u, s) for u in own]
    groups = list(by_group.values())
    pairs = np.array([len(g) * (len(g) - 1) // 2 for g in groups])
    # Draw from all pairs of a group and drop those of one speaker: memory stays with what is asked for.
    if max_nontargets is None or pairs.sum() <= 4 * max_nontargets:
        found = {(a, b) for g in groups for i, (a, s) in enumerate(g) for b, t in g[i + 1 :] if s != t}
        nontargets = sorted(found)
        if max_nontargets is not None and len(nontargets) > max_nontargets:
            nontargets = [nontargets[i] for i in rng.choice(len(nontargets), max_nontargets, replace=False)]
    else:
        found = set()
        for _ in range(100):
            for g in rng.choice(len(groups), max_nontargets, p=pairs / pairs.sum()):
                (a, s), (b, t) = (groups[g][i] for i in rng.integers(len(groups[g]), size=2))
                if s != t and len(found) < max_nontargets:
                    found.add((min(a, b), max(a, b)))
            if len(found) == max_nontargets:
                break
        nontargets = found
    if not targets or not nontargets:
        kind = "target" if not targets else "nontarget"
        raise UserError(f"no {kind} trial can be made of {len(utts)} utterances of {len(by_spk)} speakers")
    return sorted([f"{a} {b} target" for a, b in targets] + [f"{a} {b} nontarget" for a, b in nontargets])
