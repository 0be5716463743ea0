"""What a gate let through, epoch by epoch: quantity, with a truth file quality (GLL, eq. 2 and 3). Diagnostics only."""

import argparse
import json
import math
from pathlib import Path

from pyspkv.base import foreign
from pyspkv.base.errors import UserError, run


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.gate_curves",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--compare", nargs="+", metavar="NAME=JSON",
                   help="draw these curves together; nothing else is done")  # fmt: skip
    p.add_argument("--exp", type=Path, metavar="EXP", help="experiment of a gll recipe: all its gates")
    p.add_argument("--runs", nargs="+", type=Path, metavar="DIR", help="or: model folders, one after another")
    p.add_argument("--unlabelled", nargs="+", metavar="DIR",
                   help="what they had as --unlabelled; one, or one for each model (of --exp: a baseline)")  # fmt: skip
    p.add_argument("--truth", metavar="UTT2SPK", help="true speakers of the unlabelled utterances")
    p.add_argument(
        "--flipped", metavar="FILE", help="utterances whose label bin.seeded_cluster --flip changed"
    )
    p.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="JSON",
        help="curves; a .png is written beside it, or alone",
    )
    args = p.parse_args()
    if sum(map(bool, (args.compare, args.runs, args.exp))) != 1 or not (args.compare or args.unlabelled):
        p.error("give --exp or --runs with --unlabelled, or --compare")
    if args.compare and not all(pair.partition("=")[2] for pair in args.compare):
        p.error("--compare takes NAME=JSON")
    if args.runs and len(args.unlabelled) not in (1, len(args.runs)):
        p.error("--unlabelled: one folder, or as many as --runs")
    return args


def selection(kept, target, true=None, flipped=None) -> dict[str, float]:
    """One epoch of a gate: kept [N] (1, 0, NaN = not seen), class trained on [N], true class [N], flipped bool [N].

    quantity: share of those seen that passed (eq. 3). quality: share of those that passed whose class is the true one
    (eq. 2), NaN where none passed. label_accuracy: the same of all seen. *_passed: of flipped and of other labels,
    the share that passed.
    """
    import numpy as np

    seen = ~np.isnan(kept)
    passed = kept == 1

    def share(of, among):
        return float(np.mean(of[among])) if among.any() else float("nan")

    out = {"quantity": share(passed, seen)}
    if true is not None:
        out |= {"quality": share(target == true, passed), "label_accuracy": share(target == true, seen)}
    if flipped is not None:
        out |= {
            "flipped_passed": share(passed, seen & flipped),
            "others_passed": share(passed, seen & ~flipped),
        }
    return out


def curves(run_folder: Path, data, truth: dict | None, flipped: set | None) -> list[dict]:
    """`selection` of every epoch of one run, whose last rows are the utterances of `data`. UserError: of others."""
    import numpy as np

    from pyspkv.data.tables import decode
    from pyspkv.report.experiment import rows_of

    utts = data.utts
    trained_on = label_hash(run_folder / "run.json").split("+")[1:]
    if trained_on and trained_on[0] != data.label_hash():
        rule = f"was trained on other unlabelled utterances or labels than {data.path} has"
        raise UserError(rule, file=run_folder, mend="give the directory that it was trained on")
    number = {spk: k for k, spk in enumerate(decode(run_folder / "classes.txt").split())}
    true = None if truth is None else np.array([number.get(truth[u], -1) for u in utts])
    wrong = None if flipped is None else np.array([u in flipped for u in utts])
    out, name = [], "/".join(run_folder.parts[-3:-1] if run_folder.name == "model" else run_folder.parts[-2:])
    for epoch, rows in rows_of(run_folder):
        for key in ("kept", "target"):
            if key not in rows or rows[key].ndim != 1 or len(rows[key]) < len(utts):
                rule = f"epoch {epoch} has no {key} of {len(utts)} utterances"
                raise UserError(
                    rule, file=run_folder / "rows", mend="give a run of objective gll and its data"
                )
        kept, target = rows["kept"][-len(utts) :].astype(np.float64), rows["target"][-len(utts) :]
        out.append({"run": name, "epoch": epoch, **selection(kept, target, true, wrong)})
    return out


def models_of(exp: Path, unlabelled: str) -> list[tuple[Path, str]]:
    """(model folder, what it had as --unlabelled) of the gates in a gll experiment, in the order of training."""
    rounds = sorted(exp.glob("round[1-9]*"), key=lambda r: (len(r.name), r.name))
    found = [(phase / "model", str(r / "data")) for r in rounds for phase in sorted(r.iterdir())]
    found = [pair for pair in found if pair[0].is_dir() and pair[0].parent.name != "model"]
    found.sort(key=lambda pair: (len(pair[1]), pair[1], (pair[0] / "run.json").stat().st_mtime_ns))
    return [pair for pair in [*found, (exp / "baseline/model", unlabelled)] if (pair[0] / "rows").is_dir()]


def label_hash(record: Path) -> str:
    """What run.json says of the labels; "" where it says nothing. UserError: it is none."""
    found = foreign.read_json(record).get("label_hash", "") if record.exists() else ""
    if not isinstance(found, str):
        raise UserError(f"label_hash is {foreign.short(found)}", file=record)
    return found


def read_curve(file: Path) -> list[dict]:
    """What this program has written: a list of epochs. UserError: it is none."""
    mend = "make it with bin.gate_curves --runs"
    found = foreign.read_json(file, list, nan=True, mend=mend)
    for epoch in found:
        for key in ("quantity", "quality"):
            value = epoch.get(key, math.nan) if isinstance(epoch, dict) else None
            if not (isinstance(value, float) and math.isnan(value)):
                foreign.number(value, key, 0, 1, file=file, mend=mend)
    return found


def main() -> None:
    args = parse_args()
    from pyspkv.base.atomic import atomic_file
    from pyspkv.data.datadir import DataDir, read_table
    from pyspkv.data.tables import decode, of_each
    from pyspkv.report import plots

    if args.compare:
        pairs = [pair.partition("=")[::2] for pair in args.compare]
        plots.gate_comparison({n: read_curve(Path(f)) for n, f in pairs}, args.out.with_suffix(".png"))
        return
    truth = read_table(args.truth, "id") if args.truth else None
    if args.exp:
        pairs = models_of(args.exp, args.unlabelled[0])
        if not pairs:
            print(f"{args.exp}: no training here has a gate")
            return
        if (there := args.exp / "round1/flipped").is_file():
            args.flipped = there
    else:
        pairs = list(zip(args.runs, args.unlabelled * (len(args.runs) if len(args.unlabelled) == 1 else 1)))
    flipped = set(decode(args.flipped).split()) if args.flipped else None
    found = []
    for run_folder, data in pairs:
        unlabelled = DataDir.read(data)
        if truth is not None:
            of_each(truth, unlabelled.utts, args.truth)
        found += curves(run_folder, unlabelled, truth, flipped)
    if not found:
        raise UserError("no epoch of these runs has a gate's rows", file=pairs[0][0])
    with atomic_file(args.out, own=True) as f:
        json.dump(found, f, indent=1)
        f.write("\n")
    plots.gates(found, args.out.with_suffix(".png"))
    last = {k: v for k, v in found[-1].items() if isinstance(v, float)}
    print(f"{args.out}: last epoch " + ", ".join(f"{k} {v:.3f}" for k, v in last.items()))


if __name__ == "__main__":
    run(main)
