"""Scores against plain loops, one trial at a time."""

import io
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyspkv.base.errors import UserError
from pyspkv.bin import score as cli
from pyspkv.data.ark import EmbeddingWriter, normalize, read_embeddings
from pyspkv.score import scoring


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
    """AS-norm of one trial as the paper writes it; cohort entries may be matrices, too."""
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
    # 1000 trials fill the 40 x 40 matrix enough for a product; 300 do not, and rows are gathered
    for block in (7, 1000):
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
    # the two sides come from different files, so statistics are computed for each
    copy = write(tmp_path / "copy", x)
    np.testing.assert_allclose(
        call(trials, enrol=copy, test=u, cohort=c, top_n=10, mean=c)[0], want, atol=1e-5
    )


def test_cohort_of_pseudo_speakers(tmp_path, call):
    rng = np.random.default_rng(4)
    x = {f"u{k}": rng.standard_normal(8) for k in range(4)}
    cohort = {f"c{k:02d}": 3 * rng.random() * rng.standard_normal(8) for k in range(30)}
    cohort["unlabeled"] = np.ones(8)
    spk = {utt: f"spk{k % 7}" for k, utt in enumerate(cohort) if utt != "unlabeled"}
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
    """The scoring of the paper: crops [n, D] and the whole utterance."""
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
        (trials, {"cohort": copies, "top_n": 3}, "cohort contains copies"),
        (trials, {"cohort": u, "cohort_utt2spk": tmp_path / "spk"}, "no embedding but are listed: nobody"),
        (trials, {"mean": tmp_path / "objects.npy"}, "is not an array of numbers"),
        (trials, {"mean": tmp_path / "matrix.npy"}, "must contain one vector"),
        (trials, {"mean": other}, "the mean has shape [3]"),
        (trials, {"calibration": tmp_path / "bad.json"}, "is not a calibration"),
    ]:
        with pytest.raises(UserError) as err:
            call(bad, **({"enrol": u, "test": u} | options))
        assert says in str(err.value)
        assert len(str(err.value).splitlines()) <= 2
    assert (tmp_path / "out").read_bytes() == before


def test_command_line_itself(tmp_path):
    """Exit code, no traceback, and light imports: scoring needs neither torch nor sklearn nor matplotlib."""
    code = (
        "import runpy, sys; sys.argv = ['score', '--trials', 'x', '--enrol', 'y', '--test', 'z', '--out', 'o']\n"
        "try: runpy.run_module('pyspkv.bin.score', run_name='__main__')\n"
        "finally: print(sorted({'torch', 'sklearn', 'matplotlib', 'scipy.signal'} & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(scoring.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: x: No such file or directory\n"
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


# ---- at the edges of float32 -----------------------------------------------------------------------------------
BIG, TINY = np.finfo(np.float32).max, np.float32(1e-45)


@settings(max_examples=200, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 5)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.booleans(),
)
def test_normalize_gives_directions_of_any_finite_float32(x, stacked):
    """Against exact fractions; ordinary rows are divided by their length as before, bit for bit."""
    got = normalize(x[None] if stacked else x)
    got = got[0] if stacked else got
    assert got.dtype == np.float32
    for row, unit in zip(x, got):
        if not row.any():
            assert not unit.any()
            continue
        exact = [Fraction(float(v)) for v in row]
        largest = max(map(abs, exact))
        scaled = [float(v / largest) for v in exact]
        np.testing.assert_allclose(unit, np.array(scaled) / math.hypot(*scaled), atol=2e-7)
        length = np.sqrt((row.astype(np.float64) ** 2).sum())
        if 2e-38 < length < BIG:
            np.testing.assert_array_equal(unit, row / np.float32(length))


def test_cosines_of_huge_and_tiny_embeddings(tmp_path, call):
    sizes = {"a": BIG, "b": 3e38, "c": 1.0, "d": 1e-38, "e": 1e-44, "f": TINY}
    entries = {k: np.full(3, v, np.float32) for k, v in sizes.items()}
    entries |= {k.upper(): np.array([v, -v, 0], np.float32) for k, v in sizes.items()}
    scp = write(tmp_path / "e", entries)
    trials = [(a, b) for a in entries for b in entries]
    got, _ = call(trials, enrol=scp, test=scp)
    want = [float(a.islower() == b.islower()) for a, b in trials]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert scoring.read_scores(tmp_path / "out", *zip(*trials)).max() < 1.001
    (tmp_path / "map").write_text("M a c e\n")  # an enrolment model of vectors of all sizes
    got, _ = call([("M", "d"), ("M", "D")], enrol=scp, test=scp, enrol_map=tmp_path / "map")
    np.testing.assert_allclose(got, [1, 0], atol=1e-6)


def test_mean_subtraction_beyond_float32_is_right_or_refused(tmp_path, call):
    """Rows whose difference from the mean overflows float32 get the direction of the difference."""
    rows = {"u": [3e38, 3e38], "v": [-3e38, 3e38], "w": [1, 1], "x": [2e38, -3e38]}
    scp = write(tmp_path / "e", {k: np.array(v, np.float32) for k, v in rows.items()})
    train = write(tmp_path / "m", {"p": np.float32([-3e38, -2e38]), "q": np.float32([-3e38, -3e38])})
    mean = np.array([-3e38, -2.5e38])
    trials = [(a, b) for a in rows for b in rows]
    got, _ = call(trials, enrol=scp, test=scp, mean=train)
    x = {k: (np.array(v) - mean) / 1e38 for k, v in rows.items()}
    x["v"] = np.array([0, 5.5])
    np.testing.assert_allclose(got, [cos(x[a], x[b]) for a, b in trials], atol=1e-6)
    before = (tmp_path / "out").read_bytes()
    for bad in (1e300, -3.5e38, np.inf, np.nan):
        np.save(tmp_path / "bad.npy", np.array([1.0, bad]))
        with pytest.raises(UserError, match=r"bad\.npy: (holds|must contain)"):
            call(trials, enrol=scp, test=scp, mean=tmp_path / "bad.npy")
    assert (tmp_path / "out").read_bytes() == before
    with pytest.raises(UserError, match="too large for float32"):
        scoring.unit_means(read_embeddings(scp), np.array([0, 1e39]))


HEADER = b"\x93NUMPY\x01\x00v\x00"


def zip_of_a_later_version() -> bytes:
    """A .npz that needs version 21.6 of the format, which Python's zipfile does not support."""
    file = io.BytesIO()
    np.savez(file, x=np.zeros(2))
    raw = bytearray(file.getvalue())
    raw[raw.index(b"PK\1\2") + 6] = 216
    return bytes(raw)


@pytest.mark.parametrize(
    "raw",
    [b"", b"text", b"PK\x03\x04", zip_of_a_later_version(), HEADER,
     HEADER + b"{" * 117 + b"\n", HEADER + b"'''" + b" " * 114 + b"\n",
     *(HEADER + f"{{'descr': {d}, 'fortran_order': False, 'shape': {s}}}".encode().ljust(117) + b"\n" + b"\0" * 64
       for d, s in [("'<f8'", "(1000000000000000,)"), ("'<f8'", "(10,)"), ("'<f8'", f"({10**30},)"), ("'|O'", "(8,)"),
                    ("'<f8'", "(-1,)"), ("'<f8'", "(0,)"), ("'<f8'", "()"), ("'<i8'", "(8,)"), ("'<c16'", "(4,)"),
                    ("'zz'", "(8,)"), ("3", "(8,)")])],
)  # fmt: skip
def test_a_damaged_mean_is_a_short_error(tmp_path, raw):
    (tmp_path / "m.npy").write_bytes(raw)
    with pytest.raises(UserError, match=r"m\.npy: "):
        scoring.read_mean(str(tmp_path / "m.npy"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_score_that_is_not_finite_is_written(tmp_path, bad):
    scoring.write_scores(tmp_path / "s", ["a", "b"], ["x", "y"], np.array([1.0, 2.0]))
    with pytest.raises(UserError, match="s: 2 scores are not finite; the first, b y, is"):
        scoring.write_scores(tmp_path / "s", ["a", "b", "c"], ["x", "y", "z"], np.array([1.0, bad, bad]))
    assert (tmp_path / "s").read_text() == "a x 1\nb y 2\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_calibration_that_overflows_is_refused_by_pair(tmp_path, call):
    scp = write(tmp_path / "e", {"a": np.ones(3), "b": np.ones(3), "c": np.float32([1, -1, 0])})
    values = {"scale": 1e308, "offset": 1.7e308, "threshold": 0, "prior": 0.5, "source": "x"}
    values |= {"num_target": 1, "num_nontarget": 1, "eer_threshold": 0}
    (tmp_path / "c.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="1 scores are not finite; the first, a b, is inf"):
        call([("a", "c"), ("a", "b")], enrol=scp, test=scp, calibration=tmp_path / "c.json")


@pytest.mark.parametrize(
    "number", ["1", "-1", "+1.5", "1.", ".5", "1e3", "1E-3", "-2.5e+07", "0" * 5000, "1e-999"]
)
@pytest.mark.parametrize("form", ["{}\n", "{}\r\n", "{}", " {} \n", "\ufeff{}\n"])
def test_decimal_scores_are_read_with_any_line_end_and_mark(tmp_path, number, form):
    (tmp_path / "s").write_bytes(form.format(f"a\tb  {number}").encode())
    np.testing.assert_array_equal(scoring.read_scores(tmp_path / "s", ["a"], ["b"]), [float(number)])


@pytest.mark.parametrize(
    ("number", "says"),
    [("1_0", "plain decimal"), ("\u0663", "plain decimal"), ("1,5", "plain decimal"), ("0x1p3", "plain decimal"),
     ("e5", "plain decimal"), ("1e", "plain decimal"), ("\uff11", "plain decimal"), ("1\u00a0", "plain decimal"),
     ("nan", "is not finite"), ("-Infinity", "is not finite"), ("1e999", "is not finite"),
     ("9" * 5000, "is not finite"),
     ("", "must be `enrol test score`"), ("1 2", "must be `enrol test score`"), ("1\r2", "must be `enrol test score`"),
     ("1\x0b", "a line must be"), ("1\x1c", "a line must be"), ("\ufeff1", "plain decimal")],
)  # fmt: skip
def test_other_numbers_are_refused_with_their_line(tmp_path, number, says):
    (tmp_path / "s").write_text(f"a b 0.5\nc d {number}\n", newline="")
    with pytest.raises(UserError) as err:
        scoring.read_scores(tmp_path / "s", ["a", "c"], ["b", "d"])
    assert str(err.value).startswith(f"{tmp_path}/s:2: ") and says in str(err.value)
    assert len(str(err.value)) < len(str(tmp_path)) + 250


def test_ids_of_any_script_and_odd_blanks(tmp_path):
    (tmp_path / "s").write_text("ü 見 0.5\n")
    assert scoring.read_scores(tmp_path / "s", ["ü"], ["見"]) == [0.5]
    (tmp_path / "s").write_bytes("ü 見 0.5\n".encode("utf-16"))
    with pytest.raises(UserError, match="s:1: a line must be"):
        scoring.read_scores(tmp_path / "s", ["ü"], ["見"])
    (tmp_path / "s").write_text("a\u00a0b 0.5\n")  # not a separator
    with pytest.raises(UserError, match="s:1: a line must be"):
        scoring.read_scores(tmp_path / "s", ["a"], ["b"])


@pytest.mark.parametrize(
    "argv",
    [["score", "--trials", "x", "--enrol", "x", "--test", "x", "--out", "o"],
     ["metrics", "--scores", "x", "--trials", "x"], ["calibrate", "--scores", "x", "--trials", "x", "--out", "o"],
     ["verify", "--model", "x", "a.wav", "b.wav"],
     ["evaluate", "--systems", "s", "--data", "d"]],
)  # fmt: skip
def test_ctrl_c_while_numpy_is_imported_is_no_traceback(tmp_path, argv):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").write_text("raise KeyboardInterrupt\n")
    for file in ("s/embed/d/embedding.scp", "d/trials", "d/utt2spk"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(scoring.__file__).parents[2]}"}
    command = [sys.executable, "-m", f"pyspkv.bin.{argv[0]}", *argv[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
