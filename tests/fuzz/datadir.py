"""Fuzz target: a data directory with one replaced file.

It is read or refused with a UserError. The fixer makes it readable or changes nothing.
"""

import tempfile
from contextlib import suppress
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir
from pyspkv.data.fix import fix

FILES = {
    "wav.scp": b"r1 /data/r1.wav\nr2 sph2pipe /data/r2.sph |\nr3 foo.ark:123\n",
    "segments": b"a-1 r1 0.00 1.50\na-2 r1 1.50 3.25\nb-1 r2 0 -1\nc-1 r3 10.5 11\n",
    "utt2spk": b"a-1 a\na-2 a\nb-1 b\nc-1 c\n",
    "spk2utt": b"a a-1 a-2\nb b-1\nc c-1\n",
    "text": b"a-1 hello there\na-2 \nb-1 x\nc-1 x\n",
    "utt2dur": b"a-1 1.5\na-2 1.75\nb-1 2\nc-1 0.5\n",
    "utt2num_samples": b"a-1 24000\na-2 28000\nb-1 32000\nc-1 8000\n",
    "reco2dur": b"r1 3.25\nr2 2.0\nr3 11\n",
    "spk2gender": b"a f\nb m\nc f\n",
    "utt2dialogue": b"a-1 d1\na-2 d1\nb-1 d2\nc-1 d2\n",
    "dialogue2device": b"d1 x\nd2 y\n",
    "enrol_map": b"m1 a-1 b-1\nm2 c-1\n",
    "trials": b"m1 a-2 target\nm1 c-1 nontarget\na-1 a-2 target\nm2 b-1 nontarget\n",
}
SEEDS = [bytes([i]) + raw for i, raw in enumerate(FILES.values())]


def target(data: bytes) -> None:
    """The first byte chooses the file; the other bytes are its content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d"
        path.mkdir()
        names = list(FILES)
        held = {**FILES, names[data[0] % len(names) if data else 0]: data[1:]}
        for name, raw in held.items():
            (path / name).write_bytes(raw)
        with suppress(UserError):
            DataDir.read(path)
        try:
            fix(path)
        except UserError:
            assert {p.name: p.read_bytes() for p in path.iterdir()} == held
        else:
            DataDir.read(path)
            assert fix(path) == []
