"""The launcher: one message whatever fails, and no process remains."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from test_dataset_workers import alive, children
from test_trainer import ENV, assert_same, config, final, train_command

CHILD = """
import json, os, signal, sys, time
from pathlib import Path
from pyspkv.base.errors import UserError, run
from pyspkv.base.processes import REQUEUE, PeerLost, StopSignal, is_first

rank = os.environ["RANK"]

def main():
    out = Path(sys.argv[1])
    (out / f"{rank}.tmp").write_text(json.dumps({**os.environ, "argv": sys.argv[1:], "pid": os.getpid()}))
    os.replace(out / f"{rank}.tmp", out / f"{rank}.json")
    what = json.loads(sys.argv[2]).get(rank, "ends")
    if what == "user":
        raise UserError(f"wrong at {rank}", file="x", hint="right it")
    if what == "same":
        raise UserError("wrong everywhere")
    if what == "disk":
        raise OSError(28, "No space left on device", "model.bin")
    if what == "lost":
        raise PeerLost
    if what == "late":
        time.sleep(0.5)
        raise UserError(f"wrong at {rank}")
    if what == "waits":
        time.sleep(600)
    if what == "stops":
        with StopSignal() as stop:
            (out / f"{rank}.listens").touch()
            while not stop.signal:
                time.sleep(0.01)
        sys.exit(REQUEUE)
    if what.startswith("kill"):
        os.kill(os.getpid(), int(what[4:]))
    if what.startswith("exit"):
        sys.exit(int(what[4:]))
    if what == "bug":
        raise AssertionError("a bug")

run(main)
"""


@pytest.fixture
def call(tmp_path):
    """Command and environment of the launcher; its child process does what `what` says for each rank."""
    (tmp_path / "child.py").write_text(CHILD)

    def made(what: dict, *more, nproc=2) -> dict:
        launch = [sys.executable, "-m", "pyspkv.bin.launch", "--nproc", str(nproc)]
        args = [*launch, "child", str(tmp_path), json.dumps(what), *more]
        env = {**ENV, "PYTHONPATH": f"{ENV['PYTHONPATH']}:{tmp_path}"}
        env.pop("OMP_NUM_THREADS")
        return {"args": args, "env": env}

    return made


def seen(folder: Path, nproc: int = 2) -> list[dict]:
    """What each child process was given, once all run."""
    end = time.monotonic() + 20
    files = [folder / f"{rank}.json" for rank in range(nproc)]
    while not all(f.exists() for f in files) and time.monotonic() < end:
        time.sleep(0.02)
    return [json.loads(f.read_text()) for f in files]


def assert_gone(pids: list[int], seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


def test_processes_get_what_torchrun_gives_and_their_arguments_as_they_are(tmp_path, call):
    more = ["--set", "a=b c", "$(x)", "--", "--nproc", "9", ""]
    subprocess.run(**call({}, *more, nproc=3), check=True)
    ranks = seen(tmp_path, 3)
    assert [r["RANK"] for r in ranks] == [r["LOCAL_RANK"] for r in ranks] == ["0", "1", "2"]
    for r in ranks:
        assert r["argv"][2:] == more and r["WORLD_SIZE"] == "3" and r["MASTER_ADDR"] == "127.0.0.1"
        assert r["OMP_NUM_THREADS"] == "1" and r["OMP_WAIT_POLICY"] == "PASSIVE"
        assert r["MASTER_PORT"] == ranks[0]["MASTER_PORT"]
    assert_gone([r["pid"] for r in ranks])


def test_a_double_dash_before_the_module_is_taken_too(tmp_path, call):
    given = call({}, "x")
    given["args"].insert(given["args"].index("child"), "--")
    subprocess.run(**given, check=True)
    assert seen(tmp_path)[1]["argv"][2:] == ["x"]


@pytest.mark.parametrize(("what", "message"), [
    ({"0": "user", "1": "waits"}, "error: x: wrong at 0\n  hint: right it\n"),
    ({"0": "waits", "1": "user"}, "error: x: wrong at 1\n  hint: right it\n"),
    ({"0": "same", "1": "same"}, "error: wrong everywhere\n"),
    ({"0": "lost", "1": "user"}, "error: x: wrong at 1\n  hint: right it\n"),
    ({"0": "lost", "1": "late"}, "error: wrong at 1\n"),
    ({"0": "waits", "1": "disk"}, "error: model.bin: No space left on device\n"),
    ({"0": "ends", "1": "user"}, "error: x: wrong at 1\n  hint: right it\n"),
    ({"0": "kill9", "1": "lost"}, "error: process 1 of 2 was killed by signal 9; see above\n"),
    ({"0": "lost", "1": "kill9"}, "error: process 2 of 2 was killed by signal 9; see above\n"),
    ({"0": "waits", "1": "kill11"}, "error: process 2 of 2 was killed by signal 11; see above\n"),
    ({"0": "waits", "1": "exit3"}, "error: process 2 of 2 ended with exit code 3; see above\n"),
    ({"0": "exit3", "1": "waits"}, ""),
    ({"0": "lost", "1": "lost"}, "error: the processes of this run lost each other\n"),
])  # fmt: skip
def test_one_message_says_why_and_all_end(tmp_path, call, what, message):
    done = subprocess.run(**call(what), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) <= 2
    if "hint" in message or not message:
        assert done.stderr == message
    assert_gone([json.loads(f.read_text())["pid"] for f in tmp_path.glob("*.json")])


def test_a_bug_keeps_its_traceback(call, tmp_path):
    how = call({"0": "waits", "1": "bug"})
    plain = {k: v for k, v in how["env"].items() if k != "SPKV_TRACEBACK"} | {"SPKV_LOG_DIR": str(tmp_path)}
    done = subprocess.run(how["args"], env=plain, capture_output=True, text=True, timeout=30)
    [log] = tmp_path.glob("pyspkv-error-*.log")
    said = f"error: internal error (AssertionError: a bug); please report it with {log}\n"
    assert (done.returncode, done.stderr) == (1, said) and "Traceback" in log.read_text()
    shown = {**plain, "SPKV_TRACEBACK": "1"}
    done = subprocess.run(how["args"], env=shown, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "AssertionError: a bug\n" in done.stderr
    assert done.stderr.endswith("process 2 of 2 ended with exit code 1; see above\n")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_signals_to_the_launcher_end_all(tmp_path, call, sent):
    process = subprocess.Popen(**call({"0": "waits", "1": "waits"}), stderr=subprocess.PIPE, text=True)
    pids = [r["pid"] for r in seen(tmp_path)]
    process.send_signal(sent)
    assert process.wait(10) == -sent and process.stderr.read() == ""
    assert_gone(pids)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_processes_that_a_signal_stops_in_time_end_with_the_requeue_code(tmp_path, call, sent):
    """Their exit code is the launcher's; its own end, of a Ctrl-C say, stays what it was."""
    process = subprocess.Popen(**call({"0": "stops", "1": "stops"}), stderr=subprocess.PIPE, text=True)
    pids = [r["pid"] for r in seen(tmp_path)]
    while len(list(tmp_path.glob("*.listens"))) < 2:
        time.sleep(0.02)
    process.send_signal(sent)
    assert process.wait(20) == 75 and process.stderr.read() == ""
    assert_gone(pids)


@pytest.mark.parametrize("other", ["kill9", "exit3"])
def test_one_that_dies_is_named_though_a_signal_stopped_the_others(tmp_path, call, other):
    """torchrun and this launcher send SIGTERM to those that are left: their end is no end in peace."""
    done = subprocess.run(**call({"0": "stops", "1": other}), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "error: process 2 of 2 " in done.stderr


def test_launchers_of_two_machines_number_their_processes_through(tmp_path, call):
    running = []
    for node in ("1", "0"):
        given = call({"0": "ends", "3": "kill9"})
        nodes = {"SPKV_NODES": "2", "SLURM_NODEID": node, "SPKV_HEAD": "10.0.0.1:4567"}
        running.append(
            subprocess.Popen(given["args"], env=given["env"] | nodes, stderr=subprocess.PIPE, text=True)
        )
    said = [(process.communicate(timeout=60)[1], process.returncode) for process in running]
    assert said[0][0].startswith("error: process 4 of 4 was killed by signal 9") and said[0][1] == 1
    assert said[1] == ("", 0)
    for rank, r in enumerate(seen(tmp_path, 4)):
        assert (r["RANK"], r["LOCAL_RANK"], r["WORLD_SIZE"]) == (str(rank), str(rank % 2), "4")
        assert (r["MASTER_ADDR"], r["MASTER_PORT"], r["OMP_NUM_THREADS"]) == ("10.0.0.1", "4567", "1")


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"SPKV_NODE": "2", "SPKV_HEAD": "a:1"}, "SPKV_NODES=2, SPKV_NODE=2: this machine is none of them"),
        ({"SPKV_NODE": "1", "SPKV_HEAD": "a"}, "SPKV_HEAD is not ADDRESS:PORT of the first machine"),
    ],
)
def test_wrong_variables_of_several_machines_are_refused(call, nodes, words):
    given = call({})
    done = subprocess.run(
        given["args"], env=given["env"] | {"SPKV_NODES": "2"} | nodes, capture_output=True, text=True
    )
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_an_ignored_hangup_stays_ignored(tmp_path, call):
    given = call({"0": "waits", "1": "waits"})
    process = subprocess.Popen(["nohup", *given["args"]], env=given["env"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    pids = [r["pid"] for r in seen(tmp_path)]
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    assert all(map(alive, pids))
    process.terminate()
    process.wait(10)
    assert_gone(pids)


def test_two_launchers_at_once_have_two_ports(tmp_path, call):
    ports = set()
    running = []
    for _ in range(2):
        running.append(subprocess.Popen(**call({"0": "waits", "1": "waits"})))
        ports.add(seen(tmp_path)[0]["MASTER_PORT"])
        (tmp_path / "0.json").unlink()
    for process in running:
        process.terminate()
        process.wait(10)
    assert len(ports) == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--nproc", "0", "child"], "--nproc 0 is below 1"),
        (["--nproc", "two", "child"], "invalid int value"),
        (["--nproc", "2"], "MODULE"),
        (["--nproc", "2", "nosuch"], "there is no module nosuch"),
        (["--nproc", "2", "pyspkv.bin.nosuch"], "there is no module pyspkv.bin.nosuch"),
        (["--nproc", "2", "-", "child"], "there is no module -"),
    ],
)
def test_wrong_calls(call, args, words):
    given = call({})
    done = subprocess.run([*given["args"][:3], *args], env=given["env"], capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


# -- with a training


def launched(tmp_path, data, *more):
    return train_command(tmp_path, data, tmp_path / "exp", "--set", *more, nproc=2)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["batch_size=500"], "lower batch_size"),
        pytest.param(["batch_size=15"], "batch_size 15 is not a multiple of 2", marks=pytest.mark.slow),
        pytest.param(["optim.learn=1"], "unknown config key", marks=pytest.mark.slow),
    ],
)
def test_an_error_of_every_process_is_printed_once(tmp_path, more, words):
    data = toy.make(tmp_path, speakers=2, utts=2)
    config(tmp_path)
    done = subprocess.run(
        launched(tmp_path, data, *more), env=ENV, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("error:") == 1
    assert len(done.stderr.splitlines()) <= 2 and not (tmp_path / "exp/LATEST").exists()


def test_a_usage_error_is_printed_once(tmp_path):
    data = toy.make(tmp_path, speakers=2, utts=2)
    command = [*launched(tmp_path, data, "epochs=1"), "--no-such-option"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.count("unrecognized arguments: --no-such-option") == 1
    assert "Traceback" not in done.stderr and "process " not in done.stderr


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other_in_its_collective(tmp_path):
    """The audio of one utterance is missing, so one process fails while the other waits for it in an
    all-reduce.
    """
    data = toy.make(tmp_path, speakers=2, utts=4)
    config(tmp_path)
    gone = sorted(data.wav.values())[3]
    os.remove(gone)
    (tmp_path / "data/utt2num_samples").write_text("".join(f"{u} 16000\n" for u in data.utts))
    command = launched(tmp_path, data, "cache_mb=0", "batch_size=2", "objective.augment=false")
    start = time.monotonic()
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert done.returncode == 1 and len(errors) == 1 and gone in errors[0]
    assert "Traceback" not in done.stderr and time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("who", "sent"),
    [
        ("one process", signal.SIGTERM),
        pytest.param("rank 1", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("launcher", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_training_that_a_signal_stops_saves_and_goes_on(tmp_path, sent, who):
    """At its next step, in mid-epoch, whichever process got the signal; the digits are those of an unbroken run."""
    data = toy.make(tmp_path, speakers=2, utts=8, seconds=0.6)
    config(tmp_path)
    nproc = 1 if who == "one process" else 2
    sizes = ["num_workers=1", "epochs=20", "augment.rir_bank=0", "save_every_steps=1000"]
    words = [
        train_command(tmp_path, data, tmp_path / exp, "--set", *sizes, nproc=nproc) for exp in ("a", "b")
    ]
    process = subprocess.Popen(words[0], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "a/LATEST").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(children(process.pid)[1] if who == "rank 1" else process.pid, sent)
    said, errors = process.communicate(timeout=60)
    step = int((tmp_path / "a/LATEST").read_text().strip()[5:])
    assert process.returncode == 75 and "Traceback" not in errors and "error" not in errors, errors
    name = sent.name if who != "rank 1" else "a signal to another process"
    assert f"stopped by {name} at step {step}: the same command goes on from there\n" in said
    assert "model: " not in said and 4 <= step < 80
    done = subprocess.run(words[0], env=ENV, capture_output=True, text=True, check=True)
    assert f"resuming {tmp_path}/a at step {step}\n" in done.stdout
    subprocess.run(words[1], env=ENV, capture_output=True, check=True)
    assert_same(final(tmp_path / "a"), final(tmp_path / "b"))
    log = (tmp_path / "a/train.jsonl").read_text().splitlines()
    steps = [r["step"] for r in map(json.loads, log) if r["kind"] == "step"]
    assert steps == list(range(2, 81, 2))  # appended, nothing twice


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "launcher", "worker"])
def test_killed_in_training(tmp_path, victim):
    data = toy.make(tmp_path, speakers=2, utts=4)
    config(tmp_path)
    command = launched(
        tmp_path, data, "num_workers=1", "epochs=2000", "save_every_steps=1", "augment.rir_bank=0"
    )
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "exp/LATEST").exists():
        assert process.poll() is None
        time.sleep(0.05)
    ranks = children(process.pid)
    workers = [pid for rank in ranks for pid in children(rank)]
    assert len(ranks) == len(workers) == 2
    os.kill(
        {"rank 0": ranks[0], "rank 1": ranks[1], "launcher": process.pid, "worker": workers[1]}[victim], 9
    )
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (-9 if victim == "launcher" else 1) and "Traceback" not in said
    words = {"rank 0": "process 1 of 2 was killed by signal 9", "rank 1": "process 2 of 2 was killed by signal 9",
             "launcher": "", "worker": "a process that prepares batches was killed"}[victim]  # fmt: skip
    assert words in said and said.count("error:") == bool(words)
    assert_gone([*ranks, *workers])
