"""Trial lists: `enrol test target|nontarget`, one per line, in any order."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError
from pyspkv.base.garbage import no_gc
from pyspkv.data.tables import has_bad_characters, read_columns

if TYPE_CHECKING:
    import numpy as np


# Forms of a list: words for target and nontarget, and their column. All lines of a file have the same form.
_FORMS = [
    ("1", "0", 0),  # as VoxCeleb publishes it
    ("1", "0", 2),
    ("tgt", "imp", 2),
    ("target", "nontarget", 2),  # our own form, but for example with Windows line ends
]


def other_form(raw: bytes) -> "tuple[list[str], str] | None":
    """Convert a list in another common form: (lines `enrol test target|nontarget`, a sed script that does the
    same).

    Labels may be 1|0 in the first or last column, or tgt|imp. Lines may begin with a byte-order mark, hold
    tabs, or end in CR and blanks. None when the form is not clear for every line.
    """
    try:
        rows = [line.split() for line in raw.decode("utf-8-sig").split("\n") if line.strip(" \t\r")]
    except UnicodeDecodeError:
        return None
    fits = [form for form in _FORMS if all(len(r) == 3 and r[form[2]] in form[:2] for r in rows)]
    if not rows or len(fits) != 1 or any(has_bad_characters(word) for row in rows for word in row):
        return None
    yes, no, at = fits[0]
    lines = []
    for row in rows:
        label = "target" if row.pop(at) == yes else "nontarget"
        lines.append(f"{row[0]} {row[1]} {label}")
    script = r"1s/^\xEF\xBB\xBF//; s/[ \t\r]+$//; s/^[ \t]+//; /^$/d; s/[ \t]+/ /g"
    if at == 0:
        script += f"; /^{yes} /{{s/^. (.*)/\\1 target/; b;}}; s/^{no} (.*)/\\1 nontarget/"
    elif yes != "target":
        script += f"; s/ {yes}$/ target/; s/ {no}$/ nontarget/"
    return lines, script


def _hint(path: str | Path) -> str:
    """What to do about a list that cannot be read: a command that converts it, if its form is known."""
    path = Path(path)
    if path.is_file() and (found := other_form(path.read_bytes())):  # a pipe could not be read a second time
        in_place = (
            "-i~",
            "--follow-symlinks",
        )  # the old list stays as NAME~, which is no data-directory file
        return command_line("sed", "-E", *in_place, "-e", found[1], "-e", "$a\\", path)
    return "write each line as `enrol test target` or `enrol test nontarget`"


def read_trials(path: str | Path, hint: str | None = None) -> "tuple[list[str], list[str], np.ndarray]":
    """Read an `enrol test target|nontarget` list: (enrol ids, test ids, target as bool [n]), in file order.

    hint: what to do about a broken line; by default a command that converts a list in another common form.
    Raises UserError with file and line when a line is broken, or a pair is both target and nontarget.
    """
    import numpy as np

    with no_gc():
        try:
            enrol, rest = read_columns(path, "trial", hint, in_order=False)
        except UserError as err:
            if is_blind(path):
                rule = "has no answers (two columns): such a list can be scored, but there is no EER"
                how = "write each line as `enrol test target|nontarget` to have figures"
                raise UserError(rule, file=path, hint=how) from None
            if hint:
                raise
            raise UserError(str(err), hint=_hint(path)) from None
        test, labels = [], []
        for r in rest:
            t, _, label = r.partition(" ")
            test.append(t)
            labels.append(label == "target")
        target = np.array(labels, bool)
        enrol_ids = {e: i for i, e in enumerate(dict.fromkeys(enrol))}
        test_ids = {t: i for i, t in enumerate(dict.fromkeys(test))}
    pair = np.fromiter((enrol_ids[e] for e in enrol), np.int64, len(enrol)) * len(test_ids)
    pair += np.fromiter((test_ids[t] for t in test), np.int64, len(test))
    both = np.intersect1d(pair[target], pair[~target])
    if len(both):
        same = np.flatnonzero(pair == both[0])
        line = int(same[target[same] != target[same[0]]][0]) + 1
        raise UserError(
            f"{enrol[line - 1]} {test[line - 1]} is target in one line and nontarget in another",
            file=path, line=line, hint="delete the wrong line",
        )  # fmt: skip
    return enrol, test, target


def is_blind(path: str | Path) -> bool:
    """True when the first line of a list has two columns, so that the list has no labels."""
    if not Path(path).is_file():  # a pipe can be read only once
        return False
    with open(path, "rb") as f:
        return len(f.readline(1 << 16).split()) == 2


def read_pairs(path: str | Path) -> tuple[list[str], list[str]]:
    """(enrol ids, test ids) of a list with labels, or of a blind one (`enrol test`).

    UserError as in `read_trials`.
    """
    if not is_blind(path):
        return read_trials(path)[:2]
    with no_gc():
        return read_columns(path, "id", in_order=False)


def trials_over(path: str | Path, utts: Sequence[str]) -> "tuple[list[str], list[str], np.ndarray]":
    """`read_trials` for a list over these utterances.

    UserError for another id, or when all trials are of one kind.
    """
    enrol, test, target = read_trials(path)
    known = set(utts)
    for line, pair in enumerate(zip(enrol, test), 1):
        if missing := [u for u in pair if u not in known]:
            raise UserError(
                f"{missing[0]} is not an utterance of the data directory",
                file=path, line=line, hint="give the trials of this directory",
            )  # fmt: skip
    if target.all() or not target.any():
        rule = f"has no {'nontarget' if target.any() else 'target'} trial, so there is no EER"
        raise UserError(rule, file=path, hint="give a list with both")
    return enrol, test, target


def contradiction(lines: list[str]) -> str | None:
    """The first pair `enrol test` that is target in one line and nontarget in another; None if there is none.

    For lists in memory. `read_trials` does the same for files, faster and with the line.
    """
    label: dict[str, str] = {}
    for pair, _, is_target in (line.rpartition(" ") for line in lines):
        if label.setdefault(pair, is_target) != is_target:
            return pair
    return None


def enrol_side(enrol: set[str], known: set[str], enrol_map: dict[str, str] | None) -> set[str] | None:
    """Ids that may stand on the enrolment side of trials: utterances and models; None when enrolment lies
    elsewhere.

    Enrolment lies in another data directory, as in Kaldi's SRE recipes, when there is no enrol_map and none
    of the enrolment ids is an utterance here.
    """
    return None if enrol_map is None and not enrol & known else known | set(enrol_map or ())


def cut_trials(
    kept: set[str], known: set[str], enrol_map: dict[str, str] | None, trials: dict[str, list[str]]
) -> tuple[dict[str, str] | None, dict[str, list[str]]]:
    """Models and trials of a directory cut from `known` to `kept` utterances: the complete ones."""
    models = {m: us for m, us in (enrol_map or {}).items() if kept.issuperset(us.split(" "))}
    out = {}
    for name, lines in trials.items():
        sides = [line.split() for line in lines]
        elsewhere = enrol_side({e for e, _, _ in sides}, known, enrol_map) is None
        out[name] = [
            line
            for line, (e, t, _) in zip(lines, sides)
            if t in kept and (elsewhere or e in kept or e in models)
        ]
    return models or None, {name: lines for name, lines in out.items() if lines}
