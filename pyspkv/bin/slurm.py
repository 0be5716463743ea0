"""Run a command, or numbered copies of it, as a SLURM array; utils/slurm.sh calls this.

    python -m pyspkv.bin.slurm [OPTIONS] [JOB=1:n] LOG COMMAND...

The options are those of utils/slurm.sh --help. docs/cluster.md explains the rest.
"""

import os
import re
import signal
import sys
from pathlib import Path

from pyspkv.base.errors import UserError, run

ENDED = re.compile(rb"# Ended \(code \d+\) at .*\n")


class Stopped(BaseException):
    """A signal asks the runner to end; the argument is its number."""


def _stop(number: int, _) -> None:
    for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


class Follow:
    """Copy what jobs write into a log from now on to stdout, without the runner's own lines.

    Those are a line with the command, "# Started at ...", "#", and in the end "# Ended (code ...) at ...".
    """

    def __init__(self, log: Path):
        self.log, self.at = log, log.stat().st_size if log.exists() else 0
        self.rest = b""  # the beginning of a line
        self.held = b""  # a line that may be a command: then the next one is "# Started at ..."
        self.in_header = False

    def __call__(self) -> None:
        try:
            with open(self.log, "rb") as f:
                self.at = min(self.at, os.fstat(f.fileno()).st_size)  # it may have been emptied
                f.seek(self.at)
                new = f.read()
        except OSError:
            return
        self.at += len(new)
        lines = (self.rest + new).splitlines(keepends=True)
        self.rest = lines.pop() if lines and lines[-1][-1:] not in b"\r\n" else b""
        for line in lines:
            self.show(line)
        sys.stdout.flush()

    def show(self, line: bytes) -> None:
        if line.startswith(b"# Started at "):
            self.held, self.in_header = b"", True
            return
        if self.in_header:  # the line after it
            self.in_header = False
            return
        sys.stdout.buffer.write(self.held)
        self.held = b""
        line = ENDED.sub(b"", line)  # it follows at once where a job's output ends without a line end
        if line.startswith(b"# "):
            self.held = line
        else:
            sys.stdout.buffer.write(line)


def main() -> int:
    if "--help" in sys.argv[1:2]:
        print("usage: python -m pyspkv.bin.slurm [OPTIONS] [JOB=1:n] LOG COMMAND...\n\n" + (__doc__ or ""))
        return 0
    from pyspkv.base.atomic import folder_lock
    from pyspkv.jobs.array import Array, say
    from pyspkv.jobs.call import parse_call, read_config

    call = parse_call(sys.argv[1:])
    config = read_config(call.options.get("config") or os.environ.get("SPKV_SLURM_CONF"))
    if int(call.options.get("num_nodes", "1")) < 1:
        raise UserError("--num-nodes must be at least 1")
    array = Array(call, config)
    wanted = call.options.get("show", "true" if sys.stderr.isatty() else "false") == "true"
    show = Follow(call.log_of(1)) if wanted and not call.name else lambda: None
    with folder_lock(array.state):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, _stop)
        try:
            code = array.run(show)
            show()
            return code
        except UserError:  # of several arrays, a later one was refused
            array.stop()
            raise
        except Stopped as stopped:
            array.stop()
            say("stopped")
            return 128 + int(stopped.args[0])


if __name__ == "__main__":
    run(main)
