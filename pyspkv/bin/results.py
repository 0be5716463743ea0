"""Rows of one experiment into RESULTS.jsonl by hand (bin.grid does it for a table of them), and RESULTS.md from it."""

import argparse
from pathlib import Path

from pyspkv.errors import UserError, natural, run


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.results",
        description="Write the systems of EXP/results.json into FILE (RESULTS.jsonl) and RESULTS.md beside it. Without "
        "--exp only RESULTS.md is written anew. A table of experiments is a matter for bin.grid.",
    )
    p.add_argument("--file", type=Path, default=Path("RESULTS.jsonl"), help="RESULTS.jsonl")
    p.add_argument("--exp", type=Path, help="experiment folder with results.json (bin.report)")
    p.add_argument("--table", help="title of the table that the rows belong to")
    p.add_argument("--seed", type=natural, help="seed of this run")
    p.add_argument("--fold", type=natural, help="fold of this run, where folds vary")
    p.add_argument("--command", default="", help="the command that made it")
    args = p.parse_args()
    if args.exp and (args.table is None or args.seed is None):
        p.error("--exp needs --table and --seed")
    return args


def main() -> None:
    args = parse_args()
    from pyspkv import results

    path = args.file.absolute()
    if args.exp:
        same = {"table": args.table, "seed": args.seed, "command": args.command, "machine": results.machine()}
        same |= {} if args.fold is None else {"fold": args.fold}
        names = [n for n in results.systems(args.exp) if n != "final"]
        rows = [same | {"row": n, **results.row_of(args.exp, n)} for n in names]
        results.add_rows(path, [{k: v for k, v in r.items() if v is not None} for r in rows])
    elif not path.exists():
        raise UserError("is not there", file=path, mend="give --exp, --table and --seed to begin it")
    number = results.write_tables(path, {})
    print(f"{number} rows in {args.file}, tables in {args.file.with_suffix('.md')}")


if __name__ == "__main__":
    run(main)
