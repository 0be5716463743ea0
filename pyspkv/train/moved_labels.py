"""The data directory with an objective's final labels, of those objectives that move them (SSRL)."""

from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir, check_replaceable
from pyspkv.objectives.base import Objective


def check_labels_out(out: Path, objective: Objective, name: str, data: DataDir, dev: DataDir | None) -> None:
    """UserError: the objective (of this name) moves no labels, or writing `out` would replace something of worth."""
    if objective.labels() is None:
        raise UserError(f"objective {name} does not change labels", hint="drop --labels-out")
    for what, given in (("the training data", data), ("the dev list", dev)):
        if given and out.resolve() == Path(given.path).resolve():
            raise UserError(f"is the same directory as {what}", file=out, hint="give another --labels-out")
    check_replaceable(out)


def write_labels(out: Path, objective: Objective, data: DataDir, classes: list[str]) -> None:
    """`data` with the label of each of its rows, the objective's first ones, as its speaker."""
    labels = objective.labels()
    assert labels is not None  # `check_labels_out`
    names = [classes[k] for k in labels[: len(data.utts)].tolist()]
    data.with_speakers(names).write(out, own=True)
