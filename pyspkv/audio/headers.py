"""What the header of an audio file promises: where the samples start and how many bytes they have.

libsndfile reads a file that is cut short to its end without an error, so `AudioReader` compares the promise
with the file's size. Only headers are read, a few hundred bytes; for an MP3 without a tag that counts its
frames, the headers of all frames. A size may also mean "unknown" (an encoder wrote into a pipe, a recorder
was switched off). Such a file is not cut short, and where libsndfile would read nothing, `patch` replaces the
size by the real one.

Sources: Microsoft/IBM RIFF, EBU Tech 3306 (RF64), Sony's Wave64, Apple's AIFF-C and CAF, NeXT's .snd, NIST
SPHERE, RFC 3533 (Ogg), ISO 11172-3 and 13818-3 (MP3), Xing's tag in the first frame of an MP3.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

HEAD = 1024  # bytes at the start of a file that `promise` gets at once; it reads later bytes with `peek`
_MOST_CHUNKS = 1000
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # last bytes of the GUID of every chunk
_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}  # encoding -> bytes of a sample

Peek = Callable[[int, int], bytes]  # (position, number) -> bytes; fewer at the end of the file


class Promise(NamedTuple):
    """Start of the samples and the number of bytes that the header promises; None when it does not say."""

    start: int
    size: int | None
    block: int = 1  # bytes that are decoded together; a file may lack less than one block
    # (position, bytes): replacements that make libsndfile read to the end
    patch: tuple[tuple[int, bytes], ...] = ()

    chained: bool = False  # several Ogg streams in a row, of which libsndfile reads only the first
    prefix: bytes = b""  # bytes to insert before `start`, so that libsndfile knows the length

    def cut(self, size: int) -> bool:
        """True when a file of `size` bytes is shorter than promised, by at least one block."""
        return self.size is not None and self.start + self.size - size >= self.block


def _unknown(size: int) -> bool:
    """True when a size of 32 or 64 bits means "unknown".

    Writers use 0, -1, or the greatest value minus a header (sox 0x7ffff000 or 0x7f000000, ffmpeg 0xffffffff,
    arecord 0x80000000).
    """
    return size <= 0 or 0x7EFFF000 <= size <= 0x80001000 or 0xFFFFF000 <= size < 1 << 32 or size >= 1 << 62


def _chunks(at: Peek, pos: int, form: str):
    """Yield (id, position and size of the content) of each chunk; `form` is its header's struct format."""
    head = struct.calcsize(form)
    for _ in range(_MOST_CHUNKS):
        raw = at(pos, head)
        if len(raw) < head:
            return
        name, length = struct.unpack(form, raw)
        yield name, pos + head, length
        if length < 0:
            return
        pos += head + length + (length & 1 if form != ">4sq" else 0)


def _whole_blocks(tag: int, block: int, there: int) -> int | None:
    """Bytes of an IMA ADPCM file (tag 0x11) without its incomplete last block; None when all bytes can be
    read.

    libsndfile would fill an incomplete block with old content of its buffer.
    """
    return there // block * block if tag == 0x11 and there % block else None


def _riff(at: Peek, size: int, magic: bytes) -> Promise | None:
    order = ">" if magic == b"RIFX" else "<"
    tag, block, ds64 = 1, 1, None
    for name, pos, length in _chunks(at, 12, order + "4sI"):
        if name == b"fmt " and len(raw := at(pos, 14)) == 14:
            tag, block = struct.unpack(order + "H10xH", raw)
            block = max(1, block)
        elif name == b"ds64" and len(raw := at(pos + 8, 8)) == 8:
            ds64 = pos + 8
            (long,) = struct.unpack("<Q", raw)
        elif name == b"data" and ds64 is not None and magic != b"RIFF":
            there = size - pos
            if not _unknown(long) or long == there:
                return Promise(pos, long, block)
            counts = struct.pack("<QQ", there, there // block)
            return Promise(pos, None, block, ((ds64, counts),))
        elif name == b"data":
            there = size - pos
            if length == 0 and _only_chunks(at, pos, size, order + "4sI"):
                return Promise(pos, 0, block)
            known = not _unknown(length) or length == there
            if known:
                there = min(length, there)
            fit = _whole_blocks(tag, block, there)
            if fit is None and length == 0:
                fit = min(there, 0xFFFFFFFF)
            patch = ((pos - 4, struct.pack(order + "I", fit)),) if fit is not None else ()
            return Promise(pos, length if known else None, block, patch)
    return None


def _sound_wav(head: bytes, size: int) -> Promise | None:
    """The promise of an ordinary complete WAV, found faster. None for IMA ADPCM and everything unusual."""
    if head[12:16] != b"fmt " or head[20:22] == b"\x11\0":
        return None
    pos = 12
    while pos + 8 <= len(head):
        length = int.from_bytes(head[pos + 4 : pos + 8], "little")
        if head[pos : pos + 4] == b"data":
            return Promise(pos + 8, length) if 0 < length <= size - pos - 8 else None
        pos += 8 + length + (length & 1)
    return None


def _only_chunks(at: Peek, pos: int, size: int, form: str) -> bool:
    """True when only complete chunks follow, so that an empty data chunk before them really is empty."""
    for name, start, length in _chunks(at, pos, form):
        if not all(32 <= byte < 127 for byte in name):
            return False
        pos = start + length
    return abs(size - pos) <= 1


def _w64(at: Peek, size: int) -> Promise | None:
    pos, tag, block = 40, 1, 1
    for _ in range(_MOST_CHUNKS):
        raw = at(pos, 24)
        if len(raw) < 24:
            return None
        name, tail, length = struct.unpack("<4s12sQ", raw)  # the length counts these 24 bytes
        if tail == _W64_TAIL and name == b"fmt " and len(raw := at(pos + 24, 14)) == 14:
            tag, block = struct.unpack("<H10xH", raw)
            block = max(1, block)
        elif tail == _W64_TAIL and name == b"data":
            there, known = size - pos - 24, not _unknown(length) and not _unknown(length - 24)
            if known:
                there = min(length - 24, there)
            fit = _whole_blocks(tag, block, there)
            if fit is None and not known:
                fit = there
            patch = ((pos + 16, struct.pack("<Q", fit + 24)),) if fit is not None else ()
            return Promise(pos + 24, length - 24 if known else None, block, patch)
        if length < 24:
            return None
        pos += -(-length // 8) * 8
    return None


def _iff(at: Peek, size: int) -> Promise | None:
    """The promise of AIFF, AIFF-C and 8SVX."""
    block = 1
    for name, pos, length in _chunks(at, 12, ">4sI"):
        if name == b"COMM" and len(raw := at(pos, 8)) == 8:
            channels, _, bits = struct.unpack(">HIH", raw)
            block = max(1, channels * (bits + 7) // 8)
        elif name == b"BODY":
            return Promise(pos, None if _unknown(length) else length, 1)
        elif name == b"SSND" and len(raw := at(pos, 4)) == 4:
            start = pos + 8 + struct.unpack(">I", raw)[0]
            if not _unknown(length) and not _unknown(length - 8):
                return Promise(start, length - (start - pos), block)
            if length == 8 and _only_chunks(at, pos + 8, size, ">4sI"):
                return Promise(start, 0, block)
            there = struct.pack(">I", min(size - pos, 0x7FFFFFFF))
            return Promise(start, None, block, ((pos - 4, there),) if length == 8 else ())
    return None


def _au(head: bytes, size: int) -> Promise | None:
    order = ">" if head[:4] == b".snd" else "<"
    if len(head) < 24:
        return None
    start, length, encoding, _, channels = struct.unpack(order + "5I", head[4:24])
    block = max(1, channels) * _AU_BYTES.get(encoding, 1)
    if not _unknown(length):
        return Promise(start, length, block)
    if length == 0 and size <= start:
        return Promise(start, 0, block)
    return Promise(start, None, block, () if length == 0xFFFFFFFF else ((8, b"\xff" * 4),))


def _caf(at: Peek, size: int) -> Promise | None:
    block = 1
    for name, pos, length in _chunks(at, 8, ">4sq"):
        if name == b"desc":
            block = max(1, struct.unpack(">I", at(pos + 16, 4).rjust(4, b"\0"))[0])
        elif name == b"data":  # its first four bytes count edits
            if not _unknown(length):
                return Promise(pos + 4, length - 4, block)
            return Promise(pos + 4, None, block, ((pos - 8, struct.pack(">q", size - pos)),))
    return None


def _sphere(head: bytes) -> Promise | None:
    try:
        fields = dict(line.split(b" ", 1) for line in head.split(b"\n") if b" -i " in line)
        count, each, channels = (
            int(fields[name].removeprefix(b"-i"))
            for name in (b"sample_count", b"sample_n_bytes", b"channel_count")
        )
        start = int(head[8:16])
    except (ValueError, KeyError):
        return None
    if count <= 0 or each <= 0 or channels <= 0:
        return Promise(start, None)
    return Promise(start, count * each * channels, each * channels)


def _ogg(at: Peek, size: int) -> Promise | None:
    """The promise of an Ogg file: its last page, which is incomplete when the file was cut.

    Ogg headers do not say how many pages there are, so a cut between two pages cannot be found.
    """
    first = max(0, size - (27 + 255 + 255 * 255))  # the longest possible page
    tail = at(first, size - first)
    pos = tail.rfind(b"OggS\0")
    if pos < 0:
        return None
    whole, serial = _ogg_page(tail[pos : pos + 27 + 255])
    begun, start = set(), 0
    for _ in range(_MOST_CHUNKS):
        page = at(start, 27 + 255)
        if page[:4] != b"OggS" or len(page) < 28 or not page[5] & 2:  # not a stream's first page
            break
        length, number = _ogg_page(page)
        begun.add(number)
        start += length
    return Promise(first + pos, whole, chained=bool(begun) and len(serial) == 4 and serial not in begun)


def _ogg_page(page: bytes) -> tuple[int, bytes]:
    """Length in bytes and stream serial number of a page, from its header."""
    number = page[26:27]
    return 27 + sum(number) + sum(page[27 : 27 + sum(number)]), page[14:18]


_BITRATES = (  # kbit/s of layer III, by the index in the header: MPEG-1, then MPEG-2 and 2.5
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)


def _mp3_frame(head: bytes) -> int:
    """Bytes of a layer III frame, from three bytes of its header; 0: no frame, or a free bit rate."""
    version, layer, index, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if head[0] != 0xFF or head[1] < 0xE0 or version == 1 or layer != 1 or index in (0, 15) or rate == 3:
        return 0
    hertz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    samples, kbits = (1152, _BITRATES[0]) if version == 3 else (576, _BITRATES[1])
    return samples * kbits[index - 1] * 125 // hertz + (head[2] >> 1 & 1)


def _mp3(at: Peek, size: int) -> Promise | None:
    """Count the frames of an MP3 that has no tag with their number, and make such a tag as `prefix`.

    Without it libsndfile estimates the length from the first frame's bit rate. None when the file has a tag.
    """
    start = 0
    for _ in range(_MOST_CHUNKS):
        tag = at(start, 10)
        if tag[:3] != b"ID3" or len(tag) < 10:
            break
        start += 10 + sum((byte & 127) << 7 * i for i, byte in enumerate(reversed(tag[6:10])))
    first = at(start, 200)
    if len(first) < 200 or not (length := _mp3_frame(first)):
        return None
    mono, mpeg1 = first[3] >> 6 == 3, first[1] >> 3 & 3 == 3
    side = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    if first[side : side + 4] in (b"Xing", b"Info") and first[side + 7] & 1 or first[36:40] == b"VBRI":
        return None
    count, pos, base, block = 0, start, 0, b""
    lengths: dict[bytes, int] = {}
    while True:
        if pos + 4 > base + len(block):
            base, block = pos, at(pos, 1 << 20)
        head = block[pos - base : pos - base + 3]
        if len(head) < 3:
            break
        if head not in lengths:
            lengths[head] = _mp3_frame(head) if (head[1] ^ first[1]) & 0xFE == 0 else 0
        length = lengths[head]
        if not length or pos + length > size:
            break
        count, pos = count + 1, pos + length
    header = bytes([0xFF, first[1] | 1, 0x90 | first[2] & 0x0C, first[3]])
    body = header + bytes(side - 4) + b"Info" + struct.pack(">II", 1, count)
    return Promise(start, None, prefix=body.ljust(_mp3_frame(header), b"\0"))


def promise(head: bytes, peek: Peek, size: int) -> Promise | None:
    """The promise of a file's header; None for an unknown format.

    Args:
        head: the first `HEAD` bytes of the file.
        peek: reads bytes after those.
        size: the file's length in bytes.
    """

    def at(pos: int, number: int) -> bytes:
        if pos + number <= len(head):
            return head[pos : pos + number]
        return peek(pos, number) if pos < size else b""

    if head[:4] == b"RIFF" and (sound := _sound_wav(head, size)):
        return sound
    magic = head[:4]
    if magic in (b"RIFF", b"RIFX", b"RF64"):
        return _riff(at, size, magic)
    if magic == b"riff":
        return _w64(at, size)
    if magic == b"FORM":
        return _iff(at, size)
    if magic in (b".snd", b"dns."):
        return _au(head, size)
    if magic == b"caff":
        return _caf(at, size)
    if magic == b"NIST":
        return _sphere(head)
    if magic == b"OggS":
        return _ogg(at, size)
    if magic[:3] == b"ID3" or (len(head) > 3 and _mp3_frame(head)):
        return _mp3(at, size)
    return None
