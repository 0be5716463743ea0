"""Fuzz target: a trial list, ours or in another form, is read or refused; a converted list can be read."""

import tempfile
from contextlib import suppress
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.trials import contradiction, other_form, read_trials

SEEDS = [
    b"a b target\na c nontarget\n",
    b"1 x/a.wav y/b.wav\r\n0 x/a.wav z/c.wav\r\n",
    b"\xef\xbb\xbfa\tb\t1\na\tc\t0\n",
    b"a b tgt\na c imp",
]


def target(data: bytes) -> None:
    found = other_form(data)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trials"
        file.write_bytes(data)
        with suppress(UserError):
            read_trials(file)
        if found and not contradiction(found[0]):
            file.write_text("\n".join(found[0]) + "\n", encoding="utf-8", newline="\n")
            enrol, test, is_target = read_trials(file)
            assert len(enrol) == len(test) == len(is_target) == len(found[0])
