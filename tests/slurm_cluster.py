"""A real SLURM of a few nodes on this machine, in a folder of its own, for tests and benchmarks/slurm.py.

The daemons come from Debian (slurmctld, slurmd, munged). The nodes claim more CPUs than the machine has, so
that sleeping jobs run side by side. Everything listens on 127.0.0.1 only.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # folders with the daemons

CONF = """\
ClusterName=spkv
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={dir}/run/munge.sock
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={port}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd.%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
SlurmdTimeout=5
KillWait=2
ReturnToService=2
MaxArraySize={max_array}
GresTypes=gpu
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE State=UP
PartitionName=main Default=YES PreemptMode=OFF
PartitionName=cancel PreemptMode=CANCEL
PartitionName=requeue PreemptMode=REQUEUE
PartitionName=urgent PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Programs that are not installed here."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]


def wait_until(holds: Callable[[], object], seconds: float = 30.0, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_ports(number: int) -> list[int]:
    held = [socket.socket() for _ in range(number)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Cluster:
    """A cluster of `nodes` nodes n1, n2, ... with `cpus` claimed CPUs and 2 claimed GPUs each."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 8, max_array: int = 1001):
        self.dir, self.nodes = folder, [f"n{i + 1}" for i in range(nodes)]
        for name in ("run", "log", "state", *(f"spool/{n}" for n in self.nodes)):
            (folder / name).mkdir(parents=True)
        (folder / "munge.key").touch(0o600)
        (folder / "munge.key").write_bytes(os.urandom(64))
        host, (port, *ports) = socket.gethostname().partition(".")[0], free_ports(nodes + 1)
        what = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={1000 * cpus} Gres=gpu:2"
        lines = "\n".join(f"NodeName={n} Port={p} {what}" for n, p in zip(self.nodes, ports, strict=True))
        user = subprocess.check_output(["id", "-un"], text=True).strip()
        self.conf = folder / "slurm.conf"
        self.conf.write_text(
            CONF.format(host=host, user=user, dir=folder, port=port, nodes=lines, max_array=max_array)
        )
        (folder / "gres.conf").write_text("Name=gpu File=/dev/tty[0-1]\n")
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.conf)}

    def call(self, *words) -> str:
        done = subprocess.run(
            [str(w) for w in words], env=self.env, cwd="/", capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    # -- the daemons
    def start(self) -> "Cluster":
        d = self.dir
        files = {"key": "munge.key", "pid": "run/munged.pid", "log": "log/munged.log", "seed": "seed"}
        words = [f"--{name}-file={d}/{file}" for name, file in files.items()]
        self.call("munged", "--force", f"--socket={d}/run/munge.sock", *words)
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.wait_idle()
        return self

    def start_controller(self) -> None:
        self.call("slurmctld")

    def start_node(self, node: str) -> None:
        self.call("slurmd", "-N", node)

    def pid(self, name: str) -> int | None:
        file = self.dir / "run" / f"{name}.pid"
        return int(file.read_text()) if file.exists() and file.read_text().strip() else None

    def end(self, name: str, how: int = signal.SIGTERM) -> None:
        """End a daemon and wait until it is gone."""
        if pid := self.pid(name):
            try:
                os.kill(pid, how)
                wait_until(lambda: not is_alive(pid), 20, f"{name} to end")
            except ProcessLookupError:
                pass
            (self.dir / "run" / f"{name}.pid").unlink(missing_ok=True)

    def kill_node(self, node: str) -> None:
        """Kill slurmd, the daemons of job steps and every job of a node at once.

        The system closes their connections.
        """
        self.end(f"slurmd.{node}", signal.SIGKILL)
        # at once, so that no process can react to the death of another
        for how in (signal.SIGSTOP, signal.SIGKILL):
            self._signal(node, how)

    def silence_node(self, node: str) -> None:
        """Stop everything on a node, as in a power failure: its connections stay open, and nobody answers."""
        if pid := self.pid(f"slurmd.{node}"):
            os.kill(pid, signal.SIGSTOP)
        self._signal(node, signal.SIGSTOP)

    def _signal(self, node: str, how: int) -> None:
        for pid in self.jobs_of(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    def jobs_of(self, node: str) -> list[int]:
        """The processes of jobs on a node, and the daemons that supervise them."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                env = (entry / "environ").read_bytes().split(b"\0")
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            ours = f"SLURM_CONF={self.conf}".encode() in env
            stepd = line.startswith(b"slurmstepd") and self._holds(entry, node)
            if stepd or (ours and f"SLURMD_NODENAME={node}".encode() in env):
                found.append(int(entry.name))
        return sorted(found)

    def _holds(self, entry: Path, node: str) -> bool:
        try:
            files = [os.readlink(fd) for fd in (entry / "fd").iterdir()]
        except OSError:
            return False
        return any(
            f.startswith((f"{self.dir}/spool/{node}/", f"{self.dir}/log/slurmd.{node}.")) for f in files
        )

    def wait_idle(self, seconds: float = 30) -> None:
        def idle() -> bool:
            out = subprocess.run(["sinfo", "-h", "-o", "%T"], env=self.env, capture_output=True, text=True)
            if (
                "drain" in out.stdout
            ):  # a killed controller may use a job's id again, and then drains the node
                words = ["scontrol", "update", f"NodeName={','.join(self.nodes)}", "State=RESUME"]
                subprocess.run(words, env=self.env, capture_output=True)
            return set(out.stdout.split()) == {"idle"}

        wait_until(idle, seconds, "every node to be idle")

    def queue(self) -> list[str]:
        """Lines `job state node` of every task that waits or runs."""
        return self.call("squeue", "-h", "-r", "-o", "%i %T %N").splitlines()

    def stop(self) -> None:
        if self.pid("slurmctld"):
            subprocess.run(["scancel", f"--user={os.getuid()}"], env=self.env, capture_output=True)
            time.sleep(0.2)
        for node in self.nodes:
            self.end(f"slurmd.{node}")
            for pid in self.jobs_of(node):
                os.kill(pid, signal.SIGKILL)
        self.end("slurmctld")
        self.end("munged")
