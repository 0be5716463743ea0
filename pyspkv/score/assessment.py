"""One table of models on trial lists, with the smallest difference of EERs that each list can show.

A list shows a difference of two systems if the 95 % interval of their paired difference, drawn over speakers,
does not contain 0. The width of that interval is about the same for a new system as for a measured one. So
the smallest difference that the list can show is estimated by

    d = (high - low) / 2,   (low, high) = 2.5 and 97.5 % points of EER_A - EER_B over bootstrap draws of
    speakers,

with the same draws for A and B (`metrics.compare`). B is the first model. With one model only, A and B are
its AS-normed and its plain scores. Without AS-norm, d is bounded from above by sqrt(2) (high - low) / 2,
where (low, high) is the interval of the EER itself: that is the width for two systems of this EER with
independent errors.
"""

from math import sqrt
from pathlib import Path

from pyspkv.base import foreign

HEAD = ("model", "list", "speakers", "EER %", "95 % interval", "minDCF(0.01)", "Cllr", "EER % AS-norm",
        "less the first", "shows from")  # fmt: skip
_FIGURES = ("eer", "eer_ci_low", "eer_ci_high", "eer_ci_units", "min_dcf_0.01", "cllr", "eer_difference",
            "eer_difference_ci_low", "eer_difference_ci_high")  # fmt: skip


def read_metrics(file: Path) -> dict:
    """Read the figures of a metrics file that are used here; {} if it does not exist.

    UserError: one is not a number.
    """
    if not file.is_file():
        return {}
    found = foreign.read_json(file)
    shown = {k: found[k] for k in _FIGURES if found.get(k) is not None}
    return {k: foreign.number(v, k, file=file) for k, v in shown.items()}


def paired_half_width(system: Path, name: str, data: Path) -> float | None:
    """d from the plain and the AS-normed scores of one system; None if there are fewer than 3 speakers."""
    from pyspkv.data.trials import read_trials
    from pyspkv.score import metrics, scoring

    enrol, test, target = read_trials(data / "trials")
    models = data / "enrol_map"
    units = metrics.resampling(enrol, test, target, data / "utt2spk", models if models.is_file() else None)
    if units.num < 3:
        return None
    plain, normed = (
        scoring.read_scores(system / f"score/{stem}.scores", enrol, test) for stem in (name, f"{name}-asnorm")
    )
    found = metrics.compare(plain, normed, target, units, metrics.replicates_for(len(target)))
    return (found["eer_difference_ci_high"] - found["eer_difference_ci_low"]) / 2


def assess(system: Path, name: str, data: Path) -> dict:
    """Metrics of one system on one trial list, as a flat dict.

    `smallest_difference` is d in percent points, `smallest_difference_from` how it was found; see the module
    docstring. UserError: a metrics file is damaged.
    """
    out = read_metrics(system / f"score/{name}.json")
    normed = read_metrics(system / f"score/{name}-asnorm.json")
    if "eer" in normed:
        out["eer_asnorm"] = normed["eer"]
    if "eer_difference_ci_low" in out and "eer_difference_ci_high" in out:
        half, source = (
            (out["eer_difference_ci_high"] - out["eer_difference_ci_low"]) / 2,
            "less the first model",
        )
    elif normed:
        half, source = paired_half_width(system, name, data), "AS-normed less plain"
    elif "eer_ci_low" in out and "eer_ci_high" in out:
        half, source = sqrt(2) * (out["eer_ci_high"] - out["eer_ci_low"]) / 2, "upper bound"
    else:
        half, source = None, "too few speakers"
    return {**out, "list": name, "smallest_difference": half, "smallest_difference_from": source}


def table(rows: list[tuple[str, dict]]) -> str:
    """Format one row per (model, result of `assess`) as text."""
    cells = [HEAD]
    for model, m in rows:

        def show(key: str, digits: int, m=m) -> str:
            return f"{m[key]:.{digits}f}" if m.get(key) is not None else "-"

        def span(low: str, high: str, sign: str = "", m=m) -> str:
            return f"{m[low]:{sign}.2f} .. {m[high]:{sign}.2f}" if low in m and high in m else "-"

        less = span("eer_difference_ci_low", "eer_difference_ci_high", "+")
        less = f"{m['eer_difference']:+.2f} ({less})" if less != "-" and "eer_difference" in m else "-"
        bound = "<= " if m["smallest_difference_from"] == "upper bound" else ""
        cells.append((model, m["list"], show("eer_ci_units", 0), show("eer", 2), span("eer_ci_low", "eer_ci_high"),
                      show("min_dcf_0.01", 4), show("cllr", 4), show("eer_asnorm", 2), less,
                      bound + show("smallest_difference", 2)))  # fmt: skip
    width = [max(len(row[c]) for row in cells) for c in range(len(HEAD))]
    return "\n".join(
        "  ".join(x.ljust(w) if c < 2 else x.rjust(w) for c, (x, w) in enumerate(zip(row, width))).rstrip()
        for row in cells
    )
