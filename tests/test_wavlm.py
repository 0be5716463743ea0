"""WavLM + MHFA against transformers and a plain forward pass with unilm's names; imports of foreign files."""

import json
import math
import os
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.bin import import_checkpoint
from pyspkv.models.layer_pooling import MHFA
from pyspkv.models.load import load_encoder
from pyspkv.models.registry import EncoderConfig
from pyspkv.models.wavlm import CONV_KERNELS, CONV_STRIDES, _grouped_products, drop, normed_convolution

SMALL = {"name": "wavlm", "layers": 2, "dim": 32, "heads": 4, "ffn": 48, "conv_dim": 16, "pos_conv_kernel": 8,
         "pos_conv_groups": 4, "embed_dim": 12, "mhfa_heads": 3, "mhfa_dim": 8}  # fmt: skip


def build(seed=0, noise=0.05, **fields):
    torch.manual_seed(seed)
    encoder = cfg.build(cfg.validate(EncoderConfig, {**SMALL, **fields}))
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(noise * torch.randn_like(p))
    return encoder


def to_unilm(key: str) -> str:
    """transformers' name -> unilm's name, from the published table and not from the code's patterns."""
    for new, old in (
        ("masked_spec_embed", "mask_emb"),
        (".conv.weight", ".0.weight"),
        ("feature_extractor.conv_layers.0.layer_norm", "feature_extractor.conv_layers.0.2"),
        ("feature_projection.layer_norm", "layer_norm"),
        ("feature_projection.projection", "post_extract_proj"),
        ("encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
        ("attention.gru_rel_pos_linear", "self_attn.grep_linear"),
        ("attention.gru_rel_pos_const", "self_attn.grep_a"),
        ("attention.rel_attn_embed", "self_attn.relative_attention_bias"),
        ("attention.", "self_attn."),
        ("feed_forward.intermediate_dense", "fc1"),
        ("feed_forward.output_dense", "fc2"),
    ):
        key = key.replace(new, old)
    if key.startswith("encoder.layers.") and ".final_layer_norm" not in key:
        key = key.replace(".layer_norm", ".self_attn_layer_norm")
    return key


def unilm_states(w: dict, wave: torch.Tensor, layers: int, heads: int, groups: int) -> list[torch.Tensor]:
    """The model as in its paper, with unilm's names, one head at a time: hidden states H_0 ..

    H_L of wave [T].
    """
    x = wave[None]
    for i, stride in enumerate(CONV_STRIDES):
        x = F.conv1d(
            x[None] if x.dim() == 2 else x, w[f"feature_extractor.conv_layers.{i}.0.weight"], stride=stride
        )
        if i == 0:
            mean, std = x.mean(2, keepdim=True), (x.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
            name = "feature_extractor.conv_layers.0.2."
            x = (x - mean) / std * w[name + "weight"][:, None] + w[name + "bias"][:, None]
        x = F.gelu(x)
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"])  # noqa: E731
    x = F.linear(
        norm(x[0].T, "layer_norm"), w["post_extract_proj.weight"], w["post_extract_proj.bias"]
    )  # [F, D]
    v = w["encoder.pos_conv.0.weight_v"]
    kernel = v * w["encoder.pos_conv.0.weight_g"] / v.pow(2).sum((0, 1), keepdim=True).sqrt()
    conv = F.conv1d(x.T[None], kernel, w["encoder.pos_conv.0.bias"], padding=v.shape[2] // 2, groups=groups)
    x = norm(x + F.gelu(conv[0, :, : len(x)]).T, "encoder.layer_norm")
    size, out = len(x), [x]
    distance = torch.arange(size)[None] - torch.arange(size)[:, None]  # key - query
    far = 80 + (distance.abs().clamp_min(1) / 80).log() / math.log(800 / 80) * 80
    bucket = torch.where(distance.abs() < 80, distance.abs(), far.long().clamp_max(159)) + 160 * (
        distance > 0
    )
    for n in range(layers):
        p = f"encoder.layers.{n}.self_attn."
        lin = lambda x, name: F.linear(x, w[name + ".weight"], w[name + ".bias"])  # noqa: E731
        q, k, value = (lin(x, p + f"{name}_proj").chunk(heads, -1) for name in "qkv")
        heads_out = []
        for h, part in enumerate(x.chunk(heads, -1)):
            bias = w["encoder.layers.0.self_attn.relative_attention_bias.weight"][bucket, h]
            gates = lin(part, p + "grep_linear")
            update, reset = gates[:, :4].sum(1).sigmoid(), gates[:, 4:].sum(1).sigmoid()
            scale = update * (reset * w[p + "grep_a"][0, h, 0, 0] - 1) + 2
            score = q[h] @ k[h].T / math.sqrt(q[h].shape[1]) + scale[:, None] * bias
            heads_out.append(score.softmax(1) @ value[h])
        base = f"encoder.layers.{n}."
        x = norm(x + lin(torch.cat(heads_out, 1), p + "out_proj"), base + "self_attn_layer_norm")
        x = norm(x + lin(F.gelu(lin(x, base + "fc1")), base + "fc2"), base + "final_layer_norm")
        out.append(x)
    return out


def test_hidden_states_of_the_true_size_equal_both_references():
    """Base+: 94,381,936 + 2,302,554 parameters in 248 + 10 tensors; 13 hidden states of random weights to
    1e-4.
    """
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, {"name": "wavlm"})).eval()
    assert sum(p.numel() for p in encoder.trunk.parameters()) == 94_381_936
    assert sum(p.numel() for p in encoder.backend.parameters()) == 2_302_554
    assert (len(encoder.trunk.state_dict()), len(encoder.backend.state_dict())) == (248, 10)
    wave = 0.1 * torch.randn(1, 48_240)
    with torch.no_grad():
        for p in encoder.trunk.parameters():
            p.add_(0.02 * torch.randn_like(p))
        feats, frames = encoder.features(wave, torch.tensor([48_240]))
        assert frames.item() == feats.shape[1] == 150
        ours = encoder.hidden_states(feats, None)
        want = encoder.trunk(wave, output_hidden_states=True).hidden_states
        weights = {to_unilm(k): v for k, v in encoder.trunk.state_dict().items()}
        plain = unilm_states(weights, wave[0], 12, 12, 16)
    assert len(ours) == len(want) == len(plain) == 13
    for a, b, c in zip(ours, want, plain):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
        torch.testing.assert_close(a[0], c, atol=1e-4, rtol=0)


def test_gradients_of_the_whole_trunk_equal_the_reference():
    """Trained from scratch, including the convolutions; relative 1-norm of the difference."""
    encoder = build(freeze="none", dropout=0.0, attention_dropout=0.0, layerdrop=0.0)
    wave, lengths = 0.1 * torch.randn(2, 9000), torch.tensor([9000, 9000])

    def gradients(states):
        encoder.zero_grad()
        sum(h.square().mean() * (i + 1) + (h * h.roll(1, 1)).mean() for i, h in enumerate(states)).backward()
        return {n: p.grad for n, p in encoder.trunk.named_parameters() if p.grad is not None}

    ours = gradients(encoder.hidden_states(*encoder.features(wave, lengths)[:1], None))
    want = gradients(encoder.trunk(wave, output_hidden_states=True).hidden_states)
    assert ours.keys() == want.keys() and len(ours) > 50
    for name, g in want.items():
        assert (ours[name] - g).abs().sum() <= 1e-4 * g.abs().sum() + 1e-6, name


def test_first_convolution_with_a_small_output():
    """A loud low tone, and kernels that sum to zero: the variance of the norm is a small difference of large
    numbers.
    """
    torch.manual_seed(3)
    wave = torch.sin(torch.arange(8000) / 200)[None] + 1e-3 * torch.randn(1, 8000)
    weight, norm = torch.randn(6, 10), torch.nn.GroupNorm(6, 6)
    weight -= weight.mean(1, keepdim=True)
    want = F.conv1d(wave.double()[:, None], weight.double()[:, None], stride=5)
    want = (want - want.mean(2, keepdim=True)) / (want.var(2, correction=0, keepdim=True) + norm.eps).sqrt()
    got = normed_convolution(wave, torch.tensor([8000]), weight, norm)
    torch.testing.assert_close(got.mT.double(), want, atol=2e-4, rtol=0)


@pytest.mark.parametrize("frames, kernel", [(150, 128), (16, 8), (1, 8), (33, 7)])
def test_position_convolution_as_products(frames, kernel):
    """The products that a GPU computes, and their gradients, equal the convolution."""
    conv = torch.nn.Conv1d(24, 24, kernel, padding=kernel // 2, groups=4)
    h = torch.randn(3, frames, 24, requires_grad=True)
    wanted = conv(h.transpose(1, 2)).transpose(1, 2)[:, :frames]
    found = _grouped_products(h, conv)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    target = torch.randn_like(wanted)
    parts = [h, conv.weight, conv.bias]
    for a, b in zip(
        torch.autograd.grad((found * target).sum(), parts),
        torch.autograd.grad((wanted * target).sum(), parts),
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_dropout_keeps_its_share_and_follows_the_seed():
    x = torch.rand(3, 50, 333) + 0.5
    torch.manual_seed(5)
    y = drop(x, 0.1, True)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / 0.9)
    assert abs(kept.float().mean() - 0.9) < 4 * (0.9 * 0.1 / x.numel()) ** 0.5
    # four values come from one random number
    rows = kept.flatten().float()[: 4 * (x.numel() // 4)].view(-1, 4)
    assert abs(torch.corrcoef(rows.T) - torch.eye(4)).max() < 0.04
    torch.manual_seed(5)
    assert torch.equal(drop(x, 0.1, True), y) and not torch.equal(drop(x, 0.1, True), y)
    assert drop(x, 0.0, True) is x and torch.equal(drop(x, 0.1, False), x)


def test_padding_changes_nothing():
    encoder = build().eval()
    x = 0.1 * torch.randn(2, 9000)
    both = encoder(torch.stack([F.pad(x[0, :5000], (0, 4000)), x[1]]), torch.tensor([5000, 9000]))
    torch.testing.assert_close(both[:1], encoder(x[:1, :5000], torch.tensor([5000])), atol=2e-6, rtol=1e-4)
    mean = build(pooling="mean").eval()
    both = mean(torch.stack([F.pad(x[0, :5000], (0, 4000)), x[1]]), torch.tensor([5000, 9000]))
    torch.testing.assert_close(both[:1], mean(x[:1, :5000], torch.tensor([5000])), atol=2e-6, rtol=1e-4)
    feats, frames = mean.features(x[1:], torch.tensor([9000]))
    states = torch.stack(mean.hidden_states(feats, None))
    torch.testing.assert_close(both[1], states.mean((0, 2))[0], atol=2e-6, rtol=1e-4)


def test_mhfa_is_its_equation():
    torch.manual_seed(1)
    layers, dim, heads, inner, out = 3, 6, 4, 5, 7
    pool = MHFA(layers, dim, heads, inner, out).double()
    torch.nn.init.normal_(pool.weights_k), torch.nn.init.normal_(pool.weights_v)
    states = torch.randn(layers + 1, 2, 9, dim, dtype=torch.float64)  # [L + 1, B, T, D]
    shares = pool.mix()
    mixed = torch.cat([torch.einsum("l,lbtd->btd", s, states) for s in shares], -1)
    a, b = pool.weights_k.softmax(0), pool.weights_v.softmax(0)
    k = torch.einsum("l,lbtd,kd->btk", a, states, pool.cmp_linear_k.weight) + pool.cmp_linear_k.bias
    v = torch.einsum("l,lbtd,kd->btk", b, states, pool.cmp_linear_v.weight) + pool.cmp_linear_v.bias
    alpha = (torch.einsum("btk,hk->bth", k, pool.att_head.weight) + pool.att_head.bias).softmax(1)
    c = torch.einsum("bth,btk->bhk", alpha, v)
    want = (
        torch.einsum("bhk,ehk->be", c, pool.pooling_fc.weight.view(out, heads, inner)) + pool.pooling_fc.bias
    )
    torch.testing.assert_close(pool(mixed, None), want, atol=1e-6, rtol=1e-6)


def test_front_is_frozen_rates_grow_by_layer_and_checkpointing_is_exact():
    encoder = build(
        trunk_lr_scale=0.1, layerwise_lr_growth=2.0, dropout=0.0, attention_dropout=0.0, layerdrop=0.0
    )
    groups = encoder.param_groups()
    assert [g["lr_scale"] for g in groups] == [0.1, 0.2, 1.0]
    trained = {id(p) for g in groups for p in g["params"]}
    names = {n for n, p in encoder.named_parameters() if id(p) in trained}
    assert all(n.startswith(("trunk.encoder.layers.", "backend.")) for n in names)
    assert {n for n, p in encoder.named_parameters() if p.requires_grad} == names
    x, lengths = 0.1 * torch.randn(2, 6000), torch.tensor([6000, 6000])

    def gradients(model):
        model.train()(x, lengths).square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    again = build(
        gradient_checkpointing=True, trunk_lr_scale=0.1, dropout=0.0, attention_dropout=0.0, layerdrop=0.0
    )
    again.load_state_dict(encoder.state_dict())
    one, two = gradients(encoder), gradients(again)
    assert all(g is not None for g in one.values())
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_on_a_frozen_trunk_all_of_the_backend_learns():
    encoder = build(freeze="trunk").train()
    encoder(0.1 * torch.randn(2, 6000), torch.tensor([6000, 6000])).sum().backward()
    learns = {n for n, p in encoder.named_parameters() if p.grad is not None}
    assert learns == {f"backend.{n}" for n, _ in encoder.backend.named_parameters()}


def test_normalized_embeddings_are_the_backends_less_their_mean_over_the_batch():
    still = {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}
    plain, normed = build(**still), build(**still, embedding_batchnorm=True)
    assert set(normed.state_dict()) - set(plain.state_dict()) == {
        f"norm.{k}" for k in normed.norm.state_dict()
    }
    normed.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.ones_(normed.norm.weight)
    torch.nn.init.zeros_(normed.norm.bias)
    x, lengths = 0.1 * torch.randn(6, 6000), torch.full((6,), 6000)
    z, y = plain.train()(x, lengths), normed.train()(x, lengths)
    want = (z - z.mean(0)) / (z.var(0, correction=0) + normed.norm.eps).sqrt()
    torch.testing.assert_close(y, want, atol=1e-4, rtol=1e-3)
    trained = {id(p) for g in normed.param_groups() for p in g["params"]}
    assert {id(normed.norm.weight), id(normed.norm.bias)} <= trained


def test_dropped_layers_still_have_gradients():
    encoder = build(layerdrop=1.0).train()
    encoder(0.1 * torch.randn(2, 6000), torch.tensor([6000, 6000])).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


# ---- foreign files


@pytest.fixture
def imported(monkeypatch, capsys, tmp_path):
    """Run bin.import_checkpoint into tmp_path/out; returns what it printed."""

    def call(source, *options) -> str:
        args = ["import_checkpoint", "--from", str(source), "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr("sys.argv", args)
        import_checkpoint.main()
        return capsys.readouterr().out

    return call


def foreign(tmp_path, layout, encoder):
    trunk = {to_unilm(k): v for k, v in encoder.trunk.state_dict().items()}
    if layout == "microsoft":
        torch.save({"cfg": {"encoder_layers": 2}, "model": trunk}, tmp_path / "WavLM.pt")
        return tmp_path / "WavLM.pt"
    if layout == "authors":
        found = {f"__S__.model.{k}": v for k, v in trunk.items()}
        found |= {f"__S__.backend.{k}": v for k, v in encoder.backend.state_dict().items()}
        torch.save({**found, "__L__.weight": torch.randn(7, 12)}, tmp_path / "model000000018.model")
        return tmp_path / "model000000018.model"
    encoder.trunk.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("layout", ["microsoft", "authors", "huggingface"])
def test_import_of_every_layout(tmp_path, tmp_path_factory, layout, imported):
    encoder = build(seed=3).eval()
    source = foreign(tmp_path, layout, encoder)
    assert "2 layers of 32" in imported(source)
    got = load_encoder(tmp_path / "out")
    for key, value in encoder.trunk.state_dict().items():
        torch.testing.assert_close(got.trunk.state_dict()[key], value)
    if layout == "authors":
        wave = 0.1 * torch.randn(1, 8000)
        torch.testing.assert_close(got(wave, torch.tensor([8000])), encoder(wave, torch.tensor([8000])))
    assert "imported already" in imported(source)
    with pytest.raises(UserError, match="contains another model"):
        imported(foreign(tmp_path_factory.mktemp("other"), layout, build(seed=4).eval()))


def test_a_file_that_runs_code_is_refused(tmp_path, imported):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"model": {"x": Evil()}}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="without running its code"):
        imported(tmp_path / "evil.pt")
    assert not (tmp_path / "touched").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"model": {"mask_emb": torch.zeros(3)}}, "is not a WavLM"),
        ({"a": 1}, "neither"),
        ({"unknown.weight": torch.zeros(3)}, "no known layout"),
        ([1], "no dictionary"),
    ],
)
def test_other_files_are_named(tmp_path, found, words, imported):
    torch.save(found, tmp_path / "x.pt")
    with pytest.raises(UserError, match=words) as err:
        imported(tmp_path / "x.pt")
    assert "x.pt" in str(err.value)


def smallest() -> dict[str, torch.Tensor]:
    """The tensors that the sizes are read from."""
    return {
        "feature_projection.projection.weight": torch.zeros(8, 4),
        "encoder.layers.0.attention.rel_attn_embed.weight": torch.zeros(320, 2),
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1": torch.zeros(8, 4, 4),
        "encoder.layers.0.feed_forward.intermediate_dense.weight": torch.zeros(8, 8),
    }


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"encoder.layers.999999999.y": torch.zeros(1)}, "are not numbered 0"),
        ({f"encoder.layers.{'9' * 5000}.y": torch.zeros(1)}, "are not numbered 0"),
        ({f"encoder.layers.{n}.y": torch.zeros(1) for n in range(300)}, "are not numbered 0"),
        ({"encoder.pos_conv_embed.conv.parametrizations.weight.original1": torch.zeros(8, 0, 4)}, "is empty"),
        ({"q": torch.zeros(3, 3).to_sparse()}, "sparse"),
        ({"q": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}, "quantised"),
        ({"q": torch.zeros(2, device="meta")}, "without numbers"),
        ({"q": torch.zeros(1).expand(10**6, 10**6)}, "expanded"),
        ({"q": torch.zeros(1, dtype=torch.complex64)}, "complex64"),
        ({"q": torch.zeros(4, dtype=torch.int64)}, "int64"),
        ({"q": torch.full((3,), torch.nan)}, "NaN or infinity"),
        ({"encoder.layers.0.attention.rel_attn_embed.weight": torch.zeros(320)}, "other names or shapes"),
        ({"feature_projection.projection.weight": torch.zeros(8, 200_000)}, "differs from this config's"),
        ({}, "differs from this config's"),
    ],
)  # fmt: skip
def test_foreign_tensors_of_every_odd_kind(tmp_path, more, words, imported):
    torch.save({"model": {**smallest(), **more}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=words) as err:
        imported(tmp_path / "x.pt")
    assert "x.pt" in str(err.value) and "config.yaml" not in str(err.value)
    assert not (tmp_path / "out").exists()


def test_many_names_of_one_large_array(tmp_path, imported):
    """Half precision: a float32 copy for each name would take 200 times the size of the file."""
    whole = torch.zeros(1 << 16, dtype=torch.float16)
    torch.save({"model": {**smallest(), **{f"q{n}": whole[:] for n in range(200)}}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="larger than the file"):
        imported(tmp_path / "x.pt")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 377617425\n"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "x.pt"])
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (LFS, "is a Git LFS pointer.*\n.*git -C .* lfs pull"),
        (b"\n <!DOCTYPE html><html>404</html>", "is a web page"),
        (b"", "is empty"),
        (b"\x1f\x8b\x08\x00abc", r"is packed \(gzip\)"),
        (b"PK\x03\x04" + bytes(100), "cut short"),
        (b"\x80\x02}q\x00(X\x05\x00\x00", "cut short"),
        (b"hello world, I am no weights", "cut short|cannot be|can be read"),
    ],
)
def test_files_without_weights_are_recognised_by_their_first_bytes(tmp_path, name, raw, words, imported):
    (source := tmp_path / "hf").mkdir()
    (source / "config.json").write_text('{"model_type": "wavlm"}')
    (source / name).write_bytes(raw)
    with pytest.raises(UserError, match=words) as err:
        imported(source / name if name == "x.pt" else source)
    assert name in str(err.value) and len(str(err.value).splitlines()) <= 2
    assert "weights_only" not in str(err.value) and "torch.load" not in str(err.value)


def test_files_cut_at_any_place(tmp_path, imported):
    torch.save({"model": smallest()}, tmp_path / "whole.pt")
    save_file(smallest(), tmp_path / "whole.safetensors")
    for name in ("whole.pt", "whole.safetensors"):
        raw = (tmp_path / name).read_bytes()
        for part in (4, 9, 100, len(raw) // 2, len(raw) - 1):
            (cut := tmp_path / f"cut.{name}").write_bytes(raw[:part])
            with pytest.raises(UserError) as err:
                imported(cut)
            assert "weights_only" not in str(err.value) and len(str(err.value)) < 400


def test_a_zip_bomb_is_not_extracted(tmp_path, imported):
    torch.save({"model": {"q": torch.zeros(1 << 20)}}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as to,
    ):
        for part in whole.namelist():
            to.writestr(part, whole.read(part))
    with pytest.raises(UserError, match="is packed"):
        imported(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "3", "{}", '{"model_type": ["wavlm"]}', "\xff", '{"a": ' + "9" * 5000 + "}"]
)
def test_config_json_of_strangers(tmp_path, text, imported):
    (source := tmp_path / "hf").mkdir()
    (source / "config.json").write_text(text)
    save_file(smallest(), source / "model.safetensors")
    with pytest.raises(UserError, match=r"config\.json"):
        imported(source)


@pytest.mark.parametrize("text", ["[]", "{", "3", "[" * 100_000])
def test_a_broken_record_in_out(tmp_path, text, imported):
    torch.save({"model": smallest()}, tmp_path / "x.pt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/LATEST").write_text("ckpt-0\n")
    (tmp_path / "out/run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json.*(\n.*)give another --out"):
        imported(tmp_path / "x.pt")


def test_a_model_without_the_mask_of_pretraining(tmp_path, imported):
    """transformers saves none if mask_time_prob is 0.

    The embeddings equal those of the same model with a mask.
    """
    encoder = build(seed=3).eval()
    (source := tmp_path / "hf").mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "wavlm", "mask_time_prob": 0.0}))
    trunk = {k: v.clone() for k, v in encoder.trunk.state_dict().items() if k != "masked_spec_embed"}
    save_file(trunk, source / "model.safetensors")
    imported(source, "--pooling", "mean")
    got = load_encoder(tmp_path / "out")
    wave, lengths = 0.1 * torch.randn(1, 8000), torch.tensor([8000])
    want = build(pooling="mean", seed=3).eval()
    want.trunk.load_state_dict(encoder.trunk.state_dict())
    torch.testing.assert_close(got(wave, lengths), want(wave, lengths))
    del trunk["encoder.layer_norm.weight"]
    save_file(trunk, source / "model.safetensors")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match=r"trunk\.encoder\.layer_norm\.weight is absent in the checkpoint"):
        imported(source)


def test_an_imported_model_can_be_read_by_others(tmp_path, imported):
    was = os.umask(0o022)
    try:
        imported(foreign(tmp_path, "authors", build(seed=3)))
    finally:
        os.umask(was)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert set(modes.values()) == {0o644}, modes


@pytest.mark.parametrize("form", ["squared", "norms"])
def test_pull_is_of_its_form(tmp_path, form):
    """0.5 x sum of squares, or 0.5 R / (sg(R) + 1e-5), whose gradient is 0.5 grad(ln R), R the sum of norms."""
    pretrained = build(seed=5)
    checkpoint.save_import(tmp_path / "p", pretrained, pretrained.config, {})
    encoder = build(seed=6, pretrained=str(tmp_path / "p"), l2_sp_weight=0.5, pull_form=form)
    encoder.load_pretrained()
    torch.testing.assert_close(encoder.trunk.state_dict(), pretrained.trunk.state_dict())
    assert encoder.normalizes_loss == (form == "norms")
    assert encoder.pull().item() == 0 and set(encoder.drift().values()) == {0.0}
    encoder.pull().backward()  # at the start itself there is nothing to draw to, and no 0 / 0
    weight = encoder.trunk.encoder.layers[0].feed_forward.output_dense.weight
    assert (weight.grad == 0).all()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)  # the frozen front and the backend are not pulled
    layers = list(encoder.trunk.encoder.layers.parameters())
    encoder.zero_grad()
    encoder.pull().backward()
    norms = sum(p.numel() ** 0.5 for p in layers)
    want = {"squared": 0.5 * sum(p.numel() for p in layers), "norms": 0.5}[form]
    grad = {"squared": 1.0, "norms": 0.5 / norms / weight.numel() ** 0.5}[form]
    assert encoder.pull().item() == pytest.approx(want, rel=1e-4)
    torch.testing.assert_close(weight.grad, torch.full_like(weight, grad), rtol=1e-4, atol=0)
    assert build().pull() is None and build().drift() == {}
    assert json.loads((tmp_path / "p/ckpt-0/state.json").read_text())["evaluates"] == "encoder"


def test_drift_is_the_relative_distance_of_each_layer(tmp_path):
    """Without a weight, too: how far a trunk goes when nothing holds it."""
    pretrained = build(seed=5)
    checkpoint.save_import(tmp_path / "p", pretrained, pretrained.config, {})
    encoder = build(seed=6, pretrained=str(tmp_path / "p"), freeze="none")
    encoder.load_pretrained()
    assert encoder.pull() is None
    with torch.no_grad():
        for p in encoder.trunk.encoder.layers[1].parameters():
            p.mul_(1.25)
        weight = encoder.trunk.feature_projection.projection.weight
        moved = weight[0, 0].item()
        weight[0, 0] *= 2
    found = encoder.drift()
    assert found.keys() == {"front", *(f"layer{i + 1}" for i in range(len(encoder.trunk.encoder.layers)))}
    assert found["layer1"] == 0 and found["layer2"] == pytest.approx(0.25, rel=1e-5)
    front = [
        p.detach().flatten()
        for name, p in pretrained.trunk.named_parameters()
        if not name.startswith("encoder.layers") and name != "masked_spec_embed"
    ]
    assert found["front"] == pytest.approx(abs(moved) / torch.cat(front).norm().item(), rel=1e-4)


def test_strides_make_320_samples_a_frame():
    assert math.prod(CONV_STRIDES) == 320
    field, jump = 1, 1
    for kernel, stride in zip(CONV_KERNELS, CONV_STRIDES):
        field, jump = field + (kernel - 1) * jump, jump * stride
    assert field == 400
