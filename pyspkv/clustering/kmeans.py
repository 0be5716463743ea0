"""k-means for many clusters of many embeddings: Lloyd's iterations with exact or inverted-file (IVF) assignment.

An exact pass over 1,092,009 x 256 embeddings and 50,000 centroids takes 28 TFLOP. With IVF the centroids are
grouped into `cells`, and a point is compared only with the centroids of its `probes` nearest cells (the
search of Jegou et al. 2011, PAMI 33(1), used here for the assignment step). The usual cells, about sqrt(k)
clusters of the points, do not work here: each mixes a dozen speakers, so a noisy point tells little about
which cells are near. Instead the centroids themselves are clustered (Ward) into k / 8 cells, about one
speaker each. At 100,000 points, 32 probes find the nearest centroid of 99.97 % of them. Exact assignment is
the same code with one cell. Figures: benchmarks/RESULTS.md.
"""

import hashlib
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.clustering.vectors import l2_normalize

log = logging.getLogger(__name__)
BLOCK = 24 << 20  # bytes of one block of products on a CPU
EXACT_BELOW = 8192  # below this many centroids exact assignment is not slower, so `cells=None` means exact
PROBES = 64  # loses 0.003 of NMI at full size, 32 probes lose 0.006 (benchmarks/RESULTS.md)
RECELL = (0, 3)  # iterations that group the centroids anew: at the start, and once centroids are averages
GROUP = 16
TOL = 1e-6  # share of its objective by which k-means must improve in an iteration to go on
MAX_ITERATIONS = 300  # limit for k-means that does not converge


class Points:
    """Points x float32 [N, D] whose nearest centroids are wanted. On a GPU, x is copied there."""

    def __init__(self, x: np.ndarray, device: str = "cpu"):
        import torch

        self.torch, self.device = torch, torch.device(device)
        self.x = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(self.device)
        self.block = BLOCK if self.device.type == "cpu" else 1 << 30


class Assigner(Points):
    """Nearest centroids: argmax_j <x, c_j> - bias_j.

    With bias_j = |c_j|^2 / 2 this is the Euclidean nearest.
    """

    def __init__(self, x: np.ndarray, device: str = "cpu"):
        super().__init__(x, device)
        self.coarse: Any = None  # centers of the cells, float32 [cells, D]
        self.lists: Any = None  # for each cell, the rows that search it; see `_lists`

    def recell(self, centroids: np.ndarray, cells: int, probes: int) -> None:
        """Group these centroids into `cells` Ward clusters; from now on search the nearest `probes`."""
        from pyspkv.clustering.agglomerative import agglomerate

        labels, _ = agglomerate(centroids, num_clusters=cells, device=str(self.device))
        sums, counts = sums_of(centroids, labels, cells)
        self.use_cells((sums / counts[:, None]).astype(np.float32), probes)

    def use_cells(self, coarse: np.ndarray, probes: int) -> None:
        """Use the cells with the centers coarse float32 [cells, D]."""
        self.lists = None  # free the old lists first: they are the largest object here
        self.coarse = self.torch.from_numpy(coarse).to(self.device)
        self.lists = self._lists(min(probes, len(coarse)))

    def _lists(self, probes: int):
        """For each cell, the rows (int32, ascending) that search it."""
        torch, n = self.torch, len(self.x)
        cell = torch.empty(n, probes, dtype=torch.int32)
        bias = self.coarse.square().sum(1) / 2
        step = max(1, self.block // (4 * len(self.coarse)))
        for first in range(0, n, step):
            score = self.x[first : first + step] @ self.coarse.T
            cell[first : first + step] = _top(torch, score.sub_(bias), probes).to("cpu", torch.int32)
        flat = cell.view(-1)
        counts = torch.bincount(flat, minlength=len(self.coarse)).tolist()
        order = flat.argsort(stable=True)
        rows = order.div_(probes, rounding_mode="floor").to(torch.int32)
        return rows.to(self.device).split(counts)

    def __call__(self, centroids: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """centroids float32 [K, D], bias float32 [K] -> (labels int64 [N], the best scores float32 [N])."""
        torch, n = self.torch, len(self.x)
        c = torch.from_numpy(np.ascontiguousarray(centroids)).to(self.device)
        bias = torch.from_numpy(bias.astype(np.float32)).to(self.device)
        best = torch.full((n,), -torch.inf, device=self.device)
        label = torch.full((n,), -1, dtype=torch.int32, device=self.device)
        if self.coarse is not None:
            for rows, inside in zip(self.lists, self._insides(c)):
                if len(inside) and len(rows):
                    self._cell(rows, c[inside], bias[inside], inside.int(), best, label)
        left = (label < 0).nonzero().view(-1)
        if len(left):  # without cells: all points; with cells: points whose probed cells are all empty
            every = torch.arange(len(c), dtype=torch.int32, device=self.device)
            self._cell(None if len(left) == n else left.int(), c, bias, every, best, label)
        return label.cpu().numpy().astype(np.int64), best.cpu().numpy()

    def _insides(self, c):
        """For each cell, the centroids (ascending, int64) of c [K, D] that lie in it."""
        torch = self.torch
        bias = self.coarse.square().sum(1) / 2
        cell = torch.cat([(part @ self.coarse.T - bias).argmax(1) for part in c.split(1024)])
        counts = torch.bincount(cell, minlength=len(self.coarse)).tolist()
        return cell.argsort(stable=True).split(counts)

    def _cell(self, rows, c, bias, ids, best, label):
        """Score `rows` (None: all) against centroids c; update `best` and `label` where a score is higher."""
        torch = self.torch
        total = len(self.x) if rows is None else len(rows)
        step = min(total, max(64, self.block // (4 * max(len(c), c.shape[1]))))
        buffer = torch.empty(step, len(c), device=self.device)
        for first in range(0, total, step):
            if rows is None:
                part = slice(first, first + step)
                points = self.x[part]
            else:
                part = rows[first : first + step]
                points = self.x.index_select(0, part)
            score = torch.mm(points, c.T, out=buffer[: len(points)])
            value, at = score.sub_(bias).max(1)
            old = best[part]
            better = value > old
            best[part] = torch.where(better, value, old)
            label[part] = torch.where(better, ids[at], label[part])


class Bounded(Points):
    """Exact nearest centroids argmax_j <x, c_j>, iteration after iteration, for unit vectors x.

    A centroid that moves by d changes a score by at most d. So a lower bound on the score of a point's own
    centroid and an upper bound on the best other score show whether the point must be searched again
    (Hamerly, SDM 2010, with products instead of distances). Label and bounds take 16 bytes per point.
    """

    SLACK = 1e-5  # rounding error of float32 products

    def __init__(self, x: np.ndarray, device: str = "cpu"):
        super().__init__(x, device)
        self.before = None
        self.label = self.torch.zeros(len(x), dtype=self.torch.int64, device=self.device)
        self.own = self.torch.zeros(len(x), device=self.device)  # lower bound on the own centroid's score
        self.other = self.torch.zeros(len(x), device=self.device)  # upper bound on all other scores
        self.looked_at = 0

    def __call__(self, centroids: np.ndarray) -> np.ndarray:
        """centroids float32 [K, D] -> labels int64 [N]."""
        torch, n = self.torch, len(self.x)
        c = torch.from_numpy(centroids.copy()).to(self.device)
        rows = torch.arange(n, device=self.device)
        if self.before is not None:
            shift = (c - self.before).norm(dim=1)
            far = shift.topk(min(2, len(c)))
            self.own -= shift[self.label]
            self.other += torch.where(self.label == far.indices[0], far.values[-1], far.values[0])
            rows = self._doubtful(rows)
            for part in rows.split(1 << 16):
                self.own[part] = (self.x[part] * c[self.label[part]]).sum(1)
            rows = self._doubtful(rows)
        self.before = c
        self.looked_at += len(rows)
        for part in rows.split(max(64, self.block // (4 * len(c)))):
            score = self.x[part] @ c.T
            self.own[part], at = score.max(1)
            self.label[part] = at
            self.other[part] = score.scatter_(1, at[:, None], -torch.inf).amax(1)
        return self.label.cpu().numpy().copy()

    def _doubtful(self, rows):
        """The rows whose bounds do not exclude another nearest centroid."""
        return rows[self.own[rows] <= self.other[rows] + self.SLACK]


def _top(torch, score, num: int):
    """Columns of the `num` largest entries of score [R, C], unsorted: int64 [R, num].

    The num largest entries lie in the num groups with the largest maxima. topk on those is several times
    faster.
    """
    rows, width = score.shape
    groups = width // GROUP
    if groups <= 2 * num:
        return score.topk(min(num, width), dim=1, sorted=False).indices
    rest = width - groups * GROUP  # the last columns fill no group and are compared one by one
    blocks = score[:, : groups * GROUP].unflatten(1, (groups, GROUP))
    which = blocks.amax(2).topk(num, dim=1, sorted=False).indices
    near = blocks.gather(1, which[:, :, None].expand(-1, -1, GROUP)).reshape(rows, -1)
    cols = (which[:, :, None] * GROUP + torch.arange(GROUP, device=score.device)).reshape(rows, -1)
    if rest:
        tail = torch.arange(groups * GROUP, width, device=score.device).expand(rows, -1)
        near, cols = torch.cat([near, score[:, groups * GROUP :]], 1), torch.cat([cols, tail], 1)
    return cols.gather(1, near.topk(num, dim=1, sorted=False).indices)


def default_cells(k: int) -> int:
    """Number of cells for k centroids: 1 (exact assignment) below EXACT_BELOW, else k / 8."""
    return 1 if k < EXACT_BELOW else k // 8


def sums_of(x: np.ndarray, labels: np.ndarray, k: int, block: int = 16384) -> tuple[np.ndarray, np.ndarray]:
    """Sums (float64 [k, D]) and counts (int64 [k]) of the rows of x [N, D] by label, without labels < 0."""
    import torch

    out = torch.zeros(k, x.shape[1], dtype=torch.float64)
    for first in range(0, len(x), block):
        part = torch.from_numpy(labels[first : first + block])
        rows = torch.from_numpy(x[first : first + block]).double()
        if (part < 0).any():
            rows, part = rows[part >= 0], part[part >= 0]
        out.index_add_(0, part, rows)
    return out.numpy(), np.bincount(labels[labels >= 0], minlength=k)


def kmeans(
    x: np.ndarray,
    k: int,
    seed: int = 0,
    max_iter: int = MAX_ITERATIONS,
    *,
    spherical: bool = False,
    cells: int | None = None,
    probes: int = PROBES,
    tol: float = TOL,
    checkpoint: str | Path | None = None,
    device: str = "cpu",
    progress: bool = False,
    stats: dict | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """k-means of x float32 [N, D]: (labels int64 [N], centroids float32 [k, D]).

    Starts from k distinct rows drawn with `seed`: k-means++ needs a pass over x for each centroid, too much for 50,000
    of them. Stops when no point changes cluster, when the objective falls by at most the share `tol`, or after
    `max_iter` updates. The labels belong to the returned centroids. An empty cluster is moved onto a random member of
    one of the largest clusters (each gives one member) and counted in `empty_repaired`.

    Args:
        spherical: keep centroids on the unit sphere (x should lie there too) and compare by inner product.
        cells: 1 means exact assignment; None means `default_cells(k)`.
        probes: number of cells that are searched for each point.
        checkpoint: file that every iteration replaces. A rerun with the same arguments resumes from it, with
            the same result. A damaged file, or one made from other data or arguments, is replaced, with a
            warning.
        stats: receives iterations, empty_repaired, moved (share of points that changed cluster in the last
            iteration), converged and objective (mean squared distance; 1 - cosine if spherical).

    Float64 sums are made on the CPU in a fixed order; on a GPU only the rounding of the products differs.
    ValueError: k is not in 1..N.
    """
    from tqdm import tqdm

    x = np.ascontiguousarray(x, dtype=np.float32)
    n = len(x)
    if not 1 <= k <= n:
        raise ValueError(f"k-means: {k} clusters of {n} points")
    num_cells = default_cells(k) if cells is None else min(cells, k)
    assign = Assigner(x, device)
    centroids = x[np.sort(np.random.default_rng([seed, 0]).choice(n, k, replace=False))]
    if spherical:
        centroids = _unit(centroids)
    labels, start, repaired, moved, cost, converged = None, 0, 0, 1.0, math.nan, False
    square = 0.0 if spherical else float(np.einsum("nd,nd->", x, x, dtype=np.float64)) / n
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        key = repr(
            (n, x.shape[1], k, seed, spherical, cells, probes, tol, hashlib.sha256(x.data).hexdigest())
        )
    if checkpoint is not None and os.path.lexists(checkpoint):
        state = _load(checkpoint, key, n, k, x.shape[1])
        if state is None:
            checkpoint.unlink()  # of a symbolic link, only the link is removed
        else:
            centroids, labels, coarse, start, repaired, moved, cost, converged = state
            if len(coarse):
                assign.use_cells(coarse, probes)
    bar = tqdm(total=max_iter, initial=start, desc="k-means", disable=None if progress else True)
    for it in range(start, max_iter + 1):
        if it == max_iter or converged:
            break
        recelled = num_cells > 1 and it in RECELL
        if recelled:
            assign.recell(centroids, num_cells, probes)
        new, best = assign(centroids, _bias(centroids, spherical))
        moved = 1.0 if labels is None else float((new != labels).mean())
        before, cost = cost, _objective(square, best, spherical)
        settled = (
            tol > 0 and not recelled and before - cost <= tol * before
        )  # new cells have another objective
        converged = moved == 0 or settled
        labels = new
        sums, counts = sums_of(x, labels, k)
        centroids = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            repaired += len(empty)
            donors = _donors(labels, counts, len(empty), np.random.default_rng([seed, 2, it]))
            centroids[empty] = x[donors]
        if spherical:
            centroids = _unit(centroids)
        if checkpoint is not None:
            numbers = it + 1, repaired, moved, cost, converged
            _save(checkpoint, key, centroids, labels, assign.coarse, numbers)
        bar.update()
        bar.set_postfix(moved=f"{moved:.4f}", empty=repaired)
        start = it + 1
    bar.close()
    labels, best = assign(centroids, _bias(centroids, spherical))
    if stats is not None:
        cost = _objective(square, best, spherical)
        stats.update(
            iterations=start, empty_repaired=repaired, moved=moved, converged=converged, objective=cost
        )
    return labels, centroids


def _objective(square: float, best: np.ndarray, spherical: bool) -> float:
    """Mean squared distance (spherical: 1 - cosine) of the points to their centroids.

    square: mean of the points' squared norms. best: scores [N] of the nearest centroids.
    """
    mean = float(best.mean(dtype=np.float64))
    return 1 - mean if spherical else square - 2 * mean


def _bias(centroids: np.ndarray, spherical: bool) -> np.ndarray:
    return (
        np.zeros(len(centroids), np.float32) if spherical else np.einsum("kd,kd->k", centroids, centroids) / 2
    )


def _unit(c: np.ndarray) -> np.ndarray:
    return c / np.maximum(np.linalg.norm(c, axis=1, keepdims=True), 1e-12)


def _donors(labels, counts, num, rng):
    """Up to `num` distinct rows: a random member of each of the largest clusters, then the largest again."""
    order = np.argsort(labels, kind="stable")
    begin = np.cumsum(counts) - counts
    rank = np.argsort(-counts, kind="stable")
    rank = rank[counts[rank] > 1]
    rows: list[int] = []
    used: set[int] = set()
    while len(rows) < num and len(rank):
        for c in rank:
            if len(rows) == num:
                break
            row = int(order[begin[c] + rng.integers(counts[c])])
            if row not in used:
                used.add(row)
                rows.append(row)
    return np.array(rows, dtype=np.int64)


def _save(path, key, centroids, labels, coarse, numbers):
    from pyspkv.base.atomic import atomic_file

    with atomic_file(path, "wb") as f:
        np.savez(f, key=np.array(key), centroids=centroids, labels=labels.astype(np.int32),
                 coarse=np.zeros((0, 0), np.float32) if coarse is None else coarse.cpu().numpy(),
                 numbers=np.array(numbers, dtype=np.float64))  # fmt: skip


def _load(path, key, n: int, k: int, dim: int):
    """Read the state in `path`. If it is damaged, or of other data or options: None, with a warning."""
    try:
        if not path.is_file() or path.is_symlink():
            raise UserError("it was not written by this program")
        with np.load(path, allow_pickle=False) as f:
            if sum(part.file_size for part in f.zip.infolist()) > 8 * k * dim + 4 * n + 10_000:
                raise UserError("it is too large")
            if str(f["key"]) != key:
                raise UserError("it belongs to other embeddings or options")
            iteration, repaired, moved, cost, converged = f["numbers"].tolist()
            centroids, labels, coarse = f["centroids"], f["labels"].astype(np.int64), f["coarse"]
        fits = (
            centroids.shape == (k, dim)
            and labels.shape == (n,)
            and coarse.shape in ((0, 0), (len(coarse), dim))
        )
        if not fits or not 0 <= labels.min() <= labels.max() < k or not np.isfinite(centroids).all():
            raise UserError("its arrays do not fit")
        return centroids, labels, coarse, int(iteration), int(repaired), moved, cost, bool(converged)
    except Exception as err:  # np.load raises many kinds of errors for a damaged file
        why = err if isinstance(err, UserError) else "it is damaged"
        log.warning("%s cannot be resumed (%s); k-means starts again", path, why)
        return None


def constrained_kmeans(
    x: np.ndarray,
    seeds_index: np.ndarray,
    seeds_label: np.ndarray,
    k: int,
    *,
    seed: int = 0,
    max_iter: int = 100,
    tol: float = 1e-4,
    spherical: bool = True,
    device: str = "cpu",
    stats: dict | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Constrained-KMeans of Basu et al. 2002: labeled points start the centroids and never change cluster.

    x float32 [N, D] is normalized here. Rows `seeds_index` [L] belong to clusters `seeds_label` [L] (0..k-1),
    so cluster j is speaker j. A cluster without a labeled point starts from a random unlabeled one. Stops
    when no coordinate of a centroid moves by `tol` or more, or after `max_iter`. Returns (labels int64 [N],
    centroids float32 [k, D]). The labels are those of the last assignment; every labeled point has its own
    label.

    spherical=True: unit centroids, compared by cosine. spherical=False with tol=0.05 is the assignment of
    GLL's code: means that are not normalized, compared by inner product. The result does not depend on `seed`
    when every cluster has a labeled point and none becomes empty. ValueError: seeds out of range, or too few
    unlabeled points.
    """
    from tqdm import tqdm

    x = l2_normalize(x)
    index, given = np.asarray(seeds_index, dtype=np.int64), np.asarray(seeds_label, dtype=np.int64)
    _check_seeds(index, given, len(x), k)
    fixed = np.full(len(x), -1, dtype=np.int64)
    fixed[index] = given
    free, rng = np.flatnonzero(fixed < 0), np.random.default_rng(seed)
    centroids = _seed_centroids(x, fixed, k, rng)
    if spherical:
        centroids = _unit(centroids)
    labels, repaired, it = fixed.copy(), 0, 0
    assign = Bounded(x, device)
    bar = tqdm(
        total=max_iter if len(free) else 0, desc="constrained k-means", disable=None if progress else True
    )
    for it in range(1, bar.total + 1):  # noqa: B007
        labels = assign(centroids)
        labels[index] = given
        sums, counts = sums_of(x, labels, k)
        new = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            repaired += len(empty)
            new[empty] = x[rng.choice(free, len(empty), replace=False)]
        if spherical:
            new = _unit(new)
        moved = float(np.abs(new - centroids).max())
        centroids = new
        bar.update()
        bar.set_postfix(moved=f"{moved:.2g}", refresh=False)
        if moved < tol:
            break
    bar.close()
    if stats is not None:
        stats.update(iterations=it, empty_repaired=repaired, looked_at=assign.looked_at)
    return labels, centroids


def _check_seeds(index: np.ndarray, given: np.ndarray, n: int, k: int) -> None:
    """ValueError: rows `index` [L] and labels `given` [L] differ in length, repeat, or are out of range."""
    if index.shape != given.shape or len(np.unique(index)) != len(index):
        raise ValueError("seeds_index and seeds_label must pair each labeled row with one label")
    if len(index) and (given.min() < 0 or given.max() >= k or index.min() < 0 or index.max() >= n):
        raise ValueError(f"seeds out of range: labels 0..{k - 1}, rows 0..{n - 1}")


def _seed_centroids(x: np.ndarray, fixed: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [k, D]: means of labeled points; a cluster without any starts from a random unlabeled point.

    x [N, D]; fixed int64 [N], -1 for unlabeled points. ValueError: too few unlabeled points.
    """
    free = np.flatnonzero(fixed < 0)
    sums, counts = sums_of(x, fixed, k)
    centroids = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    orphan = np.flatnonzero(counts == 0)
    if len(orphan) > len(free):
        raise ValueError(f"{len(orphan)} clusters without a labeled point, {len(free)} unlabeled points")
    if len(orphan):
        centroids[orphan] = x[rng.choice(free, len(orphan), replace=False)]
    return centroids
