"""Run several processes of one module on this machine; they start and end together (`run_together`).

Each process gets the variables that torchrun would set (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), so the
module runs under torchrun or srun just as well. What differs is the end: when one process fails the others are ended
too, one message says why, and no process is left, whatever ends the launcher.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pyspkv.base.atomic import scratch_dir
from pyspkv.base.errors import ERROR_FILE, Shown, UserError
from pyspkv.base.processes import Stopped, end_all, end_with_parent, wait

PATIENCE = 2.0  # seconds in which the others may say why, once one has failed without a word
TO_TERMINATE = 5.0  # and from SIGTERM to SIGKILL


def environment(rank: int, nproc: int, port: int, errors: Path) -> dict[str, str]:
    world = str(nproc)
    env = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        ERROR_FILE: str(errors / str(rank)),
    }
    if nproc > 1:  # as torchrun has it; a sum over more threads has other digits
        env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see bin.train
    if os.path.exists("/sys/class/net/lo"):  # gloo would look for the address of this machine's name
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env


def left_by(codes: list[int | None], errors: Path) -> dict[int, str]:
    """Messages of the processes that failed and left one; an empty one came of another's end."""
    files = {rank: errors / str(rank) for rank, code in enumerate(codes) if code}
    return {
        rank: file.read_text(encoding="utf-8", errors="surrogateescape")
        for rank, file in files.items()
        if file.exists()
    }


def why(codes: list[int | None], errors: Path) -> str | None:
    """What to print of processes that ended by themselves with these codes; None where that has been said."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            hint = "\n  hint: out of memory? lower batch_size or cache_mb" if code == -signal.SIGKILL else ""
            return f"process {rank + 1} of {len(codes)} was killed by signal {-code}; see above{hint}"
    texts = left_by(codes, errors)
    if said := [text for text in texts.values() if text]:
        return min(said, key=lambda text: text.startswith("internal error"))  # perhaps of what the other told
    failed = [rank for rank, code in enumerate(codes) if code and rank not in texts]
    if not failed:
        return "the processes of this run lost each other\n  hint: run it again; GLOO_SOCKET_IFNAME names the network"
    if failed[0] == 0:
        return None  # by what it printed itself
    return f"process {failed[0] + 1} of {len(codes)} ended with exit code {codes[failed[0]]}; see above"


def start(rank: int, command: list[str], env: dict[str, str]) -> subprocess.Popen:
    # The first speaks for all.
    own = subprocess.DEVNULL if rank else None
    return subprocess.Popen(command, env=env, preexec_fn=end_with_parent, stdin=own, stdout=own)


def until_one_fails(ranks: list[subprocess.Popen], errors: Path, stopped: Stopped) -> list[int | None]:
    """Exit codes once one has failed and it is known why, all have ended, or a signal came; None: it still runs."""

    def codes() -> list[int | None]:
        return [r.poll() for r in ranks]

    def is_known() -> bool:
        return any((code or 0) < 0 for code in codes()) or any(left_by(codes(), errors).values())

    wait(ranks, float("inf"), lambda: stopped.signal or any(codes()))
    if any(codes()):
        wait(ranks, PATIENCE, lambda: stopped.signal or is_known())
    return codes()


def run_together(module: str, args: Sequence[str], nproc: int) -> int:
    """Run `python -m MODULE ARGS` in `nproc` processes; 0, or 1 where one failed and has said why itself.

    UserError: one failed, with what it left for its launcher to say. A signal that asks the launcher to end ends all
    processes, and then the launcher by that signal.
    """
    stopped, ranks = Stopped(), []
    command = [sys.executable, "-u", "-m", module, *args]
    # Bound and not listened at, the port is given to nobody else; the first process may listen there, by SO_REUSEADDR.
    with scratch_dir(Path(tempfile.gettempdir(), "spkv-launch")) as errors, socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        try:
            for rank in range(nproc):
                ranks.append(start(rank, command, environment(rank, nproc, port, errors)))
            codes = until_one_fails(ranks, errors, stopped)
        finally:
            end_all(ranks, TO_TERMINATE)
        text = why(codes, errors) if not stopped.signal and any(codes) else None
    if stopped.signal:  # end as the signal would have it, for whoever waits
        signal.signal(stopped.signal, signal.SIG_DFL)
        os.kill(os.getpid(), stopped.signal)
    if text:
        raise UserError(Shown(text))
    return int(any(codes))
