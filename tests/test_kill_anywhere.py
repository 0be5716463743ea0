"""A small recipe killed at random moments and resumed: same bytes as an unbroken run, and no temporary files.

`--slow` runs 20 of them, each killed ten times, and prints what was killed where (pytest -s).
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
import toy

ROOT = Path(__file__).resolve().parent.parent
RUN = [str(ROOT / "egs/mini/ssl/run.sh"), "--conf", str(ROOT / "tests/conf"), "--num-clusters", "10"]
RUN += ["--num-train-spk", "8", "--num-dev-spk", "4", "--num-test-spk", "4"]
RUN += ["--mini-opts", "--sessions 2 --utts-per-session 3 --eval-utts-per-session 3"]
GROUP, ALONE = True, False
WAYS = [(signal.SIGKILL, GROUP), (signal.SIGTERM, GROUP), (signal.SIGINT, GROUP), (signal.SIGTERM, ALONE)]
STAGE = re.compile(r"^== stage (\d)", re.M)
# Files that may differ between two runs or remain after one: times, locks (the kernel frees them).
LOOSE = re.compile(r"/\.lock[^/]*$|\.log$|/log/|/tb/|/train\.jsonl$")
SAME = re.compile(
    r"results\.json$|/utt2\w+$|wav\.scp$|\.scores$|/score/.*\.json$|\.ark$|model\.safetensors$|\.flac$"
)


class Recipe:
    """One experiment in `folder`; all its processes carry a mark in their environment."""

    def __init__(self, folder: Path, *options: str, command: list[str] | None = None):
        self.folder, self.mark = folder, f"killed-{uuid.uuid4().hex}"
        self.said = folder.with_name(f"{folder.name}.out")
        places = ["--exp", str(folder / "exp"), "--data", str(folder / "data")]
        self.command = command or [*RUN, *places, *options]

    def start(self, stage: int = 0) -> subprocess.Popen:
        temp = self.folder.with_name(f"{self.folder.name}.tmp")
        temp.mkdir(exist_ok=True)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "SPKV_PYTHON": sys.executable, "KILL_MARK": self.mark,
               "TMPDIR": str(temp), "PYTHONPATH": str(ROOT)}  # fmt: skip
        words = [*self.command, *(["--stage", str(stage)] if stage else [])]
        with open(self.said, "wb") as out:
            return subprocess.Popen(words, env=env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)

    def to_the_end(self, stage: int = 0) -> None:
        assert self.start(stage).wait() == 0, self.said.read_text()[-3000:]

    def stages(self) -> list[int]:
        return [int(n) for n in STAGE.findall(self.said.read_text(errors="replace"))]

    def processes(self) -> list[int]:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (place / "environ").read_bytes():
                    found.append(int(place.name))
        return found

    def no_orphans(self, seconds: float = 3) -> None:
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        what = [
            (Path(f"/proc/{pid}/cmdline").read_bytes()[:300], os.kill(pid, signal.SIGKILL)) for pid in left
        ]
        assert not left, what

    def killed(self, stage: int, at: int, delay: float, way: signal.Signals, group: bool) -> int | None:
        """Start from `stage`, kill it `delay` seconds after stage `at` began; returns the stage, None if the
        run had ended.
        """
        process = self.start(stage)
        while process.poll() is None and not any(s >= at for s in self.stages()):
            time.sleep(0.02)
        time.sleep(delay)
        died = process.poll() is None
        assert died or process.returncode == 0, self.said.read_text()[-3000:]
        if died:
            (os.killpg if group else os.kill)(process.pid, way)
            assert process.wait(timeout=30) != 0
        self.no_orphans()
        return self.stages()[-1] if died else None

    def content(self) -> dict[str, bytes | None]:
        """Every file by its name, with the bytes of those that must not depend on kills."""
        files = [p for p in sorted(self.folder.rglob("*")) if not p.is_dir()]
        names = {str(p.relative_to(self.folder)): p for p in files}
        here = str(self.folder).encode()
        return {
            name: p.read_bytes().replace(here, b"HERE") if SAME.search(name) else None
            for name, p in names.items() if not LOOSE.search(f"/{name}")
        }  # fmt: skip

    def folders(self) -> set[str]:
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_dir()}

    def left_in_temp(self) -> list[str]:
        """Files left in the temporary folder, except empty folders of Python's multiprocessing, which remain
        after kill -9.
        """
        there = self.folder.with_name(f"{self.folder.name}.tmp").iterdir()
        return sorted(p.name for p in there if not p.name.startswith("pymp-"))


def assert_same(got: Recipe, want: Recipe) -> None:
    ours, theirs = got.content(), want.content()
    assert set(ours) == set(theirs), sorted(set(ours) ^ set(theirs))
    assert got.folders() == want.folders()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert len([name for name, raw in theirs.items() if raw is not None]) > 1
    assert got.left_in_temp() == want.left_in_temp()


def lengths(recipe: Recipe) -> dict[int, float]:
    """Run it unbroken; returns the seconds that each stage took."""
    process, starts = recipe.start(), {}
    while process.poll() is None:
        for stage in recipe.stages():
            starts.setdefault(stage, time.monotonic())
        time.sleep(0.02)
    assert process.returncode == 0, recipe.said.read_text()[-3000:]
    starts[9] = time.monotonic()
    return {s: starts[min(x for x in starts if x > s)] - starts[s] for s in starts if s < 9}


def kill_and_go_on(
    recipe: Recipe, moments: list, took: dict[int, float], rng: random.Random, first: int
) -> Counter:
    """Kill it at each (stage, signal, whole group); resume where it stopped or at its first stage."""
    done, stage = Counter(), first
    for at, way, group in moments:
        delay = rng.uniform(0, 0.8 * took[at])
        where = recipe.killed(stage, max(at, stage), delay, way, group)
        if where:
            done[where, way.name, "group" if group else "run.sh"] += 1
        stage = rng.choice([where or at, where or at, first])
    recipe.to_the_end(first)
    recipe.no_orphans()
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(The unbroken run with this number of jobs, the seconds of its stages), made on first use."""
    made = {}

    def get(nj: int, *options: str):
        if (nj, options) not in made:
            recipe = Recipe(tmp_path_factory.mktemp(f"nj{nj}") / "r", "--nj", str(nj), *options)
            recipe.folder.mkdir()
            made[nj, options] = recipe, lengths(recipe)
        return made[nj, options]

    return get


def test_stages_4_to_8_killed_in_every_way(whole, tmp_path):
    """One round on data and a pre-training that are made once; every way of killing once."""
    options = ("--num-rounds", "1")
    want, took = whole(2, *options)
    victim = Recipe(tmp_path / "r", "--nj", "2", *options)
    for name in ("data", "exp/pretrain/model", "exp/rooms"):
        subprocess.run(["mkdir", "-p", (victim.folder / name).parent], check=True)
        subprocess.run(["cp", "-a", want.folder / name, victim.folder / name], check=True)
    for file in victim.folder.rglob("wav.scp"):
        file.write_text(file.read_text().replace(str(want.folder), str(victim.folder)))
    rng = random.Random(4)
    moments = [(4, *WAYS[0]), (4, *WAYS[3]), (6, *WAYS[0]), (7, *WAYS[2])]
    done = kill_and_go_on(victim, moments, took, rng, 4)
    assert sum(done.values()) >= 3, done
    assert_same(victim, want)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(20))
def test_ten_kills_from_stage_1_to_8(whole, tmp_path, number):
    """Ten kills in stages drawn evenly, in rising order; every way of killing, one job and two."""
    rng = random.Random(number)
    nj = 1 + number % 2
    want, took = whole(nj, "--num-rounds", "2")
    victim = Recipe(tmp_path / "r", "--nj", str(nj), "--num-rounds", "2")
    stages = sorted(rng.choice(range(1, 9)) for _ in range(10))
    moments = [(stage, *rng.choice(WAYS)) for stage in stages]
    done = kill_and_go_on(victim, moments, took, rng, 1)
    for (stage, way, what), count in sorted(done.items()):
        print(f"run {number} --nj {nj}: stage {stage} {way} to {what}: {count}")
    assert_same(victim, want)


def training(folder: Path, data: Path) -> Recipe:
    """steps/train.sh in two processes, saving at every second step."""
    conf = [str(ROOT / "tests/conf" / name) for name in ("encoder.yaml", "pretrain.yaml")]
    words = [str(ROOT / "steps/train.sh"), "--nproc", "2", *conf, str(data), str(folder / "model")]
    return Recipe(folder, command=[*words, "epochs=6", f"rooms_dir={folder}/rooms"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_in_two_processes(tmp_path):
    """Killed twice in each way, at any moment: the same weights."""
    data = Path(toy.make(tmp_path, speakers=8, utts=6, labelled=False).path)
    for name in ("want", "got"):
        (tmp_path / name).mkdir()
    want, got = training(tmp_path / "want", data), training(tmp_path / "got", data)
    start = time.monotonic()
    want.to_the_end()
    took, rng, kills = time.monotonic() - start, random.Random(8), Counter()
    for way, group in WAYS * 2:
        process = got.start()
        time.sleep(rng.uniform(0.1, 0.6) * took)
        if process.poll() is None:
            (os.killpg if group else os.kill)(process.pid, way)
            kills[way.name] += process.wait(timeout=30) != 0
        got.no_orphans()
    got.to_the_end()
    print(f"two processes: {dict(kills)}")
    assert kills.total() > 3
    assert_same(got, want)
