"""From rows to batches: crops and augmentations of the views that an objective asks for.

Everything random about a batch is a function of (seed, epoch, step, row), whatever the number of processes or
workers, so a run that was killed goes on with the same samples.
"""

import errno
import hashlib
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyspkv.audio.reader import SAMPLE_RATE, AudioReader
from pyspkv.base.errors import UserError
from pyspkv.base.processes import STOP_SIGNALS, end_with_parent
from pyspkv.batches.augment import Augmenter, Profile, change_speed, source_length
from pyspkv.batches.sampler import Sampler, rank_slice
from pyspkv.data.datadir import DataDir

LABELED, UNLABELED = 0, 1
ROW_COLUMNS = (
    "source",
    "label",
    "group",
    "device",
)  # columns of a batch that the corpus holds, one entry per row
COLUMNS = ("index", *ROW_COLUMNS, "speed")


@dataclass
class View:
    """One input that an objective needs from each utterance.

    Args:
        seconds: crop length; shorter utterances are repeated.
        augment: noise and reverberation on, drawn anew.
        share_augment: name of an earlier view whose drawn augmentation this one uses too.
        share_crop: name of an earlier view whose crop start it uses.
        apart_from: name of an earlier view that this crop must not overlap (as far as the length allows).
    """

    seconds: float
    augment: bool = False
    share_augment: str | None = None
    share_crop: str | None = None
    apart_from: str | None = None

    @property
    def samples(self) -> int:
        return round(self.seconds * SAMPLE_RATE)


def check_views(views: dict[str, View], min_samples: int) -> None:
    """Raise a UserError if a view is shorter than the shortest input of the encoder."""
    for name, view in views.items():
        if view.samples < min_samples:
            raise UserError(
                f"view '{name}' of {view.seconds} s is shorter than {min_samples} samples, "
                "the shortest input of the encoder",
                hint="raise crop_seconds",
            )


@dataclass
class Batch:
    """B utterances. `views` maps a view's name to (wave float32 [B, T], lengths int64 [B])."""

    epoch: int
    step: int  # within the epoch
    index: Tensor  # int64 [B], row of the corpus
    source: Tensor  # int64 [B], LABELED or UNLABELED
    label: Tensor  # int64 [B]
    group: Tensor  # int64 [B], dialogue; without utt2dialogue the speaker
    device: Tensor  # int64 [B], the dialogue's device; without dialogue2device the dialogue
    speed: Tensor  # int64 [B], place in augment.speed_perturb; 0 without them
    views: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        def move(x: Tensor) -> Tensor:
            if device.type != "cuda":
                return x.to(device)
            return x.pin_memory().to(device, non_blocking=True)  # a copy from other memory would wait

        columns: dict[str, Any] = {c: move(getattr(self, c)) for c in COLUMNS}
        views = {name: (move(wave), move(lengths)) for name, (wave, lengths) in self.views.items()}
        return replace(self, **columns, views=views)


def _name_codes(names: list) -> np.ndarray:
    """The place of each name among the sorted different names, int64 [N]."""
    number = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.fromiter((number[name] for name in names), np.int64, len(names))


def dialogues_of(data: DataDir) -> tuple[list[tuple], list[tuple]]:
    """(dialogue, device) of each utterance, as names told apart from one another by what they name.

    Without utt2dialogue a speaker is one dialogue with a device of its own, without dialogue2device a dialogue is.
    """
    dialogue = data.utt_tables.get("utt2dialogue")
    if dialogue is None:
        name = {spk: ("speaker", spk) for spk in data.spk}  # one object each, not one an utterance
        speakers = [name[spk] for spk in data.spk]
        return speakers, speakers
    name = {d: ("dialogue", d) for d in dialogue.values()}
    groups = [name[dialogue[utt]] for utt in data.utts]
    if data.dialogue2device is None:
        return groups, groups
    name = {d: ("device", device) for d, device in data.dialogue2device.items()}
    return groups, [name[dialogue[utt]] for utt in data.utts]


class TrainingRows:
    """The rows that a run trains on: a data directory and, for semi-supervised runs, an unlabeled one behind it.

    Attributes: utts list [N]; label int64 [N] into `classes` (the first directory's speakers, C order);
    source, group (dialogue), device int64 [N], see `dialogues_of`. An unlabeled row whose "speaker" is none of the
    classes has label -1.
    """

    def __init__(
        self, data: DataDir, unlabeled: DataDir | None = None, allow_pipes=False, cache_mb: float = 0
    ):
        self.parts = [data] + ([unlabeled] if unlabeled else [])
        self.classes = sorted(set(data.spk))
        number = {spk: i for i, spk in enumerate(self.classes)}
        self.utts = [utt for d in self.parts for utt in d.utts]
        self.label = np.array([number.get(spk, -1) for d in self.parts for spk in d.spk], np.int64)
        self.source = np.repeat([LABELED, UNLABELED][: len(self.parts)], [len(d.utts) for d in self.parts])
        groups, devices = zip(*map(dialogues_of, self.parts))
        self.group, self.device = (
            _name_codes([name for part in side for name in part]) for side in (groups, devices)
        )
        share = cache_mb / len(self.parts)
        self.readers = [AudioReader(d, allow_pipes, share) for d in self.parts]
        self._loaded = False

    def preload(self) -> None:
        """Read as much audio as `cache_mb` holds, once. Nothing else in this class opens audio."""
        if not self._loaded:
            for reader in self.readers:
                reader.preload()
        self._loaded = True

    def __len__(self) -> int:
        return len(self.utts)

    def reader(self, row: int) -> tuple[AudioReader, int]:
        first = len(self.parts[0].utts)
        return (self.readers[0], row) if row < first else (self.readers[1], row - first)

    def label_hash(self) -> str:
        named = any("utt2dialogue" in d.utt_tables for d in self.parts)
        return "+".join(
            [d.label_hash() for d in self.parts]
            + ([hashlib.sha256(np.stack([self.group, self.device]).tobytes()).hexdigest()] if named else [])
        )


def draw_crop_start(
    length: int, num: int, rng: np.random.Generator, other: tuple[int, int] | None, pair: int = 0
) -> int:
    """Start of a crop of `num` samples in `length`.

    With `other` = (start, samples) of a crop to keep apart from: uniform over what is left on both sides, or flush
    with the end farther from it where nothing is. `pair` > 0: leave room for such a partner on one side.
    """
    slack = length - num
    if slack <= 0:
        return 0
    if other is not None:
        left, right = other[0] - num, length - (other[0] + other[1]) - num
        if left < 0 and right < 0:
            return 0 if left > right else slack
        at = int(rng.integers(max(left + 1, 0) + max(right + 1, 0)))
        return at if at <= left else other[0] + other[1] + at - max(left + 1, 0)
    if pair and length >= num + pair:  # anywhere that leaves `pair` samples before or after
        at = int(rng.integers(2 * (length - num - pair) + 2))
        room = length - num - pair + 1
        return at if at < room else slack - (at - room)
    return int(rng.integers(slack + 1))


class Batches(torch.utils.data.Dataset):
    """Item (epoch, step, rows) -> Batch, or the error that kept it from being made: raised in a worker, it would come
    with a traceback. One worker makes a whole batch. The audio cache is filled here, before workers are forked."""

    def __init__(self, corpus: TrainingRows, views: dict[str, View], augmenter: Augmenter | None, seed: int):
        corpus.preload()
        self.corpus, self.views, self.augmenter, self.seed = corpus, views, augmenter, seed
        self.partner = {v.apart_from: v.samples for v in views.values() if v.apart_from}

    def __getitem__(self, item: tuple[int, int, np.ndarray]) -> Batch | Exception:
        try:
            batch = self.batch(*item)
            return batch if torch.utils.data.get_worker_info() is None else _shared(batch)
        except (UserError, OSError) as err:
            return err
        except MemoryError:
            return UserError("not enough memory to prepare a batch", hint=SMALLER)

    def batch(self, epoch: int, step: int, rows: np.ndarray) -> Batch:
        waves = {name: np.empty((len(rows), v.samples), np.float32) for name, v in self.views.items()}
        profiles: dict[str, list[Profile]] = {name: [] for name in self.views}
        speed = np.zeros(len(rows), np.int64)
        for i, row in enumerate(rows):
            rng = np.random.default_rng((self.seed, epoch, step, int(row)))
            if self.augmenter is not None:
                speed[i] = self.augmenter.draw_speed(rng)
            for name, (wave, profile) in self.crops(int(row), rng, int(speed[i])).items():
                waves[name][i] = wave
                profiles[name].append(profile)
        if self.augmenter is not None:
            for name, wave in waves.items():
                self.augmenter.apply_to_batch(wave, profiles[name])
        index = torch.as_tensor(rows)
        views = {
            name: (torch.from_numpy(wave), torch.full((len(rows),), wave.shape[1]))
            for name, wave in waves.items()
        }
        columns = {c: torch.from_numpy(getattr(self.corpus, c))[index] for c in ROW_COLUMNS}
        return Batch(epoch, step, index=index, **columns, speed=torch.from_numpy(speed), views=views)

    def crops(self, row: int, rng: np.random.Generator, speed: int) -> dict[str, tuple[np.ndarray, Profile]]:
        """Of each view the crop float32 [T], its speed changed already, and the augmentation drawn for it."""
        reader, row = self.corpus.reader(row)
        speeds = self.augmenter.config.speed_perturb if self.augmenter is not None else ()
        plain = Profile(speeds[speed]) if speeds else Profile()
        length = reader.num_samples(row)
        # Of each view: (start, samples), augmentation, wave.
        taken: dict[str, tuple[int, int]] = {}
        profiles: dict[str, Profile] = {}
        out: dict[str, tuple[np.ndarray, Profile]] = {}
        for name, view in self.views.items():
            profile = plain
            if view.augment and self.augmenter is not None:
                profile = (
                    profiles[view.share_augment]
                    if view.share_augment
                    else self.augmenter.draw(rng, plain.speed)
                )
                profiles[name] = profile
            num = source_length(view.samples, profile)  # another number where the speed changes
            if view.share_crop:
                start = min(taken[view.share_crop][0], max(0, length - num))
            else:
                pair = source_length(self.partner[name], plain) if name in self.partner else 0
                start = draw_crop_start(length, num, rng, taken.get(view.apart_from or ""), pair)
            taken[name] = (start, num)
            wave = reader.read(row, start, min(num, length - start), back=True)
            if len(wave) < num:
                wave = np.resize(wave, num)
            out[name] = change_speed(wave, profile.speed, view.samples), profile
        return out


SMALLER = "lower batch_size or cache_mb, or set num_workers=0"
MORE_SHM = "set num_workers=0, or give the container more shared memory (--shm-size)"
UNSENT = 75  # exit code of a worker that could not hand its batch over


def _shm_full(what: str = "is full") -> UserError:
    try:
        stat = os.statvfs("/dev/shm")
        size = stat.f_blocks * stat.f_frsize // 1024
        text = f" ({size} KB)" if size < 10_000 else f" ({size // 1024} MB)"
    except OSError:
        text = ""
    return UserError(f"/dev/shm {what}{text}", hint=MORE_SHM)


def _too_many_files() -> UserError:
    return UserError(
        "too many open files to pass batches between processes",
        hint="raise the limit on open files (ulimit), or set num_workers=0",
    )


def _shared(batch: Batch) -> Batch:
    """The batch with its tensors moved to shared memory, as they are sent. Left to torch, that happens in a thread
    whose failure nobody hears of: the training would wait for ever."""
    waves = [x for pair in batch.views.values() for x in pair]
    try:
        for x in [getattr(batch, c) for c in COLUMNS] + waves:
            x.share_memory_()
    except RuntimeError as err:
        raise (_too_many_files() if "Too many open files" in str(err) else _shm_full()) from None
    return batch


def _start_worker(on_fork: Callable[[], None]) -> None:
    end_with_parent()
    for number in STOP_SIGNALS:  # sent to the whole job: the training still needs batches for its last step
        signal.signal(number, signal.SIG_IGN)
    on_fork()
    # Batches are handed over by a socket in the temporary folder, and a socket's path has at most 107 bytes.
    if len(os.fsencode(tempfile.gettempdir())) > 107 - len("/pymp-12345678/listener-12345678"):
        tempfile.tempdir = "/tmp"
    # What is left of sending is done by threads, and can fail too (descriptors): end, which the training notices.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined] # not in the stubs
        lambda err, item: os._exit(UNSENT)
    )
    sys.excepthook = lambda *_: os._exit(UNSENT)


def _why(err: Exception, workers: Sequence = ()) -> UserError | None:
    """What an error means that comes of a worker's death; None for any other. `workers`: it was met while receiving
    from these, where no file is read."""
    for worker in workers:
        worker.join(0.1)  # an exit code may come later than the error
    text, codes = str(err), [worker.exitcode for worker in workers]
    no_descriptors = getattr(err, "errno", None) in (errno.EMFILE, errno.ENFILE) or UNSENT in codes
    if no_descriptors or any(
        words in text for words in ("ancdata", "Too many open files", f"exit code {UNSENT}")
    ):
        return _too_many_files()
    if not text.startswith("DataLoader worker") and not (workers and isinstance(err, OSError | EOFError)):
        return None
    killed = "killed by signal" in text or any(code and code < 0 for code in codes)
    what = "a process that prepares batches " + ("was killed" if killed else "ended unexpectedly")
    if "Bus error" in text or -signal.SIGBUS in codes:
        return UserError(f"{what}: is /dev/shm full?", hint=MORE_SHM)
    return UserError(f"{what}: out of memory?", hint=SMALLER)


def _end_workers() -> None:
    """End all workers, so that none raises torch's error once more in a place where nobody expects it."""
    for _ in range(1000):
        try:
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join(1)
            return
        except RuntimeError:  # the handler of this death, or of one before
            continue


@contextmanager
def worker_errors():
    """UserError in place of what torch raises, at any moment, when a process that prepares batches has died."""
    before = sys.unraisablehook

    def hook(
        met,
    ) -> None:  # it came while Python tidied up, where nobody can catch it; `_received` notices too
        if not str(met.exc_value).startswith("DataLoader worker"):
            before(met)

    sys.unraisablehook = hook
    try:
        yield
    except BaseException as err:
        _end_workers()  # Python would ask them by SIGTERM, which they ignore, and wait for ever
        if isinstance(err, Exception) and (why := _why(err)):
            raise why from None
        raise
    finally:
        sys.unraisablehook = before


def _received(batches: Iterator, workers: list) -> Iterator[Batch | Exception]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as err:
            if why := _why(err, workers):
                raise why from None
            raise
        yield batch


def loader(
    dataset: Batches,
    sampler: Sampler,
    start: tuple[int, int],
    epochs: int,
    rank: int,
    world: int,
    workers: int,
    on_fork: Callable[[], None],
) -> Iterator[Batch | Exception]:
    """Batches from (epoch, step) `start` to the end of the run, for this rank, made ahead by `workers` processes, which
    call `on_fork` first. Iterate within `worker_errors()`."""

    class Items:
        def __iter__(self) -> Iterator:
            for epoch in range(start[0], epochs):
                rows = sampler.epoch(epoch)
                for step in range(start[1] if epoch == start[0] else 0, len(rows)):
                    yield epoch, step, rank_slice(rows[step], rank, world)

        def __len__(self) -> int:
            return sampler.steps * (epochs - start[0]) - start[1]

    data = torch.utils.data.DataLoader(
        dataset, batch_size=None, sampler=Items(), num_workers=workers, prefetch_factor=4 if workers else None,
        worker_init_fn=lambda _: _start_worker(on_fork),
        multiprocessing_context="fork" if workers else None,  # they share the audio in memory
    )  # fmt: skip
    try:
        # Queues as torch is about to make, which takes a failure there without grace: their locks lie in /dev/shm.
        queues: list[multiprocessing.queues.Queue] = [
            multiprocessing.Queue() for _ in range(workers + 3 if workers else 0)
        ]
        for queue in queues:
            queue.close()
        before = set(multiprocessing.active_children())
        batches = iter(data)
        return _received(batches, list(set(multiprocessing.active_children()) - before))
    except OSError as err:
        if err.errno in (errno.EMFILE, errno.ENFILE):
            raise _too_many_files() from None
        if err.errno == errno.ENOSPC:
            raise _shm_full() from None
        if err.errno in (errno.EROFS, errno.EACCES, errno.ENOENT, errno.ENOSYS):
            raise _shm_full("cannot be written") from None
        raise UserError(f"cannot start a process to prepare batches ({err.strerror})", hint=SMALLER) from None
