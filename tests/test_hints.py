"""Every hint that is a command is run by bash here, which removes the error; names are quoted."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_datadir import BAD, KALDI, put

from pyspkv.audio.reader import AudioReader
from pyspkv.base.atomic import atomic_dir, atomic_file, command_line, folder_lock
from pyspkv.base.errors import UserError
from pyspkv.bin.datadir import main
from pyspkv.data.datadir import DataDir
from pyspkv.data.fix import fix
from pyspkv.data.trials import read_trials

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("utils/", "sed ", "mv ", "rm ", "unlink ", "git ", "pip ", "python ", "pyspkv ", "export ")
NASTY = [
    "plain",
    "a b",
    "$(touch canary)",
    "`touch canary`;touch canary;",
    'it\'s "q" & > canary',
    "-rf",
    "new\nline\t\u2028",
    "\u00fc*?[a]",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder like a user's: relative names, and utils/ in it."""
    (tmp_path / "utils").symlink_to(ROOT / "utils")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hint(call, *args) -> str:
    """The hint of the UserError that the call ends with."""
    with pytest.raises(UserError) as err:
        call(*args)
    return str(err.value).rpartition("\n  hint: ")[2]


def paste(command: str, bin: Path = ROOT / "utils/bin") -> None:
    """Run the command as a user would. bin: a folder of programs that comes first in PATH."""
    assert command.startswith((*COMMANDS, "'/", "/", "$'/")) and "\n" not in command
    env = {**os.environ, "SPKV_PYTHON": sys.executable, "PATH": f"{bin.resolve()}:{os.environ['PATH']}"}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not Path("canary").exists()


@pytest.mark.parametrize("kind", BAD)
def test_a_hint_to_fix_is_one_that_fix_can_keep(tmp_path, kind):
    name, text, _, _ = BAD[kind]
    path = put(tmp_path / "d", KALDI)
    (path / name).unlink(missing_ok=True)
    if text is not None:
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    found = hint(DataDir.read, path)
    if found.startswith(COMMANDS):
        assert found == f"utils/fix_data_dir.sh {path}"
        fix(path)
        DataDir.read(path)


@pytest.mark.parametrize("name", [NASTY[2], NASTY[5]])
def test_fix_by_pasting(here, name):
    d = put(Path(name), {**KALDI, "trials": "1 a-1 a-2\r\n0 a-1 c-1\r\n"})
    (d / "utt2spk").unlink()  # spk2utt exists
    paste(hint(DataDir.read, d))
    data = DataDir.read(d)
    assert data.spk == ["a", "a", "b", "c"] and data.trials["trials"] == [
        "a-1 a-2 target",
        "a-1 c-1 nontarget",
    ]


def test_a_segment_beyond_its_audio_is_cut_by_pasting(here):
    soundfile.write("x.wav", np.full(16000, 0.1), 16000)
    files = {
        "wav.scp": "r x.wav\n",
        "utt2spk": "a s\nb s\nc s\n",
        "spk2utt": "s a b c\n",
        "segments": "a r 0 1\nb r 0.5 9\nc r 4 5\n",
        "reco2dur": "r 20\n",  # utt2dur is wrong, so only the audio shows it
    }
    d = put(Path("it's $(touch canary)"), files)
    reader = AudioReader(DataDir.read(d))
    for row in (1, 2):
        with pytest.raises(UserError, match="beyond its recording"):
            reader.read(row)
    paste(hint(reader.read, 1))
    data = DataDir.read(d)
    assert data.segments == {"a": ("r", 0, 1), "b": ("r", 0.5, 1)}
    assert [len(AudioReader(data).read(row)) for row in (0, 1)] == [16000, 8000]


@pytest.mark.parametrize("name", NASTY)
def test_the_old_folder_of_a_killed_run(here, name):
    put(Path(f".{name}.ab3_9xyz.old"), KALDI)
    put(Path(f".{name}.other"), KALDI)
    paste(hint(main, ["validate", f"./{name}"]))
    assert len(DataDir.read(name).utts) == 4 and not Path(f".{name}.ab3_9xyz.old").exists()


LISTS = {
    "voxceleb": b"1 x/a.wav y/b.wav\n0 x/a.wav z\n",
    "voxceleb crlf": b"1 x/a.wav y/b.wav\r\n0 x/a.wav z\r\n",
    "voxceleb mark": b"\xef\xbb\xbf1 x/a.wav y/b.wav\n0 x/a.wav z\n",
    "voxceleb all": b"\xef\xbb\xbf\r\n 1\tx/a.wav  y/b.wav \r\n\r\n0 x/a.wav z",
    "labels last": b"x/a.wav y/b.wav 1\r\nx/a.wav z 0\r\n",
    "tgt": b"x/a.wav\ty/b.wav\ttgt\nx/a.wav\tz\timp\n",
    "ours crlf": b"x/a.wav y/b.wav target\r\nx/a.wav z nontarget\r\n",
    "ours mark": b"\xef\xbb\xbfx/a.wav y/b.wav target\nx/a.wav z nontarget\n",
    "ours cut": b"x/a.wav y/b.wav target\nx/a.wav z nontarget",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_in_another_form_is_converted_in_one_go(here, kind):
    for name in NASTY if kind == "voxceleb all" else ["t"]:
        Path(name).write_bytes(LISTS[kind])
        paste(hint(read_trials, name))
        enrol, test, target = read_trials(name)
        assert (enrol, test, target.tolist()) == (["x/a.wav"] * 2, ["y/b.wav", "z"], [True, False])
        assert Path(f"{name}~").read_bytes() == LISTS[kind]  # nothing is lost


def test_ids_that_look_like_labels(here):
    Path("t").write_bytes(b"1 0 b\n0 1 target\n1 c 0\n0 d nontarget\n")
    paste(hint(read_trials, "t"))
    assert read_trials("t")[:2] == (["0", "1", "c", "d"], ["b", "target", "0", "nontarget"])
    assert read_trials("t")[2].tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    "raw", [b"1 a 0\n0 b 1\n", b"1 a b\na b target\n", b"a,b,1\n", b"1 a\xa0b c\n", b"1 a b\n2 a c\n"]
)
def test_unclear_cases_get_no_command(tmp_path, raw):
    (tmp_path / "t").write_bytes(raw)
    assert (
        hint(read_trials, tmp_path / "t")
        == "write each line as `enrol test target` or `enrol test nontarget`"
    )


@pytest.mark.parametrize("name", NASTY)
def test_planted_links_are_refused_and_removed_by_the_hint(here, name):
    d, precious = put(Path(name), KALDI), put(Path("precious/1"), KALDI).parent
    (precious / "1" / "diary").write_text("dear")
    (d / "split2").symlink_to(precious.absolute())
    (d / "report").symlink_to((precious / "1" / "diary").absolute())
    for again in (lambda: main(["split", f"./{name}", "2"]), lambda: _write(d / "report")):
        paste(hint(again))
        again()
    assert (precious / "1" / "diary").read_text() == "dear" and len(list((precious / "1").iterdir())) == len(
        KALDI
    ) + 1
    assert len(DataDir.read(d / "split2" / "1").utts) == 2 and (d / "report").read_text() == "x"


def _write(file: Path) -> None:
    with atomic_file(file) as f:
        f.write("x")


def test_an_empty_list_of_trials(here):
    d = put(Path("$(touch canary) d"), {**KALDI, "trials": ""})
    paste(hint(fix, d))
    fix(d)
    assert not DataDir.read(d).trials


def test_command_line_is_quoted_for_bash(tmp_path):
    words = [Path(name) for name in NASTY] + ["a\\b\x01'\x7f", os.fsdecode(b"\xff\xfe x")]
    for word in words:
        line = command_line("printf", "%s", word)
        assert line.isascii() or line.isprintable()
        out = subprocess.run(["bash", "-c", line], capture_output=True, cwd=tmp_path).stdout
        assert os.fsdecode(out).removeprefix("./") == str(word)


def test_a_folder_is_refused_where_the_user_gave_only_what_is_above_it(here):
    put(Path("out/precious"), KALDI)
    Path("away").mkdir()
    Path("out/train").symlink_to(Path("away").absolute())
    data = DataDir.read("out/precious")
    found = hint(data.write_training_set, "out")
    paste(found)
    data.write_training_set("out")
    assert not list(Path("away").iterdir()) and len(DataDir.read("out/train").utts) == 4
    Path("given").symlink_to("away")  # a path that the user gives may be a link
    main(["copy", "out/precious", "given"])
    assert Path("given").is_symlink() and len(DataDir.read("away").utts) == 4
    with pytest.raises(UserError, match="outside"), atomic_dir("away/../out/l", inside="away"):
        pass


# -- hints of single modules


def program(name: str, text: str) -> Path:
    """A folder with a program of this name that replaces the real one."""
    folder = Path("programs")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\nset -e\n{text}\n")
    (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("name", NASTY)
def test_a_pointer_of_git_lfs(here, name):
    from pyspkv.base.foreign import first_bytes

    file = Path(name, "model.bin")
    file.parent.mkdir()
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    git = program("git", '[ "$1 $3 $4" = "-C lfs pull" ] && cd -- "$2" && echo weights > model.bin')
    paste(hint(first_bytes, file), git)
    first_bytes(file)


@pytest.mark.parametrize("name", NASTY)
def test_files_in_the_way_are_removed_by_the_hint(here, name):
    from pyspkv.clustering import made
    from pyspkv.score.evaluate import read_figures
    from pyspkv.score.wanted import outputs, refuse_link

    d = Path(name)
    d.mkdir()
    (d / "report.json").write_text("[")
    paste(hint(made._read, d / "report.json"))
    assert made._read(d / "report.json") == {}
    (d / "x.json").write_text('{"eer": "high"}')
    paste(hint(read_figures, d / "x.json"))
    assert read_figures(d / "x.json") == {}
    (d / "score").mkdir()
    for number, link in enumerate([d / "score/made_by", d / ".lock"]):
        Path(f"precious{number}").write_text("dear")
        link.symlink_to(Path(f"precious{number}").absolute())
    paste(hint(refuse_link, d / "score/made_by"))
    assert not any(path.is_symlink() for path in outputs(str(d), None))
    paste(hint(lambda: folder_lock(d).__enter__()))
    with folder_lock(d):
        assert [Path(f"precious{number}").read_text() for number in (0, 1)] == ["dear", "dear"]


@pytest.mark.parametrize("name", NASTY)
def test_labels_of_other_options_go_with_the_rounds_after_them(here, name):
    from pyspkv.clustering.made import is_kept

    exp = Path(name)
    for number in (1, 2, 3):
        put(exp / f"round{number}/data", {"utt2spk": "a x\n"})
    report = exp / "round2/report.json"
    report.write_text(json.dumps({"asked": {"seed": 0}, "embeddings": []}))
    asked = (exp / "round2/data", report, {"seed": 1}, [])
    paste(hint(is_kept, *asked))
    assert not is_kept(*asked) and [p.name for p in exp.iterdir()] == ["round1"]


@pytest.mark.parametrize("name", NASTY)
def test_missing_embeddings_are_made_by_pasting(here, name, monkeypatch):
    from pyspkv.score import wanted

    root = Path("root", name).absolute()
    (root / "steps").mkdir(parents=True)
    Path("steps.sh").write_text(
        '#!/bin/bash\nset -e\n[ -d "$1" ]; [ -d "$2" ]; mkdir -p "$3"; touch "$3/embedding.scp"\n'
    )
    Path("steps.sh").chmod(0o755)
    (root / "steps/extract.sh").symlink_to(Path("steps.sh").absolute())
    monkeypatch.setattr(wanted, "ROOT", root)
    data, system = put(Path(name, "data"), {"utt2spk": "", "trials": ""}), Path(name, "exp")
    (system / "model").mkdir(parents=True)
    asked = wanted.Wanted([str(system)], [str(data)], ["test"])
    parts = wanted.parts_of(asked)
    paste(hint(wanted.check_there, [str(system)], asked, parts))
    wanted.check_there([str(system)], asked, parts)


@pytest.mark.parametrize("name", ["plain", *NASTY[2:4]])
def test_trials_by_pasting(here, name):
    from argparse import Namespace

    from pyspkv.bin.assess import prepared

    d = put(
        Path(name), {k: v for k, v in KALDI.items() if k in ("wav.scp", "segments", "utt2spk", "spk2utt")}
    )
    args = Namespace(data=[str(d)], dev=None, cohort=None)
    paste(hint(prepared, args))
    assert list(prepared(args).values()) == [str(d)]
    make = ["make-trials", str(d) if str(d)[0] != "-" else f"./{d}"]
    (d / "trials").write_text("a-1 b-1 nontarget\n")
    paste(hint(main, make))
    main(make)
    (d / "trials").write_text("m b-1 nontarget\n")
    (d / "enrol_map").write_text("m a-1 a-2\n")
    paste(hint(main, make))
    main(make)
    assert not (d / "enrol_map").exists()


def test_a_table_that_is_empty(here):
    d = put(Path("$(touch canary) d"), {**KALDI, "text": ""})
    paste(hint(fix, d))
    fix(d)


@pytest.mark.parametrize("word", ["enroll", "Extract", "nothing-like-it"])
def test_a_command_that_does_not_exist(here, word):
    from pyspkv.bin.main import find

    pyspkv = program("pyspkv", f'exec {sys.executable} -m pyspkv.bin.main "$@"')
    paste(hint(find, word), pyspkv)


def test_a_package_that_is_missing(here, monkeypatch):
    from pyspkv.data.manifests.arrow import records

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    pip = program("pip", '[ "$1" = install ]; mkdir site; touch "site/$2.py"')
    paste(hint(lambda: list(records([], []))), pip)
    monkeypatch.delitem(sys.modules, "pyarrow")
    monkeypatch.syspath_prepend("site")
    assert list(records([], [])) == []


def test_a_locale_that_cannot_write_a_name(here):
    from pyspkv.base.errors import _what

    found, code = _what(UnicodeEncodeError("ascii", "\u00fc", 0, 1, "no"))
    words = f"{sys.executable} -X utf8=0 -c 'open(chr(252), \"x\")'"
    env = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    assert code == 1 and subprocess.run(["bash", "-c", words], env=env, capture_output=True).returncode
    command = found.rpartition("\n  hint: ")[2]
    subprocess.run(["bash", "-c", f"{command}\n{words}"], env=env, check=True)


def test_the_set_up_is_there():
    """test_utils_shell.py tests what it does; the hint for a missing package only names it."""
    from pyspkv.base.errors import _what

    command = _what(ModuleNotFoundError("x", name="x"))[0].rpartition("\n  hint: ")[2]
    assert os.access(ROOT / command, os.X_OK)


@pytest.mark.parametrize("name", NASTY)
def test_a_corpus_made_with_other_options(here, name, monkeypatch):
    from argparse import Namespace

    monkeypatch.syspath_prepend(ROOT / "local")
    from mini import check_options

    args = Namespace(dir=Path(name).absolute(), nj=1, seed=0)
    check_options(args)
    args.seed = 1
    paste(hint(check_options, args))
    check_options(args)


@pytest.mark.parametrize("name", NASTY)
def test_a_folder_of_audio_that_is_not_empty(here, name):
    from argparse import Namespace

    from pyspkv.data.commands.from_huggingface import run

    Path(name).mkdir()
    Path(name, "x").touch()
    options = dict.fromkeys(["audio_column", "speaker_column", "utt_column", "session_column"])
    args = Namespace(folder="no such folder", audio_dir=name, out="out", **options)
    paste(hint(run, args))
    with pytest.raises(UserError) as err:
        run(args)
    assert str(args.folder) in str(err.value)  # the next error


@pytest.mark.parametrize("name", NASTY)
def test_a_cell_of_a_table_that_has_changed(here, name):
    from types import SimpleNamespace

    from pyspkv.experiments.runner import Mark, Runner

    run = Runner.__new__(Runner)
    cell = SimpleNamespace(name="cell", needs=list)
    run.exp, run.cells, run.jobs, run.failed = Path(name), [cell], {}, {}
    run.table = SimpleNamespace(path="t.yaml")
    run.new_mark = lambda cell: Mark("run.sh --new", {}, "")
    run.write(cell, Mark("run.sh --old", {}, ""))
    paste(hint(run.work, 1))
    assert run.changed(cell) == ""
    (run.exp / "cell").mkdir()
    (run.exp / "cell/grid.json").write_text("[]")
    paste(hint(run.mark, "cell"))
    assert run.mark("cell") is None


# -- hints of shell scripts


def shell(command: str, cwd: Path, **env: str) -> str:
    """The hint that the command fails with."""
    env = {"PATH": os.environ["PATH"], **env}
    done = subprocess.run(["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode and done.stderr.count("\n  hint: ") == 1, done.stderr
    return done.stderr.rpartition("\n  hint: ")[2].rstrip("\n")


@pytest.mark.parametrize("name", NASTY)
def test_python_without_an_environment(tmp_path, name):
    root = tmp_path / name
    (root / "utils/bin").mkdir(parents=True)
    (root / "utils/bin/python").write_bytes((ROOT / "utils/bin/python").read_bytes())
    (root / "utils/setup_env.sh").write_text(
        '#!/bin/bash\nset -e\nvenv=$(dirname "$(readlink -f "$0")")/../.venv\nmkdir -p "$venv/bin"\n'
        'touch "$venv/.complete"\nln -s "$(type -P true)" "$venv/bin/python"\n'
    )
    for file in ("utils/bin/python", "utils/setup_env.sh"):
        (root / file).chmod(0o755)
    command = command_line(root / "utils/bin/python")
    subprocess.run(["bash", "-c", shell(command, tmp_path)], cwd=tmp_path, check=True)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["plain", *NASTY[2:5]])
def test_building_the_pages_without_mkdocs(tmp_path, name):
    root, programs = tmp_path / name, tmp_path / "programs"
    for folder in (root / "utils/bin", programs):
        folder.mkdir(parents=True)
    for file in ("path.sh", "utils/build_docs.sh", "utils/parse_options.sh"):
        (root / file).write_bytes((ROOT / file).read_bytes())
    (root / "requirements-docs.txt").touch()
    (programs / "python").write_text(
        f'#!/bin/bash\ncase "$*" in *import*) exec test -e {tmp_path}/done ;;\n'
        f'"-m pip install -r "*) [ -f "$5" ] && touch {tmp_path}/done ;; esac\n'
    )
    (programs / "python").chmod(0o755)
    env = {"SPKV_PYTHON": str(programs / "python"), "PATH": f"{programs}:{os.environ['PATH']}"}
    command = f"bash {command_line(root / 'utils/build_docs.sh')}"
    found = shell(command, tmp_path, **env)
    subprocess.run(["bash", "-c", found], cwd=tmp_path, env=env, check=True)
    subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env={**env, "PATH": f"{root}/utils:{env['PATH']}"}, check=True
    )
    assert not (tmp_path / "canary").exists()


def test_what_a_shell_script_puts_into_a_hint_is_quoted():
    files = [*ROOT.glob("utils/*.sh"), *ROOT.glob("steps/*.sh"), *ROOT.glob("utils/bin/*"), ROOT / "path.sh"]
    hints = [
        line.partition("hint: ")[2] for f in files for line in f.read_text().splitlines() if "hint: " in line
    ]
    quoted = [
        re.sub(r"\$\(printf %q [^)]*\)|\$package", "", text) for text in hints
    ]  # the name of a package is our own word
    assert len(hints) >= 4 and not any("$" in text.partition('"')[0] for text in quoted)


# -- no hint is half a command

HALF = re.compile(
    r"(?<![\w./-])(?:(?:\./|/)?(?:utils|steps)/\w+|python3? -[mc]|pyspkv [a-z]+|(?:rm|mv|cp|unlink|cd|mkdir) \S|"
    r"sed -|git -|git lfs|pip install|apt install|export \w+=|ulimit -|docker run|ffmpeg -)"
)
WHOLE = {"pip install pyarrow", "utils/setup_env.sh", "export LC_ALL=C.UTF-8"}


def _text(node: ast.AST) -> str:
    """The words of a string expression, with X for inserted values."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "X"


class Hints:
    """The hints in some source files; `faults` are those that contain an incomplete command."""

    def __init__(self, texts: dict[str, str]):
        self.trees = {name: ast.parse(text) for name, text in texts.items()}
        self.functions: dict[str, list[ast.FunctionDef]] = {}
        self.values: dict[tuple[str, str], list[ast.expr]] = {}
        self.commands = self.number = 0
        self.faults: list[str] = []
        for file, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    self.functions.setdefault(node.name, []).append(node)
                if isinstance(node, ast.Assign):
                    self._assigned(file, node.targets[0], node.value)
        for file, tree in self.trees.items():
            for node in ast.walk(tree):
                for hint in self._hints(node):
                    self.number += 1
                    self._check(file, hint, set())

    def _assigned(self, file: str, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts):
                self._assigned(file, one, its)
        elif isinstance(target, ast.Name):
            for where in (file, "*"):
                self.values.setdefault((where, target.id), []).append(value)

    @staticmethod
    def _hints(node: ast.AST):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            yield node.value
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "AudioError":
            yield from node.args[1:]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n  hint: " in node.value:
            yield ast.copy_location(ast.Constant(node.value.rpartition("\n  hint: ")[2]), node)

    def _check(self, file: str, node: ast.expr, seen: set[str]) -> None:
        if isinstance(node, ast.IfExp | ast.BoolOp):
            for part in [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values:
                self._check(file, part, seen)
        elif isinstance(node, ast.Name) and node.id not in seen:
            for value in self.values.get((file, node.id)) or self.values.get(("*", node.id), []):
                self._check(file, value, seen | {node.id})
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name == "command_line":
                self.commands += 1
            elif name not in seen:
                for function in self.functions.get(name, []):
                    for part in ast.walk(function):
                        if isinstance(part, ast.Return) and part.value:
                            self._check(file, part.value, seen | {name})
        elif isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
            half = HALF.search(_text(node)) and getattr(node, "value", "") not in WHOLE
            if half or any(getattr(call.func, "id", "") == "command_line" for call in inner):
                self.faults.append(f"{file}:{node.lineno}: {ast.unparse(node)}")


@functools.cache
def sources() -> dict[str, str]:
    files = [*ROOT.glob("pyspkv/**/*.py"), *ROOT.glob("local/*.py")]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def test_no_hint_is_an_incomplete_command():
    found = Hints(sources())
    assert not found.faults, "make it one command_line(...), or plain words"
    assert found.number > 300 and found.commands > 15


@pytest.mark.parametrize(
    "text",
    [
        'raise UserError("x", hint="give it, or utils/fix_data_dir.sh")',
        'raise UserError("x", hint=f"rm {path}")',
        'A = "rm x"\nraise UserError("x", hint=A if y else None)',
        'raise UserError("x", hint=f"or: {command_line(1)}")',
        'def f(p):\n    return f"rm -r {p}, then again"\nraise UserError("x", hint=f(1))',
        'why, hint = "x", "run python -m pyspkv.bin.train"\nraise UserError(why, hint=hint)',
        'raise AudioError("x", f"ffmpeg -i {name} y.wav")',
        'print("x\\n  hint: see utils/x.sh")',
    ],
)
def test_an_incomplete_command_would_be_found(text):
    assert len(Hints({"x.py": text}).faults) == 1


@pytest.mark.parametrize(
    "text", ['"give another --out, or run.sh --exp"', '"pip install pyarrow"', "command_line(1)"]
)
def test_words_and_whole_commands_are_no_fault(text):
    assert not Hints({"x.py": f"raise UserError(1, hint={text})"}).faults
