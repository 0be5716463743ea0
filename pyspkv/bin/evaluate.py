"""Score, calibrate and measure systems on trial lists: SYSTEM/score/NAME.scores and .json. What stands is kept."""

import argparse
import json
import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyspkv.base import foreign
from pyspkv.base.errors import UserError, run

if TYPE_CHECKING:
    from pyspkv.score.evaluation import System, TrialList

FORMAT = 1  # of made_by and of what the files hold; another one is made again
ROOT = Path(__file__).resolve().parents[2]


def count(text: str) -> int:
    """argparse type: a whole number from 2, in plain digits."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no whole number from 2")
    return int(text)


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.evaluate",
        description="Score systems on trial lists, from SYSTEM/embed/NAME/embedding.scp. Written are "
        "SYSTEM/score/NAME.scores and .json, and with --dev SYSTEM/model/calibration.json. Which variants (NAME-crops, "
        "NAME-mean, NAME-asnorm) there are follows from the options: those not asked for are removed.",
    )
    # fmt: off
    p.add_argument("--systems", required=True, nargs="+", metavar="DIR", help="folders with embed/ and model/")
    p.add_argument("--data", required=True, nargs="+", metavar="DIR",
                   help="data directories with trials, and perhaps enrol_map (models of several utterances)")
    p.add_argument("--name", nargs="+", metavar="NAME",
                   help="names of these lists, as many (default: the last component of each --data)")
    p.add_argument("--dev", metavar="DIR", help="data directory of dev trials: calibration is fitted on them")
    p.add_argument("--cohort-set", default="train", metavar="NAME",
                   help="name of the cohort's embeddings, embed/NAME (default: train)")  # fmt: skip
    p.add_argument("--cohort-data", metavar="DIR",
                   help="data directory of (pseudo-)speakers of embed/train: adds NAME-mean, scores less the training "
                   "embeddings' mean, and NAME-asnorm, AS-normed with these speakers")
    p.add_argument("--top-n", type=count, default=300, metavar="N",
                   help="cohort speakers per side in AS-norm, all of a smaller cohort (default: 300)")
    p.add_argument("--crops", action="store_true",
                   help="adds NAME-crops: mean of the scores by embed/NAME and by embed/NAME-crops")
    p.add_argument("--compare", metavar="DIR",
                   help="a system with the same lists: paired bootstrap of the EERs. Among --systems, it is scored "
                   "first; else its score files must be there")
    # fmt: on
    args = p.parse_args()
    for option in ("dev", "cohort_data", "compare"):  # scripts give an empty one for none
        setattr(args, option, getattr(args, option) or None)
    args.systems = [str(Path(system)) for system in args.systems]
    args.name = args.name or [os.path.basename(os.path.abspath(d)) for d in args.data]
    if len(args.name) != len(args.data):
        p.error("--name: as many names as --data has directories")
    return args


@dataclass(frozen=True)
class Part:
    """One score file of a system. kind: dev, plain, crops, mean or asnorm."""

    kind: str
    name: str  # of the trial list
    data: str  # its data directory
    cohort: str = "train"  # the set whose mean is subtracted, and whose speakers are the AS-norm cohort

    @property
    def stem(self) -> str:
        return self.name if self.kind in ("dev", "plain") else f"{self.name}-{self.kind}"

    @property
    def sets(self) -> list[str]:
        """The sets of embeddings that it takes."""
        more = {"crops": [f"{self.name}-crops"], "mean": [self.cohort], "asnorm": [self.cohort]}
        return [self.name, *more.get(self.kind, [])]


def parts_of(args: argparse.Namespace) -> list[Part]:
    """What is wanted of every system, in the order in which it is made. UserError: two files of one name."""
    parts = [Part("dev", os.path.basename(os.path.abspath(args.dev)), args.dev)] if args.dev else []
    kinds = ["plain", *(["crops"] if args.crops else []), *(["mean", "asnorm"] if args.cohort_data else [])]
    parts += [
        Part(kind, name, data, args.cohort_set) for name, data in zip(args.name, args.data) for kind in kinds
    ]
    seen = set()
    for part in parts:
        if not part.name or "/" in part.name or part.name.startswith("."):
            raise UserError(f"{part.name!r} can be no name of a trial list", mend="give --name")
        if part.stem in seen:
            mend = "give the lists of --data other names with --name"
            raise UserError(f"two score files would be called {part.stem}.scores", file=part.data, mend=mend)
        seen.add(part.stem)
    return parts


def unwanted(system: str, args: argparse.Namespace, parts: list[Part]) -> list[Path]:
    """Files of variants that are not asked for: they came from other embeddings or another cohort."""
    kinds = [*([] if args.crops else ["crops"]), *([] if args.cohort_data else ["mean", "asnorm"])]
    stems = {f"{name}-{kind}" for name in args.name for kind in kinds} - {part.stem for part in parts}
    files = [Path(system, "score", stem + end) for stem in sorted(stems) for end in (".scores", ".json")]
    return [f for f in files if os.path.lexists(f)]


def check_there(systems: list[str], args: argparse.Namespace, parts: list[Part]) -> None:
    """UserError: a folder, a list or an embedding set is missing; the mend is the command that makes it."""
    files = [f"{part.data}/{name}" for part in parts for name in ("trials", "utt2spk")]
    for file in [*files, *([f"{args.cohort_data}/utt2spk"] if args.cohort_data else [])]:
        if not Path(file).is_file():
            mend = "check the paths given to --data, --dev and --cohort-data"
            raise UserError("no such file", file=file, mend=mend)
    for system in systems:
        if not Path(system).is_dir():
            raise UserError("no such folder", file=system, mend="check the path given to --systems")
        for path in outputs(system, None):
            if path.is_symlink():
                refuse_link(path)
    wanted = {f"{s}/embed/{name}": (s, part, name) for s in systems for part in parts for name in part.sets}
    missing = [folder for folder in wanted if not Path(folder, "embedding.scp").is_file()]
    if missing:
        more = f", nor in {len(missing) - 1} other folders that are needed" if missing[1:] else ""
        mend = extract_command(args, missing[0], *wanted[missing[0]])
        raise UserError(f"no embeddings are there{more}", file=missing[0], mend=mend)
    for system in systems:
        check_one_model(system, args, parts)


def check_one_model(system: str, args: argparse.Namespace, parts: list[Part]) -> None:
    """UserError: sets that are scored together are of different models, as far as extraction has noted them."""
    models: dict[str, object] = {}
    for part in parts:
        for name in part.sets:
            folder = f"{system}/embed/{name}"
            if name not in models:
                models[name] = foreign.read_json_or_empty(Path(folder, "made_by"), limit=1 << 28).get("model")
            first = models[part.name]
            if isinstance(first, str) and isinstance(models[name], str) and models[name] != first:
                rule = f"these embeddings are of another model than {system}/embed/{part.name}"
                raise UserError(rule, file=folder, mend=extract_command(args, folder, system, part, name))


def extract_command(args: argparse.Namespace, folder: str, system: str, part: Part, name: str) -> str:
    """The command that makes an embedding set."""
    own = name == part.name
    data = args.cohort_data if name == part.cohort and not own else part.data
    crops = ["--crops", "5"] if name.endswith("-crops") and not own else []
    return shlex.join([str(ROOT / "steps/extract.sh"), *crops, f"{system}/model", data, folder])


def refuse_link(path: Path) -> None:
    mend = shlex.join(["rm", str(path)])
    raise UserError("is a link, and nothing is written through it", file=path, mend=mend)


def outputs(system: str, part: Part | None) -> list[Path]:
    """The files that are written for a part; None: those that every part needs."""
    score = Path(system, "score")
    if part is None:
        return [score / ".lock", score / "made_by"]
    files = [score / f"{part.stem}.scores", score / f"{part.stem}.json"]
    return files + ([calibration_of(system)] if part.kind == "dev" else [])


def calibration_of(system: str) -> Path:
    """With the model, where `verify` finds it; in the system's folder, where the model is another experiment's."""
    own = Path(system, "model").resolve().is_relative_to(Path(system).resolve())
    return Path(system, "model/calibration.json" if own else "calibration.json")


def stamp(path: str | Path) -> list[int] | None:
    """Size and times of a file, which any change of it changes; None: it is not there."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


class Inputs:
    """What score files are made from, as small JSON. Every file is looked at once, before anything is read from it."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.known: dict[str, list[int] | None] = {}
        self.sets: dict[str, dict[str, list[int] | None]] = {}

    def file(self, path: str) -> list[int] | None:
        if path not in self.known:
            self.known[path] = stamp(path)
        return self.known[path]

    def embeddings(self, folder: str) -> dict[str, list[int] | None]:
        """The scp and the arks that it points into."""
        if folder in self.sets:
            return self.sets[folder]
        scp = f"{folder}/embedding.scp"
        found, arks = {scp: self.file(scp)}, set()
        with open(scp, "rb") as f:
            for line in f:
                place = line.split(None, 1)[-1].strip() if line.strip() else b""  # read_embeddings says it
                ark, colon, offset = place.rpartition(b":")
                arks.add(os.fsdecode(ark if colon and offset.isdigit() else place))
        self.sets[folder] = found | {ark: self.file(ark) for ark in sorted(arks)}
        return self.sets[folder]

    def of(self, system: str, part: Part) -> dict:
        args = self.args
        tables = ["trials", "utt2spk", "enrol_map"]
        out = {
            "format": FORMAT,
            "kind": part.kind,
            "scores": str(outputs(system, part)[0].absolute()),
            "trials": str(Path(part.data, "trials").absolute()),
            "data": {name: self.file(f"{part.data}/{name}") for name in tables},
            "embeddings": [self.embeddings(f"{system}/embed/{name}") for name in part.sets],
        }
        if part.kind == "dev":
            out["source"] = f"{part.data}/trials"  # as calibration.json names it
        if part.kind == "plain":
            out["calibration"] = stamp(calibration_of(system))
            if other := compared_to(args, system, part):
                out["compare"] = [os.path.abspath(other), self.file(other)]
        if part.kind == "asnorm":
            utt2spk = f"{args.cohort_data}/utt2spk"
            out["cohort"] = [os.path.abspath(utt2spk), self.file(utt2spk), args.top_n]
        return out


def compared_to(args: argparse.Namespace, system: str, part: Part) -> str | None:
    """The score file of the system that this one is compared to; none for itself."""
    if not args.compare or os.path.realpath(args.compare) == os.path.realpath(system):
        return None
    return f"{args.compare}/score/{part.stem}.scores"


def read_made_by(system: str) -> dict:
    """Score file -> what it was made from and is; {} where that is not known."""
    return foreign.read_json_or_empty(Path(system, "score/made_by"), limit=1 << 28)


def entry(system: str, part: Part, inputs: dict) -> dict:
    return {"from": inputs, "files": [stamp(path) for path in outputs(system, part)]}


def up_to_date(system: str, part: Part, inputs: Inputs) -> bool:
    now = entry(system, part, inputs.of(system, part))
    there = now["files"][:2] + [file for found in now["from"]["embeddings"] for file in found.values()]
    return all(there) and read_made_by(system).get(part.stem) == now


def make(system: "System", trials: "TrialList", part: Part, args: argparse.Namespace) -> None:
    """Write the files of one part."""
    from pyspkv.score import evaluation
    from pyspkv.score.calibration import Calibration

    folder, kind = system.folder, part.kind
    path, calibration = f"{folder}/score/{part.stem}.scores", calibration_of(folder)
    for file in outputs(folder, part):
        if file.is_symlink():
            refuse_link(file)
    if kind == "dev":
        scores = evaluation.write(trials, path, system.plain(trials))
        if why := evaluation.calibrate(trials, scores, str(calibration)):
            print(f"warning: {folder} is scored without calibration: {path}: {why}", file=sys.stderr)
    elif kind == "plain":
        llr = Calibration.read(calibration) if calibration.exists() else None
        evaluation.write(trials, path, system.plain(trials), llr, compared_to(args, folder, part))
    elif kind == "asnorm":
        scores = system.asnorm(trials, f"{args.cohort_data}/utt2spk", args.top_n, part.cohort)
        evaluation.write(trials, path, scores)
    elif kind == "mean":
        evaluation.write(trials, path, system.mean(trials, part.cohort))
    else:
        evaluation.write(trials, path, system.crops(trials))


def warn_silent(folder: str, trials: "TrialList", part: Part) -> None:
    """Name the utterances of a list's trials that extraction has found without a signal. No audio is opened."""
    from pyspkv.audio import silence

    scp = Path(folder, "embed", part.name, "embedding.scp")
    if part.kind in ("dev", "plain"):  # the variants have the same trials
        silence.warn(silence.among([scp], trials.utts()), f"{part.data}/trials")


def evaluate(folder: str, lists: dict[str, "TrialList"], parts: list[Part], inputs: Inputs) -> None:
    """Make what is not up to date of one system."""
    from pyspkv.base.atomic import atomic_file
    from pyspkv.score.evaluation import System

    gone, system, made = unwanted(folder, inputs.args, parts), System(folder), []
    for path in gone:
        path.unlink()
    for part in parts:
        if up_to_date(folder, part, inputs):
            continue
        warn_silent(folder, lists[part.stem], part)
        before = inputs.of(folder, part)
        make(system, lists[part.stem], part, inputs.args)
        known = read_made_by(folder) | {part.stem: entry(folder, part, before)}
        with atomic_file(Path(folder, "score/made_by")) as f:
            f.write(json.dumps(known, indent=1) + "\n")
        made.append(part.stem)
    if gone:
        print(f"removed, as not asked for: {' '.join(map(str, gone))}")
    print(f"{folder}/score: {', '.join(made)}" if made else f"up to date: {folder}/score")


def done(folder: str, args: argparse.Namespace, parts: list[Part], inputs: Inputs) -> bool:
    return not unwanted(folder, args, parts) and all(up_to_date(folder, part, inputs) for part in parts)


def work(systems: list[str], args: argparse.Namespace, parts: list[Part]) -> None:
    """Make what is not up to date; nothing heavy is loaded where all is."""
    looked = Inputs(args)
    if all(done(system, args, parts, looked) for system in systems):
        for system in systems:
            print(f"up to date: {system}/score")
        return
    from pyspkv.base.atomic import folder_lock
    from pyspkv.score.evaluation import TrialList

    lists = {part.name: TrialList(part.name, part.data) for part in parts}
    with ExitStack() as locks:
        for system in systems:
            locks.enter_context(folder_lock(Path(system, "score")))
        inputs = Inputs(args)  # as things stand now that nobody else writes
        for system in systems:
            evaluate(system, {part.stem: lists[part.name] for part in parts}, parts, inputs)


def table(systems: list[str], args: argparse.Namespace) -> str:
    """The figures of all systems and lists, from the JSON files."""
    rows = [("system", "list", "EER %", "95 % interval", "minDCF(0.01)", "Cllr", "EER % AS-norm")]
    for system in systems:
        for name in args.name:
            found, norm = (read(Path(system, "score", f"{name}{end}.json")) for end in ("", "-asnorm"))
            low, high = found.get("eer_ci_low"), found.get("eer_ci_high")
            interval = "-" if low is None or high is None else f"{low:.2f} .. {high:.2f}"
            figures = [(found, "eer", 2), (found, "min_dcf_0.01", 4), (found, "cllr", 4), (norm, "eer", 2)]
            eer, dcf, cllr, normed = (f"{m[k]:.{n}f}" if k in m else "-" for m, k, n in figures)
            rows.append((system, name, eer, interval, dcf, cllr, normed))
    width = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if c < 2 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, width)))
        for row in rows
    )


def read(path: Path) -> dict:
    """Those figures of a metrics file that `table` shows; {} where there is none. UserError: one is no number."""
    mend = f"rm {shlex.quote(str(path))}, then the same command"
    found = foreign.read_json(path, mend=mend) if path.exists() else {}
    shown = ("eer", "eer_ci_low", "eer_ci_high", "min_dcf_0.01", "cllr")
    shown = {k: found[k] for k in shown if found.get(k) is not None}
    return {k: foreign.number(v, k, file=path, mend=mend) for k, v in shown.items()}


def in_order(args: argparse.Namespace) -> list[str]:
    """The systems, each score folder once, the one that others are compared to first."""
    once: dict[str, str] = {}
    for system in args.systems:
        once.setdefault(os.path.realpath(f"{system}/score"), system)
    other = args.compare and os.path.realpath(args.compare)
    return sorted(once.values(), key=lambda system: os.path.realpath(system) != other)


def check_compare(systems: list[str], args: argparse.Namespace, parts: list[Part]) -> None:
    """UserError: the other system is not scored now and has no score file."""
    if not args.compare or os.path.realpath(args.compare) in map(os.path.realpath, systems):
        return
    for part in parts:
        path = f"{args.compare}/score/{part.stem}.scores"
        if part.kind == "plain" and not Path(path).is_file():
            mend = "name that system among --systems too: it is then scored first"
            raise UserError("no such score file to compare to", file=path, mend=mend)


def main() -> None:
    args = parse_args()
    parts, systems = parts_of(args), in_order(args)
    check_there(systems, args, parts)
    check_compare(systems, args, parts)
    work(systems, args, parts)
    print(table([system for system in args.systems if system in systems], args))
    print(f"scores and metrics are in {' '.join(f'{system}/score' for system in systems)}")


if __name__ == "__main__":
    run(main)
