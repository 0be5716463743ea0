"""python -m pyspkv.bin.cluster: embeddings in, a round's data directory and its report out."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pyspkv.base.errors import UserError
from pyspkv.bin import cluster
from pyspkv.clustering import pipeline, quality
from pyspkv.clustering.options import Options
from pyspkv.clustering.round import make_round
from pyspkv.data.ark import EmbeddingWriter
from pyspkv.data.datadir import DataDir

NUM = 400


def run(*args, ok=True):
    done = subprocess.run(
        [sys.executable, "-m", "pyspkv.bin.cluster", *map(str, args)], capture_output=True, text=True
    )
    assert (done.returncode == 0) == ok, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("cluster")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 20, NUM)
    x = rng.normal(size=(20, 24))[truth] + 0.4 * rng.normal(size=(NUM, 24))
    utts = [f"utt{i:04d}" for i in range(NUM)]
    data = DataDir(root / "data", utts, utts, {u: f"/x/{u}.wav" for u in utts})
    data.utt_tables["utt2dur"] = dict.fromkeys(utts, "2.5")
    data.write(root / "data")
    with EmbeddingWriter(root / "embed") as w:
        for u, e in zip(utts[::-1], x[::-1]):  # the order differs from the data directory's
            w(u, e)
    with EmbeddingWriter(
        root / "rows"
    ) as w:  # three rows per utterance with different lengths and the same direction
        for u, e in zip(utts, x):
            w(u, np.stack([e, 5 * e, 0.1 * e]))
    (root / "truth").write_text("".join(f"{u} s{t}\n" for u, t in zip(utts, truth)))
    (root / "data" / "utt2spk_true").write_text("nonsense that nobody may read\n")
    return root, utts, truth


def test_a_round_its_report_and_the_next_round(made, tmp_path):
    root, utts, truth = made
    base = ["--embeddings", root / "embed/embedding.scp", "--data", root / "data", "--num-kmeans", 80]
    done = run(*base, "--out-data", tmp_path / "round1/data", "--num-clusters", 20, "--truth", root / "truth")
    assert done.stdout.strip().splitlines()[-1].endswith(str(tmp_path / "round1/data"))
    assert "GiB" in done.stderr
    data = DataDir.read(tmp_path / "round1/data")
    assert (
        data.utts == utts
        and data.utt_tables["utt2dur"]["utt0000"] == "2.5"
        and data.wav["utt0003"] == "/x/utt0003.wav"
    )
    assert len(set(data.spk)) == 20 and all(len(s) == 6 and s[0] == "c" for s in data.spk)
    report = json.loads((tmp_path / "round1/report.json").read_text())
    assert report["num_clusters"] == 20 and report["sizes"]["num_utts"] == NUM
    assert report["label_hash"] == data.label_hash()
    codes = [int(s[1:]) for s in data.spk]
    pairs = set(zip(codes, truth.tolist()))
    assert report["diagnostics"]["nmi"] == pytest.approx(1, abs=1e-9) if len(pairs) == 20 else True
    assert report["diagnostics"]["nmi"] > 0.97 and report["quality"]["silhouette"] > 0.5
    assert not (tmp_path / "round1/data/utt2spk_true").exists()

    again = tmp_path / "again/data"
    run(*base, "--out-data", again, "--num-clusters", 20)
    assert (again / "utt2spk").read_bytes() == (tmp_path / "round1/data/utt2spk").read_bytes()
    assert "diagnostics" not in json.loads((tmp_path / "again/report.json").read_text())

    run(*base, "--out-data", tmp_path / "round2/data", "--num-clusters", 22, "--seed", 1,
        "--previous", tmp_path / "round1/data", "--method", "ahc", "--report", tmp_path / "r2.json")  # fmt: skip
    second, report = DataDir.read(tmp_path / "round2/data"), json.loads((tmp_path / "r2.json").read_text())
    kept = np.mean([a == b for a, b in zip(data.spk, second.spk)])
    assert kept == pytest.approx(report["stability"]["kept"]) and kept > 0.85
    assert {"c00020", "c00021"} <= set(second.spk)


def test_a_round_from_python_is_the_one_of_the_command(made, tmp_path, capsys):
    root, _, _ = made
    scp, data = str(root / "embed/embedding.scp"), root / "data"
    run(
        "--embeddings",
        scp,
        "--data",
        data,
        "--num-clusters",
        20,
        "--min-size",
        15,
        "--out-data",
        tmp_path / "a/data",
    )
    options = Options(num_clusters=20, min_size=15)
    drawn = []
    report = make_round([scp], data, tmp_path / "b/data", options, draw=lambda r, path: drawn.append(path))
    for name in ("utt2spk", "wav.scp", "spk2utt", "utt2dur"):
        assert (tmp_path / "a/data" / name).read_bytes() == (tmp_path / "b/data" / name).read_bytes()
    assert drawn == [tmp_path / "b/report.json"]
    there = json.loads(drawn[0].read_text())
    assert there["dropped_utts"] == NUM - len(DataDir.read(tmp_path / "b/data").utts) > 0
    assert json.loads(json.dumps(report)) == there
    capsys.readouterr()
    assert make_round([scp], data, tmp_path / "b/data", options) is None, "what stands is kept"
    assert capsys.readouterr().out.startswith("kept: ")
    with pytest.raises(UserError, match="was made with --min-size 15, now 1"):
        make_round([scp], data, tmp_path / "b/data", Options(num_clusters=20))


def test_rows_are_averaged_after_normalization(made, tmp_path):
    root, _, _ = made
    for name in ("embed", "rows"):
        run("--embeddings", root / name / "embedding.scp", "--data", root / "data", "--num-clusters", 20,
            "--out-data", tmp_path / name / "data", "--method", "ahc")  # fmt: skip
    assert (tmp_path / "embed/data/utt2spk").read_bytes() == (tmp_path / "rows/data/utt2spk").read_bytes()


def test_several_models_have_equal_weight(made, tmp_path):
    """The two models are halves of the axes with different lengths.

    The result equals one set of embeddings whose halves are
    normalized separately.
    """
    from pyspkv.data.ark import read_embeddings

    root, utts, truth = made
    x = read_embeddings(root / "embed/embedding.scp")
    halves = [x.x[:, :8], 5 * x.x[:, 8:]]
    both = np.concatenate([h / np.linalg.norm(h, axis=1, keepdims=True) for h in halves], 1)
    for name, part in (("a", halves[0]), ("b", halves[1]), ("both", both)):
        with EmbeddingWriter(tmp_path / name) as w:
            for u, e in zip(x.ids, part):
                w(u, e)
    found = {}
    for names in (["a"], ["a", "b"], ["both"]):
        scps = [v for n in names for v in ("--embeddings", tmp_path / n / "embedding.scp")]
        out = tmp_path / "-".join(names) / "data"
        run(*scps, "--data", root / "data", "--num-clusters", 20, "--out-data", out)
        found["-".join(names)] = DataDir.read(out, need_wav=False).spk
    assert found["a-b"] == found["both"]
    ami = {n: quality.diagnostics(spk, [str(t) for t in truth])["ami"] for n, spk in found.items()}
    assert ami["a-b"] > ami["a"] + 0.03


def test_small_clusters_are_dropped_and_auto_reports_its_curve(made, tmp_path):
    root, _, _ = made
    base = ["--embeddings", root / "embed/embedding.scp", "--data", root / "data"]
    run(*base, "--out-data", tmp_path / "a/data", "--num-clusters", 60, "--method", "ahc", "--min-size", 5)
    report = json.loads((tmp_path / "a/report.json").read_text())
    data = DataDir.read(tmp_path / "a/data")
    assert report["dropped_utts"] > 0 and len(data.utts) == NUM - report["dropped_utts"]
    assert report["sizes"]["size_min"] >= 5 and report["num_clusters"] == 60 - report["dropped_clusters"]
    run(*base, "--out-data", tmp_path / "b/data")
    report = json.loads((tmp_path / "b/report.json").read_text())
    assert 17 <= report["num_clusters"] <= 24 and len(report["auto"]) > 20
    assert (tmp_path / "b/report.num_clusters.png").read_bytes().startswith(b"\x89PNG")


def test_a_factor_on_the_estimated_number(made, tmp_path):
    root, _, _ = made
    found = {}
    for factor in ("auto", "auto*1.25", "auto*100"):
        for method in ("kmeans-ahc", "kmeans", "ahc"):
            options = Options(num_clusters=factor, method=method, num_kmeans=90)
            out = tmp_path / f"{factor}-{method}"
            report = make_round([root / "embed/embedding.scp"], root / "data", out / "data", options)
            assert report["num_clusters"] == report["num_clusters_chosen"]
            found[factor, method] = report
    for method, most in (("kmeans-ahc", 90), ("kmeans", 400), ("ahc", 400)):
        estimate = found["auto", method]["num_clusters"]
        assert "num_clusters_estimate" not in found["auto", method] and 17 <= estimate <= 24
        more, all_of_them = found["auto*1.25", method], found["auto*100", method]
        assert more["num_clusters_estimate"] == estimate and more["num_clusters"] == round(1.25 * estimate)
        assert more["auto"] == found["auto", method]["auto"] and more["asked"]["num_clusters"] == "auto*1.25"
        assert all_of_them["num_clusters"] == most


@pytest.mark.parametrize(
    ("given", "taken"),
    [("auto", "auto"), ("auto*1", "auto"), ("auto*1.250", "auto*1.25"), ("auto*0.5", "auto*0.5"), ("007", 7)],
)
def test_ways_to_give_the_number_of_clusters(given, taken):
    argv = ["--embeddings", "e", "--data", "d", "--out-data", "o", "--num-clusters", given]
    assert cluster.parse(argv).num_clusters == taken


@pytest.mark.parametrize(
    "given",
    ["auto*", "auto*0", "auto*0.09", "auto*101", "auto*1e1", "auto*-2", "auto*nan", "auto * 2", "auto*1.25x", "2*auto",
     "auto*.5", "Auto", "0", "-3", "1.5", "١٢", "auto*" + "9" * 60],
)  # fmt: skip
def test_other_numbers_of_clusters_are_refused(given):
    argv = ["--embeddings", "e", "--data", "d", "--out-data", "o", f"--num-clusters={given}"]
    with pytest.raises(
        UserError, match=r"--num-clusters .*: a number from 1 to 999999999, auto, or auto\*F"
    ) as err:
        cluster.parse(argv)
    assert "auto*1.25" in str(err.value) and len(str(err.value)) < 300


def test_the_labels_come_last_and_never_over_their_source(made, tmp_path, monkeypatch):
    """A run killed before the labels are written leaves the report only; the next run makes both."""
    root, _, _ = made
    base = ["--embeddings", root / "embed/embedding.scp", "--data", root / "data", "--num-clusters", 20]
    done = run(*base, "--out-data", root / "data", ok=False)
    assert "the same directory as --data" in done.stderr

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(DataDir, "write", killed)
    monkeypatch.setattr("sys.argv", ["cluster", *map(str, base), "--out-data", str(tmp_path / "data")])
    with pytest.raises(KeyboardInterrupt):
        cluster.main()
    assert (tmp_path / "report.json").exists() and not (tmp_path / "data").exists()


def test_a_killed_clustering_goes_on_and_leaves_no_state(made, tmp_path, monkeypatch):
    root, _, _ = made
    base = ["--embeddings", root / "embed/embedding.scp", "--data", root / "data", "--num-clusters", 20]
    base += ["--method", "kmeans-ahc", "--num-kmeans", 60]
    run(*base, "--out-data", tmp_path / "whole/data")
    state, tree = tmp_path / "killed/data.kmeans.npz", pipeline.ahc

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "ahc", killed)
    monkeypatch.setattr("sys.argv", ["cluster", *map(str, base), "--out-data", str(tmp_path / "killed/data")])
    with pytest.raises(KeyboardInterrupt):
        cluster.main()
    assert state.exists()
    monkeypatch.setattr(pipeline, "ahc", tree)
    cluster.main()
    assert not state.exists()
    for file in ("whole", "killed"):
        assert (tmp_path / file / "data/utt2spk").read_text() == (tmp_path / "whole/data/utt2spk").read_text()
    assert (
        "is not a whole number from 0"
        in run(*base, "--out-data", tmp_path / "x", "--seed", "-1", ok=False).stderr
    )


def test_wrong_input_says_what_and_leaves_nothing(made, tmp_path):
    root, utts, _ = made
    scp = root / "embed/embedding.scp"
    out = tmp_path / "out/data"
    less = tmp_path / "less.scp"
    less.write_text("".join(line for line in scp.read_text().splitlines(True) if "utt0007" not in line))
    zero = tmp_path / "zero"
    with EmbeddingWriter(zero) as w:
        for i, u in enumerate(utts):
            w(u, np.zeros(24) if i == 5 else np.ones(24))
    truth = tmp_path / "truth"
    truth.write_text("utt0000 s1\n")
    same = tmp_path / "same"
    with EmbeddingWriter(same) as w:
        for u in utts:
            w(u, np.arange(1.0, 25.0))
    for args, words in (
        (
            ["--embeddings", same / "embedding.scp", "--data", root / "data", "--whiten", 0.5],
            ["one way", "collapsed"],
        ),
        (
            ["--embeddings", less, "--data", root / "data", "--num-clusters", 5],
            ["less.scp", "utt0007", "extract the embeddings"],
        ),
        (
            ["--embeddings", zero / "embedding.scp", "--data", root / "data", "--num-clusters", 5],
            ["utt0005", "zeros"],
        ),
        (["--embeddings", scp, "--data", root / "data", "--num-clusters", 401], ["401", "400"]),
        (
            ["--embeddings", scp, "--data", root / "data", "--num-clusters", 50, "--num-kmeans", 20],
            ["--num-kmeans 20"],
        ),
        (
            ["--embeddings", scp, "--data", root / "data", "--num-clusters", 5, "--truth", truth],
            ["utt0001", "truth"],
        ),
        (
            ["--embeddings", scp, "--data", root / "data", "--num-clusters", 9, "--min-size", 999],
            ["--min-size"],
        ),
        (["--embeddings", scp, "--data", root / "data", "--num-clusters", "many"], ["many"]),
        (["--embeddings", scp, "--data", root / "data", "--num-clusters", 5, "--metric", "cosine"], ["ward"]),
        (["--embeddings", tmp_path / "none.scp", "--data", root / "data", "--num-clusters", 5], ["none.scp"]),
    ):
        done = run(*args, "--out-data", out, ok=False)
        assert all(w in done.stderr for w in words), done.stderr
        assert not out.parent.exists()
