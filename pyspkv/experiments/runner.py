"""Run the cells of a table (pyspkv.experiments.grid).

Any number of processes may work on a table; each cell runs once.

EXP/<cell>/grid.json records what was run and how it ended. A process claims a cell by a kernel lock, which
the cell's run.sh holds, too. If the process that started a run is killed, the next process waits until that
run has ended, and then continues the cell.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from pyspkv.base import config as cfg
from pyspkv.base import foreign
from pyspkv.base.atomic import atomic_file, command_line, folder_lock
from pyspkv.base.errors import UserError
from pyspkv.base.processes import Stopped, end_all
from pyspkv.experiments import results
from pyspkv.experiments.grid import Cell, Table

GRACE = 10  # seconds between SIGTERM and SIGKILL
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Mark:
    """The contents of EXP/<cell>/grid.json."""

    command: str  # the command with the table's default exp
    after: dict[str, str]  # needed cell -> time when it had ended
    machine: str
    state: Literal["interrupted", "failed", "done"] = "interrupted"
    ended: str = ""  # UTC
    # Run time of all attempts, except those that were killed with SIGKILL.
    seconds: Annotated[float, Field(ge=0, le=1e12)] = 0.0


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Runner:
    """Runs the chosen cells of a table in the folder `exp`.

    cmd: words of a command that starts a run on another machine; [] runs here.
    """

    def __init__(self, table: Table, exp: Path, only: str, cmd: list[str], run_opts: list[str]):
        self.table, self.exp, self.cells = table, exp, table.select(only)
        self.cmd, self.run_opts, self.began = cmd, run_opts, now()
        self.stopped: Stopped  # exists while cells run
        self.jobs: dict[str, tuple] = {}  # cell -> (process, mark, lock, start time)
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}  # cell -> reason

    def command(self, cell: Cell) -> list[str]:
        """The command of a cell with the options of all runs."""
        return self.table.command(cell, self.exp) + self.run_opts

    def claim(self, cell: Cell):
        """Context manager that holds the lock of a cell. UserError: another process holds it."""
        return folder_lock(self.exp / cell.name, ".grid.lock")

    def mark(self, name: str) -> Mark | None:
        """Read the mark of a cell; None if it has none. UserError: the file is damaged."""
        file = self.exp / name / "grid.json"
        try:
            return cfg.validate(Mark, foreign.read_json(file)) if file.exists() else None
        except UserError:
            raise UserError(
                "is not the record of a cell", file=file, hint=command_line("rm", "-r", file.parent)
            ) from None

    def write(self, cell: Cell, mark: Mark) -> None:
        """Write the mark of a cell."""
        with atomic_file(self.exp / cell.name / "grid.json") as f:
            json.dump(asdict(mark), f, indent=1)

    def new_mark(self, cell: Cell) -> Mark:
        """The mark with which the cell would start now."""
        folder = shlex.quote(os.path.relpath(self.table.recipe(cell), ROOT))
        words = shlex.join(self.table.command(cell, Path("exp/grid")))
        marks = {name: self.mark(name) for name in cell.needs()}
        ends = {name: m.ended if m and m.state == "done" else "" for name, m in marks.items()}
        return Mark(f"cd {folder} && {words}", ends, results.machine())

    def changed(self, cell: Cell) -> str:
        """How the cell differs from the run that was started in its folder; "" if it does not."""
        old, new = self.mark(cell.name), self.new_mark(cell)
        if old is None or (old.command, old.after) == (new.command, new.after):
            return ""
        return f"it was {old.command} after {old.after}; now it is {new.command} after {new.after}"

    def start(self, cell: Cell) -> None:
        """Claim the cell and start it, unless another process has claimed or just finished it."""
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(self.claim(cell))
            except UserError:
                return
            old, mark = self.mark(cell.name), self.new_mark(cell)
            if old and old.ended > self.began and old.state == "failed":
                self.failed[cell.name] = "in another process"
            if old and old.state == "done" or cell.name in self.failed:
                return
            mark.seconds = old.seconds if old else 0.0
            self.write(cell, mark)
            log, words = self.exp / cell.name / "log/grid.log", self.command(cell)
            log.parent.mkdir(exist_ok=True)
            out = stack.enter_context(open(os.devnull if self.cmd else log, "a"))
            words = [*self.cmd, str(log), *words] if self.cmd else words
            how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            how["start_new_session"] = True
            try:
                process = subprocess.Popen(
                    words, cwd=self.table.recipe(cell), pass_fds=[lock.fileno()], **how
                )
            except (OSError, ValueError) as err:
                self.failed[cell.name] = f"cannot be started: {err}"
                return
            print(f"{time.strftime('%T')} {cell.name}: started, see {log}", flush=True)
            self.jobs[cell.name] = process, mark, stack.pop_all(), time.monotonic()

    def end(self, cell: Cell) -> None:
        """Record how the cell's run ended, then release its lock."""
        process, mark, lock, began = self.jobs.pop(cell.name)
        code, log = process.wait(), self.exp / cell.name / "log/grid.log"
        mark.seconds += time.monotonic() - began
        if code == 0 or not self.stopped.signal:
            mark.state, mark.ended = "failed" if code else "done", now()
        self.write(cell, mark)
        lock.close()
        took = timedelta(seconds=round(mark.seconds))
        print(f"{time.strftime('%T')} {cell.name}: {mark.state} after {took}", flush=True)
        if mark.state == "failed":
            self.failed[cell.name] = f"exit code {code}: {log}"
            lines = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
            print(f"the end of {log}:", *lines, sep="\n  ", file=sys.stderr, flush=True)

    def record(self, cell: Cell, mark: Mark) -> None:
        """Add the rows of a finished cell to RESULTS.jsonl, unless they are there."""
        self.done.add(cell.name)
        same = {"command": mark.command, "machine": mark.machine, "ended": mark.ended, "cell": cell.name}
        same |= {"grid": os.path.relpath(self.table.path, ROOT)}
        same |= {unit: value for unit in results.UNITS if (value := getattr(cell, unit)) is not None}
        try:
            found = [results.rows_of(self.exp / cell.name, row, self.table.title(row)) for row in cell.rows]
            results.add_rows(self.table.results, [same | row for rows in found for row in rows])
        except (UserError, OSError) as err:
            self.failed[cell.name] = f"done, but its rows cannot be written: {err}"

    def work(self, jobs: int) -> int:
        """Run the unfinished cells, `jobs` at a time.

        Returns 0: all done; 1: a cell failed; 128 + n: ended by signal n.

        UserError: a cell has changed since it was started.
        """
        for cell in self.cells:
            if said := self.changed(cell):
                rule = (
                    f"cell {cell.name} has changed: {said}; undo it, give another --exp, or remove the cell"
                )
                hint = command_line("rm", "-r", self.exp / cell.name)
                raise UserError(rule, file=self.table.path, hint=hint)
        os.environ.pop("SPKV_RECIPE", None)  # so that run.sh uses its own folder
        self.stopped = Stopped()
        said = ""
        try:
            while (left := self.step(jobs)) and not self.stopped.signal:
                if not self.jobs and not said:
                    print(said := "waiting: other processes run the remaining cells", flush=True)
                time.sleep(0.05 + left / 1000)
        finally:
            self.stop()
        print(f"{len(self.done)} of {len(self.cells)} cells are done")
        for name, why in self.failed.items():
            print(f"failed: {name} ({why})", file=sys.stderr)
        return 128 + self.stopped.signal if self.stopped.signal else 1 if self.failed else 0

    def step(self, jobs: int) -> int:
        """Check every cell once and start those that can run; returns how many are left."""
        left = 0
        for cell in self.cells:
            if cell.name in self.jobs and self.jobs[cell.name][0].poll() is not None:
                self.end(cell)
            if cell.name in self.done or cell.name in self.failed:
                continue
            lost = [n for n in cell.needs() if n in self.failed and n not in self.done]
            if (mark := self.mark(cell.name)) and mark.state == "done":
                self.record(cell, mark)
            elif lost:
                self.failed[cell.name] = f"not run, because it needs {lost[0]}"
            else:
                left += 1
                free = cell.name not in self.jobs and len(self.jobs) < jobs and not self.stopped.signal
                if free and self.done.issuperset(cell.needs()):
                    self.start(cell)
        return left

    def stop(self) -> None:
        """End all running cells, after GRACE seconds by SIGKILL; run.sh itself waits for its processes."""
        self.stopped.signal = self.stopped.signal or (signal.SIGTERM if self.jobs else 0)
        end_all([process for process, *_ in self.jobs.values()], GRACE, groups=True)
        for cell in [c for c in self.cells if c.name in self.jobs]:
            self.end(cell)

    def state(self, cell: Cell) -> str:
        """State of a cell: changed, to do, running, interrupted, failed or done."""
        mark = self.mark(cell.name)
        if mark is None or self.changed(cell):
            return "changed" if mark else "to do"
        try:
            with self.claim(cell) if mark.state == "interrupted" else contextlib.nullcontext():
                return mark.state
        except UserError:
            return "running"

    def status(self, jobs: int) -> None:
        """Print one line per cell, and the remaining time.

        The time is estimated from the finished cells of the same template or, if there are none, from all
        finished cells.
        """
        states = {cell.name: self.state(cell) for cell in self.cells}
        ended = [c for c in self.cells if states[c.name] == "done"]
        done = [(c.template, mark.seconds) for c in ended if (mark := self.mark(c.name))]
        left = 0.0
        for cell in self.cells:
            print(f"{cell.name:<32} {states[cell.name]:<12} {self.changed(cell)}".rstrip())
            if done and states[cell.name] != "done":
                left += fmean([s for t, s in done if t == cell.template] or [s for _, s in done])
        about = f"about {timedelta(seconds=round(left / jobs))} left, {jobs} at a time"
        counted = ", ".join(f"{n} {state}" for state, n in Counter(states.values()).items())
        print(f"{counted}; {about if done else 'the time is unknown'}")
