"""Run several processes of one module on this machine, so that they start and end together (`run_together`).

Each process gets the variables that torchrun would set (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR,
MASTER_PORT), so the module also runs under torchrun or srun. The difference lies in failures: when one
process fails, the launcher ends the others and prints one message with the cause. No process survives the
launcher, however it ends.
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

PATIENCE = 2.0  # seconds to wait for a message of the other processes after one has failed without any
TO_TERMINATE = 5.0  # seconds from SIGTERM to SIGKILL


def environment(rank: int, nproc: int, port: int, errors: Path) -> dict[str, str]:
    """Environment of one process. `errors` is the folder for error messages, one file a rank."""
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
    if nproc > 1:  # as torchrun does; with more threads sums have other digits
        env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see bin.train
    if os.path.exists("/sys/class/net/lo"):  # otherwise gloo looks up the address of this machine's host name
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env


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


def why(codes: list[int | None], errors: Path) -> str | None:
    """The message for processes that ended by themselves with these codes; None if rank 0 has printed it."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            hint = "\n  hint: out of memory? lower batch_size or cache_mb" if code == -signal.SIGKILL else ""
            return f"process {rank + 1} of {len(codes)} was killed by signal {-code}; see above{hint}"
    texts = left_by(codes, errors)
    if said := [text for text in texts.values() if text]:
        # An internal error may be a consequence of what another process reports.
        return min(said, key=lambda text: text.startswith("internal error"))
    failed = [rank for rank, code in enumerate(codes) if code and rank not in texts]
    if not failed:
        return "the processes of this run lost each other\n  hint: run it again; GLOO_SOCKET_IFNAME names the network"
    if failed[0] == 0:
        return None
    return f"process {failed[0] + 1} of {len(codes)} ended with exit code {codes[failed[0]]}; see above"


def start(rank: int, command: list[str], env: dict[str, str]) -> subprocess.Popen:
    # Only rank 0 reads stdin and writes stdout.
    own = subprocess.DEVNULL if rank else None
    return subprocess.Popen(command, env=env, preexec_fn=end_with_parent, stdin=own, stdout=own)


def until_one_fails(ranks: list[subprocess.Popen], errors: Path, stopped: Stopped) -> list[int | None]:
    """Wait until one process has failed and its reason is known, all have ended, or a signal came.

    Returns the exit codes, None for a process that still runs.
    """

    def codes() -> list[int | None]:
        return [r.poll() for r in ranks]

    def is_known() -> bool:
        return any((code or 0) < 0 for code in codes()) or any(left_by(codes(), errors).values())

    wait(ranks, float("inf"), lambda: stopped.signal or any(codes()))
    if any(codes()):
        wait(ranks, PATIENCE, lambda: stopped.signal or is_known())
    return codes()


def run_together(module: str, args: Sequence[str], nproc: int) -> int:
    """Run `python -m MODULE ARGS` in `nproc` processes. Returns 0, or 1 when one failed and printed the
    reason itself.

    Raises UserError with the message of a process that failed. SIGTERM, SIGINT or SIGHUP to the launcher ends
    all processes, and then the launcher by the same signal.
    """
    stopped, ranks = Stopped(), []
    command = [sys.executable, "-u", "-m", module, *args]
    # A port that is bound but not listened on is given to nobody else; SO_REUSEADDR lets rank 0 listen on it.
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
    if stopped.signal:  # end by the same signal, so that the parent process sees it
        signal.signal(stopped.signal, signal.SIG_DFL)
        os.kill(os.getpid(), stopped.signal)
    if text:
        raise UserError(Shown(text))
    return int(any(codes))
