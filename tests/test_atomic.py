"""Files and folders appear whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyspkv import atomic

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
    (tmp_path / "dir").symlink_to("real")
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
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
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
        "import sys; from pyspkv.atomic import atomic_dir\n"
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
        )  # [] only of a folder just exchanged and being removed
        assert path.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [len((path / name).read_text()) for name in ("a", "b")] == [99, 99]
