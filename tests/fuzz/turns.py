"""Fuzz target: a voice assistant's log as JSON lines or CSV gives turns, or is refused."""

import tempfile
from pathlib import Path

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.dialogue.sessionize import Fields, from_log, sessionize

SEEDS = [
    b'j{"utt": "u1", "audio": "a.wav", "device": "d", "time": 17.5, "source": "customer", "duration": 2}\n'
    b'{"utt": "u2", "audio": "b.wav", "device": "d", "time": "18", "source": "device", "duration": "2.5"}\n',
    b'j{"utt": "u1", "audio": "a.wav", "device": "d", "time": "2026-03-01T18:02:11Z"}\n',
    b"cutt,audio,device,time,source\nu1,a.wav,d,2026-03-01T18:02:11,customer\nu2,b.wav,d,2026-03-01 19:00,device\n",
]


def target(data: bytes) -> None:
    """The first byte chooses the kind of log; the other bytes are the log."""
    kind = "csv" if data[:1] == b"c" else "jsonl"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.write_bytes(data[1:])
        try:
            found = from_log(log, kind, Fields(), "device")
        except UserError as err:
            str(err).encode()  # it can be printed
            return
        assert np.isfinite(found.time).all() and found.data.utts == sorted(set(found.data.utts))
        seconds = np.ones(len(found.time))
        assert len(sessionize(found.device, found.time, seconds)) == len(found.data.utts)
        found.data.write(Path(folder) / "out")
