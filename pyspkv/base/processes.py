"""Groups of processes: children that end with their parent, signals, and the process that prints for all.

This module must not import torch: the launcher (`pyspkv.bin.launch`) and the processes that it starts import
it.
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

# Exit code of a training that a signal stopped in time; run again, it goes on. EX_TEMPFAIL of sysexits.h.
REQUEUE = 75
# Signals that stop a training in time. SLURM sends SIGUSR1 (--signal) some seconds before the time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class PeerLost(UserError):
    """A collective failed because another process has ended; that other process reports the cause."""

    consequence = True

    def __init__(self):
        super().__init__("another process of this training has ended; see its message")


def end_with_parent() -> None:
    """Make the kernel kill this child when its parent ends, even by `kill -9` (Linux).

    Call it first in the child.
    """
    pr_set_pdeathsig, parent = 1, os.getppid()
    call = getattr(ctypes.CDLL(None), "prctl", None)
    if call is not None:
        call(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the call
            os._exit(1)


def is_first() -> bool:
    """True for the process that prints for all: rank 0 of a launch, or a process that runs alone."""
    return os.environ.get("RANK", "0") == "0"


class _Recorder:
    """Records the number of the first signal that came; 0: none."""

    signal = 0

    def _note(self, number: int, _) -> None:
        self.signal = self.signal or number


class Stopped(_Recorder):
    """Records the first signal that would end this process.

    Signals that are ignored (nohup) stay ignored.
    """

    def __init__(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)


class StopSignal(_Recorder):
    """Context in which the STOP_SIGNALS are recorded and do not end this process.

    Outside the main thread Python allows no handlers, and the signals do what they did before.
    """

    def __init__(self):
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name if self.signal else "a signal to another process"


def wait(processes: Sequence[subprocess.Popen], seconds: float, until=lambda: False) -> bool:
    """Wait until all processes have ended, `seconds` have passed, or `until()` is true.

    True when all have ended.
    """
    end = time.monotonic() + seconds
    while (
        not (over := all(p.poll() is not None for p in processes)) and time.monotonic() < end and not until()
    ):
        time.sleep(0.02)
    return over


def end_all(processes: Sequence[subprocess.Popen], patience: float, groups: bool = False) -> None:
    """End processes by SIGTERM, and after `patience` seconds by SIGKILL; with `groups` their groups too."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, float("inf"))):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number) if groups else process.send_signal(number)
        if wait(processes, seconds) and not groups:
            return
