"""Metrics against hand-worked cases, scikit-learn and properties."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from pyspkv.base.errors import UserError
from pyspkv.bin import metrics as cli
from pyspkv.score import metrics

lists = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=60).filter(
    lambda x: 0 < sum(t for _, t in x) < len(x)
)


def split(pairs):
    return np.array([s for s, _ in pairs], float), np.array([t for _, t in pairs])


def test_hand_case():
    # descending: T .9  N .8  T .7  N .6  N .5: rejecting below .8 errs on 1 of 2 targets and 1 of 3 nontargets;
    # between .7 and .8, FNR is 1/2 just above .7 and 0 at .7, FPR is 1/3 throughout: the crossing is at 1/3
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    target = np.array([1, 0, 1, 0, 0], bool)
    curve = metrics.Curve(scores, target)
    assert curve.eer()[0] == pytest.approx(1 / 3)
    # p = 0.01: accepting .9 alone costs 0.01 * 1/2, any false accept costs 0.99 / 3
    assert curve.min_dcf(0.01) == (pytest.approx(0.5), 0.9)
    # p = 0.5: accepting from .7 costs 0.5 * 1/3
    assert curve.min_dcf(0.5) == (pytest.approx(1 / 3), 0.7)


@pytest.mark.parametrize(
    ("scores", "target", "rate"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 0.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 100.0),
        ([5, 5, 5, 5], [0, 1, 0, 1], 50.0),
    ],
)
def test_perfect_inverted_and_constant_scores(scores, target, rate):
    assert metrics.eer(np.array(scores, float), np.array(target, bool)) == pytest.approx(rate)


@settings(max_examples=300, deadline=None)
@given(lists)
def test_against_sklearn_and_a_scan_of_all_thresholds(pairs):
    scores, target = split(pairs)
    curve = metrics.Curve(scores, target)
    fpr, tpr, _ = roc_curve(target, scores, drop_intermediate=False)
    rate, threshold = curve.eer()
    if len(np.unique(fpr)) == len(
        fpr
    ):  # otherwise the usual recipe's interpolation is ambiguous on a vertical step
        assert rate == pytest.approx(brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1), abs=1e-9)
    # computed independently: the segment between (FPR, FNR) points that meets the diagonal
    d = (1 - tpr) - fpr
    k = int(np.argmax(d <= 0))
    share = d[k - 1] / (d[k - 1] - d[k])
    assert rate == pytest.approx(fpr[k - 1] + share * (fpr[k] - fpr[k - 1]), abs=1e-9)
    gaps = [abs(np.mean(scores[target] < t) - np.mean(scores[~target] >= t)) for t in [*set(scores), np.inf]]
    at = abs(np.mean(scores[target] < threshold) - np.mean(scores[~target] >= threshold))
    assert at == pytest.approx(min(gaps))
    for p in (0.01, 0.05, 0.3):
        costs = [
            p * np.mean(scores[target] < t) + (1 - p) * np.mean(scores[~target] >= t)
            for t in [*set(scores), np.inf]
        ]
        cost, where = curve.min_dcf(p)
        assert cost == pytest.approx(min(costs) / min(p, 1 - p))
        reached = p * np.mean(scores[target] < where) + (1 - p) * np.mean(scores[~target] >= where)
        assert reached == pytest.approx(min(costs))


@given(lists)
def test_eer_and_min_dcf_do_not_change_under_a_monotone_map(pairs):
    scores, target = split(pairs)
    a, b = metrics.Curve(scores, target), metrics.Curve(np.exp(scores / 3) * 7 - 2, target)
    assert a.eer()[0] == b.eer()[0]
    assert a.min_dcf(0.05)[0] == b.min_dcf(0.05)[0]


@settings(max_examples=60, deadline=None)
@given(lists, st.integers(0, 1000))
def test_a_weight_is_the_number_of_repetitions(pairs, seed):
    """The weighted EER of a draw equals the EER of a list in which every trial is repeated that often."""
    scores, target = split(pairs)
    rng = np.random.default_rng(seed)
    first = rng.integers(4, size=len(target))
    second = np.where(target, first, (first + rng.integers(1, 4, len(target))) % 4)
    units = metrics.Resampling([f"s{a}" for a in first], [f"s{b}" for b in second], "speakers", seed)
    names = sorted({*first.tolist(), *second.tolist()})
    got = metrics.weighted_eers(scores, target, units, 5)
    for rate, drawn in zip(got, units.multiplicities(5)):
        times = dict(zip(names, drawn))
        repeat = [times[a] if a == b else times[a] * times[b] for a, b in zip(first, second)]
        s, t = np.repeat(scores, repeat), np.repeat(target, repeat)
        if t.all() or not t.any():
            assert np.isnan(rate)
        else:
            assert rate == pytest.approx(metrics.eer(s, t), abs=1e-6)


def test_draws_are_those_of_the_seed_and_the_same_for_every_list_of_scores():
    """The crossing found by bisection is bit for bit the one found by checking every operating point."""
    rng = np.random.default_rng(0)
    for n, values in ((50, 5), (400, 1000), (3, 2)):
        first, second = rng.integers(6, size=(2, n))
        target = first == second
        target[:2], second[:2] = [True, False], [first[0], (first[1] + 1) % 6]
        units = metrics.Resampling([f"s{a}" for a in first], [f"s{b}" for b in second], "speakers", 3)
        draws = units.multiplicities(60)
        want = np.random.default_rng(3).multinomial(units.num, np.full(units.num, 1 / units.num), size=60)
        np.testing.assert_array_equal(draws[:, :-1], want)
        assert (draws[:, -1] == 1).all()
        for seed in range(3):
            scores = np.random.default_rng(seed).integers(values, size=n) / 7
            got = metrics.weighted_eers(scores, target, units, 60)
            for rate, times in zip(got, draws):
                weight = times[units.a] * times[units.b]
                points = []
                for t in np.unique(scores):  # accept scores above t
                    miss, keep = weight[target & (scores <= t)].sum(), weight[~target & (scores <= t)].sum()
                    points.append((miss, keep))
                all_t, all_n = weight[target].sum(), weight[~target].sum()
                if not (all_t and all_n):
                    assert np.isnan(rate)
                    continue
                fnr = np.array([m for m, _ in points]) / all_t
                d = fnr + np.array([k for _, k in points]) / all_n - 1
                k = int(np.argmax(d >= 0))
                d0, f0 = (d[k - 1], fnr[k - 1]) if k else (-1.0, 0.0)
                assert rate == 100 * (f0 + (fnr[k] - f0) * -d0 / (d[k] - d0))
        assert (units.multiplicities(60) == draws).all() and len(units.multiplicities(7)) == 7


def trials_of(num_speakers, per_speaker, spread, seed):
    """All pairs of utterances; the score is the similarity of noisy 6-dimensional speaker vectors."""
    rng = np.random.default_rng(seed)
    spk = np.repeat(np.arange(num_speakers), per_speaker)
    x = rng.standard_normal((num_speakers, 6))[spk] + spread * rng.standard_normal((len(spk), 6))
    i, j = np.triu_indices(len(spk), 1)
    return -np.linalg.norm(x[i] - x[j], axis=1), spk[i] == spk[j], spk[i], spk[j]


def test_interval_over_speakers_covers_the_true_eer():
    """25 test sets of 30 speakers: about 95 % of the intervals contain the EER of a very large set of
    speakers.
    """
    scores, target, _, _ = trials_of(500, 4, 0.8, 99)
    truth = metrics.eer(scores, target)
    held = 0
    for seed in range(25):
        scores, target, a, b = trials_of(30, 5, 0.8, seed)
        units = metrics.Resampling([str(x) for x in a], [str(x) for x in b], "speakers")
        low, high = metrics.interval(metrics.weighted_eers(scores, target, units, 200))
        assert low < metrics.eer(scores, target) < high
        held += low <= truth <= high
    assert held >= 20


def test_paired_comparison_finds_a_difference_that_single_intervals_hide():
    scores, target, a, b = trials_of(40, 5, 0.8, 3)
    rng = np.random.default_rng(0)
    worse = scores + 0.6 * rng.standard_normal(len(scores))
    units = metrics.Resampling([str(x) for x in a], [str(x) for x in b], "speakers")
    ours, theirs = (metrics.bootstrap(s, target, units, 300) for s in (scores, worse))
    assert ours["eer_ci_high"] > theirs["eer_ci_low"]  # the single intervals overlap
    out = metrics.compare(scores, worse, target, units, 300)
    assert out["eer_difference_ci_high"] < 0
    assert out["eer_differs"]
    same = metrics.compare(scores, 2 * scores + 1, target, units, 300)
    assert (same["eer_difference"], same["eer_differs"]) == (0, False)


def test_calibrated_metrics():
    """Gaussian scores with variance 2 mu = d are their own LLRs: actDCF is close to minDCF; Cllr by quadrature."""
    rng = np.random.default_rng(0)
    d, n = 4.0, 200_000
    target = np.arange(n) < n // 2
    scores = np.where(target, d / 2, -d / 2) + np.sqrt(d) * rng.standard_normal(n)
    curve = metrics.Curve(scores, target)
    assert curve.act_dcf(0.05) == pytest.approx(curve.min_dcf(0.05)[0], rel=0.02)
    assert metrics.Curve(scores + 2, target).act_dcf(0.05) > 1.2 * curve.act_dcf(0.05)
    grid = np.linspace(-20, 24, 20001)
    density = np.exp(-((grid - d / 2) ** 2) / 2 / d) / np.sqrt(2 * np.pi * d)
    want = np.trapezoid(density * np.log2(1 + np.exp(-grid)), grid)
    assert curve.cllr() == pytest.approx(want, abs=0.005)
    assert metrics.Curve(np.zeros(4), np.array([1, 0, 1, 0], bool)).cllr() == pytest.approx(1)


def test_refuses_nan_and_one_kind():
    for scores, target, says in [
        ([1.0, np.nan, 2.0], [1, 1, 0], "not finite"),
        ([1.0, -np.inf, 2.0], [1, 1, 0], "not finite"),
        ([1.0, 2.0], [1, 1], "no nontarget trial"),
        ([1.0, 2.0], [0, 0], "no target trial"),
    ]:
        with pytest.raises(UserError, match=says):
            metrics.Curve(np.array(scores), np.array(target, bool))


# ---- the command -----------------------------------------------------------------------------------------------
TRIALS = ["a x target", "a y nontarget", "b x nontarget", "b y target", "a z nontarget", "b z nontarget"]
SCORES = ["a x 0.9", "a y 0.8", "b x 0.6", "b y 0.7", "a z 0.5", "b z 0.4"]
SPEAKERS = ["a A", "b B", "x A", "y B", "z C"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    def run(trials=TRIALS, scores=SCORES, utt2spk=None, other=None, args=()):
        argv = ["metrics", "--trials", str(tmp_path / "trials"), "--scores", str(tmp_path / "scores"), *args]
        files = {"trials": trials, "scores": scores}
        if utt2spk:
            files["utt2spk"] = utt2spk
            argv += ["--utt2spk", str(tmp_path / "utt2spk")]
        if other:
            files["other"] = other
            argv += ["--compare", str(tmp_path / "other")]
        for name, lines in files.items():
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        monkeypatch.setattr("sys.argv", argv)
        cli.main()
        return capsys.readouterr().out

    return run


def test_json_keys_any_order_and_speakers(call):
    out = json.loads(call(scores=SCORES[::-1], utt2spk=SPEAKERS, args=["--json"]))
    # targets .9 .7, nontargets .8 .6 .5 .4: FNR is 0 at .7 and 1/2 above; FPR is 1/4 there
    assert out["eer"] == pytest.approx(25)
    assert out["min_dcf_0.01"] == pytest.approx(0.5)
    assert out["min_dcf_0.05"] == pytest.approx(0.5)
    assert (out["num_target"], out["num_nontarget"]) == (2, 4)
    assert (out["eer_ci_over"], out["eer_ci_units"]) == ("speakers", 3)
    assert 0 <= out["eer_ci_low"] <= out["eer_ci_high"] <= 100
    assert 0.7 <= out["threshold"] <= 0.8
    out = json.loads(call(args=["--json", "--llr"]))
    assert (out["eer_ci_over"], out["eer_ci_units"], out["eer_ci_low"]) == ("enrolment ids", 2, None)
    assert {"cllr", "act_dcf_0.01", "act_dcf_0.05"} < set(out)


def test_table_and_comparison_for_people(call):
    text = call(utt2spk=SPEAKERS, other=SCORES, args=["--llr"])
    assert "EER             25.000 %" in text
    assert "bootstrap over 3 speakers" in text
    assert "difference    +0.000" in text
    assert "no difference shown" in text
    assert "no interval   (2 enrolment ids are too few" in call()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scores": SCORES[:4]}, "2 of 6 trials have no score; the first is a z"),
        ({"scores": SCORES[:2] + ["a y 0.8"] + SCORES[3:]}, "scores:3: a y is scored twice"),
        ({"scores": [SCORES[5], *SCORES[:5], SCORES[0]]}, "scores:7: a x is scored twice"),
        ({"scores": [*SCORES, "q x 1"]}, "scores:7: q x is not in the trial list"),
        ({"scores": [*SCORES[:1], "a y nan", *SCORES[2:]]}, "scores:2: score nan is not finite"),
        ({"scores": [*SCORES[:1], "a y inf", *SCORES[2:]]}, "scores:2: score inf is not finite"),
        ({"scores": [*SCORES[:1], "a y", *SCORES[2:]]}, "scores:2: a line must be `enrol test score`"),
        ({"scores": [*SCORES[:1], "a y 0.5 target", *SCORES[2:]]}, "scores:2: a line must be"),
        ({"scores": [*SCORES[:1], "a y high", *SCORES[2:]]}, "scores:2: a line must be"),
        ({"scores": [*SCORES[:1], "a y 1_0", *SCORES[2:]]}, "scores:2: a line must be"),
        ({"scores": [*SCORES[:1], "a y " + "9" * 5000, *SCORES[2:]]}, "is not finite"),
        ({"trials": TRIALS[:1], "scores": SCORES[:1]}, "no nontarget trial"),
        ({"trials": TRIALS[1:3], "scores": SCORES[1:3]}, "no target trial"),
        ({"trials": [*TRIALS[:2], "b x maybe"]}, "trials:3: "),
        ({"utt2spk": SPEAKERS[:-1]}, "1 ids of the trials have no speaker; the first is z"),
        ({"utt2spk": ["a B", *SPEAKERS[1:]]}, "2 trials contradict it; the first, a x, is target"),
    ],
)
def test_bad_input_is_a_short_error(call, change, says):
    with pytest.raises(UserError) as err:
        call(**change)
    assert says in str(err.value)
    assert len(str(err.value).splitlines()) <= 2


def test_a_score_file_of_a_windows_editor_is_the_same(call):
    want = json.loads(call(args=["--json"]))
    windows = [f"{line}\r" for line in SCORES]
    assert json.loads(call(scores=["\ufeff" + windows[0], *windows[1:]], args=["--json"])) == want


def test_two_enrolment_ids_are_too_few_to_compare(call):
    with pytest.raises(UserError, match="2 enrolment ids are too few to compare"):
        call(other=SCORES)


def test_a_pair_listed_twice_needs_two_scores(call):
    out = json.loads(call(trials=[*TRIALS, TRIALS[0]], scores=[SCORES[0], *SCORES], args=["--json"]))
    assert out["num_target"] == 3
    with pytest.raises(UserError, match="1 of 7 trials have no score"):
        call(trials=[*TRIALS, TRIALS[0]], scores=SCORES)


def test_models_take_their_speaker_from_the_enrolment_map(call, tmp_path):
    (tmp_path / "map").write_text("a e1 e2\nb e3\n")
    speakers = ["e1 A", "e2 A", "e3 B", *SPEAKERS[2:]]
    out = json.loads(call(utt2spk=speakers, args=["--enrol-map", str(tmp_path / "map"), "--json"]))
    assert (out["eer_ci_over"], out["eer_ci_units"]) == ("speakers", 3)
    with pytest.raises(UserError, match="2 ids of the trials have no speaker; the first is a"):
        call(utt2spk=speakers)
    (tmp_path / "map").write_text("a e1 e3\nb e3\n")
    with pytest.raises(UserError, match="map:1: model a has utterances of A and of B"):
        call(utt2spk=speakers, args=["--enrol-map", str(tmp_path / "map")])
