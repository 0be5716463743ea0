"""Trunks of every family against transformers: hidden states, front ends, padding, small parts, staging, import."""

import functools
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import test_wavlm
import torch
import toy
from safetensors.torch import load_file, save_file

from pyspkv.api.handover import export
from pyspkv.base import checkpoint
from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.base.guarded import transformers
from pyspkv.bin import import_checkpoint, train
from pyspkv.models import trunk_fronts, trunks
from pyspkv.models.layer_pooling import MHFA
from pyspkv.models.load import _Shapes, load_encoder, resolved
from pyspkv.models.registry import EncoderConfig
from pyspkv.models.trunks import part_size
from pyspkv.train.config import TrainConfig
from pyspkv.train.trainer import Trainer

LAYERS, DIM = 3, 32
CONVS = {
    "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
LARGE = {**CONVS, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
WHISPER = {
    "d_model": DIM, "encoder_layers": LAYERS, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 20,
    "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "vocab_size": 60, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "max_target_positions": 10,
}  # fmt: skip
W2V_BERT = {
    "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48,
    "feature_projection_input_dim": 40, "conv_depthwise_kernel_size": 5, "left_max_position_embeddings": 6,
    "right_max_position_embeddings": 3,
}  # fmt: skip
KINDS = {  # name here: (class of transformers without "Model", sizes)
    "whisper": ("Whisper", WHISPER),
    "wav2vec2": ("Wav2Vec2", CONVS),
    "xlsr": ("Wav2Vec2", LARGE),
    "hubert": ("Hubert", CONVS),
    "hubert_large": ("Hubert", LARGE),
    "wavlm_large": ("WavLM", LARGE),
    "wavlm_base": ("WavLM", CONVS),
    "w2v_bert": ("Wav2Vec2Bert", W2V_BERT),
    "w2v_bert_rotary": ("Wav2Vec2Bert", {**W2V_BERT, "position_embeddings_type": "rotary"}),
}
POOL = {"mhfa_heads": 3, "mhfa_dim": 8, "embed_dim": 12}


def theirs(kind, seed=0, head="Model", **sizes):
    """A model of transformers with noise on every weight, so that nothing is one or zero."""
    torch.manual_seed(seed)
    name, found = KINDS[kind]
    config = getattr(transformers(), f"{name}Config")(**{**found, **sizes})
    model = getattr(transformers(), name + head)(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def folder(path, model, **preprocessing):
    model.save_pretrained(path)
    if preprocessing:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return path


@pytest.fixture
def imported(monkeypatch, capsys, tmp_path):
    """bin.import_checkpoint into tmp_path/out; the encoder that it made, with `changes` of its config."""

    def call(source, *options, out="out", **changes):
        args = ["import_checkpoint", "--from", str(source), "--out", str(tmp_path / out), *options]
        monkeypatch.setattr("sys.argv", args)
        import_checkpoint.main()
        capsys.readouterr()
        encoder = load_encoder(tmp_path / out)
        if not changes:
            return encoder
        fields = {"name": "trunk", "pretrained": str(tmp_path / out), **POOL, **changes}
        config = resolved(cfg.validate(EncoderConfig, fields))
        torch.manual_seed(1)
        encoder = cfg.build(config)
        encoder.load_pretrained()
        return encoder.eval()

    return call


def states_of(encoder, wave, lengths=None):
    lengths = torch.tensor([wave.shape[1]] * len(wave)) if lengths is None else lengths
    with torch.no_grad():
        return encoder.hidden_states(*encoder.features(wave, lengths))[0]


def wanted_states(kind, model, wave, do_normalize=True):
    """transformers' own: its feature extractor on one utterance, its model, the last state after the final norm."""
    hf, x = transformers(), wave[0].numpy()
    if kind == "whisper":
        extract = hf.WhisperFeatureExtractor(feature_size=20)
        feats = extract(x, sampling_rate=16000, return_tensors="pt", padding="max_length", max_length=len(x))
        model.encoder.config.max_source_positions = feats.input_features.shape[2] // 2
        weight = model.encoder.embed_positions.weight[: feats.input_features.shape[2] // 2]
        model.encoder.embed_positions = torch.nn.Embedding.from_pretrained(weight)
        out = model.encoder(feats.input_features, output_hidden_states=True)
    elif kind.startswith("w2v_bert"):
        extract = hf.SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20)
        out = model(**extract(x, sampling_rate=16000, return_tensors="pt"), output_hidden_states=True)
    else:
        extract = hf.Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
        values = extract(x, sampling_rate=16000, return_tensors="pt").input_values
        out = model(values, output_hidden_states=True)
    return [*out.hidden_states[:-1], out.last_hidden_state]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_hidden_states_and_padding(kind, tmp_path, imported):
    """The states are transformers' on the waveform of an utterance; in a batch of other lengths they are the same."""
    model, base = theirs(kind), kind == "wavlm_base"
    encoder = imported(folder(tmp_path / "hf", model), *["--as-trunk"] * base)
    torch.manual_seed(5)
    wave = 0.1 * torch.randn(2, 16000)
    ours, want = states_of(encoder, wave[:1]), wanted_states(kind, model, wave[:1], do_normalize=not base)
    assert len(ours) == len(want) == LAYERS + 1
    for a, b in zip(ours, want):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for length in (6400, 7117):
        alone = encoder(wave[:1, :length], torch.tensor([length]))
        wave[0, length:] = 9.0  # whatever lies there
        both = encoder(wave, torch.tensor([length, 16000]))
        torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(both[1:], encoder(wave[1:], torch.tensor([16000])), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_whisper_at_30_seconds_is_transformers_own(tmp_path, imported):
    """Nothing is cut there, and nothing padded: no part of transformers is replaced."""
    model = theirs("whisper")
    encoder = imported(folder(tmp_path / "hf", model))
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(1, 480_000)
    extract = transformers().WhisperFeatureExtractor(feature_size=20)
    feats = extract(wave[0].numpy(), sampling_rate=16000, return_tensors="pt").input_features
    want = model.encoder(feats, output_hidden_states=True).hidden_states
    for a, b in zip(states_of(encoder, wave), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("samples", "cuts"),
    [
        (30_000, [64, 64, 59]),  # 187 frames
        (12_960, [42, 39]),  # one frame more than the network takes
    ],
)
def test_whisper_beyond_its_positions(tmp_path, imported, samples, cuts):
    """Here 0.8 s for the true 30: what is longer is cut into equal parts, each of which has the positions from 0."""
    encoder = imported(folder(tmp_path / "hf", theirs("whisper", max_source_positions=40)))
    torch.manual_seed(0)
    wave, lengths = 0.1 * torch.randn(2, samples), torch.tensor([samples, 12_000])
    feats, frames = encoder.features(wave, lengths)
    states, counts = encoder.hidden_states(feats, frames)
    total = (sum(cuts) + 1) // 2
    assert counts.tolist() == [total, 38] and states[0].shape == (2, total, DIM)
    parts = [encoder.hidden_states(x[None], torch.tensor([len(x)]))[0] for x in feats[0].split(cuts)]
    short = encoder.hidden_states(feats[1:, :75], frames[1:])[0]
    for n, whole in enumerate(states):
        torch.testing.assert_close(whole[:1], torch.cat([p[n] for p in parts], 1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(whole[1:, :38], short[n], atol=1e-5, rtol=1e-4)
    both, alone = encoder(wave, lengths), encoder(wave[1:, :12_000], lengths[1:])
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder(wave, lengths), both, atol=0.1, rtol=0.1)


def test_parts_are_few_and_equal():
    for length in range(1, 400):
        size = part_size(length, 80)
        parts = [len(part) for part in torch.zeros(length).split(size)]
        assert max(parts) <= 80 and len(parts) <= -(-length // 80) and size % 2 == 0
        assert len(parts) == 1 or min(parts) > 30


@pytest.mark.parametrize("length", [16000, 7117, 1200])
def test_front_ends_are_those_of_transformers(length):
    hf, x = transformers(), 0.1 * np.random.default_rng(0).standard_normal(length).astype(np.float32) + 0.02
    batch = torch.from_numpy(
        np.stack([np.pad(x, (0, 999), constant_values=3), np.ones(length + 999, np.float32)])
    )
    lengths = torch.tensor([length, length + 999])
    how = {"sampling_rate": 16000, "return_tensors": "pt"}
    ours, frames = trunk_fronts.WhisperLogMel(80)(batch, lengths)
    want = hf.WhisperFeatureExtractor()(x, **how, padding="max_length", max_length=length).input_features
    assert frames[0] == want.shape[2] == length // 160
    torch.testing.assert_close(ours[0, : frames[0]], want[0].T, atol=1e-5, rtol=1e-5)
    assert not ours[0, frames[0] :].any()
    ours, frames = trunk_fronts.StackedFbank(80)(batch, lengths)
    want = hf.SeamlessM4TFeatureExtractor()(x, **how)
    assert frames[0] == want.attention_mask.sum()
    torch.testing.assert_close(
        ours[0, : frames[0]], want.input_features[0, : frames[0]], atol=1e-3, rtol=1e-3
    )
    assert not ours[0, frames[0] :].any()
    want = hf.Wav2Vec2FeatureExtractor(do_normalize=True)(x, **how).input_values
    ours = trunk_fronts.normalized(batch, lengths)
    torch.testing.assert_close(ours[:1, :length], want, atol=1e-5, rtol=1e-5)
    assert not ours[0, length:].any()


@pytest.mark.parametrize("said, expected", [(True, True), (False, False), (None, True)])
def test_samples_are_normalized_where_the_model_wants_it(tmp_path, imported, said, expected):
    model = theirs("wav2vec2")
    more = {} if said is None else {"do_normalize": said}
    encoder = imported(folder(tmp_path / "hf", model, **more))
    wave = 3 + 0.1 * torch.randn(1, 8000)
    ours, want = states_of(encoder, wave), wanted_states("wav2vec2", model, wave, do_normalize=expected)
    torch.testing.assert_close(ours[-1], want[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stale", [False, True])
def test_feature_extractor_that_transformers_5_saves_in_its_processor(tmp_path, imported, stale):
    """With a stale preprocessor_config.json beside it, transformers takes the same settings."""
    hf, source, model = transformers(), tmp_path / "hf", theirs("wav2vec2")
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "<unk>": 1, "|": 2}')
    extract = hf.Wav2Vec2FeatureExtractor(do_normalize=False)
    model.save_pretrained(source)
    hf.Wav2Vec2Processor(extract, hf.Wav2Vec2CTCTokenizer(tmp_path / "vocab.json")).save_pretrained(source)
    if stale:
        folder(source, model, do_normalize=True)
    assert hf.Wav2Vec2FeatureExtractor.from_pretrained(source).do_normalize is False
    wave = 3 + 0.1 * torch.randn(1, 8000)
    ours = states_of(imported(source), wave)
    want = wanted_states("wav2vec2", model, wave, do_normalize=False)
    torch.testing.assert_close(ours[-1], want[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["whisper", "wavlm_base", "w2v_bert"])
def test_a_model_of_another_sampling_rate(kind, tmp_path, imported):
    source = folder(tmp_path / "hf", theirs(kind), sampling_rate=8000)
    with pytest.raises(UserError, match=r"preprocessor_config.json: sampling_rate is 8000, .* 16000 Hz"):
        imported(source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["whisper", "xlsr", "hubert", "wavlm_large", "w2v_bert"])
def test_lowest_layers_are_those_of_the_whole(kind, tmp_path, imported):
    """Neither in the checkpoint nor in memory is more than them; n of the config, or of the import."""
    source = folder(tmp_path / "hf", theirs(kind))
    wave = 0.1 * torch.randn(1, 8000)
    whole = states_of(imported(source), wave)
    few, cut = imported(source, layers=2), imported(source, "--layers", "2", out="cut")
    assert cut.trunk.state_dict().keys() == few.trunk.state_dict().keys()
    third = "layers.2." if kind == "whisper" else "encoder.layers.2."
    assert not any(k.startswith(third) for k in few.trunk.state_dict())
    for a, b, c in zip(states_of(few, wave), states_of(cut, wave), whole[:3], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)
    assert imported(source, "--layers", "2", out="cut", pooling="weighted").layers == 2
    with pytest.raises(UserError, match="layers is 3, but the trunk has 2"):
        imported(source, "--layers", "2", out="cut", layers=3)
    with pytest.raises(UserError, match="layers is 4, but the trunk has 3"):
        imported(source, "--layers", "4", out="many")


@pytest.mark.parametrize("pooling", ["mhfa", "attentive", "weighted", "mean"])
def test_poolings(pooling, tmp_path, imported):
    source = folder(tmp_path / "hf", theirs("whisper"))
    encoder = imported(source, "--pooling", pooling)
    assert encoder.embed_dim == (DIM if pooling == "mean" else 256)
    wave, lengths = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 16000])
    states = torch.stack(states_of(encoder, wave))
    if pooling == "mean":
        torch.testing.assert_close(encoder(wave, lengths), states.mean((0, 2)), atol=1e-5, rtol=1e-4)
    if pooling == "weighted":
        torch.nn.init.normal_(encoder.backend.weights)
        mean = torch.einsum("l,lbtd->bd", encoder.backend.weights.softmax(0), states) / states.shape[2]
        torch.testing.assert_close(encoder(wave, lengths), encoder.backend.fc(mean), atol=1e-5, rtol=1e-4)
    encoder.train()(wave, lengths).square().sum().backward()
    learns = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert all(encoder.get_parameter(n).grad is not None for n in learns)
    assert any(n.startswith("backend.") for n in learns) == (pooling != "mean")


def small_parts(encoder):
    return {n: p for n, p in encoder.named_parameters() if ".lora_" in n or n.startswith("adapters.")}


@pytest.mark.parametrize(
    "kind, matrices",
    [("whisper", 4), ("wavlm_large", 6), ("wavlm_base", 6), ("w2v_bert", 4), ("hubert", 6)],
)
@pytest.mark.parametrize("part", ["lora", "adapters"])
def test_small_parts_start_as_nothing_and_learn_alone(kind, matrices, part, tmp_path, imported):
    source = folder(tmp_path / "hf", theirs(kind))
    more = matrices == 6
    fields = {"lora_rank": 4, "lora_feed_forward": more} if part == "lora" else {"adapter_dim": 5}
    plain, encoder = imported(source, freeze="trunk"), imported(source, freeze="trunk", **fields)
    wave, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 6000])
    for a, b in zip(states_of(encoder, wave, lengths), states_of(plain, wave, lengths)):
        assert torch.equal(a, b)
    parts = small_parts(encoder)
    assert len(parts) == LAYERS * (2 * matrices if part == "lora" else 4)
    torch.manual_seed(0)
    for p in parts.values():
        torch.nn.init.normal_(p, std=0.1)
    encoder.train()(wave, lengths).square().sum().backward()
    learns = {n for n, p in encoder.named_parameters() if p.grad is not None}
    assert learns == {*parts, *(f"backend.{n}" for n, _ in encoder.backend.named_parameters())}
    groups = encoder.param_groups()
    assert [g["lr_scale"] for g in groups] == [0.1, 1.0] and len(groups[0]["params"]) == len(parts)
    # The updates of a trunk are its own: a training that starts from this one has new ones.
    assert encoder.pull() is None


def lora_model(tmp_path, imported, kind, **fields):
    """An encoder with low-rank updates that are not zero, in the model folder tmp_path/lora, too."""
    source = folder(tmp_path / "hf", theirs(kind))
    fields = {"lora_rank": 4, "lora_alpha": 3.0, "lora_feed_forward": True, "freeze": "trunk", **fields}
    encoder = imported(source, **fields)
    torch.manual_seed(0)
    for p in small_parts(encoder).values():
        torch.nn.init.normal_(p, std=0.05)
    checkpoint.save_import(tmp_path / "lora", encoder, encoder.config, {})
    return encoder


@pytest.mark.parametrize("kind", ["whisper", "wavlm_base", "w2v_bert"])
@torch.no_grad()
def test_low_rank_updates_are_merged_for_use_and_for_another_training(kind, tmp_path, imported):
    encoder = lora_model(tmp_path, imported, kind)
    wave, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 6000])
    want = encoder(wave, lengths)
    states = states_of(encoder, wave, lengths)
    assert (
        states[-1] - states_of(imported(tmp_path / "hf", lora_rank=0), wave, lengths)[-1]
    ).abs().max() > 1e-2
    export(str(tmp_path / "lora"), tmp_path / "handover")
    for name in ("lora", "handover"):
        found = load_encoder(tmp_path / name)
        torch.testing.assert_close(found(wave, lengths), want, atol=1e-5, rtol=1e-5)
        layers = [m for m in found.trunk.modules() if isinstance(m, torch.nn.Linear)]
        assert {type(m) for m in layers} == {torch.nn.Linear}  # which extraction packs in bf16
    # --init, and encoder.pretrained: into a config without LoRA; the latter into one with a new LoRA, too.
    fields = {"name": "trunk", "pretrained": str(tmp_path / "lora"), **POOL}
    for more in ({}, {"lora_rank": 2}):
        other = cfg.build(resolved(cfg.validate(EncoderConfig, {**fields, **more})))
        other.load_pretrained()
        for a, b in zip(states_of(other.eval(), wave, lengths), states, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert any(".lora_" in n for n, _ in other.named_parameters()) == bool(more)
        assert other.anchor and set(other.drift().values()) == {0.0}
    other = cfg.build(resolved(cfg.validate(EncoderConfig, fields)))
    checkpoint.init_encoder(other, tmp_path / "lora")
    torch.testing.assert_close(other.eval()(wave, lengths), want, atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad for p in other.trunk_layers().parameters())
    same = cfg.build(encoder.config)  # of the same rank: its updates go on learning
    checkpoint.init_encoder(same, tmp_path / "lora")
    assert torch.equal(same.eval()(wave, lengths), want)


def test_rates_by_layer_and_what_is_frozen(tmp_path, imported):
    source = folder(tmp_path / "hf", theirs("xlsr"))
    encoder = imported(source, trunk_lr_scale=0.1, layerwise_lr_growth=2.0)
    names = {id(p): n for n, p in encoder.named_parameters()}
    groups = encoder.param_groups()
    assert [g["lr_scale"] for g in groups] == pytest.approx([0.1, 0.2, 0.4, 0.1, 1.0])
    assert {names[id(p)] for p in groups[3]["params"]} == {
        "trunk.encoder.layer_norm.weight",
        "trunk.encoder.layer_norm.bias",
    }
    assert {names[id(p)].split(".")[3] for p in groups[1]["params"]} == {"1"}
    free = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert not any("feature_" in n or "pos_conv" in n for n in free)
    assert all(p.requires_grad for p in imported(source, freeze="none").parameters())
    frozen = imported(source, freeze="trunk")
    assert {n.split(".")[0] for n, p in frozen.named_parameters() if p.requires_grad} == {"backend"}


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "wavlm_large", "w2v_bert"])
def test_gradients_of_the_whole_trunk_are_those_of_transformers(kind, tmp_path, imported):
    """Trained from scratch, and with each layer computed twice."""
    model = theirs(kind)
    source = folder(tmp_path / "hf", model)
    wave, lengths = 0.1 * torch.randn(1, 16000), torch.tensor([16000])
    found = []
    for twice in (False, True):
        encoder = imported(source, freeze="none", gradient_checkpointing=twice).train()
        states = encoder.hidden_states(*encoder.features(wave, lengths))[0]
        sum((h * h.roll(1, 1)).mean() * (i + 1) for i, h in enumerate(states)).backward()
        found.append({n: p.grad for n, p in encoder.trunk.named_parameters() if p.grad is not None})
    model.zero_grad()
    sum(
        (h * h.roll(1, 1)).mean() * (i + 1) for i, h in enumerate(wanted_states(kind, model, wave))
    ).backward()
    part = model.encoder if kind == "whisper" else model
    want = {n: p.grad for n, p in part.named_parameters() if p.grad is not None}
    want.pop("embed_positions.weight", None)
    assert found[0].keys() == found[1].keys() == want.keys()
    for name, g in want.items():
        torch.testing.assert_close(found[0][name], found[1][name])
        assert (found[0][name] - g).abs().sum() <= 1e-3 * g.abs().sum() + 1e-6, name


@pytest.mark.parametrize("kind", ["wavlm_large", "w2v_bert"])
def test_layers_and_mixture_compile_whole(kind, tmp_path, imported, monkeypatch):
    """As a GPU trains them, but for the kernels: without a break, and not once a layer."""
    encoder = imported(folder(tmp_path / "hf", theirs(kind)), freeze="front").train()
    wave, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 6000])
    want = encoder(wave, lengths)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = functools.cache(
        functools.partial(torch.compile, backend=backend, fullgraph=True, dynamic=False)
    )
    monkeypatch.setattr(trunks, "on", lambda device, function: compiled(function))
    found = encoder(wave, lengths)
    found.sum().backward()
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)
    assert (
        len(graphs) <= LAYERS
    )  # the mixture, and the layers, of which the lowest alone has an input without gradient


def test_utterances_in_turn_are_those_of_a_batch(tmp_path, imported):
    """Where no gradient is kept; padded ones, too."""
    for kind in ("wav2vec2", "xlsr"):
        encoder = imported(folder(tmp_path / kind, theirs(kind)), out=f"{kind}_out", freeze="none")
        wave, lengths = 0.1 * torch.randn(3, 8000), torch.tensor([8000, 6000, 7117])
        together = encoder.features(wave, lengths)
        with torch.no_grad():
            in_turn = encoder.features(wave, lengths)
        assert together[0].requires_grad and torch.equal(in_turn[1], together[1])
        torch.testing.assert_close(in_turn[0], together[0].detach(), atol=1e-6, rtol=1e-5)


def test_pull_is_on_what_is_not_frozen(tmp_path, imported):
    source = folder(tmp_path / "hf", theirs("whisper"))
    encoder = imported(source, l2_sp_weight=0.5, pull_form="squared", lora_rank=2)
    assert encoder.pull().item() == 0
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    pulled = sum(
        p.numel() for n, p in encoder.trunk.named_parameters()
        if n.startswith(("layers.", "layer_norm.")) and ".lora_" not in n
        and n.split(".")[-2] not in ("q_proj", "k_proj", "v_proj", "out_proj")
    )  # fmt: skip
    assert encoder.pull().item() == pytest.approx(0.5 * pulled, rel=1e-4)


def test_training_after_extraction_at_the_same_length(tmp_path, imported):
    """transformers keeps the positions' table, made in inference mode, for the next pass at that length."""
    encoder = imported(folder(tmp_path / "hf", theirs("w2v_bert_rotary")), freeze="front")
    wave, lengths = 0.1 * torch.randn(1, 8000), torch.tensor([8000])
    with torch.inference_mode():
        want = encoder.eval()(wave, lengths)
    found = encoder.train()(wave, lengths)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)
    found.sum().backward()


def test_drift_of_the_final_norm(tmp_path, imported):
    for kind in ("whisper", "xlsr"):
        encoder = imported(folder(tmp_path / kind, theirs(kind)), out=f"{kind}_out", freeze="front")
        assert set(encoder.drift()) == {"layer1", "layer2", "layer3", "norm"}
        with torch.no_grad():
            norm = torch.cat([p.clone() for p in encoder.final_norm().parameters()])
            encoder.final_norm().weight.add_(1.0)
        assert encoder.drift()["norm"] == pytest.approx((DIM**0.5 / norm.norm()).item(), rel=1e-5)
    other = imported(folder(tmp_path / "hubert", theirs("hubert")), out="hubert_out", freeze="none")
    assert set(other.drift()) == {"layer1", "layer2", "layer3", "front"}  # its norm is below the layers


@torch.no_grad()
def test_drift_of_low_rank_updates(tmp_path, imported):
    """|alpha / r B A| / |W| over the matrices of a layer; on a trunk that learns, with all else of the layer."""
    source = folder(tmp_path / "hf", theirs("whisper"))
    for freeze in ("trunk", "front"):
        encoder = imported(source, lora_rank=2, lora_alpha=3.0, freeze=freeze)
        assert set(encoder.drift().values()) == {0.0}
        layer = encoder.trunk.layers[1]
        layer.self_attn.q_proj.lora_b.normal_()
        update = 1.5 * layer.self_attn.q_proj.lora_b @ layer.self_attn.q_proj.lora_a
        names = [f"self_attn.{x}_proj.weight" for x in ("q", "k", "v", "out")]
        if freeze == "front":
            learns = [n for n, p in layer.named_parameters() if p.requires_grad and ".lora_" not in n]
            names += learns
            layer.fc1.bias.add_(1.0)
        size = torch.cat(
            [load_encoder(tmp_path / "out").trunk.layers[1].get_parameter(n).flatten() for n in names]
        )
        moved = update.square().sum() + (freeze == "front") * len(layer.fc1.bias)
        found = encoder.drift()
        assert found["layer2"] == pytest.approx((moved.sqrt() / size.norm()).item(), rel=1e-4)
        assert found["layer1"] == 0.0 and ("norm" in found) == (freeze == "front")


# ---- in a training

TRAINING = """
objective: {name: aam, crop_seconds: 0.5}
augment: {rir_bank: 0}
optim: {lr: 1e-2, lr_schedule: {warmup_epochs: 0}}
batch_size: 4
precision: fp32
epochs: 2
num_workers: 0
save_every_steps: 2
"""


def settings(tmp_path, **encoder) -> TrainConfig:
    (tmp_path / "c.yaml").write_text(TRAINING)
    fields = {"name": "trunk", "pretrained": str(tmp_path / "out"), "trunk_lr_scale": 1.0, **POOL, **encoder}
    return cfg.load(TrainConfig, tmp_path / "c.yaml", [f"encoder={json.dumps(fields)}"])


def trained(exp):
    return load_file(checkpoint.latest(exp) / "model.safetensors")


@pytest.mark.parametrize(
    ("optimizer", "more"),
    [
        ("sgd", {}),
        ("adamw", {"lora_rank": 2, "adapter_dim": 3, "freeze": "trunk"}),
        ("adamw", {"l2_sp_weight": 0.1}),  # the pull gives gradients in the frozen epochs, too
    ],
)
def test_trunk_joins_after_its_frozen_epochs(tmp_path, imported, more, optimizer):
    """In epoch 1 the pooling and the classes learn alone, in epoch 2 all; a kill anywhere changes no digit."""
    data = toy.make(tmp_path / "toy")
    imported(folder(tmp_path / "hf", theirs("whisper")))
    c = settings(tmp_path, frozen_epochs=1, **more)
    c = c.model_copy(update={"optim": c.optim.model_copy(update={"name": optimizer})})
    trainer = Trainer(c, data, tmp_path / "whole")
    start = {k: v.clone() for k, v in trainer.objective.state_dict().items()}
    waits = {
        f"encoder.{n}" for n, p in trainer.objective.encoder.named_parameters()
        if p.requires_grad and not n.startswith("backend.")
    }  # fmt: skip
    assert len(waits) > 10
    seen = {}
    save = trainer._save

    def spy(*args):
        seen[trainer.state.step] = {k: v.clone() for k, v in trainer.objective.state_dict().items()}
        save(*args)

    trainer._save = spy
    trainer.run()
    steps = trainer.sampler.steps
    moved = {k for k, v in seen[steps].items() if not torch.equal(v, start[k])}
    assert moved and not moved & waits
    moved = {k for k, v in seen[2 * steps].items() if not torch.equal(v, start[k])}
    still = waits - moved
    # A bias of keys has no gradient but rounding.
    assert all("k_proj" in name for name in still), still
    for death in (steps, steps + 1):
        toy.killed_at([death], lambda: Trainer(c, data, tmp_path / f"killed{death}").run())  # noqa: B023
        again = trained(tmp_path / f"killed{death}")
        assert again.keys() == seen[2 * steps].keys()
        assert all(torch.equal(v, again[k]) for k, v in seen[2 * steps].items())


def test_the_first_frozen_epoch_is_that_of_a_frozen_trunk(tmp_path, imported, monkeypatch):
    """The gradients of what waits are in no norm: the head learns as on a trunk that never joins."""
    data = toy.make(tmp_path / "toy")
    imported(folder(tmp_path / "hf", theirs("w2v_bert")))
    heads = []
    for fields in ({"frozen_epochs": 1}, {"freeze": "trunk"}):
        exp = tmp_path / next(iter(fields))
        trainer = Trainer(settings(tmp_path, **fields), data, exp)
        steps, step = trainer.sampler.steps, trainer._step

        def first_epoch(model, batch, number, steps=steps, step=step):
            if number == steps:
                raise toy.Killed
            return step(model, batch, number)

        monkeypatch.setattr(trainer, "_step", first_epoch)
        with pytest.raises(toy.Killed):
            trainer.run()
        assert checkpoint.latest(exp).name == f"ckpt-{steps}"
        heads.append({k: v for k, v in trained(exp).items() if ".trunk." not in k})
    assert all(torch.equal(v, heads[1][k]) for k, v in heads[0].items())


def test_a_model_folder_needs_no_other(tmp_path, imported):
    """One line names the trunk; the model that is trained holds its sizes, and embeds when the trunk is gone."""
    data = toy.make(tmp_path / "toy")
    imported(folder(tmp_path / "hf", theirs("xlsr")), "--layers", "2")
    c = settings(tmp_path)
    Trainer(c, data, tmp_path / "exp").run()
    assert Trainer(c, data, tmp_path / "exp").finished
    for name in ("out", "hf"):
        shutil.rmtree(tmp_path / name)
    encoder = load_encoder(tmp_path / "exp")
    assert encoder.layers == 2 and encoder.config.arch["num_hidden_layers"] == 3
    assert encoder(0.1 * torch.randn(1, 8000), torch.tensor([8000])).shape == (1, 12)


def test_a_trunk_without_sizes(tmp_path, imported):
    nothing = cfg.validate(EncoderConfig, {"name": "trunk"})
    with pytest.raises(UserError, match="pretrained names no trunk"):
        cfg.build(nothing)
    fields = {"name": "ecapa", "channels": 8, "mfa_channels": 12, "embed_dim": 6, "se_channels": 4}
    config = cfg.validate(EncoderConfig, fields)
    checkpoint.save_import(tmp_path / "other", cfg.build(config), config, {})
    with pytest.raises(UserError, match="its encoder is 'ecapa', not 'trunk'"):
        resolved(nothing.model_copy(update={"pretrained": str(tmp_path / "other")}))


@pytest.mark.parametrize(("kind", "options"), [("whisper", []), ("wavlm_base", ["--as-trunk"])])
def test_a_wavlm_from_another_trunk(kind, options, tmp_path, imported):
    """As a recipe whose student is `name: wavlm` has it with `--trunk whisper-tiny.en`."""
    imported(folder(tmp_path / "hf", theirs(kind)), *options)
    sizes = {"layers": LAYERS, "dim": DIM, "heads": 4, "ffn": 48, "conv_dim": 16, "pos_conv_kernel": 8}
    fields = {"name": "wavlm", "pretrained": str(tmp_path / "out"), **sizes, "pos_conv_groups": 4}
    with pytest.raises(UserError, match="its encoder is 'trunk', not 'wavlm'(?s:.*)set encoder.name: trunk"):
        cfg.build(cfg.validate(EncoderConfig, fields)).load_pretrained()


def test_a_trunk_with_adapters_is_no_pretrained_one(tmp_path, imported):
    """They would be lost: they are not in the matrices of the trunk."""
    encoder = imported(folder(tmp_path / "hf", theirs("whisper")), adapter_dim=2)
    checkpoint.save_import(tmp_path / "adapters", encoder, encoder.config, {})
    nothing = cfg.validate(EncoderConfig, {"name": "trunk", "pretrained": str(tmp_path / "adapters")})
    with pytest.raises(UserError, match="has adapters(?s:.*)--init"):
        resolved(nothing)


def test_sizes_in_a_config_are_those_of_the_pretrained_model(tmp_path, imported):
    """A config.yaml of a model folder, used again, has sizes of its own. With another activation the weights would
    load, and compute something else."""
    own = imported(folder(tmp_path / "hf", theirs("hubert"))).config
    for name, more in [("relu", {"hidden_act": "relu"}), ("eps", {"layer_norm_eps": 1e-3})]:
        imported(folder(tmp_path / f"hf {name}", theirs("hubert", **more)), out=name)
        with pytest.raises(UserError, match=f"{name}/ckpt-0: is another network than encoder.family"):
            resolved(own.model_copy(update={"pretrained": str(tmp_path / name)}))
    config = own.model_copy(update={"pretrained": str(tmp_path / "out"), "layers": 2})
    assert resolved(config) == config
    encoder = imported(tmp_path / "hf", out="out", adapter_dim=2)
    checkpoint.save_import(tmp_path / "adapters", encoder, encoder.config, {})
    with pytest.raises(UserError, match="has adapters"):
        resolved(own.model_copy(update={"pretrained": str(tmp_path / "adapters")}))


def test_low_rank_updates_that_do_not_fit(tmp_path, imported):
    """A checkpoint without half of an update, and a config.yaml that knows of none."""
    encoder = lora_model(tmp_path, imported, "whisper")
    into = cfg.build(encoder.config.model_copy(update={"lora_rank": 0}))
    file = tmp_path / "lora/ckpt-0/model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if not k.endswith("1.fc1.lora_b")}, file)
    with pytest.raises(UserError, match="low-rank updates do not fit"):
        checkpoint.init_encoder(into, tmp_path / "lora")
    save_file(tensors, file)
    text = cfg.to_yaml_section("encoder", into.config)
    (tmp_path / "lora/config.yaml").write_text(text)
    with pytest.raises(UserError, match="low-rank updates do not fit"):
        checkpoint.init_encoder(into, tmp_path / "lora")


def test_low_rank_updates_go_on_with_their_own_alpha(tmp_path, imported):
    """Of the same shape they would load, and give another model."""
    encoder = lora_model(tmp_path, imported, "whisper", lora_alpha=3.0)
    other = cfg.build(encoder.config.model_copy(update={"lora_alpha": 6.0}))
    with pytest.raises(UserError, match="lora_alpha is 3, .* has 6, .* count 2 times(?s:.*)lora_alpha: 3"):
        checkpoint.init_encoder(other, tmp_path / "lora")


def test_check_looks_at_the_model_to_start_from(tmp_path, imported, monkeypatch, capsys):
    encoder = imported(folder(tmp_path / "hf", theirs("whisper")), out="out", embed_dim=13)
    checkpoint.save_import(tmp_path / "other", encoder, encoder.config, {})
    (tmp_path / "c.yaml").write_text(TRAINING)
    words = ["train", "--check", "--config", str(tmp_path / "c.yaml"), "--set", "encoder.name=trunk"]
    words += [f"encoder.pretrained={tmp_path}/out", "encoder.mhfa_heads=3", "encoder.mhfa_dim=8"]
    for size, init, error in [
        (13, "other", None),
        (12, "other", "pooling_fc"),
        (13, "none", "no such model"),
    ]:
        monkeypatch.setattr("sys.argv", [*words, f"encoder.embed_dim={size}", "--init", str(tmp_path / init)])
        if error is None:
            assert train.main() == 0 and "can start: trunk" in capsys.readouterr().out
            continue
        with pytest.raises(UserError, match=error):
            train.main()


def test_lora_alone_then_all_of_the_trunk(tmp_path, imported):
    """Two trainings on the same labels: with low-rank updates on a frozen trunk, then joint, from the merged model and
    with the same classes."""
    data = toy.make(tmp_path / "toy")
    imported(folder(tmp_path / "hf", theirs("wavlm_base")))
    Trainer(settings(tmp_path, lora_rank=2, freeze="trunk"), data, tmp_path / "first").run()
    first = trained(tmp_path / "first")
    assert any(".lora_b" in k and v.any() for k, v in first.items())
    second = Trainer(
        settings(tmp_path), data, tmp_path / "second", init=str(tmp_path / "first"), keep_head=True
    )
    wave, lengths = 0.1 * torch.randn(1, 8000), torch.tensor([8000])
    with torch.no_grad():
        ours = second.objective.encoder.eval()(wave, lengths)
    torch.testing.assert_close(ours, load_encoder(tmp_path / "first")(wave, lengths), atol=1e-5, rtol=1e-5)
    heads = [k for k in first if not k.startswith("encoder.")]
    assert heads and all(torch.equal(first[k], second.objective.state_dict()[k]) for k in heads)


# ---- foreign folders


@pytest.mark.parametrize(
    "kind, head",
    [("whisper", "ForConditionalGeneration"), ("wav2vec2", "ForCTC"), ("hubert", "ForCTC"), ("w2v_bert", "ForCTC"),
     ("wav2vec2", "ForPreTraining"), ("wavlm_large", "ForXVector")],
)  # fmt: skip
def test_encoder_of_a_larger_model(kind, head, tmp_path, imported):
    more = {} if kind == "whisper" else {"vocab_size": 20}
    model = theirs(kind, head=head, **more)
    inner = model.model if kind == "whisper" else model.base_model
    wave = 0.1 * torch.randn(1, 8000)
    want = states_of(imported(folder(tmp_path / "plain", inner), out="plain_out"), wave)
    found = states_of(imported(folder(tmp_path / "whole", model)), wave)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def save_shards(source, tensors, ext, save):
    name, keys = "pytorch_model" if ext == "bin" else "model", sorted(tensors)
    parts = {f"{name}-0000{i + 1}-of-00002.{ext}": keys[i::2] for i in range(2)}
    for file, names in parts.items():
        save({k: tensors[k] for k in names}, source / file)
    index = {"metadata": {}, "weight_map": {k: file for file, names in parts.items() for k in names}}
    (source / f"{name}.{ext}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("layout", ["shards", "bin", "bin shards", "half", "weight_g"])
def test_layouts_of_weights(layout, tmp_path, imported):
    source = folder(tmp_path / "hf", theirs("wav2vec2"))
    wave = 0.1 * torch.randn(1, 8000)
    want = states_of(imported(source, out="plain"), wave)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    if layout == "weight_g":  # transformers before 4.31
        tensors = {
            k.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): v
            for k, v in tensors.items()
        }
        assert any(k.endswith("weight_g") for k in tensors)
    if layout == "half":
        tensors = {k: v.half() for k, v in tensors.items()}
    ext, save = ("bin", torch.save) if "bin" in layout else ("safetensors", save_file)
    if "shards" in layout:
        save_shards(source, tensors, ext, save)
    else:
        save(tensors, source / f"{'pytorch_model' if ext == 'bin' else 'model'}.{ext}")
    found = states_of(imported(source), wave)
    tolerance = 5e-2 if layout == "half" else 0
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
    record = json.loads((tmp_path / "out/run.json").read_text())
    files = [p for p in source.iterdir() if p.suffix == f".{ext}"]
    assert record["weights_sha256"] == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def large_as_unilm(model) -> dict:
    """The weights of a WavLM-Large by unilm's names."""
    convs = r"feature_extractor\.conv_layers\.(\d)\."
    trunk = {}
    for key, value in model.state_dict().items():
        if found := re.fullmatch(convs + r"layer_norm\.(\w+)", key):
            key = f"feature_extractor.conv_layers.{found[1]}.2.1.{found[2]}"
        trunk[test_wavlm.to_unilm(key)] = value
    return trunk


@torch.no_grad()
def test_wavlm_large_as_microsoft_has_it(tmp_path, imported):
    """WavLM-Large.pt: unilm's names, layer norms in the convolutions as `.2.1.`."""
    model = theirs("wavlm_large", conv_bias=False)
    torch.save({"cfg": {"normalize": True}, "model": large_as_unilm(model)}, tmp_path / "WavLM-Large.pt")
    encoder = imported(tmp_path / "WavLM-Large.pt", "--pooling", "mean")
    wave = 0.1 * torch.randn(1, 8000)
    for a, b in zip(states_of(encoder, wave), wanted_states("wavlm_large", model, wave), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    cut = imported(tmp_path / "WavLM-Large.pt", "--layers", "1", out="cut")
    assert len(states_of(cut, wave)) == 2


@torch.no_grad()
@pytest.mark.parametrize("layout", ["microsoft", "authors"])
def test_wavlm_base_as_a_trunk(layout, tmp_path, imported):
    """The same network as `name: wavlm`, and the MHFA of a speaker model with it."""
    whole = test_wavlm.build(seed=3).eval()
    source = test_wavlm.foreign(tmp_path, layout, whole)
    plain, encoder = imported(source, out="plain"), imported(source, "--as-trunk")
    assert (plain.config.name, encoder.config.name) == ("wavlm", "trunk")
    wave, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 6000])
    want = whole.trunk(wave[:1], output_hidden_states=True).hidden_states
    for a, b in zip(states_of(encoder, wave[:1]), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    if layout == "authors":
        torch.testing.assert_close(encoder(wave, lengths), plain(wave, lengths), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(encoder(wave, lengths), whole(wave, lengths), atol=1e-4, rtol=1e-4)
    # Either folder is the trunk of a config that needs what `trunk` alone has.
    for out in ("plain", "out"):
        other = imported(source, *["--as-trunk"] * (out == "out"), out=out, lora_rank=2, freeze="trunk")
        for a, b in zip(states_of(other, wave[:1]), want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="contains another model"):
        imported(source)  # made with another option


@pytest.mark.parametrize(
    ("sizes", "normalize"),
    [
        ({"hidden_act": "relu"}, None),
        ({"layer_norm_eps": 0.1}, None),
        ({"conv_stride": (5, 2, 2, 2, 2, 1, 2)}, None),
        ({"conv_dim": (16, 8, 16, 16, 16, 16, 16)}, None),
        ({"conv_bias": True}, None),
        ({"feat_extract_activation": "relu"}, None),
        ({"max_bucket_distance": 300}, None),
        ({"num_buckets": 64}, None),
        ({}, True),
    ],
)
@torch.no_grad()
def test_wavlm_of_bases_norms_but_another_network(sizes, normalize, tmp_path, imported):
    """`name: wavlm` computes Base's alone, so it becomes a `trunk`."""
    model = theirs("wavlm_base", **sizes)
    source = folder(tmp_path / "hf", model, **({} if normalize is None else {"do_normalize": normalize}))
    encoder = imported(source)
    wave = 0.1 * torch.randn(1, 8000)
    assert encoder.config.name == "trunk"
    want = wanted_states("wavlm_base", model, wave, do_normalize=bool(normalize))
    for a, b in zip(states_of(encoder, wave), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_cache_of_the_hub(tmp_path, imported):
    """The files of a snapshot are links into ../../blobs. The message on the folder above names the snapshot."""
    source, cache = folder(tmp_path / "hf", theirs("whisper")), tmp_path / "models--openai--whisper"
    snapshot = cache / "snapshots/1f2e"
    snapshot.mkdir(parents=True), (cache / "blobs").mkdir()
    for n, file in enumerate(source.iterdir()):
        file.rename(cache / f"blobs/{n}")
        (snapshot / file.name).symlink_to(f"../../blobs/{n}")
    assert imported(snapshot).config.family == "whisper"
    with pytest.raises(UserError, match=f"hint: give the folder in it, {snapshot}"):
        imported(cache, out="other")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"has no config.json with(?s:.*)hint: download the weights of PyTorch"
    ):
        imported(snapshot, out="other")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_a_folder_is_no_model(tmp_path, imported, name):
    source = folder(tmp_path / "hf", theirs("wavlm_large"))
    with pytest.raises(UserError, match=f"{name}: (?s:.*)hint: give its folder, {source}"):
        imported(source / name)


def test_a_foreign_folder_is_no_model_folder(tmp_path):
    source = folder(tmp_path / "hf", theirs("whisper"))
    fields = {"name": "trunk", "pretrained": str(source)}
    with pytest.raises(UserError, match="is a folder of Hugging Face(?s:.*)import_checkpoint --from .*/hf"):
        resolved(cfg.validate(EncoderConfig, fields))


def test_wavlm_base_in_several_files(tmp_path, imported):
    source = folder(tmp_path / "hf", theirs("wavlm_base"))
    plain = imported(source, out="plain")
    save_shards(source, load_file(source / "model.safetensors"), "safetensors", save_file)
    (source / "model.safetensors").unlink()
    found = imported(source)
    assert found.config.name == plain.config.name == "wavlm"
    assert all(torch.equal(v, found.trunk.state_dict()[k]) for k, v in plain.trunk.state_dict().items())


@torch.no_grad()
def test_speaker_model_of_wavlm_large_keeps_its_mhfa(tmp_path, imported, capsys):
    model = theirs("wavlm_large", conv_bias=False)
    torch.manual_seed(1)
    head = MHFA(LAYERS, DIM, heads=3, inner=8, embed_dim=12)
    torch.nn.init.normal_(head.weights_k), torch.nn.init.normal_(head.weights_v)
    found = {f"__S__.model.{k}": v for k, v in large_as_unilm(model).items()}
    found |= {f"__S__.backend.{k}": v for k, v in head.state_dict().items()}
    torch.save({**found, "__L__.weight": torch.randn(7, 12)}, tmp_path / "large.model")
    encoder = imported(tmp_path / "large.model")
    wave = 0.1 * torch.randn(1, 8000)
    states = torch.stack(wanted_states("wavlm_large", model, wave))
    mixed = torch.cat([torch.einsum("l,lbtd->btd", share, states) for share in head.mix()], -1)
    want = head(mixed, None)
    torch.testing.assert_close(encoder(wave, torch.tensor([8000])), want, atol=1e-4, rtol=1e-4)
    for options in (["--layers", "1"], ["--pooling", "mean"]):  # the shares of its MHFA are of all layers
        args = ["x", "--from", str(tmp_path / "large.model"), "--out", str(tmp_path / options[0]), *options]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", args)
            import_checkpoint.main()
        assert "its MHFA and 7 class centers left out" in capsys.readouterr().out


def test_lowest_layers_of_wavlm_base(tmp_path, imported):
    whole = test_wavlm.build(seed=3).eval()
    whole.trunk.save_pretrained(tmp_path / "hf")
    cut = imported(tmp_path / "hf", "--layers", "1", "--pooling", "weighted")
    assert (cut.config.name, cut.config.layers, cut.config.pooling) == ("wavlm", 1, "weighted")
    wave, lengths = 0.1 * torch.randn(1, 8000), torch.tensor([8000])
    with torch.no_grad():
        ours, want = (e.hidden_states(e.features(wave, lengths)[0], None) for e in (cut, whole))
    assert len(ours) == 2 and all(torch.equal(a, b) for a, b in zip(ours, want))
    with pytest.raises(UserError, match="--layers 3, but the model has 2"):
        imported(tmp_path / "hf", "--layers", "3", out="more")


def change_config(source, **changes):
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', not one of whisper, wav2vec2"),
        ({"model_type": ["whisper"]}, "model_type is"),
        ({"d_model": 10**9}, "d_model: .* less than or equal to 8192"),
        ({"d_model": "32"}, "d_model: .*valid integer"),
        ({"d_model": [[[[32]]]]}, "d_model: .*valid integer"),
        ({"d_model": 30}, "30 is not a multiple of the 4 heads"),
        ({"d_model": 64}, "differs from this config's: trunk.*hint|differs from this config's: trunk"),
        ({"encoder_layers": 10**6}, "encoder_layers: .* less than or equal to 200"),
        ({"encoder_layers": 0}, "encoder_layers: .* greater than or equal to 1"),
        ({"encoder_layers": 200}, "differs from this config's: trunk|checkpoint contains"),
        ({"encoder_layers": 4}, "layers.3.*absent in the checkpoint"),
        ({"encoder_ffn_dim": 65_536}, "differs from this config's"),
        ({"max_source_positions": 10**12}, "max_source_positions"),
        ({"activation_function": "__import__('os')"}, "activation_function"),
        ({"num_mel_bins": 21}, "differs from this config's"),
    ],
)  # fmt: skip
def test_hostile_config_json(tmp_path, imported, changes, words):
    source = folder(tmp_path / "hf", theirs("whisper"))
    change_config(source, **changes)
    with pytest.raises(UserError, match=words) as err:
        imported(source)
    assert len(str(err.value).splitlines()) <= 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("xlsr", {"conv_dim": [16] * 6}, "differ in their number"),
        ("xlsr", {"conv_dim": [16] * 17}, "conv_dim"),
        ("xlsr", {"conv_dim": []}, "conv_dim"),
        ("xlsr", {"conv_stride": [64] * 7}, "more than a second"),
        ("xlsr", {"conv_kernel": [0] * 7}, "conv_kernel"),
        ("xlsr", {"conv_kernel": "10"}, "conv_kernel"),
        ("xlsr", {"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ("xlsr", {"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ("xlsr", {"num_conv_pos_embedding_groups": 5}, "num_conv_pos_embedding_groups"),
        ("xlsr", {"adapter_attn_dim": 16}, "adapter_attn_dim is not known"),
        ("hubert", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm is not known"),
        ("wavlm_large", {"num_buckets": 10**9}, "num_buckets"),
        ("wavlm_large", {"max_bucket_distance": 10}, "max_bucket_distance"),
        ("w2v_bert", {"conv_depthwise_kernel_size": 4}, "is not odd"),
        ("w2v_bert", {"position_embeddings_type": "x"}, "position_embeddings_type"),
        ("w2v_bert", {"feature_projection_input_dim": 41}, "feature_projection_input_dim"),
    ],
)
def test_hostile_sizes_of_other_families(tmp_path, imported, kind, changes, words):
    source = folder(tmp_path / "hf", theirs(kind))
    change_config(source, **changes)
    with pytest.raises(UserError, match=words) as err:
        imported(source)
    assert len(str(err.value).splitlines()) <= 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("encoder.layers.1.fc1.weight"), "layers.1.fc1.weight is absent in the checkpoint"),
        (lambda t: t["encoder.layers.1.fc1.weight"].fill_(float("nan")), "NaN or infinity"),
        (lambda t: t.update({"encoder.more": torch.zeros(2)}), "more is .* and absent in the config"),
        (lambda t: t.update({"encoder.q": torch.zeros(2, dtype=torch.int64)}), "int64"),
        (lambda t: t.clear(), "absent in the checkpoint|contains 0 tensors"),
    ],
)
def test_hostile_tensors(tmp_path, imported, change, words):
    source = folder(tmp_path / "hf", theirs("whisper"))
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError, match=words):
        imported(source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"weight_map": {"a": "../out.safetensors"}}', "no file beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "no file beside it"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "no such file"),
        ('{"weight_map": {"a": 3}}', "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ("[" * 100_000, "index"),
    ],
)
def test_hostile_index(tmp_path, imported, text, words):
    source = folder(tmp_path / "hf", theirs("whisper"))
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=words):
        imported(source)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"family": "whisper"}, "family and arch go together"),
        ({"family": "whisper", "arch": {"d_model": 32, "x": 1}}, "arch: x: "),
        ({"family": "whisper", "arch": {"d_model": {"d": {"d": 1}}}}, "arch: d_model: "),
        ({"family": "bert", "arch": {"d_model": 32}}, "encoder.family"),
        ({"family": "whisper", "arch": {"d_model": 384}, "layers": 5}, "layers is 5, but the trunk has 4"),
    ],
)  # fmt: skip
def test_sizes_in_a_config_are_checked(fields, words):
    with pytest.raises(UserError, match=words):
        cfg.validate(EncoderConfig, {"name": "trunk", **fields}, "encoder")


def test_true_sizes():
    """WavLM-Large has 315.5 M parameters, w2v-BERT 2.0 580 M, XLS-R 300M 315.4 M; shapes alone are made here."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
             "feat_extract_norm": "layer", "do_stable_layer_norm": True}  # fmt: skip
    for family, arch, millions in (
        ("wavlm", large, 315.45),
        ("wav2vec2", {**large, "conv_bias": True}, 315.44),
        ("w2v_bert", {"hidden_size": 1024}, 580.49),
        ("whisper", {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
                     "num_mel_bins": 128}, 636.97),
    ):  # fmt: skip
        config = cfg.validate(EncoderConfig, {"name": "trunk", "family": family, "arch": arch})
        with _Shapes():
            encoder = cfg.build(config)
        assert sum(p.numel() for p in encoder.trunk.parameters()) / 1e6 == pytest.approx(
            millions, abs=0.01
        ), family
