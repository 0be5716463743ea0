"""What a gate lets through in each epoch: quantity and, with true speakers, quality (GLL, eq. 2 and 3).

These are diagnostics only.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyspkv.base import foreign
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir, read_table
from pyspkv.data.tables import decode, values_for
from pyspkv.report import plots
from pyspkv.report.experiment import rows_of


def write(
    models: Sequence[tuple[Path, str]],
    out: Path,
    truth: str | None = None,
    corrupted: str | Path | None = None,
) -> list[dict]:
    """Write the curves of successive trainings to `out` (JSON) and draw them beside it; returns the curves.

    Args:
        models: (model folder, data directory given as --unlabeled), in the order of training.
        truth: true utt2spk of these data directories.
        corrupted: lists utterances whose label was changed on purpose (bin.seeded_cluster --label-noise).

    UserError: no epoch has the records of a gate; a data directory is not the one that was trained on.
    """
    true = read_table(truth, "id") if truth else None
    wrong = set(decode(corrupted).split()) if corrupted else None
    found = []
    for model, folder in models:
        unlabeled = DataDir.read(folder)
        if truth and true is not None:
            values_for(true, unlabeled.utts, truth)
        found += curves(model, unlabeled, true, wrong)
    if not found:
        raise UserError("no epoch of these trainings has the records of a gate", file=models[0][0])
    with atomic_file(out, own=True) as f:
        json.dump(found, f, indent=1)
        f.write("\n")
    plots.gates(found, out.with_suffix(".png"))
    return found


def compare(files: dict[str, Path], out: Path) -> None:
    """Draw curves that `write` has written, system name -> file, into one plot."""
    plots.gate_comparison({name: read_curve(file) for name, file in files.items()}, out)


def selection(kept, target, true=None, corrupted=None) -> dict[str, float]:
    """Describe one epoch of a gate. Arrays are [N] over the utterances.

    Args:
        kept: 1 if the gate let the utterance through, 0 if not, NaN if it was not seen.
        target: class trained on.
        true: true class.
        corrupted: bool, whether the label was made wrong on purpose.

    Returns quantity: share of the seen utterances that passed (eq. 3). quality: share of the passed ones
    whose class is the true one (eq. 2), NaN if none passed. label_accuracy: the same share over all seen
    ones. corrupted_passed and others_passed: share of the corrupted and of the other labels that passed.
    """
    seen = ~np.isnan(kept)
    passed = kept == 1

    def share(of, among):
        return float(np.mean(of[among])) if among.any() else float("nan")

    out = {"quantity": share(passed, seen)}
    if true is not None:
        out |= {"quality": share(target == true, passed), "label_accuracy": share(target == true, seen)}
    if corrupted is not None:
        out |= {
            "corrupted_passed": share(passed, seen & corrupted),
            "others_passed": share(passed, seen & ~corrupted),
        }
    return out


def curves(run_folder: Path, data, truth: dict | None, corrupted: set | None) -> list[dict]:
    """`selection` of every epoch of one training, whose last rows are the utterances of `data`.

    UserError: it was trained on other utterances or labels, or has no records of a gate.
    """
    utts = data.utts
    trained_on = label_hash(run_folder / "run.json").split("+")[1:]
    if trained_on and trained_on[0] != data.label_hash():
        rule = f"was trained on other unlabeled utterances or labels than those of {data.path}"
        raise UserError(rule, file=run_folder, hint="give the directory that it was trained on")
    number = {spk: k for k, spk in enumerate(decode(run_folder / "classes.txt").split())}
    true = None if truth is None else np.array([number.get(truth[u], -1) for u in utts])
    wrong = None if corrupted is None else np.array([u in corrupted for u in utts])
    out, name = [], "/".join(run_folder.parts[-3:-1] if run_folder.name == "model" else run_folder.parts[-2:])
    for epoch, rows in rows_of(run_folder):
        for key in ("kept", "target"):
            if key not in rows or rows[key].ndim != 1 or len(rows[key]) < len(utts):
                rule = f"epoch {epoch} has no {key} for the {len(utts)} utterances"
                raise UserError(
                    rule, file=run_folder / "rows", hint="give a run of objective gll and its data"
                )
        kept, target = rows["kept"][-len(utts) :].astype(np.float64), rows["target"][-len(utts) :]
        out.append({"run": name, "epoch": epoch, **selection(kept, target, true, wrong)})
    return out


def models_of(exp: Path, unlabeled: str) -> list[tuple[Path, str]]:
    """(model folder, its --unlabeled directory) of the gates in a gll experiment, in training order."""
    rounds = sorted(exp.glob("round[1-9]*"), key=lambda r: (len(r.name), r.name))
    found = [(phase / "model", str(r / "data")) for r in rounds for phase in sorted(r.iterdir())]
    found = [pair for pair in found if pair[0].is_dir() and pair[0].parent.name != "model"]
    found.sort(key=lambda pair: (len(pair[1]), pair[1], (pair[0] / "run.json").stat().st_mtime_ns))
    return [pair for pair in [*found, (exp / "baseline/model", unlabeled)] if (pair[0] / "rows").is_dir()]


def label_hash(record: Path) -> str:
    """The label hash in run.json; "" if it has none. UserError: the file is not a run.json."""
    found = foreign.read_json(record).get("label_hash", "") if record.exists() else ""
    if not isinstance(found, str):
        raise UserError(f"label_hash is {foreign.short(found)}", file=record)
    return found


def read_curve(file: Path) -> list[dict]:
    """Read curves that `write` has written, a list of epochs. UserError: the file is something else."""
    hint = "write it with bin.gate_curves"
    found = foreign.read_json(file, list, nan=True, hint=hint)
    for epoch in found:
        for key in ("quantity", "quality"):
            value = epoch.get(key, math.nan) if isinstance(epoch, dict) else None
            if not (isinstance(value, float) and math.isnan(value)):
                foreign.number(value, key, 0, 1, file=file, hint=hint)
    return found
