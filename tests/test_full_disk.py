"""The disk is full at any byte, in every entry point that writes: one error names the file, and nothing is
lost.

A limit on the size of a file (RLIMIT_FSIZE) stands for the full disk: it fails in the middle of a write, too.
Where this process may mount one, a small tmpfs is filled as well.
"""

import importlib
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import toy

from pyspkv.base import errors
from pyspkv.bin import train
from pyspkv.data.datadir import DataDir

ROOT = Path(__file__).parents[1]
CONF = ROOT / "tests/conf"
# limits in bytes: within a lock, a table, a record, an ark, a checkpoint
LIMITS = [0, 40, 400, 1500, 8000, 60_000]
TRAIN = ["--config", str(CONF / "encoder.yaml"), str(CONF / "round.yaml")]
SETTINGS = ["--set", "epochs=1", "batch_size=8", "save_every_steps=1", "augment.rir_bank=0", "num_workers=0"]
LITTER = re.compile(r"\.(tmp|old)$|^\.(embedding|part|made_by)|^\.ckpt")
LOOSE = re.compile(
    r"\.lock|/tb/|train\.jsonl$|run\.json$|\.png$|RESULTS\.|report\.json$|made_by$"
)  # files that contain times


def call(module: str, args: list, limit: int | None = None, fatal: int | None = None) -> tuple[int, str]:
    """Run an entry point in a fork of this process, which has loaded torch; returns exit code and stderr."""
    main = importlib.import_module(module).main
    into, out = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        with suppress(BaseException):
            os.dup2(out, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            sys.argv = [module, *map(str, args)]
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                errors.run(main)
            except SystemExit as end:
                code = end.code or 0
                sys.stderr.flush()
        os._exit(code)
    os.close(out)
    with open(into, errors="replace") as f:
        said = f.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def done(module: str, args: list) -> None:
    code, said = call(module, args)
    assert code == 0, said


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An experiment after its first training, embeddings, scores and a second training that died after one step."""
    root = tmp_path_factory.mktemp("world")
    data = toy.make(root, speakers=4, utts=4, seconds=0.6)
    lists = root / "data"
    toy.trials(lists, data)
    data.subset(data.utts[:8]).write(root / "half1")
    data.subset(data.utts[8:]).write(root / "half2")
    shutil.copytree(lists, root / "broken")
    (root / "broken/spk2utt").unlink()
    exp = root / "exp"
    done("pyspkv.bin.train", [*TRAIN, "--data", lists, "--exp", exp / "pretrain/model", *SETTINGS])
    done("pyspkv.bin.extract", ["--model", exp / "pretrain/model", "--data", lists])
    cluster = [
        "--embeddings",
        exp / "pretrain/embed/data/embedding.scp",
        "--data",
        lists,
        "--num-clusters",
        4,
    ]
    done("pyspkv.bin.cluster", [*cluster, "--out-data", exp / "round1/data"])
    evaluate = ["--systems", exp / "pretrain", "--data", lists, "--name", "data"]
    done("pyspkv.bin.evaluate", evaluate)
    done("pyspkv.bin.report", ["--exp", exp, "--name", "data"])
    words = [*TRAIN, "--data", str(lists), "--exp", str(exp / "second"), *SETTINGS, "seed=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *words])
        from pyspkv.train.trainer import Trainer

        step = Trainer._step

        def dies(self, model, batch, number):
            if number == 1:
                raise toy.Killed
            return step(self, model, batch, number)

        patch.setattr(Trainer, "_step", dies)
        with pytest.raises(toy.Killed):
            train.main()
    return root


D, E = "{root}/data", "{here}/exp"
SCP = E + "/pretrain/embed/data/embedding.scp"
ROOMS = ["augment.rir_bank=2", f"rooms_dir={E}/rooms"]
WRITERS = {
    "train": ("train", [*TRAIN, "--data", D, "--exp", E + "/new", *SETTINGS, "seed=2"]),
    "train, rooms": ("train", [*TRAIN, "--data", D, "--exp", E + "/rooms/m", *SETTINGS, *ROOMS]),
    "train, resumed": ("train", [*TRAIN, "--data", D, "--exp", E + "/second", *SETTINGS, "seed=1"]),
    "extract": ("extract", ["--model", E + "/pretrain/model", "--data", D, "--out", E + "/embed"]),
    "extract, other model": (
        "extract", ["--model", "{here}/other", "--data", D, "--out", E + "/pretrain/embed/data"]),
    "extract, a part": ("extract", ["--model", E + "/pretrain/model", "--data", "{root}/half1", "--part", "1/1"]),
    "cluster": ("cluster", ["--embeddings", E + "/pretrain/embed/data/embedding.scp", "--data", D,
                            "--num-clusters", 5, "--previous", E + "/round1/data", "--out-data", E + "/round2/data"]),
    "evaluate": ("evaluate", ["--systems", E + "/pretrain", "--data", D, "--name", "data", "--cohort-data", D,
                               "--cohort-set", "data", "--top-n", 4]),
    "score": ("score", ["--enrol", SCP, "--test", SCP, "--trials", D + "/trials",
                        "--out", E + "/pretrain/score/data.scores"]),
    "metrics": ("metrics", ["--scores", E + "/pretrain/score/data.scores", "--trials", D + "/trials",
                            "--plots", E + "/det"]),
    "calibrate": ("calibrate", ["--scores", E + "/pretrain/score/data.scores", "--trials", D + "/trials",
                                "--out", E + "/calibration.json"]),
    "report": ("report", ["--exp", E, "--name", "data", "--truth", D + "/utt2spk"]),
    "copy": ("datadir", ["copy", D, "{here}/copy"]),
    "subset": ("datadir", ["subset", "--first", D, 5, "{here}/half1"]),
    "combine": ("datadir", ["combine", "{here}/both", "{root}/half1", "{root}/half2"]),
    "split": ("datadir", ["split", "{here}/half1", 2]),
    "fix": ("datadir", ["fix", "{here}/broken"]),
}  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def place(world: Path, here: Path) -> Path:
    """A copy of everything that is written to; no file in it contains its path."""
    shutil.rmtree(here, ignore_errors=True)
    for name in ("exp", "half1", "broken"):
        shutil.copytree(world / name, here / name)
    shutil.copytree(world / "exp/second", here / "other")
    (here / "exp/pretrain/score/made_by").unlink()  # so that the scores must be made again
    return here


SLOW = ("train, rooms", "cluster", "metrics", "report")  # seconds per call


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in WRITERS])
def test_a_full_disk(world, tmp_path, request, name):
    """For each limit: an error of one or two lines that names one of our files, or success.

    Then the work can be resumed.
    """
    module, words = WRITERS[name]
    here = tmp_path / "here"
    args = [str(w).replace("{root}", str(world)).replace("{here}", str(here)) for w in words]
    before = tree(place(world, here))
    done(f"pyspkv.bin.{module}", args)
    want, failed = tree(here), 0
    for limit in LIMITS if request.config.getoption("--slow") else LIMITS[:4:2]:
        place(world, here)
        code, said = call(f"pyspkv.bin.{module}", args, limit)
        assert code in (0, 1) and "Traceback" not in said, said
        if code == 0:
            continue
        failed += 1
        last = said.strip().splitlines()
        errs = [line for line in last if line.startswith("error: ")]
        assert len(errs) == 1, said
        assert str(here) in errs[0] and re.search(
            "File too large|No space|full|cannot be written", errs[0]
        ), said
        now = tree(here)
        lost = [
            f
            for f, raw in before.items()
            if now.get(f) not in (raw, want.get(f)) and not LOOSE.search(f"/{f}")
        ]
        assert not lost, (limit, lost)
        assert not [f for f in now if LITTER.search(Path(f).name)], (limit, sorted(set(now) - set(want)))
        done(f"pyspkv.bin.{module}", args)
        now = tree(here)
        assert set(now) - {f for f in now if "/tb/" in f} == set(want) - {f for f in want if "/tb/" in f}
        assert [f for f in want if now.get(f) != want[f] and not LOOSE.search(f"/{f}")] == []
    assert failed >= 1


@pytest.mark.parametrize("limit", [0, 400])
def test_a_full_disk_while_a_corpus_is_made(tmp_path, limit):
    """Stage 1 of egs/mini, whose recordings are written by a pool of processes."""
    few = [f"--num-{name}-spk=4" for name in ("train", "dev", "test")]
    words = [sys.executable, "local/mini.py", tmp_path / "m", *few, "--sessions=2", "--utts-per-session=2"]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(rf"^error: {tmp_path}/m/.*: File too large$", done.stderr, re.M), done.stderr


def test_a_full_tmpfs(world, tmp_path):
    """The same with a tmpfs of 48 KB: data directories, embeddings and a training."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "none", disk], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        for number, (module, words) in enumerate([
            ("train", [*TRAIN, "--data", world / "data", "--exp", disk / "model", *SETTINGS]),
            ("extract", ["--model", world / "exp/pretrain/model", "--data", world / "data", "--out", disk / "e"]),
            ("datadir", ["copy", world / "data", disk / "copy"]),
        ]):  # fmt: skip
            if number:  # leave only a few KB
                with suppress(OSError), open(disk / "filler", "wb") as f:
                    while True:
                        f.write(bytes(512))
                        f.flush()
            code, said = call(f"pyspkv.bin.{module}", words)
            assert code == 1 and "Traceback" not in said, said
            assert re.search(
                rf"^error: {disk}/\S+ .*No space left|^error: {disk}/.*No space left", said, re.M
            ), said
            assert not [p for p in disk.rglob("*") if LITTER.search(p.name)]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert DataDir.read(world / "data").utts
