"""What encoders with a pre-trained trunk share: the start from a model folder, and the pull back to it (L2-SP)."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyspkv.base.errors import UserError
from pyspkv.models.encoder import Encoder
from pyspkv.models.pull import drift, pull


class PretrainedEncoder(Encoder):
    """Has a `trunk` of large pre-trained layers, and a config with `pretrained` and `l2_sp_weight`."""

    trunk: Any
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

    def drift(self) -> dict[str, float]:
        if not self.anchor:
            return {}
        name = {id(p): name for name, p in self.trunk.named_parameters()}
        pulled = self._pulled()
        layers = [re.search(r"(?:^|\.)layers\.(\d+)\.", name[id(p)]) for p in pulled]
        parts = [f"layer{int(layer[1]) + 1}" if layer else "front" for layer in layers]
        return drift(parts, pulled, self.anchor)
