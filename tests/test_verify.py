"""`verify` on real audio files with a small deterministic encoder in place of a trained one."""

import numpy as np
import pytest
import soundfile
import torch

from pyspkv.bin import verify
from pyspkv.calibration import Calibration
from pyspkv.errors import UserError

SOURCE = "pairs within and between the speakers of data/train"


class Spectrum(torch.nn.Module):
    """Energy in 8 bands: a recording's colour, whatever its loudness."""

    def forward(self, wave, lengths):
        power = torch.fft.rfft(wave[:, : int(lengths[0])], n=16000).abs() ** 2
        return torch.stack([p.mean(-1) for p in power.chunk(8, -1)], -1).sqrt()


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("pyspkv.checkpoint.load_encoder", lambda model, which="last": Spectrum().eval())
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
    assert len(lines) == 4  # three pairs and the threshold's origin
    for line, same in zip(lines, (True, False, False)):
        fields = line.split()
        score = float(fields[fields.index("score") + 1])
        assert (score >= 0.5) == same
        assert float(fields[fields.index("llr") + 1]) == pytest.approx(10 * score - 5, abs=0.01)
        assert line.endswith("decision: same speaker" if same else "decision: different speakers")
    assert lines[-1] == f"threshold 0.5000 (prior 0.5), from {SOURCE}"


def test_no_stored_threshold_no_decision(files, monkeypatch, capsys):
    lines = call(monkeypatch, capsys, "--model", files, files / "low1.wav", files / "high.wav")
    assert "score" in lines[0]
    assert "decision" not in lines[0]
    assert "llr" not in lines[0]
    assert "pyspkv.bin.calibrate" in lines[1]


def test_bad_input(files, monkeypatch, capsys):
    (files / "text.wav").write_text("no audio")
    for second in ("text.wav", "absent.wav"):
        with pytest.raises(UserError, match=second):
            call(monkeypatch, capsys, "--model", files, files / "low1.wav", files / second)
    with pytest.raises(SystemExit):
        call(monkeypatch, capsys, "--model", files, files / "low1.wav")
    (files / "calibration.json").write_text("{}")
    with pytest.raises(UserError, match="is not a calibration"):
        call(monkeypatch, capsys, "--model", files, files / "low1.wav", files / "high.wav")
