"""Run several processes of one module on this machine, so that they start and end together (`run_together`).

Each process gets the variables that torchrun would set (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), so the
module runs under torchrun or srun just as well. What differs is the end: when one process fails the others are ended
too, one message says why, and no process is left, whatever ends the launcher. SIGUSR1 is handed to the processes, and
where they end with the exit code REQUEUE, so does the launcher.

On several machines a launcher runs on each of them, and SPKV_NODES, SPKV_NODE and SPKV_HEAD tell them of each other:
the number of machines, the number of this one (from 0; without it SLURM_NODEID), and ADDRESS:PORT of the first one.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspkv.base.atomic import scratch_dir
from pyspkv.base.errors import ERROR_FILE, Shown, UserError
from pyspkv.base.processes import REQUEUE, Stopped, end_all, end_with_parent, wait

PATIENCE = 2.0  # seconds in which the others may say why, once one has failed without a word
TO_TERMINATE = 5.0  # and from SIGTERM to SIGKILL
TO_SAVE = 60.0  # the same where the launcher itself was asked to end: for a step and a checkpoint
SETTLE = 2.0  # before a launcher of several ends with REQUEUE: srun ends the others as soon as one has failed


@dataclass
class Nodes:
    """The machines of one run: how many, which of them this is (from 0), and where the first one listens."""

    number: int = 1
    this: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @classmethod
    def from_environment(cls) -> "Nodes":
        """UserError: the variables are there and wrong."""
        number = os.environ.get("SPKV_NODES", "1")
        if number == "1":
            return cls()
        this = os.environ.get("SPKV_NODE") or os.environ.get("SLURM_NODEID", "")
        address, _, port = os.environ.get("SPKV_HEAD", "").rpartition(":")
        if not (number.isdecimal() and this.isdecimal() and int(this) < int(number)):
            raise UserError(f"SPKV_NODES={number}, SPKV_NODE={this}: this machine is none of them")
        if not (address and port.isdecimal()):
            raise UserError(
                "SPKV_HEAD is not ADDRESS:PORT of the first machine",
                hint="utils/slurm.sh --num-nodes sets it",
            )
        return cls(int(number), int(this), address, int(port))


def environment(rank: int, nproc: int, nodes: Nodes, errors: Path) -> dict[str, str]:
    """Of process `rank` of the `nproc` on this machine."""
    env = {
        **os.environ,
        "RANK": str(nodes.this * nproc + rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nodes.number * nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": nodes.address,
        "MASTER_PORT": str(nodes.port),
        ERROR_FILE: str(errors / str(rank)),
    }
    if nproc * nodes.number > 1:  # as torchrun has it; a sum over more threads has other digits
        env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see bin.train
    if nodes.number == 1 and os.path.exists("/sys/class/net/lo"):  # gloo would look up this machine's name
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env


ALONE = Nodes()


def send(ranks: Sequence[subprocess.Popen], number: int) -> None:
    for process in ranks:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def left_by(codes: list[int | None], errors: Path) -> dict[int, str]:
    """Rank -> message of each failed process that left one.

    An empty message means that another process failed.
    """
    files = {rank: errors / str(rank) for rank, code in enumerate(codes) if code}
    return {
        rank: file.read_text(encoding="utf-8", errors="surrogateescape")
        for rank, file in files.items()
        if file.exists()
    }


def why(codes: list[int | None], errors: Path, nodes: Nodes = ALONE) -> str | None:
    """What to print of processes that ended by themselves with these codes; None where that has been said."""

    def name(rank: int) -> str:
        return f"process {nodes.this * len(codes) + rank + 1} of {nodes.number * len(codes)}"

    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            hint = "\n  hint: out of memory? lower batch_size or cache_mb" if code == -signal.SIGKILL else ""
            return f"{name(rank)} was killed by signal {-code}; see above{hint}"
    texts = left_by(codes, errors)
    if said := [text for text in texts.values() if text]:
        # An internal error may be a consequence of what another process reports.
        return min(said, key=lambda text: text.startswith("internal error"))
    failed = [rank for rank, code in enumerate(codes) if code and rank not in texts]
    if not failed and nodes.number > 1:
        return "a process on another machine has ended; see what it said"
    if not failed:
        return "the processes of this run lost each other\n  hint: run it again; GLOO_SOCKET_IFNAME names the network"
    if failed[0] + nodes.this == 0:
        return None  # by what it printed itself
    return f"{name(failed[0])} ended with exit code {codes[failed[0]]}; see above"


def start(first: bool, command: list[str], env: dict[str, str]) -> subprocess.Popen:
    # The first speaks for all.
    own = None if first else subprocess.DEVNULL
    return subprocess.Popen(command, env=env, preexec_fn=end_with_parent, stdin=own, stdout=own)


def until_one_fails(ranks: list[subprocess.Popen], errors: Path, stopped: Stopped) -> list[int | None]:
    """Wait until one process has failed and its reason is known, all have ended, or a signal came.

    Returns the exit codes, None for a process that still runs.
    """

    def codes() -> list[int | None]:
        return [r.poll() for r in ranks]

    def is_known() -> bool:
        return any((code or 0) < 0 for code in codes()) or any(left_by(codes(), errors).values())

    def is_asked() -> bool:  # the others are on their way to the same end
        return {code for code in codes() if code is not None} == {REQUEUE}

    wait(ranks, float("inf"), lambda: stopped.signal or any(codes()))
    if is_asked():
        wait(ranks, TO_SAVE, lambda: stopped.signal or not is_asked())
    elif any(codes()):
        wait(ranks, PATIENCE, lambda: stopped.signal or is_known())
    return codes()


def run_together(module: str, args: Sequence[str], nproc: int) -> int:
    """Run `python -m MODULE ARGS` in `nproc` processes; 0, REQUEUE, or 1 where one failed and has said why itself.

    UserError: one failed, with what it left for its launcher to say. A signal that asks the launcher to end ends all
    processes, and then the launcher by that signal, unless they end with REQUEUE.
    """
    nodes, stopped = Nodes.from_environment(), Stopped()
    ranks: list[subprocess.Popen] = []
    signal.signal(signal.SIGUSR1, lambda number, _: send(ranks, number))
    command = [sys.executable, "-u", "-m", module, *args]
    # A port that is bound but not listened on is given to nobody else; SO_REUSEADDR lets rank 0 listen on it.
    with scratch_dir(Path(tempfile.gettempdir(), "spkv-launch")) as errors, socket.socket() as held:
        if nodes.number == 1:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            nodes.port = held.getsockname()[1]
        try:
            for rank in range(nproc):
                first = rank + nodes.this == 0
                ranks.append(start(first, command, environment(rank, nproc, nodes, errors)))
            codes = until_one_fails(ranks, errors, stopped)
        finally:
            end_all(ranks, TO_SAVE if stopped.signal == signal.SIGTERM else TO_TERMINATE)
        text = why(codes, errors, nodes) if not stopped.signal and any(codes) else None
    ends = {r.returncode for r in ranks}
    if ends == {REQUEUE} or -signal.SIGUSR1 in ends:  # the latter: one was asked before it could listen
        time.sleep(SETTLE if nodes.number > 1 else 0.0)
        return REQUEUE
    if stopped.signal:  # end as the signal would have it, for whoever waits
        signal.signal(stopped.signal, signal.SIG_DFL)
        os.kill(os.getpid(), stopped.signal)
    if text:
        raise UserError(Shown(text))
    return int(any(codes))
