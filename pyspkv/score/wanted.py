"""Which score files are needed for which systems, and which are up to date.

This module imports nothing heavy.

A system is a folder with `embed/<set>/embedding.scp`, `model/` and `score/`. The file `score/made_by` records
what each score file was made from; files that are up to date are kept.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pyspkv.base import foreign
from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError

FORMAT = 1  # version of made_by and of the score files; files of another version are made again
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Wanted:
    """Systems, trial lists and variants: the options of bin.evaluate, where --help explains them."""

    systems: list[str]
    data: list[str]
    name: list[str]  # names of the lists, one per entry of `data`
    dev: str | None = None
    cohort_set: str = "train"
    cohort_data: str | None = None
    top_n: int = 300
    crops: bool = False
    compare: str | None = None
    qmf: bool = False


@dataclass(frozen=True)
class Part:
    """One score file of a system. kind: dev, plain, crops, mean, asnorm or qmf (of the dev list: fit-qmf)."""

    kind: str
    name: str  # name of the set of embeddings
    data: str  # its data directory
    cohort: str = "train"  # the set whose mean is subtracted, and whose speakers are the AS-norm cohort
    further: str = ""  # X of the list trials_X; empty: trials
    with_cohort: bool = False  # for a qmf part: it uses AS-normed scores

    @property
    def trials(self) -> str:
        """The file of the trial list."""
        return f"{self.data}/trials{self.further and '_'}{self.further}"

    @property
    def list_name(self) -> str:
        return f"{self.name}{self.further and '_'}{self.further}"

    @property
    def stem(self) -> str:
        """Name of the score file without its ending."""
        kind = self.kind.removeprefix("fit-")
        return self.list_name if kind in ("dev", "plain") else f"{self.list_name}-{kind}"

    @property
    def sets(self) -> list[str]:
        """The embedding sets that it needs."""
        more = {"crops": [f"{self.name}-crops"], "mean": [self.cohort], "asnorm": [self.cohort]}
        return [self.name, *([self.cohort] if self.with_cohort else more.get(self.kind, []))]


def dev_name(dev: str) -> str:
    return os.path.basename(os.path.abspath(dev))


def further_lists(data: str) -> list[str]:
    """X of every list trials_X of a data directory, beside its list trials; sorted."""
    found = [re.fullmatch(r"trials_(\w+)", path.name, re.ASCII) for path in Path(data).glob("trials_*")]
    return sorted(m[1] for m in found if m)


def parts_of(request: Wanted) -> list[Part]:
    """The score files that every system needs, in the order of making.

    A data directory may have further lists, trials_X, beside its trials: all are scored from the same embeddings.
    UserError: two files have the same name; quality measures without a dev list.
    """
    normed = request.qmf and bool(request.cohort_data)
    if request.qmf and not request.dev:
        raise UserError("quality measures need a dev list to be fitted on", hint="give --dev, or no --qmf")
    parts = [Part("dev", dev_name(request.dev), request.dev)] if request.dev else []
    if request.qmf:
        parts.append(replace(parts[0], kind="fit-qmf", cohort=request.cohort_set, with_cohort=normed))
    kinds = [
        "plain",
        *(["crops"] if request.crops else []),
        *(["mean", "asnorm"] if request.cohort_data else []),
        *(["qmf"] if request.qmf else []),
    ]
    parts += [
        Part(kind, name, data, request.cohort_set, further, with_cohort=normed and kind == "qmf")
        for name, data in zip(request.name, request.data)
        for further in ["", *further_lists(data)]
        for kind in kinds
    ]
    seen = set()
    for part in parts:
        if not part.name or "/" in part.name or part.name.startswith("."):
            raise UserError(f"{part.name!r} cannot be the name of a trial list", hint="give --name")
        if part.stem in seen:
            hint = "give the lists of --data other names with --name"
            raise UserError(f"two score files would be called {part.stem}.scores", file=part.data, hint=hint)
        seen.add(part.stem)
    return parts


def unwanted(system: str, request: Wanted, parts: list[Part]) -> list[Path]:
    """Score files of variants that the options do not include: they belong to other embeddings or cohorts."""
    kinds = [*([] if request.crops else ["crops"]), *([] if request.cohort_data else ["mean", "asnorm"])]
    kinds += [] if request.qmf else ["qmf"]
    names = {part.list_name for part in parts if part.kind == "plain"}
    stems = {f"{name}-{kind}" for name in names for kind in kinds}
    stems |= {f"{dev_name(request.dev)}-qmf"} if request.dev else set()
    stems -= {part.stem for part in parts}
    files = [Path(system, "score", stem + end) for stem in sorted(stems) for end in (".scores", ".json")]
    return [f for f in files if os.path.lexists(f)]


def check_there(systems: list[str], request: Wanted, parts: list[Part]) -> None:
    """UserError: a folder, a list or an embedding set is missing; the hint is the command that makes it."""
    files = [file for part in parts for file in (part.trials, f"{part.data}/utt2spk")]
    for file in [*files, *([f"{request.cohort_data}/utt2spk"] if request.cohort_data else [])]:
        if not Path(file).is_file():
            hint = "check the paths given to --data, --dev and --cohort-data"
            raise UserError("no such file", file=file, hint=hint)
    for system in systems:
        if not Path(system).is_dir():
            raise UserError("no such folder", file=system, hint="check the path given to --systems")
        for path in outputs(system, None):
            if path.is_symlink():
                refuse_link(path)
    wanted = {f"{s}/embed/{name}": (s, part, name) for s in systems for part in parts for name in part.sets}
    missing = [folder for folder in wanted if not Path(folder, "embedding.scp").is_file()]
    if missing:
        more = f", nor in {len(missing) - 1} other folders that are needed" if missing[1:] else ""
        hint = extract_command(request, missing[0], *wanted[missing[0]])
        raise UserError(f"contains no embeddings{more}", file=missing[0], hint=hint)
    for system in systems:
        check_one_model(system, request, parts)


def check_one_model(system: str, request: Wanted, parts: list[Part]) -> None:
    """UserError: embedding sets that are scored together come from different models.

    It is checked as far as extraction has recorded the models.
    """
    models: dict[str, object] = {}
    for part in parts:
        for name in part.sets:
            folder = f"{system}/embed/{name}"
            if name not in models:
                models[name] = foreign.read_json_or_empty(Path(folder, "made_by"), limit=1 << 28).get("model")
            first = models[part.name]
            if isinstance(first, str) and isinstance(models[name], str) and models[name] != first:
                rule = f"these embeddings come from another model than {system}/embed/{part.name}"
                raise UserError(rule, file=folder, hint=extract_command(request, folder, system, part, name))


def extract_command(request: Wanted, folder: str, system: str, part: Part, name: str) -> str:
    """The command that makes an embedding set."""
    own = name == part.name
    data = request.cohort_data if name == part.cohort and not own else part.data
    assert data is not None  # with a cohort there is --cohort-data
    crops = ["--crops", "5"] if name.endswith("-crops") and not own else []
    return command_line(ROOT / "steps/extract.sh", *crops, Path(f"{system}/model"), Path(data), Path(folder))


def refuse_link(path: Path) -> None:
    """Raise a UserError: nothing is written through a link."""
    hint = command_line("rm", path)
    raise UserError("is a link, and nothing is written through it", file=path, hint=hint)


def outputs(system: str, part: Part | None) -> list[Path]:
    """The files that are written for a part; None: those that every part needs."""
    score = Path(system, "score")
    if part is None:
        return [score / ".lock", score / "made_by"]
    files = [score / f"{part.stem}.scores", score / f"{part.stem}.json"]
    fitted = {"dev": calibration_of, "fit-qmf": qmf_of}
    return files + ([fitted[part.kind](system)] if part.kind in fitted else [])


def calibration_of(system: str, name: str = "calibration.json") -> Path:
    """Path of calibration.json, or `name`: in the model folder, where `verify` finds it.

    If the model belongs to another experiment (a link), the path is in the system's own folder.
    """
    own = Path(system, "model").resolve().is_relative_to(Path(system).resolve())
    return Path(system, "model" if own else "", name)


def qmf_of(system: str) -> Path:
    """The calibration with quality measures, beside the other one."""
    return calibration_of(system, "qmf.json")


def stamp(path: str | Path) -> list[int] | None:
    """Size and times of a file, which change with any change of the file; None if it does not exist."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


class Inputs:
    """What score files are made from, as small JSON.

    Every file is examined once, before anything is read from it.
    """

    def __init__(self, request: Wanted):
        self.request = request
        self.known: dict[str, list[int] | None] = {}
        self.sets: dict[str, dict[str, list[int] | None]] = {}

    def file(self, path: str) -> list[int] | None:
        if path not in self.known:
            self.known[path] = stamp(path)
        return self.known[path]

    def embeddings(self, folder: str) -> dict[str, list[int] | None]:
        """Stamps of the scp and of the arks that it points into."""
        if folder in self.sets:
            return self.sets[folder]
        scp = f"{folder}/embedding.scp"
        found, arks = {scp: self.file(scp)}, set()
        with open(scp, "rb") as f:
            for line in f:
                place = line.split(None, 1)[-1].strip() if line.strip() else b""  # read_embeddings reports it
                ark, colon, offset = place.rpartition(b":")
                arks.add(os.fsdecode(ark if colon and offset.isdigit() else place))
        self.sets[folder] = found | {ark: self.file(ark) for ark in sorted(arks)}
        return self.sets[folder]

    def of(self, system: str, part: Part) -> dict:
        """What the score file of a part is made from."""
        request = self.request
        tables = [os.path.basename(part.trials), "utt2spk", "enrol_map"]
        out = {
            "format": FORMAT,
            "kind": part.kind,
            "scores": str(outputs(system, part)[0].absolute()),
            "trials": str(Path(part.trials).absolute()),
            "data": {name: self.file(f"{part.data}/{name}") for name in tables},
            "embeddings": [self.embeddings(f"{system}/embed/{name}") for name in part.sets],
        }
        if part.kind in ("dev", "fit-qmf"):  # as calibration.json and qmf.json name them
            out["source"] = part.trials
            out |= {"cohort_source": request.cohort_data} if part.with_cohort else {}
        if part.kind == "plain":
            out["calibration"] = stamp(calibration_of(system))
            if other := compared_to(request, system, part):
                out["compare"] = [os.path.abspath(other), self.file(other)]
        if part.kind in ("qmf", "fit-qmf"):
            tables = ["utt2dur", "utt2num_frames", "utt2num_samples", "segments", "reco2dur", "wav.scp"]
            out["durations"] = {name: self.file(f"{part.data}/{name}") for name in tables}
        if part.kind == "qmf":
            out["calibration"] = stamp(qmf_of(system))
        if part.kind == "asnorm" or part.with_cohort:
            utt2spk = f"{request.cohort_data}/utt2spk"
            out["cohort"] = [os.path.abspath(utt2spk), self.file(utt2spk), request.top_n]
        return out


def compared_to(request: Wanted, system: str, part: Part) -> str | None:
    """The score file of the system that this one is compared with; None for that system itself."""
    if not request.compare or os.path.realpath(request.compare) == os.path.realpath(system):
        return None
    return f"{request.compare}/score/{part.stem}.scores"


def read_made_by(system: str) -> dict:
    """Score file -> what it was made from, and its stamps; {} if not recorded."""
    return foreign.read_json_or_empty(Path(system, "score/made_by"), limit=1 << 28)


def entry(system: str, part: Part, inputs: dict) -> dict:
    """Entry of made_by for a part: its inputs, and the stamps of its files."""
    return {"from": inputs, "files": [stamp(path) for path in outputs(system, part)]}


def up_to_date(system: str, part: Part, inputs: Inputs) -> bool:
    """Whether the files of a part exist and made_by records the same inputs and stamps."""
    now = entry(system, part, inputs.of(system, part))
    there = now["files"][:2] + [file for found in now["from"]["embeddings"] for file in found.values()]
    return all(there) and read_made_by(system).get(part.stem) == now


def in_order(request: Wanted) -> list[str]:
    """The systems, each score folder once; the system that others are compared with comes first."""
    once: dict[str, str] = {}
    for system in request.systems:
        once.setdefault(os.path.realpath(f"{system}/score"), system)
    other = request.compare and os.path.realpath(request.compare)
    return sorted(once.values(), key=lambda system: os.path.realpath(system) != other)


def check_compare(systems: list[str], request: Wanted, parts: list[Part]) -> None:
    """UserError: the system to compare with is neither scored now nor has score files."""
    if not request.compare or os.path.realpath(request.compare) in map(os.path.realpath, systems):
        return
    for part in parts:
        path = f"{request.compare}/score/{part.stem}.scores"
        if part.kind == "plain" and not Path(path).is_file():
            hint = "add that system to --systems: it is then scored first"
            raise UserError("no such score file to compare to", file=path, hint=hint)
