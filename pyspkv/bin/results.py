"""RESULTS.jsonl (one row per trained system and seed) and the RESULTS.md that is rendered from it."""

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np

from pyspkv.atomic import atomic_file
from pyspkv.bin.report import epochs_of, read_json
from pyspkv.errors import UserError, run

FIELDS = ("table", "row", "seed", "eer", "min_dcf_0.01", "nmi", "audio_seconds", "wall_seconds")
FIELDS += ("command", "commit", "machine", "eer_mean", "eer_asnorm", "ami", "cllr")
# Key of a row, decimals, unit, column.
COLUMNS = (
    ("eer", 2, 1, "EER %"),
    ("min_dcf_0.01", 3, 1, "minDCF 0.01"),
    ("eer_mean", 2, 1, "EER %, less mean"),
    ("eer_asnorm", 2, 1, "EER %, AS-norm"),
    ("cllr", 3, 1, "Cllr"),
    ("nmi", 3, 1, "NMI"),
    ("ami", 3, 1, "AMI"),
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
    p.add_argument(
        "--table", help="title of the table the rows belong to, as `LibriSpeech subset, ECAPA-256`"
    )
    p.add_argument("--seed", type=int, help="seed of this run")
    p.add_argument("--command", default="", help="the command that made it")
    args = p.parse_args()
    if args.exp and (args.table is None or args.seed is None):
        p.error("--exp needs --table and --seed")
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


def rows_of(exp: Path, table: str, seed: int, command: str) -> list[dict]:
    """One row per phase with a score, in the order of the pipeline."""
    found = read_json(exp / "results.json")
    phases = {"pretrain": found.get("pretrain")}
    phases |= {f"round{r['round']}": r for r in found.get("rounds", [])}
    if (exp / "finetune").is_dir():
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


def read_rows(path: Path) -> list[dict]:
    """Rows of RESULTS.jsonl; of rows of the same table, row, seed (and fold) the last one counts."""
    rows: dict[tuple, dict] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows[row["table"], row["row"], row["seed"], row.get("fold")] = {
                "nmi": None,
                **row,
                "eer": float(row["eer"]),
            }
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


def render(rows: list[dict]) -> str:
    """RESULTS.md: one table per `table`, one line per `row`, mean ± standard deviation over seeds."""
    lines = [
        "# Results",
        "",
        "Written from RESULTS.jsonl by `python -m pyspkv.bin.results`; do not edit by hand.",
    ]
    for table in dict.fromkeys(r["table"] for r in rows):
        part = [r for r in rows if r["table"] == table]
        columns = [c for c in COLUMNS if any(r.get(c[0]) is not None for r in part)]
        head = ["system", "seeds", *(c[3] for c in columns)]
        lines += ["", f"## {table}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for name in dict.fromkeys(r["row"] for r in part):
            same = [r for r in part if r["row"] == name]
            cells = [name, ", ".join(str(s) for s in sorted(r["seed"] for r in same))]
            cells += [spread(same, key, digits, unit) for key, digits, unit, _ in columns]
            lines.append("| " + " | ".join(cells) + " |")
        for key, label in (("command", "Commands"), ("commit", "Commits"), ("machine", "Machines")):
            values = sorted({r[key] for r in part if r.get(key)})
            if values:
                lines += ["", f"{label}: " + "; ".join(f"`{v}`" for v in values)]
    return "\n".join(lines) + "\n"


def main() -> None:
    args = parse_args()
    path = Path(args.file)
    if args.exp:
        text = ""
        if path.exists():
            read_rows(path)  # nothing is added to a broken file
            text = path.read_text(encoding="utf-8")
        rows = rows_of(Path(args.exp), args.table, args.seed, args.command)
        with atomic_file(path) as f:
            f.write(text + "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    rows = read_rows(path)
    with atomic_file(path.with_suffix(".md")) as f:
        f.write(render(rows))
    print(f"{len(rows)} rows in {path}, tables in {path.with_suffix('.md')}")


if __name__ == "__main__":
    run(main)
