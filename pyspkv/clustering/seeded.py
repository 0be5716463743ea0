"""Pseudo-labels of unlabeled utterances from a few labeled ones: the public call `make_seeded_round`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspkv.audio import silence
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError
from pyspkv.clustering import made
from pyspkv.clustering.round import write_round
from pyspkv.data.datadir import DataDir, combine, read_table
from pyspkv.data.tables import values_for

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class SeededOptions:
    """Options of a seeded labeling: those of bin.seeded_cluster, where --help explains them."""

    method: str = "constrained"
    match_released_code: bool = False
    whiten: float | None = None
    neighbors: int = 15
    label_noise: float = 0.0
    seed: int = 0
    with_labeled: bool = False


def make_seeded_round(
    embeddings: str,
    labeled: str | Path,
    unlabeled: str | Path,
    out: str | Path,
    options: SeededOptions,
    *,
    truth: str | Path | None = None,
    report: str | Path | None = None,
) -> dict | None:
    """Give each utterance of the data directory `unlabeled` one of the speakers of `labeled`; write `out`.

    Args:
        embeddings: embedding.scp of all these utterances.
        truth: true utt2spk of the unlabeled utterances, used only for `diagnostics` in the report.
        report: file of the report (default: report.json beside `out`).

    Returns the report, or None if labels exist in `out` and are kept (see `make_round`). With
    options.label_noise the file `corrupted` beside `out` lists the utterances whose label was changed.
    UserError: an utterance is in both directories or has no embedding; `out` is one of them, or was made from
    something else.
    """
    out, report = Path(out), Path(report) if report else Path(out).with_name("report.json")
    for option, folder in (("labeled-data", labeled), ("unlabeled", unlabeled)):
        if out.resolve() == Path(folder).resolve():
            raise UserError(f"is the same directory as --{option}", file=out, hint="give another --out-data")
    asked = asdict(options) | {
        "labeled_data": made.data_digest(labeled, speakers=True),
        "unlabeled": made.data_digest(unlabeled),
    }

    def label() -> dict:
        both = _read_apart(labeled, unlabeled)
        true = values_for(read_table(truth, "id"), both[1].utts, truth) if truth else None
        digest = made.embeddings_digest(embeddings)
        silent = silence.among([embeddings], both[0].utts + both[1].utts)
        silence.warn(silent, unlabeled)
        written, found, corrupted = _label(embeddings, *both, options, true)
        if options.label_noise:
            with atomic_file(out.with_name("corrupted")) as f:
                f.writelines(f"{utt}\n" for utt in corrupted)
        if options.with_labeled:
            written, _ = combine(str(out), [both[0], written], [])
        found |= {
            "silent": len(silent),
            "label_hash": written.label_hash(),
            "asked": asked,
            "embeddings": [digest],
        }
        write_round(written, found, out, report)
        return found

    return made.unless_kept(out, report, asked, [embeddings], label)


def _read_apart(labeled: str | Path, unlabeled: str | Path) -> tuple[DataDir, DataDir]:
    """Read both data directories. UserError: an utterance is in both."""
    first, second = DataDir.read(labeled), DataDir.read(unlabeled)
    if both := set(first.utts) & set(second.utts):
        rule = f"{len(both)} utterances are also in --labeled-data; the first is {min(both)}"
        raise UserError(
            rule, file=unlabeled, hint="give two parts of one directory (split_labels.sh makes them)"
        )
    return first, second


def _label(
    scp: str, labeled: DataDir, unlabeled: DataDir, options: SeededOptions, truth: list[str] | None
) -> tuple[DataDir, dict, list[str]]:
    """Label `unlabeled`: (its copy with speakers, the report, utterances whose label was made wrong)."""
    import numpy as np

    from pyspkv.clustering import quality
    from pyspkv.data.label_noise import corrupt_labels

    speakers = sorted(set(labeled.spk))
    report: dict[str, Any] = {
        "method": options.method,
        "whiten": options.whiten,
        "num_labeled": len(labeled.utts),
        "num_clusters": len(speakers),
    }
    labels = _spread_labels(scp, labeled, unlabeled, options, report)
    labels, changed = corrupt_labels(labels, options.label_noise, len(speakers), options.seed)
    out = unlabeled.with_speakers([speakers[k] for k in labels])
    report["sizes"] = quality.sizes(labels)
    if truth is not None:
        report["diagnostics"] = quality.diagnostics(labels, np.array(truth))
        report["diagnostics"]["label_accuracy"] = float(np.mean(np.array(out.spk) == np.array(truth)))
    return out, report, [out.utts[row] for row in changed]


def _spread_labels(
    scp: str, labeled: DataDir, unlabeled: DataDir, options: SeededOptions, report: dict
) -> "np.ndarray":
    """Class of each unlabeled utterance, int64 [U]: an index into the sorted labeled speakers."""
    import numpy as np

    from pyspkv.clustering import kmeans, pipeline, vectors
    from pyspkv.clustering.labeling import unit_vectors
    from pyspkv.data.ark import read_embeddings

    emb = read_embeddings(scp)
    x = np.concatenate([unit_vectors(emb, data, scp) for data in (labeled, unlabeled)])
    if options.whiten is not None:
        x = vectors.whiten(x, options.whiten)
    speakers = sorted(set(labeled.spk))
    given, seeds = np.searchsorted(speakers, labeled.spk), np.arange(len(labeled.spk))
    if options.method == "constrained":
        how: dict[str, Any] = {"spherical": False, "tol": 0.05} if options.match_released_code else {}
        labels, _ = kmeans.constrained_kmeans(
            x, seeds, given, len(speakers), stats=report, progress=True, **how
        )
    else:
        labels = pipeline.propagate(x, seeds, given, len(speakers), neighbors=options.neighbors)
    return labels[len(given) :]
