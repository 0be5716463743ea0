"""Pre-training without labels: two crops of one utterance attract, those of other utterances repel."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig
from pyspkv.base.config import Config, NotNegative, Positive, Seconds, implements
from pyspkv.base.distributed import gather, rank
from pyspkv.batches.dataset import Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.models.norm import BatchNorm
from pyspkv.objectives.base import Losses, Mean, Objective, RunInfo, spread


class ContrastiveConfig(Config):
    """Two crops of an utterance attract, those of other utterances repel: first labels without any speaker label."""

    name: Literal["contrastive"] = "contrastive"
    loss: Literal["nt_xent", "angular_proto"] = Field(
        "nt_xent",
        description="nt_xent: SimCLR's loss, both directions (Chen et al. 2020). angular_proto: one "
        "direction (Chung et al. 2020).",
    )
    crop_seconds: Seconds = Field(
        2.0,
        description="Length of a training crop. Longer crops help with long test utterances but take more time.",
    )
    spec_augment: SpecAugmentConfig = Field(
        SpecAugmentConfig(),
        description="Time and frequency masks on the features (SpecAugment). Off by default.",
    )
    temperature: float = Field(
        0.07,
        ge=0.01,  # where the scale ends
        description="Of the softmax over similarities; its start value where it is learnt. Lower looks at "
        "the hardest negatives.",
    )
    learn_temperature: bool = Field(False, description="Learn the temperature, as the authors of LGL do.")
    margin: float = Field(
        0.0,
        ge=0,
        le=2,
        description="Subtracted from the cosine of the positive pair (additive margin). Rarely needed.",
    )
    adversarial_weight: NotNegative = Field(
        0.0,
        description="Weight of the reversed gradient of augmentation adversarial training (Huh et al. "
        "2020: 3). 0: none. Use it when embeddings depend on noise and rooms.",
    )
    discriminator_lr: Positive = Field(
        1e-3, description="Learning rate of the discriminator in that training; it is constant."
    )


def nt_xent(
    a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, first: int, scale: Tensor, margin: float
) -> Tensor:
    """NT-Xent (Chen et al. 2020, eq. 1), both directions: unit vectors a, b [B, D] of this rank, all ranks'
    [N, D] of which a starts at row `first` -> losses [2B], 2N - 2 negatives each.
    """
    batch_size, keys = len(a), torch.cat([all_a, all_b])
    logits = torch.cat([a, b]) @ keys.T  # [2B, 2N]
    rows = torch.arange(2 * batch_size, device=a.device)
    oneself = first + rows % batch_size + (rows >= batch_size) * len(all_a)
    pair = first + rows % batch_size + (rows < batch_size) * len(all_a)
    logits = logits.index_put((rows, pair), logits[rows, pair] - margin) * scale
    logits = logits.index_put((rows, oneself), logits.new_tensor(-math.inf))
    return F.cross_entropy(logits, pair, reduction="none")


def angular_proto(a: Tensor, all_b: Tensor, first: int, scale: Tensor, margin: float) -> Tensor:
    """Angular prototypical loss (Chung et al. 2020) with one query and one-utterance prototypes -> losses [B].

    Its learnt bias is left out: it cancels in the softmax.
    """
    rows = torch.arange(len(a), device=a.device)
    logits = a @ all_b.T
    logits = logits.index_put((rows, first + rows), logits[rows, first + rows] - margin) * scale
    return F.cross_entropy(logits, first + rows, reduction="none")


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.weight * grad, None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """Return x; in the backward pass its gradient is -weight times the gradient of the result."""
    return _Reverse.apply(x, weight)


class Discriminator(nn.Module):
    """Pairs of embeddings [B, 2 D] to logits [B, 2]; class 1: both crops had the same augmentation (AAT)."""

    def __init__(self, dim: int, hidden: int = 512):
        super().__init__()
        self.layers = nn.Sequential(
            BatchNorm(2 * dim), nn.ReLU(), nn.Linear(2 * dim, hidden),
            BatchNorm(hidden), nn.ReLU(), nn.Linear(hidden, 2),
        )  # fmt: skip

    def forward(self, pair: Tensor) -> Tensor:
        return self.layers(pair)


@implements(ContrastiveConfig)
class Contrastive(Objective):
    """NT-Xent or angular prototypical loss over two crops, kept apart where the utterance is long enough.

    With `adversarial_weight`, a third view is the second crop with the first one's augmentation. A discriminator, which
    has an optimizer of its own, tells that pair from the pair of different augmentations; the encoder gets its gradient
    reversed.
    """

    def __init__(self, config: ContrastiveConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        self.config = config
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(config.temperature)), requires_grad=config.learn_temperature
        )
        self.discriminator = Discriminator(encoder.embed_dim) if config.adversarial_weight else None

    def optimizers(self, encoder_lr: float = 1.0) -> dict[str, list[dict]]:
        groups = super().optimizers(encoder_lr)
        if self.discriminator is not None:
            discriminator = list(self.discriminator.parameters())
            rest = groups["main"].pop()  # of all that is not the encoder
            kept = [p for p in rest["params"] if all(p is not q for q in discriminator)]
            groups["main"] += [{**rest, "params": kept}] if kept else []
            lr = self.config.discriminator_lr
            groups["discriminator"] = [
                {"params": discriminator, "lr": lr, "fixed_lr": True, "weight_decay": 0.0}
            ]
        return groups

    def views(self) -> dict[str, View]:
        crop = self.config.crop_seconds
        views = {"a": View(crop, augment=True), "b": View(crop, augment=True, apart_from="a")}
        if self.discriminator is not None:
            views["b_like_a"] = View(crop, augment=True, share_augment="a", share_crop="b")
        return views

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        # One pass over all views, so that batch normalization does not treat them differently.
        wave, lengths = zip(*(batch.views[name] for name in self.views()))
        embedding = self.encode((torch.cat(wave), torch.cat(lengths)), c.spec_augment)
        a, b = F.normalize(embedding).split(len(batch.index))[:2]
        with torch.autocast(a.device.type, enabled=False):
            all_a, all_b = gather(a.contiguous()), gather(b.contiguous())
            first, scale = rank() * len(a), self.log_scale.exp().clamp_max(100.0)
            if c.loss == "nt_xent":
                loss = nt_xent(a, b, all_a, all_b, first, scale, c.margin)
            else:
                loss = angular_proto(a, all_b, first, scale, c.margin)
        with torch.no_grad():
            nearest = (a @ all_b.T).argmax(1) == first + torch.arange(len(a), device=a.device)
        batch_size = len(a)
        terms: dict[str, Mean] = {c.loss: (loss.sum(), len(loss))}
        stats: dict[str, Mean] = {
            "accuracy": (nearest.float().sum(), batch_size),
            "scale": (scale.detach() * batch_size, batch_size),
        }
        if self.discriminator is not None:
            confusion, right = self.tell_apart(embedding)
            terms["adversarial"] = confusion.sum(), 2 * batch_size
            stats["discriminator"] = right.float().sum(), 2 * batch_size
        return Losses(terms, stats, spread(a))

    def tell_apart(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the views a, b and b_like_a, [3 B, D], to the discriminator's cross-entropy [2 B] and whether
        it is right, bool [2 B]."""
        assert self.discriminator is not None  # only asked with one
        a, b, like = reverse_gradient(embedding, self.config.adversarial_weight).chunk(3)
        with torch.autocast(a.device.type, enabled=False):
            logits = self.discriminator(torch.cat([torch.cat([a, like], 1), torch.cat([a, b], 1)]).float())
            same = torch.arange(2, device=a.device).flip(0).repeat_interleave(len(a))  # 1 ... 1, 0 ... 0
            return F.cross_entropy(logits, same, reduction="none"), logits.detach().argmax(1) == same
