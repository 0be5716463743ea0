"""Error messages of one or two lines with file, line, problem and hint; users never see a traceback.

An entry point in pyspkv/bin has the following shape. It keeps Ctrl-C, a missing package or full memory to one
line too.

    import argparse                           # at the top: the standard library and pyspkv.base.errors, nothing heavy
    from pyspkv.base.errors import UserError, run

    def main() -> None:
        args = parse()
        import numpy as np                    # slow imports: only where they are needed

    if __name__ == "__main__":
        run(main)

For `python -m pyspkv.bin.X`, `guard` covers everything from the import of the package on; `run` covers
`main`.
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

# A launched process leaves its message in this file; the launcher prints one of them
ERROR_FILE = "SPKV_ERROR_FILE"
INTERNAL = 70  # EX_SOFTWARE of sysexits.h: exit code of a bug in this program
PIPE_CLOSED = 128 + 13  # exit code that a shell shows for a program ended by SIGPIPE
# Seconds that other ranks wait, so that rank 0 can report the same error and the launcher ends them
RANK_WAIT = 3.0


HINT = "\n  hint: "


def printable(text: str) -> str:
    """Escape characters that a terminal acts on or does not show: line ends, control codes, odd spaces."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Shown(str):
    """Message text with intended line ends. Names in it went through `printable`, so none can fake a line."""


class UserError(Exception):
    """Wrong input or usage. The message says what is wrong, where, and what to do.

    Args:
        message: what is wrong. Line ends in it are escaped unless it is a `Shown`, such as `str(err)` of a
            UserError.
        file, line: the place, written before the message.
        hint: what the user can do, written on a line of its own.
        local: perhaps only this rank has met the error, so it is reported even if the rank is not 0.
    """

    consequence = False  # True: another process ended first, and that process reports the cause

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
    """argparse type of seeds and counts: a whole number from 0 to 2^63 - 1, in plain digits."""
    if not (text.isascii() and text.isdecimal()):
        raise ArgumentTypeError(f"{text[:40]!a} is not a whole number from 0")
    if len(text) > 19 or int(text) >= 2**63:
        raise ArgumentTypeError(f"{text[:40]} is not below 2^63")
    return int(text)


def run(main: Callable[[], int | None]) -> None:
    """Run an entry point and exit. Every error becomes `error: ...` on stderr, in one or two lines.

    Exit codes: 1 for what the user can fix (`UserError`, `OSError`, memory, a missing package); 130 for
    Ctrl-C; 141 when the reader of our output left before the work was done; 70 for a bug in this program,
    whose traceback goes to a file in $SPKV_LOG_DIR or the system's temporary folder. SPKV_TRACEBACK=1 shows
    every traceback.
    """
    guard()
    code: str | int | None
    try:
        try:
            code = main() or 0
        except SystemExit as end:  # raised by argparse
            code = end.code
        code = _flush(code)
    except BaseException as err:
        code = _end(err)
    sys.exit(code)


def guard() -> None:
    """Install hooks so that imports, threads and destructors print no traceback, and all names can be
    printed."""
    codecs.register_error("pyspkv", _unprintable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="pyspkv")
    if not os.environ.get("SPKV_TRACEBACK"):
        sys.excepthook = lambda kind, err, trace: _leave(_end(err))
        sys.unraisablehook = _ignored
        threading.excepthook = _thread_died


def _unprintable(err: UnicodeError) -> tuple[bytes, int]:
    """Codec error handler: keep the raw bytes of a file name, so that a shell finds it; escape the rest."""
    assert isinstance(err, UnicodeEncodeError)
    one = err.object[err.start]
    if "\udc80" <= one <= "\udcff":
        return one.encode("ascii", "surrogateescape"), err.start + 1
    return one.encode("ascii", "backslashreplace"), err.start + 1


def _end(err: BaseException) -> int:
    """Report an error, and return the exit code."""
    if _interrupted(err):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends a slow shutdown
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
        # All ranks read the same options and files. If rank 0 has met the error too, it reports it, and the
        # launcher (torchrun, srun) ends this process while it waits.
        threading.Event().wait(RANK_WAIT)
    _print(f"[rank {rank}] error: {text}" if rank else f"error: {text}")
    return code


def _what(err: BaseException) -> tuple[str, int]:
    """Message and exit code of an error."""
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
    """The amount of memory that was asked for ("" when unknown); None when the error is not about memory."""
    text = str(err)
    if (
        isinstance(err, MemoryError) or type(err).__name__ == "OutOfMemoryError"
    ):  # torch's class; its advice is cut off
        return _line(text.partition("GiB is allocated")[0].partition(". GPU")[0])
    if isinstance(err, RuntimeError) and "allocate memory" in text:  # torch's CPU allocator
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
    """True for Ctrl-C, also when an extension module turned it into another error during an import."""
    seen = set()
    while err is not None and id(err) not in seen:
        if isinstance(err, KeyboardInterrupt):
            return True
        if isinstance(err, UserError):  # raised on purpose, so its cause does not matter
            return False
        seen.add(id(err))
        err = err.__cause__ or err.__context__
    return False


def _rank() -> int:
    """This process's rank in a training of several processes (set by torchrun); 0 when it runs alone."""
    if os.environ.get("WORLD_SIZE") == "1":
        return 0
    found = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or ""
    return int(found) if found.isdecimal() and len(found) < 10 else 0


def leave(file: str, text: str) -> None:
    """Write a message for pyspkv.bin.launch, atomically.

    An empty text means that another process is the cause.
    """
    with open(f"{file}.part", "w", encoding="utf-8", errors="surrogateescape") as f:
        f.write(text)
    os.replace(f"{file}.part", file)


# -- output that cannot fail


def _line(text: str, most: int = 300) -> str:
    """The text in one line of at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."


def _print(text: str) -> None:
    """Print to stderr, with unprintable characters escaped; do nothing when stderr is closed."""
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _to_nowhere(sys.stderr)


def _flush(code):
    """Flush stdout and return the exit code.

    Without it, the interpreter would report a failing flush itself.
    """
    try:
        if sys.stdout and not sys.stdout.closed:
            sys.stdout.flush()
    except BrokenPipeError:  # `... | head`: the work is done, and the reader closed the pipe
        _to_nowhere(sys.stdout)
    except OSError as err:
        _to_nowhere(sys.stdout)
        _print(f"error: standard output: {err.strerror}")
        return 1
    return code


def _reader_left() -> bool:
    """True when stdout or stderr is a pipe without a reader; such a stream is redirected to /dev/null."""
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
    """End the process from an exception hook: returning from the hook would set the exit code to 1."""
    _flush(code)
    os._exit(code)


def _ignored(args) -> None:
    """sys.unraisablehook: repeat a Ctrl-C from a destructor or callback; print one line for other errors."""
    if issubclass(args.exc_type, KeyboardInterrupt):
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))  # send it again a moment later,
        again.daemon = True  # because an exception raised in this hook would be lost again
        again.start()
    else:
        _print(f"warning: ignored {_line(f'{args.exc_type.__name__}: {args.exc_value}')}")


def _thread_died(args) -> None:
    """threading.excepthook: print one line; the other threads go on, as they do without this hook."""
    if args.exc_type is not SystemExit:
        what = _line(f"{args.exc_type.__name__}: {args.exc_value}")
        report = (
            "" if isinstance(args.exc_value, OSError) else f"; please report it with {_log(args.exc_value)}"
        )
        _print(f"warning: a thread died ({what}){report}")  # an OSError, such as a full disk, is not our bug


def _log(err: BaseException) -> str:
    """Write the traceback to a new file that only the user can read.

    Return its name, or why there is none.
    """
    import tempfile
    import traceback

    try:
        folder = os.environ.get("SPKV_LOG_DIR") or tempfile.gettempdir()
        name = os.path.join(folder, f"pyspkv-error-{os.getpid()}.log")
        for k in range(1, 100):
            try:
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                break
            except FileExistsError:  # an older file or somebody's link, which must not be written through
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
