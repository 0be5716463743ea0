"""Fuzz target: lists of audio of every kind.

A list is read into rows or refused. Rows make a data directory that reads back as it was written.
"""

import contextlib
import gzip
import io
import tempfile
from contextlib import suppress
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir
from pyspkv.data.manifests import lhotse, lines, records, rttm
from pyspkv.data.manifests.rows import Skipped, to_data_dir, write

RECORDING = (
    b'{"id": "r", "sources": [{"type": "file", "channels": [0], "source": "r.wav"}], "sampling_rate": 16000, '
    b'"num_samples": 48000, "duration": 3.0, "channel_ids": [0]}'
)
KINDS = {
    b"c": lambda f, root, skipped: records.rows(lines.table_rows(f), records.Keys(), f, root),
    b"j": lambda f, root, skipped: records.rows(lines.json_lines(f), records.Keys(), f, root),
    b"n": lambda f, root, skipped: records.rows(lines.json_lines(f), records.NEMO, f, root),
    b"w": records.wespeaker,
    b"r": lambda f, root, skipped: rttm.rows([f], {"meet": "/x/meet.wav"}, True, skipped),
    b"l": lambda f, root, skipped: lhotse.from_recordings(f, None, root, skipped),
    b"k": lhotse.from_cuts,
    b"z": lambda f, root, skipped: records.rows(lines.json_lines(f), records.Keys(), f, root),
}
SEEDS = [
    b"cutt,path,speaker,start,end\nu,a.wav,s,0.5,1.5\nv,a.wav,,,\n",
    b'cpath;gender\n"a ""b"".wav";f\n',
    b'j{"path": "a.wav", "speaker": "s", "session": 3, "duration": 2.5}\n',
    b'n{"audio_filepath": "a.wav", "offset": 0.5, "duration": 1.0, "label": "s"}\n',
    b'w{"key": "u", "wav": "/x/a.wav", "spk": "s"}\n',
    b"rSPEAKER meet 1 0.00 1.50 <NA> <NA> A <NA> <NA>\n",
    b"l" + RECORDING + b"\n",
    b'k{"id": "c", "start": 1.0, "duration": 0.5, "channel": 0, "type": "MonoCut", "supervisions": [{"id": "s", '
    b'"recording_id": "r", "start": 0, "duration": 1, "channel": 0, "speaker": "x"}], "recording": '
    + RECORDING
    + b"}\n",
    b"z" + gzip.compress(b'{"path": "a.wav"}\n', mtime=0),
]


def target(data: bytes) -> None:
    """The first byte chooses the kind of list; the other bytes are the list."""
    read = KINDS.get(data[:1], KINDS[b"j"])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file, skipped = Path(folder) / ("list.gz" if data[:1] == b"z" else "list"), Skipped([])
        file.write_bytes(data[1:])
        with suppress(UserError):
            made = to_data_dir(Path(folder) / "d", read(file, Path("/x"), skipped), file, skipped)
            write(made, Path(folder) / "d")
            assert list(DataDir.read(Path(folder) / "d").files()) == list(made.files())
        skipped.write(Path(folder) / "skipped")
