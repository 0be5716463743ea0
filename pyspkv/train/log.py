"""What a run leaves for people to read: train.jsonl and tensorboard, running means, the commit that trained."""

import errno
import json
import math
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import torch

from pyspkv.base import distributed, foreign
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError


class Means:
    """Running weighted means of the logged quantities, over steps and ranks."""

    def __init__(self, sums: dict[str, list[float]] | None = None):
        self.sums = {k: list(v) for k, v in (sums or {}).items()}

    def add(self, name: str, total: float, weight: float) -> None:
        entry = self.sums.setdefault(name, [0.0, 0.0])
        entry[0] += total
        entry[1] += weight

    def over_ranks(self) -> dict[str, list[float]]:
        if distributed.world() == 1:
            return self.sums
        flat = torch.tensor([self.sums[k] for k in sorted(self.sums)], dtype=torch.float64)
        if torch.cuda.is_available():
            flat = flat.cuda()
        return dict(zip(sorted(self.sums), distributed.all_sum(flat).tolist()))

    @staticmethod
    def values(sums: dict[str, list[float]]) -> dict[str, float]:
        return {k: total / weight if weight else float("nan") for k, (total, weight) in sums.items()}


def _is_record_until(line: str, step: int) -> bool:
    """Whether it is a whole record (a kill cuts the last one) of a step up to `step`."""
    try:
        found = foreign.parse_json(line, file="train.jsonl", nan=True).get("step")
    except UserError:
        return False
    return foreign.is_number(found) and found <= step


class Log:
    """train.jsonl and tensorboard of one run; records after `step` (of a killed run) are dropped."""

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
        """The OSError of a full disk does not say which file it is about."""
        try:
            yield
        except OSError as err:
            err.filename = err.filename or str(path)
            raise

    def write(self, kind: str, state: dict, epoch: int, values: dict) -> None:
        record = {"kind": kind, "epoch": epoch + 1, "step": state["step"], **values}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = (
            json.dumps(finite) + "\n"
        ).encode()  # JSON knows no infinity: an open gate's threshold is null
        with self._naming(self.path):
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self._naming(self.path.with_name("tb")):
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, state["step"])

    def close(self) -> None:
        self.file.close()
        with self._naming(self.path.with_name("tb")):
            self.board.close()


def git_id() -> str | None:
    """Commit of the working tree, with `+` when it is not clean; None outside git: $SPKV_COMMIT."""
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
