"""Estimate the cost of a recipe's trainings on this machine, by timing a few steps of each."""

import resource
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from pyspkv.base.errors import UserError

STARTING = (
    6.0  # seconds before the first step of a training (Python, 200 simulated rooms); estimated, not measured
)
TIMED_STEPS, FIRST_STEPS = 8, 3  # the first steps are slower (memory is allocated, kernels are chosen)


@dataclass(frozen=True)
class Stage:
    """The plan of one training.

    hours: hours of audio that the network processes. memory_mb: peak memory of a training process in MiB,
    with its cache of decoded audio. extract_minutes: minutes to embed all utterances once with this model.
    """

    name: str
    steps: int
    epochs: int
    batch_size: int
    crop_seconds: float
    hours: float
    minutes: float
    memory_mb: float
    extract_minutes: float = 0.0


def plan(name: str, files: Sequence[Path], data, seconds: Sequence[float], classes: int) -> Stage:
    """Time TIMED_STEPS steps of a training and extrapolate to all of its steps.

    Args:
        files: YAML files of the config; later ones win.
        data: DataDir of the training.
        seconds: durations of its utterances, or of a sample.
        classes: number of classes for the timing, because the pseudo-speakers of a round are not known yet.

    UserError: a bad config, or fewer utterances than a batch.
    """
    import time

    from pyspkv.base import config as cfg
    from pyspkv.score.extract import embed
    from pyspkv.train.config import TrainConfig
    from pyspkv.train.trainer import Trainer

    config = cfg.load(TrainConfig, files)
    part = data.subset(data.utts[: max(2 * config.batch_size, 64)]) if len(data.utts) > 64 else data
    if len(part.utts) < config.batch_size:
        rule = f"{len(part.utts)} utterances do not fill one batch of {config.batch_size}"
        raise UserError(rule, file=data.path, hint="lower batch_size, or let --fit do it")
    steps = len(data.utts) // config.batch_size * config.epochs
    if config.objective.name != "contrastive" and config.objective.name != "dino":
        part = part.with_speakers([f"c{i % min(classes, len(part.utts)):05d}" for i in range(len(part.utts))])
    passes = -(
        -(TIMED_STEPS + 1) * config.batch_size // (len(part.utts) // config.batch_size * config.batch_size)
    )
    rooms = config.augment.model_copy(update={"rir_bank": min(config.augment.rir_bank, 8)})
    timed = {"epochs": passes, "augment": rooms, "log_every_steps": 10**9, "save_every_steps": 10**9}
    ends: list[float] = []

    class Timed(Trainer):
        def _step(self, *args):
            if len(ends) > TIMED_STEPS:
                raise _Enough
            found = super()._step(*args)
            ends.append(time.perf_counter())
            return found

        def _end_epoch(self, log, epoch, means, seconds):  # writes no checkpoint
            self.state.end_epoch(self.config.epochs, None, 0)

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        trainer = Timed(config.model_copy(update=timed), part, Path(folder) / "model")
        view_seconds = [view.seconds for view in trainer.views.values()]
        begun = time.perf_counter()
        with suppress(_Enough):
            trainer.run()
        extracting = time.perf_counter()
        encoder = trainer.objective.get_submodule(trainer.objective.eval_module).eval()
        embed(encoder, part, trainer.device, trainer.precision, allow_pipes=config.allow_pipes)
        extracting = (time.perf_counter() - extracting) * len(data.utts) / len(part.utts)
    gaps = sorted(b - a for a, b in zip(ends[FIRST_STEPS - 1 :], ends[FIRST_STEPS:]))
    each = sum(gaps) / len(gaps)
    hours = steps * config.batch_size * sum(view_seconds) / 3600
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    corpus = len(data.utts) * sum(seconds) / max(1, len(seconds)) * 16000 * 2 / 2**20
    memory = held + min(config.cache_mb, corpus)
    minutes = (STARTING + ends[0] - begun + steps * each) / 60
    crop = max(view_seconds)
    return Stage(name, steps, config.epochs, config.batch_size, crop, hours, minutes, memory, extracting / 60)


class _Enough(Exception):
    """All steps to be timed are done."""


def stages_of(conf: Path, num_rounds: int) -> list[tuple[str, list[Path]]]:
    """(name, config files) of every training of a recipe with these configs, in order.

    UserError: there is none.
    """
    have = {file.stem: file for file in sorted(conf.glob("*.yaml"))}
    base = [have["encoder"]] if "encoder" in have else []
    out = [("pretrain", have["pretrain"])] if "pretrain" in have else []
    if "round" in have:
        early = have.get("early_round", have["round"])
        out += [(f"round{r}", have["round"] if r == num_rounds else early) for r in range(1, num_rounds + 1)]
    out += [("train", have["train"])] if "train" in have else []
    out += [("finetune", have["finetune"])] if "finetune" in have else []
    if not out:
        raise UserError(
            "has no pretrain.yaml, round.yaml, train.yaml or finetune.yaml", file=conf, hint="--conf DIR"
        )
    return [(name, [*base, file]) for name, file in out]


def table(stages: Sequence[Stage]) -> list[str]:
    """Lines of text for people."""
    lines = [
        f"{'stage':10} {'steps':>7} {'epochs':>6} {'batch':>5} {'crop s':>6} {'audio h':>8} {'minutes':>8} {'MB':>6}"
    ]
    for s in stages:
        shown = f"{s.steps:7d} {s.epochs:6d} {s.batch_size:5d} {s.crop_seconds:6.2f} {s.hours:8.1f} {s.minutes:8.1f}"
        lines.append(f"{s.name:10} {shown} {s.memory_mb:6.0f}")
    minutes = sum(s.minutes for s in stages)
    extract = sum(s.extract_minutes for s in stages)
    lines.append(
        f"{'trainings':10} {sum(s.steps for s in stages):7d} {'':19} {sum(s.hours for s in stages):8.1f} {minutes:8.1f}"
    )
    lines.append(f"{'extraction of train, once with each model':47} {extract:15.1f}")
    return lines
