"""Encoders and features against independent references."""

import pytest
import torch
import torchaudio
from torch import nn
from torch.nn import functional as F

from pyspkv.audio.fbank import Fbank, SpecAugmentConfig, spec_augment
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.models.ecapa import TimeConv
from pyspkv.models.pooling import AttentiveStatsPool, masked_stats
from pyspkv.models.registry import EncoderConfig

ENCODERS = [
    {"name": "ecapa", "channels": 32, "mfa_channels": 48, "embed_dim": 16, "se_channels": 8},
    {"name": "resnet", "channels": 4, "blocks": [1, 1, 1, 1], "embed_dim": 16},
    {"name": "resnet", "channels": 4, "blocks": [1, 1, 1, 1], "embed_dim": 16, "attentive": True},
    {"name": "xvector", "channels": 12, "pool_channels": 20, "embed_dim": 16},
]


def build(spec):
    torch.manual_seed(0)
    return cfg.build(cfg.validate(EncoderConfig, spec))


def test_fbank_equals_torchaudios_kaldi_fbank():
    torch.manual_seed(1)
    wave = torch.randn(1, 8000) * 0.1 + 0.05  # a constant offset, which Kaldi removes frame by frame
    want = torchaudio.compliance.kaldi.fbank(
        wave.double() * 32768, num_mel_bins=80, dither=0, low_freq=20, high_freq=7600
    )
    got, frames = Fbank(80)(wave, torch.tensor([8000]))
    assert frames.item() == len(want) == 1 + (8000 - 400) // 160
    torch.testing.assert_close(got[0], (want - want.mean(0)).float(), atol=3e-4, rtol=0)


@pytest.mark.parametrize("noise", [0, 1, 30])
def test_fbank_of_a_quiet_recording_with_an_offset(noise):
    """Noise in 16-bit steps on top of a tenth of full scale: no digits are lost by cancellation."""
    generator = torch.Generator().manual_seed(0)
    steps = (torch.randn(1, 8000, generator=generator) * noise).round() + 3277
    want = torchaudio.compliance.kaldi.fbank(
        steps.double(), num_mel_bins=80, dither=0, low_freq=20, high_freq=7600
    )
    got, _ = Fbank(80)(steps / 32768, torch.tensor([8000]))
    torch.testing.assert_close(got[0], (want - want.mean(0)).float(), atol=2e-3, rtol=0)


def test_fbank_refuses_less_than_a_frame():
    with pytest.raises(UserError, match="399 samples"):
        Fbank()(torch.zeros(1, 399), torch.tensor([399]))


@pytest.mark.parametrize("spec", ENCODERS, ids=lambda s: s["name"] + str(s.get("attentive", "")))
def test_padding_changes_nothing(spec):
    encoder = build(spec).eval()
    torch.manual_seed(2)
    short, long = torch.randn(9000) * 0.1, torch.randn(16000) * 0.1
    padded = torch.stack([F.pad(short, (0, 7000)), long])
    with torch.no_grad():
        both = encoder(padded, torch.tensor([9000, 16000]))
        alone = [encoder(x[None], torch.tensor([len(x)]))[0] for x in (short, long)]
    assert both.shape == (2, 16) and both.dtype == torch.float32
    torch.testing.assert_close(both, torch.stack(alone), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("spec", ENCODERS, ids=lambda s: s["name"] + str(s.get("attentive", "")))
def test_every_parameter_gets_a_gradient(spec):
    encoder = build(spec).train()
    encoder(torch.randn(4, 8000) * 0.1, torch.full((4,), 8000)).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_ecapa_of_the_paper_has_the_papers_size():
    """The paper gives 6.2 M parameters for ECAPA-TDNN C=512 and 14.7 M for C=1024 (Desplanques et al. 2020,
    table 1).
    """
    for channels, millions in ((512, 6.2), (1024, 14.7)):
        size = sum(p.numel() for p in build({"name": "ecapa", "channels": channels}).parameters())
        assert abs(size / 1e6 - millions) < 0.2


def test_xvector_is_the_papers_table_1():
    encoder = build({"name": "xvector", "n_mels": 24}).eval()
    weights = [tuple(layer.conv.linear.weight.T.shape) for layer in encoder.layers]
    assert weights == [(120, 512), (1536, 512), (1536, 512), (512, 512), (512, 1500)]
    assert encoder.fc.weight.T.shape == (3000, 512)
    x = torch.randn(1, 41, 24)
    moved = x.clone()
    moved[0, 20] += 1
    with torch.no_grad():
        frames = [encoder.frames(v, torch.tensor([41]))[0][0] for v in (x, moved)]
    changed = (frames[0] != frames[1]).any(1).nonzero()[:, 0].tolist()
    context = {a + b + c for a in range(-2, 3) for b in (-2, 0, 2) for c in (-3, 0, 3)}  # layers 1 to 3
    assert changed == sorted(20 + t for t in context) and (changed[0], changed[-1]) == (13, 27)


def test_resnet34_has_its_convolutions():
    convolutions = [
        m for m in build({"name": "resnet"}).modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert len(convolutions) == 1 + 2 * (3 + 4 + 6 + 3)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (5, 1), (3, 2), (3, 4)])
def test_time_conv_is_conv1d(kernel, dilation):
    torch.manual_seed(3)
    ours, x = TimeConv(6, 10, kernel, dilation), torch.randn(2, 40, 6)
    weight = ours.linear.weight.view(10, kernel, 6).permute(0, 2, 1)
    want = F.conv1d(x.mT, weight, ours.linear.bias, padding=dilation * (kernel - 1) // 2, dilation=dilation)
    torch.testing.assert_close(ours(x), want.mT)
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours.double(), x)


def test_statistics_leave_padded_frames_out():
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    mean, std = masked_stats(x, torch.tensor([[True, True, False]]))
    assert (mean.item(), round(std.item(), 6)) == (2.0, 1.0)


def test_attention_without_preference_is_the_plain_mean():
    pool = AttentiveStatsPool(5, 4).eval()
    nn.init.zeros_(pool.out.weight)
    x = torch.randn(2, 7, 5)
    torch.testing.assert_close(pool(x)[:, :5], x.mean(1))


def test_spec_augment_masks_one_stretch_of_each_kind():
    torch.manual_seed(4)
    x = spec_augment(torch.ones(64, 50, 20), SpecAugmentConfig(max_time_mask=9, max_freq_mask=5))
    times, bins = (x.sum(2) == 0).sum(1), (x.sum(1) == 0).sum(1)
    assert times.max() <= 9 and bins.max() <= 5
    assert times.float().mean() > 2 and bins.float().mean() > 1
    assert (((x.sum(2) == 0).int().diff(dim=1) == 1).sum(1) <= 1).all()
