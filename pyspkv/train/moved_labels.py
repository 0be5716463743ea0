"""Write a data directory with the final labels of an objective that changes labels (SSRL)."""

from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir, check_replaceable
from pyspkv.objectives.base import Objective


def check_labels_out(out: Path, objective: Objective, name: str, data: DataDir, dev: DataDir | None) -> None:
    """Raise UserError if the objective called `name` does not change labels, or if `out` would replace other data."""
    if objective.labels() is None:
        raise UserError(f"objective {name} does not change labels", hint="drop --labels-out")
    for what, given in (("the training data", data), ("the dev list", dev)):
        if given and out.resolve() == Path(given.path).resolve():
            raise UserError(f"is the same directory as {what}", file=out, hint="give another --labels-out")
    check_replaceable(out)


def write_labels(out: Path, objective: Objective, data: DataDir, classes: list[str]) -> None:
    """Write `data` to `out`, with the class that each row now has as its speaker. The rows of `data` come first."""
    labels = objective.labels()
    assert labels is not None  # `check_labels_out`
    names = [classes[k] for k in labels[: len(data.utts)].tolist()]
    data.with_speakers(names).write(out, own=True)
