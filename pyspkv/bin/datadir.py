"""Make and check Kaldi data directories; utils/*.sh call this with Kaldi's names and options."""

import argparse
import importlib
import sys

from pyspkv.base.errors import run
from pyspkv.data.commands import COMMANDS


def parser_for(words: list[str]) -> argparse.ArgumentParser:
    """A parser of all subcommands.

    Only the one that `words` begins with gets its arguments, to import no other.
    """
    parser = argparse.ArgumentParser(prog="python -m pyspkv.bin.datadir", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, about) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=about,
            description=about,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if words[:1] == [name]:
            found = load(module)
            found.add_arguments(sub)
            sub.set_defaults(function=found.run, parser=sub)
    return parser


def load(module: str):
    """Import the module of a subcommand."""
    return importlib.import_module(f"pyspkv.data.commands.{module}")


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    module = load(COMMANDS[words[0]][0]) if words and words[0] in COMMANDS else None
    if module is not None and hasattr(module, "tidy"):
        words = [words[0], *module.tidy(words[1:])]
    args = parser_for(words).parse_args(words)
    args.function(args)


if __name__ == "__main__":
    run(main)
