"""Processes that belong together: children that end with their parent, and who of them speaks.

Light on purpose (no torch): the launcher of `pyspkv.bin.launch` imports it, and so do the processes that it starts.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

from pyspkv.base.errors import UserError

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the exit code of a training that was asked to end and goes on if run again
ASKS_TO_END = (
    signal.SIGTERM,
    signal.SIGUSR1,
)  # SLURM sends the second one by --signal, some time before the limit


class PeerLost(UserError):
    """A collective failed because another process has ended; that process reports the cause."""

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


class Stopped:
    """The first signal that asks this process to end; one that it was started to ignore stays ignored (nohup)."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, _) -> None:
        self.signal = self.signal or number


class Asked:
    """Within it, SIGTERM and SIGUSR1 do not end this process: `signal` is the number of the first that came, or 0.

    Outside the main thread Python allows no handlers, and the signals do what they did before.
    """

    def __init__(self):
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Asked":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in ASKS_TO_END}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        self.signal = self.signal or number

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name if self.signal else "a signal to another process"


def wait(processes: Sequence[subprocess.Popen], seconds: float, until=lambda: False) -> bool:
    """Whether all have ended, after this many seconds or once `until()` is true."""
    end = time.monotonic() + seconds
    while (
        not (over := all(p.poll() is not None for p in processes)) and time.monotonic() < end and not until()
    ):
        time.sleep(0.02)
    return over


def end_all(processes: Sequence[subprocess.Popen], patience: float, groups: bool = False) -> None:
    """End them by SIGTERM, after `patience` seconds by SIGKILL; with `groups` also all others in their groups."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, float("inf"))):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number) if groups else process.send_signal(number)
        if wait(processes, seconds) and not groups:
            return
