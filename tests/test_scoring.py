"""Scores against plain loops, one trial at a time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyspkv import scoring
from pyspkv.bin import score as cli
from pyspkv.embeddings import EmbeddingWriter
from pyspkv.errors import UserError


def write(folder, entries):
    with EmbeddingWriter(folder) as w:
        for utt, x in entries.items():
            w(utt, x)
    return str(folder / "embedding.scp")


def cos(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def pairwise(a, b):
    a, b = np.atleast_2d(a).astype(np.float64), np.atleast_2d(b).astype(np.float64)
    return np.mean([cos(x, y) for x in a for y in b])


def plain_as_norm(a, b, cohort, top_n):
    """One trial, as the paper writes it; the cohort entries may be matrices too."""
    s = pairwise(a, b)
    out = 0.0
    for side in (a, b):
        top = sorted((pairwise(side, c) for c in cohort), reverse=True)[:top_n]
        out += (s - np.mean(top)) / np.std(top) / 2
    return out


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    def run(trials, **options):
        (tmp_path / "trials").write_text("".join(f"{e} {t} nontarget\n" for e, t in trials))
        argv = ["score", "--trials", str(tmp_path / "trials"), "--out", str(tmp_path / "out")]
        for key, value in options.items():
            argv += ["--" + key.replace("_", "-"), *map(str, value if isinstance(value, list) else [value])]
        monkeypatch.setattr("sys.argv", argv)
        cli.main()
        lines = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
        assert [(e, t) for e, t, _ in lines] == list(trials)
        return np.array([float(s) for _, _, s in lines]), capsys.readouterr().out

    return run


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 200), st.integers(0, 99))
def test_cosine_by_gather_and_by_product_is_the_plain_loop(num_e, num_t, n, seed):
    rng = np.random.default_rng(seed)
    e = rng.standard_normal((num_e, 5)).astype(np.float32)
    t = rng.standard_normal((num_t, 5)).astype(np.float32)
    i, j = rng.integers(num_e, size=n), rng.integers(num_t, size=n)
    want = [float(e[a].astype(float) @ t[b]) for a, b in zip(i, j)]
    np.testing.assert_allclose(scoring.cosine(e, t, i, j), want, atol=1e-5)


def test_cosine_over_block_borders(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3)).astype(np.float32)
    i, j = rng.integers(40, size=(2, 1000))
    want = (x @ x.T)[i, j]
    for block in (7, 1000):  # 1000 trials fill 40 x 40: by product; 300 do not: gathered
        monkeypatch.setattr(scoring, "BLOCK", block)
        np.testing.assert_allclose(scoring.cosine(x, x, i, j), want, atol=1e-6)
        np.testing.assert_allclose(scoring.cosine(x, x, i[:300], j[:300]), want[:300], atol=1e-6)


def test_matrix_entries_are_the_mean_of_pairwise_cosines(tmp_path, call):
    rng = np.random.default_rng(1)
    entries = {f"u{k}": rng.standard_normal((k + 1, 4)) for k in range(4)} | {"v": rng.standard_normal(4)}
    scp = write(tmp_path / "e", entries)
    trials = [(a, b) for a in entries for b in entries]
    got, _ = call(trials, enrol=scp, test=scp)
    np.testing.assert_allclose(got, [pairwise(entries[a], entries[b]) for a, b in trials], atol=1e-6)


def test_enrolment_models_and_utterances_side_by_side(tmp_path, call):
    rng = np.random.default_rng(2)
    enrol = {f"e{k}": 10.0**k * rng.standard_normal(4) for k in range(4)}
    test = {f"t{k}": rng.standard_normal(4) for k in range(3)}
    (tmp_path / "map").write_text("m1 e0 e1 e2\nm2 e3\n")
    trials = [(e, t) for e in ("m1", "m2", "e1") for t in test]
    scps = {"enrol": write(tmp_path / "e", enrol), "test": write(tmp_path / "t", test)}
    got, _ = call(trials, enrol_map=tmp_path / "map", **scps)
    unit = {k: v / np.linalg.norm(v) for k, v in enrol.items()}
    models = {"m1": (unit["e0"] + unit["e1"] + unit["e2"]) / 3, "m2": unit["e3"], "e1": unit["e1"]}
    np.testing.assert_allclose(got, [cos(models[e], test[t]) for e, t in trials], atol=1e-6)
    (tmp_path / "map").write_text("m1 e0 nobody\nm2 e3\n")
    with pytest.raises(UserError, match="1 ids have no embedding but are listed: nobody"):
        call(trials, enrol_map=tmp_path / "map", **scps)


@pytest.mark.parametrize("matrices", [False, True])
def test_as_norm_with_mean_is_the_plain_loop(tmp_path, call, matrices):
    rng = np.random.default_rng(3)
    shape = (2, 16) if matrices else (16,)
    x = {f"u{k:02d}": 1 + rng.standard_normal(shape) for k in range(12)}
    cohort = {f"c{k:02d}": 1 + rng.standard_normal(shape) for k in range(40)}
    trials = [(f"u{a:02d}", f"u{b:02d}") for a in range(6) for b in range(4, 12)]
    u, c = write(tmp_path / "u", x), write(tmp_path / "c", cohort)
    mean = np.concatenate([np.atleast_2d(v) for v in cohort.values()]).mean(0)
    np.save(tmp_path / "mean.npy", mean)
    want = [
        plain_as_norm(x[a] - mean, x[b] - mean, [v - mean for v in cohort.values()], 10) for a, b in trials
    ]
    for given_mean in (c, tmp_path / "mean.npy"):
        got, said = call(trials, enrol=u, test=u, cohort=c, top_n=10, mean=given_mean)
        np.testing.assert_allclose(got, want, atol=1e-5)
        assert "cohort: 40 utterances" in said
    # the two sides from different files: statistics are computed for each
    copy = write(tmp_path / "copy", x)
    np.testing.assert_allclose(
        call(trials, enrol=copy, test=u, cohort=c, top_n=10, mean=c)[0], want, atol=1e-5
    )


def test_cohort_of_pseudo_speakers(tmp_path, call):
    rng = np.random.default_rng(4)
    x = {f"u{k}": rng.standard_normal(8) for k in range(4)}
    cohort = {f"c{k:02d}": 3 * rng.random() * rng.standard_normal(8) for k in range(30)}
    cohort["unlabelled"] = np.ones(8)
    spk = {utt: f"spk{k % 7}" for k, utt in enumerate(cohort) if utt != "unlabelled"}
    (tmp_path / "utt2spk").write_text("".join(f"{u} {s}\n" for u, s in sorted(spk.items())))
    u, c = write(tmp_path / "u", x), write(tmp_path / "c", cohort)
    trials = [("u0", "u1"), ("u2", "u3")]
    got, said = call(trials, enrol=u, test=u, cohort=c, cohort_utt2spk=tmp_path / "utt2spk", top_n=5)
    means = [
        np.mean([v / np.linalg.norm(v) for k, v in cohort.items() if spk.get(k) == f"spk{s}"], 0)
        for s in range(7)
    ]
    np.testing.assert_allclose(got, [plain_as_norm(x[a], x[b], means, 5) for a, b in trials], atol=1e-5)
    assert "cohort: 7 (pseudo-)speakers" in said


def test_several_sets_give_the_mean_of_their_scores(tmp_path, call):
    """The paper's scoring: crops [n, D] and the whole utterance."""
    rng = np.random.default_rng(3)
    whole = write(tmp_path / "whole", {u: rng.standard_normal(4) for u in "abc"})
    crops = write(tmp_path / "crops", {u: rng.standard_normal((5, 4)) for u in "abc"})
    trials = [("a", "b"), ("c", "a")]
    each = [call(trials, enrol=scp, test=scp)[0] for scp in (whole, crops)]
    both, _ = call(trials, enrol=[whole, crops], test=[whole, crops])
    np.testing.assert_allclose(both, np.mean(each, 0), atol=1e-12)
    with pytest.raises(SystemExit):
        call(trials, enrol=[whole, crops], test=whole)


def test_as_norm_over_blocks_and_threads(monkeypatch):
    monkeypatch.setattr(scoring, "COHORT_BLOCK", 3)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((20, 6)).astype(np.float32)
    cohort = rng.standard_normal((50, 6)).astype(np.float32)
    mean, std = scoring.cohort_statistics(x, cohort, 9)
    top = np.sort(x.astype(np.float64) @ cohort.T.astype(np.float64), 1)[:, -9:]
    np.testing.assert_allclose(mean, top.mean(1), atol=1e-5)
    np.testing.assert_allclose(std, top.std(1), atol=1e-5)


def test_scores_survive_the_file_exactly(tmp_path):
    rng = np.random.default_rng(6)
    scores = (rng.standard_normal(500) * 10.0 ** rng.integers(-8, 3, 500)).astype(np.float32)
    enrol, test = [f"e{k}" for k in range(500)], [f"t{k}" for k in range(500)]
    scoring.write_scores(tmp_path / "s", enrol, test, scores)
    np.testing.assert_array_equal(scoring.read_scores(tmp_path / "s", enrol, test).astype(np.float32), scores)


def test_bad_input_is_a_short_error_and_leaves_the_old_scores(tmp_path, call):
    rng = np.random.default_rng(7)
    x = {f"u{k}": rng.standard_normal(4) for k in range(5)}
    u = write(tmp_path / "u", x)
    other = write(tmp_path / "other", {f"u{k}": rng.standard_normal(3) for k in range(5)})
    copies = write(tmp_path / "copies", {f"c{k}": np.ones(4) for k in range(5)})
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "matrix.npy", np.ones((2, 4)))
    (tmp_path / "bad.json").write_text('{"scale": 1}')
    (tmp_path / "spk").write_text("nobody s1\n")
    trials = [("u0", "u1")]
    call(trials, enrol=u, test=u)
    before = (tmp_path / "out").read_bytes()
    for bad, options, says in [
        ([("u0", "x1"), ("u0", "x2"), ("x3", "x1")], {}, "1 ids on the enrolment side have no embedding: x3"),
        ([("u0", "x1"), ("u0", "x2"), ("u3", "x1")], {}, "2 ids on the test side have no embedding: x1, x2"),
        (trials, {"enrol": other}, "has 3 dimensions, the test embeddings have 4"),
        (trials, {"cohort": other, "top_n": 3}, "has 3 dimensions"),
        (trials, {"cohort": u, "top_n": 6}, "top-n 6 must be at least 2 and at most the cohort's size, 5"),
        (trials, {"cohort": u, "top_n": 1}, "top-n 1 must be"),
        (trials, {"cohort": copies, "top_n": 3}, "cohort holds copies"),
        (trials, {"cohort": u, "cohort_utt2spk": tmp_path / "spk"}, "no embedding but are listed: nobody"),
        (trials, {"mean": tmp_path / "objects.npy"}, "is not an array of numbers"),
        (trials, {"mean": tmp_path / "matrix.npy"}, "must hold one vector"),
        (trials, {"mean": other}, "the mean has shape [3]"),
        (trials, {"calibration": tmp_path / "bad.json"}, "is not a calibration"),
    ]:
        with pytest.raises(UserError) as err:
            call(bad, **({"enrol": u, "test": u} | options))
        assert says in str(err.value)
        assert len(str(err.value).splitlines()) <= 2
    assert (tmp_path / "out").read_bytes() == before


def test_command_line_itself(tmp_path):
    """Exit code, no traceback, and light: scoring needs neither torch nor sklearn nor matplotlib."""
    code = (
        "import runpy, sys; sys.argv = ['score', '--trials', 'x', '--enrol', 'y', '--test', 'z', '--out', 'o']\n"
        "try: runpy.run_module('pyspkv.bin.score', run_name='__main__')\n"
        "finally: print(sorted({'torch', 'sklearn', 'matplotlib', 'scipy.signal'} & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(scoring.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: x: No such file or directory\n"
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []
