"""Processes that prepare batches: however one ends, training soon ends with one clear error."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.utils.tensorboard  # noqa: F401  first: a worker's death may interrupt the import, and leave half of it
import toy
from test_trainer import ENV, config, train_command

from pyspkv.base.errors import UserError
from pyspkv.batches import dataset
from pyspkv.batches.dataset import Batches
from pyspkv.train.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


def train(tmp_path, data, monkeypatch, then, workers=1):
    """Train, calling `then(batch)` in the worker on each batch from the fourth on."""
    made = Batches.batch

    def batch(self, epoch, step, rows):
        out = made(self, epoch, step, rows)
        return then(out) if step >= 3 else out

    monkeypatch.setattr(Batches, "batch", batch)
    c = config(tmp_path, num_workers=workers, **{"augment.rir_bank": 0})
    Trainer(c, data, tmp_path / "exp").run()


def die(how):
    def then(batch):
        if isinstance(how, signal.Signals):
            signal.signal(how, signal.SIG_DFL) if how != signal.SIGKILL else None
            os.kill(os.getpid(), how)
            time.sleep(60)
        os._exit(how)

    return then


@pytest.mark.parametrize(("how", "words"), [
    (signal.SIGKILL, "was killed: out of memory"),
    (signal.SIGTERM, "was killed"),
    (signal.SIGBUS, "is /dev/shm full"),
    (3, "ended unexpectedly"),
])  # fmt: skip
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_ends_the_training(tmp_path, data, monkeypatch, how, words, workers):
    start = time.monotonic()
    with pytest.raises(UserError, match=f"a process that prepares batches .*{words}") as err:
        train(tmp_path, data, monkeypatch, die(how), workers)
    assert "num_workers=0" in str(err.value) and time.monotonic() - start < 30


def fail(err):
    def then(batch):
        raise err

    return then


@pytest.mark.parametrize(("err", "words"), [
    (UserError("too short", file="a", line=3, hint="cut it"), r"^a:3: too short\n  hint: cut it$"),
    (MemoryError(), "not enough memory to prepare a batch"),
])  # fmt: skip
def test_an_error_in_a_worker_is_the_users_error(tmp_path, data, monkeypatch, err, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path, data, monkeypatch, fail(err))


@pytest.mark.parametrize(("why", "words"), [
    ("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)", "/dev/shm is full"),
    ("unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)", "ulimit"),
])  # fmt: skip
def test_a_full_dev_shm_is_reported(tmp_path, data, monkeypatch, why, words):
    monkeypatch.setattr(torch.Tensor, "share_memory_", lambda x: fail(RuntimeError(why))(x))
    with pytest.raises(UserError, match=words):
        train(tmp_path, data, monkeypatch, lambda batch: batch)


class Unsendable:
    def __reduce__(self):
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_batch_that_cannot_be_sent_does_not_hang(tmp_path, data, monkeypatch):
    def then(batch):
        batch.step = Unsendable()
        return batch

    with pytest.raises(UserError, match="too many open files"):
        train(tmp_path, data, monkeypatch, then)


@pytest.mark.parametrize(("code", "words"), [
    (errno.ENOSPC, "/dev/shm is full"), (errno.EROFS, "/dev/shm cannot be written"), (errno.EMFILE, "ulimit"),
    (errno.EAGAIN, "cannot start a process"),
])  # fmt: skip
def test_workers_that_cannot_start_are_reported(tmp_path, data, monkeypatch, code, words):
    def queue():
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(dataset.multiprocessing, "Queue", queue)
    with pytest.raises(UserError, match=words):
        train(tmp_path, data, monkeypatch, lambda batch: batch)


def small_shm(size):
    return ["unshare", "-m", "--propagation", "private", "bash", "-c",
            f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "_"]  # fmt: skip


@pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run([*small_shm("64k"), "true"], capture_output=True).returncode != 0,
    reason="no mount of one's own is allowed here",
)
@pytest.mark.parametrize("size", ["16k", "256k"])
def test_a_small_dev_shm_is_reported(tmp_path, data, size):
    config(tmp_path)
    command = train_command(
        tmp_path, data, tmp_path / "exp", "--set", "num_workers=1", "objective.augment=false"
    )
    done = subprocess.run([*small_shm(size), *command], env=ENV, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    lines = [
        line for line in done.stderr.splitlines() if not line.startswith("warning: ")
    ]  # for a short training
    assert len(lines) == 2 and lines[0] == f"error: /dev/shm is full ({size[:-1]} KB)"
    assert lines[1].startswith("  hint: set num_workers=0")


def test_a_long_temporary_folder_works(tmp_path, data):
    """The path of a socket in this folder is longer than a socket's path may be."""
    temp = tmp_path / ("long" * 20)
    temp.mkdir()
    config(tmp_path)
    command = train_command(tmp_path, data, tmp_path / "exp", "--set", "num_workers=1", "epochs=1")
    done = subprocess.run(
        command, env={**ENV, "TMPDIR": str(temp)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def children(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_of_a_killed_training_end_with_it_and_free_the_folder(tmp_path, data):
    from pyspkv.base.atomic import folder_lock

    config(tmp_path)
    command = train_command(
        tmp_path, data, tmp_path / "exp", "--set", "num_workers=2", "epochs=500", "augment.rir_bank=0"
    )
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "exp/LATEST").exists():
        assert process.poll() is None
        time.sleep(0.02)
    workers = children(process.pid)
    assert len(workers) == 2 and sys.platform == "linux"
    process.kill()
    process.wait()
    end = time.monotonic() + 3
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(alive, workers))
    with folder_lock(tmp_path / "exp"):
        pass
