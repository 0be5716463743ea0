"""What is said of a clustering when it has been made: a line of figures, the curve of its number, warnings."""

import sys
from pathlib import Path


def draw(report: dict, path: Path) -> None:
    """Draw the curve from which --num-clusters auto has chosen, beside the report."""
    if report.get("auto"):
        from pyspkv.report import plots

        file = path.with_suffix(".num_clusters.png")
        estimate = report.get("num_clusters_estimate", report["num_clusters_chosen"])
        plots.num_clusters(report["auto"], estimate, file)


def say(report: dict, path: Path, out_data: str) -> None:
    """What was found, and at once where the labels are no good."""
    s = report["sizes"]
    print(f"{s['num_clusters']} clusters, sizes {s['size_min']} / {s['size_median']:g} / {s['size_max']} "
          f"(min / median / max), {s['singletons']} singletons; report: {path}")  # fmt: skip
    print(f"data directory: {out_data}")
    warn(Path(out_data))


def warn(folder: Path) -> None:
    """Print the signs of trouble of the labels just made."""
    from pyspkv.data.datadir import DataDir
    from pyspkv.report import warnings

    data = DataDir.read(folder, need_wav=False)
    for sign in warnings.of_labels(folder.resolve().parent.name, data.spk, warnings.known_of(data)):
        print(sign, file=sys.stderr)
