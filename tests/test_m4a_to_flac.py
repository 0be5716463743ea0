"""local/m4a_to_flac.py with a script in place of ffmpeg, and with ffmpeg itself where it is installed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[1]
needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
# Copies its input, as `bad` fails, as `half` fails with half of its output written, and as `slow` waits.
FAKE = """#!/bin/bash
for word; do
  if [ "$before" = -i ]; then in=${word#file:}; fi
  before=$word
done
out=${word#file:}
echo "$in" >> "$FAKE_LOG"
case $in in
  */bad*) echo "moov atom not found" >&2; exit 1 ;;
  */half*) head -c 3 "$in" > "$out"; exit 1 ;;
  */empty*) exit 0 ;;
  */slow*) head -c 3 "$in" > "$out"; touch "$FAKE_LOG.slow"; sleep 60; exit 0 ;;
esac
cp "$in" "$out"
"""


@pytest.fixture
def place(tmp_path):
    """A folder with a fake ffmpeg and a tree of files with hard names."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ffmpeg").write_text(FAKE)
    (tmp_path / "bin/ffmpeg").chmod(0o755)
    for name in (
        "id1/v/1.m4a",
        "id1/v/2.m4a",
        "id2/a b\n-c/$(touch x);'\".m4a",
        "id2/w/note.txt",
        "id2/-w/-1.m4a",
    ):
        path = tmp_path / "aac" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def words(place, *args):
    return [sys.executable, ROOT / "local/m4a_to_flac.py", *map(str, args or ("--nj", 2, "aac", "wav"))]


def env(place, path=None):
    found = f"{place}/bin:{os.environ['PATH']}" if path is None else path
    return {**os.environ, "PATH": found, "PYTHONPATH": str(ROOT), "FAKE_LOG": str(place / "log")}


def convert(place, *args, code=0, path=None):
    done = subprocess.run(
        words(place, *args), cwd=place, env=env(place, path), capture_output=True, text=True
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done


def made(place):
    return sorted(str(p.relative_to(place / "wav")) for p in (place / "wav").rglob("*") if p.is_file())


NAMES = [".lock", "id1/v/1.flac", "id1/v/2.flac", "id2/-w/-1.flac", "id2/a b\n-c/$(touch x);'\".flac"]


def test_every_file_once_and_again_only_what_is_missing(place):
    assert "4 files converted, 0 were there, 0 failed" in convert(place).stdout
    assert made(place) == NAMES and not (place / "x").exists()
    assert (place / "wav/id2/-w/-1.flac").read_text() == "id2/-w/-1.m4a"
    (place / "log").unlink()
    (place / "wav/id1/v/2.flac").unlink()
    assert "1 files converted, 3 were there, 0 failed" in convert(place).stdout
    assert (place / "log").read_text() == f"{place}/aac/id1/v/2.m4a\n"
    assert convert(place, "aac", "aac").returncode == 0  # in place
    assert (place / "aac/id1/v/1.flac").is_file() and (place / "aac/id1/v/1.m4a").is_file()


def test_failures_are_named_and_the_others_go_on(place):
    for name in ("bad\n1", "half", "empty"):
        (place / f"aac/id1/v/{name}.m4a").write_text("123456")
    done = convert(place, code=1)
    assert "4 files converted, 0 were there, 3 failed" in done.stdout and made(place) == NAMES
    assert f"{place}/aac/id1/v/bad\\n1.m4a: moov atom not found" in done.stderr
    assert "half.m4a: ffmpeg ended with exit code 1" in done.stderr
    assert "empty.m4a: ffmpeg wrote nothing" in done.stderr
    assert not list((place / "wav").glob(".m4a*"))


def test_killed_in_a_file_it_leaves_no_half_of_it(place):
    (place / "aac/id1/v/slow.m4a").write_text("123456")
    with subprocess.Popen(words(place), cwd=place, env=env(place), start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (place / "log.slow").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert convert(place, code=1).stderr.count("another process is writing here") == 1
        os.killpg(process.pid, signal.SIGKILL)
    assert (place / "log.slow").exists() and "id1/v/slow.flac" not in made(place)
    assert list((place / "wav").glob(".m4a_to_flac.*.tmp/*")), "the half was there, under another name"
    (place / "bin/ffmpeg").write_text(FAKE.replace("*/slow*)", "*/never*)"))
    convert(place)
    assert (place / "wav/id1/v/slow.flac").read_text() == "123456"
    assert not list((place / "wav").glob(".m4a*"))


def test_parts_make_the_files_of_one_process_and_a_killed_part_resumes(place):
    (place / "aac/id1/v/slow.m4a").write_text("123456")
    parts = [("--nj", 1, "--part", f"{k}/3", "aac", "wav") for k in (1, 2, 3)]
    started = [
        subprocess.Popen(words(place, *part), cwd=place, env=env(place), start_new_session=True)
        for part in parts
    ]
    deadline = time.monotonic() + 60
    while len([p for p in started if p.poll() is None]) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    (killed,) = (p for p in started if p.poll() is None)
    number = started.index(killed)
    assert convert(place, *parts[number], code=1).stderr.count("another process is writing here") == 1
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert {name for name in made(place) if "slow" in name} == set()
    (place / "bin/ffmpeg").write_text(FAKE.replace("*/slow*)", "*/never*)"))
    before = (place / "log").read_text()
    said = "".join(convert(place, *part).stdout for part in parts)
    again = (place / "log").read_text()[len(before) :]
    assert again.endswith("slow.m4a\n") and again.count("slow.m4a") == 1 and said.count("0 failed") == 3
    assert [name for name in made(place) if ".lock" not in name] == sorted([*NAMES[1:], "id1/v/slow.flac"])
    assert not list((place / "wav").glob(".m4a*"))
    assert "there is no part 4 of 3" in convert(place, "--part", "4/3", "aac", "wav", code=2).stderr


def test_a_recipe_converts_in_an_array(place):
    """Stage 1 of the recipes calls local/data.sh, which runs --nj parts by its job runner."""
    (place / "vox2/dev").mkdir(parents=True)
    (place / "aac").rename(place / "vox2/dev/aac")
    for name in ("vox1", "musan", "rirs"):
        (place / name).mkdir()
    (place / "list").touch()
    call = [ROOT / "egs/voxceleb/ssl/local/data.sh", "--convert-m4a", "true", "--nj", "3", "--vox2", "vox2"]
    call += ["--vox1", "vox1", "--musan", "musan", "--rirs", "rirs", "data", "list"]
    own = {**env(place), "SPKV_ROOT": str(ROOT), "SPKV_PYTHON": sys.executable}
    done = subprocess.run(list(map(str, call)), cwd=place, env=own, capture_output=True, text=True)
    assert "run.sh SPKV_JOB=1:3 " in done.stdout and (place / "data/log/m4a_to_flac.3.log").is_file(), (
        done.stderr
    )
    assert done.returncode == 1 and "vox1" in done.stderr  # which is empty: the stage goes no further here
    (place / "vox2/dev/wav").rename(place / "wav")
    assert [name for name in made(place) if ".lock" not in name] == NAMES[1:]


def test_wrong_calls(place):
    done = convert(place, code=1, path=str(place / "none"))
    assert "ffmpeg is not on PATH" in done.stderr and "apt-get install ffmpeg" in done.stderr
    assert not (place / "wav").exists()
    assert "no such folder" in convert(place, "nowhere", "wav", code=1).stderr
    assert "has no .m4a file" in convert(place, "bin", "wav", code=1).stderr
    assert "--nj" in convert(place, "--nj", 0, "aac", "wav", code=2).stderr


def test_nothing_is_written_through_a_link_and_links_to_folders_are_read(place):
    (place / "other").mkdir()
    (place / "wav").mkdir()
    (place / "wav/id1").symlink_to(place / "other")
    (place / "aac/id3").symlink_to(place / "aac/id1/v")  # a folder that is there already
    (place / "aac/id2/loop").symlink_to(place / "aac")
    assert "is a link out of" in convert(place, code=1).stderr
    assert not list((place / "other").iterdir()) and "id2/-w/-1.flac" in made(place)


@needs_ffmpeg
def test_with_ffmpeg(tmp_path):
    """AAC of 44.1 kHz in stereo -> the same tone at 16 kHz, one channel; a cut file is a failure."""
    rate = 44100
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], 1), rate)
    (tmp_path / "aac/id1/a:b").mkdir(parents=True)
    m4a = tmp_path / "aac/id1/a:b/00001.m4a"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", tmp_path / "tone.wav", "-c:a", "aac", f"file:{m4a}"], check=True
    )
    (tmp_path / "aac/id1/cut.m4a").write_bytes(m4a.read_bytes()[:5000])
    done = convert(tmp_path, "aac", "wav", code=1, path=os.environ["PATH"])
    assert "1 files converted, 0 were there, 1 failed" in done.stdout and "cut.m4a: " in done.stderr
    sound, rate = soundfile.read(tmp_path / "wav/id1/a:b/00001.flac")
    assert rate == 16000 and sound.ndim == 1 and abs(len(sound) / rate - 2) < 0.1
    spectrum = np.abs(np.fft.rfft(sound[4000:20000]))
    assert abs(np.argmax(spectrum) - 440) <= 1 and 0.25 < np.abs(sound[4000:20000]).max() < 0.35
