"""k-means in parts: the clusters of bin.cluster, from any number of parts, whatever is killed or lies about."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyspkv.base.atomic import folder_lock
from pyspkv.base.errors import UserError
from pyspkv.bin import cluster
from pyspkv.bin import kmeans as entry
from pyspkv.clustering import kmeans as km
from pyspkv.clustering import kmeans_parts as parts
from pyspkv.clustering.vectors import l2_normalize
from pyspkv.data.ark import EmbeddingWriter
from pyspkv.data.datadir import DataDir

ROOT = Path(__file__).resolve().parents[1]


def write(root: Path, x: np.ndarray, name: str = "embed") -> Path:
    """Embeddings and a data directory of rows x, in another order; the scp."""
    utts = [f"u{i:04d}" for i in range(len(x))]
    DataDir(root / "data", utts, utts, {u: f"/x/{u}.wav" for u in utts}).write(root / "data")
    with EmbeddingWriter(root / name) as w:
        for u, e in zip(utts[::-1], x[::-1]):
            w(u, e)
    return root / name / "embedding.scp"


def speakers(num: int, dim: int = 16, count: int = 20, noise: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, dim))[rng.integers(0, count, num)] + noise * rng.normal(size=(num, dim))


@pytest.fixture
def call(monkeypatch, capsys):
    """An entry point in this process, which is quick; what it printed."""

    def call(main, *words) -> str:
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return call


class Work:
    """A k-means in `n` parts of `scp` into `out`, step by step as steps/kmeans.sh does it."""

    def __init__(self, call, scps, out: Path, n: int, *options):
        self.call, self.out, self.n = call, out, n
        more = [word for scp in scps for word in ("--embeddings", scp)]
        self.base = [*more, "--data", scps[0].parent.parent / "data", "--out-data", out, *options]
        self.folder = Path(f"{out}.kmeans")

    def start(self) -> str:
        return self.call(entry.main, "start", "--nj", self.n, *self.base)

    def assign(self, part: int) -> str:
        return self.call(entry.main, "assign", "--out-data", self.out, "--part", f"{part}/{self.n}")

    def update(self) -> str:
        return self.call(entry.main, "update", "--out-data", self.out)

    def all_parts(self) -> str:
        return "".join(self.assign(part) for part in range(self.n, 0, -1))

    def until(self, wanted: str) -> "Work":
        """Go on until the folder is at this step."""
        while (self.folder / "next").read_text().strip() != wanted:
            self.all_parts()
            self.update()
        return self

    def to_the_end(self) -> dict:
        self.start()
        while True:
            self.all_parts()
            if "last" in (self.folder / "next").read_text():
                break
            self.update()
        self.call(entry.main, "finish", *self.base)
        return json.loads(self.out.with_name("report.json").read_text())

    def plan(self) -> parts.Plan:
        return parts.Plan.read(self.folder)


def made_by_cluster(call, work: Work, out: Path) -> dict:
    words = [out if word == work.out else word for word in work.base]
    call(cluster.main, *words)
    return json.loads(out.with_name("report.json").read_text())


def the_same(a, b) -> bool:
    """Whether two reports are one but for rounding and seconds."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(k == "seconds" or the_same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(the_same, a, b))
    return a == pytest.approx(b, abs=1e-6) if isinstance(a, float) else a == b


@pytest.mark.parametrize(
    "options",
    [
        ["--num-clusters", 20, "--num-kmeans", 60],
        ["--num-clusters", "auto*0.8", "--whiten", 0.5, "--num-kmeans", 50, "--min-size", 30, "--seed", 3],
        ["--num-clusters", 20, "--method", "kmeans", "--iterations", 2],
        ["two models", "--num-clusters", 20, "--num-kmeans", 40, "--whiten", 1],
    ],
    ids=["kmeans-ahc", "auto", "kmeans", "two"],
)
def test_the_labels_and_the_report_are_those_of_bin_cluster(call, tmp_path, options):
    x = speakers(500)
    scps = [write(tmp_path, x)]
    if options[0] == "two models":
        scps.append(write(tmp_path, np.stack([x[:, :5], 3 * x[:, :5]], 1), "rows"))  # two crops an utterance
        options = options[1:]
    whole = None
    for n in (1, 5):
        work = Work(call, scps, tmp_path / f"{n}/data", n, *options)
        report = work.to_the_end()
        if whole is None:
            whole = made_by_cluster(call, work, tmp_path / "whole/data")
        assert the_same(report, whole)
        assert (work.out / "utt2spk").read_bytes() == (tmp_path / "whole/data/utt2spk").read_bytes()
        assert sorted(p.name for p in work.out.parent.iterdir() if p.name != "report.num_clusters.png") == [
            ".lock",
            "data",
            "report.json",
        ]
        assert "kept" in work.start() and not work.folder.exists()


def test_four_points_by_hand(call, tmp_path):
    """Directions of 0, 10, 90 and 100 degrees in two clusters: each mean is half the sum of its two points."""
    angles = np.radians([0, 10, 90, 100])
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    work = Work(
        call, [write(tmp_path, points)], tmp_path / "out/data", 3, "--method", "kmeans", "--num-clusters", 2
    )
    work.start()
    plan = work.plan()
    assert [plan.bounds(part) for part in (1, 2, 3)] == [(0, 1), (1, 2), (2, 4)]
    step = 0
    while "last" not in (work.folder / "next").read_text():
        work.all_parts()
        if step == 1:  # by now each point is at its own pair
            now = parts._Centroids.read(plan, 1)
            found = parts._sums(plan, 1, 3, now.digest)
            assert sorted(found["counts"]) == [0, 2]
            assert found["sums"].sum(0) == pytest.approx(points[2] + points[3], abs=1e-6)
            assert parts._labels(plan, 1, 3, now.digest)["labels"].tolist() == [found["counts"].argmax()] * 2
        work.update()
        step += 1
    work.all_parts()
    now = parts._Centroids.read(plan, step)
    found = now.centroids[np.argsort(now.centroids[:, 1])]
    assert found == pytest.approx((points[::2] + points[1::2]) / 2, abs=1e-6)
    work.call(entry.main, "finish", *work.base)
    spk = DataDir.read(work.out, need_wav=False).spk
    assert spk[0] == spk[1] != spk[2] == spk[3]
    report = json.loads((tmp_path / "out/report.json").read_text())
    # a point lies half of 2 sin 5 degrees from its mean
    assert report["kmeans"]["objective"] == pytest.approx(np.sin(np.radians(5)) ** 2, abs=1e-6)


def test_cells_and_blocks_are_those_of_the_whole(call, tmp_path, monkeypatch):
    """Points without any groups, the search by cells, parts that are no whole number of blocks."""
    x = np.random.default_rng(1).normal(size=(900, 12)).astype(np.float32)
    monkeypatch.setattr(km, "EXACT_BELOW", 50)
    monkeypatch.setattr(km, "PROBES", 3)
    monkeypatch.setattr(parts, "BLOCK", 97)
    options = ["--num-kmeans", 120, "--num-clusters", 9, "--iterations", 5, "--seed", 2]
    labels, centroids = km.kmeans(l2_normalize(x), 120, 2, 5, probes=3)
    exact, _ = km.kmeans(l2_normalize(x), 120, 2, 5, cells=1)
    assert (labels != exact).any(), "so the cells matter here"
    for n in (1, 4):
        work = Work(call, [write(tmp_path, x)], tmp_path / f"{n}/data", n, *options)
        work.start()
        work.until("5 last").all_parts()
        now = parts._Centroids.read(work.plan(), 5)
        assert np.abs(now.centroids - centroids).max() < 1e-5
        assert (parts._all_labels(work.plan(), 5, now.digest, placed=True)["labels"] == labels).all()


def test_empty_clusters_get_the_points_that_kmeans_gives_them(call, tmp_path):
    """Forty directions, five times each, in sixty clusters: the start draws some of them twice."""
    x = np.repeat(np.random.default_rng(3).normal(size=(40, 8)), 5, axis=0).astype(np.float32)
    stats: dict = {}
    _, centroids = km.kmeans(l2_normalize(x), 60, 0, 1, stats=stats)
    work = Work(call, [write(tmp_path, x)], tmp_path / "a/data", 3, "--method", "kmeans", "--num-clusters", 60,
                "--iterations", 1)  # fmt: skip
    work.start()
    assert re.search(r"[1-9][0-9]* empty", work.all_parts() + work.update())
    now = parts._Centroids.read(work.plan(), 1)
    assert now.repaired == stats["empty_repaired"] > 5
    assert np.abs(now.centroids - centroids).max() < 1e-6


def test_copies_are_counted(call, tmp_path, caplog):
    x = speakers(300)
    x[[7, 200, 250]] = x[[3, 100, 100]]
    work = Work(call, [write(tmp_path, x)], tmp_path / "a/data", 3, "--num-kmeans", 40, "--num-clusters", 20)
    assert work.to_the_end()["copies"] == 5
    assert "5 utterances have the same embedding as another: u0003, u0007, u0100" in caplog.text


# ---- a killed step -----------------------------------------------------------------------------------------------
class Killed(BaseException):
    pass


def test_killed_at_every_write_it_ends_the_same(call, tmp_path, monkeypatch):
    """At each file in turn, before or after it is there; what was done is not done again."""
    scp = write(tmp_path, speakers(200))
    options = ["--num-kmeans", 30, "--num-clusters", 20, "--iterations", 1, "--whiten", 0.5]
    Work(call, [scp], tmp_path / "whole/data", 2, *options).to_the_end()
    want = (tmp_path / "whole/data/utt2spk").read_bytes()
    real, count = parts.atomic_file, 0

    class Dies:
        def __init__(self, at: int, after: bool):
            self.left, self.after = at, after

        def __call__(self, *args, **kwargs):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Killed
            return self.Then(real(*args, **kwargs), self.left == 0)

        class Then:
            def __init__(self, context, dies):
                self.context, self.dies = context, dies

            def __enter__(self):
                return self.context.__enter__()

            def __exit__(self, *error):
                self.context.__exit__(*error)
                if self.dies:
                    raise Killed

    ended = False
    while not ended:
        count += 1
        work = Work(call, [scp], tmp_path / f"{count}/data", 2, *options)
        monkeypatch.setattr(parts, "atomic_file", Dies(count, after=count % 2 == 1))
        try:
            work.to_the_end()
            ended = True
        except Killed:
            pass
        monkeypatch.setattr(parts, "atomic_file", real)
        if not ended:
            before = {p: p.stat().st_mtime_ns for p in work.folder.glob("sums.*")}
            step = (work.folder / "next").read_text() if (work.folder / "next").exists() else ""
            work.start()
            if step and "moments" not in step:
                kept = [p for p in before if f"sums.{step.split()[0]}." in p.name]
                assert work.all_parts().count("up to date") == len(kept)
                assert all(p.stat().st_mtime_ns == before[p] for p in kept)
            work.to_the_end()
        assert (work.out / "utt2spk").read_bytes() == want
        assert not work.folder.exists()
    assert count == 19  # 18 files: 3 at the start, 5 for the whitening, 2 x 4 by the parts, 2 at the update


def test_a_rerun_is_equal_bit_by_bit(call, tmp_path):
    scp = write(tmp_path, np.random.default_rng(1).normal(size=(400, 12)))
    found = []
    for name in "ab":
        work = Work(call, [scp], tmp_path / name / "data", 3, "--num-kmeans", 50, "--iterations", 3)
        work.start()
        if name == "b":
            work.all_parts = lambda work=work: [work.assign(part) for part in (2, 1, 3)]
        work.until("3 last")
        with np.load(work.folder / "centroids.3.npz") as f:
            found.append({key: f[key].tobytes() for key in ("centroids", "numbers")})
    assert found[0] == found[1]


# ---- what lies about -----------------------------------------------------------------------------------------------
@pytest.fixture
def work(call, tmp_path):
    """Three parts; the first iteration is done, and the second by all parts."""
    scp = write(tmp_path, speakers(200))
    work = Work(
        call, [scp], tmp_path / "a/data", 3, "--num-kmeans", 30, "--num-clusters", 20, "--iterations", 9
    )
    work.start()
    work.until("1").all_parts()
    return work


def test_a_part_that_there_is_not(work, call, capsys):
    with pytest.raises(UserError, match="begun in 3 parts, so there is no part 1 of 4"):
        call(entry.main, "assign", "--out-data", work.out, "--part", "1/4")
    with pytest.raises(SystemExit):
        work.assign(4)
    assert "there is no part 4 of 3" in capsys.readouterr().err
    with pytest.raises(UserError, match="begun in 3 parts, not 2"):
        Work(call, [Path(work.base[1])], work.out, 2, *work.base[6:]).start()
    with pytest.raises(UserError, match="holds no k-means that was begun"):
        call(entry.main, "update", "--out-data", work.out.parent / "other")
    with pytest.raises(UserError, match="k-means has not ended"):
        call(entry.main, "finish", *work.base)
    with folder_lock(work.folder, ".lock.2-of-3"), pytest.raises(UserError, match="another process"):
        work.assign(2)


def test_parts_of_another_run_are_not_taken(work, call, tmp_path):
    other = Work(call, [Path(work.base[1])], tmp_path / "b/data", 3, *work.base[6:], "--seed", 1)
    other.start()
    other.until("1").all_parts()
    for kind in ("labels", "sums"):
        shutil.copy(other.folder / f"{kind}.1.2-of-3.npz", work.folder)
    with pytest.raises(
        UserError, match=r"part 2 of 3 of step 1 is missing, damaged, or of other.*\n.*--part 2/3"
    ):
        work.update()
    assert (work.folder / "next").read_text() == "1\n"
    assert [("up to date" in work.assign(part)) for part in (1, 2, 3)] == [True, False, True]
    shutil.copy(work.folder / "sums.1.1-of-3.npz", work.folder / "sums.1.3-of-3.npz")  # of another part
    with pytest.raises(UserError, match="part 3 of 3"):
        work.update()
    work.assign(3)
    work.update()


@pytest.mark.parametrize("damage", ["cut", "pickle", "nan", "link", "huge", "text"])
def test_damaged_parts_are_done_again(work, tmp_path, damage):
    file = work.folder / "sums.1.2-of-3.npz"
    with np.load(file) as f:
        arrays = dict(f)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif damage == "pickle":
        np.savez(file, **{**arrays, "sums": np.array([print], dtype=object)})
    elif damage == "nan":
        np.savez(file, **{**arrays, "sums": arrays["sums"] * np.nan})
    elif damage == "link":
        shutil.move(file, tmp_path / "elsewhere.npz")
        file.symlink_to(tmp_path / "elsewhere.npz")
    elif damage == "huge":
        np.savez(file, **{**arrays, "more": np.zeros(1 << 20)})
    else:
        file.write_text("[" * 10000)
    with pytest.raises(UserError, match="part 2 of 3 of step 1"):
        work.update()
    if damage == "link":
        with pytest.raises(UserError, match="nothing is written through it"):
            work.assign(2)
        file.unlink()
    assert "done" in work.assign(2)
    work.update()


def test_centroids_of_another_dimension_are_refused(work):
    plan = work.plan()
    parts._Centroids(np.zeros((30, 15), np.float32), np.zeros((0, 15), np.float32)).write(plan, 1)
    for step in (work.update, lambda: work.assign(1)):
        with pytest.raises(UserError, match="centroids.1.npz: is missing, damaged, or of another k-means"):
            step()


def test_embeddings_that_change_meanwhile_are_refused(work, call, caplog):
    scp = Path(work.base[1])
    os.utime(scp.with_suffix(".ark"), ns=(1, 1))
    with pytest.raises(UserError, match="embedding.ark: has changed since k-means was begun"):
        work.assign(1)
    work.start()
    assert "k-means starts again" in caplog.text and (work.folder / "next").read_text() == "0\n"
    assert not list(work.folder.glob("sums.*"))
    caplog.clear()
    assert "goes on at step 0" in work.start() and not caplog.text
    work.base[work.base.index("--iterations") + 1] = 8  # other options
    work.start()
    assert "of other embeddings or options" in caplog.text
    (work.folder / "plan.json").write_text('{"n": 7}')
    with pytest.raises(UserError, match="plan.json: is damaged"):
        work.assign(1)
    work.start()
    assert "it is damaged" in caplog.text
    work.to_the_end()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "ahc"], "--method ahc with --num-clusters auto does not go in parts"),
        (["--method", "kmeans"], "--method kmeans with --num-clusters auto does not go in parts"),
        ([], "for 50 utterances there is no k-means: AHC takes them all"),
        (["--num-clusters", "51"], "--num-clusters 51 is more than the 50 utterances"),
    ],
)
def test_what_does_not_go_in_parts_is_said_at_the_start(call, tmp_path, options, message):
    work = Work(call, [write(tmp_path, speakers(50))], tmp_path / "a/data", 2, *options)
    with pytest.raises(UserError, match=message):
        work.start()


def test_broken_embeddings_are_named(call, tmp_path):
    x = speakers(60)
    x[41] = 0
    scp = write(tmp_path, x)
    work = Work(call, [scp], tmp_path / "a/data", 2, "--num-kmeans", 2, "--num-clusters", 2)
    with pytest.raises(
        UserError, match="embedding.scp: the embedding of utterance number 42 of 60 is all zeros"
    ):
        work.start()
        work.all_parts()
    lines = scp.read_text().splitlines(True)
    scp.write_text("".join(lines[:9] + lines[10:]))
    with pytest.raises(UserError, match="1 of 60 utterances have no embedding: u0009"):
        work.start()


# ---- the shell -----------------------------------------------------------------------------------------------------
ENV = {**os.environ, "SPKV_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_run_sh_does_the_parts(call, tmp_path):
    """A step of three jobs by JOB=1:3: the files of this process, bit by bit."""
    scp = write(tmp_path, speakers(200))
    options = ["--num-kmeans", 30, "--num-clusters", 20]
    here, jobs = (Work(call, [scp], tmp_path / name / "data", 3, *options) for name in ("here", "jobs"))
    here.start()
    here.all_parts()
    jobs.start()
    words = ["JOB=1:3", "log/JOB.log", sys.executable, "-m", "pyspkv.bin.kmeans", "assign"]
    done = subprocess.run(
        [ROOT / "utils/run.sh", *words, "--out-data", jobs.out, "--part", "JOB/3"],
        cwd=tmp_path, env={**ENV, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here.update()
    jobs.update()
    for work in (here, jobs):
        with np.load(work.folder / "centroids.1.npz") as f:
            work.found = f["centroids"].tobytes()
    assert here.found == jobs.found


def test_the_step_prints_what_it_would_do(tmp_path):
    words = ["--dry-run", "true", "--num-clusters", "7", "a.scp", "data", "out/data", "--whiten", "0.5"]
    said = {}
    for step, more in (("kmeans.sh", []), ("cluster.sh", ["--nj", "4"]), ("cluster.sh", [])):
        done = subprocess.run(
            [ROOT / "steps" / step, *words, *more], cwd=tmp_path, env=ENV, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said[step, len(more)] = done.stdout
    assert said["kmeans.sh", 0] == said["cluster.sh", 2]
    assert "kmeans assign --out-data out/data --part SPKV_JOB/4" in said["kmeans.sh", 0]
    assert "pyspkv.bin.cluster" in said["cluster.sh", 0] and "kmeans" not in said["cluster.sh", 0]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_step_is_killed_and_ends_as_bin_cluster(call, tmp_path):
    scp = write(tmp_path, speakers(400))
    options = ["--num-kmeans", "40", "--iterations", "3"]
    words = [ROOT / "steps/cluster.sh", "--nj", "3", "--num-clusters", "20", scp, tmp_path / "data", "a/data"]
    first = subprocess.Popen([*words, *options], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, text=True)
    while "update.0.log" not in (line := first.stdout.readline()):
        assert line
    first.kill()
    first.stdout.close()
    first.wait()
    done = subprocess.run([*words, *options], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on at" in done.stdout and not (tmp_path / "a/data.kmeans").exists()
    call(cluster.main, "--embeddings", scp, "--data", tmp_path / "data", "--out-data", tmp_path / "b/data",
         "--num-clusters", 20, *options)  # fmt: skip
    assert (tmp_path / "a/data/utt2spk").read_bytes() == (tmp_path / "b/data/utt2spk").read_bytes()
    again = subprocess.run([*words, *options], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert again.returncode == 0 and "kept: " in again.stdout


def test_memory_is_told_before(tmp_path, capsys, monkeypatch):
    scp = write(tmp_path, speakers(60))
    words = ["--embeddings", scp, "--data", tmp_path / "data", "--out-data", tmp_path / "a/data"]
    words += ["--nj", 2, "--num-kmeans", 9, "--num-clusters", 2]
    monkeypatch.setattr(sys, "argv", ["x", "start", *map(str, words)])
    entry.main()
    assert re.search(
        r"60 x 16 into 9 in 2 parts: about [0-9.]+ GiB of memory a part; a pass", capsys.readouterr().err
    )
