"""Augmentation and rooms: measured SNRs, direct convolution, shared profiles, the simulated bank."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyspkv.audio import rir
from pyspkv.audio.reader import AudioReader
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.batches.augment import AugmentConfig, Augmenter, Profile, source_length
from pyspkv.data.datadir import DataDir

RATE = 16000


def write_list(folder, lengths, seed):
    """Data directory of noises with these numbers of samples."""
    folder.mkdir()
    rng, wav = np.random.default_rng(seed), {}
    for i, n in enumerate(lengths):
        soundfile.write(folder / f"{i}.wav", rng.standard_normal(n) * 0.05 * (i + 1), RATE)
        wav[f"n{i}"] = str(folder / f"{i}.wav")
    DataDir(folder, list(wav), list(wav), wav).write(folder / "data")
    return str(folder / "data")


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    root = tmp_path_factory.mktemp("lists")
    noise, babble, music = (write_list(root / k, n, i) for i, (k, n) in enumerate(
        {"noise": [80000, 5000], "babble": [50000] * 4, "music": [60000, 60000]}.items()))  # fmt: skip
    (root / "rir").mkdir()
    rng = np.random.default_rng(9)
    wav = {}
    for i, n in enumerate((300, 4000)):
        h = rng.standard_normal((n, 2)) * np.exp(-np.arange(n) / n * 6)[:, None] * 0.1
        h[40, 0] = 0.9  # the direct sound arrives late
        soundfile.write(root / "rir" / f"{i}.wav", h, RATE, subtype="FLOAT")
        wav[f"h{i}"] = str(root / "rir" / f"{i}.wav")
    scp = root / "rir" / "wav.scp"
    scp.write_text("".join(f"{k} {v}\n" for k, v in wav.items()))
    return {"noise_list": noise, "babble_list": babble, "music_list": music, "rir_list": str(scp)}


def speech(num=32000, seed=5):
    return (np.random.default_rng(seed).standard_normal(num) * 0.1).astype("f4")


def decibel(x):
    return 10 * np.log10(np.mean(np.square(x, dtype=np.float64)))


@pytest.mark.parametrize("kind", ["noise", "babble", "music"])
def test_the_measured_snr_is_that_of_the_profile(lists, kind):
    aug = Augmenter(
        AugmentConfig(
            **{f"{kind}_list": lists[f"{kind}_list"]}, prob=1, reverb_weight=0, both_weight=0, rir_bank=0
        )
    )
    wave, config = speech(), aug.config
    for i in range(20):
        profile = aug.draw(np.random.default_rng((1, i)))
        low, high = getattr(config, f"{kind}_snr")
        assert profile.kind == kind and low <= profile.snr <= high and profile.rir == -1
        out = aug.apply(wave, profile)
        assert out.dtype == np.float32 and out.shape == wave.shape
        assert decibel(wave) - decibel(out - wave) == pytest.approx(profile.snr, abs=0.02)
        if kind == "babble":
            assert 3 <= len(profile.rows) <= 8


def test_babble_and_music_together_have_each_its_snr(lists):
    """arXiv 2406.02285: six classes, equally often, of which one is speech and music."""
    config = {"prob": 5 / 6, "reverb_weight": 1, "additive_weight": 4, "both_weight": 0, "babble_music": True}
    aug, wave = Augmenter(AugmentConfig(**lists, **config)), speech()
    drawn = [aug.draw(np.random.default_rng((5, i))) for i in range(6000)]
    names = [f"{p.rir >= 0} {p.kind} {p.also.kind if p.also else ''}" for p in drawn]
    assert len(set(names)) == 6
    for name in set(names):  # tolerance of four standard deviations
        assert names.count(name) / 6000 == pytest.approx(1 / 6, abs=0.02)
    both = next(p for p in drawn if p.also)
    assert 13 <= both.snr <= 20 and 5 <= both.also.snr <= 15
    one, other = (aug.apply(wave, p) - wave for p in (replace(both, also=None), both.also))
    assert decibel(wave) - decibel(other) == pytest.approx(both.also.snr, abs=0.02)
    np.testing.assert_allclose(aug.apply(wave, both), wave + one + other, atol=1e-6)
    with pytest.raises(UserError, match="babble_music needs lists of both"):
        Augmenter(AugmentConfig(noise_list=lists["noise_list"], babble_music=True))


def chain(profile):
    while profile is not None and profile.kind:
        yield profile
        profile = profile.also


@pytest.mark.parametrize("each", [False, True])
def test_every_talker_of_a_babble_may_have_its_own_snr(lists, each):
    """Levels of the sums, measured: 16.5 dB (13 to 20 by the range) against about 9 dB with 3 to 8 talkers."""
    config = {"prob": 1.0, "reverb_weight": 0, "both_weight": 0, "rir_bank": 0, "babble_snr_each": each}
    aug, wave = Augmenter(AugmentConfig(babble_list=lists["babble_list"], **config)), speech()
    levels, talkers = [], []
    for i in range(300):
        profile = aug.draw(np.random.default_rng((7, i)))
        parts = list(chain(profile))
        rows = [row for part in parts for row in part.rows]
        assert 3 <= len(rows) <= 8 and all(13 <= part.snr <= 20 for part in parts)
        assert len(parts) == (len(rows) if each else 1)
        talkers.append(len(rows))
        levels.append(decibel(wave) - decibel(aug.apply(wave, profile) - wave))
        if each and i < 20:
            for part in parts:  # alone, each has the SNR that it was given
                alone = aug.apply(wave, replace(part, also=None)) - wave
                assert decibel(wave) - decibel(alone) == pytest.approx(part.snr, abs=0.02)
            assert len({part.snr for part in parts}) == len(parts)
    assert set(talkers) == set(range(3, 9))
    assert np.mean(levels) == pytest.approx(9.0 if each else 16.5, abs=0.5)


def test_talkers_with_their_own_snr_beside_music(lists):
    config = {"prob": 1.0, "additive_weight": 1, "reverb_weight": 0, "both_weight": 0, "babble_music": True}
    aug = Augmenter(AugmentConfig(**lists, **config, babble_snr_each=True))
    drawn = [list(chain(aug.draw(np.random.default_rng((8, i))))) for i in range(400)]
    both = [parts for parts in drawn if len({part.kind for part in parts}) == 2]
    assert len(both) / 400 == pytest.approx(0.25, abs=0.09)
    for parts in both:
        *talkers, music = parts
        assert {p.kind for p in talkers} == {"babble"} and 3 <= len(talkers) <= 8
        assert music.kind == "music" and 5 <= music.snr <= 15 and music.also is None


def test_snr_after_reverberation(lists):
    aug = Augmenter(
        AugmentConfig(
            noise_list=lists["noise_list"],
            rir_list=lists["rir_list"],
            prob=1,
            reverb_weight=0,
            additive_weight=0,
        )
    )
    for i in range(5):
        profile = aug.draw(np.random.default_rng((2, i)))
        wet = aug.apply(speech(), Profile(rir=profile.rir))
        added = aug.apply(speech(), profile) - wet
        assert decibel(wet) - decibel(added) == pytest.approx(profile.snr, abs=0.02)


def test_reverberation_is_the_aligned_convolution(lists):
    aug = Augmenter(AugmentConfig(rir_list=lists["rir_list"], prob=1))
    for row in (0, 1):
        h, _ = soundfile.read(lists["rir_list"].replace("wav.scp", f"{row}.wav"))
        h = h[40:, 0]  # the first channel, starting at its peak
        expected = np.convolve(speech(), h / np.sqrt(np.sum(h**2)))[:32000]
        # the response is cut where 1e-6 of its energy remains
        np.testing.assert_allclose(aug.apply(speech(), Profile(rir=row)), expected, atol=2e-3)
        assert decibel(expected) == pytest.approx(decibel(speech()), abs=1)
    assert aug.apply(speech(999), Profile(rir=1)).shape == (999,)


def test_a_profile_is_an_augmentation(lists):
    """The same profile gives the same samples twice, from another object and after other calls.

    It is hashable and small.
    """
    config = AugmentConfig(**lists, prob=1)
    one, two = Augmenter(config), Augmenter(config)
    drawn = [one.draw(np.random.default_rng((3, i)), (0.9, 1.0, 1.1)[i % 3]) for i in range(30)]
    assert drawn == [two.draw(np.random.default_rng((3, i)), (0.9, 1.0, 1.1)[i % 3]) for i in range(30)]
    assert len(set(drawn)) > 25
    assert {p.kind for p in drawn} == {"", "noise", "babble", "music"}
    first = [one.apply(speech(), p) for p in drawn]
    for p, x in reversed(list(zip(drawn, first))):
        np.testing.assert_array_equal(two.apply(speech(), p), x)
    # and independent of the other crops in a batch, bit for bit: runs on one and two processes see the same
    # crops
    drawn = [replace(p, speed=1.0) for p in drawn]
    alone = np.stack([one.apply(speech(), p) for p in drawn])
    for size in (3, 5, 8, 30):
        waves = np.tile(speech(), (30, 1))
        for k in range(0, 30, size):
            two.apply_to_batch(waves[k : k + size], drawn[k : k + size])
        np.testing.assert_array_equal(waves, alone)
    # two crops with one profile get the same noise, so their outputs differ as their inputs do
    p = Profile(kind="noise", rows=(0,), offsets=(0.3,), snr=5.0)
    a, b = speech(seed=1), speech(seed=2)
    na, nb = one.apply(a, p) - a, one.apply(b, p) - b
    assert np.corrcoef(na, nb)[0, 1] > 0.9999


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), num=st.integers(1, 20000), silent=st.booleans())
def test_any_draw_keeps_length_and_is_finite(lists, seed, num, silent):
    aug = Augmenter(AugmentConfig(**lists, speed_perturb=(0.5, 1.0, 2.0)))
    rng = np.random.default_rng(seed)
    profile = aug.draw(rng, aug.config.speed_perturb[aug.draw_speed(rng)])
    wave = np.zeros(num, np.float32) if silent else speech(num)
    before = wave.copy()
    out = aug.apply(wave, profile)
    assert out.shape == (num,) and out.dtype == np.float32 and np.isfinite(out).all()
    np.testing.assert_array_equal(wave, before)
    if silent:
        assert not out.any()


def test_probability_and_weights(lists):
    aug = Augmenter(AugmentConfig(**lists, prob=0.6, reverb_weight=1, additive_weight=2, both_weight=1))
    drawn = [aug.draw(np.random.default_rng((4, i))) for i in range(4000)]
    share = {
        (wet, add): np.mean([(p.rir >= 0, bool(p.kind)) == (wet, add) for p in drawn])
        for wet in (True, False)
        for add in (True, False)
    }
    # four standard deviations of a share over 4000 draws are below 0.031
    assert share[False, False] == pytest.approx(0.4, abs=0.031)
    assert share[True, False] == pytest.approx(0.15, abs=0.031)
    assert share[False, True] == pytest.approx(0.3, abs=0.031)
    assert share[True, True] == pytest.approx(0.15, abs=0.031)
    kinds = [p.kind for p in drawn if p.kind]
    assert kinds.count("music") / len(kinds) == pytest.approx(1 / 3, abs=0.04)


def test_speed(lists):
    aug = Augmenter(AugmentConfig(prob=0, speed_perturb=(1.1,), rir_bank=0))
    p = aug.draw(np.random.default_rng(0), 1.1)
    need = source_length(16000, p)
    assert (p.speed, need) == (1.1, 17601)
    tone = np.sin(2 * np.pi * 1000 / RATE * np.arange(need)).astype("f4")
    out = aug.apply(tone, p, 16000)
    assert out.shape == (16000,)
    np.testing.assert_array_equal(out, soxr.resample(tone, RATE * 1.1, RATE)[:16000])
    assert np.argmax(np.abs(np.fft.rfft(out))) == 1100  # 1 s: bin = Hz
    assert aug.apply(tone[:16000], p).shape == (16000,)


def test_babble_from_the_training_data(lists):
    reader = AudioReader(DataDir.read(lists["music_list"]))
    with pytest.raises(UserError, match="babble_list: train needs the training data"):
        Augmenter(AugmentConfig(babble_list="train", rir_bank=0))
    aug = Augmenter(AugmentConfig(babble_list="train", prob=1, rir_bank=0), train=reader)
    profile = aug.draw(np.random.default_rng(0))
    added = aug.apply(speech(), profile) - speech()
    total = 0
    for row, offset in zip(profile.rows, profile.offsets):
        x = reader.read(row, int(offset * (60000 - 32000 + 1)), 32000)
        total = total + x / x.std()
    assert np.corrcoef(added, total)[0, 1] > 0.9999


def test_short_noise_is_repeated(lists):
    aug = Augmenter(AugmentConfig(noise_list=lists["noise_list"], prob=1, rir_bank=0))
    added = aug.apply(speech(), Profile(kind="noise", rows=(1,), offsets=(0.5,), snr=0.0)) - speech()
    np.testing.assert_allclose(added[:5000], added[5000:10000], atol=1e-6)
    x, _ = soundfile.read(lists["noise_list"].replace("data", "1.wav"))
    assert np.corrcoef(added[:2500], x[2500:])[0, 1] > 0.9999


def test_empty_lists_are_dropped_and_logged(tmp_path, caplog):
    (tmp_path / "empty.scp").touch()
    config = AugmentConfig(noise_list=str(tmp_path / "empty.scp"), rir_bank=0, prob=1)
    aug = Augmenter(config)
    assert "noise list" in caplog.text and "empty" in caplog.text and "crops are not augmented" in caplog.text
    assert aug.draw(np.random.default_rng(0)) == Profile()
    with pytest.raises(UserError, match="the noise list does not exist"):
        Augmenter(AugmentConfig(noise_list=str(tmp_path / "gone")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"prob": 1.5},
        {"reverb_weight": -1.0},
        {"noise_snr": (5, 0)},
        {"babble_speakers": (0, 2)},
        {"speed_perturb": (3.0,)},
        {"speed_perturb": (1.0, 1.0)},
        {"rir_rt60": (0.1, 2.0)},
    ],
)
def test_impossible_settings(wrong):
    with pytest.raises(UserError, match=rf"config key 'augment\.{next(iter(wrong))}(\.\d)?'"):
        cfg.validate(AugmentConfig, wrong, "augment")


def test_weights_that_are_all_0_are_refused():
    weights = {"reverb_weight": 0, "additive_weight": 0, "both_weight": 0}
    with pytest.raises(UserError, match="reverb_weight, additive_weight and both_weight are all 0"):
        cfg.validate(AugmentConfig, weights, "augment")


def test_cached_noise_gives_the_same_samples(lists):
    disk = Augmenter(AugmentConfig(noise_list=lists["noise_list"], prob=1, rir_bank=0))
    held = Augmenter(AugmentConfig(noise_list=lists["noise_list"], prob=1, rir_bank=0, cache_mb=1))
    for i in range(5):
        p = disk.draw(np.random.default_rng(i))
        np.testing.assert_array_equal(held.apply(speech(), p), disk.apply(speech(), p))


def reverberation_time(response):
    """T20 by Schroeder's backward integration, fitted from -5 to -25 dB."""
    level = 10 * np.log10(np.cumsum((response.astype(float) ** 2)[::-1])[::-1])
    a, b = np.argmax(level < -5), np.argmax(level < -25)
    slope = np.polyfit(np.arange(a, b) / RATE, level[a:b], 1)[0]
    return -60 / slope


def test_simulated_rooms(tmp_path):
    for i, rt60 in enumerate([0.2, 0.4, 0.6]):
        rirs = [rir.simulate(np.random.default_rng((i, k)), (rt60, rt60), (0.5, 2.0)) for k in range(6)]
        for h in rirs:
            assert h.dtype == np.float32 and np.argmax(np.abs(h)) == 0 and len(h) <= rir.MAX_LENGTH
            assert np.sum(h**2) == pytest.approx(1, abs=1e-4)
        assert np.median([reverberation_time(h) for h in rirs]) == pytest.approx(rt60, rel=0.35)


def test_bank_is_fixed_and_kept(tmp_path, monkeypatch):
    args = (4, 7, (0.1, 0.3), (0.5, 2.0))
    fresh, kept = rir.bank(*args), rir.bank(*args, tmp_path)
    assert [p.name[:9] for p in tmp_path.iterdir()] == ["rir_bank-"]
    monkeypatch.setattr(rir, "simulate", None)  # from here on the bank can only come from the file
    for a, b, c in zip(fresh, kept, rir.bank(*args, tmp_path)):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    aug = Augmenter(
        AugmentConfig(prob=1, rir_bank=4, rir_rt60=(0.1, 0.3), rir_distance=(0.5, 2.0)), 7, cache_dir=tmp_path
    )
    assert {aug.draw(np.random.default_rng(i)).rir for i in range(60)} == {0, 1, 2, 3}


def test_a_damaged_bank_is_made_again_with_a_warning(tmp_path, caplog):
    args = (3, 7, (0.1, 0.2), (0.5, 1.0), tmp_path)
    want = rir.bank(*args)
    (path,) = tmp_path.iterdir()
    whole, table = path.read_bytes(), np.load(path)
    other = tmp_path / "precious.npy"
    np.save(other, table[:2])
    kept = other.read_bytes()

    def link():
        path.unlink()
        path.symlink_to(other)

    for name, damage in {
        "empty": lambda: path.write_bytes(b""),
        "garbage": lambda: path.write_bytes(b"x" * 50),
        "cut": lambda: path.write_bytes(whole[:-9]),
        "zeros": lambda: np.save(path, np.zeros((3, 9), np.float32)),
        "ones": lambda: np.save(path, np.ones((3, 9), np.float32)),
        "NaN": lambda: np.save(path, np.full_like(table, np.nan)),
        "fewer rooms": lambda: np.save(path, table[:2]),
        "more rooms": lambda: np.save(path, np.concatenate([table, table])),
        "one room": lambda: np.save(path, table[0]),
        "another type": lambda: np.save(path, table.astype(np.float64)),
        "not aligned": lambda: np.save(path, table[:, ::-1]),
        "pickles": lambda: np.save(path, np.array([[{}] * 9] * 3, dtype=object), allow_pickle=True),
        "an archive": lambda: np.savez(open(path, "wb"), table),
        "a link to another bank": link,
        "a link to nothing": lambda: (path.unlink(), path.symlink_to(tmp_path / "nothing")),
    }.items():
        damage()
        caplog.clear()
        found = rir.bank(*args)
        assert all(np.array_equal(a, b) for a, b in zip(want, found, strict=True)), name
        assert "simulated again" in caplog.text, name
        assert path.read_bytes() == whole and not path.is_symlink() and other.read_bytes() == kept, name
    caplog.clear()
    rir.bank(*args)
    assert not caplog.text


def test_rooms_exist_for_short_reverberation_and_far_sources():
    """Room 94 of seed 27 draws 0.101 s, for which its first size is too large.

    No room with 0.15 s is 5 m long.
    """
    assert np.isfinite(rir.simulate(np.random.default_rng((27, 94)), (0.1, 0.7), (0.5, 4.0))).all()
    for seed in range(6):
        assert len(rir.simulate(np.random.default_rng(seed), (0.15, 0.2), (5.0, 5.0)))
