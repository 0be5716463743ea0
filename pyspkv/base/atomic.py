"""Atomic writing: a file or folder appears complete or not at all, so a killed run leaves nothing
half-written."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.fast.exchange import exchange

_START = time.time()  # close enough to the start of this process
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.(?:tmp|old)")  # names of our temporary files and folders


def command_line(*words: str | Path) -> str:
    """Join the words into one line that bash reads back unchanged.

    Users paste hints into a shell, and file names may contain any character.
    """

    def quote(word: str | Path) -> str:
        text = str(word)
        if isinstance(word, Path) and text[:1] == "-":
            text = f"./{text}"
        if text.isprintable():
            return shlex.quote(text)
        plain = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\{b:03o}" for b in os.fsencode(text))
        return f"$'{''.join(plain)}'"

    return " ".join(map(quote, words))


def _mode(default: int) -> int:
    """The permission bits `default` under this process's umask, which tempfile ignores."""
    mask = os.umask(0)
    os.umask(mask)
    return default & ~mask


def _resolved(path: str | Path, inside: str | Path | None, own: bool) -> Path:
    """The path to write to, with all links followed.

    Args:
        path: the file or folder to write.
        inside: the folder that the user gave (default: the parent of `path`). A link below it may come from
            somebody's archive, so no link may lead out of this folder.
        own: the user named `path` himself, so links in it are followed wherever they lead.

    Raises UserError when a link leads out of `inside`, or `path` lies outside it.
    """
    root = Path(os.path.realpath(Path(path).parent if inside is None else inside))
    target, path = Path(os.path.realpath(path)), Path(os.path.abspath(path))
    if own or path.parts[:2] in (("/", "dev"), ("/", "proc")) or root in target.parents:
        return target
    links = [p for p in (path, *path.parents) if p.is_symlink()]
    out = [p for p in links if root not in (to := Path(os.path.realpath(p)), *to.parents)]
    if not out and inside is None:  # no link: a path such as `.`, whose real path is not below its parent
        return target
    if not out:
        raise UserError(f"lies outside {root}", file=path)
    rule = f"is a link out of {root} (to {os.path.realpath(out[0])}), and nothing is written through it"
    raise UserError(rule, file=out[0], hint=command_line("unlink", out[0]))


@functools.cache
def _litter(folder: str) -> dict[str, list[str]]:
    """File name -> temporary files and folders for it in `folder` that are older than this process.

    The result is cached, because younger files never count.
    """
    found: dict[str, list[str]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for e in entries:
            made = _TEMPORARY.fullmatch(e.name)
            if made and not e.is_symlink() and e.stat().st_mtime < _START:
                found.setdefault(made[1], []).append(e.path)
    return found


def _sweep(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` left.

    A live writer holds a lock on its file.
    """
    for left in _litter(str(path.parent)).pop(path.name, ()):
        if left.endswith(".old") and not path.exists():
            continue  # killed between the two renames of `atomic_dir`: this is the only complete folder
        with contextlib.suppress(OSError):
            fd = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if os.path.isdir(left) else os.unlink(left)
            finally:
                os.close(fd)


def _lock(fd: int) -> None:
    """Lock an open temporary file so that no other process removes it.

    File systems without locks are tolerated.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX)


def _name(err: BaseException, path: Path, tmp: str | Path) -> None:
    """Put the name of `path` into an OSError that names no file (full disk) or only the temporary one."""
    if isinstance(err, OSError) and err.filename in (None, tmp, str(tmp)):
        if err.errno is None:  # numpy raises this for a short write: "1000 requested and 40 written"
            if type(err) is not OSError:
                return
            err.strerror = f"cannot be written whole ({err})"
        err.filename = str(path)


@contextlib.contextmanager
def atomic_file(
    path: str | Path, mode: str = "w", *, inside: str | Path | None = None, own: bool = False
) -> Iterator:
    """Open a temporary file next to `path`; it replaces `path` when the block ends without an error.

    Args:
        path: the file to write. A device or pipe (/dev/stdout) is written directly.
        mode: as for `open`; text is UTF-8 with "\\n" line ends.
        inside: the folder that the user gave; no link may lead out of it (default: the parent of `path`).
        own: the user named `path` himself: if it is a link, the link stays and its target is replaced.

    Raises UserError when a link leads out of `inside`.
    """
    path = _resolved(path, inside, own)
    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, mode) as f:
            yield f
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        text = "b" not in mode
        with os.fdopen(fd, mode, encoding="utf-8" if text else None, newline="\n" if text else None) as f:
            _lock(fd)
            yield f
            f.flush()
            os.fsync(f.fileno())
            os.fchmod(f.fileno(), _mode(0o666))
            os.replace(tmp, path)  # while the lock is held, or another process could remove the file
    except BaseException as err:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(tmp)
        _name(err, path, tmp)
        raise


def _swap(a: Path, b: Path) -> bool:
    """Exchange two folders in one step; False when the file system cannot.

    UserError when `b` cannot be moved.
    """
    try:
        return exchange(a, b)
    except OSError as err:
        if err.errno in (errno.EBUSY, errno.EXDEV):
            why = "is a mount point or the current folder, and cannot be replaced"
            raise UserError(why, file=b, hint="give a folder below it") from None
        raise


@contextlib.contextmanager
def scratch_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder `.<name>.xxxxxxxx.tmp` next to `path`; remove it at the end if it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    tmp = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    fd = os.open(tmp, os.O_RDONLY | os.O_DIRECTORY)
    _lock(fd)
    try:
        yield tmp
    except BaseException as err:
        _name(err, path, tmp)
        raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        os.close(fd)


@contextlib.contextmanager
def atomic_dir(path: str | Path, *, inside: str | Path | None = None, own: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; it replaces `path` when the block ends without an error.

    An existing folder and the new one change places in one step, and the old one is removed. Where the file
    system cannot exchange folders, the old one is first renamed to `.<name>.xxxxxxxx.old`, so at every moment
    one of the two names holds a complete folder. `inside` and `own` are as in `atomic_file`.

    Raises UserError when a link leads out of `inside`, or `path` is a mount point or the current folder.
    """
    path = _resolved(path, inside, own)
    with scratch_dir(path) as tmp:
        try:
            yield tmp
            os.chmod(tmp, _mode(0o777))
            if not path.exists():
                os.rename(tmp, path)
            elif not _swap(tmp, path):
                old = tmp.with_suffix(".old")
                os.rename(path, old)
                os.rename(tmp, path)
                shutil.rmtree(old, ignore_errors=True)
        except BaseException as err:
            _name(err, path, tmp)
            raise


@contextlib.contextmanager
def folder_lock(folder: str | Path, name: str = ".lock") -> Iterator:
    """Hold a lock on `folder/name` so that no other process writes into `folder`; yield the open lock file.

    The kernel frees the lock when the process ends, in whatever way. The content of the file (host, process,
    command) only serves the error message.

    Raises UserError when another process holds the lock, or the lock file is a link.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as err:
        if err.errno != errno.ELOOP:
            raise
        hint = command_line("rm", folder / name)
        raise UserError(
            "is a link, and nothing is written through it", file=folder / name, hint=hint
        ) from None
    with os.fdopen(handle, "r+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(1000).strip() or "another process"
            raise UserError(
                f"another process is writing here: {holder}",
                file=folder,
                hint="wait until it has ended, or give another output folder",
            ) from None
        words = {"host": socket.gethostname(), "pid": os.getpid(), "command": " ".join(sys.argv)[:500]}
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, (json.dumps(words) + "\n").encode(), 0)
        except OSError as err:  # the disk is full
            _name(err, folder / name, "")
            raise
        yield lock
