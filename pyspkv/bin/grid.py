"""Run the cells of a table of experiments and write RESULTS.jsonl, RESULTS.md and plots."""

import argparse
import re
import shlex
from pathlib import Path

from pyspkv.errors import UserError, natural, run


def pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as err:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {err}") from None


def parse_args() -> argparse.Namespace:
    from pyspkv import grid

    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.grid",
        description="Run the cells of a table of experiments that are not done yet, and write their rows into "
        "RESULTS.jsonl, RESULTS.md and EXP/plots. Any number of processes may work on one table.",
        epilog=grid.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("table", type=Path, help="the table file")
    p.add_argument("--exp", type=Path, help="folder of the cells' experiments; default: the table's")
    p.add_argument("--only", type=pattern, default="", metavar="REGEX", help="these cells and what they need")
    p.add_argument("--jobs", type=natural, default=1, help="cells at a time")
    p.add_argument("--cmd", type=shlex.split, default=[], help="runner: 'utils/run.sh --num-threads 1'")
    p.add_argument("--run-opts", type=shlex.split, default=[], help="of every run.sh, as '--nj 2 --ngpu 1'")
    p.add_argument("--force", nargs="+", default=[], metavar="CELL", help="begin these anew")
    p.add_argument(
        "--status", action="store_true", help="print what is done, and about how long the rest takes"
    )
    p.add_argument("--dry-run", action="store_true", help="print every command, and run nothing")
    p.add_argument("--report", action="store_true", help="only write RESULTS.md and plots from RESULTS.jsonl")
    return p.parse_args()


def main() -> int:
    args = parse_args()
    from pyspkv import results, runner
    from pyspkv.grid import Table

    table = Table(args.table)
    looks = {}
    for file in sorted(Path(args.table).parent.glob("*.yaml")):  # RESULTS.md has the tables of all of them
        other = table if file.resolve() == args.table.resolve() else Table(file)
        looks |= other.looks if other.results == table.results else {}
    if args.cmd and "/" in args.cmd[0]:  # as it is called from here, or from the repository
        args.cmd[0] = str((here if (here := Path(args.cmd[0])).is_file() else runner.ROOT / here).absolute())
    exp = Path(args.exp or table.exp).absolute()
    grid = runner.Runner(table, exp, args.only, args.cmd, args.run_opts)
    commands = [(cell, grid.command(cell)) for cell in grid.cells]
    if args.dry_run:
        for cell, words in commands:
            print(f"cd {shlex.quote(str(table.recipe(cell)))} && {shlex.join(words)}")
        return 0
    if args.status:
        grid.status(args.jobs)
        return 0
    code = 0
    if not args.report:
        if lost := [p for p in map(table.recipe, grid.cells) if not (p / "run.sh").is_file()]:
            raise UserError(
                f"{lost[0]} has no run.sh", file=args.table, mend="`recipe:` names a recipe's folder"
            )
        results.read_rows(table.results)  # before hours of work
        grid.set_aside(args.force)
        grid.refuse_changed()
        code = grid.work(max(1, args.jobs))
    if table.results.exists():
        number = results.write_tables(table.results, looks, exp / "plots" if code < 128 else None)
        print(f"{number} rows in {table.results}, tables in {table.results.with_suffix('.md')}")
    return code


if __name__ == "__main__":
    run(main)
