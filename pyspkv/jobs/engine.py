"""Calls of SLURM's programs: submit, ask, cancel.

The controller may be unreachable for a while; callers try again.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyspkv.base.errors import Shown, UserError, printable

# Parts of the messages when SLURM's controller or the network fails; the job itself is fine then.
AWAY = (
    "unable to contact",
    "timed out",
    "connection",
    "not connected",
    "zero bytes",
    "socket",
    "communication",
    "slurm_msg_send",
)
PAUSE = 2.0  # seconds before a submission that was not answered is looked for or made again
PATIENCE = 600.0  # seconds that a submission waits for an unreachable controller


def call(*words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run a program: (exit code, stdout, stderr). UserError when it cannot be started.

    It runs in its own session, so Ctrl-C reaches only the runner, which then cancels the jobs.
    """
    try:
        done = subprocess.run(words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
                              start_new_session=True)  # fmt: skip
    except OSError as err:
        hint = "is this a machine that submits? cmd_backend=local in cmd.sh runs the jobs here"
        raise UserError(f"{words[0]}: {err.strerror}", hint=hint) from None
    out, said = (text.decode("utf-8", "surrogateescape").strip() for text in (done.stdout, done.stderr))
    return done.returncode, out, said


def is_away(said: str) -> bool:
    """True when an error message is about an unreachable controller, not about the job."""
    return any(words in said.lower() for words in AWAY)


def array_limit() -> int:
    """Most tasks in one array (MaxArraySize, the limit of an index)."""
    for line in call("scontrol", "show", "config")[1].splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdecimal() and int(value) > 0:
            return int(value)
    return 1001


def refusal(said: str) -> UserError:
    """UserError with the last lines of SLURM's message."""
    text = "\n  ".join(printable(line) for line in said.splitlines()[-6:]) or "no reason given"
    return UserError(
        Shown(f"SLURM refuses the job:\n  {text}"), hint="see the options of the call and the --config"
    )


def submit(words: list[str], script: list[str], env: Mapping[str, str], cwd: Path, token: str) -> str:
    """Submit an array with the comment `token`; return its job id.

    UserError with SLURM's message if it is refused.
    """
    end = time.monotonic() + PATIENCE
    words = [*words, "--parsable", f"--comment={token}"]
    while True:
        code, out, said = call(*words, *script, env=env, cwd=cwd)
        if code == 0:
            return out.splitlines()[-1].partition(";")[0]
        after = [w for w in words if w.startswith("--dependency=")]
        if after and "dependency" in said.lower():  # SLURM no longer knows that job, so it has ended
            words = [w for w in words if w not in after]
            continue
        if not is_away(said) or time.monotonic() > end:
            raise refusal(said)
        time.sleep(PAUSE)
        # The job may be accepted. A second submission would run all tasks twice, so an answer is waited for.
        while (job := find(token)) is None:
            if time.monotonic() > end:
                raise refusal(said)
            time.sleep(PAUSE)
        if job:  # it was accepted, and only the answer was lost
            return job


def test(words: list[str], script: list[str], env: Mapping[str, str], cwd: Path) -> None:
    """UserError with SLURM's message for a job that it would refuse. Does nothing when the controller is
    unreachable.

    A controller that has just started does not know the state of its nodes, so it is asked for up to 30
    seconds.
    """
    end = time.monotonic() + 30
    while True:
        code, _, said = call(*words, "--test-only", *script, env=env, cwd=cwd)
        if code == 0 or is_away(said):
            return
        states = call("sinfo", "-h", "-N", "-o", "%T")[1].split()
        if time.monotonic() > end or not any(s.startswith("unk") for s in states):
            raise refusal(said)
        time.sleep(1)


def find(token: str) -> str | None:
    """Id of the job with this comment; "" if it is not in the queue; None without an answer of SLURM."""
    code, out, _ = call("squeue", "-h", f"--user={os.getuid()}", "-o", "%F|%k")
    if code:
        return None
    return next((line.partition("|")[0] for line in out.splitlines() if line.endswith(f"|{token}")), "")


def queue(jobs: Mapping[str, str]) -> dict[tuple[str, int], tuple[str, str]] | None:
    """(job, index) -> (state, reason) for the waiting and running tasks of `jobs` (id -> comment).

    None when the controller does not answer. A controller that was killed may use the id of a lost job again;
    the comment tells the two apart.
    """
    if not jobs:
        return {}
    code, out, said = call("squeue", "-h", "-r", "-j", ",".join(jobs), "-o", "%F|%K|%T|%k|%r")
    if code and "invalid job id" not in said.lower():
        return None
    found = {}
    for job, index, state, comment, reason in (line.split("|", 4) for line in out.splitlines()):
        if index.isdecimal() and jobs.get(job) == comment:
            found[job, int(index)] = state, reason
    return found


def ended_as(job: str, index: int) -> str:
    """State of a task that has left the queue, such as FAILED or NODE_FAIL; "" if SLURM has forgotten it."""
    for word in call("scontrol", "-o", "show", "job", f"{job}_{index}")[1].split():
        if word.startswith("JobState="):
            return word.partition("=")[2]
    return ""


def cancel(tasks: Iterable[tuple[str, int]]) -> None:
    """Cancel these tasks in whatever state they are."""
    by_job: dict[str, list[str]] = {}
    for job, index in tasks:
        by_job.setdefault(job, []).append(str(index))
    if words := [f"{job}_[{','.join(indices)}]" for job, indices in by_job.items()]:
        call("scancel", *words)


def cancel_all(jobs: Mapping[str, str], seconds: float = 8.0) -> bool:
    """Cancel all of these jobs, and wait at most `seconds` until they have left the queue.

    True if they have.
    """
    end, told = time.monotonic() + seconds, False
    while (left := queue(jobs)) is None or left:
        if left and not told:
            told = call("scancel", *sorted({job for job, _ in left}))[0] == 0
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
