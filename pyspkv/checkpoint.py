"""A run's state on disk: `ckpt-<step>/` folders that appear whole, `LATEST` and `best` that point at one.

    model.safetensors   the objective's state_dict (encoder, heads, teachers, per-utterance arrays)
    optim.safetensors   optimiser tensors;   state.json   everything else (step, groups, counters, label hash)

No random state is stored: batches and dropout draw from (seed, step), see trainer.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialise

from pyspkv import config as cfg
from pyspkv.atomic import atomic_dir, atomic_file
from pyspkv.errors import UserError


def _pointer(exp: Path, name: str) -> Path | None:
    file = exp / name
    if not file.is_file():
        return None
    target = exp / file.read_text().strip()
    if not (target / "state.json").is_file():
        raise UserError(f"points at {target.name}, which is not a whole checkpoint", file=file)
    return target


def latest(exp: str | Path) -> Path | None:
    return _pointer(Path(exp), "LATEST")


def find(model: str | Path) -> Path:
    """`DIR`, `DIR@last`, `DIR@best` or a `ckpt-<step>` folder itself -> the checkpoint folder."""
    name, _, which = str(model).rpartition("@")
    if not name or "/" in which or Path(model).is_dir():  # an @ of the path's own
        name, which = str(model), ""
    exp = Path(name)
    if not exp.is_dir():
        raise UserError("no such model folder", file=exp, mend="pass the --exp folder of a bin.train run")
    if (exp / "state.json").is_file():
        return exp
    if which not in ("", "last", "best"):
        raise UserError(f"'@{which}' is neither @last nor @best", file=model)
    found = _pointer(exp, "best" if which == "best" else "LATEST")
    if found is None:
        why = (
            "no dev list was declared, so no checkpoint is the best"
            if which == "best"
            else "no checkpoint yet"
        )
        raise UserError(
            why, file=exp, mend="use @last" if which == "best" else "train first (bin.train --exp)"
        )
    return found


def _pack(optimisers: dict[str, torch.optim.Optimizer]) -> tuple[dict, dict]:
    tensors, plain = {}, {}
    for name, optimiser in optimisers.items():
        state = optimiser.state_dict()
        plain[name] = state["param_groups"]
        for i, entries in state["state"].items():
            for key, value in entries.items():
                tensors[f"{name}/{i}/{key}"] = torch.as_tensor(value)
    return tensors, plain


def _unpack(optimisers: dict[str, torch.optim.Optimizer], tensors: dict, plain: dict) -> None:
    for name, optimiser in optimisers.items():
        state: dict[int, dict] = {}
        for full, value in tensors.items():
            owner, i, key = full.split("/")
            if owner == name:
                state.setdefault(int(i), {})[key] = value
        optimiser.load_state_dict({"state": state, "param_groups": plain[name]})


def _write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as err:  # a full disk, for one
        raise UserError(f"cannot be written ({err})", file=file) from None


def save(
    exp: Path, step: int, model: torch.nn.Module, optimisers: dict, state: dict, best: bool = False
) -> None:
    """Write `ckpt-<step>`, point LATEST (and best) at it, keep the last two and the best."""
    target = exp / f"ckpt-{step}"
    tensors, groups = _pack(optimisers)
    with atomic_dir(target) as tmp:
        # clone: safetensors refuses tensors that share memory
        _write(
            {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}, tmp / "model.safetensors"
        )
        _write({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, tmp / "optim.safetensors")
        with open(tmp / "state.json", "w") as f:
            json.dump({**state, "step": step, "optimisers": groups}, f, indent=1)
    for name in ["best"] * best + ["LATEST"]:  # after a kill in between, this checkpoint is written again
        with atomic_file(exp / name) as f:
            f.write(target.name + "\n")
    keep = {p for p in (latest(exp), _pointer(exp, "best")) if p}
    steps = sorted((int(p.name[5:]), p) for p in exp.glob("ckpt-*") if p.name[5:].isdecimal())
    for _, path in steps[:-2]:
        if path not in keep:
            shutil.rmtree(path)
    for left in exp.glob(".*ckpt-*"):  # of a killed save
        shutil.rmtree(left, ignore_errors=True)


def save_rows(file: Path, rows: dict[str, torch.Tensor]) -> None:
    with atomic_file(file, "wb") as f:
        f.write(serialise({k: v.detach().cpu().contiguous() for k, v in rows.items()}))


def save_import(exp: Path, encoder: torch.nn.Module, config: Any, record: dict) -> None:
    """A run folder that was not trained here: one checkpoint with the encoder alone."""
    with atomic_dir(exp) as tmp:
        (tmp / "config.yaml").write_text(cfg.to_yaml_section("encoder", config))
        (tmp / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        (tmp / "ckpt-0").mkdir()
        (tmp / "LATEST").write_text("ckpt-0\n")
        weights = {f"encoder.{k}": v.detach().contiguous() for k, v in encoder.state_dict().items()}
        _write(weights, tmp / "ckpt-0" / "model.safetensors")
        (tmp / "ckpt-0" / "state.json").write_text(json.dumps({"evaluates": "encoder", "step": 0}) + "\n")


def tensors(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / name)
    except (SafetensorError, FileNotFoundError) as err:
        raise UserError(f"not a readable safetensors file ({err})", file=folder / name) from None


def state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "state.json").read_text())
    except (json.JSONDecodeError, FileNotFoundError) as err:
        raise UserError(f"not a checkpoint's state ({err})", file=folder / "state.json") from None


def restore(folder: Path, model: torch.nn.Module, optimisers: dict) -> dict[str, Any]:
    """Load everything of `ckpt-<step>` and return its state."""
    saved = state(folder)
    load_exactly(model, tensors(folder), folder)
    _unpack(optimisers, tensors(folder, "optim.safetensors"), saved["optimisers"])
    return saved


def body(folder: Path) -> dict[str, torch.Tensor]:
    """The evaluated encoder's weights: what `--init` and extraction take from a checkpoint."""
    if "evaluates" not in (found := state(folder)):
        raise UserError("not a checkpoint's state", file=folder / "state.json")
    prefix = found["evaluates"] + "."
    return {k[len(prefix) :]: v for k, v in tensors(folder).items() if k.startswith(prefix)}


def encoder_config(folder: Path) -> Any:
    """The encoder's config from the run folder's config.yaml (next to its checkpoints)."""
    return cfg.read_section(folder.parent / "config.yaml", "encoder")


def load_encoder(model: str | Path, which: str = "last") -> torch.nn.Module:
    """Encoder of a run folder (`DIR`, `DIR@best`) in evaluation mode: wave [B, T], lengths [B] -> [B, D]."""
    folder = find(model if str(model).endswith(("@best", "@last")) else f"{model}@{which}")
    encoder = cfg.build("encoder", encoder_config(folder))
    load_exactly(encoder, body(folder), folder)
    return encoder.eval()


def digest(model: str | Path) -> str:
    """SHA-256 of a checkpoint's weights: what tells a run's start from another, wherever it lies."""
    with open(find(model) / "model.safetensors", "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def init_encoder(encoder: torch.nn.Module, model: str | Path) -> None:
    """`--init`: the body of another run; heads stay new. A different architecture is refused with the first key."""
    folder = find(model)
    load_exactly(encoder, body(folder), folder)


def init_objective(objective: torch.nn.Module, model: str | Path, label_hash: str) -> None:
    """`--init --keep-head`: encoder and heads of a run on the very same labels; what gates remember starts anew."""
    folder = find(model)
    if state(folder).get("label_hash") != label_hash:
        raise UserError(
            "was trained on other utterances or labels, so its head does not fit",
            file=folder,
            mend="leave --keep-head out for a new head, or train on that run's data directory",
        )
    theirs = {k: v for k, v in tensors(folder).items() if not k.startswith("gate.")}
    gate = {k: v for k, v in objective.state_dict().items() if k.startswith("gate.")}
    load_exactly(objective, {**theirs, **gate}, folder)


def load_exactly(module: torch.nn.Module, theirs: dict[str, torch.Tensor], folder: Path) -> None:
    """Load weights of the same names and shapes; UserError names the first that differs."""
    ours = module.state_dict()
    for key in [*ours, *theirs]:
        if key not in theirs or key not in ours or ours[key].shape != theirs[key].shape:
            shapes = [tuple(d[key].shape) if key in d else "absent" for d in (theirs, ours)]
            raise UserError(
                f"its model differs from this config's: {key} is {shapes[0]} there and {shapes[1]} here",
                file=folder,
                mend="use the same encoder section as that run's config.yaml",
            )
    module.load_state_dict(theirs)
