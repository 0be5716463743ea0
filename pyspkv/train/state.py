"""The progress of a training. A checkpoint keeps it in state.json, beside the optimizers' settings."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pyspkv.base import checkpoint
from pyspkv.base.errors import UserError

BROKEN = "remove this model folder, or give another --exp"
IN_FILE = {"eval_module": "evaluates"}  # fields that have another name in state.json


@dataclass(kw_only=True)
class RunState:
    label_hash: str  # of the utterances and labels that the run is trained on
    eval_module: str  # the objective's submodule that embeds
    epoch: int = 0  # whole epochs behind
    step: int = 0  # optimizer steps behind
    audio_seconds: float = 0.0  # that the network took
    means: dict[str, list[float]] = field(default_factory=dict)  # of the epoch under way: [sum, weight]
    collapsed: int = 0  # steps in a row whose embeddings all pointed one way
    done: bool = False
    best_eer: float | None = None  # percent, on the dev list
    best_epoch: int | None = None
    worse: int = 0  # epochs in a row whose dev EER was above the best one

    @classmethod
    def read(cls, folder: Path) -> "RunState":
        """Read the state of a `ckpt-<step>` folder. UserError: no training wrote it."""
        saved = checkpoint.training_state(folder)
        names = {f.name: IN_FILE.get(f.name, f.name) for f in fields(cls)}
        return cls(**{name: saved[key] for name, key in names.items() if key in saved})

    def to_json(self) -> dict[str, Any]:
        return {IN_FILE.get(name, name): value for name, value in asdict(self).items()}

    def check_end(self, epochs: int, folder: Path) -> None:
        """Raise UserError if the run ended before `epochs`, although it had no dev list that could end it early."""
        if self.done and self.epoch < epochs and self.best_epoch is None:
            self._refuse(f"done after {self.epoch} of {epochs} epochs", folder)

    def check_step(self, steps: int, epochs: int, folder: Path) -> None:
        """Raise UserError if step and epoch do not fit a run of `epochs` epochs of `steps` steps."""
        ended = self.step == self.epoch * steps
        if not (ended if self.done else self.step // steps == self.epoch < epochs):
            self._refuse(f"no step {self.step} after {self.epoch} epochs of {steps} steps", folder)

    def _refuse(self, what: str, folder: Path) -> None:
        raise UserError(f"not a checkpoint's state: {what}", file=folder / "state.json", hint=BROKEN)

    def end_epoch(self, epochs: int, dev_eer: float | None, patience: int) -> bool:
        """Count an epoch and its dev EER (None without a dev list). Returns whether the EER is the best so far.

        After `patience` epochs in a row with an EER above the best, the run is done. 0: it never ends early.
        """
        best = dev_eer is not None and (self.best_eer is None or dev_eer < self.best_eer)
        if best:
            self.best_eer, self.best_epoch = dev_eer, self.epoch
        if dev_eer is not None and self.best_eer is not None:
            self.worse = self.worse + 1 if dev_eer > self.best_eer else 0
        self.epoch += 1
        self.done = self.epoch == epochs or bool(patience and self.worse >= patience)
        return best
