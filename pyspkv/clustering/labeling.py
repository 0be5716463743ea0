"""From embeddings to pseudo-labels: unit vectors in a data directory's order, clusters, names, report."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pyspkv.base.errors import UserError
from pyspkv.clustering import pipeline, quality, vectors
from pyspkv.clustering.copies import first_of_each, shared
from pyspkv.clustering.options import Options
from pyspkv.data.ark import Embeddings, read_embeddings
from pyspkv.data.datadir import DataDir

log = logging.getLogger(__name__)


def label_round(
    x: np.ndarray,
    data: DataDir,
    options: Options,
    *,
    previous: DataDir | None = None,
    truth: Sequence[str] | None = None,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
) -> tuple[DataDir, dict]:
    """Cluster unit vectors x float32 [N, D], in the order of data.utts.

    Args:
        previous: data directory of the round before; a cluster that matches one of its clusters gets that
            name.
        truth: true speakers [N], used only for `diagnostics` in the report.
        checkpoint: file from which a killed k-means resumes; see `kmeans`.

    Returns `data` with the clusters c00000, c00001, ... as speakers, without the clusters below
    options.min_size, and the report (report.json without `asked` and `embeddings`). Utterances that share an
    embedding are named in a warning. UserError: impossible options; no cluster is large enough; `previous`
    shares no utterance with `data`.
    """
    options.check(len(x), data.path)
    k1 = options.centroids(len(x))
    first = first_of_each(x)
    labels, info = pipeline.cluster(
        x, options.method, options.num_clusters, num_kmeans=k1, linkage=options.linkage, metric=options.metric,
        max_iter=options.iterations, seed=options.seed, device=device, checkpoint=checkpoint, first=first,
    )  # fmt: skip
    info["method"] = "ahc" if k1 == len(x) and options.method == "kmeans-ahc" else options.method

    def similarity(keep: np.ndarray) -> dict:
        return quality.similarity(x if keep.all() else x[keep], labels[keep], seed=options.seed)

    return name_round(labels, info, data, options, first, similarity, previous=previous, truth=truth)


def name_round(
    labels: np.ndarray,
    info: dict,
    data: DataDir,
    options: Options,
    first: np.ndarray,
    similarity: Callable[[np.ndarray], dict],
    *,
    previous: DataDir | None,
    truth: Sequence[str] | None,
) -> tuple[DataDir, dict]:
    """Finish `label_round` once the clusters, int64 [N], are known; returns the same.

    info: entries for the report. first: output of `copies.first_of_each`. similarity(keep): `quality.similarity` of
    the utterances with keep, bool [N].
    """
    copies = shared(first)
    if len(copies):
        some = ", ".join(data.utts[i] for i in copies[:5]) + (", ..." if len(copies) > 5 else "")
        log.warning("warning: %d utterances have the same embedding as another: %s", len(copies), some)
    report = {
        "num_clusters": 0,
        "method": info["method"],
        "seed": options.seed,
        **info,
        "copies": len(copies),
    }
    if previous is not None:
        labels, report["stability"] = match_previous(labels, data.utts, previous)
    counts = np.bincount(labels)
    keep = counts[labels] >= options.min_size
    if not keep.any():
        raise UserError(f"no cluster reaches --min-size {options.min_size}", file=data.path)
    width = max(5, len(str(int(labels.max()))))
    out = data.with_speakers([f"c{label:0{width}d}" for label in labels.tolist()])
    report["dropped_utts"] = int((~keep).sum())
    report["dropped_clusters"] = int(((counts > 0) & (counts < options.min_size)).sum())
    if not keep.all():
        out = out.subset([u for u, good in zip(data.utts, keep) if good])
    report["sizes"] = quality.sizes(labels[keep])
    report["num_clusters"] = report["sizes"]["num_clusters"]
    report["quality"] = similarity(keep)
    if truth is not None:
        report["diagnostics"] = quality.diagnostics(labels[keep], np.array(truth)[keep])
    report["label_hash"] = out.label_hash()
    return out, report


def _cluster_numbers(names: Sequence[str]) -> np.ndarray | None:
    """`c00012` -> 12, int64 [N]; None unless all names have the form that `label_round` gives."""
    if not all(re.fullmatch(r"c[0-9]{1,8}", name) for name in names):
        return None
    numbers = np.array([int(name[1:]) for name in names], dtype=np.int64)
    return numbers if len(np.unique(numbers)) == len(set(names)) else None


def match_previous(labels: np.ndarray, utts: Sequence[str], previous: DataDir) -> tuple[np.ndarray, dict]:
    """Match clusters with the previous round's: new ids int64 [N], stability over common utterances.

    Speakers of `previous` that `label_round` has not named are numbered in the order of their names.
    UserError: no utterance in common.
    """
    old_of = dict(zip(previous.utts, previous.spk))
    common = np.array([u in old_of for u in utts])
    if not common.any():
        raise UserError(
            "shares no utterance with --data",
            file=previous.path,
            hint="give the data directory of the round before",
        )
    names = [old_of[u] for u in utts if u in old_of]
    numbers = _cluster_numbers(names)
    if numbers is None:
        numbers = np.unique(np.array(names), return_inverse=True)[1].reshape(-1)
    old = np.full(len(labels), -1, dtype=np.int64)
    old[common] = numbers
    return quality.match_labels(labels, old), quality.stability(labels[common], old[common])


def side_by_side(scps: Sequence[str], data: DataDir, power: float | None) -> np.ndarray:
    """Concatenated unit vectors of several models, float32 [N, D], in the order of data.utts.

    power: strength of whitening, applied to each model's vectors; None: no whitening.
    """
    parts = []
    for scp in scps:
        x = unit_vectors(read_embeddings(scp), data, scp)
        parts.append(x if power is None else vectors.whiten(x, power))
    return beside(parts)


def beside(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Unit vectors [N, D] of several models as one, which are unit vectors again."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 1) / np.float32(len(parts) ** 0.5)


def entries_of(data: DataDir, ids: Sequence[str], scp: str) -> np.ndarray:
    """Index in `ids` of each of data.utts, int64 [N]. UserError: utterances have no embedding."""
    row = {u: i for i, u in enumerate(ids)}
    missing = [u for u in data.utts if u not in row]
    if missing:
        some = " ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise UserError(
            f"{len(missing)} of {len(data.utts)} utterances have no embedding: {some}",
            file=scp,
            hint="extract the embeddings of all of --data, or give the utterances that have one (subset_data_dir.sh)",
        )
    return np.fromiter((row[u] for u in data.utts), dtype=np.int64, count=len(data.utts))


def unit_vectors(emb: Embeddings, data: DataDir, scp: str) -> np.ndarray:
    """float32 [N, D] unit vectors in the order of data.utts.

    UserError: utterances have no embedding, or a zero one.
    """
    order = entries_of(data, emb.ids, scp)
    x = emb.vectors()
    if len(order) != len(x) or (order != np.arange(len(x))).any():
        x = x[order]
    bad = vectors.unit_rows(x)
    if len(bad):
        raise UserError(f"embedding of utterance {data.utts[bad[0]]} is all zeros", file=scp)
    return x
