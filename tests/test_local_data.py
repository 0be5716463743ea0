"""local/*.py on small trees in the published layout, and on real speech if it is available."""

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
    ):  # pieces cover each recording in order, each at least 3 s long if the recording is
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
    )  # replaces the old directory
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


def test_the_test_parts_of_librispeech_alone(librispeech, tmp_path):
    options = ["--parts", "none", "--test-parts", "test-b", "--only-test", "libri"]
    out = local("librispeech", *options, librispeech, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["libri"] and "libri: 3 speakers, 9 recordings" in out
    data = DataDir.read(tmp_path / "libri")
    assert len(data.utts) == 9 and len(data.trials["trials"]) == 9 * 8 // 2


def test_librispeech_errors(librispeech, tmp_path):
    args = ["--parts", "train-a", "--num-dev-spk", 3]
    assert "no part test-other (there are: test-b, train-a)" in local(
        "librispeech", *args, librispeech, tmp_path / "d", ok=False
    )
    (tmp_path / "trials").write_text("7-5-0000 9-9-9999 target\n")
    args += ["--test-parts", "test-b"]
    assert "trials:1: 9-9-9999 is not an utterance of the data directory" in local(
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
    )  # a path with a space
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


@pytest.fixture(scope="module")
def voxceleb_lists(tmp_path_factory):
    """Six speakers of VoxCeleb1 and eight of VoxCeleb2, who share a video; O names two of the six, E all, H four."""
    root = tmp_path_factory.mktemp("VoxCelebLists")

    def touch(place, speaker, video, k):
        path = root / place / speaker / video / f"{k:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # only names are read
        return f"{speaker}/{video}/{k:05d}.wav"

    files = {
        s: [touch("vox1/wav", f"id1000{s}", v, k) for v in ("-aB_c", "xyz") for k in (1, 2)] for s in range(6)
    }
    for s in range(8):
        for v in ("shared", f"v{s}") if s else ("shared",):
            for k in (1, 2):
                touch("vox2/dev/aac", f"id2000{s}", v, k)
    for name, speakers in (
        ("veri_test2", [0, 1]),
        ("list_test_all2", range(6)),
        ("list_test_hard2", [2, 3, 4, 1]),
    ):
        pairs = [(s, t) for s in speakers for t in speakers if s <= t]
        lines = [f"{int(s == t)} {files[s][0]} {files[t][3]}" for s, t in pairs]
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def prepare_lists(root, out, *lists, ok=True, options=()):
    given = [word for name in lists for word in ("--trials", name)]
    return local("voxceleb", *given, *options, root / "vox1", root / "vox2", out, ok=ok)


def test_voxceleb_lists_share_one_test_directory(voxceleb_lists, tmp_path):
    root, names = voxceleb_lists, ("veri_test2", "list_test_all2", "list_test_hard2")
    out = prepare_lists(root, tmp_path / "d", *(root / f"{name}.txt" for name in names))
    test = DataDir.read(tmp_path / "d/test")
    assert list(test.trials) == ["trials", "trials_E", "trials_H", "trials_O"]
    assert test.trials["trials"] == test.trials["trials_O"] and len(test.trials["trials_E"]) == 21
    assert set(test.utts) == {u for lines in test.trials.values() for x in lines for u in x.split()[:2]}
    assert len(test.utts) == 12 and "12 utterances, 3 trials, 3 trials_O, 21 trials_E, 10 trials_H" in out
    for name, x in zip(names, "OEH"):
        published = (root / f"{name}.txt").read_text().splitlines()
        assert [line.endswith(" target") for line in test.trials[f"trials_{x}"]] == [
            p[0] == "1" for p in published
        ]


def test_voxceleb_dev_speakers_of_a_list_of_all_are_held_out_of_voxceleb2(voxceleb_lists, tmp_path):
    root = voxceleb_lists
    out = prepare_lists(root, tmp_path / "d", root / "list_test_all2.txt", options=["--num-dev-spk", 3])
    assert "dev speakers are of VoxCeleb2 and are left out of train" in out
    sets = {name: DataDir.read(tmp_path / "d" / name) for name in ("train", "train_labeled", "dev", "test")}
    dev = set(sets["dev"].spk)
    assert sorted(dev) == (tmp_path / "d/dev_speakers").read_text().split() and len(dev) == 3
    assert "id20000" not in dev, "with one video this speaker has no target trial"
    assert set(sets["train_labeled"].spk) == {f"id2000{s}" for s in range(8)} - dev
    assert not any(u.split("-")[0] in dev for u in sets["train"].utts)
    assert not any(x.split("-")[0] in dev for x in (tmp_path / "d/truth/train_utt2spk").read_text().split())
    kinds = {"target": 0, "nontarget": 0}
    for line in sets["dev"].trials["trials"]:
        a, b, kind = line.split()
        (s, v, _), (t, w, _) = a.split("-"), b.split("-")
        assert v != w and (s == t) == (kind == "target")
        kinds[kind] += 1
    assert kinds == {"target": 3 * 4, "nontarget": 3 * 12}  # of 16 pairs of two speakers 4 share the video
    prepare_lists(
        root, tmp_path / "e", root / "list_test_all2.txt", options=["--num-dev-spk", 3, "--seed", 1]
    )
    assert (tmp_path / "e/dev_speakers").read_text().split() != sorted(dev)
    prepare_lists(root, tmp_path / "f", root / "list_test_hard2.txt", options=["--num-dev-spk", 3])
    assert (tmp_path / "f/dev_speakers").read_text().split() == ["id10000", "id10005"]
    assert len(set(DataDir.read(tmp_path / "f/train_labeled").spk)) == 8


def test_voxceleb_without_dev_says_so(voxceleb_lists, tmp_path):
    root, given = voxceleb_lists, ["--trials", voxceleb_lists / "list_test_all2.txt", voxceleb_lists / "vox1"]
    out = local("voxceleb", *given, tmp_path / "d")
    assert (
        "nothing is calibrated: the trials name all speakers of VoxCeleb1, and there is no VoxCeleb2" in out
    )
    assert {p.name for p in (tmp_path / "d").iterdir()} == {"test", "dev_speakers"}
    for s in range(3):
        sound(tmp_path / f"unlabeled/wav/id{s}/v/1.wav", 0.1)
    out = local("voxceleb", *given, tmp_path / "unlabeled", tmp_path / "e")
    assert "too few labeled speakers with two videos" in out and not (tmp_path / "e/dev").exists()
    assert len(DataDir.read(tmp_path / "e/train").utts) == 3
    assert "--num-dev-spk is 0" in local(
        "voxceleb", "--num-dev-spk", 0, *given, root / "vox2", tmp_path / "f"
    )
    prepare_lists(root, tmp_path / "g", root / "veri_test2.txt")
    before = (tmp_path / "g/train/utt2spk").read_text()
    said = local("voxceleb", "--num-dev-spk", 0, *given, root / "vox2", tmp_path / "g", ok=False)
    assert "is of an earlier run" in said and f"rm -r {tmp_path}/g/dev" in said
    assert (tmp_path / "g/train/utt2spk").read_text() == before and "id10005" not in before


def test_voxceleb_names_of_lists(voxceleb_lists, tmp_path):
    root = voxceleb_lists
    (tmp_path / "a=b.txt").write_text((root / "veri_test2.txt").read_text())
    prepare_lists(root, tmp_path / "d", tmp_path / "a=b.txt")
    assert list(DataDir.read(tmp_path / "d/test").trials) == ["trials"]
    hard = root / "list_test_hard2.txt"
    said = prepare_lists(root, tmp_path / "e", tmp_path / "a=b.txt", hard, ok=False)
    assert "has no official name of a list" in said and f"NAME={tmp_path}/a=b.txt" in said
    assert "another list of the name H" in prepare_lists(root, tmp_path / "e", hard, f"H={hard}", ok=False)
    assert not (tmp_path / "e").exists()
    prepare_lists(root, tmp_path / "e", f"mine={tmp_path}/a=b.txt", hard)
    assert list(DataDir.read(tmp_path / "e/test").trials) == ["trials", "trials_H", "trials_mine"]


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
    assert "convert the .m4a files first: python local/m4a_to_flac.py" in error
    sound(tmp_path / "v2/dev/aac/id1/v/2.flac", 0.1)  # a conversion that was stopped
    files = voxceleb / "vox1", tmp_path / "v2", tmp_path / "d"
    error = local("voxceleb", "--trials", tmp_path / "list", *files, ok=False)
    assert (
        "1 .m4a files have no .wav or .flac, the first is id1-v-1" in error and not (tmp_path / "d").exists()
    )


@pytest.fixture
def speechocean(tmp_path):
    """Four training, two dev and two test speakers with three utterances each, and another speaker who is in
    no list.
    """
    root = tmp_path / "speechocean762"
    sets = {"train": "abcd", "dev": "ef", "test": "gh", None: "i"}
    for name, speakers in sets.items():
        for s in speakers:
            for k in (3, 1, 2):
                sound(root / ("test" if name == "test" else "train") / s / f"0{s}00{k}.flac", 0.1, seed=k)
        if name:
            (root / f"{name}_speakers").write_text("".join(f"{s}\n" for s in speakers))
    (root / "spk2gender").write_text("".join(f"{s} {'mf'[s in 'abc']}\n" for s in "abcdefghi"))
    (root / "spk2age").write_text("".join(f"{s} 6\n" for s in "abcdefghi"))
    return root


def test_speechocean762(speechocean, tmp_path):
    (tmp_path / "given").write_text("0e001 0f002 nontarget\n0f001 0f003 target\n")
    options = ["--dev-trials", tmp_path / "given", speechocean, tmp_path / "d"]
    out = local("speechocean762", *options)
    sets = {name: DataDir.read(tmp_path / "d" / name) for name in ("train", "train_labeled", "dev", "test")}
    assert sets["train"].spk == sets["train"].utts == sets["train_labeled"].utts
    assert sets["train"].utts == [f"0{s}00{k}" for s in "abcd" for k in (1, 2, 3)]
    assert [sorted(set(sets[name].spk)) for name in ("train_labeled", "dev", "test")] == [
        list("abcd"), list("ef"), list("gh")]  # fmt: skip
    assert all(utt[1] == spk for name in ("train_labeled", "dev", "test")
               for utt, spk in zip(sets[name].utts, sets[name].spk))  # fmt: skip
    assert not sets["train"].spk_tables and not (tmp_path / "d/train/spk2gender").exists()
    assert sets["dev"].spk_tables == {"spk2gender": {"e": "m", "f": "m"}, "spk2age": {"e": "6", "f": "6"}}
    assert sets["train_labeled"].spk_tables["spk2gender"] == {"a": "f", "b": "f", "c": "f", "d": "m"}
    truth = (tmp_path / "d/truth/train_utt2spk").read_text().splitlines()
    assert truth == [f"0{s}00{k} {s}" for s in "abcd" for k in (1, 2, 3)]
    assert sets["dev"].trials["trials"] == ["0e001 0f002 nontarget", "0f001 0f003 target"]
    made = [line.split() for line in sets["test"].trials["trials"]]
    assert len(made) == 6 + 9 and all((a[1] == b[1]) == (kind == "target") for a, b, kind in made)
    assert "test: 2 speakers, 6 utterances, 15 trials" in out


def test_speechocean762_errors(speechocean, tmp_path):
    d = tmp_path / "d"

    def said(*options):
        error = local("speechocean762", *options, d, ok=False)
        assert not d.exists()
        return error

    error = said(tmp_path / "nowhere")
    assert "nowhere: no such folder\n  hint: give the corpus's folder, with train/, test/" in error
    (tmp_path / "given").write_text("0e001 0g002 nontarget\n0f001 0f003 target\n")
    assert "given:1: 0g002 is not an utterance" in said("--dev-trials", tmp_path / "given", speechocean)
    (speechocean / "test_speakers").write_text("f\ng\nh\n")
    assert "test_speakers:1: speaker f has no audio in" in said(speechocean)
    (speechocean / "test_speakers").write_text("../train/a\n")
    assert "test_speakers:1: speaker ../train/a has no audio in" in said(speechocean)
    (speechocean / "test_speakers").write_text("g\nh\n")
    (speechocean / "dev_speakers").write_text("d\ne\n")
    assert "dev_speakers: speaker d is in train_speakers too" in said(speechocean)
    (speechocean / "dev_speakers").write_text("e\ni\n")
    (speechocean / "spk2gender").write_text("".join(f"{s} m\n" for s in "abcdefgh"))
    assert "spk2gender: no line for speaker i" in said(speechocean)
    (speechocean / "dev_speakers").unlink()
    assert "dev_speakers: no such list of speakers\n  hint: give the corpus's folder" in said(speechocean)


@pytest.fixture
def words(tmp_path):
    root = tmp_path / "speech_commands"
    for s in ("0a", "0b", "1c", "1d", "2e"):
        for word in ("go", "stop"):
            for n in (0, 1):
                sound(root / word / f"{s}_nohash_{n}.flac", 0.1, seed=n)
    sound(root / "_background_noise_/hum.wav", 0.1)
    (root / "dev_speakers").write_text("0a\n0b\n")
    (root / "test_speakers").write_text("1c\n1d\n")
    return root


def test_speech_commands(words, tmp_path):
    (tmp_path / "given").write_text("1c-go-0 1c-stop-1 target\n1c-go-0 1d-stop-1 nontarget\n")
    out = local("speech_commands", "--test-trials", tmp_path / "given", words, tmp_path / "d")
    assert "dev: 2 speakers, 8 utterances" in out
    dev, test = (DataDir.read(tmp_path / f"d/speech_commands_{name}") for name in ("dev", "test"))
    assert test.utts == [f"{s}-{w}-{n}" for s in ("1c", "1d") for w in ("go", "stop") for n in (0, 1)]
    assert test.spk == ["1c"] * 4 + ["1d"] * 4
    assert Path(test.wav["1d-stop-1"]) == words / "stop/1d_nohash_1.flac"
    assert test.trials["trials"] == (tmp_path / "given").read_text().splitlines()
    made = [line.split() for line in dev.trials["trials"]]
    assert sum(kind == "target" for *_, kind in made) == 8 and sum(kind == "nontarget" for *_, kind in made)
    for a, b, kind in made:  # never two utterances of one word
        assert a.split("-")[1] != b.split("-")[1] and (a[:2] == b[:2]) == (kind == "target")


def test_speech_commands_errors(words, tmp_path):
    d = tmp_path / "d"
    error = local("speech_commands", tmp_path / "nowhere", d, ok=False)
    assert "nowhere: no such folder\n  hint: give the corpus's folder, with the folders of words" in error
    assert "no <word>/<speaker>_nohash_<n>.opus" in local("speech_commands", tmp_path, d, ok=False)
    (words / "test_speakers").write_text("0b\n1c\n")
    assert "speaker 0b is in dev_speakers too" in local("speech_commands", words, d, ok=False)
    (words / "test_speakers").write_text("1c\n9z\n")
    assert "test_speakers:2: speaker 9z has no audio" in local("speech_commands", words, d, ok=False)
    sound(words / "go/1c_nohash_0.wav", 0.1)
    assert "a second file of this utterance" in local("speech_commands", words, d, ok=False)
    assert not d.exists()


@real
def test_real_speechocean762_and_speech_commands(tmp_path):
    root = Path(CORPORA)
    for name in ("speechocean762", "speech_commands"):
        given = [
            x for s in ("dev", "test") for x in (f"--{s}-trials", root / "trials" / f"{name}_{s}.trials")
        ]
        local(name, *given, root / name, tmp_path)
    sets = {p.name: DataDir.read(p) for p in tmp_path.iterdir() if p.name != "truth"}
    size = {name: (len(set(data.spk)), len(data.utts)) for name, data in sets.items()}
    assert size == {
        "train": (2020, 2020), "train_labeled": (101, 2020), "dev": (24, 480), "test": (125, 2500),
        "speech_commands_dev": (54, 712), "speech_commands_test": (162, 2099)}  # fmt: skip
    speakers = [set(sets[name].spk) for name in ("train_labeled", "dev", "test")]
    assert len(set.union(*speakers)) == 250
    for name, (targets, nontargets) in {
        "dev": (4560, 30000), "test": (23750, 100000),
        "speech_commands_dev": (4667, 20000), "speech_commands_test": (13132, 40000),
    }.items():  # fmt: skip
        spk = dict(zip(sets[name].utts, sets[name].spk))
        lines = [line.split() for line in sets[name].trials["trials"]]
        assert all((spk[a] == spk[b]) == (kind == "target") for a, b, kind in lines)
        assert sum(kind == "target" for *_, kind in lines) == targets and len(lines) == targets + nontargets
    assert AudioReader(sets["speech_commands_test"]).num_samples(0) == 16000
