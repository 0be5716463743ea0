"""DINO (Caron et al. 2021) for speakers: a student matches its moving average's view of other crops, without labels.

Two global and some local crops of an utterance; RDINO's two regularizers (Chen et al., ICASSP 2023) as options.
"""

import math
from copy import deepcopy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig
from pyspkv.base.config import Config, NotNegative, Positive, Seconds, Share, Size, implements
from pyspkv.base.distributed import all_reduce_sum, gather
from pyspkv.base.errors import UserError
from pyspkv.base.schedules import cosine_ramp, ramp
from pyspkv.batches.dataset import Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.models.norm import BatchNorm
from pyspkv.objectives.base import Losses, Mean, Objective, RunInfo, ema, spread

FLAT = 0.999  # share of ln(num_prototypes) above which the loss says nothing
FLAT_STEPS = 200  # this many such steps in a row stop the run


class DINOConfig(Config):
    """DINO (Caron et al. 2021). Defaults: RDINO of 3D-Speaker, without its regularizers."""

    name: Literal["dino"] = "dino"
    global_seconds: Seconds = Field(
        4.0,
        description="Length of the two global crops, which teacher and student see. Lower it if utterances "
        "are shorter.",
    )
    local_seconds: Seconds = Field(
        2.0,
        description="Length of the local crops, which the student alone sees. About half of "
        "`global_seconds`.",
    )
    local_crops: int = Field(
        4,
        ge=0,
        le=1000,
        description="Number of local crops per utterance. Fewer are faster but learn less per step.",
    )
    spec_augment: SpecAugmentConfig = Field(
        SpecAugmentConfig(),
        description="Time and frequency masks on the features (SpecAugment). Off by default.",
    )
    head_hidden_dim: Size = Field(2048, description="Width of the head's two hidden layers (2048 in DINO).")
    regularized_dim: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Width of the layer that the regularizers work on (RDINO: 8192). 0: no such layer.",
    )
    head_bottleneck_dim: Size = Field(
        256, description="Width of the second-last layer of the head (256 in DINO)."
    )
    num_prototypes: Size = Field(
        65536,
        description="Outputs of the head (65,536 in DINO). On a corpus of a few thousand utterances use "
        "2048.",
    )
    student_temperature: Positive = Field(
        0.1, description="Temperature of the student's softmax (0.1 in DINO)."
    )
    teacher_temperature: tuple[Positive, Positive] = Field(
        (0.04, 0.04),
        description="Of the teacher's softmax: at the start, and after `teacher_temperature_epochs`. Lower "
        "when the loss stays at ln(num_prototypes).",
    )
    teacher_temperature_epochs: NotNegative = Field(
        10.0, description="Epochs over which the teacher temperature moves linearly."
    )
    center_momentum: Share = Field(
        0.9, description="Momentum of the center that is subtracted from the teacher's output (0.9 in DINO)."
    )
    ema_momentum: tuple[Share, Share] = Field(
        (0.996, 1.0),
        description="EMA momentum of the teacher, start and end, on a half cosine over the run. With small "
        "batches start higher, e.g. 0.9995 at 256; in runs of few steps lower, e.g. 0.95.",
    )
    freeze_last_layer_epochs: NotNegative = Field(
        1.0,
        description="Epochs in which the prototypes are frozen. Raise it when the loss does not fall at "
        "first.",
    )
    variance_weight: NotNegative = Field(
        0.0,
        description="Weight of the variance hinge (RDINO: 10). Set it when embeddings use only a few "
        "dimensions.",
    )
    covariance_weight: NotNegative = Field(
        0.0, description="Weight of the covariance term (RDINO: 1). Set it together with `variance_weight`."
    )
    regularizer_scale: tuple[NotNegative, NotNegative] = Field(
        (0.05, 0.2), description="Factor on both regularizers at the start and after `regularizer_epochs`."
    )
    regularizer_epochs: NotNegative = Field(
        10.0, description="Epochs over which `regularizer_scale` moves linearly."
    )
    alarm_epoch: NotNegative = Field(
        2.0,
        description="From this epoch on, a loss that stays at ln(num_prototypes) stops the run as "
        "collapsed. Raise it when epochs are short.",
    )


class Head(nn.Module):
    """[B, D] -> (logits [B, K], the regularized layer [B, W]): MLP, bottleneck on the unit sphere, unit prototypes."""

    def __init__(self, dim: int, c: DINOConfig):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, c.head_hidden_dim), BatchNorm(c.head_hidden_dim), nn.GELU(),
            nn.Linear(c.head_hidden_dim, c.head_hidden_dim), BatchNorm(c.head_hidden_dim), nn.GELU(),
        )  # fmt: skip
        self.wide = nn.Linear(c.head_hidden_dim, c.regularized_dim) if c.regularized_dim else nn.Identity()
        self.bottleneck = nn.Linear(c.regularized_dim or c.head_hidden_dim, c.head_bottleneck_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last = nn.Parameter(torch.empty(c.num_prototypes, c.head_bottleneck_dim))
        nn.init.trunc_normal_(self.last, std=0.02)

    def forward(self, x: Tensor, frozen: bool = False) -> tuple[Tensor, Tensor]:
        wide = self.wide(self.mlp(x))
        z = F.normalize(self.bottleneck(wide))
        last: Tensor = self.last
        if frozen:  # gradient zero, not absent: DDP waits for every parameter's
            last = last.detach() + 0.0 * last
        return F.linear(z, F.normalize(last)), wide


@implements(DINOConfig)
class DINO(Objective):
    eval_module = "teacher"

    center: Tensor
    flat_steps: Tensor

    def __init__(self, config: DINOConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        self.config = c = config
        self.head = Head(encoder.embed_dim, c)
        self.teacher, self.teacher_head = deepcopy(encoder), deepcopy(self.head)
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)
        self.register_buffer("center", torch.zeros(c.num_prototypes))
        self.register_buffer("flat_steps", torch.zeros((), dtype=torch.long))

    def views(self) -> dict[str, View]:
        c = self.config
        views = {f"global{i}": View(c.global_seconds, augment=True) for i in range(2)}
        return views | {f"local{i}": View(c.local_seconds, augment=True) for i in range(c.local_crops)}

    def optimizers(self, encoder_lr: float = 1.0) -> dict[str, list[dict]]:
        groups = super().optimizers(encoder_lr)
        rest = groups["main"].pop()  # of the head: its prototypes are unit vectors, nothing to decay
        others = [p for p in rest["params"] if p is not self.head.last]
        last = {"params": [self.head.last], "lr_scale": 1.0, "weight_decay": 0.0}
        groups["main"] += [{"params": others, "lr_scale": 1.0}, last]
        return groups

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        frozen = self.epoch_now < c.freeze_last_layer_epochs
        views, local = batch.views, [f"local{i}" for i in range(c.local_crops)]
        pair = _cat(views, ["global0", "global1"])
        with torch.no_grad():
            teacher_logits, teacher_wide = self.teacher_head(self.teacher(*pair))
        embedding = self.encode(pair, c.spec_augment)
        student_logits, wide = self.head(embedding, frozen)
        if local:
            local_logits, _ = self.head(self.encode(_cat(views, local), c.spec_augment), frozen)
            student_logits = torch.cat([student_logits, local_logits])
        with torch.autocast(embedding.device.type, enabled=False):
            low, high = c.teacher_temperature
            temperature = ramp(self.epoch_now, 0.0, c.teacher_temperature_epochs, low, high)
            batch_size = len(batch.index)
            target = ((teacher_logits.float() - self.center) / temperature).softmax(1)
            target = target.view(2, batch_size, -1)
            log_q = (student_logits.float() / c.student_temperature).log_softmax(1)
            log_q = log_q.view(2 + len(local), batch_size, -1)
            pairs = [(q, v) for q in range(2) for v in range(2 + len(local)) if q != v]
            loss = -sum((target[q] * log_q[v]).sum(-1) for q, v in pairs) / len(pairs)  # [B]
            entropy = -(target * target.clamp_min(1e-12).log()).sum(-1).mean(0)
            terms: dict[str, Mean] = {"dino": (loss.sum(), batch_size)}
            if c.variance_weight or c.covariance_weight:
                factor = ramp(self.epoch_now, 0.0, c.regularizer_epochs, *c.regularizer_scale)
                variance, covariance = self.regularize(wide.float(), teacher_wide.float())
                terms["regularizer"] = (
                    factor * (c.variance_weight * variance + c.covariance_weight * covariance),
                    1.0,
                )
        if self.training:
            self.remember(teacher_logits.float(), loss.detach())
        return Losses(terms, {"entropy": (entropy.sum(), batch_size)}, spread(F.normalize(embedding)))

    def regularize(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """RDINO's terms on the regularized layer, averaged over the two global views, over all ranks: the mean of
        relu(1 - std) of student and teacher, and the squared off-diagonal covariance summed over the head's size."""
        x, y = (gather(z.view(2, -1, z.shape[1]).mean(0)) for z in (student, teacher))
        hinge = [F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (x, y)]
        x = x - x.mean(0)
        cov = x.T @ x / (len(x) - 1)
        off = cov.square().sum() - cov.diagonal().square().sum()
        return (hinge[0] + hinge[1]) / 2, off / self.config.num_prototypes

    @torch.no_grad()
    def remember(self, teacher_logits: Tensor, loss: Tensor) -> None:
        """Move the center to the teacher's mean logits over all ranks; raise the alarm where the head has collapsed."""
        c = self.config
        counts = teacher_logits.new_tensor([len(teacher_logits), loss.sum(), len(loss)])
        total = all_reduce_sum(torch.cat([teacher_logits.sum(0), counts]))
        mean = total[:-3] / total[-3]
        self.center.mul_(c.center_momentum).add_(mean, alpha=1 - c.center_momentum)
        flat = total[-2] / total[-1] > FLAT * math.log(c.num_prototypes) and self.epoch_now >= c.alarm_epoch
        self.flat_steps.copy_(self.flat_steps + 1 if flat else torch.zeros_like(self.flat_steps))
        if self.flat_steps >= FLAT_STEPS:
            raise UserError(
                f"collapsed: for {FLAT_STEPS} steps the loss is ln(num_prototypes): all crops get the same output",
                hint="lower optim.lr, raise batch_size, or lower teacher_temperature",
            )

    def after_step(self) -> None:
        epochs = self.info.epochs
        momentum = cosine_ramp(self.epoch_now, epochs, *self.config.ema_momentum)
        ema(self.teacher, self.encoder, momentum)
        ema(self.teacher_head, self.head, momentum)


def _cat(views: dict, names: list[str]) -> tuple[Tensor, Tensor]:
    wave, lengths = zip(*(views[name] for name in names))
    return torch.cat(wave), torch.cat(lengths)
