"""What encoders with a pre-trained trunk share.

Fields of the config, the start from a model folder, layer-wise learning rates, and the pull back to the pre-trained
weights (L2-SP).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from pyspkv.base.config import NotNegative, Positive, Size
from pyspkv.base.errors import UserError
from pyspkv.models.encoder import Encoder
from pyspkv.models.pull import PullForm, drift, pull

# Fields of the configs; the defaults stand there.
MhfaHeads = Annotated[Size, Field(description="Heads of MHFA (64 in its paper).")]
MhfaDim = Annotated[Size, Field(description="Width of MHFA's keys and values (128 in its paper).")]
LayerwiseGrowth = Annotated[
    Positive,
    Field(description="Factor on a layer's rate over that of the layer below (xi in arXiv 2406.02285)."),
]
PretrainedModel = Annotated[
    str,
    Field(
        description="Model folder whose trunk the training starts from, as bin.import_checkpoint makes it."
    ),
]
PullWeight = Annotated[
    NotNegative,
    Field(
        description="Weight of the pull to the weights of `pretrained` (L2-SP), of what is not frozen. arXiv "
        "2406.02285 has 0.01. Raise it when the fine-tuned trunk forgets."
    ),
]
PullFormField = Annotated[
    PullForm,
    Field(
        description="Form of that pull. norms: as released for arXiv 2406.02285, the sum of the distances divided by "
        "its own value, and the main loss divided by its own value, too. squared: the sum of the squared distances, "
        "far stronger at the same weight."
    ),
]
GradientCheckpointing = Annotated[
    bool,
    Field(
        description="Compute each layer again in the backward pass: a third slower, but with a fraction of the "
        "memory. Set it when a GPU is out of memory."
    ),
]


class PretrainedEncoder(Encoder):
    """Has a `trunk` of large pre-trained layers, and a config with `pretrained` and `l2_sp_weight`."""

    trunk: Any
    backend: Any  # the pooling
    norm: nn.Module  # of the embedding
    config: Any

    def __init__(self):
        nn.Module.__init__(self)  # no filterbanks
        self.anchor: list[Tensor] = []  # pre-trained values of `_pulled()`

    @staticmethod
    def needs_models(config) -> list[str]:
        return [config.pretrained] if config.pretrained else []

    def load_pretrained(self) -> None:
        """Load the pre-trained trunk that `pretrained` names; needed before training only."""
        from pyspkv.base import checkpoint as ckpt

        c = self.config
        if c.l2_sp_weight and not c.pretrained:
            raise UserError(
                "encoder.l2_sp_weight needs encoder.pretrained",
                hint="set it to the imported trunk, or set l2_sp_weight: 0",
            )
        if not c.pretrained:
            return
        folder = ckpt.resolve_model(c.pretrained)
        theirs = {k[6:]: v for k, v in ckpt.encoder_weights(folder).items() if k.startswith("trunk.")}
        self.load_trunk(theirs, folder)
        self.anchor = [p.detach().clone() for p in self._pulled()]

    def load_trunk(self, theirs: dict[str, Tensor], folder: Path) -> None:
        """Load the trunk's tensors `theirs`. UserError: they are those of another trunk."""
        from pyspkv.base import checkpoint as ckpt

        ckpt.load_state_strict(self.trunk, theirs, folder)

    def _pulled(self) -> list[nn.Parameter]:
        return [p for p in self.trunk.parameters() if p.requires_grad]

    def trunk_layers(self) -> Sequence[nn.Module]:
        """The trunk's layers, the lowest first."""
        raise NotImplementedError

    def final_norm(self) -> nn.Module:
        """On the output of the highest layer."""
        return nn.Identity()

    def trunk_groups(self) -> list[dict]:
        """Rates of the trunk: trunk_lr_scale x layerwise_lr_growth^l for layer l.

        Parameters that belong to no layer learn as fast as the lowest one.
        """
        c, groups = self.config, []
        rest = {id(p): p for p in self._pulled()}
        for i, layer in enumerate(self.trunk_layers()):
            params = [rest.pop(id(p)) for p in layer.parameters() if id(p) in rest]
            groups.append({"params": params, "lr_scale": c.trunk_lr_scale * c.layerwise_lr_growth**i})
        return [*groups, {"params": list(rest.values()), "lr_scale": c.trunk_lr_scale}]

    def param_groups(self) -> list[dict]:
        """The groups of the trunk, then pooling and norm at the full rate; empty ones are left out."""
        top = {"params": [*self.backend.parameters(), *self.norm.parameters()], "lr_scale": 1.0}
        return [g for g in [*self.trunk_groups(), top] if g["params"]]

    def pull(self) -> Tensor | None:
        c = self.config
        if not self.anchor or not c.l2_sp_weight:
            return None
        params = self._pulled()
        self.anchor = [a.to(p.device) for a, p in zip(self.anchor, params)]
        return pull(params, self.anchor, c.l2_sp_weight, c.pull_form)

    @property
    def normalizes_loss(self) -> bool:
        return self.config.pull_form == "norms"

    def moved(self) -> list[tuple[str, Tensor, Tensor]]:
        """(name in the trunk, value, pre-trained value) of what has left the pre-trained weights, or may have."""
        name = {id(p): name for name, p in self.trunk.named_parameters()}
        return [(name[id(p)], p, start) for p, start in zip(self._pulled(), self.anchor)]

    def drift(self) -> dict[str, float]:
        """Of `layer1` .. `layerL`, of `norm`, the final one, and of `front`, all else of the trunk."""
        final = {id(p) for p in self.final_norm().parameters()}
        names, values, starts = [], [], []
        for name, value, start in self.moved():
            layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
            rest = "norm" if id(value) in final else "front"
            names.append(f"layer{int(layer[1]) + 1}" if layer else rest)
            values.append(value)
            starts.append(start)
        return drift(names, values, starts)
