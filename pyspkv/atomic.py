"""Files and folders that appear whole or not at all, so a killed run leaves nothing half-written."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pyspkv.errors import UserError


def _mode(default: int) -> int:
    mask = os.umask(0)
    os.umask(mask)
    return default & ~mask


def _name(err: BaseException, path: Path) -> None:
    """Say which file the error is about: a full disk names none."""
    if isinstance(err, OSError) and err.errno is not None and err.filename is None:
        err.filename = str(path)


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str = "w") -> Iterator:
    """Open a temporary file beside `path`; it replaces `path` when the block ends without an error.

    A link stays and what it points to is replaced; a device or pipe (/dev/stdout) is written to as it is.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, mode) as f:
            yield f
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(tmp, _mode(0o666))
        os.replace(tmp, path)
    except BaseException as err:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(tmp)
        _name(err, path)
        raise


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step (Linux renameat2 with RENAME_EXCHANGE); False where that is not to be had."""
    at_cwd, rename_exchange = -100, 2
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    if code in (errno.EBUSY, errno.EXDEV):
        why = "is a mount point or the current folder, and cannot be exchanged for a new one"
        raise UserError(why, file=b, mend="give a folder below it")
    raise OSError(code, os.strerror(code), str(b))


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes `path`'s place when the block ends without an error.

    An existing folder is exchanged for the new one in one step. On a file system that cannot, it is moved to
    `.<name>.old` first, so that at every moment a whole folder stands at one of the two names.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield tmp
        os.chmod(tmp, _mode(0o777))
        if not path.exists():
            os.rename(tmp, path)
        elif not _exchange(tmp, path):
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
            os.rename(tmp, path)
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(tmp, ignore_errors=True)  # after an exchange, the old folder
    except BaseException as err:
        shutil.rmtree(tmp, ignore_errors=True)
        _name(err, path)
        raise


@contextlib.contextmanager
def folder_lock(folder: str | Path, name: str = ".lock") -> Iterator:
    """Hold `folder/name` so that no other process writes into `folder`; yields the open lock file.

    The kernel frees the lock when the process ends, however it ends; what the file holds (host, process, command) is
    for the message alone. UserError: another process holds the lock.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(1000).strip() or "another process"
            raise UserError(
                f"another process is writing here: {holder}",
                file=folder,
                mend="wait until it has ended, or give another output folder",
            ) from None
        lock.truncate(0)
        lock.write(
            json.dumps(
                {"host": socket.gethostname(), "pid": os.getpid(), "command": " ".join(sys.argv)[:500]}
            )
            + "\n"
        )
        lock.flush()
        yield lock
