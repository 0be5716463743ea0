"""Processes that belong together: children that end with their parent, and one error message out of several.

Light on purpose (no torch): the launcher of `pyspkv.bin.launch` imports it, and so do the processes that it starts.
"""

import ctypes
import os
import signal
from collections.abc import Callable

from pyspkv.errors import UserError

ERROR_FILE = "SPKV_ERROR_FILE"  # where a launched process leaves its message; the launcher prints one of them


class PeerLost(UserError):
    """A collective failed because another process of the run is gone: a consequence, whose cause that one tells."""

    def __init__(self):
        super().__init__("another process of this training has ended; see what it said")


def end_with_parent() -> None:
    """Called first in a child: the kernel kills it as soon as its parent is gone, even by `kill -9` (Linux)."""
    pr_set_pdeathsig, parent = 1, os.getppid()
    call = getattr(ctypes.CDLL(None), "prctl", None)
    if call is not None:
        call(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)


def is_first() -> bool:
    """Whether this process is the one that speaks for all, of those that a launcher started (RANK) or by itself."""
    return os.environ.get("RANK", "0") == "0"


def reported(main: Callable[[], int | None]) -> Callable[[], int | None]:
    """`main` whose user errors go to the launcher that started this process; without a launcher, as it is."""

    def inner() -> int | None:
        file = os.environ.get(ERROR_FILE)
        try:
            return main()
        except BrokenPipeError:
            raise
        except (UserError, OSError) as err:
            if not file or os.environ.get("SPKV_TRACEBACK"):
                raise
            plain = isinstance(err, UserError) or not err.filename
            leave(
                file,
                "" if isinstance(err, PeerLost) else str(err) if plain else f"{err.filename}: {err.strerror}",
            )
            return 1

    return inner


def leave(file: str, text: str) -> None:
    """Write a message for the launcher, whole or not at all; an empty one says that another process is the cause."""
    with open(f"{file}.part", "w", encoding="utf-8", errors="surrogateescape") as f:
        f.write(text)
    os.replace(f"{file}.part", file)
