"""The sizes of a trunk: for each family the entries of transformers' config.json that the network is built from.

A class a family. Every entry has a range, and other keys are refused, as a config.yaml may be a stranger's. The entries
have the names and the defaults of transformers.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pyspkv.base.config import Config
from pyspkv.base.foreign import short

Family = Literal["whisper", "wav2vec2", "hubert", "w2v_bert", "wavlm"]
MODEL_TYPES: dict[str, Family] = {  # model_type in config.json
    "whisper": "whisper",
    "wav2vec2": "wav2vec2",
    "hubert": "hubert",
    "wav2vec2-bert": "w2v_bert",
    "wavlm": "wavlm",
}

Layers = Annotated[int, Field(ge=1, le=200)]
Width = Annotated[int, Field(ge=1, le=8192)]
Inner = Annotated[int, Field(ge=1, le=65_536)]
Heads = Annotated[int, Field(ge=1, le=256)]
Kernel = Annotated[int, Field(ge=1, le=1024)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
Activation = Literal["gelu", "gelu_new", "gelu_fast", "relu", "silu", "swish"]


class _Arch(Config):
    """What the families share."""

    @property
    def dim(self) -> int:
        return self.hidden_size  # type: ignore[attr-defined]

    @property
    def depth(self) -> int:
        """Transformer layers of the whole model."""
        return self.num_hidden_layers  # type: ignore[attr-defined]

    @property
    def heads(self) -> int:
        return self.num_attention_heads  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _divides(self) -> "_Arch":
        if self.dim % self.heads:
            raise ValueError(f"the width {self.dim} is not a multiple of the {self.heads} heads")
        return self


class WhisperArch(_Arch):
    """The encoder of Whisper (Radford et al. 2022)."""

    d_model: Annotated[int, Field(ge=2, le=8192, multiple_of=2)] = 384
    encoder_layers: Layers = 4
    encoder_attention_heads: Heads = 6
    encoder_ffn_dim: Inner = 1536
    num_mel_bins: Annotated[int, Field(ge=1, le=512)] = 80
    max_source_positions: Annotated[int, Field(ge=1, le=6000)] = 1500  # a table of so many rows is computed
    activation_function: Activation = "gelu"

    @property
    def dim(self) -> int:
        return self.d_model

    @property
    def depth(self) -> int:
        return self.encoder_layers

    @property
    def heads(self) -> int:
        return self.encoder_attention_heads


class Wav2Vec2Arch(_Arch):
    """wav2vec 2.0 (Baevski et al. 2020) and XLS-R; HuBERT and WavLM have the same parts."""

    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    intermediate_size: Inner = 3072
    hidden_act: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-5
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: Activation = "gelu"
    conv_dim: Annotated[tuple[Width, ...], Field(min_length=1, max_length=16)] = (512,) * 7
    conv_kernel: Annotated[tuple[Kernel, ...], Field(max_length=16)] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(max_length=16)] = (
        5, 2, 2, 2, 2, 2, 2,
    )  # fmt: skip
    conv_bias: bool = False
    num_conv_pos_embeddings: Kernel = 128
    num_conv_pos_embedding_groups: Heads = 16
    do_stable_layer_norm: bool = False
    do_normalize: bool = True  # of preprocessor_config.json: samples of mean 0 and variance 1

    @model_validator(mode="after")
    def _convolutions(self) -> "Wav2Vec2Arch":
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride):
            raise ValueError("conv_dim, conv_kernel and conv_stride differ in their number")
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            raise ValueError("hidden_size is not a multiple of num_conv_pos_embedding_groups")
        if self.samples(2) > 16_000:
            raise ValueError("two frames of the convolutions take more than a second")
        return self

    def samples(self, frames: int) -> int:
        """How many samples the convolutions make `frames` frames of."""
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride)):
            frames = (frames - 1) * stride + kernel
        return frames


class HubertArch(Wav2Vec2Arch):
    """HuBERT (Hsu et al. 2021)."""

    feat_proj_layer_norm: bool = True


class WavLMArch(Wav2Vec2Arch):
    """WavLM (Chen et al. 2022)."""

    num_buckets: Annotated[int, Field(ge=4, le=4096)] = 320
    max_bucket_distance: Annotated[int, Field(ge=1, le=100_000)] = 800

    @model_validator(mode="after")
    def _buckets(self) -> "WavLMArch":
        if self.max_bucket_distance <= self.num_buckets // 4:
            raise ValueError("max_bucket_distance is not above a quarter of num_buckets")
        return self


class W2vBertArch(_Arch):
    """w2v-BERT 2.0 (Seamless Communication 2023): a conformer on filterbanks, two frames stacked."""

    hidden_size: Width = 1024
    num_hidden_layers: Layers = 24
    num_attention_heads: Heads = 16
    intermediate_size: Inner = 4096
    feature_projection_input_dim: Annotated[int, Field(ge=2, le=1024, multiple_of=2)] = 160
    hidden_act: Activation = "swish"
    layer_norm_eps: Epsilon = 1e-5
    position_embeddings_type: Literal["rotary", "relative", "relative_key"] | None = "relative_key"
    rotary_embedding_base: Annotated[int, Field(ge=1, le=10**9)] = 10_000
    max_source_positions: Annotated[int, Field(ge=1, le=10_000)] = 5000
    left_max_position_embeddings: Annotated[int, Field(ge=0, le=10_000)] = 64
    right_max_position_embeddings: Annotated[int, Field(ge=0, le=10_000)] = 8
    conv_depthwise_kernel_size: Annotated[int, Field(ge=1, le=1023)] = 31

    @model_validator(mode="after")
    def _odd(self) -> "W2vBertArch":
        if self.conv_depthwise_kernel_size % 2 == 0:
            raise ValueError("conv_depthwise_kernel_size is not odd")
        return self


Arch = WhisperArch | Wav2Vec2Arch | W2vBertArch
ARCHS: dict[str, type[_Arch]] = {
    "whisper": WhisperArch,
    "wav2vec2": Wav2Vec2Arch,
    "hubert": HubertArch,
    "w2v_bert": W2vBertArch,
    "wavlm": WavLMArch,
}


def parse_arch(family: Family, raw: dict[str, Any]) -> Arch:
    """The sizes in `raw`, a mapping of plain data. ValueError: a key or value is none of the family's."""
    try:
        return ARCHS[family].model_validate(
            {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        )  # type: ignore[return-value]
    except ValidationError as err:
        first = err.errors()[0]
        if first["type"] == "value_error":
            raise ValueError(str(first["ctx"]["error"])) from None
        key = ".".join(str(part)[:40] for part in first["loc"])
        raise ValueError(f"{key}: {first['msg'].lower()}, got {short(first['input'])}") from None


def essential(family: Family, found: dict[str, Any]) -> dict[str, Any]:
    """What the network is built from, of a foreign config.json and preprocessor_config.json: all keys of the family."""
    known = ARCHS[family].model_fields
    return parse_arch(family, {k: v for k, v in found.items() if k in known}).model_dump(mode="json")
