"""Collect the results of an experiment: results.json, report.md with its tables, and plots."""

import html
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyspkv.base import foreign
from pyspkv.base.errors import UserError, printable
from pyspkv.report import warnings

KEYS: tuple[str, ...] = (
    "eer",
    "min_dcf_0.01",
    "min_dcf_0.05",
    "threshold",
    "eer_ci_low",
    "eer_ci_high",
    "eer_ci_over",
)
KEYS += ("num_target", "num_nontarget", "cllr", "act_dcf_0.01", "eer_difference")
KEYS += ("eer_difference_ci_low", "eer_difference_ci_high")
ROUND = re.compile(r"round([1-9][0-9]{0,5})")
PIPELINE = re.compile(rf"pretrain|{ROUND.pattern}|finetune|baseline|supervised")
# Keys that bin.metrics --json writes, with the range of each figure; other keys are not shown.
Range = tuple[float | None, float | None]
EER: Range = (0, 100)
COST: Range = (0, 1e9)
ANY: Range = (None, None)
FIGURES: dict[str, Range] = {"eer": EER, "min_dcf_0.01": COST, "min_dcf_0.05": COST, "threshold": ANY}
FIGURES |= {"eer_ci_low": EER, "eer_ci_high": EER, "cllr": COST, "act_dcf_0.01": COST}
FIGURES |= {"num_target": COST, "num_nontarget": COST}
FIGURES |= dict.fromkeys(("eer_difference", "eer_difference_ci_low", "eer_difference_ci_high"), (-100, 100))
# Keys of train.jsonl with a known range. All other numbers in it are drawn, too.
TIMES: dict[str, Range] = {"epoch": (0, 1e9), "step": (0, 1e15), "audio_seconds": (0, 1e15)}
TIMES |= {"seconds": (0, 1e12), "loss": ANY, "accuracy": (0, 1), "dev_eer": EER, "dev_eer_student": EER}
NOT_MEASURED = (
    "There are no test trials, so nothing was scored: no EER, minDCF, calibration or comparison of models.",
    "The experiment contains labels (round*/data), models (*/model) and the training figures below.",
    "If you have labeled speakers who are not in the training data, `pyspkv datadir make-trials DIR` makes "
    "trials; then run stages 6 to 8.",
)
AGAIN = "make it again: run stages 4 and 7"
# Variants of the headline scores: training mean subtracted, AS-normed, averaged with the scores of crops.
VARIANTS = ("mean", "asnorm", "crops")


def read_json(path: Path) -> dict:
    """Read a JSON object of at most 16 MB. UserError: the file is something else."""
    return foreign.read_json(path, hint=AGAIN)


def read_metrics(path: Path) -> dict:
    """Read what bin.metrics --json wrote, without entries that are null.

    UserError: the EER or a minDCF is missing, or a figure is not a number in its range.
    """
    hint = "make it with bin.metrics --json"
    found = {k: v for k, v in foreign.read_json(path, hint=hint).items() if v is not None or k == "eer"}
    if missing := [k for k in ("eer", "min_dcf_0.01", "min_dcf_0.05") if k not in found]:
        raise UserError(f"has no {missing[0]}", file=path, hint=hint)
    for key, span in FIGURES.items():
        if key in found:
            foreign.number(found[key], key, *span, file=path, hint=hint)
    for key in ("eer_ci_over", "trials"):
        if not isinstance(found.get(key, ""), str):
            raise UserError(f"{key} is {foreign.short(found[key])}, not a text", file=path, hint=hint)
    return found


def find_phases(exp: Path) -> dict[str, Path]:
    """Phase name -> folder, in the order of the pipeline, for every phase that exists in `exp`."""
    rounds = sorted(int(m[1]) for d in exp.glob("round*") if (m := ROUND.fullmatch(d.name)))
    names = ["pretrain", *(f"round{r}" for r in rounds), "finetune", "baseline", "supervised"]
    others = sorted(d.parent.name for d in exp.glob("*/score") if d.parent.name not in names)
    return {name: exp / name for name in names[:-1] + others + names[-1:] if (exp / name).is_dir()}


def read_scores(phases: dict[str, Path]) -> dict[str, dict[str, dict]]:
    """Phase -> trial list -> metrics that bin.metrics --json wrote.

    UserError: a file is damaged or lacks a key.
    """
    out: dict[str, dict[str, dict]] = {}
    for phase, folder in phases.items():
        for path in sorted((folder / "score").glob("*.json")):
            out.setdefault(phase, {})[path.stem] = read_metrics(path)
    return out


def read_round(folder: Path, truth: dict[str, str] | None, truth_file) -> dict:
    """Labels of a round: sizes [K], num_clusters, entries of report.json, diagnostics if a truth is given."""
    import numpy as np

    from pyspkv.data.tables import read_table, values_for

    spk = read_table(folder / "data/utt2spk", "id")
    _, sizes = np.unique(list(spk.values()), return_counts=True)
    out: dict[str, Any] = {
        "sizes": sizes,
        "num_clusters": len(sizes),
        "stability": stability(folder / "report.json"),
        "silent": silent(folder / "report.json"),
        "diagnostics": None,
    }
    if truth is not None:
        from pyspkv.clustering import quality

        true = values_for(truth, list(spk), truth_file)
        out["diagnostics"] = quality.diagnostics(list(spk.values()), true)
        if set(spk.values()) <= set(true):  # labels are names of true speakers, as seeded_cluster gives them
            right = np.array(list(spk.values())) == np.array(true)
            out["diagnostics"]["label_accuracy"] = float(right.mean())
    return out


def stability(file: Path) -> dict[str, float]:
    """Agreement of a round's labels with the round before, from its report.json; {} if not recorded.

    UserError: the entry is damaged.
    """
    found = read_json(file).get("stability") if file.exists() else None
    if not isinstance(found, (dict, type(None))):
        raise UserError(f"stability is {foreign.short(found)}", file=file, hint=AGAIN)
    found = {k: v for k, v in (found or {}).items() if v is not None}
    for key in {"ami", "kept"} & found.keys():
        foreign.number(found[key], f"stability.{key}", -1, 1.000001, file=file, hint=AGAIN)
    return found


def silent(file: Path) -> int:
    """Number of labeled utterances of a round without a signal, from its report.json; 0 if not recorded."""
    found = read_json(file).get("silent") if file.exists() else None
    return foreign.number(found or 0, "silent", 0, 1e9, whole=True, file=file, hint=AGAIN)


def results(scores: dict, rounds: dict[int, dict], name: str, moving: dict[str, list[dict]]) -> dict:
    """Build the contents of results.json; null or [] where a key does not apply.

    Keys `..._end` are about labels that training has changed. Keys `noise_...` tell how the gate of the last
    epoch treated labels that were made wrong on purpose.
    """

    def entry(phase: str) -> dict | None:
        found = scores.get(phase, {}).get(name)
        if not found:
            return None
        other = {v: scores[phase].get(f"{name}-{v}") for v in VARIANTS}
        out = {k: found.get(k) for k in KEYS} | {f"eer_{v}": m["eer"] for v, m in other.items() if m}
        last = moving[phase][-1] if moving.get(phase) else {}
        out |= {k: v for k, v in last.items() if k.startswith("noise_")}
        if any(e["changed"] for e in moving.get(phase, [])):
            out |= {f"{k}_end": last[k] for k in ("live", "nmi", "ami", "purity") if k in last}
        return out

    listed = []
    for r, labels in rounds.items():
        truth = labels["diagnostics"] or {}
        more = {"num_clusters": labels["num_clusters"], "nmi": truth.get("nmi"), "ami": truth.get("ami")}
        more |= {"label_accuracy": truth["label_accuracy"]} if "label_accuracy" in truth else {}
        more |= {"purity": truth.get("purity"), "ami_with_previous": labels["stability"].get("ami")}
        scored = entry(f"round{r}")
        more |= {"silent": labels["silent"]} if labels.get("silent") else {}
        if scored or not scores:
            listed.append({"round": r, **(scored or dict.fromkeys(KEYS)), **more})
    final = entry("finetune") or entry("baseline")
    if final is None and listed:
        final = entry(f"round{listed[-1]['round']}")
    return {
        "pretrain": entry("pretrain"),
        "rounds": listed,
        "final": final,
        "supervised": entry("supervised"),
        "others": {p: found for p in scores if not PIPELINE.fullmatch(p) and (found := entry(p))},
        "trials": name,
    }


def last_systems(others: list[tuple[Path, dict]], name: str) -> list[tuple[Path, str, dict]]:
    """(experiment, its last phase, metrics of that phase) of each experiment.

    UserError: one has no scores of this list.
    """
    from pyspkv.score import side_by_side

    out = []
    for exp, phases in others:
        scores = read_scores(phases)
        if not any(name in lists for lists in scores.values()):
            raise UserError(f"no phase has score/{name}.json", file=exp, hint="run its stages 6 and 7 first")
        last = side_by_side.last_phase(scores, name)
        out.append((exp, last, scores[last][name]))
    return out


def epochs_of(folder: Path, model: str = "model") -> list[dict]:
    """End-of-epoch records of a phase's training, without entries that are null or not numbers.

    A last line that a kill has cut off is ignored. UserError: another line is damaged, or a figure is out of
    range.
    """
    log = folder / model / "train.jsonl"
    if not log.exists():
        return []
    foreign.regular(log)
    out = []
    with open(log, "rb") as f:
        for number, raw in enumerate(iter(lambda: f.readline(1 << 20), b""), 1):
            if not raw.strip():
                continue
            try:
                record = foreign.parse_json(raw.decode(), file=log, line=number, hint="remove that line")
            except UnicodeDecodeError:
                raise UserError("is not UTF-8 text", file=log, line=number, hint="remove that line") from None
            except UserError:
                if raw.endswith(b"\n"):
                    raise
                break
            if record.get("kind") != "epoch":
                continue
            record = {
                k: v for k, v in record.items() if foreign.is_number(v) or (k in TIMES and v is not None)
            }
            for key, span in TIMES.items():
                if key in record:
                    foreign.number(record[key], key, *span, file=log, line=number)
            out.append({"kind": "epoch", **record})
    return out


def cost_curve(phases: dict[str, Path]) -> list[tuple[float, float]]:
    """Points (hours of audio trained on since pre-training, dev EER in percent) of all rounds.

    There is a point for every epoch with a dev EER and, if the last epoch has none, one for the end of the
    round.
    """
    out, before = [], 0.0
    for name, folder in phases.items():
        records = [r for r in epochs_of(folder) if "audio_seconds" in r] if ROUND.fullmatch(name) else []
        if not records:
            continue
        out += [((before + r["audio_seconds"]) / 3600, r["dev_eer"]) for r in records if "dev_eer" in r]
        before += records[-1]["audio_seconds"]
        dev = folder / "score/dev.json"
        if dev.exists() and "dev_eer" not in records[-1]:
            out.append((before / 3600, read_metrics(dev)["eer"]))
    return out


def rows_of(folder: Path) -> list[tuple[int, dict]]:
    """(epoch, arrays) of each file rows/epoch-N.safetensors in a model folder, sorted by file name."""
    files = sorted((folder / "rows").glob("epoch-*.safetensors"))
    named = [(f, re.fullmatch(r"epoch-(\d{1,9})", f.stem, re.ASCII)) for f in files]
    return [(int(m[1]), foreign.read_rows(f)) for f, m in named if m]


def moving_labels(folder: Path, truth: dict[str, str] | None, truth_file="the truth") -> list[dict]:
    """Labels in each epoch of an objective that changes them: sizes, and diagnostics if a truth is given.

    If PHASE/corrupted lists utterances whose labels were made wrong on purpose (`bin.datadir corrupt`), the
    gate is measured as their detector. noise_recall: share of them that it rejects. noise_precision: their
    share among all utterances that it rejects.
    """
    if not any((folder / "model/rows").glob("epoch-*.safetensors")) or not (folder / "data/utt2spk").exists():
        return []
    import numpy as np

    from pyspkv.clustering import quality
    from pyspkv.data.tables import decode, read_table, values_for

    spk = read_table(folder / "data/utt2spk", "id")
    true = values_for(truth, list(spk), truth_file) if truth is not None else None
    given = np.unique(list(spk.values()), return_inverse=True)[1]
    out, before = [], None
    kept = ("dev_eer", "dev_eer_student")
    dev = {r.get("epoch"): {k: r[k] for k in kept if k in r} for r in epochs_of(folder)}
    wrong = set(decode(folder / "corrupted").split()) if (folder / "corrupted").exists() else set()
    corrupted = np.array([u in wrong for u in spk]) if wrong else None
    for epoch, rows in rows_of(folder / "model"):
        if not {"label", "weight"} & rows.keys():
            continue  # rows of a confidence gate, which bin.gate_curves shows
        label = rows.get("label", given)
        weight = rows.get("weight", given)
        if label.shape != (len(spk),) or weight.shape != label.shape or label.dtype.kind not in "iu":
            continue  # rows of other utterances
        found: dict[str, Any] = {"epoch": epoch}
        sizes = quality.sizes(label)
        found |= {"live": sizes["num_clusters"], "effective": sizes["effective_clusters"]}
        found["changed"] = float(np.mean(label != before)) if before is not None else 0.0
        before = label
        if true is not None:
            found |= {
                k: v for k, v in quality.diagnostics(label, true).items() if k in ("nmi", "ami", "purity")
            }
            right = quality.right(label, true)
            for name, part in (("weight_right", right), ("weight_wrong", ~right)):
                found[name] = (
                    float(np.nanmean(rows["weight"][part]))
                    if "weight" in rows and part.any()
                    else float("nan")
                )
        if corrupted is not None and "weight" in rows:
            out_of = 1 - np.nan_to_num(rows["weight"])
            found["noise_recall"] = float(out_of[corrupted].mean())
            found["noise_precision"] = float(out_of[corrupted].sum() / max(out_of.sum(), 1e-12))
        out.append(found | dev.get(found["epoch"], {}))
    return out


def training_table(phases: dict[str, Path]) -> list[str]:
    """Markdown lines: loss and accuracy in the first, middle and last epoch of every phase."""
    lines = ["| phase | epochs | loss: first, middle, last | accuracy % | minutes |", "|---|---|---|---|---|"]
    for phase, folder in phases.items():
        if records := epochs_of(folder):
            three = [records[0], records[(len(records) - 1) // 2], records[-1]]
            loss = ", ".join(f"{r['loss']:.2f}" if "loss" in r else "-" for r in three)
            accuracy = ", ".join(f"{100 * r['accuracy']:.0f}" for r in three if "accuracy" in r) or "-"
            minutes = sum(r.get("seconds", 0) for r in records) / 60
            lines.append(f"| {text(phase)} | {len(records)} | {loss} | {accuracy} | {minutes:.1f} |")
    return lines


def moving_table(phase: str, epochs: list[dict]) -> list[str]:
    """Markdown lines: the records of `moving_labels`, one row per epoch."""
    keys = list(epochs[0])
    lines = [
        "",
        f"## Labels while training: {text(phase)}",
        "",
        "| " + " | ".join(keys) + " |",
        "|" + "---|" * len(keys),
    ]
    for e in epochs:
        cells = [f"{e[k]:.3f}" if isinstance(e.get(k), float) else str(e.get(k, "-")) for k in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def text(name: str) -> str:
    """Escape a name for Markdown: it is shown as it is, whatever HTML, link or line end it contains."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # may be any bytes
    name = printable(name)
    return re.sub(r"([\\`|\[\]])", r"\\\1", html.escape(name, quote=False))


def systems_table(scores: dict) -> list[str]:
    """Markdown lines: a row per system and trial list."""
    compared = any("eer_difference" in m for lists in scores.values() for m in lists.values())
    head = ["system", "trials", "EER %", "95 % interval", "minDCF 0.01", "minDCF 0.05", "Cllr"]
    head += ["EER less the compared system's (paired 95 %)"] * compared
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for phase, lists in scores.items():
        for name, m in lists.items():
            low, high = m.get("eer_ci_low"), m.get("eer_ci_high")
            span = f"{low:.2f} .. {high:.2f}" if low is not None and high is not None else "-"
            cells = [
                text(phase),
                text(name),
                f"{m['eer']:.2f}",
                span,
                f"{m['min_dcf_0.01']:.3f}",
                f"{m['min_dcf_0.05']:.3f}",
                f"{m['cllr']:.3f}" if "cllr" in m else "-",
            ]
            if compared:
                cells.append(difference(m))
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def further_lists(scores: dict, name: str) -> dict[str, dict[str, dict]]:
    """X -> phase -> metrics of every list NAME_X beside the headline list NAME, with `eer_asnorm` where there is one.

    The list that the headline repeats comes first, the others by name: with O as headline O, E, H.
    """
    found = {
        n.removeprefix(f"{name}_") for lists in scores.values() for n in lists if n.startswith(f"{name}_")
    }
    out: dict[str, dict[str, dict]] = {}
    for x in sorted(x for x in found if not x.endswith(tuple(f"-{v}" for v in VARIANTS))):
        for phase, lists in scores.items():
            if m := lists.get(f"{name}_{x}"):
                normed = lists.get(f"{name}_{x}-asnorm", {})
                more = {"eer_asnorm": normed["eer"]} if normed else {}
                out.setdefault(x, {})[phase] = {k: m.get(k) for k in KEYS} | more

    def is_headline(x: str) -> bool:
        return all(
            all(
                m[k] == scores[p].get(name, {}).get(k)
                for k in ("eer", "threshold", "num_target", "num_nontarget")
            )
            for p, m in out[x].items()
        )

    return {x: out[x] for x in sorted(out, key=lambda x: (not is_headline(x), x))}


def lists_table(scores: dict, name: str) -> list[str]:
    """The lists of trials of one test set side by side, a line a system; [] where there is one list alone."""
    lists = further_lists(scores, name)
    if not lists:
        return []
    head, parts = ["system"], ("EER %", "95 % interval", "minDCF 0.01", "EER % AS-norm")
    head += [f"{text(x)}: {part}" for x in lists for part in parts]
    lines = ["", "## Lists side by side", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for phase in scores:
        cells = [text(phase)]
        for found in lists.values():
            m = found.get(phase) or {}
            low, high = m.get("eer_ci_low"), m.get("eer_ci_high")
            cells.append(f"{m['eer']:.2f}" if m else "-")
            cells.append("-" if low is None or high is None else f"{low:.2f} .. {high:.2f}")
            cells.append(f"{m['min_dcf_0.01']:.3f}" if m else "-")
            cells.append(f"{m['eer_asnorm']:.2f}" if "eer_asnorm" in m else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", f"Score files: `{text(name)}_X` of list X; `{text(name)}` repeats one of them."]


def rounds_table(rounds: dict, with_truth: bool) -> list[str]:
    """Markdown lines: a row per round, and remarks on its labels."""
    import numpy as np

    lines = ["", "## Labels of each round", ""]
    head = ["round", "clusters", "smallest", "median", "largest", "AMI with the round before"]
    head += ["NMI (truth)", "AMI (truth)", "ARI (truth)", "purity (truth)"] if with_truth else []
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r, labels in rounds.items():
        s, ami = labels["sizes"], labels["stability"].get("ami")
        cells = [
            r,
            labels["num_clusters"],
            s.min(),
            f"{np.median(s):g}",
            s.max(),
            "-" if ami is None else f"{ami:.3f}",
        ]
        if with_truth:
            cells += [f"{labels['diagnostics'][k]:.3f}" for k in ("nmi", "ami", "ari", "purity")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for r, labels in rounds.items():
        if n := labels.get("silent"):
            some = "1 labeled utterance has" if n == 1 else f"{n} labeled utterances have"
            lines += ["", f"Round {r}: {some} no signal; extraction's log and made_by name them."]
    if with_truth:
        lines += [
            "",
            "Columns marked (truth) are diagnostics from the truth file; nothing else uses that file.",
        ]
    return lines


def markdown(
    title: str,
    scores: dict,
    rounds: dict,
    aside: list[str],
    training: list[str],
    moving: dict[str, list[dict]],
    plots: list[str],
    with_truth: bool,
    signs: Sequence[warnings.Sign] = (),
) -> str:
    """The text of report.md from its parts."""
    lines = [f"# {text(title)}", ""]
    lines += measured(scores) if scores else [*NOT_MEASURED]
    lines += warnings.markdown(signs, text)
    if rounds:
        lines += rounds_table(rounds, with_truth)
    lines += [*aside, "", "## Training", "", *training]
    for phase, epochs in moving.items():
        lines += moving_table(phase, epochs)
    lines += ["", "## Plots", ""] + [f"![{text(name)}](plots/{quote(os.fsencode(name))})" for name in plots]
    return "\n".join(lines) + "\n"


def measured(scores: dict) -> list[str]:
    """Markdown lines: the table of systems, and how to read it."""
    lines = systems_table(scores)
    over = {m["eer_ci_over"] for lists in scores.values() for m in lists.values() if m.get("eer_ci_over")}
    lines += ["", f"Intervals: bootstrap over {' / '.join(map(text, sorted(over))) or 'nothing'}."]
    return [
        *lines,
        "`final` in results.json is finetune where it was run, else the last round; no score chose it.",
    ]


def signs_of(phases: dict[str, Path]) -> list[warnings.Sign]:
    """Signs of trouble in the phases of the pipeline."""
    found = []
    for name, folder in phases.items():
        if PIPELINE.fullmatch(name):
            dev = folder / "score/dev.json"
            eer = read_metrics(dev)["eer"] if dev.is_file() else None
            found.append(warnings.Phase(name, folder, epochs_of(folder), eer))
    return warnings.collect(found)


def difference(m: dict) -> str:
    """A table cell: the EER difference with its interval, or "-"."""
    low, high = m.get("eer_difference_ci_low"), m.get("eer_difference_ci_high")
    if m.get("eer_difference") is None or low is None or high is None:
        return "-"
    return f"{m['eer_difference']:+.2f} ({low:+.2f} .. {high:+.2f})"


def draw(
    folder: Path, phases: dict[str, Path], scores: dict, rounds: dict[int, dict], name: str
) -> list[str]:
    """Draw every plot that the experiment has data for; returns their file names."""
    from pyspkv.report import plots

    drawn = []

    def path(file: str) -> Path:
        drawn.append(file)
        return inside(folder, folder / file)

    headline = {phase: lists[name] for phase, lists in scores.items() if name in lists}
    systems = [(p, m["eer"], m.get("eer_ci_low"), m.get("eer_ci_high")) for p, m in headline.items()]
    if systems:
        plots.eer_by_system(systems, path("eer.png"))
    curves, last = read_curves(headline, phases, name)
    if curves and last:
        plots.det(curves, path("det.png"))
        plots.scores(*last, path("scores.png"))
    if rounds:
        plots.cluster_sizes({f"round {r}": v["sizes"] for r, v in rounds.items()}, path("cluster_sizes.png"))
        count = {"clusters": {r: v["num_clusters"] for r, v in rounds.items()}}
        plots.per_round(count, "clusters", "Clusters per round", path("clusters.png"))
        series = {
            "AMI with the round before": {r: v["stability"].get("ami") for r, v in rounds.items()},
            "utterances that kept their label": {r: v["stability"].get("kept") for r, v in rounds.items()},
            "NMI with the truth": {r: (v["diagnostics"] or {}).get("nmi") for r, v in rounds.items()},
            "AMI with the truth": {r: (v["diagnostics"] or {}).get("ami") for r, v in rounds.items()},
        }
        series = {k: {r: x for r, x in v.items() if x is not None} for k, v in series.items()}
        if any(series.values()):
            series = {k: v for k, v in series.items() if v}
            plots.per_round(series, "agreement", "Stability and quality of the labels", path("labels.png"))
    for phase, place in phases.items():
        if records := epochs_of(place):
            plots.training(records, path(f"train_{phase}.png"), f"Training: {phase}")
    return drawn


def inside(folder: Path, path: Path) -> Path:
    """Return `path`. UserError: a link leads it out of `folder`."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError("is a link out of the experiment", file=path, hint="remove the link")
    return path


def read_curves(
    headline: dict[str, dict], phases: dict[str, Path], name: str
) -> tuple[dict, tuple[Any, Any, float] | None]:
    """DET curve of each phase, and (scores, target, threshold) of the last unsupervised one.

    Phases whose files are gone are left out.
    """
    from pyspkv.data.trials import read_trials
    from pyspkv.score import metrics, scoring

    curves, last = {}, None
    for phase, m in headline.items():
        file = phases[phase] / "score" / f"{name}.scores"  # not m["scores"]: the phase may have been moved
        if not file.exists() or not m.get("trials") or not Path(m["trials"]).is_file():
            continue
        enrol, test, target = read_trials(m["trials"])
        found = scoring.read_scores(file, enrol, test)
        curves[phase] = metrics.Curve(found, target)
        if phase != "supervised" or last is None:
            last = found, target, m["threshold"]
    return curves, last


def _check(exp: Path, phases: dict[str, Path], scores: dict, trials: str, unscored: bool) -> None:
    """UserError: there is nothing to report, or a link would lead the output out of `exp`."""
    if scores or not unscored:
        _check_scores(exp, scores, trials)
    for name in ("report.md", "results.json", "plots"):
        inside(exp, exp / name)
    for phase in phases if scores else ():
        if trials not in scores.get(phase, {}):
            print(f"{phase} has no score/{trials}.json and is not in results.json", file=sys.stderr)


def _check_scores(exp: Path, scores: dict, trials: str) -> None:
    if not any(trials in lists for lists in scores.values()):
        names = sorted({n for lists in scores.values() for n in lists})
        have = f"there are scores of: {', '.join(names)}" if names else "there are no scores at all"
        hint = f"give --name {names[0]}" if names else "run stages 6 and 7 first"
        raise UserError(f"no phase has score/{trials}.json; {have}", file=exp, hint=hint)


def _compare(
    exp: Path, phases: dict[str, Path], scores: dict, trials: str, others: Sequence[Path]
) -> tuple[list, list, dict]:
    """Paired differences to other experiments, lines of their table, and EER against cost if all have it."""
    from pyspkv.score import side_by_side

    found = [(other, find_phases(other)) for other in others]
    last = side_by_side.last_phase(scores, trials)
    ours = scores[last][trials]
    compared = side_by_side.compare(phases[last], ours, last_systems(found, trials), trials)
    arms = {str(path): cost_curve(other) for path, other in [(exp, phases), *found]}
    return compared, side_by_side.table((last, ours), compared), arms if all(arms.values()) else {}


def write(
    exp: Path,
    trials: str = "test",
    truth_file: str | None = None,
    compare_with: Sequence[Path] = (),
    title: str | None = None,
    unscored: bool = False,
) -> dict:
    """Write EXP/report.md, EXP/results.json and EXP/plots; returns the contents of results.json.

    Args:
        trials: name of the trial list of the headline figures, PHASE/score/NAME.json.
        truth_file: true speakers of the training data, used only for diagnostics.
        compare_with: other experiments.
        title: title of report.md (default: the name of EXP).
        unscored: there are no trials, so scores may be missing.

    The entry `warnings` lists the signs of trouble. UserError: no phase has scores of the list.
    """
    from pyspkv.base.atomic import atomic_file
    from pyspkv.data.tables import read_table
    from pyspkv.report import plots

    if not exp.is_dir():
        raise UserError("no such folder", file=exp, hint="give the folder of an experiment (--exp of run.sh)")
    phases = find_phases(exp)
    scores = read_scores(phases)
    _check(exp, phases, scores, trials, unscored)
    truth = read_table(truth_file, "id") if truth_file else None
    rounds = {
        int(found[1]): read_round(folder, truth, truth_file)
        for name, folder in phases.items()
        if (found := ROUND.fullmatch(name)) and (folder / "data/utt2spk").exists()
    }
    drawn = draw(exp / "plots", phases, scores, rounds, trials)
    moving = {name: e for name, folder in phases.items() if (e := moving_labels(folder, truth, truth_file))}
    for name, epochs in moving.items():
        drawn.append(f"labels_{name}.png")
        to = inside(exp, exp / "plots" / drawn[-1])
        plots.training([{"kind": "epoch", **e} for e in epochs], to, f"Labels: {name}")
    compared: list[dict] = []
    aside = lists_table(scores, trials)
    if compare_with:
        compared, table, arms = _compare(exp, phases, scores, trials, compare_with)
        aside += table
        if arms:
            drawn.append("cost.png")
            plots.eer_by_cost(arms, inside(exp, exp / "plots/cost.png"))
    training = training_table(phases)
    signs = signs_of(phases)
    title = title or exp.resolve().name
    with atomic_file(exp / "report.md") as f:
        f.write(markdown(title, scores, rounds, aside, training, moving, drawn, truth is not None, signs))
    out = results(scores, rounds, trials, moving)
    out["warnings"] = [sign.as_dict() for sign in signs]
    if not scores:
        out["not_measured"] = " ".join(NOT_MEASURED[:1])
    if lists := further_lists(scores, trials):
        out["lists"] = lists
    if compared:
        out["compared"] = compared
    if (ranked := exp / "pretrain/dialogues.json").exists():
        out["dialogues"] = read_json(ranked)
    with atomic_file(exp / "results.json") as f:
        json.dump(out, f, indent=1)
        f.write("\n")
    return out
