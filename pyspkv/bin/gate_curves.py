"""What a gate let through, epoch by epoch: quantity, with a truth file quality (GLL, eq. 2 and 3). Diagnostics only."""

import argparse
import json
from pathlib import Path

from pyspkv.errors import UserError, run


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.gate_curves",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--compare", nargs="+", metavar="NAME=JSON",
                   help="draw these curves together; nothing else is done")  # fmt: skip
    p.add_argument("--runs", nargs="+", type=Path, metavar="DIR",
                   help="run folders, one after another (GLL's T, V, L)")  # fmt: skip
    p.add_argument("--unlabelled", nargs="+", metavar="DIR",
                   help="what they had as --unlabelled; one, or one for each run")  # fmt: skip
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
    if bool(args.compare) == bool(args.runs) or (args.runs and not args.unlabelled):
        p.error("give --runs with --unlabelled, or --compare")
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
    """`selection` of every epoch of one run, whose last rows are the utterances of `data`."""
    import numpy as np
    from safetensors.numpy import load_file

    record = run_folder / "run.json"
    utts = data.utts
    trained_on = (
        json.loads(record.read_text()).get("label_hash", "").split("+")[1:] if record.exists() else []
    )
    if trained_on and trained_on[0] != data.label_hash():
        rule = f"was trained on other unlabelled utterances or labels than {data.path} has"
        raise UserError(rule, file=run_folder, mend="give the directory that it was trained on")
    classes = (run_folder / "classes.txt").read_text().split()
    number = {spk: k for k, spk in enumerate(classes)}
    true = None if truth is None else np.array([number.get(truth[u], -1) for u in utts])
    wrong = None if flipped is None else np.array([u in flipped for u in utts])
    out, name = [], f"{run_folder.parent.name}/{run_folder.name}"
    for file in sorted((run_folder / "rows").glob("epoch-*.safetensors")):
        rows = load_file(file)
        kept, target = rows["kept"][-len(utts) :], rows["target"][-len(utts) :]
        out.append({"run": name, "epoch": int(file.stem[6:]), **selection(kept, target, true, wrong)})
    return out


def main() -> None:
    args = parse_args()
    from pyspkv import plots
    from pyspkv.atomic import atomic_file
    from pyspkv.datadir import DataDir, read_table
    from pyspkv.tables import of_each

    if args.compare:
        pairs = [pair.partition("=")[::2] for pair in args.compare]
        plots.gate_comparison(
            {n: json.loads(Path(f).read_text()) for n, f in pairs}, args.out.with_suffix(".png")
        )
        return
    truth = read_table(args.truth, "id") if args.truth else None
    flipped = set(Path(args.flipped).read_text().split()) if args.flipped else None
    folders = args.unlabelled * (len(args.runs) if len(args.unlabelled) == 1 else 1)
    found = []
    for run_folder, data in zip(args.runs, folders):
        unlabelled = DataDir.read(data)
        if truth is not None:
            of_each(truth, unlabelled.utts, args.truth)
        found += curves(run_folder, unlabelled, truth, flipped)
    if not found:
        raise UserError("no epoch of these runs has a gate's rows", file=args.runs[0])
    with atomic_file(args.out) as f:
        json.dump(found, f, indent=1)
        f.write("\n")
    plots.gates(found, args.out.with_suffix(".png"))
    last = {k: v for k, v in found[-1].items() if isinstance(v, float)}
    print(f"{args.out}: last epoch " + ", ".join(f"{k} {v:.3f}" for k, v in last.items()))


if __name__ == "__main__":
    run(main)
