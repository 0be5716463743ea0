"""Link finished phases of another experiment into a new one, which continues from them.

Linked are `<phase>/model` and `<phase>/data` (and data_out) of the phases that a recipe makes before --stage
and, of the rounds, those below --round, and imported embeddings. A round's report.json is copied. The new
experiment embeds by these models itself, and makes its own scores and report. A linked model is never written
to. If the recipe would train it with other settings, data or labels, the trainer refuses it, as it does when it
resumes.
"""

import argparse
import os
import re
import shutil
from pathlib import Path

from pyspkv.base import foreign
from pyspkv.base.errors import UserError, natural, run


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m pyspkv.bin.reuse", description=__doc__.splitlines()[0])
    p.add_argument(
        "--from",
        dest="source",
        required=True,
        type=Path,
        metavar="EXP",
        help="experiment whose finished phases are linked",
    )
    p.add_argument("--exp", required=True, type=Path, metavar="EXP2", help="new experiment")
    p.add_argument(
        "--stage", type=natural, required=True, metavar="N", help="first stage of the new experiment"
    )
    p.add_argument("--round", type=natural, default=1, metavar="R", help="first round of stage 4")
    return p.parse_args()


def wanted(phase: str, stage: int, first_round: int) -> bool:
    """Whether a recipe makes this phase before `stage` and, if it is a round, before `first_round`."""
    if re.fullmatch(r"(pretrain|trunk)\w*", phase):
        return True
    if number := re.fullmatch(r"round([1-9]\d{0,5})", phase):
        return stage > 4 or int(number[1]) < first_round
    return stage > (4 if phase in ("supervised", "baseline") else 5)


def link(place: Path, target: Path) -> None:
    """Make `place` a link to `target`, if it is none yet. UserError: it is something else."""
    target = target.resolve()
    if place.is_symlink() and place.resolve() == target:
        return
    if place.is_symlink() or place.exists():
        hint = "give another --exp, or drop --reuse"
        raise UserError(f"exists and does not link to {target}", file=place, hint=hint)
    place.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, place)


def main() -> None:
    args = parse()
    source = args.source.resolve()
    if not source.is_dir():
        raise UserError(
            "no such experiment", file=args.source, hint="give the folder of an experiment (--exp of run.sh)"
        )
    if source == args.exp.resolve():
        raise UserError("is the same experiment", file=args.exp, hint="give another --exp")
    linked = 0
    for model in sorted(source.glob("*/model")):
        phase = model.parent.name
        if not wanted(phase, args.stage, args.round):
            continue
        if not foreign.is_finished(model):
            raise UserError(
                "has not finished training", file=model, hint="run that experiment to its end first"
            )
        parts = [model] + [p for p in (model.parent / "data", model.parent / "data_out") if p.is_dir()]
        for part in parts:
            link(args.exp / phase / part.name, part)
        report = model.parent / "report.json"  # of the labels; the new experiment's report shows it
        if report.is_file():
            shutil.copyfile(report, args.exp / phase / "report.json", follow_symlinks=False)
        linked += 1
        print(f"{args.exp}/{phase}: from {model.parent}")
    if args.stage > 3 and (source / "imported/embed/train/embedding.scp").is_file():
        link(args.exp / "imported/embed/train", source / "imported/embed/train")
        linked += 1
        print(f"{args.exp}/imported: from {source}/imported")
    if not linked:
        raise UserError(
            "has no finished phase before this stage", file=args.source, hint="run its stage 3 first"
        )


if __name__ == "__main__":
    run(main)
