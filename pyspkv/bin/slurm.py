"""Run a command, or numbered copies of it, as a SLURM array; utils/slurm.sh calls this.

    python -m pyspkv.bin.slurm [OPTIONS] [JOB=1:n] LOG COMMAND...

The options are those of utils/slurm.sh --help. docs/cluster.md explains the rest.
"""

import os
import re
import signal
import sys

from pyspkv.base.errors import UserError, run


class Stopped(BaseException):
    """A signal asks the runner to end; the argument is its number."""


def _stop(number: int, _) -> None:
    for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


class Follow:
    """Copy what a job writes into its log to stdout, without the runner's own lines."""

    def __init__(self, log):
        self.log, self.at, self.line = log, 0, b""

    def __call__(self) -> None:
        try:
            with open(self.log, "rb") as f:
                f.seek(self.at)
                new = f.read()
        except OSError:
            return
        self.at += len(new)
        lines = (self.line + new).splitlines(keepends=True)
        self.line = lines.pop() if lines and lines[-1][-1:] not in b"\r\n" else b""
        for line in lines:
            if not line.startswith(
                b"#"
            ):  # if a job's output ends without a line end, the runner's last line follows on the same line
                sys.stdout.buffer.write(re.sub(rb"# Ended \(code \d+\) at .*", b"", line))
        sys.stdout.flush()


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
