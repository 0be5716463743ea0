"""Run several processes of one module on this machine, so that they start and end together (`run_together`).

Each process gets the variables that torchrun would set (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), so the
module also runs under torchrun or srun. The difference lies in failures: when one process fails, the launcher ends the
others and prints one message with the cause. No process survives the launcher, however it ends. SIGUSR1 is passed on to
the processes. If they end with the exit code REQUEUE, so does the launcher.

A run on several machines has one launcher on each. SPKV_NODES is the number of machines, SPKV_NODE the number of this
one (from 0; by default SLURM_NODEID), and SPKV_HEAD is ADDRESS:PORT of the first one.
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

PATIENCE = 2.0  # seconds to wait for a message of the other processes after one has failed without any
TO_TERMINATE = 5.0  # seconds from SIGTERM to SIGKILL
TO_SAVE = 60.0  # the same if the launcher itself got SIGTERM: enough for a step and a checkpoint
SETTLE = (
    2.0  # seconds that one of several launchers waits before it ends with REQUEUE: srun then ends the others
)


@dataclass
class Nodes:
    """The machines of one run: how many, which of them this is (from 0), and where the first one listens."""

    number: int = 1
    this: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @classmethod
    def from_environment(cls) -> "Nodes":
        """Read SPKV_NODES, SPKV_NODE and SPKV_HEAD. UserError: a value is wrong."""
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
                hint="the job runner slurm.sh sets it",
            )
        return cls(int(number), int(this), address, int(port))


def environment(rank: int, nproc: int, nodes: Nodes, errors: Path) -> dict[str, str]:
    """Environment of process `rank` of `nproc` on this machine.

    `errors` is the folder for error messages, one file a rank.
    """
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
    if nproc * nodes.number > 1:  # as torchrun does; with more threads sums have other digits
        env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see bin.train
    if nodes.number == 1 and os.path.exists("/sys/class/net/lo"):
        # otherwise gloo looks up the address of this machine's host name
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
    """The message for processes that ended by themselves with these codes; None if rank 0 has printed it."""

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
        return None
    return f"{name(failed[0])} ended with exit code {codes[failed[0]]}; see above"


def start(first: bool, command: list[str], env: dict[str, str]) -> subprocess.Popen:
    # Only the first process of all reads stdin and writes stdout.
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

    def requeues() -> bool:  # the others are about to end with the same code
        return {code for code in codes() if code is not None} == {REQUEUE}

    wait(ranks, float("inf"), lambda: stopped.signal or any(codes()))
    if requeues():
        wait(ranks, TO_SAVE, lambda: stopped.signal or not requeues())
    elif any(codes()):
        wait(ranks, PATIENCE, lambda: stopped.signal or is_known())
    return codes()


def run_together(module: str, args: Sequence[str], nproc: int) -> int:
    """Run `python -m MODULE ARGS` in `nproc` processes.

    Returns 0; REQUEUE if a signal stopped them in time; or 1 when one failed and printed the reason itself. Raises
    UserError with the message of a process that failed. SIGTERM, SIGINT or SIGHUP to the launcher ends all processes,
    and then the launcher by the same signal, unless they end with REQUEUE.
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
    if ends == {REQUEUE} or -signal.SIGUSR1 in ends:  # SIGUSR1 came before one had its handler
        time.sleep(SETTLE if nodes.number > 1 else 0.0)
        return REQUEUE
    if stopped.signal:  # end by the same signal, so that the parent process sees it
        signal.signal(stopped.signal, signal.SIG_DFL)
        os.kill(os.getpid(), stopped.signal)
    if text:
        raise UserError(Shown(text))
    return int(any(codes))
