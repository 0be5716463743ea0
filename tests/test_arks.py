"""Files that are not arks: pipes, devices, false sizes in headers, endless text."""

import os
import socket
import struct
import time

import numpy as np
import pytest

from pyspkv.base.errors import UserError
from pyspkv.data.ark import read_embeddings

VECTOR = b"\0BFV \4" + struct.pack("<i3f", 3, 1, 2, 3)


def ask(tmp_path, line: str):
    (tmp_path / "scp").write_text(line)
    return read_embeddings(tmp_path / "scp")


@pytest.mark.parametrize("kind", ["pipe", "pipe with a writer", "folder", "device", "socket"])
def test_only_plain_files_are_arks(tmp_path, monkeypatch, kind):
    ark = tmp_path / "ark"
    if kind == "folder":
        ark.mkdir()
    elif kind == "device":
        ark = "/dev/zero"
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        socket.socket(socket.AF_UNIX).bind("ark")
    else:
        os.mkfifo(ark)
    if kind == "pipe with a writer":
        held = os.open(ark, os.O_RDWR)
        os.write(held, VECTOR)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"scp:1: u1 .*(not an ark|cannot open the ark)"):
        ask(tmp_path, f"u1 {ark}:0\n")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("offset", ["9" * 19, "9" * 30, "9" * 5000])
def test_an_offset_beyond_the_end_of_the_file_is_refused(tmp_path, offset):
    (tmp_path / "ark").write_bytes(VECTOR)
    with pytest.raises(UserError, match="scp:2: the offset is larger"):
        ask(tmp_path, f"u1 {tmp_path}/ark:0\nu2 {tmp_path}/ark:{offset}\n")
    with pytest.raises(UserError, match="scp:2: u2"):
        ask(tmp_path, f"u1 {tmp_path}/ark:0\nu2 {tmp_path}/ark:{'9' * 18}\n")


@pytest.mark.parametrize("place", ["\u00b2", "\u0663", "1_0", "-1", "+1", ""])
def test_a_colon_without_a_number_belongs_to_the_file_name(tmp_path, place):
    (tmp_path / f"ark:{place}").write_bytes(VECTOR)
    assert ask(tmp_path, f"u1 {tmp_path}/ark:{place}\n").x.tolist() == [[1, 2, 3]]


def test_an_scp_with_a_byte_order_mark_or_a_nul_byte(tmp_path):
    (tmp_path / "ark").write_bytes(VECTOR)
    assert ask(tmp_path, f"\ufeffu1 {tmp_path}/ark:0\n").ids == ["u1"]
    with pytest.raises(UserError, match="scp:1: u1 .*cannot open the ark"):
        ask(tmp_path, "u1 a\0b:5\n")


BIG = 2**31 - 1
HEADERS = {
    "float matrix": b"\0BFM \4" + struct.pack("<i", BIG) + b"\4" + struct.pack("<i", BIG),
    "double matrix": b"\0BDM \4" + struct.pack("<i", BIG) + b"\4" + struct.pack("<i", BIG),
    "float vector": b"\0BFV \4" + struct.pack("<i", BIG),
    "negative": b"\0BFM \4" + struct.pack("<i", -1) + b"\4" + struct.pack("<i", -BIG),
    "compressed": b"\0BCM " + struct.pack("<ffii", 0, 1, BIG, BIG),
    "compressed 2": b"\0BCM2 " + struct.pack("<ffii", 0, 1, BIG, BIG),
    "compressed without rows": b"\0BCM " + struct.pack("<ffii", 0, 1, 0, BIG),
    "compressed in two bytes, cut short": b"\0BCM2 " + struct.pack("<ffii", 0, 1, 4, 30) + b"\0" * 200,
    "compressed in another way": b"\0BCM9 " + struct.pack("<ffii", 0, 1, 1, 1) + b"\0" * 200,
    "no rows": b"\0BFM \4" + struct.pack("<i", 0) + b"\4" + struct.pack("<i", BIG),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_figures_of_a_header_are_checked_before_memory_is_taken(tmp_path, kind):
    (tmp_path / "ark").write_bytes(VECTOR + HEADERS[kind] + b"rest")
    for first in ("", f"u0 {tmp_path}/ark:0\n"):
        with pytest.raises(
            UserError, match="u1 .*(ends before the embedding|is empty|no Kaldi vector or matrix)"
        ):
            ask(tmp_path, f"{first}u1 {tmp_path}/ark:{len(VECTOR)}\n")


@pytest.mark.parametrize("kind", ["V", "M"])
def test_many_lines_of_one_huge_entry_are_refused(tmp_path, kind):
    """A sparse file of 40 GB costs an attacker nothing, so its claimed size must be checked against this
    machine's memory.
    """
    n = 10**10
    dim = (
        struct.pack("<i", 10**5) + b"\4" + struct.pack("<i", n // 10**5)
        if kind == "M"
        else struct.pack("<i", n // 5)
    )
    with open(tmp_path / "ark", "wb") as f:
        f.write(f"\0BF{kind} \4".encode() + dim)
        f.truncate(4 * n + 100)
    lines = "".join(f"u{i:04d} {tmp_path}/ark:0\n" for i in range(2000))
    with pytest.raises(UserError, match="more than this machine's memory"):
        ask(tmp_path, lines)


def test_text_is_read_once(tmp_path):
    rows = np.arange(400000, dtype=np.float32).reshape(100, 4000) / 7
    text = b" [\n" + b"\n".join(b" ".join(b"%.9g" % v for v in row) for row in rows) + b" ]\n"
    (tmp_path / "ark").write_bytes(text + b"[ 1 2 ]")
    assert len(text) > 3 << 20 and np.array_equal(ask(tmp_path, f"u1 {tmp_path}/ark:0\n").x, rows)
    assert ask(tmp_path, f"u1 {tmp_path}/ark:{len(text)}\n").x.tolist() == [[1, 2]]
    with open(tmp_path / "ark", "wb") as f:
        f.write(b"[ ")
        for _ in range(200):
            f.write(b" " * 10**6)
    start = time.process_time()
    with pytest.raises(UserError, match="no closing bracket"):
        ask(tmp_path, f"u1 {tmp_path}/ark:0\n")
    assert time.process_time() - start < 5
    for bad in (
        b"[ 1 1_0 ]",
        b"[ 1 \xd9\xa3 ]",
        b"[ 1 [ 2 ]",
        b"[ 1 2",
        b"[ ]",
        b"[ 1\n2 3 ]",
        b"[ nan ]",
        b"[ 1e999 ]",
    ):
        (tmp_path / "ark").write_bytes(bad)
        with pytest.raises(UserError, match="scp:1: |u1"):
            ask(tmp_path, f"u1 {tmp_path}/ark:0\n")
