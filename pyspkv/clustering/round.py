"""One round of labeling (`make_round`): embeddings in, a data directory whose speakers are the clusters out.

Heavy modules are imported only when labels must be made.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pyspkv.audio import silence
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError
from pyspkv.clustering import made
from pyspkv.clustering.options import Options
from pyspkv.data.datadir import DataDir, read_table
from pyspkv.data.tables import values_for

if TYPE_CHECKING:
    import numpy as np


def make_round(
    embeddings: Sequence[str],
    data: str | Path,
    out: str | Path,
    options: Options,
    *,
    previous: str | Path | None = None,
    truth: str | Path | None = None,
    report: str | Path | None = None,
    device: str = "cpu",
    draw: Callable[[dict, Path], None] | None = None,
    parts: str | Path | None = None,
) -> dict | None:
    """Cluster the utterances of the data directory `data` and write `out`, a copy whose speakers are the clusters.

    Args:
        embeddings: embedding.scp of each model; the vectors of several models are concatenated.
        previous: data directory of the round before; a cluster that matches one of its clusters gets that
            name.
        truth: true utt2spk, used only for `diagnostics` in the report.
        report: file of the report (default: report.json beside `out`).
        draw: called with the report and its path, before the report and the labels are written.
        parts: folder of a k-means that was done in parts (`kmeans_parts`) and has ended; it goes when all is written.

    Returns the report, or None if labels exist in `out` and are kept, because they were made from the same
    inputs with the same options (they may have been edited since). A killed run resumes its k-means.
    UserError: `out` is `data`, was made from something else or is being written; an utterance has no
    embedding; impossible options.
    """
    out, report = Path(out), Path(report) if report else Path(out).with_name("report.json")
    asked = asked_of(options, data, out, previous)

    def label() -> dict:
        start, state = time.time(), Path(f"{out}.kmeans.npz")
        _check_device(device)
        source = DataDir.read(data)
        options.check(len(source.utts), data)
        before = DataDir.read(previous, need_wav=False) if previous else None
        true = values_for(read_table(truth), source.utts, truth) if truth else None
        silent = silence.among(embeddings, source.utts)
        silence.warn(silent, data)
        if parts is None:
            from pyspkv.clustering import labeling

            digests = [made.embeddings_digest(scp) for scp in embeddings]
            x = labeling.side_by_side(embeddings, source, options.whiten)
            _say_memory(x, options)
            labeled, found = labeling.label_round(
                x, source, options, previous=before, truth=true, device=device, checkpoint=state
            )
        else:
            from pyspkv.clustering import kmeans_parts

            plan = kmeans_parts.ended(parts, asked, list(embeddings))
            digests = plan.embeddings
            labeled, found = kmeans_parts.label_round(
                plan, source, previous=before, truth=true, device=device
            )
        found |= {"silent": len(silent), "asked": asked, "embeddings": digests}
        found["seconds"] = round(time.time() - start, 2)
        if draw:
            draw(found, report)
        write_round(labeled, found, out, report)
        state.unlink(missing_ok=True)
        if parts is not None:
            shutil.rmtree(parts)
        return found

    return made.unless_kept(out, report, asked, embeddings, label)


def asked_of(options: Options, data: str | Path, out: str | Path, previous: str | Path | None) -> dict:
    """What a round's labels are made of but for the embeddings, as report.json keeps it. UserError: `out` is `data`."""
    if Path(out).resolve() == Path(data).resolve():
        raise UserError("is the same directory as --data", file=out, hint="give another --out-data")
    before = made.labels_digest(previous) if previous else None
    return {**asdict(options), "previous": before, "data": made.data_digest(data)}


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"--device {device}: there is no GPU", hint="drop --device")


def _say_memory(x: "np.ndarray", options: Options) -> None:
    from pyspkv.clustering.pipeline import memory_estimate

    how = options.method, options.centroids(len(x)), options.linkage, options.metric
    n, dim = x.shape
    print(memory_estimate(n, dim, *how), file=sys.stderr)


def write_round(out: DataDir, report: dict, folder: str | Path, report_file: str | Path) -> None:
    """Write the report first and the data directory last: if the directory exists, everything does."""
    report_file = Path(report_file)
    with atomic_file(report_file) as f:
        json.dump(report, f, indent=1)
        f.write("\n")
    out.write(folder)
