"""Trials by rules: numbers for each speaker, different sessions, same gender, enrolment with several
utterances.

Without any of these rules, `make_trials` makes all pairs or a given number of them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir


@dataclass(frozen=True)
class Rules:
    """Rules for trials.

    targets, nontargets: at most so many trials for each speaker (the enrolled speaker); None: all.
    session: utterance -> session; enrolment and test of a target trial then come from different sessions.
    group: speaker -> gender; both speakers of a nontarget trial then have the same gender.
    enrol_utts: utterances to enrol a model with; 0: the enrolment side is a single utterance.
    """

    targets: int | None = None
    nontargets: int | None = None
    session: Mapping[str, str] | None = None
    group: Mapping[str, str] | None = None
    enrol_utts: int = 0
    seed: int = 0


def by_speaker(data: DataDir) -> dict[str, list[str]]:
    """Speaker -> utterances, both in C order.

    UserError when there are fewer than two speakers or none are known.
    """
    out: dict[str, list[str]] = {}
    for utt, spk in sorted(zip(data.utts, data.spk), key=lambda pair: (pair[1], pair[0])):
        out.setdefault(spk, []).append(utt)
    if len(out) < 2:
        rule = "has one speaker; nontarget trials need two"
        hint = "add other speakers, or check what the directory was made with (--pattern, --speaker-column)"
        raise UserError(rule, file=data.path / "utt2spk", hint=hint)
    if all(utts == [spk] for spk, utts in out.items()):
        rule = "has no speakers (each line is `utt utt`), so target trials cannot be made"
        raise UserError(
            rule, file=data.path / "utt2spk", hint="make the directory with its speakers (--pattern)"
        )
    return out


def enrolment(data: DataDir, rules: Rules) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Choose utterances for enrolment: (model -> its utterances, speaker -> the other utterances, for tests).

    A speaker with too few utterances has no model. Utterances are drawn by the seed; with sessions one
    session after the other, so that whole sessions are left for tests. A model is named after its speaker,
    with `-model` appended if an utterance has that name.
    """
    models, tests = {}, {}
    known = set(data.utts)
    for k, (spk, utts) in enumerate(by_speaker(data).items()):
        rng = np.random.default_rng([rules.seed, k])
        drawn = [utts[i] for i in rng.permutation(len(utts))]
        if (session := rules.session) is not None:
            turn = {s: i for i, s in enumerate(dict.fromkeys(session[u] for u in drawn))}
            drawn.sort(key=lambda u: turn[session[u]])
        tests[spk] = sorted(drawn[rules.enrol_utts :])
        if len(drawn) > rules.enrol_utts:
            models[spk if spk not in known else f"{spk}-model"] = sorted(drawn[: rules.enrol_utts])
        else:
            tests[spk] = sorted(drawn)
    return models, tests


def design(data: DataDir, rules: Rules) -> tuple[list[str], dict[str, list[str]]]:
    """Trials by the rules: (lines `enrol test target|nontarget`, sorted; model -> utterances, or {}).

    Raises UserError when there would be no target or no nontarget trial.
    """
    people = by_speaker(data)
    if rules.enrol_utts:
        models, tests = enrolment(data, rules)
        of = {u: s for s, utts in people.items() for u in utts}
        sides = {model: (of[utts[0]], utts) for model, utts in models.items()}
        enrol: dict[str, list[str]] = defaultdict(list)
        for model, (spk, _) in sides.items():
            enrol[spk].append(model)
    else:
        models, tests = {}, people
        sides = {u: (s, [u]) for s, utts in people.items() for u in utts}
        enrol = people
    lines: set[str] = set()
    seen: set[tuple[str, str]] = set()
    for k, spk in enumerate(people):
        rng = np.random.default_rng([rules.seed, 1, k])
        for pair in _drawn(_targets(spk, enrol, tests, sides, rules), rules.targets, rng):
            lines.add(f"{pair[0]} {pair[1]} target")
        for a, b in _nontargets(spk, enrol, tests, people, rules, rng):
            if bool(models) or (b, a) not in seen:  # two utterances make one trial, in either order
                seen.add((a, b))
                lines.add(f"{a} {b} nontarget")
    for kind in (" target", " nontarget"):
        if not any(line.endswith(kind) for line in lines):
            rule = f"no{kind} trial can be made of {len(data.utts)} utterances of {len(people)} speakers"
            raise UserError(
                rule, file=data.path, hint="relax the rules: sessions, gender, enrolment utterances"
            )
    return sorted(lines), models


def _targets(spk: str, enrol: dict, tests: dict, sides: dict, rules: Rules) -> list[tuple[str, str]]:
    out = []
    for model in enrol.get(spk, []):
        used = {rules.session[u] for u in sides[model][1]} if rules.session is not None else set()
        for test in tests[spk]:
            other = rules.enrol_utts or test > model  # each unordered pair of utterances once
            if other and (rules.session is None or rules.session[test] not in used):
                out.append((model, test))
    return out


def _nontargets(spk: str, enrol: dict, tests: dict, people: dict, rules: Rules, rng) -> list[tuple[str, str]]:
    """Pairs of this speaker's enrolment side with other speakers' tests: all, or `rules.nontargets`."""
    mine = enrol.get(spk, [])
    others = [
        u
        for s in people
        if s != spk and (not rules.group or rules.group[s] == rules.group[spk])
        for u in tests[s]
    ]
    total = len(mine) * len(others)
    if rules.nontargets is None or total <= rules.nontargets:
        chosen: Sequence[int] = range(total)
    elif total < 4 * rules.nontargets:
        chosen = np.sort(rng.choice(total, rules.nontargets, replace=False)).tolist()
    else:  # draw a few of many pairs without listing them all
        found: dict[int, None] = {}
        while len(found) < rules.nontargets:
            found.update(dict.fromkeys(rng.integers(total, size=rules.nontargets - len(found)).tolist()))
        chosen = sorted(found)
    return [(mine[i // len(others)], others[i % len(others)]) for i in chosen]


def _drawn(pairs: list, most: int | None, rng) -> list:
    if most is None or len(pairs) <= most:
        return pairs
    return [pairs[i] for i in np.sort(rng.choice(len(pairs), most, replace=False))]
