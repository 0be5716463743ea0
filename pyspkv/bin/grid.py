"""Run the cells of a table of experiments; write RESULTS.jsonl, RESULTS.md and plots."""

import argparse
import shlex
from pathlib import Path

from pyspkv.base.errors import natural, run


def parse_args() -> argparse.Namespace:
    from pyspkv.experiments import grid

    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.grid",
        description="Run the unfinished cells of a table of experiments, and write their rows into "
        "the recipe's RESULTS.jsonl and RESULTS.md, and exp/grid/plots. Any number of processes may work on one table.",
        epilog=grid.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("table", type=Path, help="file of the table")
    p.add_argument("--exp", type=Path, help="folder of the experiments, RESULTS.jsonl and RESULTS.md")
    p.add_argument(
        "--only", default="*", metavar="NAME", help="only these cells ('gll-*') and what they need"
    )
    p.add_argument("--jobs", type=natural, default=1, help="number of cells that run at a time")
    p.add_argument("--cmd", type=shlex.split, default=[], help="runner: 'utils/run.sh --num-threads 1'")
    p.add_argument(
        "--run-opts", type=shlex.split, default=[], help="options of every run.sh, as '--nj 2 --ngpu 1'"
    )
    p.add_argument(
        "--status", action="store_true", help="print which cells are done and how long the rest will take"
    )
    p.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    p.add_argument("--report", action="store_true", help="only write RESULTS.md and plots from RESULTS.jsonl")
    return p.parse_args()


def main() -> int:
    args = parse_args()
    from pyspkv.experiments import results, runner
    from pyspkv.experiments.grid import Table, looks

    table, jobs, code = Table(args.table), max(1, args.jobs), 0
    if args.cmd and "/" in args.cmd[0]:  # a path relative to this folder or to the repository
        args.cmd[0] = str((here if (here := Path(args.cmd[0])).is_file() else runner.ROOT / here).absolute())
    exp = Path(args.exp or table.exp).absolute()
    if args.exp:
        table.results = exp / "RESULTS.jsonl"
    grid = runner.Runner(table, exp, args.only, args.cmd, args.run_opts)
    commands = [
        f"cd {shlex.quote(str(table.recipe(c)))} && {shlex.join(grid.command(c))}" for c in grid.cells
    ]
    if args.dry_run:
        print("\n".join(commands))
    elif args.status:
        grid.status(jobs)
    else:
        files = [*sorted(args.table.parent.glob("*.yaml")), args.table]  # RESULTS.md shows the tables of all
        shown = looks(files)
        results.read_rows(table.results)  # a damaged file is found now, not after hours of work
        if not args.report:
            code = grid.work(jobs)
        if table.results.exists():
            number = results.write_tables(table.results, shown, exp / "plots" if code < 128 else None)
            print(f"{number} rows in {table.results}, tables in {table.results.with_suffix('.md')}")
    return code


if __name__ == "__main__":
    run(main)
