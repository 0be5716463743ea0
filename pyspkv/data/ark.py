"""Embeddings on disk: Kaldi ark and scp files as kaldiio writes them, read in bulk.

An entry is one vector [D], or a matrix [n, D] for several crops of one utterance. This module never unpickles
data and never runs an scp entry as a command. kaldiio's reader would do both, so it is used for compressed
matrices only.
"""

import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from pyspkv.base.atomic import atomic_file, folder_lock
from pyspkv.base.errors import UserError
from pyspkv.data.tables import whole_number

CHUNK = 16 << 20  # bytes of an ark in memory at once
# Kaldi's compressed matrices: bytes of the header of each column, and of each value
COMPRESSED = {b"CM": (8, 1), b"CM2": (0, 2), b"CM3": (0, 1)}
VECTOR_HEADER, MATRIX_HEADER = 10, 15  # "\0BFV \4<rows>" and "\0BFM \4<rows>\4<columns>"
AGAIN = "remove this scp, then extract the embeddings again"


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N utterances, one or more rows for each.

    ids: N utterance ids in scp order. x: float32 [R, D]. offsets: int64 [N + 1]; the rows of utterance i are
    `x[offsets[i] : offsets[i + 1]]`.
    """

    ids: list[str]
    x: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """D, the number of dimensions."""
        return self.x.shape[1]

    @property
    def single(self) -> bool:
        """True when every utterance has exactly one row, so that `x` is [N, D]."""
        return len(self.x) == len(self.ids)

    def vectors(self) -> np.ndarray:
        """One row for each utterance, float32 [N, D]: `x` itself (no copy) if `single`, else mean directions.

        The mean direction is the mean of an utterance's length-normalized rows; its length is at most 1.
        """
        return self.x if self.single else self.entry_means(normalize(self.x))

    def entry_means(self, x: np.ndarray) -> np.ndarray:
        """Means of each utterance's rows in `x` [R, D] -> [N, D]; `x` itself if `single`."""
        return x if self.single else np.add.reduceat(x, self.offsets[:-1]) / self.counts[:, None]

    @property
    def counts(self) -> np.ndarray:
        """Number of rows of each utterance, float32 [N]."""
        return np.diff(self.offsets).astype(np.float32)


def normalize(x: np.ndarray) -> np.ndarray:
    """Length-normalize rows: [..., D] -> float32 [..., D]. A zero row stays zero, so all its cosines are 0.

    Every row of finite float32 values gets its direction, even when float32 cannot hold its length.
    """
    norm = np.sqrt(np.einsum("...d,...d->...", x, x, dtype=np.float64))[..., None]
    float32 = np.finfo(np.float32)
    far = (norm > float32.max) | ((norm > 0) & (norm < float32.tiny))
    with np.errstate(over="ignore"):  # overflow only happens in the rows that are computed again below
        out = np.divide(x, np.where((norm > 0) & ~far, norm, 1), dtype=np.float32, casting="same_kind")
    # Scale these rows by their largest value first, in float64; this does not change the direction
    if far.any():
        rows = far[..., 0]
        big = x[rows].astype(np.float64)
        big /= np.abs(big).max(-1, keepdims=True)
        out[rows] = big / np.linalg.norm(big, axis=-1, keepdims=True)
    return out


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Add the name of `file` to an OSError without one; a full disk raises such an error."""
    try:
        yield
    except OSError as err:
        if err.filename is None:
            err.filename = str(file)
        raise


def refuse_links(files: Iterable[Path]) -> None:
    """UserError when one of `files` is a link: writing to it would overwrite the file that it points to."""
    for file in files:
        if file.is_symlink():
            raise UserError(
                f"is a link to {os.readlink(file)}, which would be overwritten",
                file=file,
                hint="remove the link, or give another output folder",
            )


def hold(stack: ExitStack, folder: Path, name: str = ".lock") -> None:
    """Hold `folder_lock(folder, name)` until `stack` ends. UserError when another process holds it."""
    refuse_links([folder / name])
    with _naming(folder / name):
        stack.enter_context(folder_lock(folder, name))


class EmbeddingWriter:
    """Write `out_dir/embedding.ark` and `.scp`; both appear, complete, when the `with` block ends without an
    error.

    The scp is sorted in C order and holds absolute paths. It appears last, so an existing scp has a complete
    ark.

    Args:
        out_dir: folder of the two files.
        name: file name instead of `embedding`.
        lock: name of the lock file, because two writers would mix their files; None when the caller holds a
            lock.
        empty: allow an end without any embedding; otherwise that is a UserError.
    """

    def __init__(
        self, out_dir: str | Path, name: str = "embedding", lock: str | None = ".lock", empty: bool = False
    ):
        self.dir = Path(out_dir).absolute()
        self.name, self.lock, self.empty = name, lock, empty
        self.dim = 0
        self.place: dict[str, int] = {}

    def __enter__(self) -> "EmbeddingWriter":
        self._context = self._files()
        self._context.__enter__()
        return self

    def __exit__(self, kind, value, trace) -> bool | None:
        return self._context.__exit__(kind, value, trace)

    @contextmanager
    def _files(self) -> Iterator[None]:
        ark, scp = self.dir / f"{self.name}.ark", self.dir / f"{self.name}.scp"
        with ExitStack() as stack:
            if self.lock:
                hold(stack, self.dir, self.lock)
            refuse_links([ark, scp])
            # Nobody else is writing here, so these files were left by a killed extraction.
            for left in self.dir.glob(f".{self.name}.*"):
                left.unlink(missing_ok=True)
            with atomic_file(scp) as lines, atomic_file(ark, "wb") as self._ark:
                yield
                if not self.place and not self.empty:
                    raise UserError("no embedding was written", file=self.dir)
                # Write both to disk now, so that a full disk is noticed while the older pair still exists.
                self._ark.flush()
                os.fsync(self._ark.fileno())
                with _naming(scp):
                    # code-point order of str is byte order of UTF-8, that is LC_ALL=C
                    lines.writelines(f"{utt} {ark}:{self.place[utt]}\n" for utt in sorted(self.place))
                    lines.flush()
                    os.fsync(lines.fileno())
                scp.unlink(missing_ok=True)  # an older scp must never point into the new ark

    def __call__(self, utt: str, array: np.ndarray) -> None:
        """Add an embedding [D] or [n, D], stored as float32.

        Raises UserError when it contains NaN or Inf, its id was added before, or its D differs from the
        earlier ones.
        """
        from kaldiio.matio import write_array

        array = np.ascontiguousarray(array, dtype=np.float32)
        if not utt or utt.split() != [utt]:
            raise UserError(f"utterance id {utt!r} is empty or contains white space", file=self.dir)
        if utt in self.place:
            raise UserError(f"utterance {utt} has two embeddings", file=self.dir)
        if array.ndim not in (1, 2) or array.size == 0 or self.dim not in (0, array.shape[-1]):
            want = f"[{self.dim}] or [n, {self.dim}]" if self.dim else "[D] or [n, D]"
            raise UserError(f"embedding of {utt} has shape {list(array.shape)}, not {want}", file=self.dir)
        if not np.isfinite(array).all():
            raise UserError(
                f"embedding of utterance {utt} contains NaN or Inf",
                file=self.dir,
                hint="listen to that utterance; if it sounds right, the model diverged: use an older checkpoint",
            )
        self.dim = array.shape[-1]
        self._ark.write(f"{utt} ".encode())
        self.place[utt] = self._ark.tell()
        write_array(self._ark, array)

    def append(self, scp: Path) -> None:
        """Add all embeddings of another writer's `scp` and ark, byte for byte.

        UserError when an id was added before.
        """
        if scp.stat().st_size == 0:
            return
        ids, _, _, offset = read_scp(scp)
        start = self._ark.tell()
        for utt, place in zip(ids, offset.tolist()):
            if utt in self.place:
                raise UserError(f"utterance {utt} has two embeddings", file=scp)
            self.place[utt] = start + place
        with open(scp.with_suffix(".ark"), "rb") as f:
            shutil.copyfileobj(f, self._ark, CHUNK)


def read_embeddings(scp: str | Path, place: Callable[[str], str] = str) -> Embeddings:
    """Read every embedding that `scp` lists (`utt ark:offset` lines), in the order of its lines.

    Float vectors of one size, the usual case, are copied directly to their rows: memory is 4 N D bytes, the
    ids, and 16 MiB. Matrices, doubles, compressed and text entries are read one by one.

    place: gives the file of an ark that the scp names.

    Raises UserError with the scp line when an entry is a command, is damaged, has another D, or is not
    finite.
    """
    ids, arks, ark_of, offset = read_scp(scp)
    return _read(_Entries(str(scp), ids, [place(ark) for ark in arks], ark_of, offset))


def read_some(scp: str, ids: Sequence[str], arks: Sequence[str], ark_of, offset, near: bool) -> Embeddings:
    """The embeddings [M] that lie in the arks at these offsets (of `read_scp`, any choice of its lines), in this order.

    near: they lie one behind the other, so that they are read in bulk; else one by one. `scp` and `ids` are for errors.
    """
    return _read(_Entries(scp, ids, arks, np.asarray(ark_of), np.asarray(offset), lines=False), near)


def _read(entries: "_Entries", near: bool = True) -> Embeddings:
    ids, scp = list(entries.ids), entries.scp
    x = entries.read_vectors() if near else None
    offsets = np.arange(len(ids) + 1, dtype=np.int64)
    if x is None:
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which is reported below
            x, offsets = entries.read_any()
    step = max(1, CHUNK // (4 * x.shape[1]))
    # In blocks, because a mask for all values would need a quarter of the embeddings' memory.
    for start in range(0, len(x), step):
        bad = ~np.isfinite(x[start : start + step]).all(1)
        if bad.any():
            row = start + int(bad.argmax())
            i = int(np.searchsorted(offsets, row, side="right")) - 1
            line = i + 1 if entries.lines else None
            raise UserError(
                f"embedding of utterance {ids[i]} contains NaN or Inf", file=scp, line=line, hint=AGAIN
            )
    return Embeddings(ids, x, offsets)


def read_scp(scp) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Ids [N], arks [A], the ark of each (int64 [N], index into arks) and its offset in bytes (int64 [N])."""
    arks: dict[str, int] = {}
    ids, ark_of, offset = [], [], []
    with open(scp, encoding="utf-8-sig", errors="surrogateescape") as f:
        for number, line in enumerate(f, 1):
            fields = line.split(None, 1)
            if len(fields) != 2:
                raise UserError("a line must be `utterance ark:offset`", file=scp, line=number, hint=AGAIN)
            utt, entry = fields[0], fields[1].rstrip()
            if entry[-1] == "|" or entry[0] == "|" or entry[-1] == "]":
                raise UserError(
                    f"{entry!r} is a command or a range; only ark:offset entries are accepted",
                    file=scp,
                    line=number,
                    hint="first write the vectors to an ark with Kaldi's copy-vector",
                )
            path, colon, place = entry.rpartition(":")
            if not (colon and place.isascii() and place.isdigit()):
                path, place = entry, "0"  # a file that holds one Kaldi object without a key
            if (at := whole_number(place)) is None:
                raise UserError("the offset is larger than any file", file=scp, line=number, hint=AGAIN)
            ids.append(utt)
            ark_of.append(arks.setdefault(path, len(arks)))
            offset.append(at)
    if not ids:
        raise UserError("contains no embeddings", file=scp, hint=AGAIN)
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        for number, utt in enumerate(ids, 1):
            if utt in seen:
                raise UserError(
                    f"utterance {utt} appears twice", file=scp, line=number, hint="remove one of the lines"
                )
            seen.add(utt)
    return ids, list(arks), np.array(ark_of), np.array(offset, dtype=np.int64)


@dataclass
class _Entries:
    scp: str
    ids: Sequence[str]
    arks: Sequence[str]
    ark_of: np.ndarray  # [N] index into arks
    offset: np.ndarray  # [N] byte offset
    lines: bool = True  # whether entry i is line i + 1 of scp

    def error(self, i: int, message: str) -> UserError:
        where = f"{self.arks[self.ark_of[i]]}:{self.offset[i]}"
        line = int(i) + 1 if self.lines else None
        return UserError(f"{self.ids[i]} ({where}): {message}", file=self.scp, line=line, hint=AGAIN)

    def by_ark(self):
        """Yield (file, size in bytes, numbers of the entries by ascending offset) for each ark."""
        for a, path in enumerate(self.arks):
            rows = np.flatnonzero(self.ark_of == a) if len(self.arks) > 1 else np.arange(len(self.ids))
            if not len(rows):
                continue
            rows = rows[np.argsort(self.offset[rows], kind="stable")]
            try:  # O_NONBLOCK: opening a pipe must not block
                f = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
            except IsADirectoryError:
                raise self.error(rows[0], "is a folder, not an ark") from None
            except (OSError, ValueError) as err:  # ValueError: a NUL in the name
                reason = getattr(err, "strerror", None) or err
                raise self.error(rows[0], f"cannot open the ark: {reason}") from None
            with f:
                about = os.fstat(f.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise self.error(rows[0], "is a pipe or device, not an ark")
                yield f, about.st_size, rows

    def room(self, rows: int, dim: int) -> None:
        """UserError when float32 [rows, dim], as headers or the scp ask, exceeds this machine's memory."""
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 4 * rows * dim > have:
            need = f"{rows} x {dim} values are more than this machine's memory ({have / 2**30:.0f} GiB)"
            raise UserError(need, file=self.scp, hint="give fewer lines, or check the headers of the ark")

    def read_vectors(self) -> np.ndarray | None:
        """float32 [N, D] when every entry is a float vector of one size; None as soon as one is not."""
        out = None
        for f, size, rows in self.by_ark():
            if out is None:
                head = os.pread(f.fileno(), VECTOR_HEADER, self.offset[rows[0]])
                if head[:6] != b"\0BFV \4" or len(head) < VECTOR_HEADER:
                    return None
                dim = int.from_bytes(head[6:], "little", signed=True)
                if not 0 < dim <= size // 4:
                    return None  # read_any reports the error
                self.room(len(self.ids), dim)
                out = np.empty((len(self.ids), dim), dtype="<f4")
                target = out.data.cast("B")
            width, length = 4 * dim, VECTOR_HEADER + 4 * dim
            places, numbers, first = self.offset[rows].tolist(), rows.tolist(), 0
            if places[-1] + length > size:
                return None
            while first < len(places):
                start = places[first]
                data = memoryview(_read_at(f, start, max(CHUNK, length)))
                last = first
                while last < len(places) and places[last] + length <= start + len(data):
                    at = places[last] - start
                    if data[at : at + VECTOR_HEADER] != head:
                        return None
                    to = numbers[last] * width
                    target[to : to + width] = data[at + VECTOR_HEADER : at + length]
                    last += 1
                first = last
        return out

    def read_any(self) -> tuple[np.ndarray, np.ndarray]:
        """Entries of any kind: (x [R, D], offsets [N + 1]).

        A first pass finds the sizes of uncompressed ones.
        """
        shape = np.zeros((len(self.ids), 2), dtype=np.int64)
        decoded: dict[int, np.ndarray] = {}
        total = 0
        for f, size, rows in self.by_ark():
            for i in rows.tolist():
                kind, rows_, columns = self.header(f, size, i)
                if kind == "":
                    decoded[i] = self.decode(f, i)
                    rows_, columns = decoded[i].shape
                total += rows_ * columns
                self.room(total, 1)
                shape[i] = rows_, columns
        empty = np.flatnonzero(shape.min(1) <= 0)
        if len(empty):
            raise self.error(empty[0], "the embedding is empty")
        other = np.flatnonzero(shape[:, 1] != shape[0, 1])
        if len(other):
            i = other[0]
            raise self.error(i, f"has {shape[i, 1]} dimensions, {self.ids[0]} has {shape[0, 1]}")
        offsets = np.concatenate([[0], np.cumsum(shape[:, 0])])
        out = np.empty((offsets[-1], shape[0, 1]), dtype=np.float32)
        for f, size, rows in self.by_ark():
            for i in rows.tolist():
                if i in decoded:
                    out[offsets[i] : offsets[i + 1]] = decoded.pop(i)
                    continue
                kind, _, _ = self.header(f, size, i)
                at = self.offset[i] + (MATRIX_HEADER if kind[1] == "M" else VECTOR_HEADER)
                dtype = np.dtype("<f4" if kind[0] == "F" else "<f8")
                data = os.pread(f.fileno(), int(shape[i].prod()) * dtype.itemsize, at)
                out[offsets[i] : offsets[i + 1]] = np.frombuffer(data, dtype).reshape(shape[i])
        return out, offsets

    def header(self, f, size: int, i: int) -> tuple[str, int, int]:
        """Kind ("FV", "FM", "DV", "DM"), rows and columns of entry i; ("", 0, 0) if compressed or text."""
        start = int(self.offset[i])  # a Python int, because the products below may exceed int64
        head = os.pread(f.fileno(), MATRIX_HEADER, start)
        kind = head[2:4].decode("ascii", "replace")
        name = head[2:6].partition(b" ")[0]
        if head[:2] == b"\0B" and name in COMPRESSED:
            sizes = start + 2 + len(name) + 9  # after the name, a blank, a minimum and a range
            rows, columns = struct.unpack("<ii", os.pread(f.fileno(), 8, sizes).ljust(8, b"\0"))
            per_column, each = COMPRESSED[name]
            if min(rows, columns) < 0 or start + columns * (per_column + each * rows) > size:
                raise self.error(i, "the ark ends before the embedding does")
            return "", 0, 0
        if head[:1] != b"\0" and head.lstrip()[:1] == b"[":
            return "", 0, 0
        if (
            head[:2] != b"\0B"
            or kind not in ("FV", "FM", "DV", "DM")
            or head[4:6] != b" \4"
            or len(head) < 10
        ):
            raise self.error(i, "no Kaldi vector or matrix of floats starts at this offset")
        rows, columns = 1, int.from_bytes(head[6:10], "little", signed=True)
        length = VECTOR_HEADER
        if kind[1] == "M":
            rows, columns = columns, int.from_bytes(head[11:15], "little", signed=True)
            length = MATRIX_HEADER
        if min(rows, columns) < 0 or start + length + rows * columns * (4 if kind[0] == "F" else 8) > size:
            raise self.error(i, "the ark ends before the embedding does")
        return kind, rows, columns

    def decode(self, f, i: int) -> np.ndarray:
        """float32 [n, D] of a text entry, or of a compressed one (by kaldiio)."""
        start = int(self.offset[i])
        try:
            if os.pread(f.fileno(), 4, start) == b"\0BCM":
                from kaldiio.matio import read_matrix_or_vector

                f.seek(start)
                return np.atleast_2d(read_matrix_or_vector(f)).astype(np.float32)
            text = _until_bracket(f, start)
            if b"_" in text:
                raise ValueError("an underscore is in no number")  # Python itself would read 1_0 as 10
            lines = text.replace(b"[", b" ", 1).splitlines()
            return np.array([line.split() for line in lines if line.strip()], dtype=np.float32).reshape(
                sum(1 for line in lines if line.strip()), -1
            )
        except (ValueError, AssertionError, IndexError, struct.error) as err:
            raise self.error(i, f"cannot be read ({err})") from None


def _read_at(f, start: int, length: int) -> bytes:
    """`length` bytes from `start`, fewer only at the end of the file (a single pread may return less)."""
    data = os.pread(f.fileno(), length, start)
    if len(data) == length:
        return data
    parts = BytesIO()
    while data:
        parts.write(data)
        data = os.pread(f.fileno(), length - parts.tell(), start + parts.tell())
    return parts.getvalue()


def _until_bracket(f, start: int) -> bytes:
    """A text entry from `start` to its `]`. ValueError when there is none within CHUNK bytes."""
    text, step = bytearray(), 1 << 16
    while len(text) < CHUNK:
        more = os.pread(f.fileno(), step, start + len(text))
        if (end := more.find(b"]")) >= 0:
            return bytes(text + more[:end])
        if not more:
            raise ValueError("no closing bracket")
        text += more
    raise ValueError(f"no closing bracket within {CHUNK >> 20} MiB; write long ones as binary")
