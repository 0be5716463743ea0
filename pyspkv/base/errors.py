"""One way to fail: a one- or two-line message naming file, line, rule and hint; never a traceback.

An entry point in pyspkv/bin has this shape, so that Ctrl-C, a missing package or full memory end in one line too:

    import argparse                           # at the top: the standard library and pyspkv.base.errors, nothing heavy
    from pyspkv.base.errors import UserError, run

    def main() -> None:
        args = parse()
        import numpy as np                    # what takes time to import, where it is needed

    if __name__ == "__main__":
        run(main)

`python -m pyspkv.bin.X` is guarded from the import of the package on (`guard`), the rest by `run`.
"""

import codecs
import contextlib
import os
import re
import select
import signal
import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable

ERROR_FILE = "SPKV_ERROR_FILE"  # where a launched process leaves its message; the launcher prints one of them
INTERNAL = 70  # EX_SOFTWARE of sysexits.h: the exit code of a defect of this program
PIPE_CLOSED = 128 + 13  # what a shell shows for a program that SIGPIPE ended
RANK_WAIT = 3.0  # seconds in which rank 0 meets the same error and the launcher ends the others


HINT = "\n  hint: "


def printable(text: str) -> str:
    """The text with what a terminal would act on or not show (line ends, escapes, odd blanks) written out."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Shown(str):
    """Text of a message with line ends of our own. The names in it are `printable`, so none can fake a line."""


class UserError(Exception):
    """Wrong input or usage. The message says what is wrong, where, and what to do.

    local: of several processes only this one may have met it, so it speaks even if it is not rank 0.
    message: of an error that is raised anew `str(err)`, whose lines stay lines; what else has line ends of its own is
    a `Shown`. Anything else is written out in one line, whatever names it holds.
    """

    consequence = False  # of another process's end, which tells the cause

    def __init__(
        self,
        message: str,
        *,
        file=None,
        line: int | None = None,
        hint: str | None = None,
        local: bool = False,
    ):
        place = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        text = printable(place) + (message if isinstance(message, Shown) else printable(message))
        super().__init__(Shown(text + (HINT + printable(hint) if hint else "")))
        self.local = local

    def __str__(self) -> str:
        return self.args[0]


def natural(text: str) -> int:
    """argparse type of seeds and the like: a whole number from 0 in plain digits, below 2^63."""
    if not (text.isascii() and text.isdecimal()):
        raise ArgumentTypeError(f"{text[:40]!a} is not a whole number from 0")
    if len(text) > 19 or int(text) >= 2**63:
        raise ArgumentTypeError(f"{text[:40]} is not below 2^63")
    return int(text)


def run(main: Callable[[], int | None]) -> None:
    """Run an entry point and exit: whatever goes wrong becomes `error: ...` on stderr, one or two lines.

    Exit codes: 1 for what the user can put right (`UserError`, `OSError`, memory, a missing package), 130 for Ctrl-C,
    141 where the reader of our output left before the work was done, 70 for a defect of ours, whose traceback goes to a
    file in $SPKV_LOG_DIR or the system's temporary folder. SPKV_TRACEBACK=1 shows every traceback.
    """
    guard()
    code: str | int | None
    try:
        try:
            code = main() or 0
        except SystemExit as end:  # argparse's
            code = end.code
        code = _flush(code)
    except BaseException as err:
        code = _end(err)
    sys.exit(code)


def guard() -> None:
    """From here on nothing prints a traceback: not an import, a thread, or a destructor; and no name fails to print."""
    codecs.register_error("pyspkv", _unprintable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="pyspkv")
    if not os.environ.get("SPKV_TRACEBACK"):
        sys.excepthook = lambda kind, err, trace: _leave(_end(err))
        sys.unraisablehook = _ignored
        threading.excepthook = _thread_died


def _unprintable(err: UnicodeError) -> tuple[bytes, int]:
    """Codec error handler: bytes of a file's name as they are, so that a shell finds the file; the rest as \\xfc."""
    assert isinstance(err, UnicodeEncodeError)
    one = err.object[err.start]
    if "\udc80" <= one <= "\udcff":
        return one.encode("ascii", "surrogateescape"), err.start + 1
    return one.encode("ascii", "backslashreplace"), err.start + 1


def _end(err: BaseException) -> int:
    """Say what happened, and return the exit code."""
    if _interrupted(err):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends what is slow to end
        if _rank() == 0:
            _print("interrupted")
        return 130
    if isinstance(err, BrokenPipeError) and _reader_left():
        return PIPE_CLOSED
    if os.environ.get("SPKV_TRACEBACK"):
        raise err
    text, code = _what(err)
    if file := os.environ.get(ERROR_FILE):
        with contextlib.suppress(OSError):
            leave(file, "" if isinstance(err, UserError) and err.consequence else text)
            return code
    rank = _rank()
    if rank and isinstance(err, UserError) and not err.local:
        # All read the same options and files: rank 0, if it has met it too, says it, and the launcher (torchrun, srun)
        # ends this process while it waits.
        threading.Event().wait(RANK_WAIT)
    _print(f"[rank {rank}] error: {text}" if rank else f"error: {text}")
    return code


def _what(err: BaseException) -> tuple[str, int]:
    """(message, exit code) of an error."""
    text = str(err)
    if isinstance(err, UserError):
        return text, 1
    if (asked := _memory(err)) is not None:
        why = f"not enough memory{': ' + asked if asked else ''}"
        return (
            f"{why}\n  hint: lower batch_size, --jobs or --nj, or use a machine with more memory",
            1,
        )
    if isinstance(err, OSError):
        return _os_error(err), 1
    if isinstance(err, ImportError) and not _ours(err.name):
        package = (err.name or "a package").partition(".")[0]
        missing = isinstance(err, ModuleNotFoundError)
        why = (
            f"package {package} is missing"
            if missing
            else f"package {package} cannot be loaded ({_line(text)})"
        )
        return f"{why}\n  hint: utils/setup_env.sh", 1
    if isinstance(err, RecursionError):
        return "an input file is nested too deeply\n  hint: look for a file full of brackets", 1
    if isinstance(err, UnicodeEncodeError):
        name = err.object[err.start : err.end][:40]
        return f"{name!a} cannot be written in {err.encoding}\n  hint: export LC_ALL=C.UTF-8", 1
    return (
        f"internal error ({_line(f'{type(err).__name__}: {text}')}); please report it with {_log(err)}",
        INTERNAL,
    )


def _memory(err: BaseException) -> str | None:
    """The memory that was needed, if the error says it; None: the error is not about memory."""
    text = str(err)
    if (
        isinstance(err, MemoryError) or type(err).__name__ == "OutOfMemoryError"
    ):  # torch's, without its advice
        return _line(text.partition("GiB is allocated")[0].partition(". GPU")[0])
    if isinstance(err, RuntimeError) and "allocate memory" in text:  # torch's allocator of the CPU
        found = re.search(r"tried to allocate (\d+) bytes", text)
        return f"{int(found[1]):,} bytes were needed" if found else ""
    return None


def _os_error(err: OSError) -> str:
    if not err.strerror:
        return _line(str(err))
    names = [printable(os.fsdecode(n)) for n in (err.filename, err.filename2) if isinstance(n, (str, bytes))]
    return f"{' -> '.join(names)}: {err.strerror}" if names else err.strerror


def _ours(name: str | None) -> bool:
    return (name or "").partition(".")[0] == "pyspkv"


def _interrupted(err: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what an extension module made of it while it was imported."""
    seen = set()
    while err is not None and id(err) not in seen:
        if isinstance(err, KeyboardInterrupt):
            return True
        if isinstance(err, UserError):  # raised on purpose, whatever came before
            return False
        seen.add(id(err))
        err = err.__cause__ or err.__context__
    return False


def _rank() -> int:
    """This process's number among those of one training (torchrun's), 0 where it is alone."""
    if os.environ.get("WORLD_SIZE") == "1":
        return 0
    found = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or ""
    return int(found) if found.isdecimal() and len(found) < 10 else 0


def leave(file: str, text: str) -> None:
    """Write a message for pyspkv.bin.launch, whole or not at all; an empty one: another process is the cause."""
    with open(f"{file}.part", "w", encoding="utf-8", errors="surrogateescape") as f:
        f.write(text)
    os.replace(f"{file}.part", file)


# -- output that cannot fail


def _line(text: str, most: int = 300) -> str:
    """One line, not too long."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."


def _print(text: str) -> None:
    """On stderr, if somebody listens; what a terminal would act on, or not show, is written out."""
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _to_nowhere(sys.stderr)


def _flush(code):
    """Flush stdout; if that fails, the message is ours, not the interpreter's."""
    try:
        if sys.stdout and not sys.stdout.closed:
            sys.stdout.flush()
    except BrokenPipeError:  # `... | head`: all was done, and the reader had enough
        _to_nowhere(sys.stdout)
    except OSError as err:
        _to_nowhere(sys.stdout)
        _print(f"error: standard output: {err.strerror}")
        return 1
    return code


def _reader_left() -> bool:
    """Whether the pipe at stdout or stderr has lost its reader; both then lead nowhere."""
    left = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), 0)  # errors alone
            if poll.poll(0):
                left = True
                _to_nowhere(stream)
    return left


def _to_nowhere(stream) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _leave(code: int) -> None:
    """End now, from an exception hook: returning would make the exit code 1."""
    _flush(code)
    os._exit(code)


def _ignored(args) -> None:
    """sys.unraisablehook: Ctrl-C in a destructor or an import's callback counts, of the rest one line is left."""
    if issubclass(args.exc_type, KeyboardInterrupt):
        again = threading.Timer(
            0.05, os.kill, (os.getpid(), signal.SIGINT)
        )  # as if it had come a moment later:
        again.daemon = True  # what is raised in here is lost once more
        again.start()
    else:
        _print(f"warning: ignored {_line(f'{args.exc_type.__name__}: {args.exc_value}')}")


def _thread_died(args) -> None:
    """threading.excepthook: the program goes on, as it does without this hook."""
    if args.exc_type is not SystemExit:
        what = _line(f"{args.exc_type.__name__}: {args.exc_value}")
        report = (
            "" if isinstance(args.exc_value, OSError) else f"; please report it with {_log(args.exc_value)}"
        )
        _print(f"warning: a thread died ({what}){report}")  # a full disk is no defect of ours


def _log(err: BaseException) -> str:
    """Write the traceback to a new file that only the user can read; returns its name, or what kept us from it."""
    import tempfile
    import traceback

    try:
        folder = os.environ.get("SPKV_LOG_DIR") or tempfile.gettempdir()
        name = os.path.join(folder, f"pyspkv-error-{os.getpid()}.log")
        for k in range(1, 100):
            try:
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                break
            except FileExistsError:  # an old one, or somebody's link: never through it
                name = os.path.join(folder, f"pyspkv-error-{os.getpid()}-{k}.log")
        else:
            raise FileExistsError
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as f:
            print("command:", *sys.argv, file=f)
            print("python:", sys.version.replace("\n", " "), file=f)
            f.writelines(traceback.format_exception(err))
        return name
    except OSError:
        last = traceback.extract_tb(err.__traceback__)[-1:]
        where = f"{last[0].filename}:{last[0].lineno}" if last else "this command line"
        return f"{where} (no log file could be made; SPKV_LOG_DIR names its folder)"
