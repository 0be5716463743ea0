"""One way to fail: a one- or two-line message naming file, line, rule and mend; never a traceback."""

import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable


class UserError(Exception):
    """Input or usage is wrong. The message says what, where, and what to do about it."""

    def __init__(self, message: str, *, file=None, line: int | None = None, mend: str | None = None):
        place = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        super().__init__(place + message + (f"\n  mend: {mend}" if mend else ""))


def natural(text: str) -> int:
    """argparse type of seeds and the like: a whole number from 0."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def run(main: Callable[[], int | None]) -> None:
    """Run an entry point: a `UserError` becomes `error: ...` on stderr and exit code 1, Ctrl-C becomes 130.

    Set SPKV_TRACEBACK=1 to see where a user error was raised.
    """
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `... | head`: the reader left, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (UserError, OSError) as err:
        if os.environ.get("SPKV_TRACEBACK"):
            raise
        text = (
            str(err) if isinstance(err, UserError) or not err.filename else f"{err.filename}: {err.strerror}"
        )
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)
