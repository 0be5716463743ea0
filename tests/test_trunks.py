"""Trunks of every family against transformers: hidden states, front ends, padding, small parts, staging, import."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyspkv.base import config as cfg
from pyspkv.base.errors import UserError
from pyspkv.base.guarded import transformers
from pyspkv.bin import import_checkpoint
from pyspkv.models import trunk_fronts
from pyspkv.models.load import load_encoder
from pyspkv.models.registry import EncoderConfig

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
        config = cfg.class_of(encoder.config).resolved(cfg.validate(EncoderConfig, fields))
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
    model = theirs(kind)
    encoder = imported(folder(tmp_path / "hf", model))
    torch.manual_seed(5)
    wave = 0.1 * torch.randn(2, 16000)
    ours, want = states_of(encoder, wave[:1]), wanted_states(kind, model, wave[:1])
    assert len(ours) == len(want) == LAYERS + 1
    for a, b in zip(ours, want):
        torch.testing.assert_close(a, b[:, : a.shape[1]], atol=1e-4, rtol=1e-4)
    for length in (6400, 7117):
        alone = encoder(wave[:1, :length], torch.tensor([length]))
        wave[0, length:] = 9.0  # whatever lies there
        both = encoder(wave, torch.tensor([length, 16000]))
        torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(both[1:], encoder(wave[1:], torch.tensor([16000])), atol=1e-4, rtol=1e-4)
