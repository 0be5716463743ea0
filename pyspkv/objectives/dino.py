"""DINO (Caron et al. 2021) for speakers: a student matches its moving average's view of other crops, without labels.

Two global and some local crops of an utterance; RDINO's two regularizers (Chen et al., ICASSP 2023) as options.
"""

import math
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyspkv.audio.fbank import SpecAugmentConfig
from pyspkv.base.distributed import all_reduce_sum, gather
from pyspkv.base.errors import UserError
from pyspkv.base.schedules import cosine_ramp, ramp
from pyspkv.batches.dataset import Batch, View
from pyspkv.models.encoder import Encoder
from pyspkv.models.norm import BatchNorm
from pyspkv.objectives.base import Losses, Objective, RunInfo, ema, spread

FLAT = 0.999  # share of ln(head size) above which the loss says nothing
FLAT_STEPS = 200  # this many such steps in a row stop the run


@dataclass(kw_only=True)
class DINOConfig:
    """Defaults: RDINO of 3D-Speaker, without its regularizers."""

    global_seconds: float = 4.0
    local_seconds: float = 2.0
    local_crops: int = 4
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    hidden: int = 2048
    wide: int = 0  # width of the layer that the regularizers work on (RDINO: 8192); 0 = none
    bottleneck: int = 256
    head_size: int = 65536
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.04)  # from, to
    temperature_epochs: float = 10.0  # from the one to the other
    center_momentum: float = 0.9
    ema: tuple[float, float] = (0.996, 1.0)  # half cosine over the run
    freeze_epochs: float = 1.0  # the last layer stays as it is so long
    variance: float = 0.0  # weight of the variance hinge (RDINO: 10)
    covariance: float = 0.0  # weight of the covariance term (RDINO: 1)
    regularizer: tuple[float, float] = (0.05, 0.2)  # factor on both, from, to
    regularizer_epochs: float = 10.0
    alarm_epoch: float = 2.0  # from here a loss of ln(head_size) is a collapse


class Head(nn.Module):
    """[B, D] -> (logits [B, K], the regularized layer [B, W]): MLP, bottleneck on the unit sphere, unit prototypes."""

    def __init__(self, dim: int, c: DINOConfig):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, c.hidden), BatchNorm(c.hidden), nn.GELU(),
            nn.Linear(c.hidden, c.hidden), BatchNorm(c.hidden), nn.GELU(),
        )  # fmt: skip
        self.wide = nn.Linear(c.hidden, c.wide) if c.wide else nn.Identity()
        self.bottleneck = nn.Linear(c.wide or c.hidden, c.bottleneck)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last = nn.Parameter(torch.empty(c.head_size, c.bottleneck))
        nn.init.trunc_normal_(self.last, std=0.02)

    def forward(self, x: Tensor, frozen: bool = False) -> tuple[Tensor, Tensor]:
        wide = self.wide(self.mlp(x))
        z = F.normalize(self.bottleneck(wide))
        last = self.last
        if frozen:  # gradient zero, not absent: DDP waits for every parameter's
            last = last.detach() + 0.0 * last
        return F.linear(z, F.normalize(last)), wide


class DINO(Objective):
    Config = DINOConfig
    eval_module = "teacher"

    def __init__(self, config: DINOConfig, encoder: Encoder, info: RunInfo):
        super().__init__(encoder, info)
        self.config = c = config
        if c.local_crops < 0 or min(c.student_temperature, *c.teacher_temperature) <= 0:
            raise UserError("objective: local_crops is below 0, or a temperature is not above 0")
        self.head = Head(encoder.embed_dim, c)
        self.teacher, self.teacher_head = deepcopy(encoder), deepcopy(self.head)
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)
        self.register_buffer("center", torch.zeros(c.head_size))
        self.register_buffer("flat_steps", torch.zeros((), dtype=torch.long))

    def views(self) -> dict[str, View]:
        c = self.config
        views = {f"global{i}": View(c.global_seconds, augment=True) for i in range(2)}
        return views | {f"local{i}": View(c.local_seconds, augment=True) for i in range(c.local_crops)}

    def optimizers(self) -> dict[str, list[dict]]:
        groups = super().optimizers()
        rest = groups["main"].pop()  # of the head: its prototypes are unit vectors, nothing to decay
        others = [p for p in rest["params"] if p is not self.head.last]
        last = {"params": [self.head.last], "lr_scale": 1.0, "weight_decay": 0.0}
        groups["main"] += [{"params": others, "lr_scale": 1.0}, last]
        return groups

    def forward(self, batch: Batch) -> Losses:
        c = self.config
        frozen = self.epoch_now < c.freeze_epochs
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
            temperature = ramp(self.epoch_now, 0.0, c.temperature_epochs, low, high)
            batch_size = len(batch.index)
            target = ((teacher_logits.float() - self.center) / temperature).softmax(1)
            target = target.view(2, batch_size, -1)
            log_q = (student_logits.float() / c.student_temperature).log_softmax(1)
            log_q = log_q.view(2 + len(local), batch_size, -1)
            pairs = [(q, v) for q in range(2) for v in range(2 + len(local)) if q != v]
            loss = -sum((target[q] * log_q[v]).sum(-1) for q, v in pairs) / len(pairs)  # [B]
            entropy = -(target * target.clamp_min(1e-12).log()).sum(-1).mean(0)
            terms = {"dino": (loss.sum(), batch_size)}
            if c.variance or c.covariance:
                factor = ramp(self.epoch_now, 0.0, c.regularizer_epochs, *c.regularizer)
                variance, covariance = self.regularize(wide.float(), teacher_wide.float())
                terms["regularizer"] = factor * (c.variance * variance + c.covariance * covariance), 1.0
        if self.training:
            self.remember(teacher_logits.float(), loss.detach())
        return Losses(terms, {"entropy": (entropy.sum(), batch_size)}, spread(F.normalize(embedding)))

    def regularize(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """RDINO's terms on the regularized layer, averaged over the two global views, over all ranks: the mean of
        relu(1 - std) of student and teacher, and the squared off-diagonal covariance summed over the head's size."""
        x, y = (gather(z.view(2, -1, z.shape[1]).mean(0)) for z in (student, teacher))
        hinge = (F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (x, y))
        x = x - x.mean(0)
        cov = x.T @ x / (len(x) - 1)
        off = cov.square().sum() - cov.diagonal().square().sum()
        return sum(hinge) / 2, off / self.config.head_size

    @torch.no_grad()
    def remember(self, teacher_logits: Tensor, loss: Tensor) -> None:
        """Center: moving average of the teacher's mean logits over all ranks; the collapse alarm."""
        c = self.config
        counts = teacher_logits.new_tensor([len(teacher_logits), loss.sum(), len(loss)])
        total = all_reduce_sum(torch.cat([teacher_logits.sum(0), counts]))
        mean = total[:-3] / total[-3]
        self.center.mul_(c.center_momentum).add_(mean, alpha=1 - c.center_momentum)
        flat = total[-2] / total[-1] > FLAT * math.log(c.head_size) and self.epoch_now >= c.alarm_epoch
        self.flat_steps.copy_(self.flat_steps + 1 if flat else torch.zeros_like(self.flat_steps))
        if self.flat_steps >= FLAT_STEPS:
            raise UserError(
                f"collapsed: for {FLAT_STEPS} steps the loss is ln(head_size), so every crop looks alike",
                hint="lower optim.lr, raise batch_size, or lower teacher_temperature",
            )

    def after_step(self) -> None:
        epochs = self.info.epochs
        momentum = cosine_ramp(self.epoch_now, epochs, *self.config.ema)
        ema(self.teacher, self.encoder, momentum)
        ema(self.teacher_head, self.head, momentum)


def _cat(views: dict, names: list[str]) -> tuple[Tensor, Tensor]:
    return tuple(torch.cat([views[name][i] for name in names]) for i in range(2))
