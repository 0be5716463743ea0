"""The core of slurm.sh against a SLURM that is played in this process; the tasks run in the real slurm_task.sh.

What SLURM does here (it loses a task, does not answer, ends a job late) is hard to bring about in a real one;
tests/test_slurm.py has that.
"""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from pyspkv.bin.slurm import Follow
from pyspkv.jobs import array, engine
from pyspkv.jobs.call import parse_call, read_config

ROOT = Path(__file__).resolve().parent.parent
RUN, TASK = str(ROOT / "utils/run.sh"), str(ROOT / "utils/slurm_task.sh")
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}


class Slurm:
    """Stands for engine.call. A task runs when the queue is asked for, unless the test says otherwise."""

    def __init__(self):
        self.called: list[list[str]] = []
        self.queued: dict[tuple[str, int], str] = {}  # (job, index) -> comment
        self.folders: dict[str, Path] = {}
        self.runs = lambda job, index: True  # False: the task stays in the queue; None: SLURM loses it
        self.hold_cancelled = 0  # so many more questions see a cancelled task
        self.answers = lambda words: None  # an answer in place of ours

    def __call__(self, *words, env=None, cwd=None):
        self.called.append(list(words))
        return self.answers(words) or getattr(self, words[0])(words)

    def words(self, program: str) -> list[list[str]]:
        return [w for w in self.called if w[0] == program]

    def submitted(self) -> list[list[str]]:
        return [w for w in self.words("sbatch") if "--test-only" not in w]

    def sbatch(self, words):
        if "--test-only" in words:
            return 0, "", ""
        job = str(100 + len(self.folders))
        self.folders[job] = Path(words[-1])
        comment = next(w.partition("=")[2] for w in words if w.startswith("--comment="))
        for index in range(len((self.folders[job] / "tasks").read_text().splitlines())):
            self.queued[job, index] = comment
        return 0, job, ""

    def squeue(self, words):
        if "-j" not in words:  # find
            return 0, "\n".join(f"{job}|{comment}" for (job, _), comment in self.queued.items()), ""
        for job, index in list(self.queued):
            runs = self.runs(job, index)
            if runs:
                run_task(self.folders[job], job, index)
            if runs is not False:
                del self.queued[job, index]
        lines = [f"{job}|{index}|RUNNING|{comment}|" for (job, index), comment in self.queued.items()]
        return 0, "\n".join(lines), ""

    def scancel(self, words):
        def gone(job, index, old=self.runs, left=[self.hold_cancelled]):  # noqa: B006
            left[0] -= 1
            return old(job, index) if f"{job}_[{index}]" not in words else None if left[0] < 0 else False

        self.runs = gone
        return 0, "", ""

    def scontrol(self, words):
        return 0, "", ""


def run_task(folder: Path, job: str, index: int, **more) -> None:
    env = {**ENV, "SLURM_ARRAY_TASK_ID": str(index), "SLURM_JOB_ID": job, "SLURM_ARRAY_JOB_ID": job, **more}
    with open(folder / f"out.{index}", "a") as out:
        subprocess.run([TASK, folder], env={"SLURMD_NODENAME": "n1", **env}, stdout=out, stderr=out)


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    made = Slurm()
    monkeypatch.setattr(engine, "call", made)
    monkeypatch.setattr(engine, "PAUSE", 0.01, raising=False)
    monkeypatch.setattr(array, "LOOK", 0.01)
    monkeypatch.chdir(tmp_path)
    return made


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (folder / name).chmod(0o755)


def jobs(*words) -> array.Array:
    made = array.Array(parse_call(list(words)), read_config(None))
    made.state.mkdir(parents=True, exist_ok=True)
    return made


def left_behind(*words) -> array.Array:
    """What a runner that is killed after its submission leaves."""
    made = jobs(*words)
    made.adopt()
    made.submit(sorted(made.left))
    return made


def run(*words, show=lambda: None) -> int:
    return jobs(*words).run(show)


# ---- submitting ------------------------------------------------------------------------------------------------
def test_a_lost_task_waits_for_nodes_that_are_down(slurm):
    """sbatch --test-only refuses what needs nodes that are down; sbatch itself accepts it."""
    slurm.runs = lambda job, index: None if job == "100" else True
    tested = []

    def answers(words):
        if "--test-only" in words:
            tested.append(words)
            return None if len(tested) == 1 else (1, "", "Requested node configuration is not available")
        return None

    slurm.answers = answers
    assert run("--num-nodes", "1", "a.log", "true") == 0
    assert len(tested) == 1 and len(slurm.submitted()) == 2


@pytest.mark.parametrize(
    "message", ["Socket timed out on send/recv operation", "Transport endpoint is not connected"]
)
def test_an_accepted_job_whose_answer_was_lost_is_not_submitted_again(slurm, message):
    silent = [True, True]

    def answers(words):
        if words[0] == "sbatch" and "--test-only" not in words and not slurm.folders:
            slurm.sbatch(words)
            return 1, "", f"sbatch: error: Batch job submission failed: {message}"
        if words[0] == "squeue" and "-j" not in words and silent:
            silent.pop()
            return 1, "", "slurm_load_jobs error: Unable to contact slurm controller"
        return None

    slurm.answers = answers
    assert run("a.log", "true") == 0
    assert len(slurm.submitted()) == 1 and not silent


def test_few_at_a_time_holds_for_tasks_that_are_submitted_again(slurm):
    """%N holds within one array, so a later array waits for the one before."""
    state = {("100", 1): None}
    slurm.runs = lambda job, index: state.get((job, index), job != "100" or "101" in slurm.folders)
    assert run("--max-jobs-run", "2", "JOB=1:3", "log/JOB.log", "true") == 0
    first, second = slurm.submitted()
    assert "--array=0-2%2" in first and not any("--dependency" in w for w in first)
    assert "--array=0-0%2" in second and "--dependency=afterany:100" in second


def test_few_at_a_time_holds_for_tasks_that_are_taken_over(slurm):
    left_behind("--max-jobs-run", "2", "JOB=1:3", "log/JOB.log", "true")
    slurm.runs = lambda job, index: "101" in slurm.folders
    assert run("--max-jobs-run", "2", "JOB=1:4", "log/JOB.log", "true") == 0
    assert "--dependency=afterany:100" in slurm.submitted()[-1] and len(slurm.submitted()) == 2


@pytest.mark.parametrize(
    "ends", ["exit 75", "kill -USR1 $$", "echo stopped by SIGUSR1 at step 7: x; exit 75"]
)
def test_a_job_that_gets_no_further_is_not_submitted_for_ever(slurm, capsys, monkeypatch, tmp_path, ends):
    monkeypatch.setattr(array, "TRIES", 3)
    program(tmp_path, "sleep", "")  # slurm_task.sh waits two seconds after a job that a signal has ended
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run("a.log", "bash", "-c", f"echo + >> trace; [ $(wc -l < trace) -lt 9 ] || exit 3; {ends}") == 1
    assert len(Path("trace").read_text().split()) == array.TRIES + ("step" in ends)
    assert f"stopped in time, {array.TRIES} times" in capsys.readouterr().err


def test_a_training_that_gets_on_may_be_stopped_again_and_again(slurm, monkeypatch):
    monkeypatch.setattr(array, "TRIES", 2)
    job = "echo + >> trace; n=$(wc -l < trace); [ $n -lt 4 ] || exit 0; echo stopped by SIGUSR1 at step $n: x; exit 75"
    assert run("a.log", "bash", "-c", job) == 0
    assert len(slurm.submitted()) == 4


# ---- what counts as done ---------------------------------------------------------------------------------------
def newest(*command) -> float:
    return jobs("JOB=1:2", "log/JOB.log", *command).newest(1)


def stamp(path: str, at: float) -> None:
    if not Path(path).exists():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    os.utime(path, (at, at))


def test_outputs_are_not_inputs(slurm):
    for name in ("out", "data", "exp"):
        stamp(f"{name}/x", 1000.0)
        os.utime(name, (1000.0, 1000.0))
    stamp("out/x", 5000.0)
    for option in ("--out", "--out-data", "--labels-out", "--exp"):
        assert newest("cmd", "--data", "data", option, "out") == 1000.0
    assert newest("cmd", "--data", "out") == 5000.0


def test_a_model_with_its_kind_is_an_input(slurm):
    stamp("exp/model/state.json", 3000.0)
    os.utime("exp/model", (2000.0, 2000.0))
    assert newest("cmd", "--model", "exp/model@best") == newest("cmd", "exp/model@last") == 3000.0


def test_a_link_without_a_target_hides_nothing(slurm):
    Path("data").mkdir()
    Path("data/a").symlink_to("nowhere")
    for name in "bcdefgh":
        stamp(f"data/{name}", 3000.0)
    os.utime("data", (1000.0, 1000.0))
    assert newest("cmd", "data") == 3000.0


def test_the_name_of_the_number_in_a_parent_folder(slurm, tmp_path, monkeypatch):
    folder = tmp_path / "JOB1/proj"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    stamp("data.1/x", 3000.0)
    os.utime("data.1", (1000.0, 1000.0))
    assert newest("cmd", "data.JOB") == 3000.0
    call = parse_call(["JOB=1:2", "log/JOB/a.log", "cmd"])
    assert call.state() == folder / "log/.slurm/JOB+a.log" and call.log_of(2) == folder / "log/2/a.log"


# ---- after a runner was killed ---------------------------------------------------------------------------------
def test_tasks_of_another_command_have_ended_before_new_ones_start(slurm):
    left_behind("a.log", "true")
    slurm.runs, slurm.hold_cancelled = lambda job, index: job != "100", 3
    gone = []
    slurm.answers = lambda words: (
        gone.append(("100", 0) not in slurm.queued) if words[0] == "sbatch" else None
    )
    assert run("a.log", "echo", "new") == 0
    assert gone == [True, True] and "new" in Path("a.log").read_text()


def test_tasks_of_older_inputs_are_not_taken_over(slurm):
    stamp("data/1", time.time() - 100)
    os.utime("data", (1000.0, 1000.0))
    call = ["JOB=1:2", "log/JOB.log", "cat", "data/JOB"]
    stamp("data/2", time.time() - 100)
    left_behind(*call)
    time.sleep(0.02)
    Path("data/1").write_text("new")
    slurm.runs = lambda job, index: (job, index) != ("100", 0)
    assert run(*call) == 0
    assert len(slurm.submitted()) == 2 and "--array=0-0" in slurm.submitted()[1]
    assert "new" in Path("log/1.log").read_text()


def test_an_array_whose_id_was_not_written_is_taken_over(slurm):
    made = left_behind("a.log", "bash", "-c", "echo + >> trace")
    (folder,) = made.folders()
    (folder / "job").write_text("")
    assert run("a.log", "bash", "-c", "echo + >> trace") == 0
    assert len(slurm.submitted()) == 1 and Path("trace").read_text() == "+\n"


def test_a_stop_while_taking_over_ends_the_old_arrays(slurm, monkeypatch):
    left_behind("a.log", "sleep", "60")
    made, cancelled = jobs("a.log", "sleep", "60"), {}
    monkeypatch.setattr(engine, "queue", lambda jobs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made.adopt()
    monkeypatch.setattr(engine, "cancel_all", lambda jobs: cancelled.update(jobs) or True)
    made.stop()
    assert list(cancelled) == ["100"]


# ---- logs ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("runner", ["run.sh", "slurm.sh"])
def test_a_log_goes_on_until_its_job_has_succeeded(slurm, runner):
    job = ["a.log", "bash", "-c", "echo call $(ls | grep -c go); test -e go1"]

    def call() -> int:
        return (
            run(*job) if runner == "slurm.sh" else subprocess.run([RUN, *job], capture_output=True).returncode
        )

    assert call() == call() == 1
    Path("go1").touch()
    assert call() == 0
    log = Path("a.log").read_text()
    assert log.count("# Started at ") == 3 and "\ncall 0\n" in log and "\ncall 1\n" in log
    Path("go2").touch()
    assert call() == 0
    log = Path("a.log").read_text()
    assert log.count("# Started at ") == 1 and "\ncall 2\n" in log


def test_only_new_output_is_shown(slurm, capfdbinary):
    """The job's own lines that begin with # too."""
    job = "echo '# one'; echo; echo '#two'; echo '#'; echo '# three'; echo '# four' >&2; printf five"
    text = b"# one\n\n#two\n#\n# three\n# four\nfive"
    for code, more, shown in ((1, "; exit 2", text), (0, "", text), (0, "; #", text)):
        show = Follow(Path("a.log").resolve())
        assert run("--show", "true", "a.log", "bash", "-c", job + more, show=show) == code
        show()
        assert capfdbinary.readouterr().out == shown


def test_a_log_that_was_emptied_is_shown_from_its_start(tmp_path, capfdbinary):
    log = tmp_path / "log"
    log.write_text("old line\n" * 9)
    show = Follow(log)
    show()
    log.write_text("")
    show()
    log.write_text("new\n" * 30)
    show()
    assert capfdbinary.readouterr().out == b"new\n" * 30


def test_slurms_own_message_is_that_of_the_latest_attempt(slurm, capsys):
    def runs(job, index):
        (slurm.folders[job] / f"out.{index}").write_text(f"slurmstepd: job {job}, index {index}\n")
        return None if job == "100" else True

    slurm.runs = runs
    assert run("JOB=1:2", "log/JOB.log", "bash", "-c", "exit $((JOB - 1))") == 1
    said = capsys.readouterr().err
    assert "job 101, index 1" in said and "job 100, index" not in said


# ---- slurm_task.sh ---------------------------------------------------------------------------------------------
def over_two_nodes(folder: Path, monkeypatch, job: int, srun: str) -> tuple[array.Array, str]:
    """The state and the log after slurm_task.sh has run `echo at ADDRESS:PORT`, with this srun."""
    node = "NodeName=n1 NodeAddr=127.0.0.1 X=1"
    program(folder, "scontrol", f"case $* in *hostnames*) echo n1;; *) echo '{node}';; esac")
    program(folder, "srun", f'while [ "$1" != -- ]; do shift; done; shift; "$@"; {srun}')
    program(folder, "sleep", "exec /bin/sleep 0.4")  # in place of its 2 s
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    made = left_behind("--num-nodes", "2", "a.log", "bash", "-c", "echo at $SPKV_HEAD $PET_RDZV_ENDPOINT")
    run_task(made.folders()[0], str(job), 0, SLURM_JOB_NODELIST="n[1-2]")
    return made, Path("a.log").read_text()


def test_a_port_that_is_in_use_is_not_the_meeting_point(slurm, tmp_path, monkeypatch):
    with socket.socket() as s:
        for job in range(3000, 4000):
            try:
                s.bind(("127.0.0.1", 20000 + job))
                break
            except OSError:
                continue
        s.listen()
        made, log = over_two_nodes(tmp_path, monkeypatch, job, "exit 0")
    first, second = log.split("\nat ")[1].splitlines()[0].split()
    address, _, port = first.partition(":")
    assert first == second and address == "127.0.0.1" and 20000 + job < int(port) < 20100 + job
    assert made.read("done", 1)


def test_a_job_that_has_lost_a_node_is_not_done(slurm, tmp_path, monkeypatch):
    """srun returns 0 where a node has failed, and SLURM's SIGTERM comes a moment later."""
    made, log = over_two_nodes(tmp_path, monkeypatch, 3, "(/bin/sleep 0.1; kill $PPID) & exit 0")
    assert "# Ended (code 143)" in log
    assert not any(made.read(kind, 1) for kind in ("done", "failed", "again"))


def test_threads_are_those_of_the_machine_that_runs_the_job(slurm, tmp_path, monkeypatch):
    """steps/extract.sh leaves them to the runner, so that cmd.sh decides."""
    program(tmp_path, "runner", 'printf "%s\\n" "$@" > words')
    step = [
        ROOT / "steps/extract.sh",
        "--cmd",
        f"{tmp_path}/runner --num-threads 3",
        "--nj",
        "2",
        "m",
        "d",
        "o",
    ]
    subprocess.run(step, env={**ENV, "SPKV_PYTHON": "/bin/true"}, capture_output=True)
    words = Path("words").read_text().split()
    assert words[:2] == ["--num-threads", "3"] and words.count("--num-threads") == 1

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for given, set_to, number in (([], None, "5"), (["--num-threads", "3"], None, "3"), ([], "2", "2")):
        if set_to:
            monkeypatch.setenv("OMP_NUM_THREADS", set_to)
        made = left_behind(
            *given, "JOB=1:1", "t/JOB.log", "bash", "-c", f"echo threads $OMP_NUM_THREADS {given}"
        )
        env = {k: v for k, v in ENV.items() if k != "OMP_NUM_THREADS"}
        monkeypatch.setitem(globals(), "ENV", env)
        run_task(made.folders()[-1], "7", 0, SLURM_CPUS_ON_NODE="5")
        assert f"\nthreads {number} " in Path("t/1.log").read_text()
        Path("t/1.log").unlink()
        show = 'echo "threads $OMP_NUM_THREADS"'
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        program(tmp_path, "nproc", "echo 9")
        subprocess.run([RUN, *given, "JOB=1:2", "r/JOB.log", "bash", "-c", show], check=True)
        assert f"\nthreads {number}\n" in Path("r/1.log").read_text()
