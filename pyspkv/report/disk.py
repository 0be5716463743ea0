"""Disk usage of an experiment, and which files can be removed.

Removable are files that a command makes again, and files that were needed only to resume a training.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError, printable
from pyspkv.base.foreign import is_finished

KINDS = {  # kind -> description, in the order of the table
    "models": "weights and configs of the checkpoints that LATEST and best name",
    "embeddings": "written by bin.extract",
    "optimizers": "state to resume training from",
    "earlier": "checkpoints that neither LATEST nor best names",
    "rooms": "simulated impulse responses",
    "logs": "of jobs and of tensorboard",
    "other": "data directories, scores, reports",
}
UNFINISHED = "training is not finished"


@dataclass
class Part:
    """The files of one kind.

    bytes, files: disk usage and number of all of them. removable: paths that can be removed, which frees
    `free` bytes. kept: reasons why the others stay. remake: how the removable ones are made again.
    """

    bytes: int = 0
    files: int = 0
    free: int = 0
    removable: list[Path] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    remake: set[str] = field(default_factory=set)


def weigh(exp: str | Path) -> dict[str, Part]:
    """Measure the files of each kind in an experiment.

    Links are not followed: their targets belong elsewhere.

    UserError: there is no such folder.
    """
    exp = Path(exp)
    if not exp.is_dir():
        raise UserError(
            "no such experiment", file=exp, hint="give the folder of an experiment (--exp of run.sh)"
        )
    parts = {kind: Part() for kind in KINDS}
    models = {p.parent for p in exp.rglob("LATEST") if not _through_link(p.parent, exp)}
    named = {m / (m / name).read_text(errors="replace").strip() for m in models for name in ("LATEST", "best")
             if (m / name).is_file()}  # fmt: skip
    training = any(not is_finished(m) for m in models)
    seen: set[tuple[int, int]] = set()
    for file, info in _files(exp):
        if (info.st_dev, info.st_ino) in seen:  # count a file with several hard links once
            continue
        seen.add((info.st_dev, info.st_ino))
        kind, removable, why = _judge(file, exp, models, named, training)
        part, size = parts[kind], info.st_blocks * 512
        part.bytes, part.files = part.bytes + size, part.files + 1
        if removable is None:
            part.kept |= {why} if why else set()
            continue
        part.free += size
        if removable not in part.removable:
            part.removable.append(removable)
        part.remake.add(why)
    return parts


def _files(exp: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, names, files in os.walk(exp):
        names.sort()
        for name in sorted(files):
            path = Path(folder, name)
            yield path, path.lstat()


def _through_link(path: Path, exp: Path) -> bool:
    """Whether a link lies on the way from `exp` to `path`."""
    return any(p.is_symlink() for p in (path, *path.parents) if exp in p.parents)


def _judge(
    file: Path, exp: Path, models: set[Path], named: set[Path], training: bool
) -> tuple[str, Path | None, str]:
    """Classify a file: (kind, path to remove with it or None, how it is made again or why it stays).

    models: all model folders; named: checkpoints that LATEST or best name; training: whether a training is
    unfinished.
    """
    parts = file.relative_to(exp).parts
    if parts[0] == "rooms":
        return "rooms", *(
            (None, UNFINISHED) if training else (exp / "rooms", "simulated again by the next training")
        )
    if "embed" in parts[:-1]:
        folder = exp.joinpath(*parts[: parts.index("embed") + 1])
        return "embeddings", folder, _extraction(folder, exp)
    model = next((p for p in file.parents if p in models), None)
    if model is not None and file.parent.name.startswith("ckpt-") and file.parent.parent == model:
        if file.parent not in named:
            return "earlier", *(
                (file.parent, "not needed any more") if is_finished(model) else (None, UNFINISHED)
            )
        if file.name == "optim.safetensors":
            if not is_finished(model):
                return "optimizers", None, UNFINISHED
            if (model.parent / "data_out").is_dir():
                return "optimizers", None, "data_out is written from the whole checkpoint"
            return "optimizers", file, "not needed any more"
        return "models", None, ""
    if model is not None and "tb" not in parts:
        return "models", None, ""
    if parts[-2:] != ("log", "commands") and (("log" in parts[:-1]) or "tb" in parts[:-1]):
        which = "log" if "log" in parts[:-1] else "tb"
        folder = exp.joinpath(*parts[: parts.index(which) + 1])
        return "logs", file if (folder / "commands").is_file() else folder, "cannot be made again"
    return "other", None, ""


def _extraction(folder: Path, exp: Path) -> str:
    """The command that made the embeddings: the one in log/commands, else one of the same form."""
    model = str(folder.parent / "model")
    commands = exp / "log" / "commands"
    if commands.is_file():
        with open(commands, encoding="utf-8", errors="replace") as f:
            for line in f:
                with suppress(ValueError):  # shlex raises it for an unclosed quote
                    words = shlex.split(line) if "extract.sh" in line else []
                    if words and words[0].endswith("extract.sh") and _same(model, words):
                        return printable(line.strip())
    data = sorted(d.name for d in folder.iterdir() if d.is_dir())
    return command_line("python", "-m", "pyspkv.bin.extract", "--model", Path(model), "--data") + "".join(
        f" DATA/{name}" for name in data
    )


def _same(model: str, words: list[str]) -> bool:
    """Whether one of the command's words is this model folder."""
    want = os.path.realpath(model)
    return any(os.path.realpath(w) == want for w in words if w.endswith(os.path.basename(model)))
