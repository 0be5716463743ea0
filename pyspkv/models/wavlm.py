"""WavLM (Chen et al. 2022) as the trunk, multi-head factorised attentive pooling (MHFA, Peng et al., SLT 2022) on top.

The weights live in transformers' WavLMModel, under its names; the forward pass is ours: one relative position bias a
batch, scaled-dot-product attention (written out on a CPU) with each layer's gate on it, and padding that changes
nothing (the group norm of the first convolution leaves padded samples out, which transformers' does not).
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pyspkv.audio.fbank import frame_mask
from pyspkv.base.config import Config, Count, Positive, Size, implements, read
from pyspkv.base.errors import UserError
from pyspkv.base.foreign import short
from pyspkv.base.guarded import transformers
from pyspkv.models.layer_pooling import Pooling, make_pooling, mixture
from pyspkv.models.norm import BatchNorm
from pyspkv.models.pretrained import (
    GradientCheckpointing,
    LayerwiseGrowth,
    MhfaDim,
    MhfaHeads,
    PretrainedEncoder,
    PretrainedModel,
    PullFormField,
    PullWeight,
)

CONV_KERNELS, CONV_STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # stride 320, receptive field 400


class WavLMConfig(Config):
    """A WavLM trunk with pooling on top. Defaults: WavLM-Base+ with the MHFA of its paper (94,381,936 + 2,302,554
    parameters)."""

    name: Literal["wavlm"] = "wavlm"
    layers: Count = Field(12, description="Transformer layers. Base has 12, Large 24.")
    dim: Size = Field(
        768,
        description="Width of the transformer, a multiple of `heads` and `pos_conv_groups`. Base has 768.",
    )
    heads: Size = Field(12, description="Attention heads of a layer. Base has 12.")
    ffn: Size = Field(3072, description="Width of the feed-forward layers. Base has 3072.")
    conv_dim: Size = Field(512, description="Channels of the convolutions on the waveform. Base has 512.")
    pos_conv_kernel: Size = Field(
        128, description="Kernel of the position embedding, in frames. Base has 128."
    )
    pos_conv_groups: Size = Field(16, description="Groups of the position embedding. Base has 16.")
    pooling: Pooling = Field(
        "mhfa",
        description="mhfa: multi-head factorised attentive pooling (Peng et al. 2022). attentive, weighted: one "
        "learned sum of the layers, then attentive statistics or the mean over time, and an affine layer. mean: mean "
        "of all layers and frames, with embed_dim = dim and nothing to train; for first labels straight from the "
        "trunk.",
    )
    embed_dim: Size = Field(256, description="Size of the embedding, but with mean (256 in the paper).")
    mhfa_heads: MhfaHeads = 64
    mhfa_dim: MhfaDim = 128
    embedding_batchnorm: bool = Field(
        False,
        description="Batch-normalize the embedding. Set it when the trunk is trained from scratch: without "
        "it all embeddings collapse to one direction.",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout after each part of a layer, in training.")
    attention_dropout: float = Field(
        0.1, ge=0, lt=1, description="Dropout of the attention weights, in training."
    )
    layerdrop: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Probability of skipping a layer in a training step. Use 0 with few layers.",
    )
    freeze: Literal["none", "front", "trunk"] = Field(
        "front",
        description="Which parts are frozen. front: convolutions, projection and position embedding (the "
        "paper). trunk: all layers, too, so that only the pooling learns. none: for training from scratch.",
    )
    trunk_lr_scale: Positive = Field(
        0.004,
        description="Factor on optim.lr for the lowest layer of the trunk (the paper: 2e-5 of 5e-3). Use 1 "
        "from scratch.",
    )
    layerwise_lr_growth: LayerwiseGrowth = 1.0
    pretrained: PretrainedModel = ""
    l2_sp_weight: PullWeight = 0.0
    pull_form: PullFormField = "norms"
    gradient_checkpointing: GradientCheckpointing = False

    @model_validator(mode="after")
    def _divides(self) -> "WavLMConfig":
        if self.dim % self.heads or self.dim % self.pos_conv_groups:
            raise ValueError(
                f"dim {self.dim} is not a multiple of heads {self.heads} and pos_conv_groups {self.pos_conv_groups}"
            )
        return self


def hf_config(c: WavLMConfig):
    return transformers().WavLMConfig(
        hidden_size=c.dim,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        intermediate_size=c.ffn,
        conv_dim=[c.conv_dim] * len(CONV_KERNELS),
        conv_kernel=CONV_KERNELS,
        conv_stride=CONV_STRIDES,
        num_conv_pos_embeddings=c.pos_conv_kernel,
        num_conv_pos_embedding_groups=c.pos_conv_groups,
        num_buckets=320,
        max_bucket_distance=800,
        hidden_dropout=c.dropout,
        attention_dropout=c.attention_dropout,
        activation_dropout=0.0,
        feat_proj_dropout=c.dropout,
        layerdrop=c.layerdrop,
        apply_spec_augment=False,
        do_stable_layer_norm=False,
        feat_extract_norm="group",
    )


def frame_counts(lengths: Tensor) -> Tensor:
    """Samples -> frames of the convolutions, int64."""
    for kernel, stride in zip(CONV_KERNELS, CONV_STRIDES):
        lengths = (lengths - kernel) // stride + 1
    return lengths


@implements(WavLMConfig)
class WavLM(PretrainedEncoder):
    min_samples = 720  # two frames

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.config = c = config
        self.trunk = transformers().WavLMModel(hf_config(c))
        self.embed_dim = c.dim if c.pooling == "mean" else c.embed_dim
        self.backend = make_pooling(c.pooling, c.layers, c.dim, c.embed_dim, c.mhfa_heads, c.mhfa_dim)
        self.norm = BatchNorm(self.embed_dim) if c.embedding_batchnorm else nn.Identity()
        t = self.trunk
        front = [t.feature_extractor, t.feature_projection, t.encoder.pos_conv_embed, t.encoder.layer_norm]
        if c.freeze == "trunk":
            front.append(t)
        if c.freeze != "none":
            for module in front:
                module.requires_grad_(False)
        t.masked_spec_embed.requires_grad_(False)  # masks of pre-training are not used

    # ---- training

    def load_trunk(self, theirs: dict[str, Tensor], folder: Path) -> None:
        file = folder.parent / "config.yaml"
        section = read(file).get("encoder") if file.is_file() else None
        name = section.get("name") if isinstance(section, dict) else None
        if name not in (None, "wavlm"):
            hint = "import WavLM-Base or Base+"
            if name == "trunk":
                hint = "set encoder.name: trunk, as egs/voxceleb/trunk_ssl/conf/trunk.yaml does"
            raise UserError(f"its encoder is {short(name)}, not 'wavlm'", file=folder, hint=hint)
        super().load_trunk(theirs, folder)

    def trunk_layers(self):
        return self.trunk.encoder.layers

    # ---- forward

    def features(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] -> convolutions' output [B, F, conv_dim], frames [B]; without gradient where they are frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.freeze == "none"):
            # Converted once: autocast keeps no copy of what is frozen.
            kernels = [
                layer.conv.weight.to(_product_dtype(wave))
                for layer in self.trunk.feature_extractor.conv_layers[1:]
            ]
            feats = in_turn(lambda x, n: self._convolutions(x, n, kernels), wave, lengths)
            return feats, frame_counts(lengths)

    def _convolutions(self, wave: Tensor, lengths: Tensor, kernels: list[Tensor]) -> Tensor:
        first = self.trunk.feature_extractor.conv_layers[0]
        x = F.gelu(normed_convolution(wave, lengths, first.conv.weight[:, 0], first.layer_norm))
        for kernel, stride in zip(kernels, CONV_STRIDES[1:]):
            x = F.gelu(convolution(x, kernel, stride=(1, stride)))
        return x

    def frames(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """-> the backend's sums of the hidden states [B, F, S x dim], mask."""
        mask = frame_mask(lengths, feats.shape[1])
        states = self.hidden_states(feats, mask)
        return on(feats.device, mixture)(states, self.backend.mix().to(feats.device)), mask

    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        return self.norm(self.backend(frames, mask))

    def hidden_states(self, feats: Tensor, mask: Tensor | None) -> list[Tensor]:
        """H_0 .. H_L, each float [B, F, dim], as transformers' output_hidden_states."""
        t, c = self.trunk, self.config
        frozen = c.freeze != "none"
        # Frozen parts keep no graph, unless their input needs a gradient.
        with torch.set_grad_enabled(torch.is_grad_enabled() and (not frozen or feats.requires_grad)):
            h, _ = t.feature_projection(feats)
            if mask is not None:
                h = h * mask[..., None]
            place = position(h, t.encoder.pos_conv_embed.conv)
            h = t.encoder.layer_norm(h + F.gelu(place))
        h = drop(h, c.dropout, self.training)
        states = [h]
        attention = t.encoder.layers[0].attention
        with torch.set_grad_enabled(torch.is_grad_enabled() and (c.freeze != "trunk" or h.requires_grad)):
            bias = attention.compute_bias(
                h.shape[1], h.shape[1]
            )  # [heads, F, F], one for the batch and all layers
            padded = (
                None if mask is None else torch.zeros_like(mask, dtype=bias.dtype).masked_fill_(~mask, -1e9)
            )
            skipped = (
                torch.rand(c.layers) < c.layerdrop
                if self.training
                else torch.zeros(c.layers, dtype=torch.bool)
            )
            run, rates = on(h.device, transformer_layer), (c.heads, c.dropout, c.attention_dropout)
            for layer, dropped in zip(t.encoder.layers, skipped.tolist()):
                if c.gradient_checkpointing and torch.is_grad_enabled():
                    out = checkpoint(run, layer, h, bias, padded, *rates, use_reentrant=False)
                else:
                    out = run(layer, h, bias, padded, *rates)
                # Dropped layers are still computed: every parameter must take part in every step under DDP.
                h = h + 0.0 * out if dropped else out
                states.append(h)
        return states


def transformer_layer(
    layer,
    h: Tensor,
    bias: Tensor,
    padded: Tensor | None,
    heads: int,
    dropout: float,
    attention_dropout: float,
) -> Tensor:
    """Post-LN transformer layer with the gated relative position bias (Chen et al. 2022, eq. 3-6).

    h [B, F, D], bias [heads, F, F], padded [B, F]: 0, or -1e9 on frames of padding -> [B, F, D].
    """
    out = gated_attention(layer.attention, h, bias, padded, heads, attention_dropout, layer.training)
    h = layer.layer_norm(h + drop(out, dropout, layer.training))
    feed = layer.feed_forward
    out = feed.output_dense(F.gelu(feed.intermediate_dense(h)))
    return layer.final_layer_norm(h + drop(out, dropout, layer.training))


def gated_attention(
    attention, h: Tensor, bias: Tensor, padded: Tensor | None, heads: int, dropout: float, training: bool
) -> Tensor:
    """Attention with the gated relative position bias, arguments as those of `transformer_layer`: [B, F, D]."""
    size, length, dim = h.shape

    def split(x: Tensor) -> Tensor:
        return x.view(size, length, heads, -1).transpose(1, 2)

    gates = attention.gru_rel_pos_linear(split(h)).view(size, heads, length, 2, 4).sum(-1).sigmoid()
    update, reset = gates.unbind(-1)
    gate = update * (reset * attention.gru_rel_pos_const.view(1, heads, 1) - 1) + 2  # [B, heads, F]
    q, k, v = (split(p(h)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    gated = gate[..., None].to(q.dtype) * bias.to(q.dtype)
    if padded is not None:
        gated = gated + padded[:, None, None].to(q.dtype)
    if h.device.type == "cpu":
        # In bf16 twice as fast as the fused attention at 3 s, and dropout of our own; fp32 is near it.
        with torch.autocast("cpu", enabled=False):
            q, k, v, gated = (x.flatten(0, 1) for x in (q, k, v, gated))
            score = torch.baddbmm(gated, q, k.mT, alpha=q.shape[-1] ** -0.5)
            weights = drop(score.softmax(-1), dropout, training)
            out = (weights @ v).unflatten(0, (size, heads))
    else:
        out = F.scaled_dot_product_attention(q, k, v, gated, dropout_p=dropout if training else 0.0)
    return attention.out_proj(out.transpose(1, 2).reshape(size, length, dim))


def in_turn(convolutions: Callable[[Tensor, Tensor], Tensor], wave: Tensor, lengths: Tensor) -> Tensor:
    """convolutions(wave, lengths), on a CPU one utterance after the other while nothing is kept for a gradient: each
    stays in the cache."""
    alone = wave.device.type == "cpu" and not torch.is_grad_enabled()
    parts = zip(*(x.split(1 if alone else len(x)) for x in (wave, lengths)))
    return torch.cat([convolutions(x, n) for x, n in parts])


def on(device: torch.device, function):
    """`function`, compiled where a GPU trains: what lies between the products there takes longer than they do.

    Not in extraction, where every batch has another length.
    """
    return _compiled(function) if device.type == "cuda" and torch.is_grad_enabled() else function


@cache
def _compiled(function):
    torch._dynamo.config.suppress_errors = True  # without a C compiler it runs uncompiled, with a warning
    return torch.compile(function, dynamic=False)


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout. On a CPU four values share a random number, as drawing them one by one took a sixth of a step."""
    if not training or not p or x.device.type != "cpu":
        return F.dropout(x, p, training)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    sixteen = bits.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (sixteen >= round(p * 65536) - 32768) * (1 / (1 - p))


def _product_dtype(x: Tensor) -> torch.dtype:
    """Of products with x under autocast, if there is one."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def convolution(x: Tensor, kernel: Tensor, bias: Tensor | None = None, **options) -> Tensor:
    """[B, F, C], kernel [C', C / groups, K] -> [B, F', C'], as a convolution of images of one row, channels last: on a
    CPU in bf16 1.5 to 2 times as fast as Conv1d."""
    x = x.transpose(1, 2)[:, :, None]
    return F.conv2d(x, kernel[:, :, None], bias, **options)[:, :, 0].transpose(1, 2)


def position(h: Tensor, conv: nn.Conv1d) -> Tensor:
    """The position embedding's convolution, of many taps in groups, padded by half of them: [B, F, D] -> [B, F, D]."""
    if h.device.type == "cpu":
        padding = (0, conv.kernel_size[0] // 2)
        y = convolution(h, conv.weight, conv.bias, padding=padding, groups=conv.groups)
        return y[:, : h.shape[1]]
    return _grouped_products(h, conv)  # cuDNN's takes as long as four of the layers


def _grouped_products(h: Tensor, conv: nn.Conv1d, block: int = 16) -> Tensor:
    """`_position` as one product a group: the stretches that `block` frames hear, by the kernel at `block` shifts."""
    (size, length, dim), groups, dtype = h.shape, conv.groups, _product_dtype(h)
    taps = conv.weight.to(dtype)  # [D, D / groups, K]
    _, width, kernel = taps.shape
    blocks, heard = -(-length // block), block + kernel - 1
    x = F.pad(h.to(dtype), (0, 0, kernel // 2, blocks * block - length + kernel - 1 - kernel // 2))
    x = x.unfold(1, heard, block).unflatten(2, (groups, width)).permute(2, 0, 1, 4, 3)
    x = x.reshape(groups, size * blocks, heard * width)
    shifts = F.pad(taps, (block - 1, block - 1)).unfold(2, heard, 1).flip(2).unflatten(0, (groups, width))
    shifts = shifts.permute(0, 4, 2, 3, 1).reshape(groups, heard * width, block * width)
    y = torch.bmm(x, shifts).view(groups, size, blocks, block, width).permute(1, 2, 3, 0, 4)
    assert conv.bias is not None  # every WavLM's has one
    return y.reshape(size, blocks * block, dim)[:, :length] + conv.bias


def normed_convolution(
    wave: Tensor, lengths: Tensor, weight: Tensor, norm: nn.GroupNorm, stride: int = CONV_STRIDES[0]
) -> Tensor:
    """The first convolution, weight [C, K], and its group norm, one group a channel over each utterance's own frames:
    [B, T] -> [B, F, C]. A bias would be taken off by the norm.

    As the convolution is linear, its mean and variance follow from those of the windows, w'm and w'Sw, so that the norm
    is a scale and a shift of the kernels, and nothing of the size of the output is taken in twice.
    """
    kernel = weight.shape[1]
    windows = wave.float().unfold(1, kernel, stride)  # [B, F, K]
    frames = (lengths - kernel) // stride + 1
    with torch.autocast(wave.device.type, enabled=False):
        x, w = windows.double(), weight.double()
        mask = frame_mask(frames, x.shape[1])
        if mask is not None:
            x = x * mask[..., None]
        m = x.sum(1) / frames[:, None]
        s = x.mT @ x / frames[:, None, None] - m[:, :, None] * m[:, None]
        var = torch.einsum("ci,bij,cj->bc", w, s, w).clamp_min(0)
        scale = norm.weight * torch.rsqrt(var + norm.eps)
        shift = norm.bias - scale * (m @ w.T)
        kernels = torch.cat([scale[..., None] * w, shift[..., None]], -1).mT.to(weight)  # [B, K + 1, C]
    # padded to a multiple of 16, which is fast for products on a GPU
    more = 16 - kernel % 16
    return F.pad(windows, (0, more), value=1.0) @ F.pad(kernels, (0, 0, 0, more - 1))
