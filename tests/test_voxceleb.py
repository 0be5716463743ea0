"""egs/voxceleb on trees in VoxCeleb's layout: of generated audio, and of real speech where it is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyspkv.data.datadir import DataDir

ROOT = Path(__file__).parents[1]
OFFICIAL = {"O": "veri_test2.txt", "E": "list_test_all2.txt", "H": "list_test_hard2.txt"}
LISTS = " ".join(OFFICIAL.values())


def write_lists(root: Path, speakers: dict[str, list[str]], of: dict[str, list[str]]) -> None:
    """Each list: for every pair of its speakers, an utterance of the first video and one of the second."""
    for name, chosen in of.items():
        pairs = [(s, t) for s in chosen for t in chosen if s <= t]
        lines = [
            f"{int(s == t)} {a} {b}"
            for s, t in pairs
            for a, b in zip(speakers[s], speakers[t][len(speakers[t]) // 2 :])
        ]
        (root / OFFICIAL[name]).write_text("\n".join(lines) + "\n")


def corpus(root: Path, audio, vox1: int, vox2: int, utts: int) -> None:
    """VoxCeleb1 (the first two speakers are its test part), VoxCeleb2, MUSAN and rooms; two videos a speaker.

    audio(set, speaker, utterance) -> samples at 16 kHz. O names the first third of VoxCeleb1, E all, H all but three.
    """
    speakers: dict[str, list[str]] = {}
    for name, num in (("vox1", vox1), ("vox2", vox2)):
        for s in range(num):
            id_ = f"id{(10000 if name == 'vox1' else 20000) + s}"
            part = "dev/aac" if name == "vox2" else "test/wav" if s < 2 else "dev/wav"
            for u in range(utts):
                file = f"{id_}/v{name}{s}-{u * 2 // utts}/{u:05d}"
                path = root / name / part / f"{file}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, audio(name, s, u), 16000)
                if name == "vox1":
                    speakers.setdefault(id_, []).append(f"{file}.wav")  # as published, whatever the file is
    ids = sorted(speakers)
    write_lists(root, speakers, {"O": ids[: max(2, vox1 // 3)], "E": ids, "H": ids[3:]})
    rng = np.random.default_rng(0)
    for kind in ("musan/noise", "musan/speech", "musan/music", "rirs"):
        (root / kind).mkdir(parents=True)
        sound = 0.1 * rng.standard_normal(16000) * (np.exp(-np.arange(16000) / 1000) if kind == "rirs" else 1)
        soundfile.write(root / kind / "1.wav", sound, 16000)


def run(root: Path, method: str, *options, code: int = 0) -> str:
    own = {k: v for k, v in os.environ.items() if k not in ("SPKV_ROOT", "SPKV_RECIPE")}
    words = [ROOT / f"egs/voxceleb/{method}/run.sh", "--vox1", "vox1", "--vox2", "vox2", "--musan", "musan"]
    words += [
        "--rirs",
        "rirs",
        "--data",
        "data",
        "--exp",
        "exp",
        "--conf",
        ROOT / "tests/conf",
        "--nj",
        "1",
        *options,
    ]
    done = subprocess.run(
        list(map(str, words)),
        cwd=root,
        env={**own, "OMP_NUM_THREADS": "1", "SPKV_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("voxceleb")
    corpus(root, lambda *_: 0.1 * np.random.default_rng(0).standard_normal(3200), vox1=5, vox2=6, utts=4)
    return root


def test_stage_1_with_a_list_of_all_speakers_has_dev_speakers_and_calibrates(generated):
    said = run(generated, "ssl", "--trials", LISTS, "--num-dev-spk", "3", "--stop-stage", "2")
    assert "dev speakers are of VoxCeleb2 and are left out of train" in said
    sets = {name: DataDir.read(generated / "data" / name) for name in ("train_labeled", "dev", "test")}
    assert [len(set(data.spk)) for data in sets.values()] == [3, 3, 5]
    assert not set(sets["dev"].spk) & (set(sets["train_labeled"].spk) | set(sets["test"].spk))
    assert {"trials_O", "trials_E", "trials_H"} < set(sets["test"].trials)
    kinds = [line.split()[2] for line in sets["dev"].trials["trials"]]
    assert kinds.count("target") == 3 * 4 and kinds.count("nontarget") == 3 * 16
    for method in ("ssl", "supervised", "ssrl", "trunk_ssl"):
        shown = run(generated, method, "--stage", "7", "--dry-run", "true")
        assert "--dev data/dev" in re.sub(r"--dev \S+/data/dev", "--dev data/dev", shown)
        assert "nothing is calibrated" not in shown


def test_without_dev_speakers_calibration_is_off_and_stages_go_on(generated):
    options = ["--data", "none", "--num-dev-spk", "0"]
    said = run(generated, "ssl", "--trials", OFFICIAL["E"], *options, "--stop-stage", "1")
    assert (
        "no dev, so nothing is calibrated: --num-dev-spk is 0" in said
        and not (generated / "none/dev").exists()
    )
    for method in ("ssl", "supervised", "ssrl", "trunk_ssl"):
        shown = run(generated, method, *options, "--stage", "2", "--dry-run", "true")
        assert "/none/dev: nothing is calibrated" in shown and not re.search(r"--dev|none/dev(?!:)", shown), (
            method
        )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_stages_on_real_speech_with_three_lists(corpora, tmp_path):
    """Speakers of speechocean762 as VoxCeleb's; and supervised on the same data."""
    places = {"vox1": corpora / "speechocean762/test", "vox2": corpora / "speechocean762/train"}
    speakers = {name: sorted(p for p in place.iterdir() if p.is_dir()) for name, place in places.items()}

    def audio(name, s, u):
        return soundfile.read(sorted(speakers[name][s].iterdir())[u])[0]

    corpus(tmp_path, audio, vox1=12, vox2=16, utts=6)
    options = ["--trials", LISTS, "--num-dev-spk", "4", "--num-rounds", "2", "--num-clusters", "12"]
    said = run(tmp_path, "ssl", *options)
    page, out = (
        (tmp_path / "exp/report.md").read_text(),
        json.loads((tmp_path / "exp/results.json").read_text()),
    )
    assert list(out["lists"]) == ["O", "E", "H"]
    for found in out["lists"].values():
        assert set(found) == {"pretrain", "round1", "round2", "finetune"}
        for m in found.values():
            assert 0 <= m["eer"] <= 100 and 0 <= m["min_dcf_0.01"] <= 1 and 0 <= m["eer_asnorm"] <= 100
            assert np.isfinite(m["cllr"]) and "speakers" in m["eer_ci_over"]
    assert out["lists"]["E"]["round2"]["eer_ci_low"] <= out["lists"]["E"]["round2"]["eer"]
    assert out["final"]["eer"] == out["lists"]["O"]["finetune"]["eer"]
    assert out["lists"]["E"]["finetune"]["eer"] < 45, "real speech, so better than chance"
    assert "## Lists side by side" in page and "| system | O: EER %" in page
    embedded = {p.name for p in (tmp_path / "exp/round2/embed").iterdir() if p.is_dir()}
    assert embedded == {"train", "dev", "test"}, "the union of the lists is extracted once"
    test = DataDir.read(tmp_path / "data/test")
    scores = tmp_path / "exp/round2/score"
    for x in "OEH":
        pairs = [line.split()[:2] for line in (scores / f"test_{x}.scores").read_text().splitlines()]
        assert pairs == [line.split()[:2] for line in test.trials[f"trials_{x}"]]
    assert (scores / "test.scores").read_bytes() == (scores / "test_O.scores").read_bytes()
    assert re.search(r"finetune +test_H ", said)
    run(tmp_path, "supervised", "--stage", "2", "--exp", "supervised")
    found = json.loads((tmp_path / "supervised/results.json").read_text())
    assert set(found["lists"]["H"]) == {"supervised", "finetune"}
