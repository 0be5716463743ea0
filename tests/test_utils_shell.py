"""The shell scripts, the option parser, the job runner and set-up errors, as a user would call them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "SPKV_PYTHON": sys.executable}


def sh(command: str, cwd: Path, code: int = 0, **env) -> subprocess.CompletedProcess:
    """Run a bash line in `cwd` with utils/ linked there, as in a recipe; check the exit code; no traceback."""
    if not (cwd / "utils").exists():
        (cwd / "utils").symlink_to(ROOT / "utils")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env={**ENV, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


# ---- data directories ------------------------------------------------------------------------------------------
def test_from_a_broken_directory_to_parts(tmp_path):
    d = tmp_path / "my data"  # a path with a space, which every script must handle
    d.mkdir()
    (d / "utt2spk").write_text("u2 b\nu1 a\nu3 c\nu4 c\n")
    (d / "wav.scp").write_text("u1 x\nu2 y\nu3 z\nu4 w\n")
    bad = sh("utils/validate_data_dir.sh --no-text --no-feats 'my data'", tmp_path, code=1)
    assert bad.stderr.startswith(
        "error: my data/spk2utt: no such file\n  hint: utils/fix_data_dir.sh 'my data'"
    )
    assert bad.stdout == ""
    sh("utils/fix_data_dir.sh 'my data'", tmp_path)
    assert (d / ".backup" / "utt2spk").read_text() == "u2 b\nu1 a\nu3 c\nu4 c\n"
    good = sh("utils/validate_data_dir.sh --no-spk-sort 'my data'", tmp_path)
    assert good.stdout == "Successfully validated data-directory my data: 4 utterances, 3 speakers\n"
    sh("utils/split_data.sh 'my data' 3 && utils/split_data.sh --per-utt 'my data' 4", tmp_path)
    assert [(d / f"split3/{i}/utt2spk").read_text() for i in (1, 2, 3)] == [
        "u1 a\n",
        "u2 b\n",
        "u3 c\nu4 c\n",
    ]
    assert len(list((d / "split4utt").iterdir())) == 4
    sh(
        "utils/subset_data_dir.sh --spk-list <(echo c) 'my data' sub && utils/copy_data_dir.sh --spk-prefix sub kaldi",
        tmp_path,
    )
    assert (tmp_path / "kaldi/wav.scp").read_text() == "c-u3 z\nc-u4 w\n"
    sh("utils/combine_data.sh all 'my data' kaldi", tmp_path)
    assert (tmp_path / "all/spk2utt").read_text() == "a u1\nb u2\nc c-u3 c-u4 u3 u4\n"


def test_filter_scp_and_spk2utt(tmp_path):
    (tmp_path / "ids").write_text("u2 anything\nu3\n")
    (tmp_path / "in").write_bytes(b"u1 a b\nu2\tc  d \nu3 \xff\n")
    assert sh("utils/filter_scp.sh ids in | od -c | head -1", tmp_path).stdout.split()[1:5] == [
        "u",
        "2",
        "\\t",
        "c",
    ]
    assert sh("utils/filter_scp.sh --exclude ids < in", tmp_path).stdout == "u1 a b\n"
    assert sh("utils/filter_scp.sh -f 2 <(echo c) <(echo u1 c; echo u2 d)", tmp_path).stdout == "u1 c\n"
    assert (
        "stdin:1: the line has no column 3"
        in sh("utils/filter_scp.sh -f 3 ids < ids", tmp_path, code=1).stderr
    )
    assert (
        "ids:2: empty line"
        in sh("printf 'a\\n\\n' > ids; utils/filter_scp.sh ids in", tmp_path, code=1).stderr
    )
    line = "printf 'u1 b\\nu2 a\\nu3 b\\n' | utils/utt2spk_to_spk2utt.sh"
    assert sh(line, tmp_path).stdout == "a u2\nb u1 u3\n"


def test_start_is_quick(tmp_path):
    """No heavy import at the top of the tools: at most what the interpreter loads, pathlib and argparse."""
    code = "import pyspkv.bin.datadir, sys; print(sorted({'numpy', 'torch', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- parse_options.sh -------------------------------------------------------------------------------------------
SCRIPT = """#!/usr/bin/env bash
# Does things.
#
# Usage: script.sh [options] FILE
set -euo pipefail
nj=4             # number of jobs
some_name=""     # a name
supervised=false # use the labels
. utils/parse_options.sh
printf '%s\\n' "nj=$nj" "some_name=$some_name" "supervised=$supervised" "rest=$*" "n=$#"
"""


@pytest.fixture
def script(tmp_path) -> Path:
    (tmp_path / "script.sh").write_text(SCRIPT)
    (tmp_path / "script.sh").chmod(0o755)
    return tmp_path


def test_options_take_both_forms(script):
    value = """it's "quoted" $(touch hacked) `touch hacked` ; *"""
    words = "./script.sh --nj 7 --some-name=\"$VALUE\" --supervised true 'a b' --nj 9"
    done = sh(words, script, VALUE=value)
    assert done.stdout == f"nj=7\nsome_name={value}\nsupervised=true\nrest=a b --nj 9\nn=3\n"
    assert not (script / "hacked").exists()
    assert sh("./script.sh --some-name= -- --nj", script).stdout.endswith("rest=--nj\nn=1\n")
    assert sh("./script.sh", script).stdout == "nj=4\nsome_name=\nsupervised=false\nrest=\nn=0\n"
    assert "some_name=a=b\n" in sh("./script.sh --some-name a=b", script).stdout
    shown = SCRIPT + """printf '<%s>' "${po_given[@]}"\n"""
    (script / "script.sh").write_text(shown)
    assert sh("./script.sh --nj 7 --some-name='a b' c", script).stdout.endswith("<--nj=7><--some-name=a b>")


def test_only_options_of_the_block_are_taken(script):
    """Not variables of the environment, of the parser itself, or of the script after the block."""
    text = SCRIPT.replace("set -euo", "inner=1 && true\nset -euo").replace("printf", "later=2\nprintf")
    (script / "script.sh").write_text(text.replace("inner=1 &&", "  inner=1 &&"))
    for name in ("inner", "later", "po-names", "path", "PATH", "ifs"):
        done = sh(f"./script.sh --{name} x", script, code=1, inner="x")
        assert f"unknown option --{name}; the options are: --nj --some-name --supervised" in done.stderr


BLOCK = """#!/usr/bin/env bash
# A recipe in small.
set -euo pipefail
recipe=$PWD
stage=1           # first stage, from 1
stop_stage=8      # last stage, from 1
mode=one          # what to do (one|two): this or that
words=(a "b c")   # some words
exp=$recipe/exp   # folder of results
files=()          # files to read
lists=()          # files or NAME=FILE
dry_run=false     # only print
. parse_options.sh
printf '<%s>' "$mode" "${words[@]}" "$exp" "${files[@]}" "${lists[@]}"; echo
if stage 2 "the second"; then log_run echo "it's" 'a b' '$HOME' plain/path=1; fi
if stage 3 "the third"; then log_run steps/inner.sh "x y"; fi
"""


@pytest.fixture
def block(tmp_path) -> Path:
    (tmp_path / "run.sh").write_text(BLOCK)
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps/inner.sh").write_text(
        "#!/usr/bin/env bash\nset -euo pipefail\ndry_run=false\n. parse_options.sh\nlog_run printf '%s.\\n' \"$1\"\n"
    )
    (tmp_path / "steps/inner.sh").chmod(0o755)
    return tmp_path


def test_arrays_choices_and_paths(block):
    env = {"PATH": f"{ROOT}/utils:{os.environ['PATH']}", "SPKV_ROOT": str(block)}
    first = sh("./run.sh --stop-stage 1", block, **env).stdout.splitlines()[0]
    assert first == "<one><a><b c><exp>", "paths below the repository are relative to it"
    words = "./run.sh --stop-stage 1 --words 'x  y' --words=z --exp ../other --files 'f /g'"
    first = sh(words, block, **env).stdout.splitlines()[0]
    assert first == f"<one><z><{block.parent}/other><f></g>"
    (block / "sub").mkdir()
    first = sh(f"cd sub && {block}/run.sh --stop-stage 1 --exp here", block, **env).stdout.splitlines()[0]
    assert first.endswith("<sub/here>")
    (block / "sub/a=b").touch()
    words = f"cd sub && {block}/run.sh --stop-stage 1 --exp x --files N=f --lists 'E=f O_2=/o/f =g a=b h'"
    first = sh(words, block, **env).stdout.splitlines()[0]
    assert first.endswith("<sub/x><sub/N=f><E=sub/f><O_2=/o/f><sub/=g><sub/a=b><sub/h>")
    told = sh("./run.sh --mode three", block, code=1, **env).stderr
    assert "--mode is one or two, not 'three'" in told
    for words, message in (("--stage 9", "from 1 to 8, not '9'"), ("--stage 0", "number from 1 to 8, not '0'"),
                           ("--stage 4 --stop-stage 3", "--stage 4 comes after --stop-stage 3"),
                           ("extra", "'extra' is not an option")):  # fmt: skip
        assert message in sh(f"./run.sh {words}", block, code=1, **env).stderr


def test_commands_are_shown_noted_and_run(block):
    env = {"PATH": f"{ROOT}/utils:{os.environ['PATH']}", "SPKV_ROOT": str(block)}
    shown = sh("./run.sh --dry-run true", block, **env).stdout.splitlines()[1:]
    want = ["== stage 2: the second", """echo 'it'\\''s' 'a b' '$HOME' plain/path=1""", "== stage 3: the third",
            "steps/inner.sh 'x y'", "  printf '%s.\\n' 'x y'"]  # fmt: skip
    assert shown == want and not (block / "exp").exists()
    ran = sh("./run.sh", block, **env).stdout.splitlines()[1:]
    assert [line.split(" (")[0] for line in ran] == [
        want[0],
        want[1],
        "it's a b $HOME plain/path=1",
        *want[2:],
        "x y.",
    ]
    noted = (block / "exp/log/commands").read_text().splitlines()
    assert noted == [line for line in want if not line.startswith("==")]
    pasted = subprocess.run(["bash", "-c", noted[0]], capture_output=True, text=True, check=True).stdout
    assert pasted == "it's a b $HOME plain/path=1\n"
    (block / "steps/inner.sh").write_text("#!/bin/sh\nexit 3\n")
    failed = sh("./run.sh --stage 3", block, code=3, **env)
    assert "this command failed (exit code 3): steps/inner.sh 'x y'" in failed.stderr


def test_options_refuse_with_the_scripts_name(script):
    for words, message in [
        ("--njobs 3", "./script.sh: unknown option --njobs"),
        ("--nj", "./script.sh: --nj needs a value"),
        ("--supervised yes", '--supervised is true or false, not "yes"'),
        ("--supervised=", '--supervised is true or false, not ""'),
        ("-x", "unknown option -x"),
        ("--a[0] 3", "unknown option --a[0]"),
        ("--config nothere", "no such file: nothere"),
    ]:
        done = sh(f"./script.sh {words}", script, code=1)
        assert message in done.stderr
        assert done.stderr.endswith("./script.sh: see ./script.sh --help\n")
        assert done.stdout == ""


def test_config_is_read_first_and_the_command_line_wins(script):
    (script / "my.conf").write_text("nj=11\nsome_name=conf\n")
    out = sh("./script.sh --nj 2 --config my.conf", script).stdout
    assert out.startswith("nj=2\nsome_name=conf\n")


def test_help_is_the_scripts_own_text(script):
    out = sh("./script.sh --help", script).stdout
    assert out.startswith("Does things.\n\nUsage: script.sh [options] FILE\n")
    assert [line.split(None, 2) for line in out.split("\n") if line.startswith("  --")] == [
        ["--nj", "4", "number of jobs"],
        ["--some-name", '""', "a name"],
        ["--supervised", "false", "use the labels"],
    ]


# ---- run.sh -----------------------------------------------------------------------------------------------------
def test_jobs_run_in_parallel_with_a_log_each(tmp_path):
    start = time.monotonic()
    sh("utils/run.sh JOB=08:09 log/y.JOB.log true", tmp_path)  # the numbers are not read as octal
    assert sorted(p.name for p in (tmp_path / "log").iterdir()) == ["y.8.log", "y.9.log"]
    sh("utils/run.sh JOB=1:4 log/x.JOB.log bash -c 'sleep 1; echo this is \"$0\"' JOB", tmp_path)
    assert time.monotonic() - start < 3  # four seconds one after the other
    for i in range(1, 5):
        lines = (tmp_path / f"log/x.{i}.log").read_text().split("\n")
        assert lines[0].startswith("# bash -c")
        assert lines[1].startswith("# Started at ")
        assert f"this is {i}" in lines
        assert lines[-2].startswith("# Ended (code 0) at ")


def test_arguments_arrive_as_they_are(tmp_path):
    (tmp_path / "show.py").write_text("import sys\nprint(sys.argv[1:])\n")
    words = ["two words", "it's", 'a "quote"', "$HOME", "`id`", "*", "", "a;b|c", "JOB.JOB", "-x"]
    done = subprocess.run(
        [ROOT / "utils/run.sh", "JOB=3:3", tmp_path / "a b" / "JOB.log", sys.executable, tmp_path / "show.py", *words],
        cwd=tmp_path, env=ENV, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert str([w.replace("JOB", "3") for w in words]) in (tmp_path / "a b" / "3.log").read_text()


def test_failed_jobs_are_named_with_their_last_lines(tmp_path):
    command = (
        "utils/run.sh --max-jobs-run 2 JOB=1:5 log/JOB.log bash -c 'echo from JOB; exit $((JOB % 2 * 3))'"
    )
    done = sh(command, tmp_path, code=1)
    assert "3 of 5 jobs failed" in done.stderr
    for i in (1, 3, 5):
        assert f"last lines of log/{i}.log" in done.stderr
        assert f"from {i}" in done.stderr
        assert "# Ended (code 3)" in (tmp_path / f"log/{i}.log").read_text()
    assert "log/2.log" not in done.stderr
    assert "# Ended (code 0)" in (tmp_path / "log/2.log").read_text()
    done = sh("utils/run.sh log/one.log nosuchcommand", tmp_path, code=1)
    assert "nosuchcommand: command not found" in done.stderr


def test_max_jobs_run_is_kept(tmp_path):
    job = "echo + >> trace; sleep 0.2; echo - >> trace"
    sh(
        f"utils/run.sh --max-jobs-run 2 --num-threads 3 JOB=1:6 log/JOB.log bash -c '{job}; echo t=$OMP_NUM_THREADS'",
        tmp_path,
    )
    running = most = 0
    for mark in (tmp_path / "trace").read_text().split():
        running += 1 if mark == "+" else -1
        most = max(most, running)
    assert most == 2 and running == 0
    assert "t=3\n" in (tmp_path / "log/6.log").read_text()


def test_run_refuses_wrong_calls(tmp_path):
    for words, message in [
        ("JOB=1:2 log/x.log true", "the name of the log must contain JOB, because"),
        ("JOB=3:1 log/JOB.log true", "no jobs in JOB=3:1"),
        ("--max-jobs-run x log/a.log true", "--max-jobs-run must be a whole number"),
        ("--cpus 3 log/a.log true", "unknown option --cpus"),
        ("log/a.log", "expected [JOB=1:n] LOG COMMAND"),
    ]:
        assert f"run.sh: {message}" in sh(f"utils/run.sh {words}", tmp_path, code=1).stderr
    assert not (tmp_path / "log").exists()


def test_gpus_are_shared_out(tmp_path):
    command = "utils/run.sh --gpu 2 JOB=1:4 log/JOB.log bash -c 'sleep 0.1; echo got $CUDA_VISIBLE_DEVICES'"
    sh(command, tmp_path, CUDA_VISIBLE_DEVICES="4,5,6,7,8")
    got = [(tmp_path / f"log/{i}.log").read_text().split("\ngot ")[1][:3] for i in range(1, 5)]
    assert sorted(set(got)) == ["4,5", "6,7"]
    assert set(got[:2]) == {"4,5", "6,7"}
    few = sh(command, tmp_path, code=1, CUDA_VISIBLE_DEVICES="0")
    assert "--gpu 2, but this machine has 1" in few.stderr


@pytest.mark.parametrize("sig,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_ends_all_that_the_jobs_started(tmp_path, sig, code):
    job = "sleep 300 & echo $! >> pids; echo $$ >> pids; wait"
    runner = subprocess.Popen(
        [ROOT / "utils/run.sh", "JOB=1:2", "log/JOB.log", "bash", "-c", job],
        cwd=tmp_path,
        env=ENV,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # SIGINT is ignored if tests run in the background
    )
    try:
        deadline = time.monotonic() + 20
        while len((tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else "") < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pids = [int(p) for p in (tmp_path / "pids").read_text().split()]
        runner.send_signal(sig)
        assert runner.wait(timeout=20) == code
    finally:
        runner.kill()
        runner.stderr.close()

    def alive(pid: int) -> bool:
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"

    while sig == signal.SIGKILL and any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)  # it could not wait for them
    assert not any(map(alive, pids))


# ---- path.sh and setup_env.sh -----------------------------------------------------------------------------------
def test_path_gives_the_named_interpreter(tmp_path):
    """Also to programs that are not shells, and if that interpreter's folder has no `python`."""
    odd = tmp_path / "bin"
    odd.mkdir()
    (odd / "mypython3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (odd / "mypython3").chmod(0o755)
    code = "import pyspkv, sys; print(sys.executable, pyspkv.__file__)"
    show = f". {ROOT}/path.sh; env python -c '{code}'; echo $SPKV_ROOT $LC_ALL"
    for python in (sys.executable, str(odd / "mypython3")):
        out = sh(show, tmp_path, SPKV_PYTHON=python, PYTHONPATH="").stdout.split()
        assert out == [sys.executable, str(ROOT / "pyspkv/__init__.py"), str(ROOT), "C"]
    bad = sh(f"set -e; . {ROOT}/path.sh; echo not reached", tmp_path, code=1, SPKV_PYTHON="/no/python")
    assert "SPKV_PYTHON is no program" in bad.stderr and bad.stdout == ""


@pytest.mark.parametrize("command", ["python -c 1", "pyspkv --help"])
def test_path_installs_nothing_and_says_what_to_run(tmp_path, command):
    """Sourcing path.sh without .venv prints and writes nothing; `python` then names the set-up script."""
    tree = tmp_path / "tree"
    (tree / "utils/bin").mkdir(parents=True)
    for name in ("path.sh", "utils/bin/python", "utils/bin/pyspkv"):
        shutil.copy(ROOT / name, tree / name)
    before = sorted(tree.rglob("*"))
    clean = {k: v for k, v in ENV.items() if k not in ("SPKV_PYTHON", "PYTHONPATH")}
    words = ["bash", "-c", f". tree/path.sh && {command}"]
    done = subprocess.run(words, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"no .venv\n  hint: {tree}/utils/setup_env.sh\n"
    assert sorted(tree.rglob("*")) == before


def test_path_gives_the_command_pyspkv_of_the_clone(tmp_path):
    """The command works in a clone where nothing was installed, from any folder, and hands its exit code on."""
    out = sh(f". {ROOT}/path.sh; command -v pyspkv; pyspkv datadir --help", tmp_path).stdout
    assert out.startswith(f"{ROOT}/utils/bin/pyspkv\n") and "from-folder" in out
    assert "no such" in sh(f". {ROOT}/path.sh; pyspkv datadir summary none", tmp_path, code=1).stderr


@pytest.fixture
def clone(tmp_path) -> Path:
    """A copy with the set-up script and the requirements files only."""
    (tmp_path / "repo/utils").mkdir(parents=True)
    (tmp_path / "repo/utils/setup_env.sh").write_bytes((ROOT / "utils/setup_env.sh").read_bytes())
    for name in ("requirements.txt", "requirements-dev.txt"):
        (tmp_path / "repo" / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path / "repo"


def fake(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)
    return folder


def test_setup_without_venv_module_names_the_apt_command(clone):
    fake(clone / "bin", "python3", "case $2 in *ensurepip*) exit 1 ;; esac; exec /usr/bin/env -u x true")
    done = sh("bash utils/setup_env.sh", clone, code=1, PATH=f"{clone}/bin:{os.environ['PATH']}")
    assert "apt install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_setup_refuses_an_old_python(clone):
    old = "case $1 in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac"
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        fake(clone / "bin", name, old)
    done = sh("bash utils/setup_env.sh", clone, code=1, PATH=f"{clone}/bin:{os.environ['PATH']}")
    assert "Python 3.11 or newer is needed, found: Python 3.9.2" in done.stderr
    assert not (clone / ".venv").exists()


def test_setup_trusts_only_a_finished_venv(clone):
    """A fake python records its arguments and can fail halfway; no network, no real installation."""
    fake(clone / "bin", "python3", f"""
      case "$*" in
        "-m venv"*)
          echo venv >> {clone}/log
          rm -rf {clone}/.venv
          mkdir -p {clone}/.venv/bin
          cp "$0" {clone}/.venv/bin/python ;;
        *--report*) echo '{{"requires_dist": ["numpy"]}}' ;;
        *"install"*) echo install >> {clone}/log; [ ! -e {clone}/fail ] ;;
        *sysconfig*) echo {clone}/site ;;
        --version) echo Python 3.11 ;;
      esac""")  # fmt: skip
    fake(clone / "bin", "nvidia-smi", "exit 9")
    path = f"{clone}/bin:{os.environ['PATH']}"
    (clone / "fail").touch()
    failed = sh("bash utils/setup_env.sh", clone, code=1, PATH=path)
    assert "the installation failed" in failed.stderr and not (clone / ".venv/.complete").exists()
    (clone / "fail").unlink()
    # two at the same time
    again = sh("bash utils/setup_env.sh & bash utils/setup_env.sh; wait", clone, PATH=path)
    assert "making it again" in again.stderr and "torch: cpu build (nvidia-smi lists no GPU)" in again.stderr
    assert (clone / "log").read_text().split() == ["venv", "install"] * 2
    assert sh("bash utils/setup_env.sh", clone, PATH=path).stderr == ""
    for i, name in enumerate(("requirements.txt", "requirements-dev.txt"), 1):
        with open(clone / name, "a") as f:
            f.write("# changed\n")
        assert "requirements.txt has changed" in sh("bash utils/setup_env.sh", clone, PATH=path).stderr
        assert (clone / "log").read_text().split() == ["venv", "install"] * 2 + ["install"] * i
    clone.rename(clone.parent / "moved")  # a virtual environment does not work after it was moved
    moved = clone.parent / "moved"
    done = sh("bash utils/setup_env.sh", moved, PATH=f"{moved}/bin:{os.environ['PATH']}")
    assert "incomplete or was moved here: making it again" in done.stderr


def test_setup_asks_torchs_own_index_only_when_pip_would_take_cuda(clone):
    fake(clone / "bin", "python3", f"""
      case "$*" in
        "-m venv"*) mkdir -p {clone}/.venv/bin; cp "$0" {clone}/.venv/bin/python ;;
        *--report*) echo '{{"requires_dist": ["nvidia-cublas==13; platform_system == Linux"]}}' ;;
        *"install"*) echo "$*" >> {clone}/log ;;
        *sysconfig*) echo {clone}/site ;;
      esac""")  # fmt: skip
    fake(clone / "bin", "nvidia-smi", "exit 9")
    path = f"{clone}/bin:{os.environ['PATH']}"
    assert "torch: cpu build" in sh("bash utils/setup_env.sh", clone, PATH=path).stderr
    installed = (clone / "log").read_text()
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in installed
    assert f"-r {clone}/requirements.txt -r {clone}/requirements-dev.txt" in installed
    (clone / ".venv/.complete").unlink()
    (clone / "log").unlink()
    fake(clone / "bin", "nvidia-smi", "echo GPU 0")
    done = sh("bash utils/setup_env.sh", clone, PATH=path)
    assert "torch: cuda build (nvidia-smi lists a GPU)" in done.stderr
    assert "extra-index" not in (clone / "log").read_text()
