"""The command `pyspkv`: `pyspkv extract ...` is `python -m pyspkv.bin.extract ...`, and so on."""

import ast
import difflib
import os
import runpy
import sys
from pathlib import Path

from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError, run

# fmt: off
ABOUT: dict[str, str] = {  # descriptions of entry points whose file has none
}
# fmt: on


def commands() -> dict[str, Path]:
    """Name -> file of every entry point, in order of name. Nothing is imported."""
    files = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return {file.stem: file for file in files if file.stem != "main"}


def about(file: Path) -> str:
    """First sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_bytes())) or ""
    return " ".join(text.partition("\n\n")[0].split())


def overview() -> str:
    """The text of `pyspkv --help`."""
    lines = ["usage: pyspkv COMMAND ... (each has --help), the same as python -m pyspkv.bin.COMMAND ...", ""]
    return "\n".join(lines + [f"  {name:20} {about(file)}" for name, file in commands().items()])


def find(word: str) -> str:
    """The entry point for a name with hyphens or underscores. UserError: it does not exist."""
    name, known = word.replace("-", "_"), commands()
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, 1)
    raise UserError(f"there is no command {word[:60]!r}", hint=command_line("pyspkv", *close, "--help"))


def dispatch() -> None:
    """Run the entry point that the command line names."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        raise SystemExit(0 if words else 2)
    if words[0] in ("--version", "version"):
        from pyspkv import __version__

        print(f"pyspkv {__version__}")
        return
    name = find(words[0])
    sys.argv = [os.fspath(commands()[name]), *words[1:]]
    runpy.run_module(f"pyspkv.bin.{name}", run_name="__main__", alter_sys=True)  # like python -m


def main() -> None:
    """Entry point of the installed command."""
    run(dispatch)


if __name__ == "__main__":
    run(dispatch)
