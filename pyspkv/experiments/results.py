"""RESULTS.jsonl, a line for every trained system, seed and fold, and RESULTS.md, which is made from it."""

import fcntl
import json
import os
import platform
import re
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from pyspkv.base import foreign
from pyspkv.base.atomic import atomic_file
from pyspkv.base.errors import UserError

UNITS = ("fold", "draw", "speaker", "seed")  # how runs of a row differ; draw: which utterances have labels
KEY = ("table", "row", "column", *UNITS)
NAME = r"[A-Za-z0-9][A-Za-z0-9._+=-]*"  # name of a cell or system: safe as a folder name and in a shell
System = Annotated[str, Field(pattern=f"^{NAME}$")]
MATRIX = ("eer", "dev_eer", "label_accuracy")  # the figures that a table with columns shows
FIGURES = {  # key of a row: decimals, divisor, title
    "eer": (2, 1, "EER %"),
    "dev_eer": (2, 1, "dev EER %"),
    "min_dcf_0.01": (3, 1, "minDCF 0.01"),
    "eer_mean": (2, 1, "EER %, less mean"),
    "eer_asnorm": (2, 1, "EER %, AS-norm"),
    "eer_crops": (2, 1, "EER %, with crops"),
    "eer_qmf": (2, 1, "EER %, with quality measures"),
    "eer_zero": (2, 1, "EER %, no step of fine-tuning"),
    "cllr": (3, 1, "Cllr"),
    "num_clusters": (0, 1, "clusters"),
    "label_accuracy": (3, 1, "Share of right pseudo-labels"),
    "purity": (3, 1, "purity"),
    "nmi": (3, 1, "NMI"),
    "ami": (3, 1, "AMI"),
    "ami_with_previous": (3, 1, "AMI with the round before"),
    "live_end": (0, 1, "classes at the end"),
    "nmi_end": (3, 1, "NMI at the end"),
    "ami_end": (3, 1, "AMI at the end"),
    "purity_end": (3, 1, "purity at the end"),
    "noise_recall": (2, 1, "of the false labels, kept out"),
    "noise_precision": (2, 1, "of what is kept out, false"),
    "auc": (3, 1, "AUC"),
    "auc_channel": (3, 1, "AUC, one channel a dialogue"),
    "auc_low": (3, 1, "AUC, lowest pair"),
    "weight_ratio": (3, 1, "weight mixed / clean"),
    "audio_seconds": (1, 3600, "audio h"),
    "wall_seconds": (1, 60, "wall min"),
}


@dataclass
class Look:
    """How RESULTS.md shows a table."""

    title: str
    unit: Literal["fold", "draw", "speaker", "seed"] | None = None  # default: the first that its rows have
    base: str | None = None  # the row that the others are compared with
    compare: Literal["points", "percent"] = "points"  # EER minus the base's EER, or relative reduction in %
    figures: list[str] = field(default_factory=list)  # default: all of FIGURES (MATRIX) that its rows have
    bases: dict[str, str] = field(default_factory=dict)  # row -> its own base
    order: list[str] = field(
        default_factory=list
    )  # order of the rows; rows that it does not name follow in the order of RESULTS.jsonl
    # Folds (or other units) on whose test list settings were chosen. They are shown apart and are part of no
    # mean, interval or plot.
    tuned_on: list[int | str] = field(default_factory=list)


@dataclass
class Row:
    """A row that a cell leaves in RESULTS.jsonl; docs/tables.md explains its fields."""

    table: str
    row: str | None = None
    column: str | int | float | None = None
    system: System | list[System] = "final"
    base: str | None = None
    cost: list[System] | None = None
    trials: System | None = None
    zero: Annotated[str, Field(pattern=f"^{NAME}/{NAME}$")] | None = None


# ---- RESULTS.jsonl -----------------------------------------------------------------------------------------------
class Result(BaseModel):
    """A line of RESULTS.jsonl. Every further key is a figure: a finite number or null."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, float | None]
    table: str
    row: str
    seed: NonNegativeInt
    eer: Annotated[float, Field(ge=0, le=100)]
    column: str | None = None
    fold: int | str | None = None
    draw: int | str | None = None
    speaker: int | str | None = None
    command: str | None = None
    commit: str | None = None
    machine: str | None = None
    ended: str | None = None  # UTC
    cell: str | None = None  # name of the cell in the table file `grid`
    grid: str | None = None
    run: str | None = None
    eer_ci_over: str | None = None
    trunk_sha256: str | None = None  # of the published weights that the encoder started from


def key_of(row: dict) -> tuple:
    """The values of KEY, which identify a row."""
    return tuple(row.get(k) for k in KEY)


def checked(line: str | bytes, file: Path, number: int | None = None) -> dict:
    """Parse a line of JSON as a row. UserError: it is not a row."""
    hint = "remove it and run that row again"
    try:
        Result.model_validate_json(line)
        text = line.decode() if isinstance(line, bytes) else line  # valid UTF-8: it passed the line above
        return foreign.parse_json(text, file=file, line=number, hint=hint)
    except ValidationError as err:
        key, said = ".".join(map(str, err.errors()[0]["loc"][:1])), err.errors()[0]["msg"].lower()
        rule = f"a line must be a JSON object with table, row, seed and eer; {key or 'it'}: {said}"
        raise UserError(rule, file=file, line=number, hint=hint) from None


def read_rows(path: Path) -> list[dict]:
    """Rows of RESULTS.jsonl.

    Of rows with the same KEY the last one counts. UserError: file and line of a bad row.
    """
    data = path.read_bytes() if path.exists() else b""
    lines = (
        data.removesuffix(b"\n").split(b"\n") if data else []
    )  # not splitlines(), which would also split at U+2028 within a text
    return list({key_of(r): r for r in (checked(line, path, n) for n, line in enumerate(lines, 1))}.values())


@contextmanager
def locked(folder: Path):
    """Wait for the lock of `folder` and hold it, because several cells may end at the same time."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def add_rows(path: Path, rows: list[dict]) -> None:
    """Write rows into RESULTS.jsonl in one step.

    A row replaces one with its KEY, unless that `ended` later or at
    the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        old = {key_of(row): row for row in read_rows(path)}  # UserError if the file is damaged
        rows = [checked(json.dumps(row, ensure_ascii=False), path) for row in rows]
        late = {key: row.get("ended") or "" for key, row in old.items()}
        new = {key_of(r): r for r in rows if not r.get("ended") or r["ended"] > late.get(key_of(r), "")}
        if new:
            kept = [row for key, row in old.items() if key not in new]
            with atomic_file(path) as f:
                f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in [*kept, *new.values()])


# ---- what an experiment leaves -----------------------------------------------------------------------------------
def machine() -> str:
    """Number and model of the CPUs."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: *(.*\S)", info.read_text() if info.exists() else "", re.M)
    return f"{len(os.sched_getaffinity(0))} x {model[1] if model else platform.processor() or platform.machine()}"


def cost(*phases: Path) -> tuple[float | None, float | None]:
    """(audio seconds, wall seconds) of all trainings in these phases' folders, from end-of-epoch records."""
    from pyspkv.report.experiment import epochs_of

    logs = [
        log for phase in phases for log in (*phase.glob("*/train.jsonl"), *phase.glob("*/model/train.jsonl"))
    ]
    models = {log.parent.resolve() for log in logs}  # resolved: a link to a model is not another model
    runs = [
        [e for e in epochs_of(m.parent, m.name) if {"audio_seconds", "seconds"} <= e.keys()] for m in models
    ]
    if not any(runs):
        return None, None
    return sum(r[-1]["audio_seconds"] for r in runs if r), sum(e["seconds"] for r in runs for e in r)


def systems(exp: Path) -> dict[str, dict]:
    """System name -> its figures in results.json and its `folder`, in pipeline order, and then `final`.

    UserError: the file is not a results.json.
    """
    from pyspkv.report.experiment import read_json

    found = read_json(exp / "results.json")
    try:
        phases = {"pretrain": found.get("pretrain")}
        if phases["pretrain"]:
            phases["pretrain"] |= {k: v for k, v in (found.get("dialogues") or {}).items() if k != "mixed"}
        phases |= {f"round{r['round']}": r for r in found.get("rounds") or []}
        for name in ("finetune", "baseline"):  # without these, the last round is final
            if (exp / f"{name}/score/{found.get('trials')}.json").is_file():
                phases[name] = found.get("final")
        last = list(phases)[-1]
        phases |= {**(found.get("others") or {}), "supervised": found.get("supervised")}
        out = {name: {**entry, "folder": exp / name} for name, entry in phases.items() if entry}
        return out | ({"final": {**found["final"], "folder": exp / last}} if found.get("final") else {})
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            "is not a results.json of bin.report", file=exp / "results.json", hint="run stage 8 again"
        ) from None


def trunk_digest(model: Path) -> str | None:
    """SHA-256 of the published weights that a model is made of or started from; None if it has no such trunk.

    UserError: a run.json or config.yaml on the way is damaged.
    """
    from pyspkv.base import config as cfg
    from pyspkv.report.experiment import read_json

    for _ in range(8):  # a model may start from one that started from the trunk
        model = model.parent if model.name.startswith("ckpt-") else model
        record, config = model / "run.json", model / "config.yaml"
        weights = read_json(record).get("weights_sha256") if record.exists() else None
        if isinstance(weights, dict):
            return " ".join(map(str, weights.values()))
        encoder = cfg.read(config).get("encoder") if config.exists() else None
        name = encoder.get("pretrained") if isinstance(encoder, dict) else None
        if not isinstance(name, str) or not name:
            return None
        model = Path(name.rpartition("@")[0] or name)
    return None


def row_of(
    exp: Path, system: str | list[str], phases: list[str] | None = None, trials: str | None = None
) -> dict:
    """The figures of a system, its best dev EER, its commit, the SHA-256 of its trunk and the cost of its training.

    Args:
        system: a name, or several; of several, the one with the lowest dev EER counts, with the cost of all.
        phases: phases whose cost is counted (default: that of the system).
        trials: another trial list than the headline's.

    UserError: there is no such system or list.
    """
    from pyspkv.report.experiment import KEYS, epochs_of, read_json, read_metrics

    if isinstance(system, list):
        several = [row_of(exp, name, phases or system, trials) for name in system]
        return min(several, key=lambda row: row.get("dev_eer", float("inf")))
    known = systems(exp)
    if system not in known:
        hint = f"it has {', '.join(known) or 'none'}"
        raise UserError(f"has no system '{system}'", file=exp / "results.json", hint=hint)
    entry = known[system]
    folder = entry.pop("folder")
    if trials:
        found = read_metrics(folder / "score" / f"{trials}.json")
        entry = {k: v for k, v in entry.items() if not k.startswith("eer")} | {k: found.get(k) for k in KEYS}
    out = {
        k: v for k, v in entry.items() if k not in ("round", "threshold") and not isinstance(v, list | dict)
    }
    if dev := [e["dev_eer"] for e in epochs_of(folder) if "dev_eer" in e]:
        out["dev_eer"] = min(dev)
    out["audio_seconds"], out["wall_seconds"] = cost(*[exp / p for p in phases] if phases else [folder])
    record = folder / "model/run.json"
    commit = read_json(record).get("git") if record.exists() else None
    return out | {"commit": commit, "trunk_sha256": trunk_digest(folder / "model")}


def rows_of(exp: Path, row: Row, table: str) -> list[dict]:
    """The rows that an experiment leaves for `row` in the table with this title.

    The cell in row.zero is looked for beside `exp`.
    """
    every, out = [name for name in systems(exp) if name != "final"], []
    for system in every if row.system == "all" else [row.system]:
        new = {"table": table, "row": system if row.row == "all" else row.row, "column": row.column}
        new |= row_of(exp, system, row.cost, row.trials)
        if row.zero:
            before, phase = row.zero.split("/")
            new["eer_zero"] = row_of(exp.parent / before, phase)["eer"]
        out.append({k: v for k, v in new.items() if v is not None})
    return out


# ---- means, spreads and paired differences -----------------------------------------------------------------------
def by_unit(pairs: list[tuple[dict, float | None]], unit: str) -> list[float]:
    """(row, value) of each run -> one value per unit, the mean over its runs.

    A row without the unit counts by its seed.
    """
    groups = defaultdict(list)
    for row, value in pairs:
        if value is not None:
            groups[("seed", row["seed"]) if row.get(unit) is None else row[unit]].append(value)
    return [sum(v) / len(v) for v in groups.values()]


def paired(rows: list[dict], base: list[dict], unit: str, compare: str = "points") -> list[float]:
    """One value per unit: EER minus that of the base with the same fold, draw, speaker and seed.

    compare "percent": the relative reduction of the EER in percent instead.
    """
    other = {tuple(r.get(u) for u in UNITS): r["eer"] for r in base}
    pairs = [(r, r["eer"], other.get(tuple(r.get(u) for u in UNITS))) for r in rows]
    if compare == "percent":
        return by_unit([(r, 100 * (b - eer) / b) for r, eer, b in pairs if b], unit)
    return by_unit([(r, eer - b) for r, eer, b in pairs if b is not None], unit)


def statistics(values: list[float]) -> tuple[float, float, float]:
    """Mean, standard deviation (n - 1), half the mean's 95 % interval (Student's t); NaN for one value."""
    import numpy as np
    from scipy.special import stdtrit

    n = len(values)
    deviation = float(np.std(values, ddof=1)) if n > 1 else float("nan")
    return float(np.mean(values)), deviation, float(stdtrit(max(1, n - 1), 0.975)) * deviation / n**0.5


def spread_text(values: list[float], digits: int, scale: float = 1) -> str:
    """Mean and standard deviation as text, or "-". scale: divisor of the values."""
    if not values:
        return "-"
    mean, deviation, _ = statistics([v / scale for v in values])
    return f"{mean:.{digits}f}" + f" ± {deviation:.{digits}f}" * (len(values) > 1)


def difference_text(values: list[float], unit: str) -> str:
    """Mean difference as text, with its interval.

    Runs with other seeds share their speakers, trials and labels. So for seeds there is a standard deviation,
    but no interval.
    """
    if len(values) < 2:
        return f"{values[0]:+.2f} (one {unit}: no interval)" if values else "-"
    mean, deviation, half = statistics(values)
    if unit == "seed":
        return f"{mean:+.2f} ± {deviation:.2f} (seeds: no interval)"
    return f"{mean:+.2f} ({mean - half:+.2f} .. {mean + half:+.2f})"


# ---- RESULTS.md and plots ----------------------------------------------------------------------------------------
def _text(value: object) -> str:
    return re.sub(r"\s+", " ", str(value)).replace("|", r"\|").replace("<", "&lt;")


def _markdown(head: list[str], body: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_text, cells)) + " |" for cells in [head, *body]]
    return ["", lines[0], "|" + "---|" * len(head), *lines[1:]]


def _numbers_in(text: str | None) -> list[float]:
    return [float(x) for x in re.findall(r"\d+\.?\d*", text or "")] or [float("inf")]


class Shown:
    """One table of RESULTS.md: its rows in order, by name and column."""

    def __init__(self, rows: list[dict], look: Look):
        self.all, self.compare = rows, look.compare
        self.unit: str = look.unit or next(
            u for u in UNITS if u == "seed" or any(r.get(u) is not None for r in rows)
        )
        self.tuning = [r for r in rows if r.get(self.unit) in look.tuned_on]
        self.rows = [r for r in rows if r.get(self.unit) not in look.tuned_on]
        self.tuned = f"{self.unit} {', '.join(map(str, look.tuned_on))}" if self.tuning else ""
        have = {r["row"] for r in rows}
        self.names = [n for n in dict.fromkeys([*look.order, *(r["row"] for r in rows)]) if n in have]
        self.columns = sorted({r.get("column") for r in rows}, key=lambda c: (_numbers_in(c), c or ""))
        wanted = look.figures or (FIGURES if self.columns == [None] else MATRIX)
        self.figures = {
            k: FIGURES.get(k, (3, 1, k)) for k in wanted if any(r.get(k) is not None for r in rows)
        }
        bases = {n: look.bases.get(n, look.base) for n in self.names}
        self.bases = {n: b for n, b in bases.items() if b is not None and b in have and b != n}

    def part(self, name: str, column: str | None, tuning: bool = False) -> list[dict]:
        """The runs of a row in a column; tuning: those of the units that settings were chosen on."""
        rows = self.tuning if tuning else self.rows
        return [r for r in rows if (r["row"], r.get("column")) == (name, column)]

    def units(self, name: str, column: str | None, key: str = "eer", tuning: bool = False) -> list[float]:
        """One value of a figure per unit."""
        return by_unit([(r, r.get(key)) for r in self.part(name, column, tuning)], self.unit)

    def versus(self, name: str, column: str | None, tuning: bool = False) -> list[float]:
        """One difference to the base per unit."""
        base = self.part(self.bases[name], column, tuning) if name in self.bases else []
        return paired(self.part(name, column, tuning), base, self.unit, self.compare)

    def systems(self) -> list[str]:
        """Markdown lines: a row per system with all its figures."""
        body, first = [], next(iter(self.figures.items()), ("eer", FIGURES["eer"]))
        for n in self.names:
            seeds = [r["seed"] for r in self.part(n, None)]
            line = [n, ", ".join(map(str, sorted(seeds))) if self.unit == "seed" else len(seeds)]
            line += [spread_text(self.units(n, None, k), d, unit) for k, (d, unit, _) in self.figures.items()]
            if self.bases:
                found = self.versus(n, None)
                better = sum(v > 0 if self.compare == "percent" else v < 0 for v in found)
                line += [difference_text(found, self.unit), f"{better} of {len(found)}" if found else "-"]
            if self.tuned:
                key, (digits, unit, _) = first
                line.append(spread_text(self.units(n, None, key, tuning=True), digits, unit))
            if self.tuned and self.bases:
                apart = self.versus(n, None, tuning=True)
                line.append(f"{sum(apart) / len(apart):+.2f}" if apart else "-")
            body.append(line)
        head = [
            "system",
            "seeds" if self.unit == "seed" else "runs",
            *(t for _, _, t in self.figures.values()),
        ]
        head += [self.compared, "better in"] * bool(self.bases)
        if self.tuned:
            titles = [first[1][2], self.compared] if self.bases else [first[1][2]]
            head += [f"{title}, {self.tuned} (tuned on)" for title in titles]
        return _markdown(head, body)

    def matrices(self) -> list[str]:
        """Markdown lines: for each figure, a table of systems and columns."""

        def matrix(title: str, names, text) -> list[str]:
            body = [[n, *(text(n, column) for column in self.columns)] for n in names]
            return ["", f"{title}:", *_markdown(["system", *(c or "" for c in self.columns)], body)]

        out = []
        for k, (d, unit, title) in self.figures.items():
            out += matrix(
                title, self.names, lambda n, c, k=k, d=d, u=unit: spread_text(self.units(n, c, k), d, u)
            )
        if self.bases:
            out += matrix(
                self.compared, self.bases, lambda n, c: difference_text(self.versus(n, c), self.unit)
            )
        if self.tuned:
            out += matrix(
                f"EER %, {self.tuned} (tuned on)",
                self.names,
                lambda n, c: spread_text(self.units(n, c, tuning=True), 2),
            )
        return out

    @property
    def compared(self) -> str:
        """Title of the comparison with the base."""
        return "EER reduction %" if self.compare == "percent" else "EER less its base's"

    def markdown(self) -> list[str]:
        """All Markdown lines of the table."""
        said = f"Mean ± standard deviation over {self.unit}s" + ", each its seeds' mean" * (
            self.unit != "seed"
        )
        if self.bases:
            bases = list(dict.fromkeys(self.bases.values()))
            said += f". Compared run by run with {bases[0] if len(bases) == 1 else 'the first of its group'}: mean"
            said += f" and Student's 95 % interval over {self.unit}s" * (self.unit != "seed")
        if self.tuned:
            said += f". Settings were chosen on {self.tuned}, which stands apart and counts in no mean and no interval"
        seeds = ", ".join(map(str, sorted({r["seed"] for r in self.all})))
        minutes = sum(r.get("wall_seconds") or 0 for r in self.all) / 60
        said += f". Seeds {seeds}; {minutes:.0f} minutes of training."
        out = ["", f"## {_text(self.all[0]['table'])}"]
        out += self.systems() if self.columns == [None] else self.matrices()
        out += ["", _text(said)]
        grids = [
            {**r, "command": f"python -m pyspkv.bin.grid {r['grid']}"} if r.get("grid") else r
            for r in self.all
        ]
        titles = {"command": "Commands", "commit": "Commits", "machine": "Machines"}
        titles["trunk_sha256"] = "SHA-256 of the trunk's weights"
        for key, name in titles.items():
            if values := sorted({_text(r[key]).replace("`", "'") for r in grids if r.get(key)}):
                out += ["", f"{name}: " + "; ".join(f"`{v}`" for v in values)]
        return out

    def plot(self, folder: Path) -> None:
        """Plot mean EER and standard deviation over the units: a line per row, a color per column."""
        from pyspkv.report import plots

        title, *names = (x.replace("$", r"\$") for x in (self.all[0]["table"], *self.names))
        file = folder / (re.sub(r"\W+", "_", title)[:80] + ".png")
        with plots._figure(file, size=(8, 1.5 + 0.3 * len(names))) as ax:
            for k, column in enumerate(self.columns):
                found = {y: self.units(n, column) for y, n in enumerate(self.names)}
                at = [(y, *statistics(values)) for y, values in found.items() if values]
                error = [0 if deviation != deviation else deviation for _, _, deviation, _ in at]
                line = {**plots._line(k), "linestyle": "", "marker": "o", "capsize": 2, "label": column}
                ax.errorbar([mean for _, mean, _, _ in at], [y for y, *_ in at], xerr=error, **line)
            ax.set_yticks(range(len(names)), names)
            ax.invert_yaxis()
            ax.set(xlabel="EER %")
            ax.set_title(title, fontsize=8)
            if self.columns != [None]:
                ax.legend(fontsize=8)


def write_tables(path: Path, looks: dict[str, Look], plots: Path | None = None) -> int:
    """Write RESULTS.md from RESULTS.jsonl, and plots into a folder; returns the number of rows.

    looks: title of a table -> Look.
    """
    said = "Written from RESULTS.jsonl by `python -m pyspkv.bin.grid TABLE --report`; do not edit by hand."
    with locked(path.parent):
        rows = read_rows(path)
        shown = []
        places = {title: k for k, title in enumerate(looks)}
        for title in sorted(dict.fromkeys(r["table"] for r in rows), key=lambda t: places.get(t, len(looks))):
            shown.append(Shown([r for r in rows if r["table"] == title], looks.get(title) or Look(title)))
        with atomic_file(path.with_suffix(".md")) as f:
            f.write(
                "\n".join(["# Results", "", said, *(line for s in shown for line in s.markdown())]) + "\n"
            )
    if plots:
        for table in shown:
            table.plot(plots)
    return len(rows)
