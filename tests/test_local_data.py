"""local/*.py on small trees of the published layout, and on real speech where it is."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyspkv.audio.reader import AudioReader
from pyspkv.data.datadir import DataDir

ROOT = Path(__file__).parents[1]
CORPORA = os.environ.get("SPKV_CORPORA")
real = pytest.mark.skipif(not CORPORA, reason="SPKV_CORPORA names no folder of real speech")


def local(script, *args, ok=True):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "local" / f"{script}.py"), *map(str, args)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) is ok, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if ok else done.stderr


def sound(path, seconds, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).standard_normal(int(seconds * 16000)) * 0.1, 16000)


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory):
    root = tmp_path_factory.mktemp("LibriSpeech")
    for i in range(8):
        for chapter in (10, 11):
            sound(root / "train-a" / f"{100 + i}/{chapter}/{100 + i}-{chapter}-0000.flac", 2 + i, seed=i)
    for i in range(3):
        for k in range(3):
            sound(root / "test-b" / f"{7 + i}/5/{7 + i}-5-{k:04d}.flac", 1, seed=50 + k)
    return root


def test_librispeech(librispeech, tmp_path):
    options = ["--parts", "train-a", "--test-parts", "test-b", "--num-dev-spk", 3]
    out = local("librispeech", *options, librispeech, tmp_path / "d")
    train, known = DataDir.read(tmp_path / "d/train"), DataDir.read(tmp_path / "d/train_labeled")
    dev, test = DataDir.read(tmp_path / "d/dev"), DataDir.read(tmp_path / "d/test")
    assert len(set(known.spk)) == 5 and len(set(dev.spk)) == 3 and not set(known.spk) & set(dev.spk)
    assert train.utts == known.utts == train.spk
    truth = (tmp_path / "d/truth/train_utt2spk").read_text().splitlines()
    assert truth == [f"{u} {s}" for u, s in zip(known.utts, known.spk)]
    assert f"dev: 3 speakers, 6 recordings, {len(dev.utts)} utterances" in out
    for data in (
        train,
        dev,
    ):  # pieces cover each recording in order, each of 3 s at least where it is that long
        reader = AudioReader(data)
        for reco, path in data.wav.items():
            pieces = sorted(v[1:] for v in data.segments.values() if v[0] == reco)
            seconds = soundfile.info(path).duration
            assert pieces[0][0] == 0 and abs(pieces[-1][1] - seconds) < 0.011
            assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:]))
            assert all(3 <= b - a < 6 for a, b in pieces) or (len(pieces) == 1 and seconds < 3)
        utt = data.utts[-1]
        reco, start, end = data.segments[utt]
        assert utt == f"{reco}-{round(start * 100):07d}-{round(end * 100):07d}"
        whole, _ = soundfile.read(data.wav[reco], dtype="float32")
        np.testing.assert_array_equal(
            reader.read(len(data.utts) - 1), whole[round(start * 16000) : round(end * 16000)]
        )
    assert test.segments is None and test.utts[0] == "7-5-0000"
    assert len(test.trials["trials"]) == 9 * 8 // 2
    assert sum(t.endswith(" target") for t in test.trials["trials"]) == 9
    again = local(
        "librispeech", *options, "--segment-seconds", 0, librispeech, tmp_path / "d"
    )  # over the old one
    assert "train: 5 speakers, 10 recordings, 10 utterances" in again


def test_librispeech_folds_share_no_held_out_speaker(librispeech, tmp_path):
    options = ["--parts", "train-a", "--test-parts", "test-b", "--num-dev-spk", 3]
    held = []
    for fold in (0, 1):
        local("librispeech", *options, "--fold", fold, librispeech, tmp_path / f"{fold}")
        dev, known = DataDir.read(tmp_path / f"{fold}/dev"), DataDir.read(tmp_path / f"{fold}/train_labeled")
        assert len(set(dev.spk)) == 3 and len(set(known.spk)) == 5 and not set(dev.spk) & set(known.spk)
        held.append(set(dev.spk))
    assert not held[0] & held[1]
    local("librispeech", *options, librispeech, tmp_path / "none")
    assert set(DataDir.read(tmp_path / "none/dev").spk) == held[0]
    said = local("librispeech", *options, "--fold", 2, librispeech, tmp_path / "2", ok=False)
    assert "8 training speakers make 2 folds, from 0" in said and not (tmp_path / "2").exists()


def test_librispeech_errors(librispeech, tmp_path):
    args = ["--parts", "train-a", "--num-dev-spk", 3]
    assert "no part test-other (there are: test-b, train-a)" in local(
        "librispeech", *args, librispeech, tmp_path / "d", ok=False
    )
    (tmp_path / "trials").write_text("7-5-0000 9-9-9999 target\n")
    args += ["--test-parts", "test-b"]
    assert "9-9-9999 is not in a test part" in local(
        "librispeech", *args, "--trials", tmp_path / "trials", librispeech, tmp_path / "d", ok=False
    )
    assert "cannot be held out" not in local(
        "librispeech", *args[:2], *args[4:], "--num-dev-spk", 6, librispeech, tmp_path / "e"
    )
    assert "training speakers cannot be held out" in local(
        "librispeech", *args[:2], *args[4:], "--num-dev-spk", 7, librispeech, tmp_path / "f", ok=False
    )
    assert not (tmp_path / "d").exists() and not (tmp_path / "f").exists()


def commands(root, with_rounds=3):
    """30-speaker layout in small: 2 speakers a split, 3 keywords, lists of 5 rounds."""
    for name, speakers in (("train", (1, 2)), ("val", (3, 4)), ("test", (5, 6))):
        rows = ["file,class"]
        for keyword in ("go", "zoom in", "stop"):
            for s in speakers:
                for r in range(1, 6):
                    rows.append(f"dataset/{keyword}/{s:08d}_NO_{r:02d}.wav,{keyword}")
                    if r <= with_rounds:
                        sound(root / "dataset" / keyword / f"{s:08d}_NO_{r:02d}.flac", 0.1, seed=r)
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")


def test_arabic_speech_commands(tmp_path):
    commands(tmp_path / "c")
    (tmp_path / "given").write_text(
        "00000005-zoom in-01 00000005-go-02 target\n00000005-go-01 00000006-zoom in-03 nontarget\n"
    )
    out = local("arabic_speech_commands", "--test-trials", tmp_path / "given", tmp_path / "c", tmp_path / "d")
    assert "dev: val.csv lists 30 files; 18 exist, of 2 speakers" in out
    test, dev = DataDir.read(tmp_path / "d/test"), DataDir.read(tmp_path / "d/dev")
    train = DataDir.read(tmp_path / "d/train")
    assert train.utts == train.spk and "00000001-zoom_in-03" in train.utts
    assert (
        AudioReader(train).num_samples(train.utts.index("00000001-zoom_in-03")) == 1600
    )  # a path with a blank
    assert test.trials["trials"] == [
        "00000005-zoom_in-01 00000005-go-02 target",
        "00000005-go-01 00000006-zoom_in-03 nontarget",
    ]
    spk = dict(zip(dev.utts, dev.spk))
    assert dev.trials["trials"]
    for line in dev.trials["trials"]:
        a, b, label = line.split()
        assert a.split("-")[1] != b.split("-")[1] and (spk[a] == spk[b]) == (label == "target")
        assert label == "nontarget" or a[-2:] != b[-2:]


def test_arabic_speech_commands_errors(tmp_path):
    commands(tmp_path / "c", with_rounds=2)
    (tmp_path / "given").write_text("00000005-go-01 00000005-go-05 target\n")
    error = local(
        "arabic_speech_commands",
        "--test-trials",
        tmp_path / "given",
        tmp_path / "c",
        tmp_path / "d",
        ok=False,
    )
    assert f"{tmp_path}/given:1: 00000005-go-05 is not among" in error
    with open(tmp_path / "c/val.csv", "a") as f:
        f.write("dataset/go/nobody.wav,go\n")
    error = local("arabic_speech_commands", tmp_path / "c", tmp_path / "d", ok=False)
    assert "val.csv:32: the line must be dataset/keyword/speaker_NO_round.wav" in error
    assert not (tmp_path / "d").exists()


def test_noise(tmp_path):
    sound(tmp_path / "n/far/rain one.wav", 2.7, seed=1)
    sound(tmp_path / "n/hum.flac", 0.5, seed=2)
    assert "2 recordings, 4 pieces" in local("noise", "--segment-seconds", 1, tmp_path / "d", tmp_path / "n")
    data = DataDir.read(tmp_path / "d")
    assert [data.segments[u] for u in data.utts] == [
        ("far-rain-one", 0, 1),
        ("far-rain-one", 1, 2),
        ("far-rain-one", 2, 2.7),
        ("hum", 0, 0.5),
    ]
    assert data.spk == data.utts and len(AudioReader(data).read(2)) == 11200
    (tmp_path / "n/text.wav").write_text("no audio")
    assert "text.wav: libsndfile cannot read it" in local("noise", tmp_path / "e", tmp_path / "n", ok=False)
    assert not (tmp_path / "e").exists()


@real
def test_real_librispeech(tmp_path):
    root = Path(CORPORA)
    trials = root / "trials" / "librispeech_test_other.trials"
    local("librispeech", "--trials", trials, root / "librispeech_subset" / "LibriSpeech", tmp_path)
    train, dev, test = (DataDir.read(tmp_path / n) for n in ("train_labeled", "dev", "test"))
    assert (len(set(train.spk)), len(set(dev.spk)), len(set(test.spk))) == (221, 30, 10)
    assert "\n".join(test.trials["trials"]) + "\n" == trials.read_text()
    assert 1.5 < AudioReader(dev).num_samples(0) / 16000 < 6


@real
def test_real_arabic_speech_commands(tmp_path):
    root = Path(CORPORA)
    out = local(
        "arabic_speech_commands",
        *("--dev-trials", root / "trials" / "arabic_speech_commands_val.trials"),
        *("--test-trials", root / "trials" / "arabic_speech_commands_test.trials"),
        *(root / "arabic_speech_commands", tmp_path),
    )
    assert "train: train.csv lists 7200 files; 3600 exist, of 18 speakers" in out
    assert len(DataDir.read(tmp_path / "dev").trials["trials"]) == 24000


@pytest.fixture(scope="module")
def voxceleb(tmp_path_factory):
    root = tmp_path_factory.mktemp("VoxCeleb")
    for s in range(6):
        for video in ("-aB_c", "xyz"):
            for k in (1, 2):
                part = "test" if s < 2 else "dev"
                sound(root / f"vox1/{part}/wav/id1000{s}/{video}/{k:05d}.wav", 0.2, seed=k)
    for s in range(3):
        sound(root / f"vox2/dev/aac/id2000{s}/v{s}/00001.wav", 0.2, seed=s)
    lines = [
        "1 id10000/-aB_c/00001.wav id10000/xyz/00001.wav",
        "0 id10000/xyz/00002.wav id10001/xyz/00001.wav",
    ]
    (root / "veri_test2.txt").write_text("\n".join(lines) + "\n")
    return root


def test_voxceleb(voxceleb, tmp_path):
    args = ["--trials", voxceleb / "veri_test2.txt", "--num-dev-spk", 3, voxceleb / "vox1", voxceleb / "vox2"]
    local("voxceleb", *args, tmp_path / "d")
    train, dev, test = (DataDir.read(tmp_path / "d" / name) for name in ("train", "dev", "test"))
    assert train.utts == train.spk == [f"id2000{s}-v{s}-00001" for s in range(3)]
    assert DataDir.read(tmp_path / "d/train_labeled").spk == ["id20000", "id20001", "id20002"]
    assert test.utts == ["id10000--aB_c-00001", "id10000-xyz-00001", "id10000-xyz-00002", "id10001-xyz-00001"]
    assert test.trials["trials"] == [
        "id10000--aB_c-00001 id10000-xyz-00001 target",
        "id10000-xyz-00002 id10001-xyz-00001 nontarget",
    ]
    assert len(set(dev.spk)) == 3 and not set(dev.spk) & set(test.spk)
    for line in dev.trials["trials"]:
        a, b, label = line.split()
        assert label == "nontarget" or a.rsplit("-", 1)[0] != b.rsplit("-", 1)[0], "targets are across videos"


def test_voxceleb_errors(voxceleb, tmp_path):
    (tmp_path / "list").write_text("1 id10000/-aB_c/00001.wav\n")
    error = local(
        "voxceleb",
        "--trials",
        tmp_path / "list",
        voxceleb / "vox1",
        voxceleb / "vox2",
        tmp_path / "d",
        ok=False,
    )
    assert "list:1" in error and "the line must be" in error
    (tmp_path / "list").write_text("1 id10000/-aB_c/00001.wav id99999/x/00001.wav\n")
    error = local(
        "voxceleb",
        "--trials",
        tmp_path / "list",
        voxceleb / "vox1",
        voxceleb / "vox2",
        tmp_path / "d",
        ok=False,
    )
    assert "id99999-x-00001" in error and not (tmp_path / "d").exists()
    sound(tmp_path / "v2/dev/aac/id1/v/1.flac", 0.1)
    (tmp_path / "v2/dev/aac/id1/v/1.flac").rename(tmp_path / "v2/dev/aac/id1/v/1.m4a")
    error = local(
        "voxceleb",
        "--trials",
        tmp_path / "list",
        voxceleb / "vox1",
        tmp_path / "v2",
        tmp_path / "d",
        ok=False,
    )
    assert "convert the .m4a files" in error
