"""pyspkv in Python and the commands on top: load, embed, verify, cluster, enrol, identify, export, disk."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import toy

import pyspkv
from pyspkv.api.enrolment import Store
from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError
from pyspkv.bin import disk as disk_command
from pyspkv.bin import enrol, export, extract, identify
from pyspkv.data.ark import normalize, read_embeddings
from pyspkv.models.registry import EncoderConfig
from pyspkv.report.disk import weigh
from pyspkv.score.calibration import Calibration
from pyspkv.train.config import TrainConfig
from pyspkv.train.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(experiment with a finished finetune/model, data directory), written under umask 022."""
    folder = tmp_path_factory.mktemp("speaker_model")
    before = os.umask(0o022)
    data = toy.make(folder, speakers=3, utts=4, seconds=0.6)
    (folder / "config.yaml").write_text(
        "encoder: {name: ecapa, channels: 16, mfa_channels: 24, embed_dim: 8, se_channels: 4, n_mels: 40}\n"
        "objective: {name: aam, crop_seconds: 0.5, augment: false}\n"
        "epochs: 2\nbatch_size: 4\nprecision: fp32\nnum_workers: 0\n"
    )
    model = folder / "exp/finetune/model"
    Trainer(cfg.load(TrainConfig, folder / "config.yaml"), data, model).run()
    os.umask(before)
    return folder / "exp", data


@pytest.fixture(scope="module")
def model(made):
    return pyspkv.load(made[0])


def call(monkeypatch, command, *argv):
    monkeypatch.setattr("sys.argv", [command.__name__, *map(str, argv)])
    command.main()


def paths_of(data) -> list[str]:
    return [data.wav[u] for u in data.utts]


# ---- load -------------------------------------------------------------------------------------------------------
def test_experiment_phase_and_model_folder_are_one_model(made, model):
    exp, data = made
    path = paths_of(data)[0]
    places = [exp / "finetune", exp / "finetune/model", f"{exp}/finetune@last", f"{exp}/finetune/model@last"]
    for place in [*places, checkpoint.latest(exp / "finetune/model")]:
        np.testing.assert_array_equal(pyspkv.load(place).embed(path), model.embed(path))
    assert str(exp / "finetune/model") in repr(model) and "not calibrated" in repr(model)


def fake(folder: Path, done: bool = True) -> Path:
    (folder / "ckpt-3").mkdir(parents=True)
    (folder / "LATEST").write_text("ckpt-3\n")
    (folder / "ckpt-3/state.json").write_text(json.dumps({"step": 3, "done": done}))
    return folder


def test_which_model_stands_for_an_experiment(tmp_path):
    from pyspkv.api.speaker_model import find_model

    exp = tmp_path / "exp"
    for name in ("pretrain", "round2", "round10"):
        fake(exp / name / "model")
    assert find_model(exp) == str(exp / "round10/model")
    assert find_model(f"{exp}@best") == str(exp / "round10/model@best")
    fake(exp / "finetune/model")
    assert find_model(exp) == str(exp / "finetune/model")
    (exp / "log").mkdir()
    for wrong, listed in (
        (exp / "finetun", "finetune/model"),
        (exp / "log", "round2/model"),
        (tmp_path, "pretrain"),
    ):
        with pytest.raises(UserError) as err:
            find_model(wrong)
        assert str(wrong) in str(err.value) and listed in str(err.value).partition("hint: ")[2]
    fake(exp / "round11/model", done=False)
    with pytest.raises(UserError, match="round11 is still being trained"):
        find_model(exp)


def test_several_models_of_which_none_is_the_last(tmp_path):
    for name in ("one", "two"):
        fake(tmp_path / "exp" / name / "model")
    with pytest.raises(UserError, match=r"not clear which one is the last[\s\S]*one/model, .*two/model"):
        pyspkv.load(tmp_path / "exp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no model"):
        pyspkv.load(tmp_path / "empty")
    with pytest.raises(UserError, match="is a file"):
        pyspkv.load(__file__)


def test_no_such_device(made):
    with pytest.raises(UserError, match="device nonsense"):
        pyspkv.load(made[0], device="nonsense")


# ---- embed ------------------------------------------------------------------------------------------------------
def test_digits_are_those_of_extract(made, model, tmp_path, monkeypatch):
    exp, data = made
    call(
        monkeypatch, extract, "--model", exp / "finetune/model", "--data", data.path, "--out", tmp_path / "e"
    )
    want = read_embeddings(tmp_path / "e/embedding.scp")
    assert want.ids == data.utts
    x = model.embed(paths_of(data))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, want.x)  # to the last bit
    one = model.embed(Path(paths_of(data)[3]))
    assert one.shape == (8,)
    np.testing.assert_allclose(one, want.x[3], atol=1e-5)


@pytest.mark.parametrize("kind", ["PCM_16", "FLOAT"])
def test_arrays_are_as_files(model, tmp_path, kind):
    """Also at another rate; int16 arrays equal a 16-bit file, float arrays a float file."""
    rng = np.random.default_rng(0)
    x = [0.1 * rng.standard_normal(n).astype(np.float32) for n in (22050, 9000, 30000)]
    x = [np.round(32768 * a).astype(np.int16) for a in x] if kind == "PCM_16" else x
    paths = [str(tmp_path / f"{i}.wav") for i in range(3)]
    for path, samples in zip(paths, x):
        soundfile.write(path, samples, 22050, subtype=kind)
    want = model.embed(paths)
    np.testing.assert_array_equal(model.embed(x, sample_rate=22050), want)
    np.testing.assert_array_equal(model.embed([x[0], paths[1], x[2]], sample_rate=22050), want)
    if kind == "FLOAT":
        np.testing.assert_array_equal(model.embed([a.astype(np.float64) for a in x], 22050), want)
    again = model.embed([x[1], x[1]], sample_rate=22050)  # the same result twice
    np.testing.assert_array_equal(again[0], again[1])


def test_a_file_named_like_an_array(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    inside, outside = (0.1 * rng.standard_normal(16000).astype(np.float32) for _ in range(2))
    soundfile.write("array 1", inside, 16000, format="WAV", subtype="FLOAT")
    x = model.embed(["array 1", outside], sample_rate=16000)
    want = model.embed([inside, outside], sample_rate=16000)
    np.testing.assert_array_equal(x, want)
    assert np.abs(x[0] - x[1]).max() > 1e-4


WAVE = np.full(16000, 0.1, np.float32)


@pytest.mark.parametrize(
    "audio, rate, message",
    [
        ([], None, "no audio"),
        (WAVE, None, "need a sample rate"),
        (WAVE, 16000.5, "not a whole number"),
        (WAVE, 10, "not between"),
        (WAVE.reshape(2, -1), 16000, r"shape \(2, 8000\)"),
        (WAVE[:0], 16000, "no samples"),
        (np.where(np.arange(16000) == 5, np.nan, WAVE), 16000, "NaN"),
        (WAVE.astype(np.int64), 16000, "int64, whose scale is unknown"),
        (1000 * WAVE, 16000, "array 0"),
        (3, None, "is a int"),
        ("no/such.wav", None, "no/such.wav"),
        ("", None, "not a path"),
        ("echo a |", None, r"\|"),
        ([["a.wav"]], None, "is a list"),
    ],
)
def test_input_that_is_not_audio(model, audio, rate, message):
    with pytest.raises(UserError, match=message):
        model.embed(audio, sample_rate=rate)


def test_silence_is_embedded_with_a_warning(model, tmp_path):
    with pytest.warns(UserWarning, match="array 1 .digital silence"):
        assert model.embed([WAVE * np.sin(np.arange(16000)), 0 * WAVE], 16000).shape == (2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed(WAVE * np.sin(np.arange(16000)), 16000)


# ---- verify -----------------------------------------------------------------------------------------------------
def test_verify(made, model, tmp_path):
    exp, data = made
    a, b = paths_of(data)[0], paths_of(data)[5]
    x = normalize(model.embed([a, b]))
    found = model.verify(a, b)
    assert found.score == pytest.approx(float(x[0] @ x[1]), abs=1e-6)
    assert (found.llr, found.decision, found.threshold) == (None, None, None)
    shutil.copytree(exp / "finetune", tmp_path / "phase")
    for threshold, same in ((found.score - 0.01, True), (found.score + 0.01, False)):
        stored = Calibration(10.0, -5.0, threshold, 0.5, "dev", 9, 9, 0.4)
        stored.write(tmp_path / "phase/model/calibration.json")
        judged = pyspkv.load(tmp_path / "phase").verify(a, b)
        assert judged.decision is same and judged.threshold == threshold
        assert judged.llr == pytest.approx(10 * judged.score - 5)
    with pytest.raises(UserError, match="no signal"):
        model.verify(0 * WAVE, WAVE * np.sin(np.arange(16000)), sample_rate=16000)


# ---- cluster ----------------------------------------------------------------------------------------------------
def blobs(k=5, each=30, dim=16):
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((k, dim))
    x = np.repeat(centers, each, 0) + 0.1 * rng.standard_normal((k * each, dim))
    return (x * rng.uniform(0.5, 2, (len(x), 1))).astype(np.float32), np.repeat(np.arange(k), each)


@pytest.mark.parametrize("k", ["auto", 5, np.int64(5)])
@pytest.mark.parametrize("method", ["kmeans-ahc", "kmeans", "ahc"])
def test_cluster_finds_the_speakers(k, method):
    from sklearn.metrics import adjusted_rand_score

    x, truth = blobs()
    before = x.copy()
    labels = pyspkv.cluster(x, k, method=method)
    assert labels.dtype == np.int64 and labels.shape == (150,) and labels.min() == 0
    assert adjusted_rand_score(truth, labels) == 1
    np.testing.assert_array_equal(x, before)


def test_cluster_is_what_bin_cluster_does(made, tmp_path, monkeypatch):
    from pyspkv.bin import cluster as command
    from pyspkv.data.ark import EmbeddingWriter
    from pyspkv.data.datadir import DataDir

    _exp, data = made
    x = np.random.default_rng(0).standard_normal((len(data.utts), 8)).astype(np.float32)
    with EmbeddingWriter(tmp_path) as write:
        for utt, row in zip(data.utts, x):
            write(utt, row)
    scp = tmp_path / "embedding.scp"
    monkeypatch.setattr("sys.argv", ["cluster", *f"--embeddings {scp} --data {data.path} --out-data {tmp_path}/o "
                                     "--num-clusters 4 --whiten 0.5".split()])  # fmt: skip
    command.main()
    want = DataDir.read(tmp_path / "o").spk
    labels = pyspkv.cluster(x, 4, whiten_power=0.5)
    assert len({*zip(want, labels.tolist())}) == len({*want}) == 4


def test_estimator_is_scikit_learns():
    from sklearn.base import clone

    x, _ = blobs()
    fitted = pyspkv.SpeakerClustering(5, seed=3).fit(x)
    np.testing.assert_array_equal(fitted.labels_, pyspkv.cluster(x, 5, seed=3))
    np.testing.assert_array_equal(clone(fitted).fit_predict(x), fitted.labels_)
    assert fitted.get_params() == {"num_clusters": 5, "method": "kmeans-ahc", "whiten_power": None, "seed": 3}
    assert (fitted.n_clusters_, fitted.n_features_in_) == (5, 16) and not hasattr(clone(fitted), "labels_")


@pytest.mark.parametrize(
    "x, options, message",
    [
        (np.ones(3), {}, "shape"),
        (np.zeros((0, 3)), {}, "shape"),
        ([["a"]], {}, "numbers"),
        ([[1, np.inf], [1, 2]], {}, "row 0 is not finite"),
        ([[1, 2], [0, 0]], {}, "row 1 is all zeros"),
        (np.eye(3), {"num_clusters": 4}, "num_clusters 4"),
        (np.eye(3), {"num_clusters": 0}, "num_clusters 0"),
        (np.eye(3), {"num_clusters": True}, "num_clusters True"),
        (np.eye(3), {"num_clusters": "5"}, "num_clusters '5'"),
        (np.eye(3), {"method": "dbscan"}, "dbscan"),
        (np.eye(3), {"seed": -1}, "seed -1"),
        (np.eye(3), {"whiten_power": 2}, "whiten_power 2"),
        (np.ones((3, 2)), {}, "collapsed"),
    ],
)
def test_what_cannot_be_clustered(x, options, message):
    with pytest.raises(UserError, match=message):
        pyspkv.cluster(x, **options)


def test_one_embedding_is_one_speaker():
    assert pyspkv.cluster(np.ones((1, 4))).tolist() == [0]


# ---- extract --audio, enrol, identify ---------------------------------------------------------------------------
def test_extract_audio_of_mixed_formats(made, model, tmp_path, monkeypatch, capsys):
    exp, _ = made
    rng, folder = np.random.default_rng(0), tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    names = ["a.wav", "b.FLAC", "deep/c.ogg", "deep/d.mp3", "e.aiff", "f.au", "g.caf", "h.w64", "silent.wav"]
    for i, name in enumerate(names):
        rate = [8000, 16000, 44100][i % 3]
        wave = 0.1 * rng.standard_normal((rate, 1 + i % 2)) * (name != "silent.wav")
        soundfile.write(folder / name, wave, rate)
    (folder / "notes.txt").write_text("no audio")
    (folder / ".hidden.wav").write_text("no audio")
    call(
        monkeypatch, extract, "--audio", folder, folder / "a.wav", "--model", exp, "--out", tmp_path / "x.npz"
    )
    said = capsys.readouterr()
    assert "9 recordings" in said.out and "silent.wav" in said.err
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert found["names"].tolist() == sorted(str(folder / n) for n in names)
        with pytest.warns(UserWarning):
            np.testing.assert_array_equal(found["x"], model.embed(found["names"].tolist()))
    (tmp_path / "none").mkdir()
    for words, message in (
        (["--audio", tmp_path / "none", "--out", tmp_path / "y.npz"], "contains no audio file"),
        (["--audio", folder / "notes.txt", "--out", tmp_path / "y.npz"], "notes.txt"),
        (["--audio", folder, "--out", tmp_path / "y"], "npz"),
    ):
        with pytest.raises(UserError, match=message):
            call(monkeypatch, extract, *words, "--model", exp)
    assert not list(tmp_path.glob("y*"))


def test_enrol_and_identify(made, model, tmp_path, monkeypatch, capsys):
    exp, data = made
    store, paths = tmp_path / "who.npz", paths_of(data)
    with pytest.raises(UserError, match="--model"):
        call(monkeypatch, enrol, "anna", paths[0], "--store", store)
    call(monkeypatch, enrol, "anna", *paths[:2], "--store", store, "--model", exp)
    call(monkeypatch, enrol, "bob b", paths[4], "--store", store)
    found = Store.read(store)
    assert found.names == ["anna", "bob b"] and found.recordings == [2, 1]
    unit = normalize(model.embed(paths[:2]))
    np.testing.assert_allclose(found.x[0], normalize(unit.mean(0)), atol=1e-6)
    capsys.readouterr()
    call(monkeypatch, identify, paths[4], "--store", store)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{paths[4]} bob b score 1.0000"
    want = float(found.x[0] @ normalize(model.embed(paths[4])))
    assert second.startswith(f"{paths[4]} anna score ") and float(second.split()[-1]) == pytest.approx(
        want, abs=1e-4
    )
    with pytest.raises(UserError, match="anna is already enrolled"):
        call(monkeypatch, enrol, "anna", paths[2], "--store", store)
    assert Store.read(store).recordings == [2, 1]
    call(monkeypatch, enrol, "anna", paths[2], "--store", store, "--replace")
    assert Store.read(store).recordings == [1, 1]


def test_a_store_is_bound_to_its_model(made, tmp_path, monkeypatch):
    exp, data = made
    store, path = tmp_path / "who.npz", paths_of(data)[0]
    shutil.copytree(exp / "finetune/model", tmp_path / "moved")
    call(monkeypatch, enrol, "anna", path, "--store", store, "--model", tmp_path / "moved")
    os.rename(tmp_path / "moved", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no such model"):
        call(monkeypatch, identify, path, "--store", store)
    call(monkeypatch, identify, path, "--store", store, "--model", tmp_path / "elsewhere")
    other = cfg.validate(EncoderConfig, {"name": "ecapa", "channels": 16, "mfa_channels": 24, "embed_dim": 8})
    checkpoint.save_import(tmp_path / "other", cfg.build(other), other, {})
    for command, words in ((enrol, ["bob", path]), (identify, [path])):
        with pytest.raises(UserError, match="another model"):
            call(monkeypatch, command, *words, "--store", store, "--model", tmp_path / "other")


def test_enrol_refuses_silence_and_odd_names(made, tmp_path, monkeypatch):
    exp, data = made
    soundfile.write(tmp_path / "s.wav", np.zeros(16000), 16000)
    store = tmp_path / "who.npz"
    with pytest.raises(UserError, match="no signal"):
        call(
            monkeypatch,
            enrol,
            "anna",
            paths_of(data)[0],
            tmp_path / "s.wav",
            "--store",
            store,
            "--model",
            exp,
        )
    with pytest.raises(UserError, match="cannot be a speaker"):
        call(monkeypatch, enrol, "a\nb", paths_of(data)[0], "--store", store, "--model", exp)
    assert not store.exists()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.mark.parametrize(
    "kind", ["text", "empty", "pickle", "keys", "shape", "nan", "cut", "names", "folder"]
)
def test_a_store_from_elsewhere(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = {
        "names": np.array(["a", "b"]),
        "x": np.eye(2, dtype=np.float32),
        "recordings": np.array([1, 1]),
        "model": np.array("m"),
        "digest": np.array("d"),
    }
    change = {
        "pickle": {"names": np.array([Bomb(), Bomb()], dtype=object)},
        "shape": {"x": np.eye(3, dtype=np.float32)},
        "nan": {"x": np.full((2, 2), np.nan, np.float32)},
        "names": {"names": np.array(["a", "a"])},
    }
    np.savez("s.npz", **good)
    assert Store.read("s.npz").names == ["a", "b"]
    if kind == "keys":
        del good["digest"]
    np.savez("s.npz", **good | change.get(kind, {}))
    if kind == "folder":
        os.unlink("s.npz")
        os.mkdir("s.npz")
    if kind in ("text", "empty"):
        Path("s.npz").write_text("names" * (kind == "text"))
    if kind == "cut":
        Path("s.npz").write_bytes(Path("s.npz").read_bytes()[:-40])
    with pytest.raises((UserError, IsADirectoryError), match="s.npz"):
        Store.read("s.npz")
    assert not Path("canary").exists()


def test_a_killed_enrolment_loses_nothing(made, tmp_path, monkeypatch):
    exp, data = made
    store, path = tmp_path / "who.npz", paths_of(data)[0]
    call(monkeypatch, enrol, "anna", path, "--store", store, "--model", exp)
    before = store.read_bytes()

    def die(f, **arrays):
        f.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", die)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, enrol, "bob", path, "--store", store)
    assert store.read_bytes() == before


# ---- export -----------------------------------------------------------------------------------------------------
def test_export_is_the_model_without_its_training(made, model, tmp_path, monkeypatch, capsys):
    exp, data = made
    shutil.copytree(exp, tmp_path / "exp")
    phase = tmp_path / "exp/finetune"
    Calibration(10.0, -5.0, 0.5, 0.5, "dev", 9, 9, 0.4).write(phase / "model/calibration.json")
    (phase / "score").mkdir()
    scored = {"eer": 5.25, "eer_ci_low": 4.0, "eer_ci_high": 6.5, "min_dcf_0.01": 0.321}
    (phase / "score/test.json").write_text(json.dumps(scored))
    before = os.umask(0o022)
    call(monkeypatch, export, tmp_path / "exp", tmp_path / "out")
    os.umask(before)
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    weights = {"ckpt-0/model.safetensors", "ckpt-0/state.json", "LATEST"}
    assert names == weights | {"config.yaml", "run.json", "calibration.json", "README.md"}
    held = set(checkpoint.tensors(tmp_path / "out/ckpt-0"))
    assert held == {f"encoder.{name}" for name in model.encoder.state_dict()}
    assert {oct(p.stat().st_mode & 0o777) for p in (tmp_path / "out").rglob("*") if p.is_file()} == {"0o644"}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    there = pyspkv.load(tmp_path / "out")
    np.testing.assert_array_equal(there.embed(paths_of(data)), model.embed(paths_of(data)))
    assert there.verify(*paths_of(data)[:2]).decision is not None
    card = (tmp_path / "out/README.md").read_text()
    record = json.loads((phase / "model/run.json").read_text())
    for text in (
        "12 utterances, 3 training classes",
        "| test | 5.25 | 4.00 to 6.50 | 0.321 |",
        record["git"] or "",
    ):
        assert text in card
    import yaml

    assert yaml.safe_load(card.split("---")[1])["license"] is None  # the user fills this in
    with pytest.raises(UserError, match="not empty"):
        call(monkeypatch, export, tmp_path / "exp", tmp_path / "out")


def test_a_model_card_of_hostile_words(tmp_path):
    from pyspkv.api import handover

    config = cfg.validate(EncoderConfig, {"name": "ecapa", "channels": 8, "mfa_channels": 12, "embed_dim": 6,
                                     "se_channels": 4, "n_mels": 20})  # fmt: skip
    record = {"command": ["a b", "```\n# Heading", "$(touch canary)"], "git": "<script>", "num_classes": []}
    checkpoint.save_import(tmp_path / "m", cfg.build(config), config, record)
    handover.export(str(tmp_path / "m"), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert (
        "<script>" not in card and "# Heading" not in card.splitlines() and "unknown training classes" in card
    )


def test_files_of_a_training_follow_the_umask(made):
    files = [p for p in (made[0] / "finetune/model").rglob("*") if p.is_file()]
    assert any(p.name == "optim.safetensors" for p in files)
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in files} == {p.name: "0o644" for p in files}


OTHER_USER = """
import os, sys
import numpy as np
import pyspkv
pyspkv.load(sys.argv[1]).embed(sys.argv[3])       # what is imported late is imported now: /root may be shut
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for model in sys.argv[1:3]:
    np.save(sys.stdout.buffer, pyspkv.load(model).embed(sys.argv[3]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_reads_trained_and_exported_models(made, model, monkeypatch):
    exp, data = made
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(exp / "finetune", f"{folder}/phase")  # copies keep the mode of the file
        shutil.copy(paths_of(data)[0], f"{folder}/a.wav")
        before = os.umask(0o022)
        call(monkeypatch, export, exp, f"{folder}/out")
        os.umask(before)
        words = [sys.executable, "-c", OTHER_USER, f"{folder}/phase", f"{folder}/out", f"{folder}/a.wav"]
        done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        want = model.embed(f"{folder}/a.wav")
        import io

        out = io.BytesIO(done.stdout)
        for _ in range(2):
            np.testing.assert_allclose(np.load(out), want, atol=1e-6)


# ---- disk -------------------------------------------------------------------------------------------------------
def test_disk_names_removable_files_and_the_rest_still_works(made, model, tmp_path, monkeypatch, capsys):
    exp, data = tmp_path / "it's exp", made[1]
    shutil.copytree(made[0], exp)
    call(monkeypatch, extract, "--model", exp / "finetune/model", "--data", data.path)
    (exp / "rooms").mkdir()
    (exp / "rooms/bank.npy").write_bytes(bytes(50_000))
    (exp / "finetune/log").mkdir()
    (exp / "finetune/log/train.log").write_text("x" * 9000)
    (exp / "log").mkdir()
    made_by = command_line("steps/extract.sh", exp / "finetune/model", "--data", "data/train")
    (exp / "log/commands").write_text(f"it's no command\n  {made_by}\n")
    (tmp_path / "far").mkdir()
    (tmp_path / "far/large").write_bytes(bytes(1_000_000))
    (exp / "linked").symlink_to(tmp_path / "far")
    parts = weigh(exp)
    files = [p for p in exp.rglob("*") if p.is_file() and not p.is_symlink()]
    inodes = {(s.st_ino): s.st_blocks * 512 for s in map(os.lstat, files)}
    total = sum(inodes.values())
    assert sum(part.bytes for part in parts.values()) == total < 1_000_000
    for kind in ("embeddings", "optimizers", "rooms", "logs"):
        assert parts[kind].free == parts[kind].bytes > 0, kind
    assert parts["models"].free == parts["other"].free == 0
    call(monkeypatch, disk_command, exp)
    said = capsys.readouterr().out
    assert f"    again:  {made_by}\n" in said
    removes = [line.partition("remove: ")[2] for line in said.splitlines() if "remove: " in line]
    assert len(removes) >= 4
    for line in removes:
        assert line.startswith("rm -r ")
        subprocess.run(["bash", "-c", line], check=True)
    assert sum(part.free for part in weigh(exp).values()) == 0
    assert (exp / "log/commands").is_file() and (tmp_path / "far/large").is_file()
    np.testing.assert_array_equal(pyspkv.load(exp).embed(paths_of(data)), model.embed(paths_of(data)))
    again = Trainer(cfg.load(TrainConfig, made[0].parent / "config.yaml"), data, exp / "finetune/model")
    again.run()  # as when run.sh is run again: it says that training has finished
    assert "already trained" in capsys.readouterr().out
    call(monkeypatch, disk_command, exp, "--json")
    assert json.loads(capsys.readouterr().out)["rooms"]["bytes"] == 0


def test_disk_keeps_what_an_unfinished_training_needs(made, tmp_path):
    exp = tmp_path / "exp"
    shutil.copytree(made[0], exp)
    state = checkpoint.latest(exp / "finetune/model") / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"done": False}))
    (exp / "rooms").mkdir()
    (exp / "rooms/bank.npy").write_bytes(bytes(50_000))
    parts = weigh(exp)
    for kind in ("optimizers", "rooms"):
        assert parts[kind].bytes > 0 == parts[kind].free and "not finished" in str(parts[kind].kept)
    with pytest.raises(UserError, match="no such experiment"):
        weigh(tmp_path / "no")
