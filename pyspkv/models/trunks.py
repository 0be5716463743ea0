"""Large pre-trained encoders of several families as the trunk, a pooling over its layers on top.

The hidden states H_0 .. H_L are those of transformers' models: the input of the lowest layer, and the output of each;
the last one after the final norm, where the model has one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from pyspkv.audio.fbank import frame_mask
from pyspkv.base.config import Config, Positive, Size, implements, read_section
from pyspkv.base.distributed import world_size
from pyspkv.base.errors import UserError
from pyspkv.models import lora
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
from pyspkv.models.trunk_arch import Arch, Family, essential, parse_arch
from pyspkv.models.wavlm import CONV_KERNELS, WavLMConfig, on


class TrunkConfig(Config):
    """A pre-trained encoder of Hugging Face with pooling on top: Whisper, wav2vec 2.0, XLS-R, HuBERT, w2v-BERT 2.0,
    WavLM. `pretrained` is all that a config needs: family and sizes are taken from there."""

    name: Literal["trunk"] = "trunk"
    pretrained: PretrainedModel = ""
    family: Family | None = Field(
        None, description="Kind of network. null: that of `pretrained`. A model folder names it."
    )
    arch: dict[str, Any] = Field(
        {},
        description="Sizes of the network, by the names in transformers' config.json. Empty: those of `pretrained`. A "
        "model folder contains them.",
    )
    layers: int = Field(
        0,
        ge=0,
        le=200,
        description="Use only that many layers, the lowest. 0: all of the trunk. Fewer are faster. In WavLM's "
        "paper the lower layers weigh most for speakers.",
    )
    pooling: Pooling = Field(
        "mhfa",
        description="mhfa: multi-head factorised attentive pooling (Peng et al. 2022). attentive, weighted: one "
        "learned sum of the layers, then attentive statistics or the mean over time, and an affine layer. mean: mean "
        "of all layers and frames, with embed_dim = the trunk's width and nothing to train; for first labels straight "
        "from the trunk.",
    )
    embed_dim: Size = Field(256, description="Size of the embedding, but with mean.")
    mhfa_heads: MhfaHeads = 64
    mhfa_dim: MhfaDim = 128
    embedding_batchnorm: bool = Field(
        False,
        description="Batch-normalize the embedding. Set it when the trunk is trained from scratch.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout after each part of a layer, in training. wav2vec 2.0, HuBERT and WavLM were trained "
        "with 0.1.",
    )
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout of the attention weights, in training."
    )
    layerdrop: float = Field(
        0.0, ge=0, le=1, description="Probability of skipping a layer in a training step."
    )
    freeze: Literal["none", "front", "trunk"] = Field(
        "front",
        description="Which parts of the trunk are frozen. front: what lies before its layers. trunk: all of it, so "
        "that only the pooling learns, and with it LoRA and layer adapters.",
    )
    frozen_epochs: int = Field(
        0,
        ge=0,
        le=10**6,
        description="Epochs in which only the pooling and the classes learn, before the trunk joins. With a new head "
        "on a good trunk it keeps the head's first large gradients from the trunk.",
    )
    trunk_lr_scale: Positive = Field(
        0.004, description="Factor on optim.lr for the lowest layer of the trunk. Use 1 from scratch."
    )
    layerwise_lr_growth: LayerwiseGrowth = 1.0
    l2_sp_weight: PullWeight = 0.0
    pull_form: PullFormField = "norms"
    lora_rank: int = Field(
        0,
        ge=0,
        le=1024,
        description="Rank of low-rank updates (LoRA, Hu et al. 2022) on the matrices of the attention, which are "
        "frozen themselves. 0: none. Set freeze: trunk with it, so that nothing else of the trunk learns. They are "
        "merged into the matrices where the model is used, and where it starts a training with lora_rank: 0.",
    )
    lora_alpha: Positive = Field(16.0, description="The update is multiplied by lora_alpha / lora_rank.")
    lora_feed_forward: bool = Field(False, description="Low-rank updates on the feed-forward layers, too.")
    adapter_dim: int = Field(
        0,
        ge=0,
        le=65_536,
        description="Width of a bottleneck adapter after each layer (Houlsby et al. 2019). 0: none. It starts as "
        "the identity. Set freeze: trunk with it.",
    )
    adapter_lr_scale: Positive = Field(
        0.1, description="Factor on optim.lr for LoRA and the adapters, of all layers alike."
    )
    gradient_checkpointing: GradientCheckpointing = False

    @model_validator(mode="after")
    def _fits(self) -> "TrunkConfig":
        if (self.family is None) != (not self.arch):
            raise ValueError("family and arch go together")
        if self.family is not None:
            try:
                depth = self.sizes().depth
            except ValueError as err:
                raise ValueError(f"arch: {err}") from None
            if self.layers > depth:
                raise ValueError(f"layers is {self.layers}, but the trunk has {depth}")
        return self

    def with_sizes_of(self, pretrained: Config, file) -> "TrunkConfig":
        """With family, sizes and layers of `pretrained`, the config of the model that the field of this name names; a
        `wavlm` counts as a trunk. UserError: it is none, or one of fewer layers than `layers`, or what it learnt is not
        in the trunk."""
        if isinstance(pretrained, WavLMConfig):
            pretrained = as_trunk(pretrained, file)
        if not isinstance(pretrained, TrunkConfig):
            name = getattr(pretrained, "name", "")
            raise UserError(f"its encoder is '{name}', not 'trunk'", file=file, hint="import a trunk")
        if pretrained.adapter_dim:  # unlike low-rank updates they are in no matrix of the trunk
            raise UserError(
                "has adapters, which encoder.pretrained does not take",
                file=file,
                hint="start from it by --init",
            )
        most = pretrained.layers or pretrained.sizes().depth
        if self.layers > most:
            raise UserError(f"encoder.layers is {self.layers}, but the trunk has {most}", file=file)
        layers = self.layers or pretrained.layers
        return self.model_copy(
            update={"family": pretrained.family, "arch": pretrained.arch, "layers": layers}
        )

    def sizes(self) -> Arch:
        """The sizes of the whole network, of which `layers` are used."""
        if self.family is None:
            raise UserError(
                "encoder.pretrained names no trunk", hint="set it to a model folder of bin.import_checkpoint"
            )
        return parse_arch(self.family, self.arch)


def as_trunk(c: WavLMConfig, file, **arch: Any) -> TrunkConfig:
    """The config of the same network and pooling as a `trunk`; `arch`: what else differs from WavLM-Base. UserError:
    a size is out of the range of trunks."""
    sizes = {
        "hidden_size": c.dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.ffn,
        "conv_dim": [c.conv_dim] * len(CONV_KERNELS),
        "num_conv_pos_embeddings": c.pos_conv_kernel,
        "num_conv_pos_embedding_groups": c.pos_conv_groups,
        "do_normalize": False,
    }
    try:
        whole = essential("wavlm", sizes | arch)
    except ValueError as err:
        raise UserError(str(err), file=file) from None
    return TrunkConfig(
        family="wavlm",
        arch=whole,
        pooling=c.pooling,
        embed_dim=c.embed_dim,
        mhfa_heads=c.mhfa_heads,
        mhfa_dim=c.mhfa_dim,
        embedding_batchnorm=c.embedding_batchnorm,
    )


@implements(TrunkConfig)
class Trunk(PretrainedEncoder):
    def __init__(self, config: TrunkConfig):
        from pyspkv.models.trunk_families import FAMILIES

        super().__init__()
        self.config = c = config
        arch = c.sizes()
        assert c.family is not None  # `sizes` has made sure
        self.layers = c.layers or arch.depth
        self.family = FAMILIES[c.family](arch, self.layers, c.dropout, c.attention_dropout)
        self.min_samples = self.family.min_samples
        self.trunk = self.family.build()
        frozen = {"none": [], "front": self.family.front_parts(self.trunk), "trunk": [self.trunk]}[c.freeze]
        for part in frozen:
            part.requires_grad_(False)
        layers = self.trunk_layers()
        if c.lora_rank:
            names = lora.ATTENTION + (lora.FEED_FORWARD if c.lora_feed_forward else ())
            lora.add_lora(layers, names, c.lora_rank, c.lora_alpha)
        adapters = [lora.Adapter(arch.dim, c.adapter_dim) for _ in layers] if c.adapter_dim else []
        self.adapters = nn.ModuleList(adapters)
        self.embed_dim = arch.dim if c.pooling == "mean" else c.embed_dim
        self.backend = make_pooling(c.pooling, self.layers, arch.dim, c.embed_dim, c.mhfa_heads, c.mhfa_dim)
        self.norm = BatchNorm(self.embed_dim) if c.embedding_batchnorm else nn.Identity()

    # ---- training

    def load_trunk(self, theirs: dict[str, Tensor], folder) -> None:
        """Of the layers in use; low-rank updates are new, those of `theirs` are merged into its matrices."""
        from pyspkv.base import checkpoint as ckpt

        own, theirs = self.trunk.state_dict(), merged(theirs, folder)
        new = {k: v for k, v in own.items() if ".lora_" in k}
        ckpt.load_state_strict(self.trunk, {k: v for k, v in theirs.items() if k in own} | new, folder)

    def _small(self) -> Iterator[nn.Parameter]:
        """Low-rank updates and adapters."""
        yield from (p for n, p in self.trunk.named_parameters() if ".lora_" in n)
        yield from self.adapters.parameters()

    def _pulled(self) -> list[nn.Parameter]:
        return [p for n, p in self.trunk.named_parameters() if p.requires_grad and ".lora_" not in n]

    def trunk_layers(self):
        return self.family.layer_list(self.trunk)

    def final_norm(self) -> nn.Module:
        return self.family.final_norm(self.trunk)

    def moved(self) -> list[tuple[str, Tensor, Tensor]]:
        """As for any trunk, and each matrix W that has a low-rank update, whose value is W + alpha / r B A."""
        found = [(f"{n}.weight", m) for n, m in self.trunk.named_modules() if isinstance(m, lora.LoRALinear)]
        return [*super().moved(), *((n, m.weight + m.update(), m.weight) for n, m in found)]

    def trunk_groups(self) -> list[dict]:
        """As for any trunk; low-rank updates and adapters learn at adapter_lr_scale. All wait for `from_epoch`."""
        c = self.config
        groups = [*super().trunk_groups(), {"params": list(self._small()), "lr_scale": c.adapter_lr_scale}]
        return [{**g, "from_epoch": c.frozen_epochs} for g in groups] if c.frozen_epochs else groups

    def initial(self, weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
        """Low-rank updates go on, or are merged where this encoder has none. UserError: they would count otherwise."""
        c = self.config
        if not c.lora_rank:
            return merged(weights, folder)
        if any(name.endswith(".lora_a") for name in weights):
            theirs = read_section(folder.parent / "config.yaml", "encoder", TrunkConfig)
            if theirs.lora_rank == c.lora_rank and theirs.lora_alpha != c.lora_alpha:
                raise UserError(
                    f"its lora_alpha is {theirs.lora_alpha:g}, but this config has {c.lora_alpha:g}, so that its "
                    f"updates would count {c.lora_alpha / theirs.lora_alpha:g} times",
                    file=folder,
                    hint=f"set encoder.lora_alpha: {theirs.lora_alpha:g}",
                )
        return weights

    # ---- forward

    def features(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] -> (front end's output [B, F, M], frames [B]); without gradient where it is frozen."""
        learns = self.config.freeze == "none" and not self._waits()
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            return self.family.features(self.trunk, wave, lengths)

    def frames(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """-> the backend's sums of the hidden states [B, F', S x dim], mask."""
        states, lengths = self.hidden_states(feats, lengths)
        mixed = on(feats.device, mixture)(states, self.backend.mix().to(feats.device))
        return mixed, frame_mask(lengths, mixed.shape[1])

    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        return self.norm(self.backend(frames, mask))

    def hidden_states(self, feats: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """(H_0 .. H_L, each [B, F', dim], valid frames [B]). What is longer than the network takes is cut into parts
        of nearly the same length, whose frames are put in a row."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._waits()):
            longest = self.family.longest or feats.shape[1]
            if feats.shape[1] <= longest:
                states, frames = self._states(feats, lengths)
            else:
                states, frames = self._states_of_parts(feats, lengths, longest)
        if self._waits() and world_size() > 1 and torch.is_grad_enabled():
            states[0] = states[0] + 0.0 * sum(
                p.sum() for p in [*self._pulled(), *self._small()] if p.requires_grad
            )
        return states, frames

    def _states_of_parts(self, feats: Tensor, lengths: Tensor, longest: int) -> tuple[list[Tensor], Tensor]:
        """Each utterance in as few parts as can be, of nearly the same length. The parts are the rows of one batch."""
        utts = [x[:n].split(part_size(n, longest)) for x, n in zip(feats, lengths.tolist())]
        parts = [part for utt in utts for part in utt]
        states, frames = self._states(pad_sequence(parts, True), lengths.new_tensor([len(p) for p in parts]))
        valid = torch.arange(states[0].shape[1], device=feats.device) < frames[:, None]
        total = torch.stack([of_one.sum() for of_one in frames.split([len(utt) for utt in utts])])
        return [pad_sequence(h[valid].split(total.tolist()), True) for h in states], total

    def _states(self, feats: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        c, family = self.config, self.family
        # Frozen parts keep no graph, unless their input needs a gradient.
        with torch.set_grad_enabled(torch.is_grad_enabled() and (c.freeze == "none" or feats.requires_grad)):
            h, lengths = family.start(self.trunk, feats, lengths)
        mask = frame_mask(lengths, h.shape[1])
        layers = self.trunk_layers()
        skipped = (torch.rand(len(layers)) < c.layerdrop).tolist() if self.training and c.layerdrop else ()
        states = [h]
        learns = c.freeze != "trunk" or c.lora_rank > 0 or c.adapter_dim > 0 or h.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            context, run = family.context(self.trunk, h, mask), on(h.device, family.layer)
            for i, layer in enumerate(layers):
                if c.gradient_checkpointing and torch.is_grad_enabled():
                    out = checkpoint(run, layer, h, context, use_reentrant=False)
                else:
                    out = run(layer, h, context)
                if self.adapters:
                    out = self.adapters[i](out)
                # Dropped layers are still computed: every parameter must take part in every step under DDP.
                h = h + 0.0 * out if skipped and skipped[i] else out
                states.append(h)
            states[-1] = family.final_norm(self.trunk)(h)
        return states, lengths

    def _waits(self) -> bool:
        """Whether the trunk is still to join the training."""
        return self.training and self.epoch_now < self.config.frozen_epochs


def part_size(length: int, longest: int) -> int:
    """Frames of the parts of an utterance, of which the network takes `longest` at once. It is even, as Whisper makes
    one state of two frames; the last part may be some frames shorter. No part is so short that its states hear next to
    nothing, as the remainder after parts of `longest` would be."""
    count = -(-length // longest)
    return 2 * -(-length // (2 * count))


def merged(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """`weights` of the checkpoint `folder`, or some of them, with the low-rank updates merged into their matrices."""
    if not any(name.endswith(".lora_a") for name in weights):
        return weights
    config = read_section(folder.parent / "config.yaml", "encoder", TrunkConfig)
    try:
        return lora.merge(weights, config.lora_alpha / config.lora_rank)
    except (ZeroDivisionError, KeyError, RuntimeError):
        rule = "its low-rank updates do not fit its config.yaml, or its matrices"
        raise UserError(rule, file=folder, hint="copy the folder again") from None
