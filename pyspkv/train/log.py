"""The log of a run, for people to read: train.jsonl, tensorboard, the progress bar, and the commit of the code."""

import errno
import json
import math
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pyspkv.base import distributed, foreign
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError


class Means:
    """Weighted means of the logged quantities. Sums and weights are added up over steps, then over ranks."""

    def __init__(self, sums: dict[str, list[float]] | None = None):
        self.sums = {k: list(v) for k, v in (sums or {}).items()}

    def add(self, name: str, total: float, weight: float) -> None:
        entry = self.sums.setdefault(name, [0.0, 0.0])
        entry[0] += total
        entry[1] += weight

    def add_all(self, stats: dict[str, tuple[float, float]]) -> None:
        for name, (total, weight) in stats.items():
            self.add(name, total, weight)

    def over_ranks(self) -> dict[str, list[float]]:
        if distributed.world_size() == 1:
            return self.sums
        flat = torch.tensor([self.sums[k] for k in sorted(self.sums)], dtype=torch.float64)
        if torch.cuda.is_available():
            flat = flat.cuda()
        return dict(zip(sorted(self.sums), distributed.all_reduce_sum(flat).tolist()))

    @staticmethod
    def values(sums: dict[str, list[float]]) -> dict[str, float]:
        return {k: total / weight if weight else float("nan") for k, (total, weight) in sums.items()}


def _is_record_until(line: str, step: int) -> bool:
    """Whether the line is a whole record of a step up to `step`. A kill may have cut the last line."""
    try:
        logged = foreign.parse_json(line, file="train.jsonl", nan=True).get("step")
    except UserError:
        return False
    return foreign.is_number(logged) and logged <= step


class Log:
    """train.jsonl and tensorboard of one run. A resumed run appends; records after its first `step` are dropped."""

    def __init__(self, exp: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        path = exp / "train.jsonl"
        if path.exists():
            with open(path, encoding="utf-8", errors="replace") as f:
                lines = [line.rstrip("\n") + "\n" for line in f if _is_record_until(line, step)]
            with atomic_file(path) as f:
                f.writelines(lines)
        self.path = path
        self.file = open(path, "ab", buffering=0)  # what cannot be written is not tried again by close()
        with self._naming(exp / "tb"):
            self.board = SummaryWriter(exp / "tb", purge_step=step + 1)

    @contextmanager
    def _naming(self, path: Path):
        """Add `path` to an OSError that names no file, as that of a full disk."""
        try:
            yield
        except OSError as err:
            err.filename = err.filename or str(path)
            raise

    def write(self, kind: str, step: int, epoch: int, values: dict) -> None:
        record = {"kind": kind, "epoch": epoch + 1, "step": step, **values}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = (
            json.dumps(finite) + "\n"
        ).encode()  # JSON knows no infinity: an open gate's threshold is null
        with self._naming(self.path):
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self._naming(self.path.with_name("tb")):
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        with self._naming(self.path.with_name("tb")):
            self.board.close()


class StepLog:
    """Write a record every `every` steps, with the means and the speed since the last one, and show a progress bar."""

    def __init__(self, log: Log | None, every: int, batch_size: int, step: int, last_step: int):
        from tqdm import tqdm

        self.log, self.every, self.batch_size = log, every, batch_size
        self.bar = tqdm(total=last_step, initial=step, unit="step", disable=None if log else True)
        self.means, self.waited, self.since = Means(), 0.0, time.perf_counter()

    def timed(self, batches: Iterable) -> Iterator:
        """Yield the batches, and measure how long the training waits for them."""
        batches = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - asked
            yield batch

    def step(self, step: int, epoch: int, stats: dict[str, tuple[float, float]], lr: float) -> None:
        """Count step `step` (from 1). All ranks must call this, because the means are over all of them."""
        self.means.add_all(stats)
        self.bar.update()
        if step % self.every:
            return
        values, now = Means.values(self.means.over_ranks()), time.perf_counter()
        seconds = now - self.since
        rates = {
            "utts_per_s": self.every * self.batch_size / seconds,
            "data_wait": self.waited / seconds,
        }
        self.means, self.waited, self.since = Means(), 0.0, now
        self.bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        if self.log:
            self.log.write("step", step, epoch, {**values, "lr": lr, **rates})

    def close(self) -> None:
        self.bar.close()
        if self.log:
            self.log.close()


def epoch_line(epoch: int, epochs: int, record: dict) -> str:
    """The line that is printed after epoch `epoch` (from 0), made from its record."""
    shown = [f"{k} {record[k]:.4g}" for k in ("loss", "accuracy", "kept", "dev_eer") if k in record]
    return f"epoch {epoch + 1}/{epochs}: {', '.join(shown)} ({record['seconds']:.0f} s)"


def git_id() -> str | None:
    """The commit of the working tree, with `+` when it is not clean. Outside git: $SPKV_COMMIT, or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository above site-packages is somebody else's
        return os.environ.get("SPKV_COMMIT")

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", root, *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (subprocess.CalledProcessError, OSError):
        return os.environ.get("SPKV_COMMIT")
