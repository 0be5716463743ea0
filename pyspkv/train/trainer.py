"""The training loop: one for every objective, on a CPU, a GPU, or several under torchrun.

A run is a folder: config.yaml (resolved), run.json (command, versions, labels), train.jsonl (one record per log
interval and epoch), tb/ (tensorboard), ckpt-<step>/, LATEST, best. Running the same command again goes on from LATEST
and ends with the same digits as an unbroken run on the same machine: batches, dropout and masks are drawn from
(seed, step), and the checkpoint holds everything else.
"""

import json
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from pyspkv import __version__
from pyspkv.base import checkpoint, distributed, foreign
from pyspkv.base import config as cfg
from pyspkv.base.atomic import atomic_file, folder_lock
from pyspkv.base.device import autocast, choose_precision
from pyspkv.base.errors import UserError
from pyspkv.base.schedules import lr_factor
from pyspkv.batches.augment import Augmenter
from pyspkv.batches.dataset import OF_CORPUS, Batch, Batches, Corpus, loader, worker_errors
from pyspkv.data.datadir import DataDir, check_replaceable
from pyspkv.data.trials import trials_over
from pyspkv.objectives.base import Info, Losses
from pyspkv.score.extract import embed
from pyspkv.train.config import HOW, TrainConfig
from pyspkv.train.log import Log, Means, git_id

COLLAPSED = 0.01  # spread of a batch's unit embeddings below which they all point one way
COLLAPSED_STEPS = 100  # this many such steps in a row stop the run
BROKEN = "remove this run's folder, or use another --exp"


def _seed_of(seed: int, step: int, rank: int) -> int:
    """Of all that is random inside the model in a step; below 2^63, as torch wants it, up to 10^14 steps."""
    return (seed * 1_000_003 + step) * 4_099 + rank


def check_apart(dev: DataDir, data: DataDir, unlabeled: DataDir | None = None) -> None:
    """UserError: the dev list shares speakers with the training data, or utterances with its unlabeled part."""
    theirs = set(unlabeled.utts) if unlabeled else set()
    for what, where, shared in (
        ("speakers", "training", set(dev.spk) & set(data.spk)),
        ("utterances", "--unlabeled", set(dev.utts) & theirs),
    ):
        if shared:
            raise UserError(
                f"dev and {where} share {len(shared)} {what} ({min(shared)}, ...)",
                file=dev.path,
                hint="hold other speakers out as dev",
            )


def _whole(x) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def _number(x) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < math.inf


def _sums(x) -> bool:
    pairs = x.values() if isinstance(x, dict) else [x]
    return all(isinstance(p, list) and len(p) == 2 and {type(v) for v in p} <= {int, float} for p in pairs)


# What a checkpoint's state.json must hold for a run to go on from it, and what it may hold.
NEEDED = {
    "epoch": _whole,
    "step": _whole,
    "done": lambda x: isinstance(x, bool),
    "label_hash": lambda x: isinstance(x, str),
}
OPTIONAL = {
    "audio_seconds": _number,
    "means": _sums,
    "collapsed": _whole,
    "best_eer": lambda x: x is None or _number(x),
    "best_epoch": lambda x: x is None or _whole(x),
    "worse": _whole,
}


def check_state(saved: Any, file: Path) -> None:
    """UserError: a state.json that no training wrote."""
    if not isinstance(saved, dict):
        raise UserError("not a checkpoint's state", file=file, hint=BROKEN)
    for key, good in {**NEEDED, **OPTIONAL}.items():
        if key in saved and not good(saved[key]):
            raise UserError(f"not a checkpoint's state: {key} is {saved[key]!r:.60}", file=file, hint=BROKEN)
        if key in NEEDED and key not in saved:
            raise UserError(f"not a checkpoint's state: '{key}' is missing", file=file, hint=BROKEN)


class Trainer:
    """Train `config` on `data`; see the module for what appears in `exp`.

    An `exp` that is a symbolic link is another run's model and only read: it must be trained to its end, from the same.

    Args:
        unlabeled: second data directory of semi-supervised objectives.
        dev, dev_trials: a declared list of other speakers, scored after every epoch; `best` is its lowest EER.
        init: `DIR[@best|last]` whose encoder weights to start from (heads are new).
        keep_head: start from its heads too, which needs the same utterances and labels (large-margin fine-tuning).
        labels_out: where the data directory with an objective's final labels goes, if it moves them.
        patience: stop after this many epochs in a row with a dev EER above the best; 0 never stops early.
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
        self.config, self.exp, self.dev, self.dev_trials, self.patience = (
            config,
            exp,
            dev,
            dev_trials,
            patience,
        )
        if patience < 0:
            raise UserError(f"--patience {patience} is below 0")
        if dev:
            check_apart(dev, data, unlabeled)
        self.trials = trials_over(dev_trials, dev.utts) if dev else None
        self.is_link = os.path.islink(exp)
        self.device = distributed.init()
        self.main = distributed.rank() == 0
        world = distributed.world()
        if config.batch_size % world:
            raise UserError(f"batch_size {config.batch_size} is not a multiple of {world} processes")
        self.precision = choose_precision(config.precision, self.device)
        self.corpus = Corpus(data, unlabeled, config.allow_pipes, config.cache_mb)
        self.label_hash = self.corpus.label_hash()
        teacher = getattr(config.objective, "teacher", "")
        models = (init, teacher, getattr(config.encoder, "pretrained", ""))
        self.init, self.keep_head, self.labels_out = init, keep_head, labels_out
        self.start = " ".join(checkpoint.digest(model) for model in models if model) or None
        found = self._compare()
        self.finished = found is not None and found["done"]
        if self.is_link and not self.finished:
            raise UserError(
                "is a link to a model that is not trained to its end",
                file=exp,
                hint="train it where it lies, or remove the link to train here",
            )
        self.objective = None
        if not self.finished or labels_out:
            self._build()

    def _build(self) -> None:
        """Sampler, model and optimizers; a run that is finished needs them for the labels that it moved only."""
        config, init, labels_out, data = self.config, self.init, self.labels_out, self.corpus.parts[0]
        columns = {c: getattr(self.corpus, c) for c in OF_CORPUS}
        self.sampler = cfg.build(config.sampler, self.corpus.label, config.batch_size, config.seed, columns)
        torch.manual_seed(config.seed)
        encoder = cfg.build(config.encoder)
        encoder.start()
        if init:
            checkpoint.init_encoder(encoder, init)
        speeds = config.augment.speed_perturb
        info = Info(
            len(self.corpus),
            len(self.corpus.classes),
            self.sampler.steps,
            config.epochs,
            num_speeds=max(1, len(speeds)),
            num_labeled=len(data.utts),
        )
        self.objective = cfg.build(config.objective, encoder, info)
        if self.keep_head:
            checkpoint.init_objective(self.objective, init, self.label_hash)
        self.objective.to(self.device)
        self.views = self.objective.views()
        for name, view in self.views.items():
            if view.samples < encoder.min_samples:
                raise UserError(
                    f"view '{name}' of {view.seconds} s is shorter than {encoder.min_samples} samples, "
                    "the least that the encoder takes",
                    hint="raise crop_seconds",
                )
        self.augmenter = None
        if not self.finished and (speeds or any(v.augment for v in self.views.values())):
            self.augmenter = Augmenter(
                config.augment,
                config.seed,
                cache_dir=self.config.rooms_dir or self.exp / "rooms",
                train=self.corpus.readers[-1],  # the unlabeled part, where there is one: it is the larger
                allow_pipes=config.allow_pipes,
                rooms_later=True,
            )
        self.optimizers = {
            name: self._optimizer(groups) for name, groups in self.objective.optimizers().items()
        }
        self.state = {
            "epoch": 0,
            "step": 0,
            "audio_seconds": 0.0,
            "means": {},
            "collapsed": 0,
            "done": False,
            "best_eer": None,
            "best_epoch": None,
            "worse": 0,  # epochs in a row whose dev EER was above the best one
            "label_hash": self.label_hash,
            "evaluates": self.objective.evaluates,
        }
        if teacher := getattr(config.objective, "teacher", ""):
            theirs = checkpoint.find(teacher).parent / "classes.txt"
            if theirs.is_file() and theirs.read_text(encoding="utf-8").splitlines() != self.corpus.classes:
                raise UserError(
                    f"objective.teacher knows other speakers than {data.path}",
                    file=theirs,
                    hint="train the teacher on the same labeled directory",
                )
        if labels_out:
            if self.objective.labels() is None:
                rule = f"objective {config.objective.name} moves no labels"
                raise UserError(rule, hint="leave --labels-out out")
            for name, given in (("the training data", data), ("the dev list", self.dev)):
                if given and Path(labels_out).resolve() == Path(given.path).resolve():
                    raise UserError(f"is {name} itself", file=labels_out, hint="give another --labels-out")
            check_replaceable(Path(labels_out))

    def _optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        c, split = self.config.optim, []
        for group in groups:
            rest = {k: v for k, v in group.items() if k != "params"}
            for decay, params in (
                (c.weight_decay, [p for p in group["params"] if p.ndim > 1]),
                (0.0, [p for p in group["params"] if p.ndim <= 1]),
            ):
                if params:
                    split.append({"params": params, "weight_decay": decay, **rest})
        if not split:
            raise UserError("nothing here learns: all of the model is frozen", hint="see encoder.freeze")
        if c.name == "sgd":
            return torch.optim.SGD(split, lr=c.lr, momentum=c.momentum)
        kind = torch.optim.Adam if c.name == "adam" else torch.optim.AdamW
        return kind(split, lr=c.lr, fused=True)

    # -- the run

    def run(self) -> None:
        if self.finished and not self.labels_out:
            self._say(f"already trained: {self.exp}")
            return
        with self._lock() as self.lock, distributed.peers(), worker_errors():
            self._start_or_resume()
            if self.state["done"]:
                self._say(f"already trained: {self.exp}")
            elif self.config.epochs == 0:  # the untrained model, as a system to compare with
                self.state["done"] = True
                self._save(Means())
            else:
                if (
                    self.augmenter
                ):  # only now: what they are kept in may be another run's folder until it is locked
                    distributed.barrier()
                    self.augmenter.make_rooms()
                model = self.objective
                if distributed.world() > 1:
                    model = DistributedDataParallel(self.objective, broadcast_buffers=False)
                self._loop(model.train())
            if self.labels_out and self.main:
                self._write_labels()

    def _loop(self, model) -> None:
        from tqdm import tqdm

        c, state, steps = self.config, self.state, self.sampler.steps
        start = divmod(state["step"], steps)
        batches = loader(
            Batches(self.corpus, self.views, self.augmenter, c.seed),
            self.sampler,
            start,
            c.epochs,
            distributed.rank(),
            distributed.world(),
            c.num_workers,
            # A worker must not hold the lock of a parent that was killed.
            self.lock.close if self.lock else lambda: None,
        )
        log = Log(self.exp, state["step"]) if self.main else None
        bar = tqdm(
            total=steps * c.epochs, initial=state["step"], unit="step", disable=None if self.main else True
        )
        epoch_means, recent, waited = Means(state["means"]), Means(), 0.0
        clock = last_log = epoch_start = time.perf_counter()
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            waited += time.perf_counter() - clock
            total, stats = self._step(model, batch.to(self.device), state["step"])
            for name, (value, weight) in stats.items():
                epoch_means.add(name, value, weight)
                recent.add(name, value, weight)
            state["step"] += 1
            state["audio_seconds"] += c.batch_size * self._seconds(stats)
            self._check_collapse(stats)
            bar.update()
            if state["step"] % c.log_every_steps == 0:
                values = Means.values(recent.over_ranks())
                now = time.perf_counter()
                rates = {
                    "utts_per_s": c.log_every_steps * c.batch_size / (now - last_log),
                    "data_wait": waited / (now - last_log),
                }
                recent, waited, last_log = Means(), 0.0, now
                bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
                if log:
                    log.write("step", state, batch.epoch, {**values, "lr": self._lr(), **rates})
            if state["step"] % steps == 0:
                self._end_epoch(log, batch.epoch, epoch_means, time.perf_counter() - epoch_start)
                epoch_means, epoch_start = Means(), time.perf_counter()
                if state["done"]:
                    break
            elif state["step"] % c.save_every_steps == 0:
                self._save(epoch_means)
            clock = time.perf_counter()
        bar.close()
        if log:
            log.close()
        distributed.barrier()

    def _seconds(self, stats: dict) -> float:
        """Audio that the network took, per utterance; a figure under a view's name is the share whose view it was."""
        share = {name: stats[name][0] / stats[name][1] for name in self.views.keys() & stats.keys()}
        return sum(view.seconds * share.get(name, 1.0) for name, view in self.views.items())

    def _step(self, model, batch: Batch, step: int) -> tuple[float, dict[str, tuple[float, float]]]:
        c = self.config
        # All that is random inside the model is a function of (seed, step, rank).
        torch.manual_seed(_seed_of(c.seed, step, distributed.rank()))
        self.objective.before_step(step)
        factor = lr_factor(c.optim.lr_schedule, self.objective.epoch_now, c.epochs)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                if "fixed_lr" not in group:
                    group["lr"] = c.optim.lr * group.get("lr_scale", 1.0) * factor
        with autocast(self.device, self.precision):
            losses: Losses = model(batch)
            losses.terms.update(self.objective.pull())
        names = list(losses.terms)
        weights = distributed.all_sum(torch.stack([losses.terms[n][1].detach().float() for n in names]))
        loss = sum(
            losses.terms[n][0] * (distributed.world() / w if w > 0 else 0.0) for n, w in zip(names, weights)
        )
        value = loss.item()
        if not math.isfinite(value):
            self._stop(f"the loss is {value} at step {step}", batch)
        loss.backward()
        for optimizer in self.optimizers.values():
            params = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            alone = [[p] for p in params] if c.optim.clip_per_parameter else [params]
            norms = [torch.nn.utils.clip_grad_norm_(own, c.optim.grad_clip_norm or math.inf) for own in alone]
            norm = torch.linalg.vector_norm(torch.stack(norms))
            if not torch.isfinite(norm):
                self._stop(f"the gradient is {norm.item()} at step {step}", batch)
            optimizer.step()
        self.objective.after_step()
        stats = {n: (s.item(), w.item()) for n, (s, w) in {**losses.terms, **losses.stats}.items()}
        return value, {"loss": (value, 1.0), **stats}

    def _lr(self) -> float:
        return next(iter(self.optimizers.values())).param_groups[0]["lr"]

    def _end_epoch(self, log: "Log | None", epoch: int, means: Means, seconds: float) -> None:
        c, state = self.config, self.state
        extra = self.objective.end_epoch(epoch)
        if self.main and (rows := self.objective.rows()):
            checkpoint.save_rows(self.exp / "rows" / f"epoch-{epoch + 1:04d}.safetensors", rows)
        values = Means.values(means.over_ranks())
        improved, dev = False, {}
        if self.dev is not None:
            dev = self._evaluate()
            improved = state["best_eer"] is None or dev["dev_eer"] < state["best_eer"]
            if improved:
                state["best_eer"], state["best_epoch"] = dev["dev_eer"], epoch
            state["worse"] = state["worse"] + 1 if dev["dev_eer"] > state["best_eer"] else 0
        patience_over = self.patience and state["worse"] >= self.patience
        state["epoch"], state["done"] = epoch + 1, bool(epoch + 1 == c.epochs or patience_over)
        record = {
            **values,
            **extra,
            **dev,
            "lr": self._lr(),
            "audio_seconds": state["audio_seconds"],
            "seconds": seconds,
        }
        if log:  # before the checkpoint: a kill in between repeats the record, never loses it
            log.write("epoch", state, epoch, record)
        self._save(Means(), improved)
        shown = {k: record[k] for k in ("loss", "accuracy", "kept", "dev_eer") if k in record}
        self._say(
            f"epoch {epoch + 1}/{c.epochs}: "
            + ", ".join(f"{k} {v:.4g}" for k, v in shown.items())
            + f" ({seconds:.0f} s)"
        )

    def _evaluate(self) -> dict[str, float]:
        """EER of the declared dev list, a teacher's and its student's; every rank computes it alike, so that all stop
        together."""
        from pyspkv.score.metrics import eer
        from pyspkv.score.scoring import score_trials

        out, modules = {}, {"dev_eer": self.objective.evaluates}
        if self.objective.evaluates != "encoder":
            modules["dev_eer_student"] = "encoder"
        self.objective.eval()
        for key, module in modules.items():
            model = self.objective.get_submodule(module)
            found = embed(model, self.dev, self.device, self.precision, allow_pipes=self.config.allow_pipes)
            out[key] = float(eer(*score_trials(found, self.trials)))
        self.objective.train()  # not the module alone: a teacher stays in eval mode
        return out

    def _begin(self) -> None:
        """What an objective wants to know of the training data before the first step."""
        encoder = self.objective.encoder.eval()
        parts = [
            embed(encoder, part, self.device, self.precision, allow_pipes=self.config.allow_pipes).x
            for part in self.corpus.parts
        ]
        label = torch.from_numpy(self.corpus.label)
        self.objective.begin(torch.from_numpy(np.concatenate(parts)).to(self.device), label.to(self.device))

    def _write_labels(self) -> None:
        labels = self.objective.labels()
        data = self.corpus.parts[0]
        names = [self.corpus.classes[k] for k in labels[: len(data.utts)].tolist()]
        data.with_speakers(names).write(self.labels_out, own=True)
        self._say(f"labels: {self.labels_out}")

    def _check_collapse(self, stats: dict) -> None:
        if "spread" in stats:
            total, weight = stats["spread"]
            self.state["collapsed"] = self.state["collapsed"] + 1 if total / weight < COLLAPSED else 0
            if self.state["collapsed"] >= COLLAPSED_STEPS:
                raise UserError(
                    f"collapsed: for {COLLAPSED_STEPS} steps all embeddings of a batch point one way",
                    file=self.exp,
                    hint="lower optim.lr, raise batch_size, or check that the audio is not silence",
                )

    def _stop(self, what: str, batch: Batch) -> None:
        utts = [self.corpus.utts[i] for i in batch.index.tolist()]
        raise UserError(
            f"{what}; the batch was {' '.join(utts[:64])}",
            file=self.exp,
            hint="listen to these utterances, lower optim.lr, or set precision: fp32",
        )

    # -- the folder

    def _say(self, text: str) -> None:
        if self.main:
            print(text, flush=True)

    def _lock(self):
        """Only one run writes into `exp`; the others of its processes and a reader of finished models write nothing."""
        return folder_lock(self.exp) if self.main and not self.finished else nullcontext()

    def _save(self, means: Means, best: bool = False) -> None:
        self.objective.sync()
        self.state["means"] = means.over_ranks()
        if self.main:
            checkpoint.save(self.exp, self.state["step"], self.objective, self.optimizers, self.state, best)
        distributed.barrier()

    def _compare(self) -> dict | None:
        """State of the checkpoint that `exp` holds, None where there is none yet. UserError: it is of another run, with
        the first difference."""
        resolved = cfg.dump(self.config)
        folder = checkpoint.latest(self.exp)
        if folder is None:
            return None
        hint = "use another --exp, or remove this one to start again"
        if self.is_link:
            hint = "remove the link to train a model of its own here"
        before = cfg.dump(cfg.load(TrainConfig, self.exp / "config.yaml"))
        differ = [k for k in resolved if resolved[k] != before[k] and k not in HOW]
        if differ:
            k = differ[0]
            raise UserError(
                f"this run was started with another config: {k} was {before[k]}, now {resolved[k]}",
                file=self.exp,
                hint=hint,
            )
        try:
            record = foreign.read_json(self.exp / "run.json", hint=BROKEN)
        except OSError as err:
            rule = f"cannot be read ({err.strerror})"
            raise UserError(rule, file=self.exp / "run.json", hint=BROKEN) from None
        if record.get("start", self.start) != self.start:
            was = record.get("init") or "none"
            raise UserError(
                f"this run was started from another model: {was}, now {self.init or 'none'}",
                file=self.exp,
                hint=hint,
            )
        saved = checkpoint.state(folder)
        check_state(saved, folder / "state.json")
        if saved["done"] and saved["epoch"] < self.config.epochs and saved.get("best_epoch") is None:
            rule = f"not a checkpoint's state: done after {saved['epoch']} of {self.config.epochs} epochs"
            raise UserError(rule, file=folder / "state.json", hint=BROKEN)
        if saved["label_hash"] != self.label_hash:
            raise UserError(
                "this run was started with other utterances or labels",
                file=self.exp,
                hint="use another --exp, or --init this one to start from its encoder with a new head",
            )
        return saved

    def _start_or_resume(self) -> None:
        saved = self._compare()  # again: before the lock was had, another run may have been here
        if saved is None:
            if self.main:
                self._record()
            self._say(
                f"training in {self.exp}: {len(self.corpus)} utterances, {len(self.corpus.classes)} classes, "
                f"{self.sampler.steps} steps x {self.config.epochs} epochs, {self.precision} on {self.device}"
            )
            if self.objective.wants_embeddings and not self.keep_head:
                self._begin()
            return
        if self.objective is None:
            self._build()
        steps, epoch, step = self.sampler.steps, saved["epoch"], saved["step"]
        whole = step == epoch * steps if saved["done"] else step // steps == epoch < self.config.epochs
        if not whole:
            raise UserError(
                f"not a checkpoint's state: no step {step} after {epoch} epochs of {steps} steps",
                file=checkpoint.latest(self.exp) / "state.json",
                hint=BROKEN,
            )
        last, folder = steps * self.config.epochs, checkpoint.latest(self.exp)
        saved = checkpoint.restore(folder, self.objective, self.optimizers, last=last)
        kept = self.state.keys() - (set() if self.main else {"means"})  # rank 0 carries the sums on
        self.state.update({k: saved[k] for k in kept & saved.keys()})
        if not self.state["done"]:
            self._say(f"resuming {self.exp} at step {self.state['step']}")

    def _record(self) -> None:
        with atomic_file(self.exp / "config.yaml") as f:
            f.write(cfg.to_yaml(self.config))
        with atomic_file(self.exp / "run.json") as f:
            json.dump(
                {
                    "command": sys.argv,
                    "git": git_id(),
                    "pyspkv": __version__,
                    "torch": torch.__version__,
                    "python": sys.version.split()[0],
                    "precision": self.precision,
                    "world": distributed.world(),
                    "threads": torch.get_num_threads(),
                    "num_classes": len(self.corpus.classes),
                    "num_utterances": len(self.corpus),
                    "label_hash": self.state["label_hash"],
                    "init": self.init,
                    "start": self.start,
                    "dev": str(self.dev.path) if self.dev else None,
                },
                f,
                indent=1,
            )
        with atomic_file(self.exp / "classes.txt") as f:
            f.writelines(f"{name}\n" for name in self.corpus.classes)
