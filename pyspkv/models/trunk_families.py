"""What differs between the families of trunks: front end, network, and how its layers are called.

The layers are transformers' own modules under their own names. What transformers' models do around the layers is done
here, as they pad to 30 s (Whisper), or let padding change the result (the group norm of wav2vec 2.0).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.audio.fbank import frame_mask
from pyspkv.base.guarded import transformers
from pyspkv.models.trunk_arch import (
    Arch,
    Family,
    HubertArch,
    W2vBertArch,
    Wav2Vec2Arch,
    WavLMArch,
    WhisperArch,
)
from pyspkv.models.trunk_fronts import StackedFbank, WhisperLogMel, normalized
from pyspkv.models.wavlm import convolution, drop, gated_attention, in_turn, normed_convolution, position


class TrunkFamily(nn.Module):
    """Front end and calls of one family; it has no parameters. `trunk` is what `build` has made.

    Args:
        layers: the lowest ones, which are kept.
    """

    min_samples = 1200
    longest: int | None = None  # input frames that the network takes at once

    def __init__(self, arch: Arch, layers: int, dropout: float, attention_dropout: float):
        super().__init__()
        self.arch: Any = arch
        self.layers, self.dropout, self.attention_dropout = layers, dropout, attention_dropout

    def build(self) -> nn.Module:
        """The network with random weights; the final norm only where all layers are kept."""
        raise NotImplementedError

    def layer_list(self, trunk: Any) -> nn.ModuleList:
        return trunk.encoder.layers

    def front_parts(self, trunk: Any) -> list[nn.Module]:
        """What `freeze: front` freezes."""
        raise NotImplementedError

    def features(self, trunk: Any, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] -> (input of the network [B, F, M], valid frames [B])."""
        raise NotImplementedError

    def start(self, trunk: Any, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """-> (H_0 [B, F', D], valid frames [B])."""
        raise NotImplementedError

    def context(self, trunk: Any, h: Tensor, mask: Tensor | None) -> dict[str, Any]:
        """Arguments of `layer` that are the same for all layers; mask [B, F'], None where nothing is padded."""
        return {"attention_mask": None if mask is None else mask[:, None, None]}

    def layer(self, layer: Any, h: Tensor, context: dict[str, Any]) -> Tensor:
        return layer(h, **context)

    def final_norm(self, trunk: Any) -> nn.Module:
        """On the last hidden state."""
        return nn.Identity()


class WhisperFamily(TrunkFamily):
    """Whisper's encoder at the length of the audio: no padding to 30 s, the positions cut to it."""

    def __init__(self, arch: WhisperArch, *settings):
        super().__init__(arch, *settings)
        self.log_mel = WhisperLogMel(arch.num_mel_bins)
        self.longest = 2 * arch.max_source_positions

    def build(self) -> nn.Module:
        hf = transformers().WhisperConfig(
            **{**self.arch.model_dump(), "encoder_layers": self.layers},
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
        )
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        trunk: Any = WhisperEncoder(hf)
        if self.layers < self.arch.depth:
            trunk.layer_norm = nn.Identity()
        return trunk

    def layer_list(self, trunk: Any) -> nn.ModuleList:
        return trunk.layers

    def front_parts(self, trunk: Any) -> list[nn.Module]:
        return [trunk.conv1, trunk.conv2, trunk.embed_positions]

    def features(self, trunk: Any, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_mel(wave, lengths)

    def start(self, trunk: Any, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        one, two = trunk.conv1, trunk.conv2
        x = F.gelu(convolution(feats, one.weight, one.bias, padding=(0, 1)))
        mask = frame_mask(lengths, x.shape[1])
        if mask is not None:  # the second convolution must see zeros behind each utterance's end
            x = x * mask[..., None]
        x = F.gelu(convolution(x, two.weight, two.bias, stride=(1, 2), padding=(0, 1)))
        h = x + trunk.embed_positions.weight[: x.shape[1]]
        return drop(h, self.dropout, self.training), (lengths + 1) // 2

    def final_norm(self, trunk: Any) -> nn.Module:
        return trunk.layer_norm


class Wav2Vec2Family(TrunkFamily):
    """wav2vec 2.0 and HuBERT, with either norm: convolutions on the waveform, position by a convolution."""

    def __init__(self, arch: Wav2Vec2Arch, *settings):
        super().__init__(arch, *settings)
        self.min_samples = max(720, arch.samples(2))

    def build(self) -> nn.Module:
        kinds: dict[type, str] = {HubertArch: "Hubert", WavLMArch: "WavLM"}
        kind = kinds.get(type(self.arch), "Wav2Vec2")
        sizes = self.arch.model_dump(exclude={"do_normalize"}) | {"num_hidden_layers": self.layers}
        hf = getattr(transformers(), f"{kind}Config")(**sizes, **_rates(self), **_unmasked())
        trunk = getattr(transformers(), f"{kind}Model")(hf)
        if self.arch.do_stable_layer_norm and self.layers < self.arch.depth:
            trunk.encoder.layer_norm = nn.Identity()
        return trunk

    def front_parts(self, trunk: Any) -> list[nn.Module]:
        parts = [trunk.feature_extractor, trunk.feature_projection, trunk.encoder.pos_conv_embed]
        return parts if self.arch.do_stable_layer_norm else [*parts, trunk.encoder.layer_norm]

    def features(self, trunk: Any, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        feats = in_turn(lambda x, n: self._convolutions(trunk, x, n), wave, lengths)
        for kernel, stride in zip(self.arch.conv_kernel, self.arch.conv_stride):
            lengths = (lengths - kernel) // stride + 1
        return feats, lengths

    def _convolutions(self, trunk: Any, wave: Tensor, lengths: Tensor) -> Tensor:
        c = self.arch
        x = (normalized(wave, lengths) if c.do_normalize else wave)[..., None]
        for n, layer in enumerate(trunk.feature_extractor.conv_layers):
            stride = c.conv_stride[n]
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                x = normed_convolution(x[..., 0], lengths, layer.conv.weight[:, 0], norm, stride)
            else:
                x = convolution(x, layer.conv.weight, layer.conv.bias, stride=(1, stride))
                x = x if norm is None else norm(x)
            x = layer.activation(x)
        return x

    def start(self, trunk: Any, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        h = trunk.feature_projection(feats)
        h = h if isinstance(h, Tensor) else h[0]  # HuBERT's gives one tensor
        mask = frame_mask(lengths, h.shape[1])
        if mask is not None:
            h = h * mask[..., None]
        embed = trunk.encoder.pos_conv_embed
        h = h + embed.activation(position(h, embed.conv))
        if not self.arch.do_stable_layer_norm:
            h = trunk.encoder.layer_norm(h)
        return drop(h, self.dropout, self.training), lengths

    def final_norm(self, trunk: Any) -> nn.Module:
        return trunk.encoder.layer_norm if self.arch.do_stable_layer_norm else nn.Identity()


class WavLMFamily(Wav2Vec2Family):
    """WavLM with any norm: layers with the gated relative position bias, which the lowest layer has for all."""

    def context(self, trunk: Any, h: Tensor, mask: Tensor | None) -> dict[str, Any]:
        bias = trunk.encoder.layers[0].attention.compute_bias(h.shape[1], h.shape[1])
        padded = None
        if mask is not None:
            padded = torch.zeros_like(mask, dtype=bias.dtype).masked_fill_(~mask, -1e9)
        return {"bias": bias, "padded": padded}

    def layer(self, layer: Any, h: Tensor, context: dict[str, Any]) -> Tensor:
        first = self.arch.do_stable_layer_norm
        x = layer.layer_norm(h) if first else h
        out = gated_attention(
            layer.attention,
            x,
            **context,
            heads=self.arch.heads,
            dropout=self.attention_dropout,
            training=self.training,
        )
        h = h + drop(out, self.dropout, self.training)
        if first:
            return h + layer.feed_forward(layer.final_layer_norm(h))
        h = layer.layer_norm(h)
        return layer.final_layer_norm(h + layer.feed_forward(h))


class W2vBertFamily(TrunkFamily):
    """w2v-BERT 2.0: a conformer on stacked filterbanks; its convolutions look back only."""

    def __init__(self, arch: W2vBertArch, *settings):
        super().__init__(arch, *settings)
        self.fbank = StackedFbank(arch.feature_projection_input_dim // 2)

    def build(self) -> nn.Module:
        sizes = self.arch.model_dump() | {"num_hidden_layers": self.layers}
        rates = _rates(self) | {"conformer_conv_dropout": self.dropout}
        return transformers().Wav2Vec2BertModel(
            transformers().Wav2Vec2BertConfig(**sizes, **rates, **_unmasked())
        )

    def front_parts(self, trunk: Any) -> list[nn.Module]:
        return [trunk.feature_projection]

    def features(self, trunk: Any, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.fbank(wave, lengths)

    def start(self, trunk: Any, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = trunk.feature_projection(feats)
        mask = frame_mask(lengths, h.shape[1])
        if mask is not None:
            h = h * mask[..., None]
        return drop(h, self.dropout, self.training), lengths

    def context(self, trunk: Any, h: Tensor, mask: Tensor | None) -> dict[str, Any]:
        embed = trunk.encoder.embed_positions
        place = None if embed is None else embed(h)
        if place is not None and place.is_inference() and not torch.is_inference_mode_enabled():
            place = place.clone()  # transformers keeps the table of an extraction, which autograd refuses
        return {
            **super().context(trunk, h, mask),
            "relative_position_embeddings": place,
            "conv_attention_mask": mask,
        }


def _rates(family: TrunkFamily) -> dict[str, float]:
    return {
        "hidden_dropout": family.dropout,
        "attention_dropout": family.attention_dropout,
        "activation_dropout": 0.0,
        "feat_proj_dropout": family.dropout,
        "layerdrop": 0.0,
    }


def _unmasked() -> dict[str, Any]:
    """No masks of pre-training, and no vector for them in the checkpoint."""
    return {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "apply_spec_augment": False}


FAMILIES: dict[Family, type[TrunkFamily]] = {
    "whisper": WhisperFamily,
    "wav2vec2": Wav2Vec2Family,
    "hubert": Wav2Vec2Family,
    "w2v_bert": W2vBertFamily,
    "wavlm": WavLMFamily,
}
