"""Calibration against scipy's optimizer; pseudo-speaker trials by their defining properties."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from pyspkv.base.errors import UserError
from pyspkv.bin import calibrate as cli
from pyspkv.data.ark import EmbeddingWriter
from pyspkv.score import calibration, metrics


def gaussian(n_target, n_nontarget, seed=0):
    rng = np.random.default_rng(seed)
    target = np.arange(n_target + n_nontarget) < n_target
    return np.where(target, 0.55, 0.1) + 0.12 * rng.standard_normal(len(target)), target


@pytest.mark.parametrize("prior", [0.01, 0.05, 0.5])
def test_fit_is_the_minimum_that_scipy_finds(prior):
    scores, target = gaussian(300, 4000)
    logit = np.log(prior / (1 - prior))

    def cost(w):
        l = w[0] * scores + w[1] + logit
        return prior * np.logaddexp(0, -l[target]).mean() + (1 - prior) * np.logaddexp(0, l[~target]).mean()

    want = minimize(
        cost, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-13, "maxiter": 9999}
    )
    got = calibration.fit(scores, target, prior, "test")
    assert cost([got.scale, got.offset]) <= want.fun + 1e-7
    assert (got.scale, got.offset) == pytest.approx(tuple(want.x), rel=2e-3)
    assert got.llr(got.threshold) == pytest.approx(-logit)


def test_llrs_of_gaussians_are_right_and_calibrated_on_new_trials():
    """Equal variances: log N(s; .55) / N(s; .1) = .45 / .0144 * (s - .325) exactly."""
    got = calibration.fit(*gaussian(20000, 20000), 0.5, "test")
    assert got.scale == pytest.approx(0.45 / 0.0144, rel=0.05)
    assert got.threshold == pytest.approx(0.325, abs=0.005)
    scores, target = gaussian(5000, 50000, seed=1)
    curve = metrics.Curve(got.llr(scores), target)
    assert curve.act_dcf(0.05) < 1.05 * curve.min_dcf(0.05)[0]
    assert curve.eer()[0] == metrics.Curve(scores, target).eer()[0]


def test_separable_scores_stay_finite_and_swapped_ones_are_refused():
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    got = calibration.fit(scores, scores > 0.5, 0.5, "test")
    assert np.isfinite(got.scale)
    assert 0.2 < got.threshold < 0.8
    with pytest.raises(UserError, match="swapped"):
        calibration.fit(scores, scores < 0.5, 0.5, "test")
    # targets whose mean is not exactly 1/3 in floats
    with pytest.raises(UserError, match="all scores are equal"):
        calibration.fit(np.full(100, 1 / 3), np.arange(100) < 50, 0.5, "test")
    with pytest.raises(UserError, match="all scores are equal"):
        calibration.fit(np.ones(4), scores > 0.5, 0.5, "test")
    with pytest.raises(UserError, match="prior 1"):
        calibration.fit(scores, scores > 0.5, 1.0, "test")


def test_file_round_trip_and_refusals(tmp_path):
    got = calibration.fit(*gaussian(100, 100), 0.1, "trials dev")
    got.write(tmp_path / "calibration.json")
    assert calibration.Calibration.read(tmp_path / "calibration.json") == got
    good = json.loads((tmp_path / "calibration.json").read_text())
    for bad in ("", "[]", "{", json.dumps(good | {"extra": 1}), json.dumps(good | {"scale": -1}),
                json.dumps(good | {"scale": "x"}), json.dumps(good | {"threshold": float("nan")}),
                json.dumps(good | {"scale": True}), json.dumps(good | {"source": 3}), "[" * 100000,
                json.dumps(good | {"num_target": "many"}), json.dumps(good | {"offset": None}),
                json.dumps(good).replace('"prior": 0.1', '"prior": ' + "1" * 5000),
                json.dumps(good | {"scale": 10**400}), json.dumps(good | {"eer_threshold": [0.1]})):  # fmt: skip
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(UserError, match=r"bad\.json"):
            calibration.Calibration.read(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"bad\.json"):
        calibration.Calibration.read(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "scores",
    [[1, 2, 2, 1], [4, 3, 2, 1], [1e308, -1e308, 1e308, 0], [1e200, 1, 2, 3], [0, 0, 5e-324, 5e-324],
     [0, 1e-320, 1e-310, 2e-310], [1, 2, 3, np.nan], [0, 1, 2, np.inf], [7, 7, 7, 7]],
)  # fmt: skip
def test_impossible_calibrations_raise_calibration_error(scores):
    """The result is finite, or a CalibrationError, and then bin.evaluate goes on without one."""
    target = np.array([False, False, True, True])
    try:
        got = calibration.fit(np.array(scores, float), target, 0.5, "x")
    except calibration.CalibrationError:
        return
    assert np.isfinite([got.scale, got.offset, got.threshold]).all() and got.scale > 0
    assert scores[1] < scores[2]


def test_one_kind_of_trial_raises_calibration_error_and_a_wrong_prior_user_error():
    for target in (np.ones(3, bool), np.zeros(3, bool)):
        with pytest.raises(calibration.CalibrationError, match="both kinds"):
            calibration.fit(np.arange(3.0), target, 0.5, "x")
    with pytest.raises(UserError) as err:
        calibration.fit(np.arange(4.0), np.arange(4) > 1, float("nan"), "x")
    assert not isinstance(err.value, calibration.CalibrationError)


def test_skipped_iterations_would_not_change_the_fit():
    """Iterations that change nothing are skipped: Newton's method without skipping ends at the same bits."""
    for seed in range(8):
        scores, target = gaussian(200, 900, seed)
        got = calibration.fit(scores, target, 0.5, "x")
        s = np.concatenate([np.sort(scores[target]), np.sort(scores[~target])])
        y = np.repeat([1.0, 0.0], [200, 900])
        weight = np.where(y > 0, 0.5 / 200, 0.5 / 900)
        x = np.stack([(s - s.mean()) / s.std(), np.ones(len(s))])
        penalty, w = np.array([1e-9, 0.0]), np.zeros(2)

        def cost(w, x=x, y=y, weight=weight, penalty=penalty):
            z = w @ x + 0.0
            return float(weight @ np.logaddexp(0, np.where(y > 0, -z, z)) + penalty @ w**2 / 2)

        for _ in range(200):
            p = 1 / (1 + np.exp(-np.clip(w @ x + 0.0, -500, 500)))
            gradient = x @ (weight * (p - y)) + penalty * w
            step = np.linalg.solve(
                (x * (weight * p * (1 - p))) @ x.T + np.diag(penalty + [0, 1e-12]), gradient
            )
            size = 1.0
            while cost(w - size * step) > cost(w) and size > 1e-10:
                size /= 2
            w = w - size * step
            if np.abs(gradient).max() < 1e-12 or size <= 1e-10:
                break
        assert got.scale == w[0] / s.std()


@pytest.mark.parametrize("with_recordings", [False, True])
def test_pseudo_trials(with_recordings):
    rng = np.random.default_rng(0)
    spk = [f"s{k}" for k in rng.choice(30, 2000, p=rng.dirichlet(np.ones(30)))]
    recording = [f"{s}-{rng.integers(4)}" for s in spk] if with_recordings else None
    i, j, target = calibration.pseudo_trials(spk, recording, 1000, seed=3)
    assert target.sum() == (~target).sum() == 1000
    assert len({*zip(i.tolist(), j.tolist())}) == 2000
    assert (i != j).all()
    for a, b, same in zip(i, j, target):
        assert (spk[a] == spk[b]) == same
        assert recording is None or recording[a] != recording[b]
    again = calibration.pseudo_trials(spk, recording, 1000, seed=3)
    np.testing.assert_array_equal(again[0], i)
    assert (calibration.pseudo_trials(spk, recording, 1000, seed=4)[0] != i).any()


def test_pseudo_trials_of_a_small_set_are_all_there_are():
    i, j, target = calibration.pseudo_trials(["a", "a", "a", "b", "b"], None, 1000, seed=0)
    assert (target.sum(), (~target).sum()) == (4, 6)
    with pytest.raises(UserError, match="no speaker has two utterances"):
        calibration.pseudo_trials(["a", "b", "c"], None, 10, seed=0)
    with pytest.raises(UserError, match="only one speaker"):
        calibration.pseudo_trials(["a", "a"], None, 10, seed=0)
    with pytest.raises(UserError, match="from different recordings"):
        calibration.pseudo_trials(["a", "a", "b"], ["r", "r", "q"], 10, seed=0)


def data_dir(path, spk, segments):
    path.mkdir()
    by = {}
    for u, s in spk.items():
        by.setdefault(s, []).append(u)
    tables = {
        "utt2spk": [f"{u} {s}" for u, s in sorted(spk.items())],
        "spk2utt": [f"{s} {' '.join(sorted(by[s]))}" for s in sorted(by)],
        "wav.scp": sorted(f"{r} /nowhere/{r}.wav" for r in {s.split()[0] for s in segments.values()} or spk),
    }
    if segments:
        tables["segments"] = [f"{u} {segments[u]}" for u in sorted(segments)]
    for name, lines in tables.items():
        (path / name).write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("segmented", [False, True])
def test_command_from_pseudo_speakers(tmp_path, monkeypatch, capsys, segmented):
    rng = np.random.default_rng(0)
    spk = {f"u{k:03d}": f"s{k % 10}" for k in range(200)}
    segments = {u: f"{s}-r{int(u[1:]) // 10 % 2} {int(u[1:])} {int(u[1:]) + 1}" for u, s in spk.items()}
    data_dir(tmp_path / "data", spk, segments if segmented else {})
    center = {s: rng.standard_normal(16) for s in sorted(set(spk.values()))}
    with EmbeddingWriter(tmp_path) as write:
        for u, s in spk.items():
            write(u, center[s] + 0.8 * rng.standard_normal(16))
    out = tmp_path / "model/calibration.json"
    argv = [
        "calibrate",
        "--from-data",
        str(tmp_path / "data"),
        "--embeddings",
        str(tmp_path / "embedding.scp"),
    ]
    monkeypatch.setattr("sys.argv", [*argv, "--model", str(out.parent), "--num-trials", "500"])
    cli.main()
    said = capsys.readouterr().out
    stored = calibration.Calibration.read(out)
    assert (stored.num_target, stored.num_nontarget) == (500, 500)
    assert ("different recordings" in stored.source) == segmented
    assert 0 < stored.threshold < 1
    assert "500 targets" in said


def test_command_from_dev_trials_and_its_errors(tmp_path, monkeypatch):
    scores, target = gaussian(50, 50)
    kind = ["target" if t else "nontarget" for t in target]
    (tmp_path / "trials").write_text("".join(f"e t{k} {w}\n" for k, w in enumerate(kind)))
    (tmp_path / "scores").write_text("".join(f"e t{k} {s}\n" for k, s in enumerate(scores)))
    argv = ["calibrate", "--trials", str(tmp_path / "trials"), "--scores", str(tmp_path / "scores")]
    argv += ["--out", str(tmp_path / "c.json"), "--prior", "0.2"]
    monkeypatch.setattr("sys.argv", argv)
    cli.main()
    want = calibration.fit(scores, target, 0.2, f"trials {tmp_path / 'trials'}")
    assert calibration.Calibration.read(tmp_path / "c.json") == want
    (tmp_path / "scores").write_text("".join(f"e t{k} {-s}\n" for k, s in enumerate(scores)))
    before = (tmp_path / "c.json").read_bytes()
    with pytest.raises(UserError, match=r"scores: .*swapped"):
        cli.main()
    assert (tmp_path / "c.json").read_bytes() == before
    monkeypatch.setattr("sys.argv", ["calibrate", "--trials", "x", "--embeddings", "y", "--out", "z"])
    with pytest.raises(SystemExit):
        cli.main()


@pytest.mark.parametrize(
    "option",
    [("--num-trials", n) for n in ("0", "1" + "0" * 12, "9" * 5000, "x")]
    + [("--seed", n) for n in ("9" * 5000, "-1")],
)
def test_numbers_out_of_range_are_usage_errors(monkeypatch, capsys, option):
    monkeypatch.setattr("sys.argv", ["x", "--from-data", "d", "--embeddings", "e", "--out", "o", *option])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert option[0] in capsys.readouterr().err
