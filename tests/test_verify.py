"""`verify` on real audio files with a small deterministic encoder instead of a trained one."""

import numpy as np
import pytest
import soundfile
import torch

from pyspkv.api.speaker_model import Model
from pyspkv.base.errors import UserError
from pyspkv.bin import verify
from pyspkv.models.registry import EncoderConfig
from pyspkv.score.calibration import Calibration

SOURCE = "pairs within and between the speakers of data/train"


class Spectrum(torch.nn.Module):
    """Energy in 8 bands: describes the spectrum of a recording, whatever its loudness."""

    min_samples = 400

    def forward(self, wave, lengths):
        power = torch.fft.rfft(wave[:, : int(lengths[0])], n=16000).abs() ** 2
        return torch.stack([p.mean(-1) for p in power.chunk(8, -1)], -1).sqrt()


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("pyspkv.models.load.load_encoder", lambda model, which="last": Spectrum().eval())
    (tmp_path / "model/ckpt-1").mkdir(parents=True)
    for pointer in ("LATEST", "best"):
        (tmp_path / "model" / pointer).write_text("ckpt-1\n")
    (tmp_path / "model/ckpt-1/state.json").write_text("{}")
    rng = np.random.default_rng(0)
    for name, tone, rate in [("low1", 300, 16000), ("low2", 300, 8000), ("high", 5300, 16000)]:
        t = np.arange(rate) / rate
        x = 0.3 * np.sin(2 * np.pi * tone * t) + 0.001 * rng.standard_normal(rate)
        soundfile.write(tmp_path / f"{name}.wav", x, rate)
    return tmp_path


def call(monkeypatch, capsys, *argv):
    monkeypatch.setattr("sys.argv", ["verify", *map(str, argv)])
    verify.main()
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("suffix", ["", "@best"])
def test_decision_with_the_stored_threshold(files, monkeypatch, capsys, suffix):
    model = files / "model"
    Calibration(10.0, -5.0, 0.5, 0.5, SOURCE, 9, 9, 0.4).write(model / "calibration.json")
    wavs = [files / f"{name}.wav" for name in ("low1", "low2", "high")]
    lines = call(monkeypatch, capsys, "--model", f"{model}{suffix}", *wavs)
    assert len(lines) == 4  # three pairs, and the line about the threshold's source
    for line, same in zip(lines, (True, False, False)):
        fields = line.split()
        score = float(fields[fields.index("score") + 1])
        assert (score >= 0.5) == same
        assert float(fields[fields.index("llr") + 1]) == pytest.approx(10 * score - 5, abs=0.01)
        assert line.endswith("decision: same speaker" if same else "decision: different speakers")
    assert lines[-1] == f"threshold 0.5000 (prior 0.5), from {SOURCE}"


def test_no_stored_threshold_no_decision(files, monkeypatch, capsys):
    lines = call(monkeypatch, capsys, "--model", files / "model", files / "low1.wav", files / "high.wav")
    assert "score" in lines[0]
    assert "decision" not in lines[0]
    assert "llr" not in lines[0]
    assert "pyspkv.bin.calibrate" in lines[1]


def test_scores_are_those_of_extract(tmp_path):
    """Recordings of over a minute, or below the encoder's minimum, are embedded as by bin.extract."""
    from pyspkv.base import config as cfg
    from pyspkv.data.ark import normalize
    from pyspkv.data.datadir import DataDir
    from pyspkv.score.extract import embed

    torch.manual_seed(0)
    size = {
        "name": "ecapa",
        "channels": 8,
        "mfa_channels": 12,
        "embed_dim": 6,
        "se_channels": 4,
        "n_mels": 20,
    }
    encoder = cfg.build(cfg.validate(EncoderConfig, size)).eval()
    rng, paths = np.random.default_rng(0), []
    for name, seconds in (("long", 61.3), ("short", 0.02), ("plain", 1.7)):
        x = np.concatenate([rng.standard_normal(round(8000 * seconds)) * level for level in (0.02, 0.2)])
        paths.append(str(tmp_path / f"{name}.wav"))
        soundfile.write(paths[-1], x, 16000)
    data = DataDir(tmp_path, ["a", "b", "c"], ["a", "b", "c"], dict(zip("abc", paths)))
    want = normalize(embed(encoder, data, torch.device("cpu"), "fp32").x)
    model = Model(encoder, tmp_path, torch.device("cpu"), None)
    np.testing.assert_allclose(normalize(model.embed_speech(paths)), want, atol=1e-6)


def test_bad_input(files, monkeypatch, capsys):
    (files / "text.wav").write_text("no audio")
    for second in ("text.wav", "absent.wav"):
        with pytest.raises(UserError, match=second):
            call(monkeypatch, capsys, "--model", files / "model", files / "low1.wav", files / second)
    with pytest.raises(SystemExit):
        call(monkeypatch, capsys, "--model", files / "model", files / "low1.wav")
    (files / "model/calibration.json").write_text("{}")
    with pytest.raises(UserError, match="is not a calibration"):
        call(monkeypatch, capsys, "--model", files / "model", files / "low1.wav", files / "high.wav")
