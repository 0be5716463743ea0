"""Exact Ward and cosine-average clustering by parallel reciprocal nearest neighbors, in O(N x D) memory.

Both linkages are reducible: d(i + j, k) >= min(d(i, k), d(j, k)) (Bruynooghe 1978). Two facts follow. Merging
*every* pair of mutual nearest neighbors at once, in any order, builds the same tree as the greedy algorithm
(Murtagh 1983). And a lower bound on the distances of a cluster stays valid whatever other clusters do:

- Each cluster keeps a short list of near clusters with exact distances, and `bound`: no cluster outside the
  list is closer than this number, now or later. While the best entry of the list is within the bound, it is
  the nearest neighbor and no search is needed. When two clusters merge, their lists are united and the
  smaller bound is kept.
- Only where this certificate fails are all clusters searched, by blocked float32 products of centroids. The
  rounding error of the products is estimated from above (Higham 2002, section 3.5) and subtracted from the
  bound. Distances to listed candidates are recomputed in float64 from float64 centroids; merges are decided
  on these.
- The tree is built in levels: no pair is merged above height tau before all pairs below tau are merged, and a
  cluster whose lower bound is above tau is skipped. A cut at K clusters stops as soon as N - K merges are
  certain.

Distances need only centroids and sizes. Ward: 2 ni nj / (ni + nj) |ci - cj|^2, the square of scipy's height.
Average linkage of cosine distances: 1 - <mi, mj>, where mi is the mean of the cluster's unit vectors.

Distances that differ by less than 1e-12 relative are ties. Among tied mutual neighbors the pair with the
lowest row is merged first. (scipy and scikit-learn break ties in their own ways, so tied data may be cut
differently.) Equal rows are merged at height 0 before all else: one by one, each would be the nearest
neighbor of all the others.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

LIST = 8  # neighbors kept for each cluster
GROUP = 32  # columns that share one minimum in a search
TIE = 1e-12  # relative difference up to which two distances are a tie
BIG = 1e30  # stands for "no cluster here"; float32 can hold it


def agglomerate(
    x: np.ndarray,
    *,
    num_clusters: int | None = None,
    threshold: float | None = None,
    linkage: str = "ward",
    weights: np.ndarray | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster x float [N, D] down to `num_clusters`, or as long as heights are at most `threshold`.

    Args:
        linkage: "ward" (heights as in scipy) or "average" (of cosine distances; x is normalized here).
        weights: [N] > 0; a row of weight w counts as w equal points.
        progress: called as progress(done, wanted) after each round of merges.

    Returns int64 labels [N], numbered in the order of each cluster's first row, and the heights of the
    merges, float64, ascending. ValueError: not exactly one of num_clusters and threshold, or a value out of
    range.
    """
    n = len(x)
    if (num_clusters is None) == (threshold is None):
        raise ValueError("give num_clusters or threshold")
    if num_clusters is not None and not 1 <= num_clusters <= n:
        raise ValueError(f"num_clusters {num_clusters} is not within 1..{n}")
    state = _Clusters(x, weights, linkage, device)
    wanted = n - num_clusters if num_clusters is not None else n - 1
    ceiling = np.inf if threshold is None else (threshold**2 if linkage == "ward" else float(threshold))
    state.build(wanted, ceiling, progress)
    return state.cut(wanted, ceiling)


def cuts(x, counts, *, linkage: str = "ward", device: str = "cpu", progress=None) -> list[np.ndarray]:
    """Build one tree of x [N, D] and cut it into each of `counts` clusters: a list of int64 labels [N]."""
    state = _Clusters(x, None, linkage, device)
    state.build(len(x) - min(counts), np.inf, progress)
    return [state.cut(len(x) - count, np.inf)[0] for count in counts]


class _Clusters:
    """All clusters. Each has the slot (row) of its first member; an emptied slot points to its new one."""

    def __init__(self, x, weights, linkage, device):
        import torch

        n = len(x)
        if weights is not None and (np.shape(weights) != (n,) or not np.all(np.asarray(weights) > 0)):
            raise ValueError(f"weights must be {n} positive numbers")
        if linkage not in ("ward", "average"):
            raise ValueError(f"linkage {linkage} needs all pairwise distances")
        self.torch, self.ward, self.device = torch, linkage == "ward", torch.device(device)
        rows, firsts = duplicates(np.asarray(x))
        x = torch.tensor(np.asarray(x), dtype=torch.float64, device=self.device)  # a copy
        if self.ward:
            x -= x.mean(0)  # smaller numbers, smaller rounding in the searches
        else:
            x /= x.norm(dim=1, keepdim=True)
        self.cent = x
        new: dict[str, Any] = {"device": self.device}
        self.size = torch.ones(n, dtype=torch.float64, **new)
        if weights is not None:
            self.size = torch.as_tensor(np.asarray(weights), dtype=torch.float64).to(self.device).clone()
        self.alive = torch.ones(n, dtype=torch.bool, **new)
        self.rep = torch.arange(n, **new)
        self.list = torch.full((n, min(LIST, max(n - 1, 1))), -1, dtype=torch.int64, **new)
        self.dist = torch.full(self.list.shape, torch.inf, dtype=torch.float64, **new)
        self.bound = torch.zeros(n, dtype=torch.float64, **new)
        self.changed = torch.zeros(
            n, dtype=torch.int32, **new
        )  # round in which the slot last got new members
        self.seen = torch.zeros(n, dtype=torch.int32, **new)  # round in which its list was last computed
        self.height = torch.zeros(n, dtype=torch.float64, **new)  # height of the slot's last merge
        self.round, self.active, self.merges, self.columns = 0, n, [], None
        if len(rows):
            gone, into = torch.as_tensor(rows).to(self.device), torch.as_tensor(firsts).to(self.device)
            self.size.index_add_(0, into, self.size[gone])
            self.alive[gone], self.rep[gone], self.bound[gone] = False, into, torch.inf
            self.merges.append((gone.cpu(), into.cpu(), torch.zeros(len(gone), dtype=torch.float64)))
            self.active -= len(gone)
        # size of one block of products: 32 MiB on a CPU, 2 GiB on a GPU
        self.block_bytes = (32 << 20) if self.device.type == "cpu" else (2 << 30)

    # ---- exact distances of listed pairs -----------------------------------------------------------------
    def exact(self, rows, cols):
        """float64 distances [R, L] of the clusters in rows [R] to those in cols [R, L]."""
        torch = self.torch
        out = torch.empty(cols.shape, dtype=torch.float64, device=self.device)
        step = max(
            1, (4 << 20 if self.device.type == "cpu" else 1 << 30) // (8 * cols.shape[1] * self.cent.shape[1])
        )
        for first in range(0, len(rows), step):
            r, c = rows[first : first + step], cols[first : first + step]
            if self.ward:
                gap = self.cent[c.reshape(-1)].view(*c.shape, -1)
                gap -= self.cent[r][:, None]
                square = torch.linalg.vector_norm(gap, dim=2).square_()
                a, b = self.size[r][:, None], self.size[c]
                out[first : first + step] = square * (2 * a * b / (a + b))
            else:
                near = self.cent[c.reshape(-1)].view(*c.shape, -1)
                out[first : first + step] = (1 - (near * self.cent[r][:, None]).sum(2)).clamp_(min=0)
        return out

    def relist(self, rows, cols, bound):
        """Set the lists of `rows` [R] to the nearest of cols [R, L].

        Entries of cols are slots, also emptied ones; -1 means no entry.
        """
        torch = self.torch
        cols = torch.where(cols >= 0, self.rep[cols], rows[:, None])
        cols = cols.sort(dim=1).values
        bad = cols == rows[:, None]
        bad[:, 1:] |= cols[:, 1:] == cols[:, :-1]
        dist = self.exact(rows, cols).masked_fill_(bad, torch.inf)
        dist, order = dist.sort(dim=1, stable=True)  # ties: the lowest slot first
        cols, width = cols.gather(1, order), self.list.shape[1]
        if cols.shape[1] > width:
            bound = torch.minimum(bound, dist[:, width])
        cols = torch.where(torch.isinf(dist), -1, cols)
        self.list[rows], self.dist[rows], self.bound[rows] = cols[:, :width], dist[:, :width], bound
        self.seen[rows] = self.round

    def refresh(self, rows):
        """Recompute those lists of `rows` in which some cluster has changed since the list was made."""
        cols = self.list[rows]
        latest = self.torch.where(cols >= 0, self.changed[self.rep[cols]], 0).amax(1)
        rows, cols = rows[latest > self.seen[rows]], cols[latest > self.seen[rows]]
        if len(rows):
            self.relist(rows, cols, self.bound[rows])

    # ---- searches over all clusters ----------------------------------------------------------------------
    def prepare(self, dtype):
        """Make the columns of the products: a row per cluster, sorted by size, padded to a multiple of GROUP.

        Similar sizes stand side by side because a group shares the smallest size of its clusters in `lower`.
        """
        torch = self.torch
        slots = self.alive.nonzero().view(-1)
        slots = slots[self.size[slots].argsort(stable=True)]
        total = -(-len(slots) // GROUP) * GROUP
        dim = self.cent.shape[1]
        matrix = torch.zeros(total, dim + 2, dtype=dtype, device=self.device)
        for first in range(0, len(slots), 8192):  # blocks avoid a float64 copy of everything
            matrix[first : first + 8192][: len(slots[first : first + 8192])] = self.column(
                slots[first : first + 8192]
            ).to(dtype)
        matrix[len(slots) :, dim + 1] = BIG
        where = torch.full((total,), -1, dtype=torch.int64, device=self.device)
        where[: len(slots)] = slots
        place = torch.full((len(self.size),), -1, dtype=torch.int64, device=self.device)
        place[slots] = torch.arange(len(slots), device=self.device)
        return {"matrix": matrix, "slots": where, "place": place, "merged": 0}

    def column(self, slots):
        """A cluster's column, [R, D + 2]. Its product with `row` is the squared distance or 1 - cos."""
        c, one = self.cent[slots], self.torch.ones_like(self.size[slots])
        return self.torch.cat([c, one[:, None], (c.square().sum(1) if self.ward else one * 0)[:, None]], 1)

    def row(self, slots):
        """A cluster's row, [R, D + 2]; see `column`."""
        c, one = self.cent[slots], self.torch.ones_like(self.size[slots])
        norm = c.square().sum(1) if self.ward else one
        return self.torch.cat([c * (-2 if self.ward else -1), norm[:, None], one[:, None]], 1)

    def search(self, rows, take=LIST, exact=False):
        """Fill the lists of `rows` from all clusters, looking into the `take` nearest groups of columns.

        For rows whose nearest neighbor is still not certain (because sizes within a group differ too much)
        more groups are searched, and then float64 products are used (`exact`, for near-ties).
        """
        torch = self.torch
        dtype = torch.float64 if exact else torch.float32
        if exact:
            columns = self.prepare(dtype)
        else:
            if self.columns is None or self.columns["merged"] > 0.15 * len(self.columns["slots"]):
                self.columns = None
                self.columns = self.prepare(dtype)
            columns = self.columns
        matrix, slots, place = columns["matrix"], columns["slots"], columns["place"]
        total = len(slots)
        groups, width = total // GROUP, self.list.shape[1]
        live = slots >= 0
        size = torch.where(live, self.size[slots], torch.inf)
        # rounding error as a share of |row| |column|, accumulated over D + 2 products; doubled for safety
        unit = (self.cent.shape[1] + 8) * torch.finfo(dtype).eps * 2
        weight = torch.where(live, matrix[:, -1].double(), 0.0) if self.ward else torch.ones_like(size)
        group_size, group_weight = size.view(groups, GROUP).amin(1), weight.view(groups, GROUP).amax(1)
        group_live = torch.isfinite(group_size)
        step = max(1, self.block_bytes // (matrix.element_size() * total))
        buffer = torch.empty(min(step, len(rows)), total, dtype=dtype, device=self.device)
        take = min(take, groups)
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            score = buffer[: len(part)]
            left = self.row(part)
            own = left[:, -2:-1] if self.ward else torch.ones_like(left[:, :1])
            torch.mm(left.to(dtype), matrix.T, out=score)
            score.scatter_(1, place[part][:, None], BIG)
            blocks = score.view(len(part), groups, GROUP)
            low = blocks.amin(2).double()
            low = self.lower(low, own, group_weight, unit, self.size[part], group_size)
            low.masked_fill_(~group_live, torch.inf)
            value, which = low.topk(min(take + 1, groups), dim=1, largest=False)
            bound = value[:, take] if take < groups else torch.full_like(value[:, 0], torch.inf)
            which = which[:, :take]
            near = blocks.gather(1, which[:, :, None].expand(-1, -1, GROUP)).reshape(len(part), -1).double()
            cols = (which[:, :, None] * GROUP + torch.arange(GROUP, device=self.device)).reshape(
                len(part), -1
            )
            gone = near >= BIG / 2
            near = self.lower(near, own, weight[cols], unit, self.size[part], size[cols])
            near.masked_fill_(gone, torch.inf)
            keep = min(width, near.shape[1])
            value, best = near.topk(min(keep + 1, near.shape[1]), dim=1, largest=False)
            if value.shape[1] > keep:
                bound = torch.minimum(bound, value[:, keep])
            cols = torch.where(torch.isfinite(value[:, :keep]), slots[cols.gather(1, best[:, :keep])], -1)
            self.relist(part, cols, bound)
        unsure = rows[self.dist[rows, 0] > self.bound[rows]]
        if len(unsure):
            if exact:  # distances that float64 cannot tell apart are a tie
                self.bound[unsure] = self.dist[unsure, 0]
            elif take == LIST < groups:
                self.search(unsure, take=16 * LIST)
            else:
                self.search(unsure, take, exact=True)

    def lower(self, score, own, weight, unit, size, other):
        """Turn products [R, C] into lower bounds of distances: minus rounding, times Ward's factor.

        In place.
        """
        score -= unit * (own + weight)
        if self.ward:
            size = size[:, None]
            factor = 2 / (1 / size + 1 / other)  # other = inf (no such cluster) gives 2 size
            score.clamp_(min=0).mul_(factor)
        return score

    # ---- the rounds --------------------------------------------------------------------------------------
    def build(self, wanted: int, ceiling: float, progress=None):
        """Merge level by level until `wanted` merges are certain, or the rest lies above height `ceiling`."""
        torch = self.torch
        tau, done = -np.inf, len(self.size) - self.active
        if done >= wanted or self.active == 1:
            return
        self.search(self.alive.nonzero().view(-1))
        while True:
            low = torch.minimum(self.dist[:, 0], self.bound)
            rows = (self.alive & (low <= tau)).nonzero().view(-1)
            if not len(rows):
                if done >= wanted or self.active == 1 or tau >= ceiling:
                    return
                values = low[self.alive]
                # each level takes a quarter of the clusters; near the end no more than are needed
                count = min(len(values), max(64, min(len(values) // 4, wanted - done)))
                tau = min(float(values.kthvalue(count).values), ceiling)
                continue
            self.refresh(rows)
            rows = rows[torch.minimum(self.dist[rows, 0], self.bound[rows]) <= tau]
            unsure = rows[self.dist[rows, 0] > self.bound[rows]]
            if len(unsure):
                self.search(unsure)
                rows = rows[self.dist[rows, 0] <= tau]
            before = self.active
            self.merge(rows)
            if (
                len(rows) and self.active == before
            ):  # rounding broke the symmetry of a tie: merge the closest pair
                row = rows[self.dist[rows, 0].argmin()]
                pair = self.torch.stack([row, self.list[row, 0]]).sort().values
                self.join(pair[:1], pair[1:])
            done = len(self.size) - self.active
            if progress:
                progress(min(done, wanted), wanted)

    def merge(self, rows):
        """Merge all pairs of mutual nearest neighbors among `rows`, whose nearest are all certain."""
        torch = self.torch
        near, dist = self.list[rows, 0], self.dist[rows, 0]
        sure = self.dist[near, 0] <= self.bound[near]
        mutual = sure & (dist <= self.dist[near, 0] * (1 + TIE) + (0 if self.ward else 1e-14))
        a, b = torch.minimum(rows, near)[mutual], torch.maximum(rows, near)[mutual]
        while len(a):
            first = torch.full_like(self.rep, len(self.rep))
            first.scatter_reduce_(0, a, b, "amin").scatter_reduce_(0, b, a, "amin")
            pick = (first[a] == b) & (first[b] == a)
            pair = torch.unique(torch.stack([a[pick], b[pick]]), dim=1)
            self.join(pair[0], pair[1])
            done = torch.zeros_like(self.alive)
            done[pair] = True
            rest = ~(done[a] | done[b])
            a, b = a[rest], b[rest]

    def join(self, a, b):
        """Merge the clusters in slots b [P] into those in slots a [P]."""
        torch = self.torch
        height = torch.where(self.list[a, 0] == b, self.dist[a, 0], self.dist[b, 0])
        height = torch.maximum(height, torch.maximum(self.height[a], self.height[b]))
        self.merges.append((b.cpu(), a.cpu(), height.cpu()))
        self.height[a] = height
        na, nb = self.size[a][:, None], self.size[b][:, None]
        self.cent[a] = (na * self.cent[a] + nb * self.cent[b]) / (na + nb)
        self.size[a] += self.size[b]
        self.alive[b] = False
        self.rep[b] = a
        self.rep = self.rep[self.rep]
        self.round += 1  # later than any list seen so far
        self.changed[a] = self.round
        self.active -= len(a)
        if self.columns is not None:
            at = self.columns["place"]
            self.columns["matrix"][at[a]] = self.column(a).to(self.columns["matrix"].dtype)
            gone = at[b]
            self.columns["matrix"][gone] = 0
            self.columns["matrix"][gone, -1] = BIG
            self.columns["slots"][gone] = -1
            self.columns["merged"] += len(a)
        bound = torch.minimum(self.bound[a], self.bound[b])
        self.relist(a, torch.cat([self.list[a], self.list[b]], 1), bound)
        self.dist[b] = torch.inf
        self.bound[b] = torch.inf

    def cut(self, wanted: int, ceiling: float):
        """Labels and heights of the `wanted` lowest merges up to `ceiling`; see `cut_tree`."""
        labels, heights = cut_tree(
            len(self.size), [[part.numpy() for part in m] for m in self.merges], wanted, ceiling
        )
        return labels, np.sqrt(heights) if self.ward else heights


def duplicates(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of x [N, D] that equal an earlier row, int64 [M], and the first row that each of them equals."""
    x = np.ascontiguousarray(x)
    whole = x.view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).reshape(-1)
    _, first, code = np.unique(whole, return_index=True, return_inverse=True)
    into = first[code.reshape(-1)]
    gone = np.flatnonzero(into != np.arange(len(x)))
    return gone, into[gone]


def cut_tree(n: int, merges: list, wanted: int, ceiling: float) -> tuple[np.ndarray, np.ndarray]:
    """Apply the `wanted` lowest of the merges (gone, into, height) of n rows that are not above `ceiling`.

    A merge is at least as high as the merges that made its parts. Returns int64 labels [n], numbered in the
    order of each cluster's first row, and the heights, ascending.
    """
    if merges:
        gone, into, height = (np.concatenate([m[i] for m in merges]) for i in range(3))
    else:
        gone = into = np.zeros(0, dtype=np.int64)
        height = np.zeros(0)
    order = np.argsort(height, kind="stable")[:wanted]  # stable: children come before parents of equal height
    order = order[height[order] <= ceiling]
    parent = np.arange(n)
    parent[gone[order]] = into[order]
    while ((up := parent[parent]) != parent).any():
        parent = up
    _, first, codes = np.unique(parent, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[codes.reshape(-1)], np.maximum(height[order], 0)
