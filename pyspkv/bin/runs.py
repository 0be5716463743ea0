"""Questions of recipes to finished runs: which has the lowest dev EER, how high did a logged quantity rise."""

import argparse
import math
from pathlib import Path

from pyspkv.errors import UserError, run


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m pyspkv.bin.runs", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True)
    sub = commands.add_parser(
        "best", help="print the run folder with the lowest dev EER, of equal ones the first"
    )
    sub.add_argument("runs", nargs="+", type=Path, metavar="DIR")
    sub = commands.add_parser("model", help="print the checkpoint folder that DIR[@best|last] names")
    sub.add_argument("run", metavar="DIR[@best|last]")
    sub = commands.add_parser("peak", help="print FACTOR times the highest epoch mean of KEY")
    sub.add_argument("--factor", type=float, default=1.0)
    sub.add_argument("key")
    sub.add_argument("run", type=Path, metavar="DIR")
    args = p.parse_args()
    if args.command == "peak" and not math.isfinite(args.factor):
        p.error("--factor is a finite number")
    return args


def dev_eer(folder: Path) -> float:
    from pyspkv import checkpoint

    eer = checkpoint.state(checkpoint.find(folder)).get("best_eer")
    if eer is None:
        raise UserError("was trained without a dev list", file=folder, mend="bin.train --dev --dev-trials")
    return eer


def peak(folder: Path, key: str) -> float:
    from pyspkv.bin.report import epochs_of

    values = [r[key] for r in epochs_of(folder.parent, folder.name) if key in r and key != "kind"]
    if not values:
        raise UserError(f"no epoch has '{key}'", file=folder / "train.jsonl")
    return max(values)


def main() -> None:
    args = parse_args()
    if args.command == "best":
        print(min(args.runs, key=dev_eer))
    elif args.command == "model":
        from pyspkv import checkpoint

        print(checkpoint.find(args.run))
    else:
        print(f"{args.factor * peak(args.run, args.key):.6g}")


if __name__ == "__main__":
    run(main)
