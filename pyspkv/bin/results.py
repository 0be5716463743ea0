"""RESULTS.jsonl (one row per trained system and seed) and the RESULTS.md that is rendered from it."""

import argparse
import fcntl
import json
import os
import platform
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pyspkv.atomic import atomic_file
from pyspkv.bin.report import epochs_of, read_json
from pyspkv.errors import UserError, natural, run
from pyspkv.tables import read_table

FIELDS = ("table", "row", "seed", "eer", "min_dcf_0.01", "nmi", "audio_seconds", "wall_seconds")
FIELDS += ("command", "commit", "machine", "eer_mean", "eer_asnorm", "ami", "cllr")
FIELDS += ("live_end", "nmi_end", "ami_end", "purity_end")  # of labels that moved
FIELDS += ("eer_crops", "noise_recall", "noise_precision")
MATRIX = (
    ("eer", 2, "EER %"),
    ("dev_eer", 2, "dev EER %"),
    ("label_accuracy", 3, "Share of right pseudo-labels"),
)
# Key of a row, decimals, unit, column.
COLUMNS = (
    ("eer", 2, 1, "EER %"),
    ("min_dcf_0.01", 3, 1, "minDCF 0.01"),
    ("eer_mean", 2, 1, "EER %, less mean"),
    ("eer_asnorm", 2, 1, "EER %, AS-norm"),
    ("eer_crops", 2, 1, "EER %, with crops"),
    ("cllr", 3, 1, "Cllr"),
    ("nmi", 3, 1, "NMI"),
    ("ami", 3, 1, "AMI"),
    ("live_end", 0, 1, "classes at the end"),
    ("nmi_end", 3, 1, "NMI at the end"),
    ("ami_end", 3, 1, "AMI at the end"),
    ("purity_end", 3, 1, "purity at the end"),
    ("noise_recall", 2, 1, "of the false labels, kept out"),
    ("noise_precision", 2, 1, "of what is kept out, false"),
    ("audio_seconds", 1, 3600, "audio h"),
    ("wall_seconds", 1, 60, "wall min"),
)


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.results",
        description="Append the systems of EXP/results.json to FILE (RESULTS.jsonl) and write RESULTS.md beside it: "
        "mean and spread (standard deviation) over seeds. Without --exp only RESULTS.md is written anew.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--file", default="RESULTS.jsonl", help="RESULTS.jsonl")
    p.add_argument("--exp", help="experiment folder with results.json (bin.report)")
    p.add_argument("--system", help="instead of --exp: one system's folder, with score/test.json and model")
    p.add_argument("--row", help="with --system: name of the row")
    p.add_argument(
        "--column", help="with --system: the table is a matrix of rows and columns, and this is the column"
    )
    p.add_argument(
        "--cost", nargs="*", default=[], help="with --system: run folders whose cost counts; default model"
    )
    p.add_argument("--labels", help="with --system and --truth: data directory of its pseudo-labels")
    p.add_argument("--truth", help="true utt2spk, for the share of right pseudo-labels, a diagnostic")
    p.add_argument(
        "--table", help="title of the table the rows belong to, as `LibriSpeech subset, ECAPA-256`"
    )
    p.add_argument("--seed", type=natural, help="seed of this run")
    p.add_argument("--command", default="", help="the command that made it")
    args = p.parse_args()
    if args.exp and args.system:
        p.error("--exp or --system, not both")
    if (args.exp or args.system) and (args.table is None or args.seed is None):
        p.error("--exp and --system need --table and --seed")
    if args.system and args.row is None:
        p.error("--system needs --row")
    if (args.labels is None) != (args.truth is None):
        p.error("--labels and --truth go together")
    return args


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{len(os.sched_getaffinity(0))} x {model}"


def commit(folder: Path) -> str:
    """The commit that trained a phase, as its model/run.json has it (`+`: files differed); empty outside git."""
    record = folder / "model/run.json"
    return (json.loads(record.read_text()).get("git") or "") if record.exists() else ""


def cost(folder: Path) -> tuple[float | None, float | None]:
    """(audio seconds, wall seconds) of a phase's training, from its end-of-epoch records."""
    epochs = [r for r in epochs_of(folder) if "audio_seconds" in r and "seconds" in r]
    return (epochs[-1]["audio_seconds"], sum(r["seconds"] for r in epochs)) if epochs else (None, None)


def rows_of_exp(exp: Path, table: str, seed: int, command: str) -> list[dict]:
    """One row per phase with a score, in the order of the pipeline."""
    found = read_json(exp / "results.json")
    phases = {"pretrain": found.get("pretrain")}
    phases |= {f"round{r['round']}": r for r in found.get("rounds", [])}
    if (exp / f"finetune/score/{found.get('trials')}.json").is_file():  # else the last round is final
        phases["finetune"] = found.get("final")
    phases |= found.get("others", {})
    phases["supervised"] = found.get("supervised")
    out = []
    for name, entry in phases.items():
        if entry:
            audio, wall = cost(exp / name)
            values = (table, name, seed, entry["eer"], entry["min_dcf_0.01"], entry.get("nmi"), audio, wall)
            values += (command, commit(exp / name), machine())
            values += tuple(entry.get(k) for k in FIELDS[len(values) :])
            out.append(dict(zip(FIELDS, values)))
    return out


def row_of_system(args: argparse.Namespace) -> dict:
    """One row of a system's folder; its dev EER is that of the epoch that was chosen."""
    folder = Path(args.system)
    scored = read_json(folder / "score/test.json")
    runs = [Path(c) for c in args.cost] or [folder / "model"]
    records = [[r for r in epochs_of(run.parent, run.name) if "seconds" in r] for run in runs]
    chosen = [r["dev_eer"] for r in epochs_of(folder) if "dev_eer" in r]
    accuracy = None
    if args.labels:
        truth = read_table(args.truth, "id")
        pseudo = read_table(Path(args.labels) / "utt2spk", "id")
        accuracy = float(np.mean([truth.get(utt) == spk for utt, spk in pseudo.items()]))
    return {
        "table": args.table,
        "row": args.row,
        **({"column": args.column} if args.column else {}),
        "seed": args.seed,
        "eer": scored["eer"],
        "min_dcf_0.01": scored["min_dcf_0.01"],
        "dev_eer": min(chosen, default=None),
        "label_accuracy": accuracy,
        "audio_seconds": sum(epochs[-1]["audio_seconds"] for epochs in records if epochs),
        "wall_seconds": sum(r["seconds"] for epochs in records for r in epochs),
        "command": args.command,
        "commit": commit(folder),
        "machine": machine(),
    }


def read_rows(path: Path) -> list[dict]:
    """Rows of RESULTS.jsonl; of rows of the same table, row, column, seed and fold the last one counts."""
    rows: dict[tuple, dict] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            key = row["table"], row["row"], row.get("column"), row["seed"], row.get("fold")
            rows[key] = {"nmi": None, **row, "eer": float(row["eer"])}
        except (ValueError, KeyError, TypeError):
            rule = "a line must be a JSON object with table, row, seed and eer"
            raise UserError(
                rule, file=path, line=number, mend="remove the line and run that row again"
            ) from None
    return list(rows.values())


def spread(rows: list[dict], key: str, digits: int, unit: float = 1) -> str:
    values = np.array([r[key] for r in rows if r.get(key) is not None], float) / unit
    if not len(values):
        return "-"
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def _numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"\d+\.?\d*", text)]


def matrices(rows: list[dict]) -> list[str]:
    """Rows with a `column`: a table of rows and columns for each figure they have, mean ± deviation over seeds."""
    lines = []
    columns = sorted({r["column"] for r in rows}, key=lambda c: (_numbers(c) or [np.inf], c))
    for key, digits, title in MATRIX:
        if not any(r.get(key) is not None for r in rows):
            continue
        head = ["system", *columns]
        lines += ["", f"{title}:", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for name in dict.fromkeys(r["row"] for r in rows):
            parts = [[r for r in rows if (r["row"], r["column"]) == (name, c)] for c in columns]
            lines.append("| " + " | ".join([name, *(spread(part, key, digits) for part in parts)]) + " |")
    minutes = sum(r.get("wall_seconds") or 0 for r in rows) / 60
    seeds = ", ".join(map(str, sorted({r["seed"] for r in rows})))
    return [*lines, "", f"Seeds {seeds}; {minutes:.0f} minutes of training."]


def render(rows: list[dict]) -> str:
    """RESULTS.md: one table per `table`, one line per `row`, mean ± standard deviation over seeds."""
    lines = [
        "# Results",
        "",
        "Written from RESULTS.jsonl by `python -m pyspkv.bin.results`; do not edit by hand.",
    ]
    if any("run.sh" in (r.get("command") or "") for r in rows):
        lines[-1] += " Each seed has an `--exp` of its own."
    for table in dict.fromkeys(r["table"] for r in rows):
        part = [r for r in rows if r["table"] == table]
        if all(r.get("column") is not None for r in part):
            lines += ["", f"## {table}", *matrices(part), *provenance(part)]
            continue
        columns = [c for c in COLUMNS if any(r.get(c[0]) is not None for r in part)]
        head = ["system", "seeds", *(c[3] for c in columns)]
        lines += ["", f"## {table}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for name in dict.fromkeys(r["row"] for r in part):
            same = [r for r in part if r["row"] == name]
            cells = [name, ", ".join(str(s) for s in sorted(r["seed"] for r in same))]
            cells += [spread(same, key, digits, unit) for key, digits, unit, _ in columns]
            lines.append("| " + " | ".join(cells) + " |")
        lines += provenance(part)
    return "\n".join(lines) + "\n"


def provenance(rows: list[dict]) -> list[str]:
    lines = []
    for key, label in (("command", "Commands"), ("commit", "Commits"), ("machine", "Machines")):
        values = sorted({r[key] for r in rows if r.get(key)})
        if values:
            lines += ["", f"{label}: " + "; ".join(f"`{v}`" for v in values)]
    return lines


@contextmanager
def locked(folder: Path):
    """Alone in `folder`: several grid cells may write at a time."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main() -> None:
    args = parse_args()
    path = Path(args.file).absolute()
    with locked(path.parent):
        if args.exp or args.system:
            text = ""
            if path.exists():
                read_rows(path)  # nothing is added to a broken file
                text = path.read_text(encoding="utf-8")
            if args.exp:
                rows = rows_of_exp(Path(args.exp), args.table, args.seed, args.command)
            else:
                rows = [row_of_system(args)]
            with atomic_file(path) as f:
                f.write(text + "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        rows = read_rows(path)
        with atomic_file(path.with_suffix(".md")) as f:
            f.write(render(rows))
    print(f"{len(rows)} rows in {args.file}, tables in {Path(args.file).with_suffix('.md')}")


if __name__ == "__main__":
    run(main)
