"""SLURM's programs: submit, look, cancel. The controller may be away for a while; the caller then tries again."""

import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyspkv.base.errors import Shown, UserError, printable

# What SLURM's programs say where the controller, or the way to it, is the trouble and not the job.
AWAY = (
    "unable to contact",
    "timed out",
    "connection",
    "zero bytes",
    "socket",
    "communication",
    "slurm_msg_send",
)
PATIENCE = 600.0  # seconds that a submission waits for a controller that is away


def call(*words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr. A session of its own: Ctrl-C is for the runner, which then cancels the jobs."""
    try:
        done = subprocess.run(words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
                              start_new_session=True)  # fmt: skip
    except OSError as err:
        hint = "is this a machine that submits? cmd_backend=local in cmd.sh runs the jobs here"
        raise UserError(f"{words[0]}: {err.strerror}", hint=hint) from None
    out, said = (text.decode("utf-8", "surrogateescape").strip() for text in (done.stdout, done.stderr))
    return done.returncode, out, said


def is_away(said: str) -> bool:
    """Whether these are words about a controller that does not answer, not about the job."""
    return any(words in said.lower() for words in AWAY)


def array_limit() -> int:
    """The most tasks of one array: an index is below MaxArraySize."""
    for line in call("scontrol", "show", "config")[1].splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdecimal() and int(value) > 0:
            return int(value)
    return 1001


def refusal(said: str) -> UserError:
    text = "\n  ".join(printable(line) for line in said.splitlines()[-6:]) or "no reason given"
    return UserError(
        Shown(f"SLURM refuses the job:\n  {text}"), hint="see the options of the call and the --config"
    )


def submit(words: list[str], script: list[str], env: Mapping[str, str], cwd: Path, token: str) -> str:
    """Submit an array whose comment is `token`; its job id. UserError: it is refused, in SLURM's words."""
    end = time.monotonic() + PATIENCE
    words = [*words, "--parsable", f"--comment={token}"]
    while True:
        code, out, said = call(*words, *script, env=env, cwd=cwd)
        if code == 0:
            return out.splitlines()[-1].partition(";")[0]
        after = [w for w in words if w.startswith("--dependency=")]
        if after and "dependency" in said.lower():  # SLURM has forgotten that job
            words = [w for w in words if w not in after]
            continue
        if not is_away(said) or time.monotonic() > end:
            raise refusal(said)
        time.sleep(2)
        if job := find(token):  # it was taken, and only the answer was lost
            return job


def test(words: list[str], script: list[str], env: Mapping[str, str], cwd: Path) -> None:
    """UserError, in SLURM's words, for what it would refuse; nothing where the controller is away.

    A controller that has just been started has not heard of its nodes yet: it is asked again, for half a minute.
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
    """The job with this comment; empty: none waits or runs; None: the controller does not say."""
    code, out, _ = call("squeue", "-h", f"--user={os.getuid()}", "-o", "%F|%k")
    if code:
        return None
    return next((line.partition("|")[0] for line in out.splitlines() if line.endswith(f"|{token}")), "")


def queue(jobs: Mapping[str, str]) -> dict[tuple[str, int], tuple[str, str]] | None:
    """(job, index) -> (state, reason) of what waits or runs of these jobs (id -> comment); None: nobody says.

    A controller that was killed may give the id of a job that it has lost to another one: the comment tells.
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
    """State of a task that has left the queue, as FAILED or NODE_FAIL; empty: SLURM has forgotten it."""
    for word in call("scontrol", "-o", "show", "job", f"{job}_{index}")[1].split():
        if word.startswith("JobState="):
            return word.partition("=")[2]
    return ""


def cancel(tasks: Iterable[tuple[str, int]]) -> None:
    """End these tasks, however they are."""
    by_job: dict[str, list[str]] = {}
    for job, index in tasks:
        by_job.setdefault(job, []).append(str(index))
    if words := [f"{job}_[{','.join(indices)}]" for job, indices in by_job.items()]:
        call("scancel", *words)


def cancel_all(jobs: Mapping[str, str], seconds: float = 8.0) -> bool:
    """End all of these jobs and wait until they have left the queue, for so long at most; whether they have."""
    end, told = time.monotonic() + seconds, False
    while (left := queue(jobs)) is None or left:
        if left and not told:
            told = call("scancel", *sorted({job for job, _ in left}))[0] == 0
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
