"""Processes that belong together: children that end with their parent, and who of them speaks.

Light on purpose (no torch): the launcher of `pyspkv.bin.launch` imports it, and so do the processes that it starts.
"""

import ctypes
import os
import signal

from pyspkv.base.errors import UserError


class PeerLost(UserError):
    """A collective failed because another process of the run is gone: a consequence, whose cause that one tells."""

    consequence = True

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
