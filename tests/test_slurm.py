"""Both job runners accept the same calls. slurm.sh is tested against a real SLURM of three nodes, with
failures.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
import test_kmeans_parts
import test_recipes
import toy
from slurm_cluster import Cluster, wait_until
from test_grid import RECIPE

from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.jobs import array
from pyspkv.jobs.call import Config, parse_call, read_config
from pyspkv.train.trainer import TrainConfig, Trainer

ROOT = Path(__file__).resolve().parent.parent
ENV = {
    **{k: v for k, v in os.environ.items() if k not in ("SPKV_ROOT", "SPKV_RECIPE", "SPKV_SLURM_CONF")},
    "SPKV_PYTHON": sys.executable,
    "SPKV_SLURM_LOOK": "0.5",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "GLOO_SOCKET_IFNAME": "lo",
}
RUN, SLURM = str(ROOT / "utils/run.sh"), str(ROOT / "utils/slurm.sh")
ENCODER = "encoder: {name: ecapa, channels: 16, mfa_channels: 24, embed_dim: 8, se_channels: 4, n_mels: 40}\n"
TRAIN = (
    "objective: {name: aam, crop_seconds: 0.5, augment: false}\n"
    "epochs: 1\nbatch_size: 4\nprecision: fp32\nnum_workers: 0\n"
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if lost := slurm_cluster.missing():
        pytest.skip(f"no SLURM here: {', '.join(lost)} not found; .ci/run installs it")
    made = Cluster(tmp_path_factory.mktemp("slurm"), nodes=3, max_array=11)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(params=["run.sh", "slurm.sh"])
def runner(request):
    """A runner and its environment; slurm.sh needs the cluster."""
    if request.param == "run.sh":
        return RUN, ENV
    conf = request.getfixturevalue("slurm").conf
    return SLURM, {**ENV, "SLURM_CONF": str(conf), "PATH": slurm_cluster.PATH}


class Jobs:
    """Calls slurm.sh in a folder."""

    def __init__(self, slurm: Cluster, folder: Path):
        self.slurm, self.folder = slurm, folder
        self.env = {**ENV, "SLURM_CONF": str(slurm.conf), "PATH": slurm_cluster.PATH}
        self.started: list[subprocess.Popen] = []  # each with a session of its own

    def start(self, *words) -> subprocess.Popen:
        return subprocess.Popen(
            [SLURM, *map(str, words)],
            cwd=self.folder,
            env=self.env,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def end(self, process: subprocess.Popen, code: int = 0, seconds: float = 90) -> str:
        """Wait for it; returns its stderr. It must end with this code."""
        try:
            out, said = process.communicate(timeout=seconds)
        finally:
            process.kill()
        assert process.returncode == code and "Traceback" not in said, out + said
        return said

    def call(self, *words, code: int = 0) -> str:
        return self.end(self.start(*words), code)

    def log(self, name) -> str:
        return (self.folder / "log" / f"{name}.log").read_text(errors="replace")

    def lines(self, name: str = "trace") -> list[str]:
        file = self.folder / name
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def jobs(slurm, tmp_path):
    made = Jobs(slurm, tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate()
    subprocess.run(["scancel", f"--user={os.getuid()}"], env=slurm.env, capture_output=True)
    slurm.wait_idle()


def start_held(jobs: Jobs) -> None:
    """Start the tasks that wait: SLURM holds a requeued one back for two minutes."""
    for task in jobs.slurm.queue():
        if task.split()[1] == "PENDING":
            words = ["scontrol", "update", f"JobId={task.split()[0]}", "StartTime=now"]
            subprocess.run(words, env=jobs.env, capture_output=True)  # it may have started just now


# ---- the call ----------------------------------------------------------------------------------------------------
def test_calls_are_parsed():
    words = "--mem 4G --num_threads=2 x=3:5 --time 1:00 --max-jobs-run 2 log/x/e.x.log cmd --part x/5 --mem y"
    call = parse_call(words.split())
    assert call.options == {"mem": "4G", "num_threads": "2", "time": "1:00", "max_jobs_run": "2"}
    assert (call.name, list(call.numbers), call.log) == ("x", [3, 4, 5], "log/x/e.x.log")
    assert call.command == ["cmd", "--part", "x/5", "--mem", "y"]
    assert call.log_of(4) == Path.cwd() / "log/4/e.4.log"
    call = parse_call(["JOB=1:9", "log/JOB/e.JOB.log", "true"])
    assert call.state() == Path.cwd() / "log/.slurm/JOB+e.JOB.log"
    assert parse_call(["log/e.log", "JOB"]).hash_of(1) != parse_call(["log/e.log", "1"]).hash_of(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("JOB=1:2 log/x.log true", "the name of the log must contain JOB, because"),
        ("JOB=3:1 log/JOB.log true", "no jobs in JOB=3:1"),
        ("--max-jobs-run x log/a.log true", "--max-jobs-run must be a whole number"),
        ("--time", "--time needs a value"),
        ("log/a.log", "expected [JOB=1:n] LOG COMMAND"),
    ],
)
def test_wrong_calls_are_refused_alike(tmp_path, words, message):
    with pytest.raises(UserError) as error:
        parse_call(words.split())
    done = subprocess.run([RUN, *words.split()], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert message in str(error.value) and message in done.stderr and done.returncode == 1


def test_the_config_is_kaldis(tmp_path):
    """The example of Kaldi's documentation, with options of a site; options that it does not set have our
    defaults.
    """
    file = tmp_path / "slurm.conf"
    file.write_text(
        "command sbatch --export=PATH -p 'a b'  # a comment\n"
        "option mem=* --mem-per-cpu $0\noption mem=0          # nothing\n"
        "option num_threads=* --cpus-per-task $0 --ntasks-per-node=1\n"
        "option max_jobs_run=*\n"
        "default gpu=0\noption gpu=0 -p shared\noption gpu=* -p gpu --gres=gpu:$0\n"
        "option account=* --account x$0y\nexport MINE_*\n"
    )
    config = Config(file, read_config(None))

    def words(**options):
        return config.submit(options)

    sbatch = ["sbatch", "--export=PATH", "-p", "a b"]
    assert words() == [*sbatch, "-p", "shared"]
    assert words(gpu="2", mem="0") == [*sbatch, "-p", "gpu", "--gres=gpu:2"]
    assert words(mem="4G")[-2:] == ["--mem-per-cpu", "4G"]
    assert words(account="a b")[-2:] == ["--account", "xa by"]
    assert words(time="1-0")[-2:] == ["--time", "1-0"]
    with pytest.raises(UserError, match="no option --qos high"):
        words(qos="high")
    env = {"MINE_A": "1", "SPKV_B": "2", "SECRET": "3", "CUDA_VISIBLE_DEVICES": ""}
    assert config.environment(env, {}) == {"MINE_A": "1", "SPKV_B": "2", "CUDA_VISIBLE_DEVICES": ""}
    assert "CUDA_VISIBLE_DEVICES" not in config.environment(env, {"gpu": "1"})
    for line in ("option mem", "default gpu", "what", 'command "'):
        file.write_text(f"command x\n{line}\n")
        with pytest.raises(UserError, match=r"slurm.conf:2: "):
            Config(file)


def test_cmd_sh_names_the_runners(tmp_path):
    """Two lines move a recipe to the cluster; its conf/slurm.conf is found from any current folder."""
    recipe = tmp_path / "my recipe"
    (recipe / "conf").mkdir(parents=True)
    text = (ROOT / "egs/TEMPLATE/cmd.sh").read_text()
    shutil.copy(ROOT / "egs/TEMPLATE/path.sh", recipe)
    show = (
        'set -euo pipefail; . "$1/path.sh"; . "$1/cmd.sh"; echo "$train_cmd,$cuda_cmd,${SPKV_SLURM_CONF:-}"'
    )

    def said(backend: str) -> str:
        (recipe / "cmd.sh").write_text(text.replace("cmd_backend=local", f"cmd_backend={backend}"))
        done = subprocess.run(["bash", "-c", show, "x", recipe], cwd=tmp_path, env={**ENV, "SPKV_ROOT": str(ROOT)},
                              capture_output=True, text=True)  # fmt: skip
        return done.stdout + done.stderr

    assert said("local") == "run.sh,run.sh,\n"
    assert said("slurm") == "slurm.sh,slurm.sh,\n"
    (recipe / "conf/slurm.conf").touch()
    assert said("slurm") == f"slurm.sh,slurm.sh,{recipe}/conf/slurm.conf\n"
    assert "cmd_backend is local or slurm, not 'pbs'" in said("pbs")


# ---- both runners ------------------------------------------------------------------------------------------------
ODD = ["two words", "it's", 'a "quote"', "$HOME", "`id`", "*", "", "a;b|c", "JOB.JOB", "-x", "--gpu", "1", "new\nline",
       "tab\t", "\\", "\\n", "!", "%a%j$0", "é", "\udcff\udcfe", "#", "~", "{a,b}", "--", " "]  # fmt: skip


def test_arguments_and_environment_arrive_as_they_are(runner, tmp_path):
    program, env = runner
    (tmp_path / "show.py").write_text(
        "import os, sys\nwith open(sys.argv[1], 'wb') as f:\n"
        "    f.write(b'\\0'.join([*map(os.fsencode, sys.argv[2:]), os.fsencode(os.environ['SPKV_ODD'])]))\n"
        "print('threads', os.environ['OMP_NUM_THREADS'])\n"
    )
    odd = "a,b=c\nd 'e' \"$f\""
    before, after = (
        ["--max_jobs_run=2", "--mem", "100"],
        ["--time", "5", "--name", "a b", "--num-threads", "2"],
    )
    words = [program, *before, "JOB=3:4", *after, "--num-nodes", "1", "--show", "true", "a 'b/JOB.log"]
    done = subprocess.run(
        [*words, sys.executable, "show.py", "out.JOB", *ODD],
        cwd=tmp_path, env={**env, "SPKV_ODD": odd}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number in ("3", "4"):
        got = (tmp_path / f"out.{number}").read_bytes().split(b"\0")
        assert got == [os.fsencode(w.replace("JOB", number)) for w in [*ODD, odd]]
        assert "threads 2\n" in (tmp_path / "a 'b" / f"{number}.log").read_text(errors="replace")


def test_a_single_job_shows_its_output_where_asked(runner, tmp_path):
    program, env = runner
    words = [program, "--show", "true", "one.log", "bash", "-c", "echo one; echo two >&2; printf three"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["one", "two", "three"], done.stderr
    words[2] = "false"
    assert subprocess.run(words, cwd=tmp_path, env=env, capture_output=True).stdout == b""
    log = (tmp_path / "one.log").read_text()
    assert log.startswith("# bash -c") and "\none\n" in log and "# Ended (code 0)" in log


def test_failed_jobs_are_named_with_their_last_lines(runner, tmp_path):
    program, env = runner
    job = "echo from JOB; exit $((JOB % 2 * 3))"
    done = subprocess.run([program, "JOB=1:5", "log/JOB.log", "bash", "-c", job], cwd=tmp_path, env=env,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "3 of 5 jobs failed" in done.stderr
    for i in (1, 3, 5):
        assert f"last lines of log/{i}.log" in done.stderr and f"  from {i}\n" in done.stderr
    assert "log/2.log" not in done.stderr and "# Ended (code 0)" in (tmp_path / "log/2.log").read_text()


# ---- what is submitted --------------------------------------------------------------------------------------------
def test_a_rerun_submits_only_what_is_missing(jobs):
    """This holds for the same command as long as its inputs are no newer.

    Once all tasks are done, everything runs again.
    """
    (jobs.folder / "input").touch()
    job = ["bash", "-c", 'echo JOB >> trace; [ JOB != 2 ] || [ -e "$1" ]', "x", "allowed", "input"]
    call = ["JOB=1:3", "log/JOB.log", *job]
    said = jobs.call(*call, code=1)
    assert "1 of 3 jobs failed" in said and "log/2.log (exit code 1)" in said
    assert sorted(jobs.lines()) == ["1", "2", "3"]
    jobs.call("JOB=1:4", *call[1:], code=1)
    assert sorted(jobs.lines()) == ["1", "2", "2", "3", "4"]
    time.sleep(0.05)
    (jobs.folder / "input").touch()
    jobs.call("JOB=3:4", *call[1:])  # their inputs have changed; those of the others have not
    assert sorted(jobs.lines()) == ["1", "2", "2", "3", "3", "4", "4"]
    (jobs.folder / "allowed").touch()
    jobs.call("JOB=1:3", "log/JOB.log", *job[:-1])  # another command
    assert sorted(jobs.lines()) == ["1", "1", "2", "2", "2", "3", "3", "3", "4", "4"]
    assert not (jobs.folder / "log/.slurm").exists()
    jobs.call("JOB=1:3", "log/JOB.log", *job[:-1])
    assert len(jobs.lines()) == 13


def test_arrays_above_the_limit_and_few_at_a_time(jobs):
    """25 tasks where an array may have 11, and never more than 4 of all of them at a time."""
    job = "echo + >> trace; sleep 0.2; echo - >> trace; echo JOB >> all"
    said = jobs.call("--max-jobs-run", "4", "JOB=1:25", "log/JOB.log", "bash", "-c", job)
    assert "25 of 25 tasks" in said and sorted(map(int, jobs.lines("all"))) == list(range(1, 26))
    running = most = 0
    for mark in jobs.lines():
        running += 1 if mark == "+" else -1
        most = max(most, running)
    assert 1 < most <= 4 and running == 0


def test_slurm_assigns_the_gpus(jobs):
    jobs.env["CUDA_VISIBLE_DEVICES"] = "7"
    job = 'sleep 0.5; echo "$SLURMD_NODENAME:$CUDA_VISIBLE_DEVICES" >> trace'
    jobs.call("--gpu", "1", "JOB=1:6", "log/JOB.log", "bash", "-c", job)
    assert sorted(jobs.lines()) == [f"n{n}:{gpu}" for n in (1, 2, 3) for gpu in (0, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mem", "900G"], "Requested node configuration is not available"),
        (["--num-threads", "99"], "Requested node configuration is not available"),
        (["--time", "long"], "Invalid --time specification"),
        (["--config", "conf"], "invalid partition specified"),
    ],
)
def test_a_refusal_shows_the_schedulers_message(jobs, options, message):
    (jobs.folder / "conf").write_text("command sbatch -p nowhere\n")
    said = jobs.call(*options, "log/a.log", "true", code=1)
    assert "error: SLURM refuses the job:\n" in said and message in said and len(said.splitlines()) < 7
    assert not jobs.slurm.queue() and not (jobs.folder / "log/a.log").exists()


def test_without_slurm_the_program_is_named(tmp_path):
    env = {**ENV, "PATH": f"{tmp_path}:/bin"}
    for name in ("bash", "env", "dirname", "readlink", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name))
    env["PATH"] = str(tmp_path)
    done = subprocess.run([SLURM, "a.log", "true"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and "No such file or directory" in done.stderr
        and "cmd_backend=local" in done.stderr
    )
    assert "Traceback" not in done.stderr


# ---- what breaks ---------------------------------------------------------------------------------------------------
SLOW_JOB = "echo JOB:$$ >> trace; sleep 60"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_all(jobs, sent, code):
    process = jobs.start("--max-jobs-run", "5", "JOB=1:20", "log/JOB.log", "bash", "-c", SLOW_JOB)
    wait_until(lambda: len(jobs.lines()) == 5, what="five jobs to run")
    start = time.monotonic()
    process.send_signal(sent)
    assert "slurm.sh: stopped" in jobs.end(process, code)
    assert time.monotonic() - start < 9 and not jobs.slurm.queue()
    for pid in (line.partition(":")[2] for line in jobs.lines()):
        assert not Path(f"/proc/{pid}").exists()
    assert not list((jobs.folder / "log/.slurm").rglob("failed.*"))


def test_a_killed_runner_is_followed_by_the_next(jobs):
    """Its jobs continue. The same call takes them over and runs none twice; a call with another command ends
    them.
    """
    call = ["JOB=1:6", "log/JOB.log", "bash", "-c", "echo JOB >> trace; [ JOB -lt 4 ] || sleep 4"]
    process = jobs.start(*call)
    wait_until(lambda: len(jobs.lines()) == 6, what="six jobs to run")
    process.kill()
    process.communicate()
    said = jobs.call(*call)
    assert "resuming job" in said and sorted(jobs.lines()) == [str(i) for i in range(1, 7)]
    process = jobs.start("JOB=1:2", "log/JOB.log", "bash", "-c", SLOW_JOB)
    wait_until(lambda: len(jobs.lines()) == 8, what="two jobs to run")
    process.kill()
    process.communicate()
    jobs.call("JOB=1:2", "log/JOB.log", "true")
    wait_until(lambda: not jobs.slurm.queue(), 10, "the old jobs to end")


def test_a_requeued_task_is_waited_for(jobs):
    call = [
        "JOB=1:3",
        "log/JOB.log",
        "bash",
        "-c",
        "echo JOB >> trace; [ JOB != 2 ] || [ -e go ] || sleep 60",
    ]
    process = jobs.start(*call)
    wait_until(lambda: len(jobs.lines()) == 3, what="three jobs to run")
    wait_until(lambda: len(jobs.slurm.queue()) == 1, what="all but the second to end")
    task = jobs.slurm.queue()[0].split()[0]
    jobs.slurm.call("scontrol", "requeue", task)
    wait_until(lambda: jobs.slurm.queue()[0].split()[1] == "PENDING", what="the task to wait")
    (jobs.folder / "go").touch()
    time.sleep(1.5)  # longer than the runner waits for a task that has disappeared
    jobs.slurm.call("scontrol", "update", f"JobId={task}", "StartTime=now")
    jobs.end(process)
    assert sorted(jobs.lines()) == ["1", "2", "2", "3"]
    log = jobs.log(2)
    # the lines of the first attempt are still in the log
    assert log.count("# Started") == 2 and "attempt 2" in log


def test_a_cancelled_task_is_named(jobs):
    process = jobs.start(
        "JOB=1:3", "log/JOB.log", "bash", "-c", "echo JOB >> trace; [ JOB != 2 ] || sleep 60"
    )
    wait_until(lambda: len(jobs.lines()) == 3, what="three jobs to run")
    wait_until(lambda: len(jobs.slurm.queue()) == 1, what="two jobs to end")
    jobs.slurm.call("scancel", jobs.slurm.queue()[0].split()[0])
    said = jobs.end(process, code=1)
    assert "1 of 3 jobs failed" in said and "log/2.log (somebody cancelled it)" in said
    assert "CANCELLED AT" in said  # a line from SLURM itself


def test_the_controller_is_restarted(jobs):
    """It is away longer than the runner waits for anything else; nothing runs twice."""
    call = ["--max-jobs-run", "3", "JOB=1:9", "log/JOB.log", "bash", "-c", "echo JOB >> trace; sleep 1.5"]
    process = jobs.start(*call)
    wait_until(lambda: len(jobs.lines()) >= 3, what="three jobs to run")
    jobs.slurm.end("slurmctld")
    time.sleep(3)
    jobs.slurm.start_controller()
    jobs.end(process)
    assert sorted(jobs.lines()) == [str(i) for i in range(1, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0, 8], ids=["at once", "later"])
def test_the_controller_is_killed(jobs, wait):
    """It loses unwritten state: newly submitted arrays, and which tasks have ended.

    Each task is still done once.
    """
    job = "sleep 2; echo JOB >> trace"
    process = jobs.start("--max-jobs-run", "6", "JOB=1:24", "log/JOB.log", "bash", "-c", job)
    wait_until(lambda: list(jobs.folder.rglob("job")), what="the submission")
    time.sleep(wait)
    jobs.slurm.end("slurmctld", signal.SIGKILL)
    time.sleep(3)
    jobs.slurm.start_controller()
    start = time.monotonic()
    jobs.end(process, seconds=300)
    print(f"ended {time.monotonic() - start:.1f} s after the controller was back")
    assert sorted(map(int, jobs.lines())) == list(range(1, 25))


def test_a_controller_that_is_away_is_waited_for_at_the_start(jobs):
    jobs.slurm.end("slurmctld")
    process = jobs.start("log/a.log", "true")
    time.sleep(2)
    assert process.poll() is None
    jobs.slurm.start_controller()
    jobs.end(process)


@pytest.mark.parametrize("requeue", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_node_dies(jobs, requeue):
    """Its task runs again on another node, started by us or by SLURM; tasks on other nodes continue."""
    (jobs.folder / "conf").write_text(f"command sbatch --export=ALL --{'' if requeue else 'no-'}requeue\n")
    job = 'echo "JOB $SLURMD_NODENAME" >> trace; until [ -e go ]; do sleep 0.2; done'
    process = jobs.start(
        "--config", "conf", "--num-threads", "8", "JOB=1:3", "log/JOB.log", "bash", "-c", job
    )
    wait_until(lambda: len(jobs.lines()) == 6, what="a job on each node")
    lost = dict(zip(jobs.lines()[1::2], jobs.lines()[::2], strict=True))["n2"]
    start = time.monotonic()
    jobs.slurm.kill_node("n2")
    try:
        (jobs.folder / "go").touch()
        if requeue:  # SLURM itself holds the task back for two minutes
            wait_until(lambda: "PENDING" in "".join(jobs.slurm.queue()), 90, "the lost task to wait")
            task = jobs.slurm.queue()[0].split()[0]
            jobs.slurm.call("scontrol", "update", f"JobId={task}", "StartTime=now")
        wait_until(lambda: len(jobs.lines()) == 8, 90, "the lost task to start again")
        print(f"started again {time.monotonic() - start:.1f} s after the node's end")
        assert jobs.lines()[6] == lost and jobs.lines()[7] != "n2"
        said = jobs.end(process)
    finally:
        jobs.slurm.start_node("n2")
    assert requeue or f"log/{lost}.log: its node failed; submitting it again" in said
    assert "attempt 1" in jobs.log(lost) and "attempt 2" in jobs.log(lost)


@pytest.mark.parametrize("how", ["cancel", pytest.param("requeue", marks=pytest.mark.slow)])
def test_a_preempted_task_runs_again(jobs, how):
    """An urgent job takes the place of one task, which runs again after it; the others go on."""
    (jobs.folder / "conf").write_text(f"command sbatch --export=ALL -p {how}\n")
    job = "echo JOB >> trace; until [ -e go ]; do sleep 0.2; done"
    call = ["--config", "conf", "--num-threads", "8", "JOB=1:3", "log/JOB.log", "bash", "-c", job]
    process = jobs.start(*call)
    wait_until(lambda: len(jobs.lines()) == 3, what="a job on each node")
    start = time.monotonic()
    urgent = ["sbatch", "-p", "urgent", "--cpus-per-task", "8", "--output", "/dev/null", "--wrap", "true"]
    jobs.slurm.call(*urgent)

    def again() -> bool:
        start_held(jobs)
        return len(jobs.lines()) == 4

    wait_until(again, 60, "the task to start again")
    print(f"started again {time.monotonic() - start:.1f} s after the urgent job came")
    (jobs.folder / "go").touch()
    said, again = jobs.end(process), jobs.lines()[3]
    assert how == "requeue" or f"log/{again}.log: it was preempted; submitting it again" in said
    assert "attempt 1" in jobs.log(again) and "attempt 2" in jobs.log(again) and len(jobs.lines()) == 4


def test_a_task_that_is_lost_again_and_again(jobs, monkeypatch):
    """The job script itself is killed, as if the node lost power for a moment: up to TRIES attempts, then an
    error.
    """
    job = "echo JOB >> trace; kill -9 $PPID; sleep 5"
    said = jobs.call("JOB=1:2", "log/JOB.log", "bash", "-c", f"[ JOB = 2 ] || {{ {job}; }}", code=1)
    assert said.count("submitting it again") == array.TRIES - 1 == len(jobs.lines()) - 1
    assert (
        "1 of 2 jobs failed" in said
        and f"log/1.log (SLURM has lost it (failed), {array.TRIES} times)" in said
    )
    assert "attempt 1" in jobs.log(1) and f"attempt {array.TRIES}" in jobs.log(1)


def test_the_disk_of_one_node_is_full(jobs):
    """Its tasks fail and say so; without that node the same call does the rest."""
    job = 'echo JOB >> trace; if [ "$SLURMD_NODENAME" = n3 ]; then echo x > /dev/full; else sleep 1; fi'
    call = ["--num-threads", "8", "JOB=1:3", "log/JOB.log", "bash", "-c", job]
    said = jobs.call(*call, code=1)
    assert "1 of 3 jobs failed" in said and "No space left on device" in said
    jobs.slurm.call("scontrol", "update", "NodeName=n3", "State=DRAIN", "Reason=full")
    try:
        jobs.call(*call)
    finally:
        jobs.slurm.call("scontrol", "update", "NodeName=n3", "State=RESUME")
    assert len(jobs.lines()) == 4


# ---- with recipes --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe of the ssl template whose models of stages 3 and 4 exist."""
    folder = tmp_path_factory.mktemp("recipe") / "my recipe"
    shutil.copytree(ROOT / "egs/mini/ssl", folder, ignore=shutil.ignore_patterns("exp", "data"))
    data = toy.make(folder, speakers=3, utts=4, seconds=0.6)
    (folder / "config.yaml").write_text(ENCODER + TRAIN)
    config = cfg.load(TrainConfig, folder / "config.yaml")
    for phase in ("pretrain", "round1"):
        Trainer(config, data, folder / "exp" / phase / "model").run()
    toy.trials(folder, data)
    for name in ("train", "dev", "test"):
        shutil.copytree(folder / "data", folder / "sets" / name)
        if (folder / "trials").exists():
            shutil.copy(folder / "trials", folder / "sets" / name)
    shutil.copytree(folder / "data", folder / "exp/round1/data")
    return folder


def stages(recipe: Path, exp: Path, backend: str, env: dict, *more) -> subprocess.CompletedProcess:
    text = (ROOT / "egs/TEMPLATE/cmd.sh").read_text().replace("cmd_backend=local", f"cmd_backend={backend}")
    (recipe / "cmd.sh").write_text(text)
    words = [
        recipe / "run.sh",
        "--stage",
        6,
        "--stop-stage",
        7,
        "--num-rounds",
        1,
        "--finetune",
        "false",
        "--nj",
        2,
    ]
    words += ["--exp", exp, "--data", recipe / "sets", *more]
    env = {**env, "SPKV_ROOT": str(ROOT), "SPKV_RECIPE": str(recipe)}
    done = subprocess.run(list(map(str, words)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_recipe_on_two_nodes_ends_in_the_digits_of_one_machine(jobs, recipe):
    """Extraction as an array over two nodes, scoring as a job: the files are the same, byte by byte."""
    found = {}
    (recipe / "conf/slurm.conf").write_text("default num_threads=1\noption num_threads=* --cpus-per-task 8\n")
    for backend in ("local", "slurm"):
        exp = jobs.folder / backend
        shutil.copytree(recipe / "exp", exp)
        done = stages(recipe, exp, backend, jobs.env)
        assert "EER" in done.stdout
        arks = {p.relative_to(exp): p.read_bytes() for p in exp.rglob("*.ark")}
        found[backend] = arks | {p.relative_to(exp): p.read_bytes() for p in exp.rglob("*.scores")}
    assert found["local"] == found["slurm"] and len(found["slurm"]) >= 8
    logs = [(exp / f"pretrain/extract.{k}.log").read_text() for k in (1, 2)]
    nodes = {text.split("# Started at ")[1].split(" on ")[1].split(",")[0] for text in logs}
    assert len(nodes) == 2 and not list(exp.rglob(".slurm"))


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int):
    """Mount a file system of this size on the folder."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_the_disk_fills_up_in_extraction(jobs, recipe):
    """The parts that do not fit fail and say why; with more space the same command does these alone."""
    data = jobs.folder / "data"  # three batches: the utterances of the recipe, each 50 times
    data.mkdir()
    scp = [line.split(" ", 1) for line in (recipe / "sets/train/wav.scp").read_text().splitlines()]
    utts = sorted((f"{utt}-{i:02d}", file) for utt, file in scp for i in range(50))
    for name, second in (("wav.scp", 1), ("utt2spk", 0), ("spk2utt", 0)):
        (data / name).write_text("".join(f"{utt[0]} {utt[second]}\n" for utt in utts))
    for name in ("one", "two"):
        shutil.copytree(recipe / "exp/pretrain/model", jobs.folder / name / "model")
    (jobs.folder / "conf").write_text("command sbatch --export=ALL\noption num_threads=*\n")
    jobs.env["SPKV_SLURM_CONF"] = str(jobs.folder / "conf")

    def extract(name: str, cmd: str, code: int) -> str:
        words = [
            ROOT / "steps/extract.sh",
            "--nj",
            3,
            "--cmd",
            cmd,
            jobs.folder / name / "model",
            "--data",
            data,
        ]
        done = subprocess.run(list(map(str, words)), env=jobs.env, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    def logs() -> dict[str, str]:
        return {k: (jobs.folder / f"two/extract.{k}.log").read_text() for k in "123"}

    extract("one", "run.sh", 0)
    out = jobs.folder / "two/embed/data"
    with small_disk(out, 640):
        (out / "ballast").write_bytes(bytes(580 * 1024))  # a part takes 48 KiB
        said, first = extract("two", "slurm.sh", 1), logs()
        made = [k for k in "123" if (out / f"part.{k}-of-3.made_by").exists()]
        full = [k for k in "123" if "No space left on device" in first[k]]
        assert full and sorted(made + full) == ["1", "2", "3"] and not (out / "embedding.scp").exists()
        assert f"{len(full)} of 3 jobs failed" in said and said.count("No space left on device") == len(full)
        assert all(f"extract.{k}.log (exit code 1)" in said and "200 utterances" in first[k] for k in full)
        (out / "ballast").unlink()
        extract("two", "slurm.sh", 0)
        assert [k for k in "123" if logs()[k] != first[k]] == full
        whole = jobs.folder / "one/embed/data/embedding.ark"
        assert (out / "embedding.ark").read_bytes() == whole.read_bytes()


def test_the_disk_of_the_logs_fills_up(jobs):
    """The call says so. A task that could not note its success runs again by the same command."""
    with small_disk(jobs.folder / "log", 256):
        job = "set -eo pipefail; if [ JOB = 2 ] && [ ! -e go ]; then yes | head -c 500000; fi; echo JOB >> trace"
        call = ["JOB=1:3", "log/JOB.log", "bash", "-c", job]
        assert "No space left on device" in jobs.call(*call, code=1) and "2" not in jobs.lines()
        (jobs.folder / "log/2.log").unlink()
        (jobs.folder / "go").touch()
        jobs.call(*call)
        assert jobs.lines().count("2") == 1 and set(jobs.lines()) == {"1", "2", "3"}
        assert "# Ended (code 0)" in jobs.log(2) and not (jobs.folder / "log/.slurm").exists()


# A runner that starts the two processes of `--num-nodes 2` on this machine.
TWO_PROCESSES = f"""#!/bin/bash
words=()
while [ $# -gt 0 ]; do
  case $1 in
    --num-nodes) shift 2 ;;
    --nproc) words+=(--nproc 2); shift 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
exec {RUN} "${{words[@]}}"
"""


@pytest.mark.slow
def test_a_whole_recipe_over_two_nodes_ends_in_the_digits_of_two_processes(jobs):
    """All stages of egs/mini/ssl at toy size; weights, clusters and scores are the same, byte by byte."""
    recipe, two = jobs.folder / "ssl", jobs.folder / "two.sh"
    shutil.copytree(ROOT / "egs/mini/ssl", recipe, ignore=shutil.ignore_patterns("exp", "data"))
    (recipe / "conf/slurm.conf").write_text("default num_threads=1\noption num_threads=* --cpus-per-task 8\n")
    two.write_text(TWO_PROCESSES)
    two.chmod(0o755)
    text = (ROOT / "egs/TEMPLATE/cmd.sh").read_text()
    found, words = {}, ["--num-nodes", 2, "--nj", 2, *test_recipes.ONE_ROUND, "--conf", ROOT / "tests/conf"]
    words += ["--pretrain-opts", "epochs=1", "--round-opts", "epochs=1"]
    for backend in ("slurm", "local"):
        changed = text.replace("cmd_backend=local", f"cmd_backend={backend}")
        (recipe / "cmd.sh").write_text(changed.replace("cuda_cmd=run.sh", f"cuda_cmd={two}"))
        exp = jobs.folder / backend / "exp"
        call = [recipe / "run.sh", *words, "--exp", exp, "--data", jobs.folder / "data"]
        env = {**jobs.env, "SPKV_ROOT": str(ROOT), "SPKV_RECIPE": str(recipe)}
        start = time.monotonic()
        done = subprocess.run(list(map(str, call)), env=env, capture_output=True, text=True)
        print(f"{backend}: {time.monotonic() - start:.0f} s")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "== stage 8" in done.stdout and "EER" in (exp / "report.md").read_text()
        files = [p for end in ("*.scores", "utt2spk", "model.safetensors") for p in exp.rglob(end)]
        found[backend] = {p.relative_to(exp): p.read_bytes() for p in files}
    assert found["local"] == found["slurm"]
    names = [p.name for p in found["slurm"]]
    assert names.count("model.safetensors") >= 2 and any(n.endswith(".scores") for n in names)
    log = (jobs.folder / "slurm/exp/round1/model.log").read_text()
    assert "--nproc 1" in log and "# Started" in log and " on n" in log
    assert "--nproc 2" in (jobs.folder / "local/exp/round1/model.log").read_text()


@pytest.mark.slow
def test_kmeans_in_parts_over_the_nodes_is_that_of_one_machine(jobs):
    """steps/cluster.sh --nj 3 on the cluster: the utt2spk of bin.cluster."""
    scp = test_kmeans_parts.write(jobs.folder, test_kmeans_parts.speakers(300))
    options = ["--num-kmeans", "40", "--iterations", "1"]
    words = [ROOT / "steps/cluster.sh", "--num-clusters", "20", scp, jobs.folder / "data"]
    for out, more in (("many/data", ["--cmd", "slurm.sh", "--nj", "3"]), ("one/data", [])):
        call = [*words[:1], *more, *words[1:], out, *options]
        done = subprocess.run(call, cwd=jobs.folder, env=jobs.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (jobs.folder / "many/data/utt2spk").read_bytes() == (jobs.folder / "one/data/utt2spk").read_bytes()
    assert not (jobs.folder / "many/data.kmeans").exists()


@pytest.mark.slow
def test_training_over_two_nodes_ends_in_the_digits_of_two_processes(jobs):
    """The launcher under srun, one process on each of two nodes; and on one machine two processes."""
    data = toy.make(jobs.folder, speakers=3, utts=4, seconds=0.6)
    (jobs.folder / "config.yaml").write_text(ENCODER + TRAIN)
    weights = []
    for name, options in (("one", ["--nproc", 2]), ("two", ["--num-nodes", 2, "--cmd", "slurm.sh"])):
        words = [
            ROOT / "steps/train.sh",
            *options,
            jobs.folder / "config.yaml",
            data.path,
            jobs.folder / name,
        ]
        done = subprocess.run(list(map(str, words)), env=jobs.env, capture_output=True, text=True)
        log = (jobs.folder / f"{name}.log").read_text()
        assert done.returncode == 0, done.stdout + done.stderr + log
        (file,) = (jobs.folder / name).rglob("model.safetensors")
        weights.append(file.read_bytes())
    assert "srun" not in log.splitlines()[0] and "pyspkv.bin.launch" in log.splitlines()[0]
    assert weights[0] == weights[1]


ALL_REDUCE = """import torch
import torch.distributed as dist

dist.init_process_group("gloo")
x = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(x)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {x.item():g}", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_torchrun_meets_over_two_nodes(jobs):
    """It finds the other node by PET_*, which slurm.sh sets: no option names a node."""
    (jobs.folder / "sum.py").write_text(ALL_REDUCE)
    call = [
        "--num-nodes",
        "2",
        "--num-threads",
        "8",
        "log/a.log",
        sys.executable,
        "-m",
        "torch.distributed.run",
    ]
    jobs.call(*call, "--nproc-per-node", "2", "sum.py")
    found = re.findall(r"rank (\d) of 4: 10", jobs.log("a"))  # 1 + 2 + 3 + 4
    assert sorted(found) == ["0", "1", "2", "3"], jobs.log("a")


class Training:
    """A training by steps/train.sh as SLURM jobs. A call that has failed is given again, as a user would."""

    def __init__(self, jobs: Jobs, name: str, *options, data, sizes: tuple):
        self.jobs, self.exp = jobs, jobs.folder / name
        words = [ROOT / "steps/train.sh", *options, jobs.folder / "config.yaml", data.path, self.exp, *sizes]
        self.words, self.calls, self.said = list(map(str, words)), 0, []
        self.process: subprocess.Popen | None = None

    def go_on(self) -> bool:
        """Whether it is still under way; a call that has failed is started anew."""
        if self.process and self.process.poll() is None:
            return True
        if self.process and self.process.returncode == 0 and self.process.stderr.closed:
            return False
        if self.process:
            self.said.append(self.process.communicate()[1])
            assert "Traceback" not in self.said[-1], self.said[-1]
            if self.process.returncode == 0:
                return False
        self.calls += 1
        self.process = subprocess.Popen(
            self.words,
            env=self.jobs.env,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.jobs.started.append(self.process)
        return True

    def start(self) -> int:
        """A number that changes when the training starts anew (it writes its log again, as another file)."""
        file = self.exp / "train.jsonl"
        return file.stat().st_ino if file.exists() else 0

    def wait(self, holds, seconds: float = 300) -> bool:
        """Whether it holds before the training has come to its end."""
        end = time.monotonic() + seconds
        while self.go_on():
            if holds():
                return True
            start_held(self.jobs)
            assert time.monotonic() < end, f"not within {seconds} s; {self.said}"
            time.sleep(0.2)
        return False

    def weights(self) -> bytes:
        return (checkpoint.latest(self.exp) / "model.safetensors").read_bytes()


def kill_a_worker(slurm: Cluster, rng: random.Random) -> bool:
    def is_worker(pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"pyspkv.bin.train" in words and b"pyspkv.bin.launch" not in words and b"-u" in words

    workers = [pid for node in slurm.nodes for pid in slurm.jobs_of(node) if is_worker(pid)]
    if workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
    return bool(workers)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_training_over_two_nodes_is_stopped_again_and_again(jobs):
    """Requeued, killed and signalled SPKV_STOPS times at random moments, it ends in the bytes of an unbroken run."""
    stops, seconds = (
        int(os.environ.get("SPKV_STOPS", "4")),
        float(os.environ.get("SPKV_STOPS_SECONDS", "600")),
    )
    data = toy.make(jobs.folder, speakers=3, utts=4, seconds=0.6)
    (jobs.folder / "config.yaml").write_text(ENCODER + TRAIN)
    sizes = (
        f"epochs={int(os.environ.get('SPKV_STOPS_EPOCHS', 25 * stops))}",
        "save_every_steps=10",
        "log_every_steps=1",
    )
    whole = Training(jobs, "whole", "--nproc", 2, data=data, sizes=sizes)
    assert not whole.wait(lambda: False) and whole.calls == 1
    broken = Training(jobs, "broken", "--num-nodes", 2, "--cmd", "slurm.sh", data=data, sizes=sizes)
    log = jobs.folder / "broken/train.jsonl"
    rng, times, begin = random.Random(0), {"requeue": [], "kill -9": [], "SIGUSR1": []}, time.monotonic()
    kinds = [k for _ in range(stops) for k in rng.sample(sorted(times), 3)][:stops]
    while kinds and time.monotonic() - begin < seconds:
        starting = rng.random() < 0.3  # it may be stopped before it has taken a step
        if not broken.wait(lambda starting=starting: starting or (broken.start() and log.stat().st_size > 0)):
            break
        if not broken.wait(lambda: any("RUNNING" in task for task in jobs.slurm.queue())):
            break
        time.sleep(rng.uniform(0, 4))
        running = [task.split()[0] for task in jobs.slurm.queue() if "RUNNING" in task]
        if not running:
            continue
        before, start = broken.start(), time.monotonic()
        if kinds[0] == "requeue":
            if subprocess.run(
                ["scontrol", "requeue", running[0]], env=jobs.env, capture_output=True
            ).returncode:
                continue
        elif kinds[0] == "SIGUSR1":
            subprocess.run(["scancel", "--signal=USR1", running[0]], env=jobs.env, capture_output=True)
        elif not kill_a_worker(jobs.slurm, rng):
            continue
        if not broken.wait(lambda before=before: broken.start() != before):
            break
        times[kinds.pop(0)].append(time.monotonic() - start)
        print(
            f"{sum(map(len, times.values()))} stops",
            {k: [round(t) for t in v] for k, v in times.items()},
            flush=True,
        )
    broken.wait(lambda: False, seconds)
    print(
        f"{broken.calls} calls",
        {k: (len(v), sum(v) / max(len(v), 1), max(v, default=0)) for k, v in times.items()},
    )
    assert broken.weights() == whole.weights() and all(times.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_training_longer_than_its_time_limit(jobs):
    """SLURM's signal before the limit: a checkpoint, another job, and the bytes of an unbroken run."""
    data = toy.make(jobs.folder, speakers=3, utts=4, seconds=0.6)
    (jobs.folder / "config.yaml").write_text(ENCODER.replace("channels: 16", "channels: 256") + TRAIN)
    probe = Training(jobs, "probe", data=data, sizes=("epochs=6",))
    assert not probe.wait(lambda: False)
    records = map(json.loads, (probe.exp / "train.jsonl").read_text().splitlines())
    fastest = min(r["seconds"] for r in records if r["kind"] == "epoch")
    sizes = (f"epochs={round(80 / fastest)}", "save_every_steps=100000")  # 80 s or more
    whole = Training(jobs, "whole", data=data, sizes=sizes)
    start = time.monotonic()
    assert not whole.wait(lambda: False, 900)
    print(f"unbroken: {time.monotonic() - start:.0f} s")
    (jobs.folder / "conf").write_text("command sbatch --export=ALL --time 1\n")
    jobs.env["SPKV_SLURM_CONF"] = str(jobs.folder / "conf")
    cmd = ("--cmd", "slurm.sh --signal 20")
    broken = Training(jobs, "broken", *cmd, data=data, sizes=sizes)
    start = time.monotonic()
    assert not broken.wait(lambda: False, 900)
    log = (jobs.folder / "broken.log").read_text()
    print(f"{time.monotonic() - start:.0f} s, {log.count('stopped by SIGUSR1')} stops")
    assert broken.calls == 1 and log.count("stopped by SIGUSR1 at step") >= 1
    assert broken.weights() == whole.weights()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["killed", "head killed", "silent"])
def test_a_node_dies_in_a_training_over_two_nodes(jobs, how):
    """A third node takes its place; the weights are those of an unbroken run, byte by byte.

    The connections of a killed node are closed at once. A node without power is silent until SLURM gives it up.
    """
    data = toy.make(jobs.folder, speakers=3, utts=4, seconds=0.6)
    (jobs.folder / "config.yaml").write_text(ENCODER + TRAIN)
    (jobs.folder / "conf").write_text("command sbatch --export=ALL --no-requeue\n")
    jobs.env["SPKV_SLURM_CONF"] = str(jobs.folder / "conf")
    sizes = ("epochs=60", "save_every_steps=10", "log_every_steps=1")
    whole = Training(jobs, "whole", "--nproc", 2, data=data, sizes=sizes)
    assert not whole.wait(lambda: False) and whole.calls == 1
    broken = Training(
        jobs, "broken", "--num-nodes", 2, "--cmd", "slurm.sh --num-threads 8", data=data, sizes=sizes
    )

    def saved() -> int:
        steps = [int(p.name.partition("-")[2]) for p in broken.exp.glob("ckpt-*")]
        return max(steps, default=0)

    assert broken.wait(lambda: saved() >= 30)
    nodes = jobs.slurm.call("scontrol", "show", "hostnames", jobs.slurm.queue()[0].split()[2]).split()
    lost, before, start = nodes[how != "head killed"], broken.start(), time.monotonic()
    if how == "silent":
        jobs.slurm.silence_node(lost)
    else:
        jobs.slurm.kill_node(lost)
    try:
        assert broken.wait(lambda: broken.start() != before)
        print(f"{how}: started again {time.monotonic() - start:.1f} s after the end of {lost}")
        assert not broken.wait(lambda: False)
    finally:
        jobs.slurm.kill_node(lost)
        jobs.slurm.start_node(lost)
    log = (jobs.folder / "broken.log").read_text()
    assert broken.calls == 1 and log.count("# Started") == 2, (broken.said, log)
    assert broken.weights() == whole.weights() and f" on {lost}, " not in log.rpartition("# Started")[2]


def test_cells_of_a_grid_are_jobs(jobs):
    """With bin.grid --cmd, the run.sh of each cell is a job.

    A failed one is named and is the only one to run again.
    """
    recipe = jobs.folder / "my recipe"
    (recipe / "tables").mkdir(parents=True)
    text = 'echo "${exp##*/} $SLURM_JOB_ID" >> "$exp/../ran"; [ "${exp##*/}" != b ] || [ -e "$exp/../go" ] || exit 3\n'
    (recipe / "run.sh").write_text(RECIPE.replace("for i in", f"{text}for i in"))
    (recipe / "run.sh").chmod(0o755)
    (recipe / "tables/t.yaml").write_text("cells:\n  a: {}\n  b: {}\n  c: {}\n")
    exp = recipe / "exp/grid"
    words = [sys.executable, "-m", "pyspkv.bin.grid", recipe / "tables/t.yaml", "--jobs", "3", "--cmd", SLURM]

    def ran(code: int) -> tuple[str, list[str]]:
        done = subprocess.run(words, env=jobs.env, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
        lines = [line.split() for line in (exp / "ran").read_text().splitlines()]
        assert len({job for _, job in lines}) == len(lines)
        return done.stderr, sorted(cell for cell, _ in lines)

    said, cells = ran(1)
    assert cells == ["a", "b", "c"] and f"failed: b (exit code 1: {exp}/b/log/grid.log)" in said
    (exp / "go").touch()
    assert ran(0)[1] == ["a", "b", "b", "c"]


@pytest.mark.slow
def test_a_node_dies_in_extraction(jobs, recipe):
    """Its part is embedded again on another node; the embeddings are those of one machine, byte by byte."""
    (jobs.folder / "conf").write_text(
        "command sbatch --no-requeue\ndefault num_threads=1\noption num_threads=* --cpus-per-task 8\n"
    )
    jobs.env["SPKV_SLURM_CONF"] = str(jobs.folder / "conf")
    step = [str(ROOT / "steps/extract.sh"), "--nj", "3"]
    rest = [str(recipe / "exp/pretrain/model"), str(recipe / "sets/train")]
    words = [*step, "--cmd", "run.sh", *rest, "one"]
    done = subprocess.run(words, env=jobs.env, cwd=jobs.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = [*step, "--cmd", "slurm.sh", *rest, "two"]
    process = subprocess.Popen(words, env=jobs.env, cwd=jobs.folder, stderr=subprocess.PIPE, text=True)
    logs = [jobs.folder / f"two/extract.{k}.log" for k in (1, 2, 3)]
    wait_until(lambda: any(p.exists() and " on n2, job" in p.read_text() for p in logs), 60, "a part on n2")
    jobs.slurm.kill_node("n2")
    start = time.monotonic()
    try:
        said = process.communicate(timeout=200)[1]
        print(f"ended {time.monotonic() - start:.1f} s after the node's end")
    finally:
        process.kill()
        jobs.slurm.start_node("n2")
    assert process.returncode == 0 and said.count("its node failed; submitting it again") == 1, said
    arks = [(jobs.folder / name / "embedding.ark").read_bytes() for name in ("one", "two")]
    assert arks[0] == arks[1]
