"""Ids that Kaldi's tables can hold, made from any name: unique, and the same for the same names in any order."""

import re
from collections import Counter
from collections.abc import Iterable

# Blanks and control characters of all kinds, what is no character, and what splits a line for some tool.
_BAD = re.compile(
    r"[\s\x00-\x20\x7f-\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff\ud800-\udfff]"
)
RULE = "`/` becomes `-`; blanks and control characters become `_`; of equal ids the later ones get `-2`, `-3`, ..."


def plain_id(name: str) -> str:
    """`name` with `/` as `-`, and blanks, control characters and halves of characters as `_`; never empty."""
    name = name.replace("/", "-")
    if name.isascii() and name.isprintable() and " " not in name and name:
        return name
    return _BAD.sub("_", name) or "_"


def unique_ids(names: Iterable[str]) -> dict[str, str]:
    """Name -> id (`plain_id`), one to one. Of several names with one id, one that is an id already keeps it,
    else the first in C order.

    The others get `-2`, `-3`, ...: the first numbers that make an id which no other name has by itself.
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
