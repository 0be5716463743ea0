"""Audio that must be refused or read correctly: cut files, unknown lengths, other scales, silence, odd
codecs.
"""

import io
import os
import shlex
import struct

import kaldiio
import numpy as np
import pytest
import soundfile
import soxr
import torch

from pyspkv.api.speaker_model import Model
from pyspkv.audio import reader
from pyspkv.audio.reader import AudioReader, signal_problem
from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir

RATE = 16000


def noise(seconds=1.0, rate=RATE, channels=1, seed=0):
    """Noise of changing loudness, so that lossy codecs switch their block sizes."""
    n = round(seconds * rate)
    level = 0.02 + 0.2 * (np.sin(np.arange(n) * 17 / rate) > 0)[:, None]
    x = np.random.default_rng(seed).standard_normal((n, channels)) * level
    return np.clip(x, -0.9, 0.9).astype("f4")


def coded(form, subtype="PCM_16", x=None, rate=RATE):
    """The bytes of a file that libsndfile writes."""
    x = noise(rate=rate) if x is None else x
    out = io.BytesIO()
    if subtype in UNSEEKABLE:  # soundfile can write these formats only to a path
        raise ValueError(subtype)
    soundfile.write(out, x, rate, format=form, subtype=subtype)
    return out.getvalue()


def one(entry, allow_pipes=False, folder=None, **table):
    entry = str(entry)
    return AudioReader(DataDir(folder, ["u"], ["u"], {"u": entry}, utt_tables=table), allow_pipes)


def whole(raw):
    """A complete file as soundfile decodes it."""
    return soundfile.read(io.BytesIO(raw), dtype="float32")[0]


# --- cut files

UNSEEKABLE = ["GSM610", "G721_32", "G723_24", "G723_40", "NMS_ADPCM_16", "NMS_ADPCM_32", "DPCM_16", "DPCM_8"]
CONTAINERS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("WAVEX", "PCM_16"),
    ("W64", "PCM_16"),
    ("W64", "DOUBLE"),
    ("RF64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AIFF", "IMA_ADPCM"),
    ("AIFF", "ALAW"),
    ("AU", "PCM_16"),
    ("AU", "ULAW"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("NIST", "PCM_16"),
    ("SVX", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("form", "subtype"), CONTAINERS)
def test_cut_files_are_refused_and_whole_ones_are_not(tmp_path, form, subtype):
    raw = coded(form, subtype)
    file = tmp_path / f"a.{form.lower()}"
    file.write_bytes(raw)
    reader = one(file)
    np.testing.assert_allclose(reader.read(0), np.clip(whole(raw), -1, 1), atol=1e-7)
    for part in (0.3, 0.5, 0.93):
        file.write_bytes(raw[: int(len(raw) * part)])
        with pytest.raises(UserError, match=r"cut short|damaged"):
            one(file).read(0)
        if subtype in ("PCM_16", "PCM_24") and form not in ("CAF", "FLAC"):
            with pytest.raises(UserError, match=r"promises 1.000 s, 0\.\d+ s are there\n  hint: "):
                one(file).read(0, 5, 10)  # also before any sample is read
            with pytest.raises(UserError, match="cut short"):
                one(file).num_samples(0)
    for part in (0.5, 0.93):  # also from a command
        file.write_bytes(raw[: int(len(raw) * part)])
        with pytest.raises(UserError, match=r"cut short|damaged|cannot be read by"):
            one(f"cat '{file}' |", allow_pipes=True).read(0)


def test_one_missing_sample_is_reported_and_less_is_not(tmp_path):
    raw = coded("WAV", "PCM_24", noise(channels=2))
    (tmp_path / "a.wav").write_bytes(raw[:-5])
    assert one(tmp_path / "a.wav").num_samples(0) == RATE - 1
    (tmp_path / "a.wav").write_bytes(raw[:-6])
    with pytest.raises(UserError, match="cut short"):
        one(tmp_path / "a.wav").num_samples(0)


def chunk(name, content, order="<"):
    return name + struct.pack(order + "I", len(content)) + content + b"\0" * (len(content) % 2)


def test_odd_but_sound_files_are_read(tmp_path):
    raw, file = coded("WAV"), tmp_path / "a.wav"
    at = raw.index(b"data")
    before = raw[:at] + chunk(b"bext", bytes(9001)) + chunk(b"LIST", b"INFOISFT\x05\0\0\0sox 14")
    odd = raw[:at] + b"data" + struct.pack("<I", len(raw) - at - 9) + raw[at + 8 : -1]
    byte = coded("WAV", "PCM_U8", noise(0.5)[:-1])
    for name, made, n in [
        ("chunks before", before + raw[at:], RATE),
        ("chunk behind", raw + chunk(b"LIST", b"INFO"), RATE),
        ("rubbish behind", raw + b"\0" * 77, RATE),
        ("odd data", odd, None),
        ("odd data, no padding", byte[: byte.index(b"data") + 8 + RATE // 2 - 1], RATE // 2 - 1),
        ("block of ADPCM not whole", coded("WAV", "MS_ADPCM")[:-3], None),
    ]:
        file.write_bytes(made)
        found = one(file).read(0)
        assert n is None or len(found) == n, name
        expected = whole(made)
        np.testing.assert_array_equal(found, expected[: len(found)], err_msg=name)
    file.write_bytes(before + raw[at:-RATE])  # cut behind chunks that are longer than one read
    with pytest.raises(UserError, match=r"promises 1.000 s, 0.500 s"):
        one(file).read(0)


# --- headers that do not know the length


def put(raw, at, form, *values):
    out = bytearray(raw)
    struct.pack_into(form, out, at, *values)
    return bytes(out)


def unknown():
    """Name -> (bytes of a file with unknown length, samples of the complete file)."""
    out = {}
    sizes = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x7FFFFFDB, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFE)
    raw = coded("WAV")
    for size in sizes:
        made = put(raw, raw.index(b"data") + 4, "<I", size)
        for riff in (0, 36, size):
            out[f"WAV {size:x} {riff:x}"] = (put(made, 4, "<I", riff), raw)
    raw = coded("WAV", "IMA_ADPCM")
    out["WAV ADPCM 0"] = (put(raw, raw.index(b"data") + 4, "<I", 0), raw)
    raw = coded("RF64")
    for size in (0, 2**64 - 1, 2**63 - 1, 0xFFFFFFFF):
        out[f"RF64 {size:x}"] = (put(raw, raw.index(b"ds64") + 8, "<QQQ", size, size, size), raw)
    raw = coded("W64")
    for size in (0, 24, 2**64 - 1, 2**63 - 1, 0xFFFFFFFF):
        out[f"W64 {size:x}"] = (put(raw, raw.index(b"data") + 16, "<Q", size), raw)
    raw = coded("AIFF")
    for size in (0, 8, 0xFFFFFFFF, 0x7FFFFFFF, 0x7F000008):
        for frames in (0, RATE, 0x3F800000):
            made = put(raw, raw.index(b"SSND") + 4, ">I", size)
            out[f"AIFF {size:x} {frames:x}"] = (put(made, raw.index(b"COMM") + 10, ">I", frames), raw)
    raw = coded("AU")
    for size in (0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFE):
        out[f"AU {size:x}"] = (put(raw, 8, ">I", size), raw)
    raw = coded("CAF")
    for size in (0, -1, 2**63 - 1):
        out[f"CAF {size:x}"] = (put(raw, raw.index(b"data") + 4, ">q", size), raw)
    return out


def test_unknown_lengths_are_read_to_the_end(tmp_path):
    for name, (raw, sound) in unknown().items():
        file = tmp_path / f"a.{name.split()[0].lower()}"
        file.write_bytes(raw)
        reader, expected = one(file), whole(sound)
        assert reader.num_samples(0) == len(expected), name
        np.testing.assert_array_equal(reader.read(0), expected, err_msg=name)
        np.testing.assert_array_equal(reader.read(0, 777, 999), expected[777:1776], err_msg=name)
        piped = one(f"cat '{file}' |", allow_pipes=True)
        np.testing.assert_array_equal(piped.read(0), expected, err_msg=name)
        assert file.read_bytes() == raw  # the file is read, not repaired


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (16000, 2), (44100, 1), (48000, 2)])
def test_mp3_without_a_tag(tmp_path, mode, rate, channels):
    """libsndfile estimates the length from the bit rate of the first frame: here a third of the true length,
    because the bit
    rate is variable.
    """
    x, out, file = noise(6.0, rate, channels), io.BytesIO(), tmp_path / "a.mp3"
    x[rate : 3 * rate] *= 1e-4
    soundfile.write(
        out, x, rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode, compression_level=0.5
    )
    raw = out.getvalue()
    first = raw.index(b"\xff", 4)
    while raw[first : first + 2] != raw[:2]:
        first = raw.index(b"\xff", first + 1)
    tagged, bare = one(file), raw[first:]
    file.write_bytes(raw)
    sound = tagged.read(0)
    title = b"ID3\x03\0\0\0\0\x27\x10" + bytes(5008)
    for made in (bare, title + bare, bare + b"TAG" + bytes(125), title + bare + b"TAG" + bytes(125)):
        file.write_bytes(made)
        for entry in (str(file), f"cat {file} |"):
            reader = one(entry, allow_pipes=True)
            found = reader.read(0)
            assert len(found) == reader.num_samples(0)
            # without a tag the encoder's delay is unknown
            late = int(np.argmax(np.correlate(found[:4000], sound[:1000])))
            # the padding at the end is cut only if a tag gives its length
            n = min(len(sound), len(found) - late) - 2500
            assert n > 0.9 * len(sound)
            # at 44.1 kHz the cut is not at a whole sample
            delayed, same = found[late + 2500 : late + n], sound[2500:n]
            assert np.corrcoef(delayed, same)[0, 1] > (0.9999 if rate != 44100 else 0.95)
            np.testing.assert_allclose(reader.read(0, 50000, 3000), found[50000:53000], atol=1e-6)
    file.write_bytes(bare[: len(bare) // 2])  # nothing shows that there was more audio
    assert len(one(file).read(0)) == one(file).num_samples(0)


def test_empty_ones_stay_empty(tmp_path):
    for form in ("WAV", "W64", "RF64", "AIFF", "AU", "CAF"):
        file = tmp_path / f"a.{form.lower()}"
        for behind in (b"", chunk(b"LIST", b"INFOISFT\x04\0\0\0sox\0")):
            file.write_bytes(coded(form, x=np.zeros(0)) + (behind if form == "WAV" else b""))
            with pytest.raises(UserError, match=r"contains no samples|cannot be read by"):
                one(file).read(0)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_not_read_as_its_first_part(tmp_path, subtype):
    parts = [coded("OGG", subtype, noise(1.0, seed=seed)) for seed in (0, 1)]
    for made, ok in ((parts[0], True), (parts[1], True), (parts[0] + parts[1], False)):
        (tmp_path / "a.ogg").write_bytes(made)
        for entry in (str(tmp_path / "a.ogg"), f"cat {tmp_path}/a.ogg |"):
            if ok:
                assert len(one(entry, allow_pipes=True).read(0)) == RATE
            else:
                with pytest.raises(UserError, match="several Ogg streams"):
                    one(entry, allow_pipes=True).read(0)


# --- scales


@pytest.mark.parametrize("form", ["WAV", "W64", "AIFF", "AU", "CAF"])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_float_files_of_another_scale(tmp_path, form, subtype):
    x, file = noise(0.5), tmp_path / "a.audio"
    for peak, divisor in ((2**15, 2**15), (20000, 2**15), (2**31, 2**31), (3.3, 4)):
        file.write_bytes(coded(form, subtype, x / np.abs(x).max() * peak))
        with pytest.raises(
            UserError, match=rf"(?s)float samples up to .*\n  hint: divide them by {divisor}\b"
        ):
            one(file).read(0)
    file.write_bytes(coded(form, subtype, x / np.abs(x).max() * 1.9))  # overshoots full scale
    assert np.abs(one(file).read(0)).max() == 1
    (tmp_path / "stereo").write_bytes(coded(form, subtype, np.hstack([x, -x]) * 9000))
    with pytest.raises(UserError, match="float samples"):  # although the mean of the channels is silent
        one(tmp_path / "stereo").read(0)


def test_the_scale_of_the_hint_is_the_right_one(tmp_path):
    x = noise(0.5)
    soundfile.write(tmp_path / "OLD.wav", x * 32768, RATE, subtype="FLOAT")
    with pytest.raises(UserError) as err:
        one(tmp_path / "OLD.wav").read(0)
    old, rate = soundfile.read(tmp_path / "OLD.wav")
    scale = int(str(err.value).split("hint: divide them by ")[1].split()[0])
    soundfile.write(tmp_path / "NEW.wav", old / scale, rate)
    np.testing.assert_allclose(one(tmp_path / "NEW.wav").read(0), x[:, 0], atol=1 / 32767)


def test_codecs_may_overshoot(tmp_path):
    x = np.sign(noise(1.0)) * 0.999
    for form, subtype in (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")):
        (tmp_path / "a").write_bytes(raw := coded(form, subtype, x))
        assert np.abs(whole(raw)).max() > 1.02
        assert np.abs(one(tmp_path / "a").read(0)).max() == 1


# --- silence


def silent_files(folder):
    """Name -> what the message must say."""
    x = noise()
    waves = {
        "zero.wav": (np.zeros(RATE), "digital silence"),
        "zero.flac": (np.zeros((RATE, 2)), "digital silence"),
        "zero.mp3": (np.zeros(RATE), "silence"),
        "zero.ogg": (np.zeros(RATE), "silence"),
        "level.wav": (np.full(RATE, 0.25), "a constant 0.25"),
        "dither.wav": (np.random.default_rng(0).integers(-1, 2, RATE) / 2**15, "last bit"),
        "cancel.wav": (np.hstack([x, -x]), "channels cancel"),
        "cancel.flac": (np.hstack([x, -x * 0.99]), "channels cancel"),
        "one.wav": (x[:1], "1 sample at"),
        "short.wav": (x[:150], "150 samples at 16000 Hz, less than 10 ms"),
    }
    for name, (wave, _) in waves.items():
        soundfile.write(folder / name, wave, RATE)
    soundfile.write(folder / "zero8k.wav", np.full(8000, 0.1), 8000)  # resampling leaves ripples at both ends
    return {name: why for name, (_, why) in waves.items()} | {"zero8k.wav": "a constant"}


def test_silence_is_recorded_and_named(tmp_path):
    reasons = silent_files(tmp_path)
    soundfile.write(tmp_path / "good.wav", noise(), RATE)
    soundfile.write(tmp_path / "pause.wav", np.concatenate([np.zeros(RATE), noise()[:, 0]]), RATE)
    soundfile.write(tmp_path / "left.wav", np.hstack([noise(), 0 * noise()]), RATE)
    soundfile.write(tmp_path / "quiet.wav", noise() * 0.001, RATE)
    names = [*reasons, "good.wav", "pause.wav", "left.wav", "quiet.wav"]
    reader = AudioReader(DataDir(None, names, names, {n: str(tmp_path / n) for n in names}))
    assert reader.silence_note() == ""
    assert not reader.read(names.index("pause.wav"), 0, 100).any()  # a recording with a pause is not silent
    assert not reader.silent
    for row in range(len(names)):
        reader.read(row)
    assert {names[row] for row in reader.silent} == set(reasons)
    for row, why in reader.silent.items():
        assert reasons[names[row]] in why
    note = reader.silence_note(most=2)
    assert note.startswith("11 utterances have no signal: zero.wav (digital silence), zero.flac (digital")
    assert note.endswith("...")
    held = AudioReader(reader.data, cache_mb=10)
    held.preload()
    assert held.silent == reader.silent


def test_signal_problem_of_arrays():
    x = noise()[:, 0]
    assert signal_problem(x) is None
    assert signal_problem(x * 1e-3) is None
    assert "silence" in signal_problem(0 * x)
    assert "constant" in signal_problem(0 * x + 0.5)
    assert "less than 10 ms" in signal_problem(x[:79], rate=8000)
    assert signal_problem(x[:80], rate=8000) is None
    click = 0 * x
    click[5] = 0.5
    assert signal_problem(click) is None
    stereo = np.stack([x, x], 1)
    assert signal_problem(x, stereo) is None


class Level(torch.nn.Module):
    """A stand-in for an encoder."""

    min_samples = 400

    def forward(self, wave, lengths):
        return wave.square().mean(-1, keepdim=True)


def test_verification_refuses_silence(tmp_path):
    reasons = silent_files(tmp_path)
    soundfile.write(tmp_path / "good.wav", noise(), RATE)
    model = Model(Level().eval(), tmp_path, torch.device("cpu"), None)
    for name, why in reasons.items():
        with pytest.raises(UserError, match=rf"1 utterance has no signal: .*/{name} \(.*{why}"):
            model.embed_speech([str(tmp_path / "good.wav"), str(tmp_path / name)])


# --- crops of codecs that cannot seek, or seek to a wrong place


def crops_are_slices(file, positions, num=900, tolerance=0.0):
    reader = one(file)
    x = reader.read(0)
    for start in positions:
        start = int(min(max(start, 0), len(x) - 1))
        np.testing.assert_allclose(
            reader.read(0, start, num), x[start : start + num], atol=tolerance, rtol=0, err_msg=f"{start}"
        )
    return x


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "GSM610"),
        ("W64", "GSM610"),
        ("AIFF", "GSM610"),
        ("AU", "G721_32"),
        ("AU", "G723_24"),
        ("AU", "G723_40"),
        ("WAV", "G721_32"),
        ("WAV", "NMS_ADPCM_16"),
        ("WAV", "NMS_ADPCM_32"),
        ("XI", "DPCM_16"),
        ("XI", "DPCM_8"),
    ],
)
def test_unseekable_codecs(tmp_path, form, subtype, monkeypatch):
    file, rate = tmp_path / f"a.{form.lower()}", 44100 if form == "XI" else 8000
    soundfile.write(file, noise(2.0, rate), rate, format=form, subtype=subtype)
    with soundfile.SoundFile(file) as f:
        assert not f.seekable()
        truth = f.read(f.frames, dtype="float32")
    x = crops_are_slices(file, [0, 1, 159, 5000, 16001, 31000, 10**6], tolerance=1e-6)
    np.testing.assert_allclose(x, np.clip(soxr.resample(truth, rate, RATE), -1, 1)[: len(x)], atol=1e-6)
    segments = {"a": ("r", 0.5, 1.25), "b": ("r", 0.0, 0.3), "c": ("r", 1.5, -1.0)}
    data = DataDir(tmp_path, list("abc"), list("abc"), {"r": str(file)}, segments)
    opened, sound_file = [], soundfile.SoundFile
    monkeypatch.setattr(soundfile, "SoundFile", lambda *a, **k: opened.append(a) or sound_file(*a, **k))
    reader = AudioReader(data)
    for row, (first, last) in enumerate([(8000, 20000), (0, 4800), (24000, len(x))]):
        np.testing.assert_allclose(reader.read(row), x[first:last], atol=1e-6)
        reader.read(row)[:] = 0  # the cached array itself is not returned
    assert len(opened) == 1  # each recording is decoded once


def test_a_seek_that_fails_is_read_from_the_start(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", noise(), RATE)
    x = one(tmp_path / "a.wav").read(0)

    seek = soundfile.SoundFile.seek

    def fail(self, frame, *whence):
        if frame == 5000:
            raise soundfile.LibsndfileError(39)
        return seek(self, frame, *whence)

    monkeypatch.setattr(soundfile.SoundFile, "seek", fail)
    np.testing.assert_array_equal(one(tmp_path / "a.wav").read(0, 5000, 100), x[5000:5100])


@pytest.mark.parametrize(
    ("form", "subtype", "rate", "level"),
    [
        ("OGG", "VORBIS", 8000, 0.5),
        ("OGG", "VORBIS", 16000, 0.0),
        ("OGG", "VORBIS", 16000, 0.9),
        ("OGG", "VORBIS", 44100, 0.6),
        ("OGG", "OPUS", 16000, 0.95),
        ("OGG", "OPUS", 48000, 0.5),
        ("MP3", "MPEG_LAYER_III", 16000, 0.95),
        ("MP3", "MPEG_LAYER_III", 44100, 0.6),
    ],
)
def test_lossy_crops_are_slices_of_the_whole(tmp_path, form, subtype, rate, level):
    file, seconds = tmp_path / f"a.{form.lower()}", 12.3
    x = noise(seconds, rate)
    with soundfile.SoundFile(file, "w", rate, 1, subtype, format=form, compression_level=level) as f:
        for i in range(0, len(x), rate):  # libsndfile 1.2.2 cannot decode everything at once
            f.write(x[i : i + rate])
    rng, n = np.random.default_rng(1), round(seconds * RATE)
    near_end = n - rng.integers(0, 2 * RATE, 25)
    positions = [*rng.integers(0, n, 25), *near_end, n - 901, n - 1, 1, 2, 64, 1000]
    crops_are_slices(file, positions, tolerance=1e-6)


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_long_lossy_recordings_are_not_decoded_from_their_start(tmp_path, form, subtype, monkeypatch):
    file, x = tmp_path / "a", noise(20.0)
    with soundfile.SoundFile(file, "w", RATE, 1, subtype, format=form) as f:
        for i in range(0, 200, 20):
            for part in np.split(x * (0.1 + 0.9 * i / 200), 20):
                f.write(part)
    whole_decode = one(file).read(0)
    read, decoded = soundfile.SoundFile.read, []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda f, n, **k: decoded.append(n) or read(f, n, **k))
    for start in (90 * RATE + 77, 120 * RATE, 131 * RATE + 5, 150 * RATE, len(whole_decode) - 950):
        np.testing.assert_allclose(
            one(file).read(0, start, 900), whole_decode[start : start + 900], atol=1e-6, rtol=0
        )
    assert max(decoded[:2]) < 80 * RATE


# --- archives


@pytest.mark.parametrize(
    ("form", "subtype"), [("flac", None), ("wav", None), ("wav", "FLOAT"), ("ogg", None), ("mp3", None)]
)
def test_archives_of_kaldiio(tmp_path, form, subtype):
    waves = {f"u{i}": (noise(0.3 + i / 9, channels=1 + i % 2, seed=i), RATE) for i in range(4)}
    options = {"format": form} | ({"subtype": subtype} if subtype else {})
    kaldiio.save_ark(
        str(tmp_path / "a.ark"),
        waves,
        scp=str(tmp_path / "a.scp"),
        write_function="soundfile",
        write_kwargs=options,
    )
    wav = dict(line.split() for line in (tmp_path / "a.scp").read_text().splitlines())
    reader = AudioReader(DataDir(tmp_path, list(wav), list(wav), wav))
    for row, utt in enumerate(wav):
        _, truth = kaldiio.load_mat(wav[utt])
        truth = truth.astype("f4")
        truth = np.clip(truth if truth.ndim == 1 else truth.mean(1), -1, 1)
        assert reader.num_samples(row) == len(truth)
        np.testing.assert_allclose(reader.read(row), truth, atol=1e-6)
        np.testing.assert_allclose(reader.read(row, 1000, 500), truth[1000:1500], atol=1e-6)


def test_broken_archives(tmp_path):
    wavs = {u: (RATE, (noise(seed=i)[:, 0] * 2**15).astype("i2")) for i, u in enumerate("ab")}
    kaldiio.save_ark(str(tmp_path / "w.ark"), wavs, scp=str(tmp_path / "w.scp"))
    (_, first), (_, last) = (line.split() for line in (tmp_path / "w.scp").read_text().splitlines())
    raw = (tmp_path / "w.ark").read_bytes()
    (tmp_path / "w.ark").write_bytes(raw[:-RATE])
    assert len(one(first).read(0)) == RATE
    with pytest.raises(UserError, match=r"promises 1.000 s, 0.500 s are there"):
        one(last).read(0)
    # With an unknown length, the next entries would be read as samples.
    at = raw.index(b"data") + 4
    for size in (0, 0xFFFFFFFF):
        (tmp_path / "w.ark").write_bytes(put(raw, at, "<I", size))
        with pytest.raises(UserError, match="does not tell its length"):
            one(first).read(0)
    flac = coded("FLAC")
    for name, made, why in [
        ("a.ark", b"u AUDIO\x03" + (len(flac)).to_bytes(3, "little") + flac[:999], "cut short"),
        ("b.ark", b"u AUDIO\x08" + (10**15).to_bytes(8, "little") + flac, "cut short"),
        (
            "c.ark",
            b"u AUDIO\x03" + (999).to_bytes(3, "little") + flac[:999],
            "cut short|damaged|cannot be read by libsndfile",
        ),
        ("d.ark", b"u AUDIO\x01\x05hello", "cannot be read by libsndfile"),
        ("e.ark", b"u AUDIO", "neither a WAV"),
        ("f.ark", b"u AUDIO\x00", "neither a WAV|cannot be read by libsndfile"),
        ("g.ark", b"u PKL\x80\x04.", "neither a WAV"),
    ]:
        (tmp_path / name).write_bytes(made)
        with pytest.raises(UserError, match=why):
            one(f"{tmp_path / name}:2").read(0)
    with pytest.raises(UserError, match="neither a WAV"):
        one(f"{tmp_path / 'a.ark'}:99999").read(0)


# --- figures that cannot be true


def lying_files(folder):
    mp3 = coded("MP3", "MPEG_LAYER_III")
    at = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    flac, wav = coded("FLAC"), coded("WAV")
    # 20 bits of rate, 3 of channels, 5 of bits per sample, 36 of samples
    info = int.from_bytes(flac[18:26], "big")

    def stream_info(rate=RATE, samples=RATE):
        return flac[:18] + (rate << 44 | info & (0xFF << 36) | samples).to_bytes(8, "big") + flac[26:]

    return {
        "a.mp3": put(mp3, at + 8, ">I", 0x40000000),
        "b.mp3": put(mp3, at + 8, ">I", 0xFFFFFFFF),
        "rate0.flac": stream_info(rate=0),
        "long.flac": stream_info(samples=(1 << 36) - 1),
        "longer.flac": stream_info(samples=10**7),
        "rate0.ark.flac.audio": stream_info(rate=0),
        "long.audio": stream_info(samples=(1 << 36) - 1),
        "rate0.wav": put(wav, 24, "<I", 0),
        "rate1.wav": put(wav, 24, "<I", 1),
        "rate.wav": put(wav, 24, "<I", 20_000_000),
        "rate2.wav": put(wav, 24, "<I", 0xFFFFFFFF),
        "channels0.wav": put(wav, 22, "<H", 0),
        "channels.wav": put(wav, 22, "<H", 65535),
        "rate.au": put(coded("AU"), 16, ">I", 0),
        "channels.au": put(coded("AU"), 20, ">I", 0x7FFFFFFF),
    }


def test_figures_of_headers_are_checked(tmp_path):
    for name, raw in lying_files(tmp_path).items():
        (tmp_path / name).write_bytes(raw)
        for entry in (str(tmp_path / name), f"cat '{tmp_path / name}' |"):
            with pytest.raises(UserError):
                one(entry, allow_pipes=True).read(0)


def test_figures_of_tables_are_checked(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(), RATE)
    (tmp_path / "utt2dur").write_text("u 1e308\n")
    for table in (
        {"utt2dur": {"u": "1e308"}},
        {"utt2dur": {"u": "1e12"}},
        {"utt2num_samples": {"u": "9" * 400}},
    ):
        reader = one(tmp_path / "a.wav", folder=tmp_path, **table)
        reader.cache_mb = 1
        for ask in (lambda r=reader: r.num_samples(0), reader.preload):
            with pytest.raises(UserError, match=f"{next(iter(table))}:?.*: utterance u: .*"):
                ask()
        assert len(reader.read(0)) == RATE
    for start, end in ((1e308, 1.1e308), (0.0, 1e300)):
        data = DataDir(tmp_path, ["u"], ["u"], {"r": str(tmp_path / "a.wav")}, {"u": ("r", start, end)})
        with pytest.raises(UserError, match="segments: utterance u: "):
            AudioReader(data).num_samples(0)
        with pytest.raises(UserError, match="segments: utterance u: "):
            AudioReader(data).read(0)


@pytest.mark.parametrize("size", [1e308, float("inf"), float("nan")])
def test_figure_of_the_cache_is_checked(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", noise(), RATE)
    reader = one(tmp_path / "a.wav")
    reader.cache_mb = size
    with pytest.raises(UserError, match="cache_mb"):
        reader.preload()


def test_no_memory_is_an_error_of_the_user(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", noise(), RATE)
    reader = one(tmp_path / "a.wav", utt2dur={"u": "1e7"})
    reader.cache_mb = 2**29
    empty = np.empty

    def few(shape, *args, **kw):
        if np.prod(shape) > most:
            raise MemoryError
        return empty(shape, *args, **kw)

    monkeypatch.setattr(np, "empty", few)
    most = 10**6
    with pytest.raises(
        UserError, match=r"more memory than this machine has .*\n  hint: set a lower cache_mb"
    ):
        reader.preload()
    most = 10**3
    with pytest.raises(UserError, match="utterance u: needs more memory"):
        reader.read(0)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    os.mkfifo(tmp_path / "fifo.flac")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "fifo.wav")
    for name in (
        "fifo.wav",
        "fifo.flac",
        "link.wav",
        "fifo.wav:10",
        "/dev/zero",
        "/dev/zero:5",
        "folder.wav",
    ):
        with pytest.raises(UserError, match="not a regular file|is a folder"):
            one(tmp_path / name).read(0)


def test_text_is_not_read_as_raw_audio_whatever_its_name(tmp_path):
    for name in ("a.au", "a.snd", "a.gsm", "a.wav", "a.flac", "a.mp3", "a.raw"):
        (tmp_path / name).write_text("<html>404 not found</html>\n" * 300)
        with pytest.raises(UserError, match="cannot be read by libsndfile"):
            one(tmp_path / name).read(0)
    soundfile.write(tmp_path / "call.gsm", noise(1.0, 8000), 8000, format="RAW", subtype="GSM610")
    assert len(one(tmp_path / "call.gsm").read(0)) == pytest.approx(RATE, abs=640)


# --- segments


def test_a_segment_to_the_end(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(2.0, 44100), 44100)
    x = one(tmp_path / "a.flac").read(0)
    segments = {"a": ("r", 0.5, -1.0), "b": ("r", 0.0, 1.0), "c": ("r", 1.9, -1.0)}
    data = DataDir(tmp_path, list("abc"), list("abc"), {"r": str(tmp_path / "a.flac")}, segments)
    reader, held = AudioReader(data), AudioReader(data, cache_mb=1)
    assert held.preload() == 3
    for r in (reader, held):
        assert [r.num_samples(row) for row in range(3)] == [24000, 16000, 1600]
        np.testing.assert_allclose(r.read(0), x[8000:], atol=1e-6)
        np.testing.assert_allclose(r.read(2, 1500, 200, back=True), x[-200:], atol=1e-6)
    data.segments["a"] = ("r", 2.0, -1.0)
    with pytest.raises(
        UserError, match="segment from 2 s to the end lies beyond its recording's end at 2.000 s"
    ):
        AudioReader(data).num_samples(0)


def test_the_hint_for_a_segment_beyond_the_end_works(tmp_path):
    folder = tmp_path / "a b$(x)"
    folder.mkdir()
    soundfile.write(folder / "a.wav", noise(), RATE)
    data = DataDir(folder, ["u"], ["u"], {"r": str(folder / "a.wav")}, {"u": ("r", 0.1, 9.0)})
    with pytest.raises(UserError) as err:
        AudioReader(data).read(0)
    command = str(err.value).split("\n  hint: ")[1]
    assert command == f"utils/fix_data_dir.sh --check-audio {shlex.quote(str(folder))}"


def test_a_command_runs_once_a_recording(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(2.0, 8000), 8000)
    x = one(tmp_path / "a.wav").read(0)
    command = f"echo x >> '{tmp_path}/runs'; cat '{tmp_path}/a.wav' |"
    segments = {f"u{i}": ("r", i / 10, i / 10 + 0.4) for i in range(9)} | {"u9": ("s", 0.0, 1.0)}
    data = DataDir(tmp_path, list(segments), list(segments), {"r": command, "s": command + " "}, segments)
    data.wav["s"] = f"cat '{tmp_path}/a.wav' |"
    reader = AudioReader(data, allow_pipes=True)
    for row in [*range(10), *range(10)]:
        _, start, end = segments[f"u{row}"]
        np.testing.assert_allclose(reader.read(row), x[round(start * RATE) : round(end * RATE)], atol=1e-6)
    assert (tmp_path / "runs").read_text() == "x\n"
    single = one(command, allow_pipes=True)
    assert [single.num_samples(0), len(single.read(0)), len(single.read(0, 5, 9))] == [32000, 32000, 9]
    assert (tmp_path / "runs").read_text() == "x\n" * 2


def test_cached_audio_has_a_bound(monkeypatch):
    monkeypatch.setattr(reader, "HELD_MB", 1)
    held = reader._Held(1000)
    for i in range(5):
        held.hold(str(i), i, 400)
    assert list(held) == ["3", "4"]
    assert held.find("3") == 3
    held.hold("5", 5, 500)
    assert list(held) == ["3", "5"]
    held.hold("big", 0, 2 << 20)
    assert "big" not in held


@pytest.mark.parametrize(
    "name",
    [
        "a b.wav",
        "[x].wav",
        "x*.wav",
        "back\\slash.wav",
        "q'u\"o.wav",
        "c:12",
        "$(x).flac",
        "ü 中.wav",
        "a:1[2]",
    ],
)
def test_odd_names(tmp_path, name):
    x = noise()
    form = "FLAC" if name.endswith("flac") else "WAV"
    soundfile.write(str(tmp_path / name), x, RATE, format=form)
    (tmp_path / "xy.wav").write_bytes(coded("WAV", x=noise(0.1)))  # a glob pattern would match this name
    np.testing.assert_allclose(one(tmp_path / name).read(0), x[:, 0], atol=1 / 32767)
    ark = tmp_path / f"{name}.ark"
    kaldiio.save_ark(str(ark), {"u": (RATE, (x[:, 0] * 32767).astype("i2"))})
    np.testing.assert_allclose(one(f"{ark}:2").read(0), x[:, 0], atol=2 / 32767)
