"""Files and folders appear whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyspkv.base import atomic
from pyspkv.base.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def test_file_is_replaced_only_at_the_end(tmp_path):
    path = tmp_path / "sub" / "f"
    with atomic.atomic_file(path) as f:
        f.write("old")
    with pytest.raises(ZeroDivisionError), atomic.atomic_file(path) as f:
        f.write("new")
        f.flush()
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(path.parent) == ["f"]


def test_links_stay_and_pipes_are_written_to(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dir").symlink_to("real")  # links within the folder
    with atomic.atomic_file(tmp_path / "link") as f:
        f.write("new")
    with atomic.atomic_dir(tmp_path / "dir") as tmp:
        (tmp / "a").write_text("")
    assert (tmp_path / "target").read_text() == "new" and os.listdir(tmp_path / "real") == ["a"]
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dir").is_symlink()
    os.mkfifo(tmp_path / "fifo")
    reader = subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE)
    with atomic.atomic_file(tmp_path / "fifo") as f:
        f.write("through")
    assert reader.communicate()[0] == b"through" and (tmp_path / "fifo").is_fifo()
    assert len(os.listdir(tmp_path)) == 5


@pytest.mark.parametrize("exchange", [True, False])
def test_folder_is_replaced_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic, "exchange", lambda a, b: False)
    path = tmp_path / "d"
    for text in ("one", "two"):
        with atomic.atomic_dir(path) as tmp:
            (tmp / text).write_text(text)
    with pytest.raises(ZeroDivisionError), atomic.atomic_dir(path) as tmp:
        (tmp / "three").write_text("")
        raise ZeroDivisionError
    assert os.listdir(path) == ["two"] and os.listdir(tmp_path) == ["d"]


def test_a_reader_never_misses_a_folder_that_is_being_replaced(tmp_path):
    path = tmp_path / "d"
    writer = (
        "import sys; from pyspkv.base.atomic import atomic_dir\n"
        "while True:\n"
        "    with atomic_dir(sys.argv[1]) as t:\n"
        "        (t / 'a').write_text('x' * 99); (t / 'b').write_text('x' * 99)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", writer, path], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while not path.exists():
        assert process.poll() is None
    for _ in range(3000):
        assert sorted(os.listdir(path)) in (
            ["a", "b"],
            [],
        )  # [] only if the folder has just been exchanged and is being removed
        assert path.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [len((path / name).read_text()) for name in ("a", "b")] == [99, 99]


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_links_lead_out_of_the_folder_only_where_the_user_named_them(tmp_path, kind):
    """Links below the given folder may come from a stranger and are not followed; the given path itself may
    be a link.
    """
    write = {"file": _file, "dir": _folder}[kind]
    away, folder = tmp_path / "away", tmp_path / "given"
    (away / "x").mkdir(parents=True)
    (away / "x" / "diary").write_text("dear")
    (away / "f").write_text("dear")
    folder.mkdir()
    target = {"file": away / "f", "dir": away / "x"}[kind]
    (folder / "link").symlink_to(target)
    (folder / "nowhere").symlink_to(away / "not yet")
    (folder / "sub").symlink_to(away)
    (folder / "up").symlink_to("..")
    for name, inside in (
        ("link", None),
        ("nowhere", None),
        ("link", folder),
        ("sub/new", folder),
        ("up/new", folder),
    ):
        with pytest.raises(UserError, match="is a link out of"):
            write(folder / name, inside=inside)
        assert sorted(os.listdir(away)) == ["f", "x"] and sorted(os.listdir(tmp_path)) == ["away", "given"]
    assert (away / "f").read_text() == (away / "x" / "diary").read_text() == "dear"
    # The user gave this path, so the link stays and its target is replaced.
    (tmp_path / "disk").symlink_to(away)
    write(folder / "link", own=True)
    write(tmp_path / "disk" / "new")
    write(tmp_path / "disk" / "newer", inside=tmp_path / "disk")
    assert (folder / "link").is_symlink() and {"new", "newer"} <= set(os.listdir(away))
    assert target.read_text() == "x" if kind == "file" else os.listdir(target) == ["x"]


def _file(path, **options):
    with atomic.atomic_file(path, **options) as f:
        f.write("x")


def _folder(path, **options):
    with atomic.atomic_dir(path, **options) as tmp:
        (tmp / "x").write_text("x")


HANGS = """
import sys, time
from pyspkv.base.atomic import atomic_dir, atomic_file
with atomic_file(sys.argv[1] + "/f") as f, atomic_dir(sys.argv[1] + "/d") as d:
    f.write("half")
    (d / "half").write_text("half")
    print("there", flush=True)
    time.sleep(600)
"""
WRITES = """
import sys
from pyspkv.base.atomic import atomic_dir, atomic_file
with atomic_file(sys.argv[1] + "/f") as f, atomic_dir(sys.argv[1] + "/d") as d:
    f.write("whole")
"""


def test_files_of_killed_writers_are_removed_and_files_of_living_ones_kept(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def hang():
        started = subprocess.Popen(
            [sys.executable, "-c", HANGS, tmp_path], env=env, stdout=subprocess.PIPE, text=True
        )
        assert started.stdout.readline() == "there\n"
        return started

    mine = (
        "..f.ab12cd34.tmp",
        ".f.backup.tmp",
        ".f.original",
        ".d.backups",
        ".g.ab12cd34.tmp",
    )  # temporary files that no living process owns
    for name in mine:
        (tmp_path / name).write_text("mine")
    killed, alive = hang(), hang()
    killed.kill()
    killed.wait()
    assert len(os.listdir(tmp_path)) == len(mine) + 4
    subprocess.run([sys.executable, "-c", WRITES, tmp_path], env=env, check=True)
    held = {p.name for p in tmp_path.iterdir()} - {*mine, "f", "d"}
    # temporary files of a living process
    assert len(held) == 2 and all((tmp_path / name).exists() for name in mine)
    assert (tmp_path / "f").read_text() == "whole" and os.listdir(tmp_path / "d") == []
    alive.kill()
    alive.wait()
    subprocess.run([sys.executable, "-c", WRITES, tmp_path], env=env, check=True)
    assert {p.name for p in tmp_path.iterdir()} == {*mine, "f", "d"}


def test_without_exchange_the_only_complete_folder_is_kept(tmp_path, monkeypatch):
    """A kill between the two renames leaves the old folder aside.

    It is removed once another complete one exists.
    """
    monkeypatch.setattr(atomic, "exchange", lambda a, b: False)
    old = tmp_path / ".d.0123abcd.old"
    old.mkdir()
    os.utime(old, (1, 1))
    with pytest.raises(ZeroDivisionError), atomic.atomic_dir(tmp_path / "d"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == [old.name]


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError) as err, atomic.atomic_file(tmp_path / "f") as f:
        f.write("x")
    assert err.value.filename == str(tmp_path / "f") and os.listdir(tmp_path) == ["f"]
