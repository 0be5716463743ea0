"""Plots of a system or an experiment as PNG files. matplotlib is imported only when one is drawn."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import printable
from pyspkv.score.metrics import Curve

# Okabe & Ito's colors, which people with any common color blindness can tell apart; dashes differ, too.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
DASHES = ["-", "--", "-.", ":"]
MAX_PANELS = 60
STYLE: dict[Any, Any] = {  # matplotlib's stubs want every key by name
    "figure.dpi": 120,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextmanager
def _figure(path: str | Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.4)):
    """Yield the axes of a new figure (one, or a list of them); save it to `path` at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph "
        )  # if the font lacks a character of a name, a box is drawn without a warning
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        try:
            yield axes[0, 0] if rows == columns == 1 else list(axes.flat)
            with atomic_file(path, "wb") as f:
                figure.savefig(f, format="png")
        finally:
            plt.close(figure)


def _text(name: str) -> str:
    """Escape a name for matplotlib, so that it is drawn as it is.

    Otherwise `$` would begin a formula, and a leading `_` would hide a line from the legend.
    """
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # may be any bytes
    name = printable(name)
    name = name if len(name) <= 80 else name[:77] + "..."
    return ("\N{NO-BREAK SPACE}" if name.startswith("_") else "") + name.replace("$", r"\$")


def _line(k: int) -> dict:
    """Style of the k-th line."""
    return {"color": COLORS[k % len(COLORS)], "linestyle": DASHES[k % len(DASHES)], "linewidth": 1.8}


def _probit(p):
    """Inverse of the normal distribution function.

    With it the DET curve of Gaussian scores is a straight line.
    """
    from scipy.special import ndtri

    return ndtri(np.clip(np.atleast_1d(p), 1e-7, 1 - 1e-7))


def det_points(curve: Curve, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """(FPR, FNR) at thresholds that sample both tails as finely as the middle on probit axes."""
    ranks = np.concatenate([np.geomspace(1, 1e6, points) / 2e6, 1 - np.geomspace(1, 1e6, points) / 2e6])
    at = [
        side[np.minimum((ranks * len(side)).astype(int), len(side) - 1)]
        for side in (curve.target, curve.nontarget)
    ]
    thresholds = np.unique(np.concatenate(at))
    return curve.fpr(thresholds), curve.fnr(thresholds)


def det(systems: Mapping[str, Curve], path: str | Path) -> None:
    """Draw the DET curve (Martin et al. 1997) of one or several systems, with their EER."""
    ticks = np.array([0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 80])
    with _figure(path, size=(5.6, 5.4)) as ax:
        seen = [np.array([0.02])]
        for k, (name, curve) in enumerate(systems.items()):
            fpr, fnr = det_points(curve)
            keep = (fpr > 0) & (fnr > 0) & (fpr < 1) & (fnr < 1)
            rate = curve.eer()[0]
            x, y = _probit(fpr[keep]), _probit(fnr[keep])
            ax.plot(x, y, drawstyle="steps-post", label=f"{_text(name)}: {100 * rate:.2f} %", **_line(k))
            ax.plot(*_probit([rate, rate]).reshape(2, 1), "o", color=_line(k)["color"], markersize=5)
            seen += [fpr[keep], fnr[keep]]
        low = max(1e-4, min(0.02, *(v.min() for v in seen if len(v))) / 1.3)
        limits = _probit([low, 0.5])
        ax.plot(limits, limits, color="#999999", linewidth=0.8, zorder=0)
        ax.set_xticks(_probit(ticks / 100), [f"{t:g}" for t in ticks])
        ax.set_yticks(_probit(ticks / 100), [f"{t:g}" for t in ticks])
        ax.set(xlim=limits, ylim=limits, aspect="equal")
        ax.set(xlabel="false acceptance rate (%)", ylabel="false rejection rate (%)", title="DET curve")
        ax.legend(title="EER (dot)", loc="lower left", fontsize=9, frameon=True, framealpha=0.9)


def scores(scores: np.ndarray, target: np.ndarray, threshold: float, path: str | Path) -> None:
    """Draw the densities of target and nontarget scores, and the threshold at the EER."""
    bins = np.linspace(scores.min(), scores.max(), 101) if np.ptp(scores) > 0 else 10
    with _figure(path) as ax:
        for k, (name, part) in enumerate((("target", scores[target]), ("nontarget", scores[~target]))):
            label = f"{name} ({len(part):,} trials)"
            ax.hist(part, bins, density=True, color=COLORS[k], alpha=0.45, histtype="stepfilled", label=label)
            ax.hist(part, bins, density=True, color=COLORS[k], histtype="step", linestyle=DASHES[k])
        ax.axvline(threshold, color="black", linewidth=1.2, label=f"threshold at the EER: {threshold:.3f}")
        ax.set(xlabel="score", ylabel="density", title="Scores of target and nontarget trials")
        ax.margins(x=0)
        ax.set_ylim(0, ax.get_ylim()[1] * 1.25)  # leave space for the legend above the bars
        ax.legend(loc="upper left", fontsize=9)


def eer_by_system(systems: Sequence[tuple[str, float, float | None, float | None]], path: str | Path) -> None:
    """Draw the EERs in percent of (name, eer, low, high) with their intervals; "supervised" is a line."""
    with _figure(path) as ax:
        rest = [s for s in systems if s[0] != "supervised"]
        for x, (_, eer, low, high) in enumerate(rest):
            if low is not None and high is not None:
                ax.plot([x, x], [low, high], color=COLORS[0], linewidth=2, alpha=0.5, solid_capstyle="butt")
            ax.annotate(f"{eer:.2f}", (x, eer), xytext=(6, 7), textcoords="offset points")
        ax.plot(range(len(rest)), [s[1] for s in rest], "o-", color=COLORS[0])
        for name, eer, low, high in systems:
            if name == "supervised":
                ax.axhline(eer, label=f"supervised: {eer:.2f} %", **_line(1))
                if low is not None and high is not None:
                    ax.axhspan(low, high, color=COLORS[1], alpha=0.12)
                ax.legend(loc="upper right")
        ax.set_xticks(range(len(rest)), [_text(s[0]) for s in rest])
        ax.set(
            xlim=(-0.4, len(rest) - 0.3), ylabel="EER (%)", title="Equal error rate, 95 % bootstrap interval"
        )
        ax.set_ylim(0, 1.15 * max(max(s[1], s[3] or 0) for s in systems))


def eer_by_cost(arms: Mapping[str, Sequence[tuple[float, float]]], path: str | Path) -> None:
    """Draw the dev EER in percent against hours of audio processed: name -> [(hours, eer)], a line each."""
    with _figure(path) as ax:
        for k, (name, points) in enumerate(arms.items()):
            ax.plot(*zip(*points), marker="." if len(points) > 10 else "o", label=_text(name), **_line(k))
        ax.set(xlabel="hours of audio processed in training", ylabel="dev EER (%)")
        ax.set(xlim=(0, None), ylim=(0, None), title="EER against cost")
        ax.legend()


def gaps(gaps: np.ndarray, chosen: float, path: str | Path) -> None:
    """Draw a histogram of the pauses between a device's turns (seconds, log scale), and the threshold."""
    with _figure(path) as ax:
        seconds = np.clip(gaps, 1, None)
        ax.hist(
            seconds, np.geomspace(1, max(10.0, float(seconds.max()) * 1.01), 61), color=COLORS[0], alpha=0.6
        )
        ax.axvline(chosen, label=f"--max-gap {chosen:g} s", **_line(1))
        ax.set(xscale="log", xlabel="seconds to the next turn (shorter than 1: at 1)", ylabel="pauses")
        ax.set_title(f"{len(gaps):,} pauses between a device's turns")
        ax.legend()


def cluster_sizes(rounds: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Draw the number of utterances of each cluster, largest first, for several rounds."""
    with _figure(path) as ax:
        for k, (name, sizes) in enumerate(rounds.items()):
            sizes = np.sort(sizes)[::-1]
            ax.plot(
                np.arange(1, len(sizes) + 1),
                sizes,
                label=f"{_text(name)}: {len(sizes):,} clusters",
                **_line(k),
            )
        largest = max(int(max(sizes)) for sizes in rounds.values())
        if largest > 200:
            ax.set_yscale("log")
        else:
            ax.set_ylim(0, largest * 1.05)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="cluster, largest first", ylabel="utterances", title="Cluster sizes")
        ax.legend()


def per_round(series: Mapping[str, Mapping[int, float]], ylabel: str, title: str, path: str | Path) -> None:
    """Draw lines over rounds: series name -> {round: value}.

    Shares (all values in 0..1) get the axis 0..1.
    """
    from itertools import chain

    with _figure(path) as ax:
        for k, (name, values) in enumerate(series.items()):
            ax.plot(list(values), list(values.values()), marker="o", label=_text(name), **_line(k))
        rounds = sorted(set(chain.from_iterable(series.values())))
        flat = [v for values in series.values() for v in values.values()]
        ax.set_xticks(rounds)
        ax.set(xlabel="round", ylabel=ylabel, title=title, xlim=(rounds[0] - 0.3, rounds[-1] + 0.3))
        shares = min(flat) >= 0 and max(flat) <= 1
        ax.set_ylim((0, 1.02) if shares else (min(0, *flat), 1.15 * max(flat)))
        if len(series) > 1:
            ax.legend()
        else:
            for x, y in zip(rounds, flat):
                ax.annotate(f"{y:,.4g}", (x, y), xytext=(0, 7), textcoords="offset points", ha="center")


def num_clusters(curve: Sequence[Mapping], chosen: int, path: str | Path) -> None:
    """Draw the silhouette against the number of clusters, and mark the choice of `--num-clusters auto`.

    curve: the "auto" list of a round's report.json ({"num_clusters", "silhouette"}).
    """
    with _figure(path) as axis:
        axis.semilogx(
            [p["num_clusters"] for p in curve], [p["silhouette"] for p in curve], marker=".", **_line(0)
        )
        axis.axvline(chosen, label=f"chosen: {chosen}", **_line(1))
        axis.set(xlabel="clusters", ylabel="silhouette of a sample", title="Cuts of one tree, no labels used")
        axis.legend()


def training(records: Sequence[Mapping], path: str | Path, title: str) -> None:
    """Draw every number of the end-of-epoch records (train.jsonl, `"kind": "epoch"`), one panel each.

    If there are more than MAX_PANELS kinds of numbers, the first ones are drawn.
    """
    epochs = [r for r in records if r.get("kind") == "epoch"]
    skip = ("kind", "epoch", "step")
    names = list(dict.fromkeys(k for r in epochs for k, v in r.items() if k not in skip and _is_figure(v)))
    names = names[:MAX_PANELS]
    if not names:
        return
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with _figure(path, rows, columns, size=(3.6 * columns, 2.6 * rows + 0.4)) as axes:
        for ax, name in zip(axes if isinstance(axes, list) else [axes], names):
            points = [
                (r.get("epoch", k), r[name]) for k, r in enumerate(epochs, 1) if _is_figure(r.get(name))
            ]
            ax.plot(*zip(*points), marker="." if len(points) < 40 else None, **_line(0))
            ax.set(xlabel="epoch", title=_text(name))
            ax.xaxis.get_major_locator().set_params(integer=True)
        for ax in axes[len(names) :] if isinstance(axes, list) else []:
            ax.set_axis_off()
        ax.figure.suptitle(_text(title))


def _is_figure(value) -> bool:
    """Whether a value can be drawn. Beyond 1e30 the arithmetic of an axis overflows."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def gates(epochs: Sequence[Mapping], path: str | Path) -> None:
    """Draw the shares of `gate_curves` over the epochs of successive trainings.

    A vertical line marks where the next training begins.
    """
    names = [k for k in epochs[0] if k not in ("run", "epoch")]
    at = list(range(1, len(epochs) + 1))
    with _figure(path, size=(7.2, 4.4)) as ax:
        for k, name in enumerate(names):
            ax.plot(at, [e[name] for e in epochs], marker="o", markersize=3, label=_text(name), **_line(k))
        for x, (before, now) in enumerate(zip(epochs, epochs[1:]), 2):
            if before["run"] != now["run"] or now["epoch"] <= before["epoch"]:
                ax.axvline(x - 0.5, color="#999999", linewidth=0.8)
                ax.annotate(_text(now["run"]), (x - 0.4, 1.03), fontsize=8)
        ax.annotate(_text(epochs[0]["run"]), (0.6, 1.03), fontsize=8)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="epoch", ylabel="share", ylim=(-0.02, 1.1), xlim=(0.5, len(epochs) + 0.5))
        ax.set_title("Utterances that the gate let through")
        ax.legend(loc="lower right", fontsize=9, frameon=True)


def gate_comparison(systems: Mapping[str, Sequence[Mapping]], path: str | Path) -> None:
    """Draw quantity and quality of several systems' gates over their epochs, one panel each."""
    with _figure(path, 1, 2, size=(10, 4.2)) as axes:
        for ax, key in zip(axes, ("quantity", "quality")):
            for k, (name, epochs) in enumerate(systems.items()):
                at, values = range(1, len(epochs) + 1), [e.get(key, np.nan) for e in epochs]
                ax.plot(at, values, marker="o", markersize=3, label=_text(name), **_line(k))
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set(xlabel="epoch", ylabel="share", ylim=(-0.02, 1.05), title=key)
        axes[0].legend(fontsize=9, frameon=True)
