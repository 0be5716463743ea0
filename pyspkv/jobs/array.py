"""Run numbered jobs as SLURM arrays until each has written its done-file; the core of slurm.sh.

The state is in the folder .slurm/<name of the log> next to the logs. It has a folder for every submitted array (input
of slurm_task.sh, and the job id in `job`), and the files done.<number>, failed.<number> and again.<number> that the
tasks write. A task counts as done if its done-file holds the hash of its command and no input is newer. The inputs are
the files and folders that the command names, except those that follow an option for outputs (OUTPUT). When all tasks
are done the state is removed, so that the next call runs everything again, as on a single machine. If a runner is
killed its arrays go on, and the next runner takes them over.
"""

import contextlib
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError, printable
from pyspkv.jobs import engine
from pyspkv.jobs.call import Call, Config

TRIES = 4  # attempts for a task that SLURM loses: its node fails, it is preempted, its time is up
# Seconds between two questions to the controller. A done-file may also appear so late after its task has left
# the queue, because of NFS.
LOOK = float(os.environ.get("SPKV_SLURM_LOOK") or 5.0)
OUTPUT = re.compile(r"--(exp|out|out-.*|.*-out)")  # options whose value a command writes
FINAL = {"CANCELLED": "somebody cancelled it", "OUT_OF_MEMORY": "it ran out of memory: raise --mem"}
WHAT = {
    "HELD": "no node could start it",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "it was preempted",
    "TIMEOUT": "its time was up",
}
TASK = str(Path(__file__).resolve().parents[2] / "utils/slurm_task.sh")


@dataclass
class Task:
    """State of one numbered job."""

    hash: str
    attempt: int = 0
    job: tuple[str, int] | None = None  # array and index of the latest attempt
    gone: float = 0.0  # since when (monotonic time) it is neither in the queue nor done; 0: it is not
    why: str = ""  # reason if it has failed
    lost: int = 0  # attempts that SLURM has lost, or that were stopped without a new step
    step: str = ""  # step at which a signal has stopped the latest attempt of a training


def say(text: str) -> None:
    """Print a line to stderr."""
    with contextlib.suppress(OSError):
        print(f"slurm.sh: {printable(text)}", file=sys.stderr, flush=True)


def start_log(log: Path) -> None:
    """Make the folder of a log. If the log says that its job succeeded, empty it; else the next job appends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError), open(log, "r+b") as f:
        f.seek(max(f.seek(0, os.SEEK_END) - 200, 0))
        if re.search(rb"# Ended \(code 0\) at .*\n\Z", f.read()):
            f.truncate(0)


def last_change(path: str) -> float:
    """Time of the last change to a file, or to a folder or any of its entries; 0 if it does not exist."""
    latest = 0.0
    with contextlib.suppress(OSError, ValueError):
        latest = os.stat(path).st_mtime
        with os.scandir(path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # a link without a target
                    latest = max(latest, 0.0 if entry.name.startswith(".") else entry.stat().st_mtime)
    return latest


class Array:
    """The jobs of one call. `run` returns when all have ended; `stop` cancels them."""

    def __init__(self, call: Call, config: Config):
        self.call, self.config, self.state = call, config, call.state()
        self.tasks = {n: Task(call.hash_of(n)) for n in call.numbers}
        self.left, self.looked, self.away = set(self.tasks), 0.0, False
        self.jobs: dict[str, str] = {}  # id -> comment
        self.inputs = [
            word
            for before, word in zip(["", *call.command], call.command, strict=False)
            if word and len(word) < 4096 and "\n" not in word and not OUTPUT.fullmatch(before)
        ]
        options = {"name": self.state.name, **call.options}
        options["name"] = "".join(c if c.isalnum() or c in "._-" else "_" for c in options["name"])[:64]
        self.env = config.environment(os.environ, options)
        words = config.submit(options)
        self.words = [*words, "--open-mode=append", "--output=out.%a", "--kill-on-invalid-dep=yes"]
        # SBATCH_* variables may set account and partition. SLURM_* variables of a job around us are not
        # passed on.
        self.sbatch_env = {k: v for k, v in os.environ.items() if k.startswith("SBATCH_")} | self.env

    # -- the state in files
    def newest(self, number: int) -> float:
        """Time of the last change to any input of a task."""
        words = {w.replace(self.call.name, str(number)) if self.call.name else w for w in self.inputs}
        words |= {w.removesuffix("@best").removesuffix("@last") for w in words}  # a model is DIR or DIR@best
        return max((last_change(os.path.join(self.call.cwd, w)) for w in words), default=0.0)

    def read(self, kind: str, number: int) -> list[str]:
        """Content of such a file of a task (hash, attempt, exit code); [] when it does not exist."""
        try:
            return (self.state / f"{kind}.{number}").read_text().split()
        except OSError:
            return []

    def adopt(self) -> None:
        """Take over the queued tasks of a runner that was killed; end those with another command or old inputs."""
        arrays = {folder: self.job_of(folder) for folder in self.folders()}
        jobs = {job: self.token(folder) for folder, job in arrays.items() if job}
        queued = self.ask(jobs)
        wrong = []
        for folder, job in arrays.items():
            for index, line in enumerate((folder / "tasks").read_text().splitlines() if job else ()):
                number, made, attempt = line.split()
                task, submitted = self.tasks.get(int(number)), (folder / "tasks").stat().st_mtime
                if (job, index) not in queued:
                    continue
                if task and task.hash == made and self.newest(int(number)) <= submitted:
                    task.job, task.attempt = (job, index), int(attempt)
                else:
                    wrong.append((job, index))
        if wrong:
            say("ending the tasks of another command or of older inputs")
            engine.cancel(wrong)
            while self.ask(jobs).keys() & set(wrong):  # one that still saves its state holds its lock
                time.sleep(min(LOOK, 1.0))
        self.jobs = {t.job[0]: jobs[t.job[0]] for t in self.tasks.values() if t.job}
        if self.jobs:
            say(f"resuming job {', '.join(self.jobs)}")
        for folder, job in arrays.items():
            if job not in self.jobs:
                shutil.rmtree(folder, ignore_errors=True)
        self.skip_done()

    def skip_done(self) -> None:
        """Take the tasks that are done from `left`; forget what earlier calls say about the others."""
        for number in (n for n, task in self.tasks.items() if not task.job):
            (self.state / f"failed.{number}").unlink(missing_ok=True)
            done, made = self.state / f"done.{number}", self.read("done", number)[:1]
            if made == [self.tasks[number].hash] and done.stat().st_mtime >= self.newest(number):
                self.left.discard(number)
            else:
                done.unlink(missing_ok=True)

    def ask(self, jobs: dict[str, str]) -> dict[tuple[str, int], tuple[str, str]]:
        """The queue of these jobs, once the controller answers."""
        while (queued := engine.queue(jobs)) is None:
            self.wait_for_controller()
        return queued

    def folders(self) -> list[Path]:
        """Folders of the submitted arrays."""
        return sorted(p for p in self.state.iterdir() if p.is_dir())

    def job_of(self, folder: Path) -> str:
        """Job id of an array; "" if it was not submitted. A killed runner may not have written the id yet."""
        with contextlib.suppress(FileNotFoundError):
            if written := (folder / "job").read_text():
                return written
        while (job := engine.find(self.token(folder))) is None:
            self.wait_for_controller()
        return job

    def note(self, folder: Path, job: str) -> None:
        """Write the job id of an array, so that the next runner finds it."""
        with atomic_file(folder / "job") as f:
            f.write(job)

    def collect(self) -> None:
        """Mark the tasks that have written a done- or failed-file as finished."""
        names = os.listdir(self.state)
        for kind in ("done", "failed"):
            for number in (
                int(n.partition(".")[2]) for n in names if n.startswith(f"{kind}.") and n.count(".") == 1
            ):
                if number in self.left and (found := self.read(kind, number)):
                    task = self.tasks[number]
                    if found[0] != task.hash or (kind == "failed" and found[1] != str(task.attempt)):
                        continue  # written by an earlier attempt
                    task.why = "" if kind == "done" else f"exit code {found[2]}"
                    self.left.discard(number)

    # -- submitting and asking SLURM
    def token(self, folder: Path) -> str:
        """A comment that identifies an array in SLURM's queue."""
        return f"spkv:{folder.name}:{folder.stat().st_ino}"

    def submit(self, numbers: list[int], test: bool = False) -> None:
        """Submit these tasks, as one array or as several if SLURM's limit requires it.

        test: ask SLURM before whether it would refuse them. It would also refuse what needs nodes that are down at
        the moment, so this is for the beginning: tasks that are submitted again wait for such nodes.
        """
        if not numbers:
            return
        size, most = engine.array_limit(), int(self.call.options.get("max_jobs_run", "0"))
        for number in numbers:
            self.tasks[number].job = None
        for at in range(0, len(numbers), size):
            some = numbers[at : at + size]
            folder = self.folder(some)
            words = [*self.words, f"--chdir={folder}", f"--array=0-{len(some) - 1}"]
            if most:  # %N limits one array only, so each array waits for the one before
                words[-1] += f"%{most}"
                if under_way := [int(t.job[0]) for n, t in self.tasks.items() if n in self.left and t.job]:
                    words.append(f"--dependency=afterany:{max(under_way)}")
            script = [TASK, str(folder)]
            try:
                if test and at == 0:
                    engine.test(words, script, self.sbatch_env, folder)
                job = engine.submit(words, script, self.sbatch_env, folder, self.token(folder))
            except UserError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self.jobs[job] = self.token(folder)
            self.note(folder, job)
            for index, number in enumerate(some):
                self.tasks[number].job, self.tasks[number].gone = (job, index), 0.0
        self.looked = time.monotonic()
        say(f"job {job}: {len(numbers)} of {len(self.tasks)} tasks, logs {self.call.log}")

    def folder(self, numbers: list[int]) -> Path:
        """Make a folder with the input of slurm_task.sh."""
        k = 1
        while True:
            with contextlib.suppress(FileExistsError):
                (folder := self.state / f"{k:04d}-{os.getpid()}").mkdir()
                break
            k += 1
        lines = []
        for number in numbers:
            task = self.tasks[number]
            task.attempt += 1
            lines.append(f"{number} {task.hash} {task.attempt}\n")
        call = self.call
        words = [call.cwd, call.name, call.log, call.options.get("num_nodes", "1"), *call.command]
        pairs = [f"{name}={value}" for name, value in self.env.items()]
        try:
            (folder / "tasks").write_text("".join(lines))
            for name, texts in (("call", words), ("environment", pairs)):
                with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as f:
                    f.write(b"".join(os.fsencode(t) + b"\0" for t in texts))
        except OSError as err:  # a full disk names no file
            err.filename = err.filename or str(folder)
            raise
        return folder

    def wait_for_controller(self) -> None:
        self.say_away()
        time.sleep(LOOK)

    def say_away(self) -> None:
        """Report once that the controller does not answer."""
        if not self.away:
            say("SLURM's controller does not answer; waiting for it while the jobs run")
        self.away = True

    def look(self) -> None:
        """Ask the controller about the unfinished tasks, and resubmit those that it has lost."""
        queued = engine.queue(self.jobs)
        self.looked = now = time.monotonic()
        if queued is None:
            self.say_away()
            return
        if self.away:
            say("the controller answers again")
        self.away = False
        with contextlib.suppress(OSError):  # a change in the folder makes an NFS client read it again
            (self.state / ".look").touch()
            (self.state / ".look").unlink()
        self.collect()
        again = []
        for number in sorted(self.left):
            task = self.tasks[number]
            state, reason = queued.get(task.job, ("", "")) if task.job else ("", "")
            held = state == "PENDING" and reason.lower().startswith("launch")  # no node could start it
            if state and not held:
                task.gone = 0.0
            elif held or (task.gone and now - task.gone >= LOOK):
                assert task.job is not None  # a task in the queue has a job
                why = "HELD" if held else engine.ended_as(*task.job)
                if held:
                    engine.cancel([task.job])
                if self.lost(number, why):
                    again.append(number)
            else:
                task.gone = task.gone or now
        # A controller that lost its latest state may queue finished tasks again; others may wait for them.
        over = {t.job for n, t in self.tasks.items() if n not in self.left and t.job and not t.why}
        engine.cancel(where for where, (state, _) in queued.items() if state == "PENDING" and where in over)
        self.submit(again)

    def lost(self, number: int, state: str) -> bool:
        """Handle a task that SLURM has lost; True if it should be submitted again."""
        task, log = self.tasks[number], os.path.relpath(self.call.log_of(number), self.call.cwd)
        why = FINAL.get(state) or WHAT.get(state, f"SLURM has lost it ({state.lower() or 'unknown'})")
        again = self.read("again", number)
        if state not in FINAL and again[:2] == [task.hash, str(task.attempt)]:
            why, step = "stopped in time", "".join(again[2:])
            if step and step != task.step:  # a training that gets on may be stopped as often as need be
                task.step = step
                say(f"{log}: {why}; submitting it again")
                return True
        task.lost += 1
        if state in FINAL or task.lost >= TRIES:
            task.why = why if state in FINAL else f"{why}, {task.lost} times"
            self.left.discard(number)
            return False
        say(f"{log}: {why}; submitting it again")
        return True

    def run(self, show) -> int:
        """Run all tasks: 0 if all are done, 1 if some failed.

        `show()` is called regularly in the meantime.
        """
        self.adopt()
        missing = [n for n in sorted(self.left) if not self.tasks[n].job]
        for number in missing:
            start_log(self.call.log_of(number))
        show()  # it sees an emptied log before a task writes to it
        self.submit(missing, test=not self.jobs)
        pause = 0.05
        while self.left:
            time.sleep(pause)
            pause = min(1.2 * pause, 0.5)
            self.collect()
            show()
            if self.left and time.monotonic() - self.looked >= LOOK:
                self.look()
        failed = {n: t for n, t in self.tasks.items() if t.why}
        if not failed:
            shutil.rmtree(self.state, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.state.parent.rmdir()
            return 0
        self.report(failed)
        return 1

    def report(self, failed: dict[int, Task]) -> None:
        """Print the last lines of the first failed logs, and the names of the others."""
        say(f"{len(failed)} of {len(self.tasks)} jobs failed:")
        for number, task in list(failed.items())[:3]:
            log = self.call.log_of(number)
            say(f"last lines of {os.path.relpath(log, self.call.cwd)} ({task.why})")
            files = [log]
            if task.job:  # what SLURM itself said
                files.append(self.state / self.jobs[task.job[0]].split(":")[1] / f"out.{task.job[1]}")
            for file in files:
                with contextlib.suppress(OSError):
                    for line in file.read_text(errors="replace").splitlines()[-12:]:
                        print(f"  {printable(line)}", file=sys.stderr)
        for number in list(failed)[3:]:
            say(f"also failed: {os.path.relpath(self.call.log_of(number), self.call.cwd)}")

    def stop(self) -> None:
        """Cancel every array of this call, even one whose submission or adoption was interrupted."""
        for folder in self.folders():
            file = folder / "job"
            if job := (file.exists() and file.read_text()) or engine.find(self.token(folder)):
                self.jobs[job] = self.token(folder)
        if not engine.cancel_all(self.jobs):
            say(f"SLURM has not ended all jobs yet: squeue -j {','.join(self.jobs)}")
