"""k-means in parts: the embeddings stay on the disk, and the jobs of an array read their rows block by block.

The steps are those of `kmeans.kmeans`, with the same start, the same assignment and the same end; only the order of the
sums differs. Each job adds up its rows by nearest centroid. One update adds the parts, in order and in float64, and
writes the next centroids. The folder that the jobs share holds:

    plan.json              what is clustered, how, and in how many parts; its key stands in all other files
    next                   where the work is: "moments", or an iteration, as "7" or "7 last"; the last to be written
    index.npy              int64 [S, 2, N]: ark and offset of each utterance in each of S embedding.scp
    whitening.npz          mean and axes, where the embeddings are whitened
    centroids.I.npz        the centroids that iteration I looks for
    labels.I.K-of-N.npz    the nearest centroid of each row of part K
    sums.I.K-of-N.npz      its sums, counts and costs; it stands only where its labels do

A part counts only if it was made of the same plan and the same centroids. So a killed step goes on where it was, and
what another run left behind is not taken.
"""

import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyspkv.base import foreign
from pyspkv.base.arrays import NUMPY_ERRORS
from pyspkv.base.atomic import atomic_file, command_line, folder_lock
from pyspkv.base.errors import UserError
from pyspkv.clustering import copies, labeling, made, num_clusters, pipeline, quality, vectors
from pyspkv.clustering import kmeans as km
from pyspkv.clustering.options import Options
from pyspkv.data.ark import read_scp, read_some
from pyspkv.data.datadir import DataDir

log = logging.getLogger(__name__)
BLOCK = 1 << 18  # rows that are held at once
OURS = re.compile(r"\.?(plan\.json|next|index\.npy|whitening\.npz|(centroids|labels|sums|moments)\.).*")
Spec = dict[str, tuple[type, tuple[int, ...]]]  # name of an array -> its type and shape


@dataclass(frozen=True)
class Plan:
    """What is clustered: plan.json in `folder`.

    dims: of each embedding.scp; files: name -> size and time of all that the jobs read.
    """

    folder: Path
    asked: dict
    scps: list[str]
    arks: list[list[str]]
    files: dict[str, list[int]]
    embeddings: list[dict]
    n: int
    dims: list[int]
    k: int
    parts: int

    @property
    def dim(self) -> int:
        return sum(self.dims)

    @property
    def key(self) -> str:
        """SHA-256 of the plan, wherever its folder lies."""
        text = json.dumps({**asdict(self), "folder": ""}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def options(self) -> Options:
        return Options(**{name: self.asked[name] for name in Options.__dataclass_fields__})

    def write(self) -> None:
        with atomic_file(self.folder / "plan.json") as f:
            json.dump({**asdict(self), "folder": ""}, f, indent=1)

    @classmethod
    def read(cls, folder: str | Path) -> "Plan":
        """UserError: there is none, or it is damaged."""
        folder = Path(folder)
        if not (folder / "plan.json").is_file():
            raise UserError(
                "holds no k-means that was begun", file=folder, hint="begin with bin.kmeans start"
            )
        try:
            plan = cls(**{**foreign.read_json(folder / "plan.json"), "folder": folder})
            good = min(plan.n, plan.k, plan.parts, *plan.dims) >= 1 and len(plan.dims) == len(plan.arks)
            plan.options.check(plan.n, folder)
        except (TypeError, KeyError, AttributeError):
            good = False
        if not good:
            raise UserError("is damaged", file=folder / "plan.json", hint=command_line("rm", "-r", folder))
        return plan

    def step(self) -> tuple[str, bool]:
        """("moments" or the number of an iteration, whether it is the last). UserError: the start was cut short."""
        file = self.folder / "next"
        found = re.fullmatch(
            r"(moments|[0-9]{1,9})( last)?\n", foreign.read_text(file, 99) if file.is_file() else ""
        )
        if not found:
            raise UserError("was not begun to the end", file=self.folder, hint="run bin.kmeans start again")
        return found[1], bool(found[2])

    def go_to(self, step: int | str, last: bool = False) -> None:
        with atomic_file(self.folder / "next") as f:
            f.write(f"{step}{' last' * last}\n")

    def bounds(self, part: int) -> tuple[int, int]:
        """First row of part 1 .. `parts`, and the one behind its last."""
        return self.n * (part - 1) // self.parts, self.n * part // self.parts

    def file(self, kind: str, step: int | str, part: int) -> Path:
        return self.folder / f"{kind}.{step}.{part}-of-{self.parts}.npz"

    def part_key(self, step: int | str, part: int, centroids: str) -> str:
        """What a part's files are of: this plan, and the centroids of this digest."""
        text = f"{self.key} {step} {part} {self.parts} {centroids}"
        return hashlib.sha256(text.encode()).hexdigest()

    def check_files(self) -> None:
        """UserError: embeddings have changed since the start."""
        for file, before in self.files.items():
            if _size_and_time(file) != before:
                hint = command_line("rm", "-r", self.folder)
                raise UserError("has changed since k-means was begun", file=file, hint=hint)


def _size_and_time(file: str) -> list[int] | None:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


class Rows:
    """The unit vectors of a plan, side by side as `labeling.side_by_side` has them. They are read when needed.

    whitened: whiten them, if the plan has that option.
    """

    def __init__(self, plan: Plan, whitened: bool = True):
        self.plan = plan
        file, hint = plan.folder / "index.npy", command_line("rm", "-r", plan.folder)
        try:
            self.index = np.load(file, mmap_mode="r", allow_pickle=False)
        except NUMPY_ERRORS as err:
            raise UserError(f"is damaged ({type(err).__name__})", file=file, hint=hint) from None
        if self.index.shape != (len(plan.scps), 2, plan.n) or self.index.dtype != np.int64:
            raise UserError("belongs to other embeddings", file=file, hint=hint)
        self.whitening: list[tuple[np.ndarray, np.ndarray]] = []
        if plan.options.whiten is not None and whitened:
            spec: Spec = {}
            for s, dim in enumerate(plan.dims):
                spec |= {f"mean{s}": (np.float64, (dim,)), f"axes{s}": (np.float32, (dim, dim))}
            found = _need(plan.folder / "whitening.npz", plan.key, spec, plan.folder)
            self.whitening = [(found[f"mean{s}"], found[f"axes{s}"]) for s in range(len(plan.dims))]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """float32 [M, D] of any rows int64 [M]; they are read one by one."""
        if not len(rows):
            return np.zeros((0, self.plan.dim), np.float32)
        return labeling.beside(self.each(np.asarray(rows), near=False))

    def blocks(self, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """(row, float32 [M, D] from that row on) until `last`, at most BLOCK rows at a time."""
        for start in range(first, last, BLOCK):
            yield start, labeling.beside(self.each(np.arange(start, min(start + BLOCK, last)), near=True))

    def each(self, rows: np.ndarray, near: bool) -> list[np.ndarray]:
        """Of each model, float32 [M, D]. UserError: an embedding is not what it must be."""
        out, names = [], [f"number {row + 1} of {self.plan.n}" for row in rows.tolist()]
        for s, scp in enumerate(self.plan.scps):
            ark_of, offset = (self.index[s, i, rows] for i in (0, 1))
            found = read_some(scp, names, self.plan.arks[s], ark_of, offset, near)
            if found.dim != self.plan.dims[s]:
                raise UserError(
                    f"has {found.dim} dimensions in {names[0]}, not {self.plan.dims[s]}", file=scp
                )
            x = found.vectors()
            if len(bad := vectors.unit_rows(x)):
                raise UserError(f"the embedding of utterance {names[bad[0]]} is all zeros", file=scp)
            out.append(vectors.shrink(x, *self.whitening[s]) if self.whitening else x)
        return out


class _Search(km.Assigner):
    """The same centroids for one block of points after the other."""

    def __init__(self, coarse: np.ndarray, dim: int, device: str):
        super().__init__(np.zeros((0, dim), np.float32), device)
        if len(coarse):
            self.use_cells(coarse, km.PROBES)
        self.inside: Any = None

    def look_at(self, x: np.ndarray) -> None:
        self.x = self.torch.from_numpy(x).to(self.device)
        if self.coarse is not None:
            self.use_cells(self.coarse.cpu().numpy(), km.PROBES)

    def _insides(self, c):
        if self.inside is None:
            self.inside = super()._insides(c)
        return self.inside


# ---- files -----------------------------------------------------------------------------------------------------------
def _write(file: Path, key: str, **arrays: np.ndarray) -> None:
    with atomic_file(file, "wb") as f:
        np.savez(f, key=np.array(key), **arrays)  # type: ignore[arg-type]


def _read(file: Path, key: str, spec: Spec) -> dict[str, np.ndarray] | None:
    """The arrays of a file of ours; None where it is missing, damaged, or made of something else."""
    size = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in spec.values())
    try:
        if file.is_symlink() or not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as f:
            if sum(part.file_size for part in f.zip.infolist()) > size + 10_000 or str(f["key"]) != key:
                return None
            found = {name: f[name] for name in spec}
    except Exception:  # whatever np.load makes of a damaged file
        return None
    fits = all(
        found[name].dtype == kind and found[name].shape == shape for name, (kind, shape) in spec.items()
    )
    return found if fits and all(np.isfinite(a).all() for a in found.values()) else None


def _need(file: Path, key: str, spec: Spec, folder: Path) -> dict[str, np.ndarray]:
    """`_read`, where nothing can go on without it."""
    if (found := _read(file, key, spec)) is None:
        hint = command_line("rm", "-r", folder)
        raise UserError("is missing, damaged, or of another k-means", file=file, hint=hint)
    return found


@dataclass
class _Centroids:
    """What centroids.I.npz holds. coarse: centers of the cells, float32 [C, D], C = 0 where the search is exact.

    cost: the objective that the iteration before found. digest: of the file; before: of the file before it.
    """

    centroids: np.ndarray
    coarse: np.ndarray
    repaired: int = 0
    moved: float = 1.0
    cost: float = 0.0
    converged: bool = False
    before: str = ""
    digest: str = ""

    def write(self, plan: Plan, step: int) -> None:
        numbers = np.array([self.repaired, self.moved, self.cost, self.converged])
        before = np.frombuffer(bytes.fromhex(self.before or "0" * 64), np.uint8)
        _write(_centroids_file(plan, step), plan.key, centroids=self.centroids, coarse=self.coarse,
               numbers=numbers, before=before)  # fmt: skip

    @classmethod
    def read(cls, plan: Plan, step: int) -> "_Centroids":
        file, cells = _centroids_file(plan, step), km.default_cells(plan.k)
        spec: Spec = {
            "centroids": (np.float32, (plan.k, plan.dim)),
            "coarse": (np.float32, (cells if cells > 1 else 0, plan.dim)),
            "numbers": (np.float64, (4,)),
            "before": (np.uint8, (32,)),
        }
        found = _need(file, plan.key, spec, plan.folder)
        with open(file, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        repaired, moved, cost, converged = found["numbers"].tolist()
        before = found["before"].tobytes().hex()
        return cls(
            found["centroids"], found["coarse"], int(repaired), moved, cost, bool(converged), before, digest
        )


def _centroids_file(plan: Plan, step: int) -> Path:
    return plan.folder / f"centroids.{step}.npz"


def _labels(plan: Plan, step: int, part: int, digest: str, placed: bool = False) -> dict | None:
    """Labels of a part's rows, int32; with `placed`, also their `copies.places`."""
    first, last = plan.bounds(part)
    spec: Spec = {"labels": (np.int32, (last - first,))}
    if placed:
        spec["places"] = np.float64, (last - first, 3)
    return _read(plan.file("labels", step, part), plan.part_key(step, part, digest), spec)


def _sums(plan: Plan, step: int, part: int, digest: str) -> dict | None:
    """sums float64 [K, D], counts int64 [K], costs float64 [3]: points that moved, sums of scores and squares."""
    spec: Spec = {
        "sums": (np.float64, (plan.k, plan.dim)),
        "counts": (np.int64, (plan.k,)),
        "costs": (np.float64, (3,)),
    }
    return _read(plan.file("sums", step, part), plan.part_key(step, part, digest), spec)


def _moments(plan: Plan, part: int) -> dict | None:
    spec: Spec = {}
    for s, dim in enumerate(plan.dims):
        spec |= {f"sum{s}": (np.float64, (dim,)), f"products{s}": (np.float64, (dim, dim))}
    return _read(plan.file("moments", 0, part), plan.part_key("moments", part, ""), spec)


# ---- start -----------------------------------------------------------------------------------------------------------
def start(
    folder: str | Path, embeddings: list[str], data: str | Path, options: Options, asked: dict, parts: int,
    device: str = "cpu",
) -> None:  # fmt: skip
    """Begin k-means in `parts` parts, or go on with one of the same embeddings and options in `folder`.

    asked: options and digests of the data, by `round.asked_of`. If these differ, k-means starts again, with a warning.
    UserError: it was begun with another number of parts; an option that k-means in parts does not have; utterances
    without an embedding.
    """
    folder = Path(folder)
    with folder_lock(folder):
        if (plan := _begun(folder, embeddings, asked, parts)) is not None:
            step, last = plan.step()
            print(f"{folder}: k-means goes on at {'the end' if last else f'step {step}'}")
            return
        for left in folder.iterdir():  # of another run, or of a start that was cut short
            if OURS.fullmatch(left.name):
                left.unlink()
        plan = _new_plan(folder, embeddings, data, options, asked, parts)
        _say_costs(plan, device)
        if options.whiten is None:
            _first_centroids(plan, device)
        else:
            plan.go_to("moments")


def _begun(folder: Path, embeddings: list[str], asked: dict, parts: int) -> Plan | None:
    """The plan of a k-means of the same embeddings and options that was begun in `folder`, else None.

    UserError: it has another number of parts.
    """
    if not (folder / "next").exists():
        return None
    try:
        plan = Plan.read(folder)
        plan.step()
    except UserError:
        why = "it is damaged"
    else:
        same = plan.asked == asked and plan.scps == _absolute(embeddings)
        if same and all(_size_and_time(file) == before for file, before in plan.files.items()):
            if plan.parts != parts:
                rule = f"k-means was begun in {plan.parts} parts, not {parts}"
                hint = f"give --nj {plan.parts}, or remove this folder to begin again"
                raise UserError(rule, file=folder, hint=hint)
            return plan
        why = "it is of other embeddings or options"
    log.warning("%s cannot be resumed (%s); k-means starts again", folder, why)
    return None


def _absolute(files: list[str]) -> list[str]:
    return [str(Path(file).absolute()) for file in files]


def _new_plan(folder: Path, embeddings: list[str], data, options: Options, asked: dict, parts: int) -> Plan:
    source = DataDir.read(data)
    n = len(source.utts)
    options.check(n, data)
    k = _num_centroids(n, options, data)
    if parts > n:
        raise UserError(f"--nj {parts} is more than the {n} utterances", file=data, hint="give fewer parts")
    index, all_arks = np.empty((len(embeddings), 2, n), np.int64), []
    for s, scp in enumerate(embeddings):
        ids, arks, ark_of, offset = read_scp(scp)
        order = labeling.entries_of(source, ids, scp)
        index[s] = ark_of[order], offset[order]
        all_arks.append(_absolute(arks))
        del ids, ark_of, offset
    del source
    with atomic_file(folder / "index.npy", "wb") as f:
        np.save(f, index)
    files: dict[str, list[int]] = {}
    for file in (*_absolute(embeddings), *(ark for arks in all_arks for ark in arks)):
        found = _size_and_time(file)
        if found is None:
            raise UserError("does not exist", file=file, hint="extract the embeddings again")
        files[file] = found
    dims = [
        read_some(scp, ["the first"], arks, at[0, :1], at[1, :1], near=False).dim
        for scp, arks, at in zip(embeddings, all_arks, index)
    ]
    digests = [made.embeddings_digest(scp) for scp in embeddings]
    plan = Plan(folder, asked, _absolute(embeddings), all_arks, files, digests, n, dims, k, parts)
    plan.write()
    return plan


def _num_centroids(n: int, options: Options, data) -> int:
    """UserError: what k-means in parts cannot do."""
    wanted = options.num_clusters
    if options.method == "kmeans" and not isinstance(wanted, str):
        return wanted
    if options.method != "kmeans-ahc":
        rule = f"--method {options.method} with --num-clusters {wanted} does not go in parts"
        raise UserError(rule, hint="use --method kmeans-ahc, or drop --nj")
    k = min(max(options.centroids(n), 2 if isinstance(wanted, str) else wanted), n)
    if k == n:
        raise UserError(
            f"for {n} utterances there is no k-means: AHC takes them all",
            file=data,
            hint="drop --nj, or give --num-kmeans",
        )
    return k


def _first_centroids(plan: Plan, device: str) -> None:
    """The start of `kmeans.kmeans`: random rows, ascending."""
    rng = np.random.default_rng([plan.options.seed, 0])
    centroids = Rows(plan)[np.sort(rng.choice(plan.n, plan.k, replace=False))]
    _Centroids(centroids, _cells(plan, centroids, device)).write(plan, 0)
    plan.go_to(0)


def _cells(plan: Plan, centroids: np.ndarray, device: str) -> np.ndarray:
    """Centers of the cells of these centroids, float32 [C, D]; none where the search is exact."""
    cells = km.default_cells(plan.k)
    if cells <= 1:
        return np.zeros((0, plan.dim), np.float32)
    search = km.Assigner(np.zeros((0, plan.dim), np.float32), device)
    search.recell(centroids, cells, km.PROBES)
    return search.coarse.cpu().numpy()


def memory(plan: Plan) -> int:
    """Bytes that the job of a part needs, about (checked in the benchmarks)."""
    rows, cells = min(BLOCK, -(-plan.n // plan.parts)), km.default_cells(plan.k) > 1
    search = rows * km.PROBES * 28 if cells else 2 * km.BLOCK
    return 6 * rows * plan.dim + search + 24 * plan.k * plan.dim + 36 * plan.n // plan.parts + (300 << 20)


def _say_costs(plan: Plan, device: str) -> None:
    """One line on stderr before the work: memory, files, and the time of one pass, from a try of a few rows."""
    rng = np.random.default_rng(0)
    tried = min(4096, plan.n)
    x = Rows(plan, whitened=False)[np.sort(rng.choice(plan.n, tried, replace=False))]
    coarse = np.zeros((km.default_cells(plan.k) if km.default_cells(plan.k) > 1 else 0, plan.dim), np.float32)
    coarse += rng.standard_normal(coarse.shape, np.float32) / plan.dim**0.5
    centroids = np.resize(x, (plan.k, plan.dim))
    search = _Search(coarse, plan.dim, device)
    search.look_at(x[:1])
    search(centroids, km._bias(centroids, False))  # groups the centroids once
    begin = time.perf_counter()
    search.look_at(x)
    search(centroids, km._bias(centroids, False))
    rate = tried / (time.perf_counter() - begin)
    print(
        f"k-means of {plan.n} x {plan.dim} into {plan.k} in {plan.parts} parts: about {memory(plan) / 2**30:.1f} GiB "
        f"of memory a part; a pass over a part takes about {plan.n / plan.parts / rate / 60:.1f} min on this machine; "
        f"{plan.folder} grows to {_disk(plan) / 2**30:.1f} GiB",
        file=sys.stderr,
        flush=True,
    )


def _disk(plan: Plan) -> int:
    """Bytes of the shared folder at its peak."""
    return 16 * plan.n * len(plan.scps) + 32 * plan.n + (8 * plan.parts + 16) * plan.k * plan.dim


# ---- parts -----------------------------------------------------------------------------------------------------------
def assign(folder: str | Path, part: int, parts: int, device: str = "cpu") -> None:
    """Do a part's share of the step that the folder is at; nothing where that is done.

    UserError: k-means was begun in another number of parts; embeddings have changed; another process does this part.
    """
    plan = Plan.read(folder)
    if parts != plan.parts:
        rule = f"k-means was begun in {plan.parts} parts, so there is no part {part} of {parts}"
        raise UserError(rule, file=folder)
    with folder_lock(plan.folder, f".lock.{part}-of-{parts}"):
        step, last = plan.step()
        name = f"{plan.folder}: step {step}, part {part} of {parts}"
        plan.check_files()
        if step == "moments":
            if (done := _moments(plan, part)) is None:
                _add_moments(plan, part)
        else:
            now = _Centroids.read(plan, int(step))
            done = _labels(plan, int(step), part, now.digest, last) and _sums(
                plan, int(step), part, now.digest
            )
            if done is None:
                _assign(plan, int(step), last, part, now, device)
        print(f"{name}: {'done' if done is None else 'up to date'}", flush=True)


def _add_moments(plan: Plan, part: int) -> None:
    """Sums and products of the rows, for the whitening."""
    first, last = plan.bounds(part)
    sums = [np.zeros(dim) for dim in plan.dims]
    products = [np.zeros((dim, dim)) for dim in plan.dims]
    rows = Rows(plan, whitened=False)
    for start in range(first, last, BLOCK):
        for s, x in enumerate(rows.each(np.arange(start, min(start + BLOCK, last)), near=True)):
            for at in range(0, len(x), 8192):
                some = x[at : at + 8192].astype(np.float64)
                sums[s] += some.sum(0)
                products[s] += some.T @ some
    arrays = {f"sum{s}": v for s, v in enumerate(sums)} | {f"products{s}": v for s, v in enumerate(products)}
    _write(plan.file("moments", 0, part), plan.part_key("moments", part, ""), **arrays)


def _assign(plan: Plan, step: int, last: bool, part: int, now: _Centroids, device: str) -> None:
    """Labels, sums and costs of a part's rows. `last`: their places too, from which copies are found."""
    first, end = plan.bounds(part)
    old = None
    if step > 0 and not last:
        before = _labels(plan, step - 1, part, now.before)
        if before is None:
            _need(plan.file("labels", step - 1, part), "", {}, plan.folder)
        else:
            old = before["labels"]
    labels, places = np.empty(end - first, np.int32), np.empty((end - first if last else 0, 3))
    sums, counts, costs = np.zeros((plan.k, plan.dim)), np.zeros(plan.k, np.int64), np.zeros(3)
    search, bias = _Search(now.coarse, plan.dim, device), km._bias(now.centroids, False)
    begin = time.monotonic()
    for row, x in Rows(plan).blocks(first, end):
        here = slice(row - first, row - first + len(x))
        search.look_at(x)
        nearest, best = search(now.centroids, bias)
        labels[here] = nearest
        more, number = km.sums_of(x, nearest, plan.k)
        sums += more
        counts += number
        moved = len(x) if old is None else int((nearest != old[here]).sum())
        costs += moved, best.sum(dtype=np.float64), np.einsum("nd,nd->", x, x, dtype=np.float64)
        if last:
            places[here] = copies.places(x)
        left = (time.monotonic() - begin) / here.stop * (end - first - here.stop)
        print(f"{here.stop} of {end - first} rows, {left:.0f} s left", flush=True)
    key = plan.part_key(step, part, now.digest)
    extra = {"places": places} if last else {}
    _write(plan.file("labels", step, part), key, labels=labels, **extra)
    _write(plan.file("sums", step, part), key, sums=sums, counts=counts, costs=costs)


# ---- update ----------------------------------------------------------------------------------------------------------
def update(folder: str | Path, device: str = "cpu") -> None:
    """Add the parts of a step and write the next centroids. UserError: a part is missing; nothing is changed then."""
    plan = Plan.read(folder)
    with folder_lock(plan.folder):
        step, last = plan.step()
        if last:
            print(f"{folder}: k-means has ended")
        elif step == "moments":
            _whitening(plan)
            _first_centroids(plan, device)
            _remove(plan, "moments.")
        else:
            _update(plan, int(step), device)


def _whitening(plan: Plan) -> None:
    found = _all_parts(plan, "moments", lambda part: _moments(plan, part))
    total = next(found)
    for more in found:
        for name in total:
            total[name] += more[name]
    arrays: dict[str, np.ndarray] = {}
    for s in range(len(plan.dims)):
        mean = total[f"sum{s}"] / plan.n
        covariance = total[f"products{s}"] / plan.n - np.outer(mean, mean)
        assert plan.options.whiten is not None  # else there are no moments
        arrays |= {f"mean{s}": mean, f"axes{s}": vectors.whitening(covariance, plan.options.whiten)}
    _write(plan.folder / "whitening.npz", plan.key, **arrays)


def _all_parts(plan: Plan, step: int | str, read) -> Iterator[dict]:
    """What `read` gives of parts 1, 2, ..., one at a time. UserError: it gives None, names the first such part."""
    for part in range(1, plan.parts + 1):
        if (found := read(part)) is None:
            raise UserError(
                f"part {part} of {plan.parts} of step {step} is missing, damaged, or of other centroids",
                file=plan.folder,
                hint=f"run bin.kmeans assign --part {part}/{plan.parts}",
            )
        yield found


def _added(plan: Plan, step: int, digest: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sums [K, D], counts [K] and costs [3] of all parts, added in the order of the parts."""
    sums, counts, costs = np.zeros((plan.k, plan.dim)), np.zeros(plan.k, np.int64), np.zeros(3)
    for found in _all_parts(plan, step, lambda part: _sums(plan, step, part, digest)):
        sums += found["sums"]
        counts += found["counts"]
        costs += found["costs"]
    return sums, counts, costs


def _all_labels(plan: Plan, step: int, digest: str, placed: bool = False) -> dict[str, np.ndarray]:
    found = list(_all_parts(plan, step, lambda part: _labels(plan, step, part, digest, placed)))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _update(plan: Plan, step: int, device: str) -> None:
    now, options = _Centroids.read(plan, step), plan.options
    sums, counts, costs = _added(plan, step, now.digest)
    moved, cost = costs[0] / plan.n, (costs[2] - 2 * costs[1]) / plan.n
    centroids = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        labels = _all_labels(plan, step, now.digest)["labels"].astype(np.int64)
        rng = np.random.default_rng([options.seed, 2, step])
        centroids[empty] = Rows(plan)[km._donors(labels, counts, len(empty), rng)]
    recelled = km.default_cells(plan.k) > 1 and step in km.RECELL  # new cells have another objective
    settled = step > 0 and not recelled and now.cost - cost <= km.TOL * now.cost
    converged = bool(moved == 0 or settled)
    last = step + 1 == options.iterations or converged
    coarse = now.coarse
    if step + 1 in km.RECELL and not last:
        coarse = _cells(plan, centroids, device)
    after = _Centroids(centroids, coarse, now.repaired + len(empty), moved, cost, converged, now.digest)
    after.write(plan, step + 1)
    plan.go_to(step + 1, last)
    print(f"{plan.folder}: iteration {step}: {moved:.4f} of the points moved, mean squared distance {cost:.5f}, "
          f"{len(empty)} empty clusters", flush=True)  # fmt: skip
    _remove(plan, f"sums.{step}.", f"labels.{step - 1}.", f"centroids.{step}.")


def _remove(plan: Plan, *starts: str) -> None:
    for file in plan.folder.iterdir():
        if file.name.startswith(starts):
            file.unlink()


# ---- finish ----------------------------------------------------------------------------------------------------------
def ended(folder: str | Path, asked: dict, embeddings: list[str]) -> Plan:
    """The plan of a k-means that has ended. UserError: it has not, or has other embeddings or options."""
    plan = Plan.read(folder)
    if plan.asked != asked or plan.scps != _absolute(embeddings):
        raise UserError(
            "is a k-means with other embeddings or options", file=folder, hint="run bin.kmeans start"
        )
    if not plan.step()[1]:
        raise UserError("k-means has not ended", file=folder, hint="go on with bin.kmeans assign and update")
    plan.check_files()
    return plan


def label_round(
    plan: Plan, data: DataDir, *, previous: DataDir | None, truth, device: str = "cpu"
) -> tuple[DataDir, dict]:
    """`labeling.label_round` of a k-means that has ended: AHC of its centroids, names, report.

    Copies are counted as there, but they take part like all others.
    """
    step, options = int(plan.step()[0]), plan.options
    now = _Centroids.read(plan, step)
    sums, counts, costs = _added(plan, step, now.digest)
    found = _all_labels(plan, step, now.digest, placed=True)
    labels, rows = found["labels"].astype(np.int64), Rows(plan)
    stats: dict[str, Any] = {"iterations": step, "empty_repaired": now.repaired, "moved": now.moved}
    stats["converged"] = now.converged
    stats["objective"] = float((costs[2] - 2 * costs[1]) / plan.n)
    info: dict[str, Any] = {"method": options.method, "kmeans": stats}
    tree = np.arange(plan.k)
    if options.method == "kmeans-ahc":
        info = {"method": options.method, "num_kmeans": plan.k, "kmeans": stats}

        def choose(**how):
            some = num_clusters.sampled(plan.n, options.seed)
            return num_clusters.choose_from(rows[some], labels[some], sums, counts, now.centroids, **how)

        tree = pipeline.cut_centroids(now.centroids, options, device, info, choose)
    sizes = np.bincount(tree, counts).astype(np.int64)
    code = np.cumsum(sizes > 0) - 1  # a cluster may have lost all points in the last pass
    total = np.zeros((int(code[-1]) + 1, plan.dim))
    np.add.at(total, code[tree[counts > 0]], sums[counts > 0])
    sizes, labels = sizes[sizes > 0], code[tree[labels]]
    first = copies.first_of_placed(rows, found.pop("places"), sums.sum(0) / plan.n)

    def similarity(keep: np.ndarray) -> dict:
        kept = np.bincount(labels[keep], minlength=len(sizes)) > 0
        at = np.flatnonzero(keep)[quality.sampled(int(keep.sum()), options.seed)]
        return quality.silhouette(rows[at], (np.cumsum(kept) - 1)[labels[at]], total[kept], sizes[kept])

    return labeling.name_round(labels, info, data, options, first, similarity, previous=previous, truth=truth)
