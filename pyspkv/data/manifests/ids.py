"""Make ids that Kaldi's tables can hold from any names: unique, and independent of the order of the names."""

import re
from collections import Counter
from collections.abc import Iterable

# Spaces and control characters of all kinds, halves of surrogate pairs, and whatever splits a line for some
# tool.
_BAD = re.compile(
    r"[\s\x00-\x20\x7f-\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff\ud800-\udfff]"
)
RULE = "`/` becomes `-`; blanks and control characters become `_`; of equal ids the later ones get `-2`, `-3`, ..."


def plain_id(name: str) -> str:
    """`name` with `/` replaced by `-`, and blanks, control characters and surrogates by `_`; never empty."""
    name = name.replace("/", "-")
    if name.isascii() and name.isprintable() and " " not in name and name:
        return name
    return _BAD.sub("_", name) or "_"


def unique_ids(names: Iterable[str]) -> dict[str, str]:
    """Map names to unique ids (`plain_id`).

    If several names give the same id, a name that equals the id keeps it, else the first name in C order. The
    others get `-2`, `-3`, ...: the first numbers that make an id which no other name gives by itself.
    """
    wanted = {name: plain_id(name) for name in names}
    taken, out = set(wanted.values()), {}
    last: Counter[str] = Counter()
    if len(taken) == len(wanted):
        return wanted
    for name in sorted(wanted, key=lambda name: (wanted[name] != name, name)):
        plain = wanted[name]
        if last[plain] == 0:
            last[plain], out[name] = 1, plain
            continue
        k = last[plain] + 1
        while f"{plain}-{k}" in taken:
            k += 1
        last[plain], out[name] = k, f"{plain}-{k}"
        taken.add(out[name])
    return out
