"""Every hint that is a command is pasted into bash here, and the fault it is about is gone; names in it stay names."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_datadir import BAD, KALDI, put

from pyspkv.audio.reader import AudioReader
from pyspkv.base.atomic import atomic_dir, atomic_file, command_line
from pyspkv.base.errors import UserError
from pyspkv.bin.datadir import main
from pyspkv.data.datadir import DataDir, mend_command
from pyspkv.data.fix import fix
from pyspkv.data.trials import read_trials

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("utils/", "sed ", "mv ", "rm ", "unlink ")
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
    """A folder as a user's: relative names, utils/ at hand."""
    (tmp_path / "utils").symlink_to(ROOT / "utils")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hint(call, *args) -> str:
    """The hint of the UserError that the call ends with."""
    with pytest.raises(UserError) as err:
        call(*args)
    return str(err.value).rpartition("\n  mend: ")[2]


def paste(command: str) -> None:
    assert command.startswith(COMMANDS) and "\n" not in command
    env = {**os.environ, "SPKV_PYTHON": sys.executable}
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
    (d / "utt2spk").unlink()  # there is spk2utt
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
        "reco2dur": "r 20\n",  # which is wrong, so that only the audio tells
    }
    d = put(Path("it's $(touch canary)"), files)
    reader = AudioReader(DataDir.read(d))
    for row in (1, 2):
        with pytest.raises(UserError, match="beyond its recording"):
            reader.read(row)
    paste(mend_command(d, "--check-audio"))
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
def test_what_is_not_clear_gets_no_command(tmp_path, raw):
    (tmp_path / "t").write_bytes(raw)
    assert (
        hint(read_trials, tmp_path / "t")
        == "write each line as `enrol test target` or `enrol test nontarget`"
    )


@pytest.mark.parametrize("name", NASTY)
def test_planted_links_are_refused_and_go_by_pasting(here, name):
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


def test_command_line_is_read_by_bash_as_it_was_meant(tmp_path):
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
    Path("given").symlink_to("away")  # what the user names himself may be a link
    main(["copy", "out/precious", "given"])
    assert Path("given").is_symlink() and len(DataDir.read("away").utts) == 4
    with pytest.raises(UserError, match="outside"), atomic_dir("away/../out/l", inside="away"):
        pass
