"""Assess models on prepared test sets: embeddings, scores, AS-norm, calibration, one table of all lists."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError, run


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.assess",
        description="Embed the utterances of data directories with each model, score their trials and print one table. "
        "`shows from` is the smallest difference in EER that a list can show: half the 95 % interval of a paired "
        "difference, drawn over speakers. Results in OUT that are up to date are kept.",
        epilog="python -m pyspkv.bin.assess --model exp/finetune/model --data data/test data/o --cohort data/train "
        "--dev data/dev --out exp/assess",
    )
    p.add_argument("--model", required=True, nargs="+", metavar="DIR", help="experiments, phases or model folders; the "
                   "others are compared to the first")  # fmt: skip
    p.add_argument("--data", required=True, nargs="+", metavar="DIR", help="data directories with trials")
    p.add_argument("--cohort", metavar="DIR", help="data directory of other speakers: gives AS-norm")
    p.add_argument("--dev", metavar="DIR", help="data directory with trials of other speakers: calibration")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the results, with one subfolder per model"
    )
    p.add_argument("--allow-pipes", action="store_true", help="run entries that are commands (`... |`)")
    p.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return p.parse_args()


def call(*words: str | Path) -> None:
    """Run another entry point, with its messages on stderr.

    If it fails, exit with its code: it has said why.
    """
    done = subprocess.run([sys.executable, "-m", *map(str, words)], stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(done.returncode)


def name_of(folder: str) -> str:
    """Name of a data directory: the last component of its path."""
    return os.path.basename(os.path.abspath(folder))


def prepared(args: argparse.Namespace) -> dict[str, str]:
    """Name -> data directory, for all that is embedded. UserError: two share a name, or one has no trials."""
    out: dict[str, str] = {}
    for folder in [*args.data, *filter(None, [args.dev, args.cohort])]:
        if out.setdefault(name_of(folder), folder) != folder:
            rule = f"{out[name_of(folder)]} has the same name, and the table tells lists apart by name; give a link"
            full = Path(os.path.abspath(folder))
            link = full.with_name(f"{full.parent.name}-{full.name}")
            raise UserError(rule, file=folder, hint=command_line("ln", "-s", full, link))
        if folder != args.cohort and not Path(folder, "trials").is_file():
            hint = command_line("python", "-m", "pyspkv.bin.datadir", "make-trials", Path(folder))
            raise UserError("no such file", file=f"{folder}/trials", hint=hint)
    return out


def system_of(out: Path, number: int, model: str) -> Path:
    """The folder of a model's results; a link in it names the model.

    UserError: it belongs to another model.
    """
    folder, link = out / str(number), out / str(number) / "model"
    target = os.path.abspath(model.removesuffix("@best").removesuffix("@last"))
    folder.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(link):
        link.symlink_to(target)
    if os.path.realpath(link) != os.path.realpath(target):
        raise UserError(f"belongs to another model, not to {target}", file=link, hint="give another --out")
    return folder


def bring_calibration(system: Path) -> None:
    """Restore the model's own calibration (or none) after an earlier --dev."""
    from pyspkv.base.atomic import atomic_file

    own, used = system / "model/calibration.json", system / "calibration.json"
    if not own.is_file():
        used.unlink(missing_ok=True)
    elif not used.is_file() or used.read_bytes() != own.read_bytes():
        with atomic_file(used, "wb") as f:
            f.write(own.read_bytes())


def main() -> None:
    args = parse_args()
    from pyspkv.api.speaker_model import find_model
    from pyspkv.score import assessment

    sets, out = prepared(args), Path(args.out)
    models = [find_model(model) for model in args.model]
    systems = [system_of(out, k, model) for k, model in enumerate(models, 1)]
    for model, system in zip(models, systems):
        if not args.dev:
            bring_calibration(system)
        for name, folder in sets.items():
            pipes = ["--allow-pipes"] if args.allow_pipes else []
            place = system / "embed" / name
            call("pyspkv.bin.extract", "--model", model, "--data", folder, "--out", place, *pipes)
    words = ["--systems", *systems, "--data", *args.data]
    words += ["--dev", args.dev] if args.dev else []
    words += ["--cohort-data", args.cohort, "--cohort-set", name_of(args.cohort)] if args.cohort else []
    words += ["--compare", systems[0]] if systems[1:] else []
    call("pyspkv.bin.evaluate", *words)
    rows = [(model, assessment.assess(system, name_of(data), Path(data)))
            for model, system in zip(args.model, systems) for data in args.data]  # fmt: skip
    if args.json:
        print(json.dumps([{"model": model, **found} for model, found in rows], indent=1))
    else:
        print(assessment.table(rows))
        print("shows from: half the 95 % interval of a paired difference over speakers; less may be chance")


if __name__ == "__main__":
    run(main)
