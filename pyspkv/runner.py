"""Run the cells of a table (pyspkv.grid) in any number of processes, each cell by one at a time, until it is finished.

EXP/<cell>/grid.json says what was run and how it ended. A cell is claimed by a lock of the kernel that its run.sh holds
as well: where the process that started it is killed, the next one waits for what still runs and then goes on with it.
"""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pyspkv import config as cfg
from pyspkv import results
from pyspkv.atomic import atomic_file, folder_lock
from pyspkv.errors import UserError
from pyspkv.grid import Cell, Table, word

CLAIM = ".grid.lock"
GRACE = 10  # seconds that a run has to end after SIGTERM
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Mark:
    """EXP/<cell>/grid.json."""

    definition: dict[str, str]  # what was started
    state: Literal["interrupted", "failed", "done"] = "interrupted"
    ended: str = ""  # UTC
    seconds: float = 0.0  # of all its tries, less those that were killed without warning
    command: str = ""
    commit: str = ""
    machine: str = ""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def commit() -> str:
    """Commit of the working tree, with `+` where files differ: pyspkv.runlog.git_id without its torch."""
    if not (ROOT / ".git").exists():  # installed: a repository above site-packages is somebody else's
        return os.environ.get("SPKV_COMMIT", "")
    command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return found or os.environ.get("SPKV_COMMIT", "")


def duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes // 60} h {minutes % 60} min"


def alive(process: subprocess.Popen) -> bool:
    """Whether anything of its process group runs: what it started may take longer to end than itself."""
    try:
        return process.poll() is None or os.killpg(process.pid, 0) is None
    except ProcessLookupError:
        return False


class Runner:
    """The chosen cells of a table in the folder `exp`."""

    def __init__(self, table: Table, exp: Path, only: str, cmd: list[str], run_opts: list[str]):
        self.table, self.exp, self.cells = table, exp, table.select(only)
        self.cmd, self.run_opts = cmd, run_opts
        self.began, self.signal, self.stopping = now(), 0, False
        self.jobs: dict[str, tuple] = {}  # cell: (its process, its mark, its lock, when it was started)
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}  # cell: why

    def log(self, cell: Cell) -> Path:
        return self.exp / cell.name / "log/grid.log"

    def command(self, cell: Cell) -> list[str]:
        words = self.table.command(cell, self.exp) + self.run_opts
        return [*self.cmd, str(self.log(cell)), *words] if self.cmd else words

    def shown(self, cell: Cell) -> str:
        """The command as rows have it: from the repository's root."""
        recipe = self.table.recipe(cell)
        words = [w.replace(f"{recipe}/", "") for w in self.table.command(cell, self.exp) + self.run_opts]
        return f"cd {shlex.quote(os.path.relpath(recipe, ROOT))} && ./{shlex.join(words)}"

    # ---- what has been done ------------------------------------------------------------------------------------
    def mark(self, name: str) -> Mark | None:
        file = self.exp / name / "grid.json"
        try:
            return cfg.validate(Mark, json.loads(file.read_bytes())) if file.exists() else None
        except (ValueError, RecursionError, UserError):
            raise UserError("is no mark of a cell", file=file, mend=f"--force {name}") from None

    def write(self, cell: Cell, mark: Mark) -> None:
        with atomic_file(self.exp / cell.name / "grid.json") as f:
            json.dump(asdict(mark), f, indent=1)

    def definition(self, cell: Cell) -> dict[str, str]:
        """What makes it another run: its settings, and when the cells that it needs had ended."""
        out = {"recipe": cell.recipe, "--seed": str(cell.seed)}
        out |= {f"--{option}": value for option, value in cell.options.items()}
        for name in cell.needs():
            mark = self.mark(name)
            out[f"end of {name}"] = mark.ended if mark and mark.state == "done" else ""
        return out

    def changed(self, cell: Cell) -> str:
        """The first difference from what was started in the cell's folder; empty: none."""
        mark, new = self.mark(cell.name), self.definition(cell)
        old = mark.definition if mark else new
        keys = [k for k in [*new, *old] if old.get(k) != new.get(k)]
        return f"{keys[0]} was {old.get(keys[0])!r} and is now {new.get(keys[0])!r}" if keys else ""

    def refuse_changed(self) -> None:
        changed = {cell.name: said for cell in self.cells if (said := self.changed(cell))}
        for name, said in changed.items():
            mend = f"undo it, give another --exp, or begin anew with --force {' '.join(changed)}"
            raise UserError(
                f"cell {name} is another one than it was: {said}", file=self.table.path, mend=mend
            )

    def set_aside(self, names: list[str]) -> None:
        """Move what cells have left to EXP/.before: they begin anew."""
        for folder in [self.exp / name for name in self.table.known(names) if (self.exp / name).exists()]:
            with folder_lock(folder, CLAIM):
                to = self.exp / ".before" / f"{folder.name}-{now()}"
                to.parent.mkdir(exist_ok=True)
                folder.rename(to)
            print(f"what {folder.name} had left is now in {to}")

    def held(self, cell: Cell) -> float | None:
        """For how many seconds somebody has had the cell; None: nobody has it."""
        with contextlib.suppress(FileNotFoundError), open(self.exp / cell.name / CLAIM) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return max(0.0, time.time() - os.fstat(lock.fileno()).st_mtime)
        return None

    # ---- one cell ----------------------------------------------------------------------------------------------
    def start(self, cell: Cell) -> None:
        """Claim the cell and start it, unless another process has it or has just ended it."""
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(folder_lock(self.exp / cell.name, CLAIM))
            except UserError:
                return
            old = self.mark(cell.name)
            if old and old.state == "done":
                return
            if (said := self.changed(cell)) or (old and old.state == "failed" and old.ended > self.began):
                self.failed[cell.name] = said or f"in another process: {self.log(cell)}"
                return
            mark = Mark(self.definition(cell), seconds=old.seconds if old else 0.0)
            mark.command, mark.commit, mark.machine = self.shown(cell), commit(), results.machine()
            self.write(cell, mark)
            self.log(cell).parent.mkdir(exist_ok=True)
            kept = fcntl.fcntl(lock, fcntl.F_DUPFD, 200)  # a number that no script redirects
            stack.callback(os.close, kept)
            out = None if self.cmd else stack.enter_context(open(self.log(cell), "a"))
            env = {k: v for k, v in os.environ.items() if k != "SPKV_RECIPE"}
            how = {"cwd": self.table.recipe(cell), "env": env, "pass_fds": [kept], "start_new_session": True}
            how |= {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            try:
                process = subprocess.Popen(self.command(cell), **how)
            except OSError as err:
                self.failed[cell.name] = f"cannot be started: {err}"
                return
            print(f"{time.strftime('%T')} {cell.name}: started, see {self.log(cell)}", flush=True)
            held = os.fdopen(os.dup(lock.fileno()))  # until its end is written down
            self.jobs[cell.name] = process, mark, held, time.monotonic()

    def end(self, cell: Cell) -> None:
        """Write down how the cell's run ended."""
        process, mark, held, began = self.jobs.pop(cell.name)
        code, log = process.wait(), self.log(cell)
        mark.seconds += time.monotonic() - began
        if code == 0 or not self.stopping:
            mark.state, mark.ended = "failed" if code else "done", now()
        self.write(cell, mark)
        held.close()
        print(f"{time.strftime('%T')} {cell.name}: {mark.state} after {duration(mark.seconds)}", flush=True)
        if mark.state == "failed":
            self.failed[cell.name] = f"exit code {code}: {log}"
            lines = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
            print(f"the end of {log}:", *lines, sep="\n  ", file=sys.stderr, flush=True)

    def record(self, cell: Cell, mark: Mark) -> None:
        """The rows of a finished cell go into RESULTS.jsonl, where they are not there yet."""
        self.done.add(cell.name)
        exp, rows = self.exp / cell.name, []
        same = {"cell": cell.name, "grid": os.path.relpath(self.table.path, ROOT)}
        same |= {k: getattr(mark, k) for k in ("command", "commit", "machine", "ended")}
        same |= {u: getattr(cell, u) for u in results.UNITS}
        try:
            for row in cell.rows:
                known = [n for n in results.systems(exp) if n != "final"]
                for name in known if row.system == "all" else [row.system]:
                    new = same | {"table": self.table.file.tables[row.table].title}
                    new |= {"row": name if row.system == "all" else row.row}
                    new |= {"column": None if row.column is None else word(row.column)}
                    found = results.row_of(exp, name, row.cost)
                    rows.append({k: v for part in (new, found) for k, v in part.items() if v is not None})
            results.add_rows(self.table.results, rows)
        except (UserError, OSError) as err:
            self.failed[cell.name] = f"done, but its rows are not written: {err}"

    # ---- all cells ---------------------------------------------------------------------------------------------
    def work(self, jobs: int) -> int:
        """`work_on`, after which nothing that it started runs on."""
        try:
            return self.work_on(jobs)
        finally:
            self.stop()

    def work_on(self, jobs: int) -> int:
        """Run what is not done, `jobs` cells at a time. 0: all done; 1: a cell failed; 128 + n: ended by signal n."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda got, _: setattr(self, "signal", got))
        said = ""
        while not self.signal:
            left, blocked = [], {}
            for cell in self.cells:
                if cell.name in self.jobs and self.jobs[cell.name][0].poll() is not None:
                    self.end(cell)
                if cell.name not in self.done and (mark := self.mark(cell.name)) and mark.state == "done":
                    self.record(cell, mark)
                lost = [n for n in cell.needs() if n in blocked or (n in self.failed and n not in self.done)]
                if cell.name in self.failed or lost:
                    blocked[cell.name] = lost
                elif cell.name not in self.done:
                    left.append(cell)
                    free = cell.name not in self.jobs and len(self.jobs) < jobs and not self.signal
                    if free and self.done.issuperset(cell.needs()):
                        self.start(cell)
            if not left:
                return self.summary(blocked)
            if not self.jobs and not said:
                print(said := "the rest is in the hands of other processes: waiting", flush=True)
            time.sleep(0.1 + len(left) / 1000)
        return 128 + self.signal

    def stop(self) -> None:
        """End the process groups of all runs; the stubborn after GRACE seconds."""
        self.stopping = True
        until = time.monotonic() + GRACE
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process, *_ in self.jobs.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            while time.monotonic() < until and any(alive(process) for process, *_ in self.jobs.values()):
                time.sleep(0.05)
        for cell in [c for c in self.cells if c.name in self.jobs]:
            self.end(cell)

    def summary(self, blocked: dict[str, list[str]]) -> int:
        print(f"{len(self.done)} of {len(self.cells)} cells are done")
        for name, why in self.failed.items():
            print(f"failed: {name} ({why})", file=sys.stderr)
        for name, lost in blocked.items():
            if lost:
                print(f"not run: {name}, which waits for {lost[0]}", file=sys.stderr)
        return 1 if self.failed else 0

    def status(self, jobs: int) -> None:
        """A line a cell, and about how long the rest takes by the finished cells of the same template or recipe."""
        walls, states, rest = defaultdict(list), defaultdict(int), []
        for cell in self.cells:
            mark, held, needs = self.mark(cell.name), self.held(cell), self.definition(cell)
            waits = [n for n in cell.needs() if not needs[f"end of {n}"]]
            if said := self.changed(cell):
                state, text = "changed", said
            elif mark and mark.state == "done" or held is None and mark:
                state, text = mark.state, duration(mark.seconds)
            elif held is not None:
                state, text = "running", f"for {duration(held)}"
            else:
                state, text = ("waiting", f"for {waits[0]}") if waits else ("to do", "")
            print(f"{cell.name:<32} {state:<12} {text}".rstrip())
            states[state] += 1
            if state == "done":
                walls[cell.template].append(mark.seconds)
                walls["", cell.recipe].append(mark.seconds)
            else:
                rest.append((cell, held or 0))
        known = [(walls[c.template] or walls["", c.recipe], held) for c, held in rest]
        left = sum(max(0, sum(w) / len(w) - held) for w, held in known if w)
        print(", ".join(f"{n} {state}" for state, n in states.items()))
        jobs = max(jobs, states["running"])
        unknown = sum(not w for w, _ in known)
        parts = [f"about {duration(left / jobs)} left, {jobs} at a time"] if left or not unknown else []
        parts += [f"nobody knows yet how long {unknown} cells take"] if unknown else []
        print("; ".join(parts))
