"""The synthetic corpus: same bytes for any number of jobs and after a kill; disjoint voices; contents of its
folders.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyspkv.data.datadir import DataDir
from pyspkv.data.make_trials import make_trials

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "local"))
import mini_espeak as espeak  # noqa: E402

SMALL = """--num-train-spk 5 --num-dev-spk 4 --num-test-spk 5 --sessions 2 --utts-per-session 2
    --eval-utts-per-session 2 --num-rooms 2 --num-mics 2 --num-noises 3
    --seconds 0.8,1.2 --rt60 0.1,0.2 --max-trials 90""".split()  # noqa: SIM905


def command(folder, *more):
    return [sys.executable, str(ROOT / "local" / "mini.py"), *SMALL, *map(str, more), str(folder)]


def make(folder, *more, ok=True):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command(folder, *more), env=env, capture_output=True, text=True)
    assert (done.returncode == 0) is ok, done.stderr
    return done.stderr if not ok else done.stdout


def contents(folder):
    """Relative path -> digest of every file, without the folder's own path in the tables."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes().replace(bytes(folder), b"")).hexdigest()
        for p in files
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini") / "data"
    make(folder, "--nj", 2)
    return folder


def test_folders(corpus):
    for name, speakers, utts in (("train_labeled", 5, 20), ("dev", 4, 16), ("test", 5, 20)):
        data = DataDir.read(corpus / name)
        assert (len(set(data.spk)), len(data.utts)) == (speakers, utts)
        assert data.spk == sorted(data.spk)  # what Kaldi's validator demands
    train, truth = (
        DataDir.read(corpus / "train"),
        (corpus / "truth" / "train_utt2spk").read_text().split("\n")[:-1],
    )
    assert train.spk == train.utts  # the training directory names no speaker
    assert not list((corpus / "train").glob("*true*"))
    labeled = DataDir.read(corpus / "train_labeled")
    assert truth == [f"{u} {s}" for u, s in zip(labeled.utts, labeled.spk)]
    for utt, path in labeled.wav.items():
        x, rate = soundfile.read(path)
        assert rate == 16000 and len(x) == int(labeled.utt_tables["utt2num_samples"][utt])
        assert 0.3 < len(x) / rate <= 1.2 and 1e-3 < x.std() < 0.3 and np.abs(x).max() < 1
    assert len(DataDir.read(corpus / "noise").utts) == 3


def test_splits_share_no_voice_and_trials_no_session(corpus):
    rows = [line.split() for line in (corpus / "truth" / "speakers").read_text().splitlines()]
    voices = {p: {r[2] for r in rows if r[0].startswith(p)} for p in ("trn", "dev", "tst")}
    assert all(voices.values()) and len(set.union(*voices.values())) == sum(map(len, voices.values()))
    gender = {r[0]: r[1] for r in rows}
    session = dict(line.split() for line in (corpus / "truth" / "utt2session").read_text().splitlines())
    for name in ("dev", "test"):
        data = DataDir.read(corpus / name)
        spk = dict(zip(data.utts, data.spk))
        labels = []
        for line in data.trials["trials"]:
            a, b, label = line.split()
            labels.append(label)
            assert (spk[a] == spk[b]) == (label == "target")
            assert session[a] != session[b] and gender[spk[a]] == gender[spk[b]]
        # 2 x 2 cross-session pairs per speaker
        assert labels.count("target") == 4 * len(set(data.spk)) and labels.count("nontarget") > 20


def test_any_number_of_jobs_gives_the_same_bytes_and_so_does_a_killed_run(corpus, tmp_path):
    folder = tmp_path / "data"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command(folder, "--nj", 1), env=env, start_new_session=True)
    deadline = time.time() + 120
    while len(list(folder.glob("audio/*/*/*.flac"))) < 5:
        assert running.poll() is None and time.time() < deadline
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)  # only the parent is killed: its jobs must not survive
    running.wait()
    for _ in range(500):
        if not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(folder).encode() in read(p)]:
            break
        time.sleep(0.01)
    else:
        pytest.fail("jobs live on after their parent was killed")
    before = {p: p.stat().st_mtime_ns for p in folder.glob("audio/*/*/*.flac")}
    assert len(before) < 56 and not (folder / "train").exists()
    make(folder, "--nj", 1)
    # whole sessions (here two files) are made again, everything else is kept
    redone = sum(p.stat().st_mtime_ns != t for p, t in before.items())
    assert redone <= 1 and len(before) >= 5
    assert contents(folder) == contents(corpus)
    assert make(folder, "--nj", 1)  # nothing is left to do
    assert contents(folder) == contents(corpus)


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_other_seed_other_speech_and_no_mixture(corpus, tmp_path):
    error = make(corpus, "--seed", 1, ok=False)
    assert (
        error.startswith("error: ") and "made with other options (seed)" in error and "Traceback" not in error
    )
    assert "must be from 4 to 2000" in make(tmp_path / "x", "--num-test-spk", 1, ok=False)
    assert not (tmp_path / "x").exists()


def test_speech_is_a_function_of_the_list():
    """It does not depend on other speech or on the process, for every voice that is used."""
    voices = list(espeak.variants())
    assert len(voices) > 60
    said = [espeak.Utterance("seven small boats", f"en-us+{v}", rate=300) for v in voices[::4]]
    first = espeak.speak(said)
    junk = [os.urandom(1000 * i) for i in range(100)]
    espeak.speak(said[:3])
    del junk
    for a, b in zip(first, espeak.speak(said)):
        np.testing.assert_array_equal(a, b)
        assert len(a) > 0.3 * espeak.RATE and np.abs(a).max() > 1000
    fresh = (
        "import hashlib; import mini_espeak as espeak; v = list(espeak.variants())[::4];"
        "s = [espeak.Utterance('seven small boats', f'en-us+{x}', rate=300) for x in v];"
        "print(*[hashlib.sha256(x.tobytes()).hexdigest() for x in espeak.speak(s)])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", fresh]
    done = subprocess.run(command, cwd=ROOT / "local", env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [hashlib.sha256(x.tobytes()).hexdigest() for x in first]


def test_make_trials():
    utts = [f"{s}-{i}" for s in "abcd" for i in range(5)]
    spks = [u[0] for u in utts]
    every = make_trials(utts, spks)
    assert len(every) == 20 * 19 // 2 and len(set(every)) == len(every)
    assert sum(line.endswith(" target") for line in every) == 4 * 10
    few = make_trials(utts, spks, seed=1, max_targets=7, max_nontargets=9)
    assert len(few) == 16 and set(few) <= set(every)
    assert few == make_trials(utts, spks, seed=1, max_targets=7, max_nontargets=9)
    assert few != make_trials(utts, spks, seed=2, max_targets=7, max_nontargets=9)
    lone = make_trials(
        [f"a{i:04}" for i in range(1500)] + ["b"], ["a"] * 1500 + ["b"], max_targets=1, max_nontargets=100
    )
    assert len(set(lone)) == 101 and sum(line.endswith("nontarget") for line in lone) == 100
    half = make_trials(utts, spks, group={"a": "f", "b": "f", "c": "m", "d": "m"})
    assert sum(line.endswith("nontarget") for line in half) == 2 * 25
