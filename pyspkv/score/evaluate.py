"""Bring the scores and metrics of systems up to date: SYSTEM/score/NAME.scores and NAME.json (`evaluate`)."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pyspkv.base import foreign
from pyspkv.base.atomic import command_line
from pyspkv.score.wanted import (
    Inputs,
    Part,
    Wanted,
    calibration_of,
    check_compare,
    check_there,
    compared_to,
    entry,
    in_order,
    outputs,
    parts_of,
    read_made_by,
    refuse_link,
    unwanted,
    up_to_date,
)

if TYPE_CHECKING:
    from pyspkv.score.evaluation import System, TrialList


def evaluate(request: Wanted) -> list[str]:
    """Score, calibrate and measure systems on trial lists; files that are up to date are kept.

    Writes SYSTEM/score/LIST.scores and .json, the variants of `request` and, with request.dev, the
    calibration. Removes variants of these lists that `request` does not include. Returns the systems, each
    once, in the order of scoring. UserError: a list, embeddings or the system to compare with do not exist;
    embeddings come from different models.
    """
    parts, systems = parts_of(request), in_order(request)
    check_there(systems, request, parts)
    check_compare(systems, request, parts)
    _update(systems, request, parts)
    return systems


def _make(system: "System", trials: "TrialList", part: Part, request: Wanted) -> None:
    """Write the files of one part."""
    from pyspkv.score import evaluation
    from pyspkv.score.calibration import Calibration

    folder, kind = system.folder, part.kind
    path, calibration = f"{folder}/score/{part.stem}.scores", calibration_of(folder)
    for file in outputs(folder, part):
        if file.is_symlink():
            refuse_link(file)
    if kind == "dev":
        scores = evaluation.write(trials, path, system.plain(trials))
        if why := evaluation.calibrate(trials, scores, str(calibration)):
            print(f"warning: {folder} is scored without calibration: {path}: {why}", file=sys.stderr)
    elif kind == "plain":
        llr = Calibration.read(calibration) if calibration.exists() else None
        evaluation.write(trials, path, system.plain(trials), llr, compared_to(request, folder, part))
    elif kind == "asnorm":
        scores = system.asnorm(trials, f"{request.cohort_data}/utt2spk", request.top_n, part.cohort)
        evaluation.write(trials, path, scores)
    elif kind == "mean":
        evaluation.write(trials, path, system.mean(trials, part.cohort))
    else:
        evaluation.write(trials, path, system.crops(trials))


def _warn_silent(folder: str, trials: "TrialList", part: Part) -> None:
    """Warn of utterances in a list's trials that have no signal, as extraction has recorded.

    No audio is opened.
    """
    from pyspkv.audio import silence

    scp = Path(folder, "embed", part.name, "embedding.scp")
    if part.kind in ("dev", "plain"):  # the variants have the same trials
        silence.warn(silence.among([scp], trials.utts()), part.trials)


def _evaluate_system(folder: str, lists: dict[str, "TrialList"], parts: list[Part], inputs: Inputs) -> None:
    """Bring the files of one system up to date."""
    from pyspkv.base.atomic import atomic_file
    from pyspkv.score.evaluation import System

    gone, system, made = unwanted(folder, inputs.request, parts), System(folder), []
    for path in gone:
        path.unlink()
    for part in parts:
        if up_to_date(folder, part, inputs):
            continue
        _warn_silent(folder, lists[part.stem], part)
        before = inputs.of(folder, part)
        _make(system, lists[part.stem], part, inputs.request)
        known = read_made_by(folder) | {part.stem: entry(folder, part, before)}
        with atomic_file(Path(folder, "score/made_by")) as f:
            f.write(json.dumps(known, indent=1) + "\n")
        made.append(part.stem)
    if gone:
        print(f"removed, because the options do not include them: {' '.join(map(str, gone))}")
    print(f"{folder}/score: {', '.join(made)}" if made else f"up to date: {folder}/score")


def _all_stand(folder: str, request: Wanted, parts: list[Part], inputs: Inputs) -> bool:
    """Whether all score files of a system are up to date and none must be removed."""
    return not unwanted(folder, request, parts) and all(up_to_date(folder, part, inputs) for part in parts)


def _update(systems: list[str], request: Wanted, parts: list[Part]) -> None:
    """Make the files that are out of date. If none is, nothing heavy is imported."""
    looked = Inputs(request)
    if all(_all_stand(system, request, parts, looked) for system in systems):
        for system in systems:
            print(f"up to date: {system}/score")
        return
    from pyspkv.base.atomic import folder_lock
    from pyspkv.score.evaluation import TrialList

    lists = {part.list_name: TrialList(part.name, part.data, part.trials) for part in parts}
    with ExitStack() as locks:
        for system in systems:
            locks.enter_context(folder_lock(Path(system, "score")))
        inputs = Inputs(request)  # read again under the locks: no other process writes now
        for system in systems:
            _evaluate_system(system, {part.stem: lists[part.list_name] for part in parts}, parts, inputs)


def table(systems: list[str], request: Wanted) -> str:
    """Format the figures of all systems and lists, from the JSON files, as text."""
    rows = [("system", "list", "EER %", "95 % interval", "minDCF(0.01)", "Cllr", "EER % AS-norm")]
    lists = [part.stem for part in parts_of(request) if part.kind == "plain"]
    for system in systems:
        for name in lists:
            found, norm = (
                read_figures(Path(system, "score", f"{name}{end}.json")) for end in ("", "-asnorm")
            )
            low, high = found.get("eer_ci_low"), found.get("eer_ci_high")
            interval = "-" if low is None or high is None else f"{low:.2f} .. {high:.2f}"
            figures = [(found, "eer", 2), (found, "min_dcf_0.01", 4), (found, "cllr", 4), (norm, "eer", 2)]
            eer, dcf, cllr, normed = (f"{m[k]:.{n}f}" if k in m else "-" for m, k, n in figures)
            rows.append((system, name, eer, interval, dcf, cllr, normed))
    width = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if c < 2 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, width)))
        for row in rows
    )


def read_figures(path: Path) -> dict:
    """Read the figures of a metrics file that `table` shows; {} if it does not exist.

    UserError: one is not a number.
    """
    hint = command_line("rm", path)
    found = foreign.read_json(path, hint=hint) if path.exists() else {}
    keys = ("eer", "eer_ci_low", "eer_ci_high", "min_dcf_0.01", "cllr")
    shown = {k: found[k] for k in keys if found.get(k) is not None}
    return {k: foreign.number(v, k, file=path, hint=hint) for k, v in shown.items()}
