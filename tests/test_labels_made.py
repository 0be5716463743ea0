"""Existing labels: bin.cluster and bin.seeded_cluster keep or refuse them; there is never more than one
writer.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from pyspkv.base.atomic import folder_lock
from pyspkv.base.errors import UserError
from pyspkv.bin import cluster, seeded_cluster
from pyspkv.data.ark import EmbeddingWriter
from pyspkv.data.datadir import DataDir

UTTS = [f"u{i:02d}" for i in range(60)]


def write_data(folder, utts, spk=None):
    DataDir(folder, utts, spk or utts, {u: f"/x/{u}.wav" for u in utts}).write(folder)


def write_embeddings(folder, seed=0, **made_by):
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(5, 8))
    with EmbeddingWriter(folder) as w:
        for i, u in enumerate(UTTS):
            w(u, center[i % 5] + 0.3 * rng.normal(size=8))
    if made_by:
        (folder / "made_by").write_text(json.dumps(made_by))


def state(folder):
    return {
        p.name: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.iterdir()
        if p.name != ".lock" and p.is_file()
    }


class Runs:
    """An experiment `root`: data, embeddings, labels in round1.

    A call runs bin.cluster and returns what it prints.
    """

    def __init__(self, root, patch, capsys):
        self.root, self.patch, self.capsys, self.main = root, patch, capsys, cluster.main
        self.given = {
            "embeddings": root / "embed/embedding.scp",
            "data": root / "data",
            "out_data": root / "round1/data",
            "num_clusters": 5,
        }

    def args(self, options):
        args = []
        for name, value in (self.given | options).items():
            name = f"--{name.replace('_', '-')}"
            for v in value if isinstance(value, list) else [value]:
                args += [] if v is None else [name] if v is True else [name, str(v)]
        return args

    def __call__(self, **options):
        self.patch.setattr("sys.argv", ["cluster", *self.args(options)])
        self.main()
        return self.capsys.readouterr().out


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    write_data(tmp_path / "data", UTTS)
    write_embeddings(tmp_path / "embed")
    return Runs(tmp_path, monkeypatch, capsys)


@pytest.fixture
def seeded(runs):
    write_data(runs.root / "labeled", UTTS[:10], [f"s{i % 5}" for i in range(10)])
    write_data(runs.root / "unlabeled", UTTS[10:])
    more = {"labeled_data": runs.root / "labeled", "unlabeled": runs.root / "unlabeled"}
    runs.given = {k: v for k, v in runs.given.items() if k in ("embeddings", "out_data")} | more
    runs.main = seeded_cluster.main
    return runs


def refused(runs, *words, **options):
    """The call is refused with all these words, and changes nothing."""
    before = {d: state(runs.root / d) for d in ("round1", "round1/data")}
    with pytest.raises(UserError) as err:
        runs(**options)
    assert {d: state(runs.root / d) for d in before} == before
    assert all(w in str(err.value) for w in ("hint:", *words)), err.value
    return str(err.value)


# ---- kept or refused --------------------------------------------------------------------------------------
def test_the_same_call_keeps_the_labels_and_the_report_names_their_inputs(runs):
    runs(previous=None)
    report = json.loads((runs.root / "round1/report.json").read_text())
    asked = report["asked"]
    assert {k: asked[k] for k in ("num_clusters", "method", "linkage", "metric", "whiten", "min_size")} == {
        "num_clusters": 5, "method": "kmeans-ahc", "linkage": "ward", "metric": "euclidean", "whiten": None,
        "min_size": 1,
    }  # fmt: skip
    assert {k: asked[k] for k in ("num_kmeans", "iterations", "seed", "previous")} == {
        "num_kmeans": 0, "iterations": 300, "seed": 0, "previous": None,
    }  # fmt: skip
    assert len(report["embeddings"]) == 1 and report["copies"] == 0
    before = state(runs.root / "round1/data"), state(runs.root / "round1")
    out = runs()
    assert out.startswith(f"kept: {runs.root}/round1/data") and "hand" not in out
    assert (state(runs.root / "round1/data"), state(runs.root / "round1")) == before
    assert "kept: " not in runs(out_data=runs.root / "round2/data", previous=runs.root / "round1/data")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_clusters": 6}, "was made with --num-clusters 5, now 6"),
        ({"num_clusters": "auto"}, "was made with --num-clusters 5, now auto"),
        ({"method": "ahc"}, "with --method kmeans-ahc, now ahc"),
        ({"linkage": "average"}, "with --linkage ward, now average"),
        ({"linkage": "average", "metric": "cosine"}, "--linkage ward, now average"),
        ({"whiten": 0.5}, "was made without --whiten, now with --whiten 0.5"),
        ({"min_size": 2}, "with --min-size 1, now 2"),
        ({"num_kmeans": 30}, "with --num-kmeans 0, now 30"),
        ({"iterations": 5}, "with --iterations 300, now 5"),
        ({"seed": 1}, "with --seed 0, now 1"),
        ({"previous": "data"}, "was made without --previous, now with"),
    ],
)
def test_other_options_are_refused(runs, options, words):
    runs()
    if "previous" in options:
        options = {"previous": runs.root / "data"}
    refused(
        runs, words.replace("now with --whiten 0.5", "now 0.5"), "rm -r", str(runs.root / "round1"), **options
    )


def test_one_option_less_is_refused_too(runs):
    runs(whiten=0.5, previous=runs.root / "data")
    refused(runs, "was made with --whiten 0.5, now without", previous=runs.root / "data")
    refused(runs, "was made with --previous, now without", whiten=0.5)
    write_data(runs.root / "other", UTTS, ["a", "b"] * 30)
    refused(runs, "another --previous", whiten=0.5, previous=runs.root / "other")


def test_other_embeddings_or_data_are_refused(runs):
    runs()
    write_embeddings(runs.root / "embed", seed=1)
    text = refused(runs, "embed/embedding.scp", "the model or the audio has changed")
    assert f"rm -r {runs.root}/round1" in text
    for later in ("round3", "round2", "round12"):
        (runs.root / later).mkdir()
    rounds = " ".join(str(runs.root / f"round{r}") for r in (1, 2, 3, 12))
    assert f"rm -r {rounds}" in refused(runs), "in order, with those that rest on it"
    write_embeddings(runs.root / "embed")
    runs()
    scp = runs.root / "embed/embedding.scp"
    refused(runs, "from 1 --embeddings, now 2", embeddings=[scp, scp])
    text = (runs.root / "data/wav.scp").read_text()
    (runs.root / "data/wav.scp").write_text(text.replace("/x/", "/elsewhere/"))
    refused(runs, "another --data")
    (runs.root / "data/wav.scp").write_text(text)
    assert "kept: " in runs()
    write_data(runs.root / "data", UTTS[1:])
    refused(runs, "another --data")


def test_an_scp_that_gives_utterances_each_others_embeddings_is_another(runs):
    runs()
    scp = runs.root / "embed/embedding.scp"
    lines = [line.split() for line in scp.read_text().splitlines()]
    scp.write_text("".join(f"{a[0]} {b[1]}\n" for a, b in zip(lines, [lines[1], lines[0], *lines[2:]])))
    refused(runs, "embedding.scp")


def test_an_experiment_may_be_moved_and_extracted_again(runs, tmp_path):
    """The same embeddings in another place, with another record or none, count as the same."""
    write_embeddings(runs.root / "embed", model="abc", out=str(runs.root), bytes=[1, 2])
    runs()
    moved = tmp_path / "moved"
    for part in ("data", "round1"):
        shutil.copytree(runs.root / part, moved / part)
    there = {
        "out_data": moved / "round1/data",
        "embeddings": moved / "embed/embedding.scp",
        "data": moved / "data",
    }
    for record in (
        {"model": "abc", "out": str(moved), "bytes": [9, 9]},
        {"model": "x", "audio": "touched"},
        {},
    ):
        shutil.rmtree(moved / "embed", ignore_errors=True)
        write_embeddings(moved / "embed", **record)
        assert f"kept: {moved}" in runs(**there)
    write_embeddings(moved / "embed", seed=1, model="abc2")
    with pytest.raises(UserError, match="other embeddings"):
        runs(**there)


def test_a_record_of_the_extraction_spares_reading_the_embeddings(runs):
    write_embeddings(runs.root / "embed", model="abc")
    runs()
    (runs.root / "embed/embedding.ark").unlink()
    assert "kept: " in runs()
    (runs.root / "embed/made_by").write_text("[not JSON")
    with pytest.raises(UserError, match="embedding.ark"):
        runs()


# ---- what people do by hand -------------------------------------------------------------------------------
def test_labels_edited_by_hand_are_kept_and_other_options_refused_all_the_same(runs):
    runs()
    file = runs.root / "round1/data/utt2spk"
    file.write_text(file.read_text().replace("c00003", "c00002"))
    edited = file.read_bytes()
    out = runs()
    assert "kept: " in out and "edited by hand" in out and file.read_bytes() == edited
    refused(runs, "--num-clusters 5, now 7", num_clusters=7)


@pytest.mark.parametrize("report", [None, "{}", '{"num_clusters": 4, "method": "ahc", "seed": 0}'])
def test_labels_without_a_report_are_kept_with_a_message(runs, report):
    """There is no report, or one of an older version that does not say what the labels were made from."""
    write_data(runs.root / "round1/data", UTTS, ["x", "y"] * 30)
    if report:
        (runs.root / "round1/report.json").write_text(report)
    before = state(runs.root / "round1/data")
    out = runs()
    assert "kept: " in out and "does not say how it was made" in out and "report.json" in out
    assert state(runs.root / "round1/data") == before and not (runs.root / "round1/.lock").exists()


@pytest.mark.parametrize(
    "text",
    [b"", b"[1]", b"null", b'"x"', b"{", b"\xff\xfe", b'{"asked": 3, "embeddings": []}',
     b'{"asked": {}, "embeddings": 4}', b'{"asked": {}, "embeddings": ["x"]}', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_report_is_refused_with_the_command_that_keeps_the_labels(runs, text):
    runs()
    file = runs.root / "round1/report.json"
    file.write_bytes(text)
    error = refused(runs, "report.json", "damaged")
    command = error.split("hint: ")[1].split(" (")[0]
    subprocess.run(shlex.split(command), check=True)
    assert "kept: " in runs()


def test_the_hint_to_remove_works_for_any_folder_name(tmp_path, monkeypatch, capsys):
    root = tmp_path / "a b'$(touch x)"
    write_data(root / "data", UTTS)
    write_embeddings(root / "embed")
    runs = Runs(root, monkeypatch, capsys)
    for out in ("round1/data", "labels/mine"):
        runs(out_data=root / out)
        with pytest.raises(UserError) as err:
            runs(out_data=root / out, seed=3)
        command = str(err.value).rpartition("\n  hint: ")[2]
        subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
        assert not (tmp_path / "x").exists() and (root / "data/utt2spk").exists()
        assert "kept: " not in runs(out_data=root / out, seed=3)


def test_keeping_imports_nothing_heavy(runs):
    runs()
    code = (
        "import sys; from pyspkv.bin import cluster; cluster.main();"
        "assert not {'torch', 'scipy', 'sklearn', 'matplotlib', 'kaldiio'} & set(sys.modules), sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *runs.args({})], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("kept: "), done.stderr


# ---- one at a time, killed in the middle --------------------------------------------------------------------
def test_a_second_clustering_into_one_place_is_refused(runs):
    with folder_lock(runs.root / "round1"), pytest.raises(UserError, match="another process is writing"):
        runs()
    assert sorted(p.name for p in (runs.root / "round1").iterdir()) == [".lock"]
    runs()
    with folder_lock(runs.root / "round1"):
        assert "kept: " in runs(), "what is whole may be asked for"
        refused(runs, "now 6", num_clusters=6)


def test_of_two_concurrent_runs_one_is_refused_and_the_other_completes(runs):
    """The first process stops before it writes.

    The second one is refused. The first continues and writes everything.
    """
    code = (
        "import sys, pyspkv.clustering.round as r; write = r.write_round\n"
        "def wait(*a): print('ready', flush=True); sys.stdin.readline(); write(*a)\n"
        "r.write_round = wait\n"
        "from pyspkv.bin import cluster; cluster.main()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, *runs.args({})], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert first.stdout.readline() == b"ready\n"
        for num in (5, 6):
            with pytest.raises(UserError, match="another process is writing here.*pid"):
                runs(num_clusters=num)
        first.communicate(b"\n", timeout=60)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 0 and len(set(DataDir.read(runs.root / "round1/data").spk)) == 5
    assert "kept: " in runs()


@pytest.mark.parametrize("where", ["round.write_round", "datadir.DataDir.write", "kmeans._save"])
def test_killed_at_any_moment_the_next_run_makes_the_same(runs, where):
    options = {"num_kmeans": 30}
    runs(**options)
    want = (runs.root / "round1/data/utt2spk").read_bytes()
    shutil.rmtree(runs.root / "round1")
    module = {"datadir": "pyspkv.data.datadir"}.get(
        where.split(".")[0], f"pyspkv.clustering.{where.split('.')[0]}"
    )
    code = (
        f"import os, {module} as {where.split('.')[0]}\nold = {where}\n"
        f"def die(*a, **k): 'kmeans' in {where!r} and old(*a, **k); os.kill(os.getpid(), 9)\n"
        f"{where} = die\nfrom pyspkv.bin import cluster; cluster.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *runs.args(options)], capture_output=True)
    assert done.returncode == -signal.SIGKILL and not (runs.root / "round1/data").exists()
    runs(**options)
    assert (runs.root / "round1/data/utt2spk").read_bytes() == want
    assert not list((runs.root / "round1").glob("*.npz")) and "kept: " in runs(**options)


def test_wrong_input_leaves_no_folder_and_no_lock(runs):
    with pytest.raises(UserError, match="--min-size"):
        runs(num_clusters=30, min_size=50)
    assert not (runs.root / "round1").exists()
    (runs.root / "round1").mkdir()
    (runs.root / "round1/notes").write_text("mine")
    with pytest.raises(UserError, match="--min-size"):
        runs(num_clusters=30, min_size=50)
    assert (runs.root / "round1/notes").read_text() == "mine"


# ---- figures ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "figure", ["9" * 5000, "1" * 30, "c²", "²", "1_0", "-3", "0", "٣", "3.0", "", "nan", "Auto"]
)
def test_an_invalid_number_of_clusters_is_an_error_of_one_line(runs, figure):
    with pytest.raises(UserError) as err:
        runs(num_clusters=figure)
    assert "--num-clusters" in str(err.value) and len(str(err.value)) < 200


def test_more_clusters_than_utterances_are_refused_before_the_embeddings_are_read(runs):
    with pytest.raises(UserError, match="--num-clusters 61 is more than the 60"):
        runs(num_clusters=61, embeddings=os.devnull)


def test_speakers_of_the_previous_round_may_be_called_anything(runs):
    """Names with numbers that are too long, not ASCII or ambiguous were not given by label_round."""
    runs()
    own = DataDir.read(runs.root / "round1/data").spk
    for i, name in enumerate(("c" + "9" * 5000, "c" + "1" * 30, "c²", "c٣", "c", "c-1", "c7", "c00002")):
        spk = [{"c00000": name, "c00001": "c2"}.get(s, s) for s in own]
        write_data(runs.root / f"previous{i}", UTTS, spk)
        out = runs.root / f"next{i}/data"
        runs(out_data=out, previous=runs.root / f"previous{i}")
        found = DataDir.read(out).spk
        assert len(set(found)) == 5 and len(set(zip(found, own))) == 5
        stability = json.loads((out.parent / "report.json").read_text())["stability"]
        assert stability["ami"] == pytest.approx(1 if name != "c00002" else stability["ami"])
    assert set(own) == {f"c0000{k}" for k in range(5)}


def test_copies_are_warned_of_and_counted(runs, caplog):
    with EmbeddingWriter(runs.root / "embed") as w:
        rng = np.random.default_rng(0)
        for i, u in enumerate(UTTS):
            w(u, np.ones(8) if i in (3, 5, 40) else rng.normal(size=8))
    runs()
    assert "3 utterances have the same embedding as another: u03, u05, u40" in caplog.text
    assert json.loads((runs.root / "round1/report.json").read_text())["copies"] == 3


# ---- from a few labels ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "propagation"}, "with --method constrained, now propagation"),
        ({"match_released_code": True}, "without --match-released-code, now with --match-released-code"),
        ({"whiten": 0.5}, "without --whiten, now 0.5"),
        ({"neighbors": 7}, "with --neighbors 15, now 7"),
        ({"label_noise": 0.2}, "with --label-noise 0.0, now 0.2"),
        ({"seed": 2}, "with --seed 0, now 2"),
        ({"with_labeled": True}, "without --with-labeled, now with"),
    ],
)
def test_seeded_labels_are_kept_or_refused_likewise(seeded, options, words):
    assert "kept: " not in seeded()
    assert "kept: " in seeded()
    refused(seeded, words, **options)
    with folder_lock(seeded.root / "round2"), pytest.raises(UserError, match="another process"):
        seeded(out_data=seeded.root / "round2/data")
    assert "hand" not in seeded(out_data=seeded.root / "round3/data", **options)
    assert (
        "hand" not in (again := seeded(out_data=seeded.root / "round3/data", **options)) and "kept: " in again
    )


def test_seeded_labels_of_other_labels_or_embeddings_are_refused(seeded):
    seeded()
    spk = [f"s{i % 5}" for i in range(10)]
    write_data(seeded.root / "labeled", UTTS[:10], spk[:-1] + ["s1"])
    refused(seeded, "another --labeled-data")
    write_data(seeded.root / "labeled", UTTS[:10], spk)
    write_data(seeded.root / "unlabeled", UTTS[11:])
    refused(seeded, "another --unlabeled")
    write_data(seeded.root / "unlabeled", UTTS[10:], ["any"] * 50)
    assert "kept: " in seeded(), "its speakers are not used"
    write_embeddings(seeded.root / "embed", seed=4)
    refused(seeded, "other embeddings")
