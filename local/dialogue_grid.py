#!/usr/bin/env python3
"""Tables A, B and C of arXiv 2202.03484 in shape, on dialogues simulated from Arabic Speech Commands.

Every run (one training, its EER on the fold's test speakers, its AUC of compactness) is a folder
EXP/fold<f>-seed<s>/<run> that is finished once its result.json stands; a killed run goes on. Several processes may be
started with the same EXP: each takes runs that no other one has. --report writes RESULTS.jsonl and RESULTS.md.

The truth (true speakers, which dialogues are mixed) is read by the evaluation, by the oracle rows, by labelled sets and
by the dev list of fine-tuning; no other training sees it, and nothing is chosen on test speakers.
"""

import argparse
import fcntl
import gc
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyspkv.atomic import atomic_file
from pyspkv.bin.report import read_json
from pyspkv.bin.results import commit, cost, machine, provenance, read_rows
from pyspkv.errors import UserError, run

NATURAL = "random-10"  # the dialogues of tables A and C: most have one speaker, some have two
RATES = (0, 10, 30, 50)
LABELLED = (4, 8, 12, 18)
LOSSES = {"ava": "AvA", "aproto": "A-Proto", "ge2e": "GE2E"}
TITLES = {
    "A": "A. Pre-training alone",
    "B": "B. Soft rejection by contamination",
    "N": "B. Soft rejection by batch size",
    "C": "C. Few labelled speakers",
}


@dataclass
class Run:
    """One training: config file, data directory (relative to a fold's), overrides; `init` names another run."""

    name: str
    config: str
    data: str
    changes: list[str] = field(default_factory=list)
    init: str | None = None
    unlabelled: str | None = None
    dev: bool = False
    auc: str | None = None  # dialogues whose compactness is measured


@dataclass
class Row:
    """A line of a table, the run behind it, and the line it is compared to (None: it is a 0.00 line itself)."""

    table: str
    name: str
    run: str
    base: str | None


def dialogues(mode: str, rate: int, loss: str = "ava", reject: str = "none", num: int = 12) -> Run:
    """Pre-training on simulated dialogues; the oracle trains on the same ones with their true speakers."""
    name = f"{mode}-{rate}"
    part = "train_labelled" if reject == "oracle" else "train"
    changes = [f"objective.loss={loss}", f"objective.reject.kind={reject}", f"batch_size={2 * num}"]
    return Run(f"{name}-{loss}-{reject}-n{num}", "pretrain", f"{name}/{part}", changes, auc=name)


def grid(encoder_c: str) -> tuple[dict[str, Run], list[Row]]:
    """All runs by name and all rows of the tables; table C has one encoder of its own for all rows."""
    runs: dict[str, Run] = {}
    rows: list[Row] = []

    def add(run: Run, table: str, name: str, base: str | None) -> None:
        runs[run.name] = run
        rows.append(Row(table, name, run.name, base))

    supervised = "supervised, LibriSpeech (GE2E)"
    for rate in RATES:  # the untrained encoder: AUC's base for the same dialogues
        for mode in ("random", "household"):
            runs[f"untrained-{mode}-{rate}"] = Run(
                f"untrained-{mode}-{rate}", "pretrain", "", auc=f"{mode}-{rate}"
            )
    add(Run("librispeech", "librispeech", "../librispeech/train_labelled"), "A", supervised, None)
    add(runs[f"untrained-{NATURAL}"], "A", "untrained encoder", supervised)
    mode, rate = NATURAL.split("-")
    for loss, title in LOSSES.items():
        add(dialogues(mode, int(rate), loss), "A", f"dialogues, {title}", supervised)

    def against(table: str, name: str, kinds: tuple[str, ...], base: str | None = None, **what) -> None:
        first = base or f"{name}, none"
        for kind in kinds:
            title = f"{name}, {kind}"
            add(dialogues(reject=kind, **what), table, title, None if title == first else first)

    for mode in ("random", "household"):
        for rate in RATES:
            kinds = ("none", "power", "adaptive", "oracle") if rate else ("none", "power", "adaptive")
            against("B", f"{mode} {rate} %, AvA", kinds, mode=mode, rate=rate)
    for loss in ("aproto", "ge2e"):
        name, kinds = f"random 50 %, {LOSSES[loss]}", ("none", "power", "adaptive", "oracle")
        against("B", name, kinds, mode="random", rate=50, loss=loss)
    for num in (6, 12, 24):
        name = f"random 50 %, AvA, {num} dialogues"
        first = "random 50 %, AvA, 6 dialogues, none"
        against("N", name, ("none", "power"), first, mode="random", rate=50, num=num)

    own = [f"encoder={encoder_c}"]
    pre = {
        "COLA": Run("c-cola", "cola", f"{NATURAL}/train", own),
        "APC": Run("c-apc", "apc", f"{NATURAL}/train", own),
        "supervised, LibriSpeech": Run("c-librispeech", "librispeech", "../librispeech/train_labelled", own),
    }
    mode, rate = NATURAL.split("-")
    for loss, title in LOSSES.items():
        r = dialogues(mode, int(rate), loss, "power")
        pre[f"dialogues, {title}"] = Run(f"c-{loss}", r.config, r.data, own + r.changes)
    runs |= {r.name: r for r in pre.values()}
    for num in LABELLED:
        column = f"{num} labelled"
        data, base = f"labelled-{num}", f"{column}, none"
        size = [f"batch_size={4 * min(12, num)}"]
        add(Run(f"c-none-{num}", "scratch", data, own + size, dev=True), "C", base, None)
        for title, r in pre.items():
            tuned = Run(f"{r.name}-{num}", "finetune", data, own + size, init=r.name, dev=True)
            add(tuned, "C", f"{column}, {title}", base)
        joint = Run(f"c-joint-{num}", "joint", data, own, unlabelled=f"{NATURAL}/train", dev=True)
        add(joint, "C", f"{column}, labelled and dialogues together", base)
    return runs, rows


class Grid:
    """The runs of one fold and seed."""

    def __init__(self, args, fold: int, seed: int, runs: dict[str, Run]):
        self.args, self.fold, self.seed, self.runs = args, fold, seed, runs
        self.data = args.data / f"fold{fold}"
        self.exp = args.exp / f"fold{fold}-seed{seed}"

    def finished(self, name: str) -> bool:
        return (self.exp / name / "result.json").exists()

    def step(self, name: str) -> bool:
        """Do the run unless another process has it or what it starts from is not there yet; whether it is finished."""
        r = self.runs[name]
        if self.finished(name) or (r.init and not self.step(r.init)):
            return self.finished(name)
        folder = self.exp / name
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".claim", "w") as claim:
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not self.finished(name):
                print(f"== fold {self.fold}, seed {self.seed}: {name} ({time.strftime('%T')})", flush=True)
                self.do(r, folder)
        return True

    def do(self, r: Run, folder: Path) -> None:
        import torch

        from pyspkv import checkpoint
        from pyspkv import config as cfg
        from pyspkv.datadir import DataDir
        from pyspkv.runlog import git_id
        from pyspkv.trainer import TrainConfig, Trainer

        config = cfg.load(
            TrainConfig,
            self.args.conf / f"{r.config}.yaml",
            [*r.changes, f"seed={self.seed}", *self.args.set],
        )
        model = folder / "model"
        if r.data:
            dev = DataDir.read(self.data / "dev") if r.dev else None
            Trainer(
                config,
                DataDir.read(self.data / r.data),
                model,
                unlabelled=DataDir.read(self.data / r.unlabelled) if r.unlabelled else None,
                dev=dev,
                dev_trials=self.data / "dev/trials" if r.dev else None,
                init=str(self.exp / r.init / "model") if r.init else None,
            ).run()
        elif not (model / "LATEST").exists():
            torch.manual_seed(self.seed)
            encoder = cfg.build("encoder", config.encoder)
            checkpoint.save_import(model, encoder, config.encoder, {"git": git_id(), "seed": self.seed})
        encoder = checkpoint.load_encoder(f"{model}@best" if r.dev else model)
        reject = getattr(config.objective, "reject", None)
        self.write(folder, self.evaluate(encoder, r, reject))
        gc.collect()  # the run's audio, 150 MB, before the next one's

    def evaluate(self, encoder, r: Run, reject) -> dict:
        """EER on the test speakers; of dialogues also the AUC, with and without one synthetic channel a dialogue."""
        import torch

        from pyspkv import metrics
        from pyspkv.datadir import DataDir
        from pyspkv.dialogues import score
        from pyspkv.embed import embed
        from pyspkv.scoring import score_trials
        from pyspkv.tables import read_table
        from pyspkv.trials import read_trials

        test, device = DataDir.read(self.data / "test"), torch.device("cpu")
        scored = score_trials(embed(encoder, test, device, "fp32"), read_trials(self.data / "test/trials"))
        out = {k: v for k, v in metrics.summary(*scored).items() if k in KEPT}
        if r.auc and not r.auc.endswith("-0"):
            data = DataDir.read(self.data / r.auc / "train")
            mixed = read_table(self.data / r.auc / "truth/dialogue2mixed", "flag")
            plain = score(encoder, data, device, reject=reject, mixed=mixed)[1]
            heard = score(encoder, data, device, reject=reject, mixed=mixed, channel=True)[1]
            out |= {k: plain[k] for k in ("auc", "auc_low", "weight_ratio")} | {"auc_channel": heard["auc"]}
        return out

    def write(self, folder: Path, values: dict) -> None:
        audio, wall = cost(folder)
        values |= {
            "audio_seconds": audio,
            "wall_seconds": wall,
            "commit": commit(folder),
            "machine": machine(),
        }
        with atomic_file(folder / "result.json") as f:
            json.dump(values, f, indent=1)


KEPT = ("eer", "min_dcf_0.01")


# ---- the report --------------------------------------------------------------------------------------------------
def collect(args, rows: list[Row]) -> list[dict]:
    """One record for each table row, fold and seed that is there, as bin.results reads them."""
    out = []
    for fold in args.folds:
        for seed in args.seeds:
            for row in rows:
                file = args.exp / f"fold{fold}-seed{seed}" / row.run / "result.json"
                if file.exists():
                    table = row.table if row.table in TITLES else "B"
                    command = f"egs/arabic_speech_commands/dialogue/grid.sh --tables {table} --seeds {seed}"
                    fixed = {
                        "table": TITLES.get(row.table, row.table),
                        "row": row.name,
                        "seed": seed,
                        "fold": fold,
                        "nmi": None,
                    }
                    more = {"command": command, "run": row.run}
                    pretrained = re.fullmatch(r"(c-[a-z0-9]+)-\d+", row.run)
                    zero = (
                        args.exp
                        / f"fold{fold}-seed{seed}"
                        / (pretrained[1] if pretrained else "-")
                        / "result.json"
                    )
                    if zero.exists():
                        more["eer_zero"] = read_json(zero)["eer"]
                    out.append({**fixed, **read_json(file), **more})
    return out


def paired(rows: list[dict], name: str, base: str, key: str = "eer") -> np.ndarray:
    """[n, 2]: `key` of both rows in every fold and seed that has both."""
    side = [
        {(r["fold"], r["seed"]): r[key] for r in rows if r["row"] == n and r.get(key) is not None}
        for n in (name, base)
    ]
    return np.array([(side[0][k], side[1][k]) for k in sorted(side[0].keys() & side[1].keys())]).reshape(
        -1, 2
    )


def mean(rows: list[dict], name: str, key: str, digits: int) -> str:
    values = [r[key] for r in rows if r["row"] == name and r.get(key) is not None]
    return f"{np.mean(values):.{digits}f}" if values else "-"


def reduction(rows: list[dict], name: str, base: str | None) -> tuple[str, str]:
    """(mean EER reduction in percent of the base's EER ± standard error, folds won) over pairs; + is better."""
    if base is None:
        return "0.00", "-"
    pairs = paired(rows, name, base)
    if not len(pairs):
        return "-", "-"
    r = 100 * (pairs[:, 1] - pairs[:, 0]) / pairs[:, 1]
    error = f" ± {r.std(ddof=1) / np.sqrt(len(r)):.2f}" if len(r) > 1 else ""
    return f"{r.mean():+.2f}{error}", f"{int((r > 0).sum())} of {len(r)}"


def table_lines(found: list[dict], spec: list[Row]) -> list[str]:
    """One line a row: EER beside its reduction; AUC, weights and the zero-step EER where there are any."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("system", lambda r: r.name),
        ("runs", lambda r: str(sum(x["row"] == r.name for x in found))),
        ("EER %", lambda r: mean(found, r.name, "eer", 2)),
        ("EER reduction %", lambda r: reduction(found, r.name, r.base)[0]),
        ("better in", lambda r: reduction(found, r.name, r.base)[1]),
        ("minDCF 0.01", lambda r: mean(found, r.name, "min_dcf_0.01", 3)),
    ]
    optional = [
        ("auc", "AUC"),
        ("auc_channel", "AUC, one channel a dialogue"),
        ("auc_low", "AUC, lowest pair"),
    ]
    optional += [("weight_ratio", "weight mixed / clean"), ("eer_zero", "EER %, no step of fine-tuning")]
    for key, title in optional:
        if any(x.get(key) is not None for x in found):
            columns.append(
                (title, lambda r, key=key: mean(found, r.name, key, 2 if key == "eer_zero" else 3))
            )
    columns.append(("wall s", lambda r: mean(found, r.name, "wall_seconds", 0)))
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|" + "---|" * len(columns)]
    names = {x["row"] for x in found}
    return lines + ["| " + " | ".join(cell(r) for _, cell in columns) + " |" for r in spec if r.name in names]


def render(found: list[dict], rows: list[Row]) -> str:
    lines = [
        "# Results",
        "",
        "Written from RESULTS.jsonl by `grid.sh --report`; do not edit by hand. Means over speaker folds and seeds,",
        "from paired runs. EER reduction: percent of the EER of the 0.00 line of the same group in the same fold, + is",
        "better, as the source prints it: mean over pairs ± standard error, and in how many pairs it is above 0.",
        "AUC: of the mean cosine of all utterances of a dialogue, mixed dialogues against clean ones, by the truth.",
    ]
    for table, title in TITLES.items():
        part = [x for x in found if x["table"] == title]
        if part:
            lines += ["", f"## {title}", "", *table_lines(part, [r for r in rows if r.table == table])]
            if table == "B":
                lines += ["", *untrained_lines(found)]
    return "\n".join(lines + provenance(found)) + "\n"


def untrained_lines(found: list[dict]) -> list[str]:
    part = [x for x in found if x["table"] == "untrained"]
    cells = [f"{n}: {mean(part, n, 'auc', 3)} ({mean(part, n, 'auc_channel', 3)})" for n in
             dict.fromkeys(x["row"] for x in part) if mean(part, n, "auc", 3) != "-"]  # fmt: skip
    return [f"AUC of the untrained encoder (one channel a dialogue): {'; '.join(cells)}."] if cells else []


def report(args, runs: dict[str, Run], rows: list[Row]) -> None:
    extra = [Row("untrained", n, n, None) for n in runs if n.startswith("untrained-")]
    new = collect(args, rows + extra)
    path = args.results
    kept = read_rows(path) if path.exists() else []
    done = {(x["table"], x["row"], x["seed"], x["fold"]) for x in new}
    found = [x for x in kept if (x["table"], x["row"], x["seed"], x.get("fold")) not in done] + new
    if not found:
        raise UserError("no finished run yet", file=args.exp)
    with atomic_file(path) as f:
        f.writelines(json.dumps(x, ensure_ascii=False) + "\n" for x in found)
    with atomic_file(path.with_suffix(".md")) as f:
        f.write(render(found, rows))
    print(f"{len(found)} rows in {path}, tables in {path.with_suffix('.md')}")


def parse() -> argparse.Namespace:
    here = Path(__file__).resolve().parent.parent / "egs/arabic_speech_commands/dialogue"
    p = argparse.ArgumentParser(
        prog="grid.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--data", type=Path, default=here / "data", help="fold<f> and librispeech, made by grid.sh"
    )
    p.add_argument("--exp", type=Path, default=here / "exp/grid", help="where the runs go")
    p.add_argument("--conf", type=Path, default=here / "conf")
    p.add_argument("--results", type=Path, default=here / "RESULTS.jsonl")
    p.add_argument("--tables", default="ABNC", help="letters of ABNC (N: batch size)")
    p.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--only", default="", metavar="REGEX", help="runs whose name it is found in")
    p.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="for every run: a trial, in another --exp",
    )
    p.add_argument("--list", action="store_true", help="print the runs and whether they are done")
    p.add_argument("--report", action="store_true", help="only write RESULTS.jsonl and RESULTS.md")
    args = p.parse_args()
    try:
        re.compile(args.only)
    except re.error as err:
        p.error(f"--only {args.only}: {err}")
    if set(args.tables) - set(TITLES) or not args.tables:
        p.error(f"--tables: letters of {''.join(TITLES)}")
    return args


def main() -> int:
    args = parse()
    from pyspkv import config as cfg

    runs, rows = grid(json.dumps(cfg.read(args.conf / "apc.yaml")["encoder"]))
    if args.report:
        report(args, runs, rows)
        return 0
    wanted = list(dict.fromkeys(r.run for t in args.tables for r in rows if r.table == t))
    if "B" in args.tables:
        wanted += [n for n in runs if n.startswith("untrained-") and n not in wanted]
    wanted = [n for n in wanted if re.search(args.only, n)]
    grids = [Grid(args, fold, seed, runs) for seed in args.seeds for fold in args.folds]
    if args.list:
        for g in grids:
            for name in wanted:
                print(f"fold {g.fold} seed {g.seed} {name}: {'done' if g.finished(name) else 'to do'}")
        return 0
    while True:
        left = [(g, name) for name in wanted for g in grids if not g.finished(name)]
        if not left:
            break
        if not sum(g.step(name) for g, name in left):
            print("the rest is in other processes' hands; waiting", file=sys.stderr)
            time.sleep(10)
    print(f"all {len(wanted) * len(grids)} runs are done: grid.sh --report writes the tables")
    return 0


if __name__ == "__main__":
    run(main)
