"""The record of a training (config.yaml, run.json, classes.txt), and the check that a folder holds this same run."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyspkv import __version__
from pyspkv.base import checkpoint, foreign
from pyspkv.base import config as cfg
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError
from pyspkv.train.log import git_id
from pyspkv.train.state import BROKEN, RunState


@dataclass
class RunFolder:
    """One run, and its folder `path`, which need not exist yet.

    Args:
        config: the resolved config.
        may_change: keys of the config that a resumed run may change.
        init: the model that the run starts from, as the user named it.
        label_hash: hash of the utterances and labels.
        init_digest: hash of the weights of all models that the run starts from.
        processes: number of processes that train together, over all machines.
    """

    path: Path
    config: Any
    may_change: tuple[str, ...]
    init: str | None
    label_hash: str
    init_digest: str | None
    processes: int = 1

    def saved_state(self) -> RunState | None:
        """The state of the last checkpoint, or None if there is none yet.

        UserError: the folder belongs to another run; the message names the first difference.
        """
        folder = checkpoint.latest(self.path)
        if folder is None:
            return None
        self._check_config()
        self._check_start()
        state = RunState.read(folder)
        state.check_end(self.config.epochs, folder)
        if not state.done:
            self._check_processes()
        if state.label_hash != self.label_hash:
            raise UserError(
                "this training was started with other utterances or labels",
                file=self.path,
                hint="give another --exp; --init with this one starts from its encoder with a new head",
            )
        return state

    def _hint(self) -> str:
        if self.path.is_symlink():
            return "remove the link to train a model of its own here"
        return "use another --exp, or remove this one to start again"

    def _check_config(self) -> None:
        now = cfg.dump(self.config)
        before = cfg.dump(cfg.load(type(self.config), self.path / "config.yaml"))
        for key in now:
            if now[key] != before[key] and key not in self.may_change:
                rule = (
                    f"this training was started with another config: {key} was {before[key]}, now {now[key]}"
                )
                raise UserError(rule, file=self.path, hint=self._hint())

    def _record(self) -> dict[str, Any]:
        file = self.path / "run.json"
        try:
            return foreign.read_json(file, hint=BROKEN)
        except OSError as err:
            raise UserError(f"cannot be read ({err.strerror})", file=file, hint=BROKEN) from None

    def _check_processes(self) -> None:
        """Raise UserError if the run was started with another number of processes.

        Sums over another number of processes round differently, so the digits would change.
        """
        was = self._record().get("world", self.processes)
        if was != self.processes:
            raise UserError(
                f"this training was started with {foreign.short(was)} processes, now there are {self.processes}",
                file=self.path,
                hint=f"go on with {foreign.short(was)} (--ngpu or --nproc, times --num-nodes), or use another --exp",
            )

    def _check_start(self) -> None:
        record = self._record()
        if record.get("start", self.init_digest) != self.init_digest:
            was, now = record.get("init") or "none", self.init or "none"
            rule = f"this training was started from another model: {was}, now {now}"
            raise UserError(rule, file=self.path, hint=self._hint())

    def record(self, classes: list[str], facts: dict[str, Any]) -> None:
        """Write the record of the run before its first step. `facts` are further entries of run.json."""
        run = {
            "command": sys.argv,
            "git": git_id(),
            "pyspkv": __version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "threads": torch.get_num_threads(),
            "num_classes": len(classes),
            "label_hash": self.label_hash,
            "init": self.init,
            "start": self.init_digest,
            "world": self.processes,
            **facts,
        }
        with atomic_file(self.path / "config.yaml") as f:
            f.write(cfg.to_yaml(self.config))
        with atomic_file(self.path / "run.json") as f:
            json.dump(run, f, indent=1)
        with atomic_file(self.path / "classes.txt") as f:
            f.writelines(f"{name}\n" for name in classes)
