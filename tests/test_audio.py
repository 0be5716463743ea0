"""pyspkv.audio.reader against soundfile and soxr, which are used directly on whole files."""

import pickle

import kaldiio
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyspkv.audio import reader as module
from pyspkv.audio.reader import SAMPLE_RATE, AudioReader
from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir

# name -> (rate, channels, soundfile.write options)
KINDS = {
    "plain.wav": (16000, 1, {}),
    "float.wav": (16000, 1, {"subtype": "FLOAT"}),
    "plain.flac": (16000, 1, {}),
    "stereo.flac": (16000, 2, {}),
    "plain.ogg": (16000, 1, {}),
    "plain.mp3": (16000, 1, {}),
    "8k.wav": (8000, 1, {}),
    "44k.flac": (44100, 2, {}),
    "48k.ogg": (48000, 1, {}),
    "odd.wav": (12345, 1, {}),
}


def signal(rate, channels, seconds=2.0, seed=0):
    return (np.random.default_rng(seed).standard_normal((int(rate * seconds), channels)) * 0.1).astype("f4")


def data_dir(path, wav, segments=None, **extra):
    utts = sorted(segments or wav)
    return DataDir(path, utts, utts, wav, segments, extra)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a file of each kind, and each whole file as soundfile + mean + soxr give it."""
    folder = tmp_path_factory.mktemp("audio")
    truth = {}
    for name, (rate, channels, options) in KINDS.items():
        soundfile.write(folder / name, signal(rate, channels), rate, **options)
        x, _ = soundfile.read(folder / name, dtype="float32", always_2d=True)
        x = x.mean(1)
        truth[name] = np.clip(x if rate == SAMPLE_RATE else soxr.resample(x, rate, SAMPLE_RATE), -1, 1)
    return folder, truth


@pytest.mark.parametrize("name", KINDS)
def test_crop_equals_slice_of_whole(files, name):
    folder, truth = files
    whole = truth[name]
    reader = AudioReader(data_dir(folder, {"u": str(folder / name)}))
    assert abs(reader.num_samples(0) - len(whole)) <= 1
    np.testing.assert_allclose(reader.read(0)[: len(whole)], whole[: reader.num_samples(0)], atol=1e-6)
    tolerance = 1e-5 if reader._rate[0] != SAMPLE_RATE else 1e-6
    for start, num in [(0, 100), (1, 1), (777, 16000), (12345, 9999), (len(whole) - 50, 50), (31000, 5000)]:
        crop = reader.read(0, start, num)
        assert crop.dtype == np.float32
        expected = whole[start : start + num]
        assert abs(len(crop) - len(expected)) <= 1
        np.testing.assert_allclose(crop[: len(expected)], expected[: len(crop)], atol=tolerance)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 24000, 32000, 44100, 96000]),
    samples=st.integers(1, 30000),
    data=st.data(),
)
def test_any_crop_of_any_rate(tmp_path, rate, samples, data):
    x = signal(rate, 1, samples / rate + 0.5 / rate, seed=samples)
    soundfile.write(tmp_path / "a.wav", x, rate, subtype="FLOAT")
    reader = AudioReader(data_dir(tmp_path, {"u": str(tmp_path / "a.wav")}))
    whole = reader.read(0)
    assert len(whole) == reader.num_samples(0) == max(1, int(len(x) * SAMPLE_RATE / rate + 0.5))
    start = data.draw(st.integers(0, len(whole) - 1))
    num = data.draw(st.integers(1, len(whole)))
    crop = reader.read(0, start, num)
    assert len(crop) == min(num, len(whole) - start)
    np.testing.assert_allclose(crop, whole[start : start + num], atol=1e-4)


def test_crop_decodes_only_the_crop(files, monkeypatch):
    folder, _ = files
    decoded = []
    for kind in (soundfile.SoundFile, module.Flac):
        read = kind.read
        monkeypatch.setattr(kind, "read", lambda f, n, read=read, **k: decoded.append(n) or read(f, n, **k))
    for name in ("plain.flac", "44k.flac", "8k.wav"):
        AudioReader(data_dir(folder, {"u": str(folder / name)})).read(0, 8000, 1600)
    assert decoded[0] == 1600
    assert 4410 <= decoded[1] <= 4410 + 2 * 1000 + 441
    assert 800 <= decoded[2] <= 800 + 2 * 256 + 1


@pytest.mark.parametrize(
    ("subtype", "channels"), [("PCM_16", 1), ("PCM_24", 1), ("PCM_16", 2), ("PCM_S8", 1)]
)
def test_flac_is_libsndfiles_to_the_bit(tmp_path, subtype, channels, monkeypatch):
    file = tmp_path / "a.FLAC"
    soundfile.write(file, signal(25000, channels), 16000, format="FLAC", subtype=subtype)
    monkeypatch.setattr(soundfile, "SoundFile", None)  # here soundfile must not be called
    reader = AudioReader(data_dir(tmp_path, {"a": str(file)}))
    found = [reader.read(0), reader.read(0, 33333, 5000), reader.read(0, 49990, 100)]
    monkeypatch.undo()
    x, _ = soundfile.read(file, dtype="float32", always_2d=True)
    x = x.mean(1, dtype=np.float32)
    for part, expected in zip(found, (x, x[33333:38333], x[49990:])):
        np.testing.assert_array_equal(part, expected)


def test_flac_by_name_alone_and_damaged_flac(tmp_path):
    x = signal(25000, 1)
    soundfile.write(tmp_path / "wav.flac", x, 16000, format="WAV")
    read = AudioReader(data_dir(tmp_path, {"a": str(tmp_path / "wav.flac")})).read(0)
    np.testing.assert_allclose(read, x[:, 0], atol=1 / 32767)
    soundfile.write(tmp_path / "bad.flac", x, 16000)
    data = bytearray((tmp_path / "bad.flac").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "bad.flac").write_bytes(data)
    with pytest.raises(UserError, match="cut short or damaged"):
        AudioReader(data_dir(tmp_path, {"a": str(tmp_path / "bad.flac")})).read(0)


def test_kaldi_ark(tmp_path):
    waves = {f"u{i}": (16000, (signal(16000, 1, 1 + i / 7, i)[:, 0] * 2**15).astype("i2")) for i in range(3)}
    kaldiio.save_ark(str(tmp_path / "w.ark"), waves, scp=str(tmp_path / "w.scp"))
    wav = dict(line.split() for line in (tmp_path / "w.scp").read_text().splitlines())
    reader = AudioReader(data_dir(tmp_path, wav))
    for row, (_, x) in enumerate(waves.values()):
        assert reader.num_samples(row) == len(x)
        np.testing.assert_array_equal(reader.read(row) * 32768, x)
        np.testing.assert_array_equal(reader.read(row, 1234, 4321) * 32768, x[1234 : 1234 + 4321])


@pytest.mark.parametrize("name", ["plain.flac", "44k.flac", "8k.wav"])
def test_segments(files, name):
    folder, truth = files
    segments = {"a": ("r", 0.25, 1.0), "b": ("r", 1.5, 2.3), "c": ("r", 0.0, 0.1)}
    reader = AudioReader(data_dir(folder, {"r": str(folder / name)}, segments))
    whole = truth[name]
    assert [reader.num_samples(i) for i in (0, 2)] == [12000, 1600]
    np.testing.assert_allclose(reader.read(0), whole[4000:16000], atol=1e-5)
    np.testing.assert_allclose(reader.read(0, 100, 500), whole[4100:4600], atol=1e-5)
    np.testing.assert_allclose(reader.read(1), whole[24000:], atol=1e-5)  # 0.3 s beyond the end are cut off
    assert (
        reader.num_samples(1) == 12800
    )  # as drawn before the file was read, whatever this process has read since
    np.testing.assert_allclose(reader.read(1, 12000, 800, back=True), whole[-800:], atol=1e-5)
    np.testing.assert_allclose(reader.read(1, 100, 12700, back=True), whole[24000:], atol=1e-5)


def test_lengths_do_not_depend_on_what_was_read(files):
    """With a rounded utt2dur, a resumed run must draw the same crops as a run that was never killed, cached
    or not.
    """
    folder, truth = files
    data = data_dir(folder, {"u": str(folder / "plain.wav")}, utt2dur={"u": "2.01"})
    reader, held = AudioReader(data), AudioReader(data, cache_mb=1)
    held.preload()
    for r in (reader, held):
        assert r.num_samples(0) == 32160
        assert len(r.read(0)) == len(truth["plain.wav"]) == 32000
        assert r.num_samples(0) == 32160
        np.testing.assert_allclose(r.read(0, 32100, 60, back=True), truth["plain.wav"][-60:], atol=1e-4)


def test_lengths_from_tables_open_no_file(tmp_path):
    wav = {"a": "/nowhere/a.wav", "b": "/nowhere/b.wav"}
    both = data_dir(
        tmp_path, wav, utt2dur={"a": "2.5", "b": "1.0"}, utt2num_samples={"a": "40001", "b": "44100"}
    )
    assert [AudioReader(both).num_samples(i) for i in (0, 1)] == [40001, 16000]
    assert AudioReader(data_dir(tmp_path, wav, utt2dur={"a": "2.5", "b": "1"})).num_samples(0) == 40000
    cut = data_dir(tmp_path, {"r": "/nowhere"}, {"a": ("r", 1.0, 2.5)})
    assert AudioReader(cut).num_samples(0) == 24000


def test_sample_counts_are_at_the_files_rate(files):
    folder, _ = files
    wav = {"a": str(folder / "8k.wav"), "b": str(folder / "8k.wav")}
    counts = {"a": "16000", "b": "16000"}
    assert AudioReader(data_dir(folder, wav, utt2num_samples=counts)).num_samples(1) == 32000
    mixed = AudioReader(data_dir(folder, {**wav, "b": str(folder / "plain.wav")}, utt2num_samples=counts))
    mixed.num_samples(1)
    with pytest.raises(UserError, match="utterance b: utt2num_samples is ambiguous: 16000 Hz here"):
        mixed.read(1)


def test_channel(files):
    folder, _ = files
    x, _ = soundfile.read(folder / "stereo.flac", dtype="float32")
    data = data_dir(folder, {"u": str(folder / "stereo.flac")})
    np.testing.assert_array_equal(AudioReader(data, channel=1).read(0, 10, 100), x[10:110, 1])
    with pytest.raises(UserError, match="has 2 channels, but channel 2"):
        AudioReader(data, channel=2).read(0)


def test_preload(files, capsys):
    folder, _ = files
    names = ["plain.flac", "8k.wav", "stereo.flac", "44k.flac"]
    data = data_dir(folder, {f"u{i}": str(folder / n) for i, n in enumerate(names)})
    disk = AudioReader(data)
    # The first file is cached in 16 bits. Resampled audio is not, so after the second file all are in 32
    # bits.
    for mb, rows in ((1 * 64000, 1), (3 * 64000, 1), (6 * 64000, 3), (9 * 64000, 4)):
        held = AudioReader(data, cache_mb=mb / 2**20)
        assert held.preload() == rows
        assert "of 4 utterances" in capsys.readouterr().out
        held = pickle.loads(pickle.dumps(held))
        for row in range(4):
            assert held.num_samples(row) == disk.num_samples(row)
            got, want = held.read(row), disk.read(row)
            np.testing.assert_array_equal(got, want)
            got[:] = 0  # the caller may modify the array that it got
            np.testing.assert_allclose(held.read(row, 99, 1000), disk.read(row, 99, 1000), atol=1e-6)
    with pytest.raises(UserError, match="sample 32000 does not exist; there are 32000"):
        held.read(0, 32000, 5)
    assert AudioReader(data).preload() == 0


def test_pipes(files, tmp_path):
    folder, truth = files
    (tmp_path / "wav.scp").write_text(f"a {folder / 'plain.wav'}\nu cat '{folder / 'plain.wav'}' |\n")
    wav = dict(line.split(" ", 1) for line in (tmp_path / "wav.scp").read_text().splitlines())
    data = data_dir(tmp_path, wav)
    with pytest.raises(UserError, match=r"wav.scp:2: utterance u: is a command.*\n  hint: .*allow_pipes"):
        AudioReader(data).read(1)
    np.testing.assert_array_equal(
        AudioReader(data, allow_pipes=True).read(1, 5, 50), truth["plain.wav"][5:55]
    )
    streamed = bytearray(
        (folder / "plain.wav").read_bytes()
    )  # sox and ffmpeg write to a pipe, so they cannot go back and write the size
    at = streamed.index(b"data")
    streamed[4:8] = streamed[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    (tmp_path / "streamed").write_bytes(streamed)
    data.wav["u"] = f"cat {tmp_path}/streamed |"
    np.testing.assert_array_equal(AudioReader(data, allow_pipes=True).read(1), truth["plain.wav"])
    data.wav["u"] = "echo sorry >&2; exit 3 |"
    with pytest.raises(UserError, match="command failed with exit code 3: .*sorry"):
        AudioReader(data, allow_pipes=True).read(1)


def break_files(folder):
    """Damaged entry -> what the message must contain."""
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is no audio\n")
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    bad = signal(16000, 1)
    bad[700] = np.nan
    soundfile.write(folder / "nan.wav", bad, 16000, subtype="FLOAT")
    soundfile.write(folder / "cut.flac", signal(16000, 1), 16000)
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "bad.ark").write_bytes(b"u1 \0Bnothing at all")
    soundfile.write(folder / "piped.flac", signal(16000, 1), 16000)
    raw = bytearray((folder / "piped.flac").read_bytes())  # STREAMINFO: 36 bits of samples, 0 = unknown
    raw[21] &= 0xF0
    raw[22:26] = bytes(4)
    (folder / "piped.flac").write_bytes(raw)
    return {
        "missing.wav": "missing.wav does not exist",
        "empty.wav": r"is empty \(0 bytes\)",
        "piped.flac": "does not tell its length",
        "text.wav": "cannot be read by libsndfile",
        "none.wav": "contains no samples",
        "nan.wav": "non-finite",
        "cut.flac": "cut short|damaged",
        "bad.ark:3": r"at byte 3 of .* neither a WAV \(RIFF\)",
        "gone.ark:3": "gone.ark does not exist",
        "some.ark:3[0:5]": r"has a range \[0:5\]",
        ".": "is a folder|cannot be read by libsndfile",
    }


def test_errors_name_utterance_file_and_line(tmp_path):
    for entry, message in break_files(tmp_path).items():
        (tmp_path / "wav.scp").write_text(f"a x\nu {tmp_path / entry}\n")
        reader = AudioReader(data_dir(tmp_path, {"u": str(tmp_path / entry)}))
        with pytest.raises(UserError, match=f"^{tmp_path}/wav.scp:2: utterance u: .*({message})"):
            reader.read(0)


def test_segment_beyond_the_end(files, tmp_path):
    folder, _ = files
    (tmp_path / "segments").write_text("a r 0 1\nb r 1 2.6\n")
    data = data_dir(tmp_path, {"r": str(folder / "8k.wav")}, {"a": ("r", 0, 1), "b": ("r", 1, 2.6)})
    with pytest.raises(
        UserError, match=r"segments:2: utterance b: segment 1-2.6 s lies beyond .* 2.000 s\n  hint"
    ):
        AudioReader(data).read(1)
