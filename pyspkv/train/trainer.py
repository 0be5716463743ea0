"""The training loop of every objective, on a CPU, on a GPU, or in several processes.

A run is a folder: config.yaml (resolved), run.json (command, versions, labels), train.jsonl (one record per log
interval and epoch), tb/ (tensorboard), ckpt-<step>/, LATEST, best. Running the same command again resumes from LATEST
and ends with the same digits as an unbroken run on the same machine: batches, dropout and masks are drawn from
(seed, step), and the checkpoint holds everything else. SIGTERM and SIGUSR1 end a run at its next step, with a
checkpoint.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from torch.nn.parallel import DistributedDataParallel

from pyspkv.base import checkpoint, distributed
from pyspkv.base import config as cfg
from pyspkv.base.atomic import folder_lock
from pyspkv.base.device import autocast, choose_precision
from pyspkv.base.errors import UserError
from pyspkv.base.processes import StopSignal
from pyspkv.base.schedules import lr_factor
from pyspkv.batches.augment import Augmenter
from pyspkv.batches.dataset import (
    ROW_COLUMNS,
    Batch,
    Batches,
    TrainingRows,
    check_views,
    loader,
    worker_errors,
)
from pyspkv.data.datadir import DataDir
from pyspkv.models.load import resolved
from pyspkv.objectives.base import Losses, Objective, RunInfo
from pyspkv.score.extract import embed_over_ranks
from pyspkv.train.config import MAY_CHANGE_ON_RESUME, TrainConfig
from pyspkv.train.dev import DevList, check_apart
from pyspkv.train.log import Log, Means, StepLog, epoch_line
from pyspkv.train.moved_labels import check_labels_out, write_labels
from pyspkv.train.optimizers import build_optimizer, clip_gradients, drop_waiting, set_lr
from pyspkv.train.run_folder import RunFolder
from pyspkv.train.state import RunState
from pyspkv.train.step import StepResult, loss_with_pull, step_result

COLLAPSED = 0.01  # below this spread, all unit embeddings of a batch point in nearly the same direction
COLLAPSED_STEPS = 100  # number of such steps in a row that stops the run


def _seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of everything random inside the model in one step. It is below 2^63 (torch) up to 10^14 steps."""
    return (seed * 1_000_003 + step) * 4_099 + rank


def check_epochs(config: TrainConfig) -> None:
    """UserError: the trunk of the encoder stays frozen for all epochs of the training."""
    frozen = getattr(config.encoder, "frozen_epochs", 0)
    if 0 < config.epochs <= frozen:
        raise UserError(
            f"encoder.frozen_epochs is {frozen} of {config.epochs} epochs, so that the trunk would never learn",
            hint="set it below epochs, or set encoder.freeze: trunk and frozen_epochs: 0",
        )


def check_start(config: TrainConfig, init: str | None = None) -> None:
    """Build the encoder with the weights that it starts from, those of the model `init` where one is given. UserError:
    a training of `config` could not begin."""
    check_epochs(config)
    encoder = cfg.build(resolved(config.encoder))
    encoder.load_pretrained()
    if init:
        checkpoint.init_encoder(encoder, init)


class Trainer:
    """Train `config` on `data`. The module's docstring says what appears in `exp`.

    If `exp` is a symbolic link, it is the model of another run and is only read. That run must be finished, and have
    the same config and data.

    Args:
        unlabeled: second data directory of semi-supervised objectives.
        dev, dev_trials: trials of other speakers, scored after every epoch. `best` is the epoch with the lowest EER.
        init: `DIR[@best|last]` whose encoder weights to start from (heads are new).
        keep_head: start from its heads and its gate too, which needs the same utterances and labels (large-margin
            fine-tuning).
        labels_out: folder for a data directory with the final labels, if the objective changes labels.
        patience: stop after this many epochs in a row with a dev EER above the best; 0 never stops early.

    Attributes:
        stopped: SIGTERM or SIGUSR1 stopped `run`. It wrote a checkpoint, from which the same command goes on.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: DataDir,
        exp: Path,
        *,
        unlabeled: DataDir | None = None,
        dev: DataDir | None = None,
        dev_trials: Path | None = None,
        init: str | None = None,
        keep_head: bool = False,
        labels_out: Path | None = None,
        patience: int = 0,
    ):
        self.config = config = config.model_copy(update={"encoder": resolved(config.encoder)})
        self.exp, self.init, self.keep_head = exp, init, keep_head
        self.labels_out, self.patience = labels_out and Path(labels_out), patience
        self.stop_signal, self.stopped = StopSignal(), False
        if patience < 0:
            raise UserError(f"--patience {patience} must not be below 0")
        if dev:
            check_apart(dev, data, unlabeled)
        self.dev = None
        if dev:
            assert dev_trials is not None  # the two go together
            self.dev = DevList(dev, dev_trials)
        self._join_processes()
        self.corpus = TrainingRows(data, unlabeled, config.allow_pipes, config.cache_mb)
        self._look_at_folder()
        self.built = False
        if not self.finished or labels_out:
            self._build()

    # -- what is made before the first step

    def _join_processes(self) -> None:
        self.device = distributed.init()
        self.main = distributed.rank() == 0
        processes = distributed.world_size()
        if self.config.batch_size % processes:
            rule = f"batch_size {self.config.batch_size} is not a multiple of {processes} processes"
            raise UserError(rule)
        self.precision = choose_precision(self.config.precision, self.device)

    def _look_at_folder(self) -> None:
        """Find out whether `exp` is empty, holds this run unfinished, or finished. UserError: it holds another run."""
        self.is_link = os.path.islink(self.exp)
        processes = distributed.world_size()
        digests = self.corpus.label_hash(), self._init_digest()
        self.folder = RunFolder(self.exp, self.config, MAY_CHANGE_ON_RESUME, self.init, *digests, processes)
        saved = self.folder.saved_state()
        self.finished = saved is not None and saved.done
        if self.is_link and not self.finished:
            raise UserError(
                "is a link to a model whose training has not finished",
                file=self.exp,
                hint="finish that training, or remove the link to train here",
            )

    def _init_digest(self) -> str | None:
        """Hash of the weights of all models that the run starts from; None: it starts from random weights."""
        models = [self.init] if self.init else []
        for config in (self.config.objective, self.config.encoder):
            models += cfg.class_of(config).needs_models(config)
        return " ".join(checkpoint.digest(model) for model in models) or None

    def _build(self) -> None:
        """Build sampler, model and optimizers. A finished run needs them only to write the labels that it changed."""
        config, data = self.config, self.corpus.parts[0]
        check_epochs(config)
        columns = {c: getattr(self.corpus, c) for c in ROW_COLUMNS}
        self.sampler = cfg.build(config.sampler, self.corpus.label, config.batch_size, config.seed, columns)
        self.objective, self.built = self._build_objective(), True
        self.views = self.objective.views()
        check_views(self.views, self.objective.encoder.min_samples)
        self.augmenter = self._build_augmenter()
        self.optimizers = {
            name: build_optimizer(config.optim, groups)
            for name, groups in self.objective.optimizers().items()
        }
        self.state = RunState(label_hash=self.folder.label_hash, eval_module=self.objective.eval_module)
        self.objective.check_classes(self.corpus.classes, data.path)
        if self.labels_out:
            dev = self.dev.data if self.dev else None
            check_labels_out(self.labels_out, self.objective, config.objective.name, data, dev)

    def _build_objective(self) -> Objective:
        config = self.config
        torch.manual_seed(config.seed)
        encoder = cfg.build(config.encoder)
        encoder.load_pretrained()
        if self.init:
            checkpoint.init_encoder(encoder, self.init)
        info = RunInfo(
            len(self.corpus),
            len(self.corpus.classes),
            self.sampler.steps,
            config.epochs,
            num_speeds=max(1, len(config.augment.speed_perturb)),
            num_labeled=len(self.corpus.parts[0].utts),
        )
        objective = cfg.build(config.objective, encoder, info)
        if self.keep_head:
            assert self.init is not None  # the two go together
            checkpoint.init_objective(objective, self.init, self.folder.label_hash)
        return objective.to(self.device)

    def _build_augmenter(self) -> Augmenter | None:
        config = self.config
        if self.finished or not (config.augment.speed_perturb or any(v.augment for v in self.views.values())):
            return None
        return Augmenter(
            config.augment,
            config.seed,
            cache_dir=config.rooms_dir or self.exp / "rooms",
            train=self.corpus.readers[-1],  # the unlabeled part, where there is one: it is the larger
            allow_pipes=config.allow_pipes,
            rooms_later=True,
        )

    # -- the run

    def run(self) -> None:
        if self.finished and not self.labels_out:
            self._say(f"already trained: {self.exp}")
            return
        with self._lock() as self.lock, self.stop_signal, distributed.peers(), worker_errors():
            self._start_or_resume()
            if self.state.done:
                self._say(f"already trained: {self.exp}")
            elif self.config.epochs == 0:  # the untrained model, as a system to compare with
                self.state.done = True
                self._save(Means())
            else:
                self._train()
            if self.labels_out and self.main and not self.stopped:
                write_labels(self.labels_out, self.objective, self.corpus.parts[0], self.corpus.classes)
                self._say(f"labels: {self.labels_out}")

    def _start_or_resume(self) -> None:
        saved = (
            self.folder.saved_state()
        )  # read again: another run may have been here before the lock was taken
        if saved is None:
            self._start()
        else:
            self._resume(saved)

    def _start(self) -> None:
        if self.main:
            dev = str(self.dev.data.path) if self.dev else None
            facts = {"num_utterances": len(self.corpus), "precision": self.precision, "dev": dev}
            self.folder.record(self.corpus.classes, facts)
        self._say(
            f"training in {self.exp}: {len(self.corpus)} utterances, {len(self.corpus.classes)} classes, "
            f"{self.sampler.steps} steps x {self.config.epochs} epochs, {self.precision} on {self.device}"
        )
        if self.objective.needs_initial_embeddings and not self.keep_head:
            self._init_from_embeddings()

    def _init_from_embeddings(self) -> None:
        """Embed the training data by the encoder of the start, for objectives that begin with it."""
        encoder = self.objective.encoder.eval()
        embeddings = torch.cat(
            [
                embed_over_ranks(encoder, part, self.device, self.precision, self.config.allow_pipes)
                for part in self.corpus.parts
            ]
        )
        label = torch.from_numpy(self.corpus.label).to(self.device)
        self.objective.init_from_embeddings(embeddings, label)

    def _resume(self, saved: RunState) -> None:
        if not self.built:
            self._build()
        steps, folder = self.sampler.steps, checkpoint.latest(self.exp)
        assert folder is not None  # `saved` was read from it
        saved.check_step(steps, self.config.epochs, folder)
        checkpoint.restore(folder, self.objective, self.optimizers, last=steps * self.config.epochs)
        self.state = saved if self.main else replace(saved, means={})  # rank 0 keeps the sums
        if not saved.done:
            self._say(f"resuming {self.exp} at step {saved.step}")

    def _train(self) -> None:
        if (
            self.augmenter
        ):  # not earlier: before the lock is taken, another run may be writing the rooms' folder
            distributed.barrier()
            self.augmenter.make_rooms()
        model: torch.nn.Module = self.objective
        if distributed.world_size() > 1:
            model = DistributedDataParallel(self.objective, broadcast_buffers=False)
        self._loop(model.train())

    def _loop(self, model) -> None:
        c, state, steps = self.config, self.state, self.sampler.steps
        batches = self._batches()
        log = Log(self.exp, state.step) if self.main else None
        step_log = StepLog(log, c.log_every_steps, c.batch_size, state.step, steps * c.epochs)
        means, epoch_start = Means(state.means), time.perf_counter()
        for batch in step_log.timed(batches):
            if isinstance(batch, Exception):
                raise batch
            result = self._step(model, batch.to(self.device), state.step)
            means.add_all(result.stats)
            state.step += 1
            state.audio_seconds += c.batch_size * result.seconds
            self._check_collapse(result.spread)
            step_log.step(state.step, batch.epoch, result.stats, self._lr())
            if state.step % steps == 0:
                self._end_epoch(log, batch.epoch, means, time.perf_counter() - epoch_start)
                means, epoch_start = Means(), time.perf_counter()
                if state.done:
                    self.stopped = False
                    break
            elif state.step % c.save_every_steps == 0 or self.stopped:
                self._save(means)
            if self.stopped:
                self._say(
                    f"stopped by {self.stop_signal.name} at step {state.step}: the same command goes on from there"
                )
                break
        step_log.close()
        distributed.barrier()

    def _batches(self) -> Iterator[Batch | Exception]:
        """The batches from the next step to the end of the run."""
        return loader(
            Batches(self.corpus, self.views, self.augmenter, self.config.seed),
            self.sampler,
            divmod(self.state.step, self.sampler.steps),
            self.config.epochs,
            distributed.rank(),
            distributed.world_size(),
            self.config.num_workers,
            # A worker must not hold the lock of a parent that was killed.
            self.lock.close if self.lock else lambda: None,
        )

    def _step(self, model, batch: Batch, step: int) -> StepResult:
        c = self.config
        # Everything random inside the model is a function of (seed, step, rank).
        torch.manual_seed(_seed_of(c.seed, step, distributed.rank()))
        self.objective.before_step(step)
        factor = lr_factor(c.optim.lr_schedule, self.objective.epoch_now, c.epochs)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            set_lr(optimizer, c.optim.lr, factor)
        with autocast(self.device, self.precision):
            losses: Losses = model(batch)
            pull = self.objective.pull()
        loss, shown, self.stopped = loss_with_pull(
            losses, pull, self.objective.encoder.normalizes_loss, self.device, bool(self.stop_signal.signal)
        )
        value = shown.item()
        if not math.isfinite(value):
            self._stop(f"the loss is {value} at step {step}", batch)
        loss.backward()
        for optimizer in self.optimizers.values():
            drop_waiting(optimizer, self.objective.epoch_now)
            norm = clip_gradients(optimizer, c.optim.grad_clip_norm, c.optim.clip_per_parameter)
            if not torch.isfinite(norm):
                self._stop(f"the gradient is {norm.item()} at step {step}", batch)
            optimizer.step()
        self.objective.after_step()
        return step_result(value, losses, self.views, len(batch.index))

    def _lr(self) -> float:
        return next(iter(self.optimizers.values())).param_groups[0]["lr"]

    def _end_epoch(self, log: Log | None, epoch: int, means: Means, seconds: float) -> None:
        figures = self.objective.end_epoch(epoch)
        if self.main and (rows := self.objective.rows()):
            checkpoint.save_rows(self.exp / "rows" / f"epoch-{epoch + 1:04d}.safetensors", rows)
        values = Means.values(means.over_ranks())
        dev = self._evaluate(self.dev) if self.dev else {}
        best = self.state.end_epoch(self.config.epochs, dev.get("dev_eer"), self.patience)
        record = {
            **values,
            **figures,
            **{f"drift/{layer}": moved for layer, moved in self.objective.encoder.drift().items()},
            **dev,
            "lr": self._lr(),
            "audio_seconds": self.state.audio_seconds,
            "seconds": seconds,
        }
        if log:  # before the checkpoint: a kill in between repeats the record, never loses it
            log.write("epoch", self.state.step, epoch, record)
        self._save(Means(), best)
        self._say(epoch_line(epoch, self.config.epochs, record))

    def _evaluate(self, dev: DevList) -> dict[str, float]:
        """EER of the dev list, by the teacher and by its student where there are both.

        Every rank computes it, so that all stop after the same epoch.
        """
        modules = {"dev_eer": self.objective.eval_module}
        if self.objective.eval_module != "encoder":
            modules["dev_eer_student"] = "encoder"
        self.objective.eval()
        eers = {
            key: dev.eer(
                self.objective.get_submodule(module), self.device, self.precision, self.config.allow_pipes
            )
            for key, module in modules.items()
        }
        self.objective.train()  # not the module alone: a teacher stays in eval mode
        return eers

    def _check_collapse(self, spread: float | None) -> None:
        if spread is None:
            return
        self.state.collapsed = self.state.collapsed + 1 if spread < COLLAPSED else 0
        if self.state.collapsed >= COLLAPSED_STEPS:
            raise UserError(
                f"collapsed: for {COLLAPSED_STEPS} steps all embeddings of a batch point in one direction",
                file=self.exp,
                hint="lower optim.lr, raise batch_size, or check that the audio is not silence",
            )

    def _stop(self, what: str, batch: Batch) -> NoReturn:
        utts = [self.corpus.utts[i] for i in batch.index.tolist()]
        raise UserError(
            f"{what}; the batch was {' '.join(utts[:64])}",
            file=self.exp,
            hint="listen to these utterances, lower optim.lr, or set precision: fp32",
        )

    def _say(self, text: str) -> None:
        if self.main:
            print(text, flush=True)

    def _lock(self):
        """The lock that lets one run at a time write into `exp`. Rank 0 takes it; the other ranks write nothing."""
        return folder_lock(self.exp) if self.main and not self.finished else nullcontext()

    def _save(self, means: Means, best: bool = False) -> None:
        self.objective.sync()
        self.state.means = means.over_ranks()
        if self.main:
            saved = self.state.to_json()
            checkpoint.save(self.exp, self.state.step, self.objective, self.optimizers, saved, best)
        distributed.barrier()
