"""Fuzz target: an ark of embeddings is read as finite float32 [R, D], or refused with a UserError."""

import struct
import tempfile
from pathlib import Path

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.data.ark import read_embeddings

_VECTOR = b"\0BFV \4" + struct.pack("<i3f", 3, 1, 2, 3)
SEEDS = [
    b"u1 ark:0\nu2 ark:22\n\n" + _VECTOR + _VECTOR,
    b"u1 ark:0\n\n" + b"\0BFM \4" + struct.pack("<i", 2) + b"\4" + struct.pack("<i4f", 2, 1, 2, 3, 4),
    b"u1 ark:0\n\n" + b"\0BDV \4" + struct.pack("<i2d", 2, 1, 2),
    b"u1 ark:0\nu2 ark:8\n\n" + b" [ 1 2 ]\n [ 3 4e-1 ]\n",
    b"u1 ark:0\n\n" + b"\0BCM2 " + struct.pack("<ffii", -1, 2, 2, 2) + bytes(range(8)),
]


def target(data: bytes) -> None:
    """The scp, an empty line, the ark."""
    scp, _, ark = data.partition(b"\n\n")
    with tempfile.TemporaryDirectory() as folder:
        lines = (scp + b"\n").replace(b" ark:", f" {folder}/ark:".encode())
        (Path(folder) / "ark").write_bytes(ark)
        (Path(folder) / "scp").write_bytes(lines)
        try:
            found = read_embeddings(Path(folder) / "scp")
        except UserError:
            return
        assert found.x.dtype == np.float32 and np.isfinite(found.x).all()
        assert len(found.ids) == len(found.offsets) - 1 and found.offsets[-1] == len(found.x)
