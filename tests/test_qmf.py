"""Calibration with quality measures against hand-made tables, scikit-learn, and scores whose law is known."""

import json

import numpy as np
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression

from pyspkv.base.errors import UserError
from pyspkv.data.ark import Embeddings
from pyspkv.score import calibration, metrics, qmf

GAP, NOISE, SHIFT = 0.4, 0.12, 0.15


def trials(n, seed):
    """Scores of which durations are part: N(class + SHIFT log_seconds_min, NOISE); target bool [n], measures."""
    rng = np.random.default_rng(seed)
    target = rng.random(n) < 0.2
    short, long = np.sort(rng.normal(1.0, 0.8, (2, n)), 0)
    scores = GAP * target + SHIFT * short + NOISE * rng.standard_normal(n)
    return scores, {"log_seconds_min": short, "log_seconds_max": long, "norm_min": rng.random(n)}, target


def slope(got, name):
    return got.columns[name].weight / got.columns[name].spread


def cllr(llr, target):
    return (np.logaddexp(0, -llr[target]).mean() + np.logaddexp(0, llr[~target]).mean()) / np.log(4)


def test_known_coefficients_come_back_and_cllr_falls():
    """log N(s; GAP + SHIFT d) / N(s; SHIFT d) = GAP / NOISE^2 (s - SHIFT d - GAP / 2) exactly."""
    scores, measures, target = trials(40000, 0)
    got = qmf.fit(scores, measures, target, 0.5, {})
    want = GAP / NOISE**2
    assert slope(got, "score") == pytest.approx(want, rel=0.05)
    assert slope(got, "log_seconds_min") == pytest.approx(-SHIFT * want, rel=0.05)
    assert slope(got, "log_seconds_max") == pytest.approx(0, abs=0.02 * want)
    assert slope(got, "norm_min") == pytest.approx(0, abs=0.02 * want)
    scores, measures, target = trials(20000, 1)
    llr, short = got.llr(scores, measures), measures["log_seconds_min"]
    assert llr == pytest.approx(want * (scores - SHIFT * short - GAP / 2), abs=1.5)
    plain = calibration.fit(*(trials(40000, 0)[k] for k in (0, 2)), 0.5, "x").llr(scores)
    assert cllr(llr, target) < 0.8 * cllr(plain, target)
    assert metrics.Curve(llr, target).eer()[0] < 0.8 * metrics.Curve(scores, target).eer()[0]


@pytest.mark.parametrize("prior", [0.05, 0.5])
def test_the_fit_is_that_of_scikit_learn(prior):
    scores, measures, target = trials(3000, 2)
    got = qmf.fit(scores, measures, target, prior, {})
    x = np.stack([scores, *measures.values()], 1)
    x = (x - x.mean(0)) / x.std(0)
    weight = np.where(target, prior / target.sum(), (1 - prior) / (~target).sum()) * len(target)
    other = LogisticRegression(C=1e9, tol=1e-12, max_iter=10000).fit(x, target, sample_weight=weight)
    assert [c.weight for c in got.columns.values()] == pytest.approx(other.coef_[0], rel=1e-3, abs=1e-3)
    assert got.offset == pytest.approx(other.intercept_[0] - np.log(prior / (1 - prior)), rel=1e-3)


def test_a_table_by_hand():
    """Shares of targets 1, 3, 2, 6 of 12 in four cells, of nontargets a quarter each: ratios are products."""
    cells = [(0, 0, 1), (1, 0, 3), (0, 1, 2), (1, 1, 6)]
    rows = [(s, m, True) for s, m, n in cells for _ in range(n)]
    rows += [(s, m, False) for s, m, _ in cells for _ in range(4)]
    s, m, target = (np.array(column) for column in zip(*rows))
    got = qmf.fit(s.astype(float), {"m": m.astype(float)}, target, 0.5, {})
    assert slope(got, "score") == pytest.approx(np.log(3), abs=1e-6)
    assert slope(got, "m") == pytest.approx(np.log(2), abs=1e-6)
    llr = got.llr(np.array([0.0, 1, 0, 1]), {"m": np.array([0.0, 0, 1, 1])})
    assert llr == pytest.approx(np.log([4 / 12, 12 / 12, 8 / 12, 24 / 12]), abs=1e-6)


def test_constant_and_double_measures():
    """What does not vary is left out, also where rounding varies; a measure that is there twice does not crash."""
    scores, measures, target = trials(2000, 3)
    unit = 1 + 3e-8 * np.random.default_rng(0).standard_normal(2000)
    got = qmf.fit(scores, {"one": np.full(2000, 0.3), "norm": unit}, target, 0.5, {})
    assert got.constant == ["one", "norm"] and [*got.columns] == ["score"]
    plain = calibration.fit(scores, target, 0.5, "x")
    assert slope(got, "score") == pytest.approx(plain.scale, rel=1e-9)
    assert got.llr(scores, {}) == pytest.approx(plain.llr(scores), rel=1e-9, abs=1e-9)
    one = qmf.fit(scores, {"log_seconds_min": measures["log_seconds_min"]}, target, 0.5, {})
    two = qmf.fit(scores, dict.fromkeys("ab", measures["log_seconds_min"]), target, 0.5, {})
    double = dict.fromkeys("ab", measures["log_seconds_min"])
    assert two.llr(scores, double) == pytest.approx(one.llr(scores, measures), abs=1e-5)


def test_weights_that_are_hard_to_believe_are_kept_and_named():
    scores, measures, target = trials(2000, 4)
    assert not qmf.fit(scores, measures, target, 0.5, {}).signs()
    swapped = qmf.fit(-scores, {}, target, 0.5, {})
    assert swapped.columns["score"].weight < 0
    assert "higher scores do not go with target trials" in swapped.signs()[0]
    leak = {"log_seconds_max": target + 0.1 * np.random.default_rng(0).standard_normal(2000)}
    (sign,) = qmf.fit(scores, leak, target, 0.5, {}).signs()
    assert sign.startswith("log_seconds_max weighs +")


def test_separable_scores_stay_finite_and_bad_ones_are_refused():
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    got = qmf.fit(scores, {"m": scores**2}, scores > 0.5, 0.5, {})
    assert np.isfinite(got.llr(scores, {"m": scores**2})).all()
    for bad, why in ((np.ones(4), "all scores are equal"), (np.array([0, 1, np.nan, 2]), "finite")):
        with pytest.raises(calibration.CalibrationError, match=why):
            qmf.fit(bad, {}, scores > 0.5, 0.5, {})
    with pytest.raises(calibration.CalibrationError, match="m has values"):
        qmf.fit(scores, {"m": np.array([0, 1, np.inf, 2])}, scores > 0.5, 0.5, {})


def test_measures_by_hand_do_not_change_when_the_sides_swap():
    seconds, lengths = {"a": 1.0, "b": 4.0, "c": 2.0}, {"a": 3.0, "b": 5.0, "c": 1.0}
    means = np.array([0.1, 0.3]), np.array([0.2, 0.2])
    got = qmf.measures((["m", "c"], ["c", "a"]), {"m": ["a", "b"]}, seconds, lengths, means)
    want = {"log_seconds_min": np.log([2, 1]), "log_seconds_max": np.log([5, 2]), "norm_min": [1, 1],
            "norm_max": [4, 3], "cohort_mean_min": [0.1, 0.2], "cohort_mean_max": [0.2, 0.3]}  # fmt: skip
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert got[name] == pytest.approx(np.array(values)), name
    there, back = (qmf.measures(pair, None, seconds, lengths) for pair in ((["a"], ["b"]), (["b"], ["a"])))
    assert there == back


def test_norms_are_of_raw_rows():
    x = np.array([[3, 4], [0, 2], [0, 4]], np.float32)
    assert qmf.norms(Embeddings(["a", "b"], x, np.array([0, 1, 3]))) == {"a": 5.0, "b": 3.0}


@pytest.fixture
def data(tmp_path):
    lines = []
    for k, utt in enumerate(("a", "b", "c"), 1):
        soundfile.write(tmp_path / f"{utt}.wav", np.full(8000 * k, 0.1), 8000)
        lines.append(f"{utt} {tmp_path}/{utt}.wav\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    for name in ("utt2spk", "spk2utt"):
        (tmp_path / name).write_text("a a\nb b\nc c\n")
    return tmp_path


def test_durations_are_of_tables_or_headers(data):
    assert qmf.durations(data, ["c", "a", "c"]) == ({"c": 3.0, "a": 1.0}, str(data / "wav.scp"))
    (data / "utt2num_frames").write_text("a 150\nb 250\n")
    assert qmf.durations(data, ["a"]) == ({"a": 1.5}, str(data / "utt2num_frames"))
    (data / "utt2dur").write_text("a 7\nb 8\n")
    assert qmf.durations(data, ["b"]) == ({"b": 8.0}, str(data / "utt2dur"))
    with pytest.raises(
        UserError, match="utt2dur: has no line for 1 utterances of the trials; the first is c"
    ):
        qmf.durations(data, ["b", "c"])


def test_durations_run_no_command_and_say_what_is_missing(data):
    with pytest.raises(UserError, match="has no line for 2 utterances of the trials; the first is x"):
        qmf.durations(data, ["a", "x", "y"])
    (data / "wav.scp").write_text(f"a touch {data}/made |\nb {data}/b.wav\nc {data}/c.wav\n")
    with pytest.raises(UserError, match="commands, which are not run here"):
        qmf.durations(data, ["a"])
    assert not (data / "made").exists()
    (data / "wav.scp").unlink()
    with pytest.raises(UserError, match="durations are not known"):
        qmf.durations(data, ["a"])


def test_file_round_trip_and_refusals(tmp_path):
    scores, measures, target = trials(500, 5)
    got = qmf.fit(scores, measures, target, 0.5, {"trials": "dev/trials"})
    got.write(tmp_path / "qmf.json")
    assert qmf.QMF.read(tmp_path / "qmf.json") == got
    good = json.loads((tmp_path / "qmf.json").read_text())
    column = {"weight": 1.0, "center": 0.0, "spread": 1.0}
    bad = [{"offset": None}, {"offset": float("nan")}, {"columns": {}}, {"columns": []}, {"columns": {"score": 3}},
           {"columns": {"score": column | {"spread": 0}}}, {"columns": {"score": column | {"weight": "x"}}},
           {"columns": {"score": column | {"more": 1}}}, {"sources": 3}, {"more": 1}, {"prior": 10**400}]  # fmt: skip
    for text in ("", "[]", *(json.dumps(good | change) for change in bad)):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=r"bad\.json"):
            qmf.QMF.read(tmp_path / "bad.json")
    with pytest.raises(UserError, match="needs the quality measure log_seconds_min"):
        got.llr(scores, {})
