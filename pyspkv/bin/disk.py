"""Disk usage of an experiment: what can be removed, and the commands that remove it and make it again."""

import argparse

from pyspkv.base.errors import run


def size(number: float) -> str:
    """Bytes as text with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.disk",
        description="Print the size of an experiment and what can be removed. Nothing is removed.",
    )
    p.add_argument("exp", metavar="EXP", help="experiment, the folder of run.sh --exp")
    p.add_argument("--json", action="store_true", help="print JSON")
    args = p.parse_args()
    from pyspkv.base.atomic import command_line
    from pyspkv.report.disk import KINDS, weigh

    parts = weigh(args.exp)
    if args.json:
        import json

        print(json.dumps({k: {**vars(part), "removable": [str(x) for x in part.removable],
                              "kept": sorted(part.kept), "remake": sorted(part.remake)}
                          for k, part in parts.items()}, indent=1))  # fmt: skip
        return
    print(f"{args.exp}: {size(sum(part.bytes for part in parts.values()))}, "
          f"{size(sum(part.free for part in parts.values()))} can be removed")  # fmt: skip
    for kind, part in parts.items():
        if not part.files:
            continue
        print(f"  {kind:11} {size(part.bytes):>9}, {size(part.free):>9} can be removed: {KINDS[kind]}")
        for why in sorted(part.kept):
            print(f"    kept: {why}")
        if part.removable:
            print(f"    remove: {command_line('rm', '-r', *part.removable)}")
        for how in sorted(part.remake):
            print(f"    again:  {how}")


if __name__ == "__main__":
    run(main)
