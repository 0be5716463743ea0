"""Checkpoints: complete folders `ckpt-<step>/`, and the files `LATEST` and `best` that each name one of them.

    model.safetensors   the objective's state_dict (encoder, heads, teachers, per-utterance arrays)
    optim.safetensors   tensors of the optimizers
    state.json          everything else (step, parameter groups, counters, hash of the labels)

Random states are not stored, because batches and dropout are drawn from (seed, step); see trainer.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialize

from pyspkv.base import config as cfg
from pyspkv.base.atomic import _mode, atomic_dir, atomic_file, command_line
from pyspkv.base.errors import UserError
from pyspkv.base.foreign import MAX_INT, is_number, number, read_json, read_text, safetensors_header, short

AGAIN = "copy the model folder again, or train it again in another folder"
# The tensors that each optimizer stores for a parameter that has had a gradient.
MEMORY = {"Adam": {"step", "exp_avg", "exp_avg_sq"}, "SGD": {"momentum_buffer"}}
GROUPS = "optimisers"  # key in state.json: parameter groups of each optimizer
MEMORY["AdamW"] = MEMORY["Adam"]


def _pointer(exp: Path, name: str) -> Path | None:
    """The checkpoint folder that the file `exp/name` names; None when there is no such file.

    Raises UserError when the file names anything but a complete checkpoint next to it.
    """
    file = exp / name
    if not file.is_file():
        return None
    name_in_file = read_text(file, 4096, AGAIN).strip()
    if (
        not name_in_file
        or name_in_file in (".", "..")
        or len(name_in_file) > 60
        or "/" in name_in_file
        or not name_in_file.isprintable()
    ):
        raise UserError(
            f"names {short(name_in_file)}, which is not a folder next to it", file=file, hint=AGAIN
        )
    target = exp / name_in_file
    if not (target / "state.json").is_file():
        rule = f"points at {short(name_in_file)}, which is not a complete checkpoint"
        raise UserError(
            rule, file=file, hint="write the name of a complete ckpt- folder into it, or copy it again"
        )
    return target


def latest(exp: str | Path) -> Path | None:
    """The last checkpoint of a model folder; None when there is none yet."""
    return _pointer(Path(exp), "LATEST")


def resolve_model(model: str | Path) -> Path:
    """Find the checkpoint folder that `model` means.

    model: `DIR` or `DIR@last` (last checkpoint), `DIR@best` (best by the dev list), or a `ckpt-<step>`
    folder.
    Raises UserError when there is no such model folder or checkpoint.
    """
    name, _, which = str(model).rpartition("@")
    if not name or "/" in which or Path(model).is_dir():  # the @ belongs to the path
        name, which = str(model), ""
    exp = Path(name)
    if not exp.is_dir():
        raise UserError("no such model folder", file=exp, hint="pass a model folder of bin.train")
    if (exp / "state.json").is_file():
        return exp
    if which not in ("", "last", "best"):
        raise UserError(f"'@{which}' is neither @last nor @best", file=model)
    folder = _pointer(exp, "best" if which == "best" else "LATEST")
    if folder is None and (exp / "config.json").is_file():
        hint = command_line("python", "-m", "pyspkv.bin.import_checkpoint", "--from", exp, "--out", "DIR")
        raise UserError(
            "is a folder of Hugging Face, not a model folder", file=exp, hint=f"{hint}, and use DIR"
        )
    if folder is None:
        why = (
            "no dev list was given, so there is no best checkpoint"
            if which == "best"
            else "there is no checkpoint yet"
        )
        raise UserError(
            why, file=exp, hint="use @last" if which == "best" else "train first (bin.train --exp)"
        )
    return folder


def _pack(optimizers: dict[str, torch.optim.Optimizer]) -> tuple[dict, dict]:
    """Tensors named `<optimizer>/<parameter>/<key>`, and the parameter groups by optimizer."""
    tensors, plain = {}, {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        plain[name] = state["param_groups"]
        for i, entries in state["state"].items():
            for key, value in entries.items():
                tensors[f"{name}/{i}/{key}"] = torch.as_tensor(value)
    return tensors, plain


def _unpack(optimizers: dict[str, torch.optim.Optimizer], tensors: dict, plain: dict, folder: Path) -> None:
    """The reverse of `_pack`. UserError when the tensors or groups do not fit these optimizers."""
    file = folder / "optim.safetensors"
    if (
        tensors.keys() != (named := {n for n in tensors if n.count("/") == 2})
        or plain.keys() != optimizers.keys()
    ):
        stray = next(iter(tensors.keys() - named), None) or ", ".join(map(short, plain))
        raise UserError(f"belongs to other optimizers: {short(stray)}", file=file, hint=AGAIN)
    for name, optimizer in optimizers.items():
        state: dict[str, dict] = {}
        for full, value in tensors.items():
            owner, i, key = full.split("/")
            if owner == name:
                state.setdefault(i, {})[key] = value
        _check_groups(optimizer, plain[name], folder)
        _check_memory(name, optimizer, state, file)
        optimizer.load_state_dict(
            {"state": {int(i): v for i, v in state.items()}, "param_groups": plain[name]}
        )
    if stray := sorted({n.split("/")[0] for n in tensors} - optimizers.keys()):
        raise UserError(f"belongs to another optimizer, {short(stray[0])}", file=file, hint=AGAIN)


def _check_groups(optimizer: torch.optim.Optimizer, groups: Any, folder: Path) -> None:
    """UserError when saved parameter groups differ from the optimizer's, or a value has the wrong type."""
    ours = json.loads(json.dumps(optimizer.state_dict()["param_groups"]))
    fits = isinstance(groups, list) and len(groups) == len(ours)
    for mine, saved in zip(ours, groups) if fits else ():
        fits = fits and isinstance(saved, dict) and saved.keys() == mine.keys()
        fits = fits and saved["params"] == mine["params"]
        for key in mine.keys() - {"params"} if fits else ():
            a, b = mine[key], saved[key]
            fits = fits and (is_number(b) if is_number(a) else type(a) is type(b))
            if isinstance(a, list) and fits:
                fits = len(a) == len(b) and all(map(is_number, b))
    if not fits:
        rule = "its optimizer has other parameter groups than this config"
        raise UserError(rule, file=folder / "state.json", hint=AGAIN)


def _check_memory(name: str, optimizer: torch.optim.Optimizer, state: dict[str, dict], file: Path) -> None:
    """UserError when a parameter's saved state lacks a tensor, or a tensor has the wrong shape or type."""
    groups = optimizer.param_groups
    params = {str(i): p for i, p in enumerate(p for g in groups for p in g["params"])}
    wanted = MEMORY.get(type(optimizer).__name__, set())
    if wanted == MEMORY["SGD"] and not any(g["momentum"] for g in groups):
        wanted = set()
    if wanted and not state:
        raise UserError(
            f"has no state of optimizer {name}, which would start from zero", file=file, hint=AGAIN
        )
    for i, entries in state.items():
        if i not in params or entries.keys() != wanted:
            held = ", ".join(sorted(map(short, entries)))
            raise UserError(
                f"optimizer {name}, parameter {short(i)} does not fit: {held}", file=file, hint=AGAIN
            )
        for key, value in entries.items():
            like = params[i] if key != "step" else torch.zeros(())
            if value.shape != like.shape or value.dtype != like.dtype:
                rule = f"{name}/{i}/{key} is {_kind(value)}, not {_kind(like)}"
                raise UserError(rule, file=file, hint=AGAIN)


def _kind(x: torch.Tensor | None) -> str:
    """Shape and type of a tensor, for messages."""
    return "absent" if x is None else f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def _write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    try:
        save_file(tensors, file)
        file.chmod(_mode(0o666))  # safetensors makes it 0600, so that nobody else could read the model
    except SafetensorError as err:  # for example: the disk is full
        raise UserError(f"cannot be written ({err})", file=file) from None


def save(
    exp: Path, step: int, model: torch.nn.Module, optimizers: dict, state: dict, best: bool = False
) -> None:
    """Write `ckpt-<step>` and point LATEST (and best) at it; delete all but the last two checkpoints and the
    best.

    Args:
        exp: the model folder.
        model: the objective.
        optimizers: name -> optimizer.
        state: entries of state.json besides the step and the optimizers'.
        best: this checkpoint is the best on the dev list so far.

    Raises UserError when a file cannot be written.
    """
    target = exp / f"ckpt-{step}"
    tensors, groups = _pack(optimizers)
    with atomic_dir(target) as tmp:
        # clone: safetensors refuses tensors that share memory
        _write(
            {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}, tmp / "model.safetensors"
        )
        _write({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, tmp / "optim.safetensors")
        with open(tmp / "state.json", "w") as f:
            counted = {"step": step, "optim_tensors": len(tensors), GROUPS: groups}
            json.dump({**state, **counted}, f, indent=1)
    # LATEST comes last: after a kill between the two, training resumes before this checkpoint and writes it
    # again.
    for name in ["best"] * best + ["LATEST"]:
        with atomic_file(exp / name) as f:
            f.write(target.name + "\n")
    keep = {p for p in (latest(exp), _pointer(exp, "best")) if p}
    steps = sorted((int(p.name[5:]), p) for p in exp.glob("ckpt-*") if p.name[5:].isdecimal())
    for _, path in steps[:-2]:
        if path not in keep:
            shutil.rmtree(path)
    for left in exp.glob(".*ckpt-*"):  # left by a killed save
        shutil.rmtree(left, ignore_errors=True)


def save_rows(file: Path, rows: dict[str, torch.Tensor]) -> None:
    """Write per-utterance arrays to a safetensors file (rows/epoch-N.safetensors)."""
    with atomic_file(file, "wb") as f:
        f.write(serialize({k: v.detach().cpu().contiguous() for k, v in rows.items()}))


def save_import(
    exp: Path, encoder: torch.nn.Module, config: Any, record: dict, texts: dict[str, str] | None = None
) -> None:
    """Write a model folder that was not trained here: one checkpoint that holds the encoder only.

    Args:
        exp: the folder to write.
        config: the encoder's config.
        record: content of run.json.
        texts: further files, name -> content.
    """
    with atomic_dir(exp, own=True) as tmp:
        for name, text in (texts or {}).items():
            (tmp / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        (tmp / "config.yaml").write_text(cfg.to_yaml_section("encoder", config))
        (tmp / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        (tmp / "ckpt-0").mkdir()
        (tmp / "LATEST").write_text("ckpt-0\n")
        weights = {f"encoder.{k}": v.detach().contiguous() for k, v in encoder.state_dict().items()}
        _write(weights, tmp / "ckpt-0" / "model.safetensors")
        (tmp / "ckpt-0" / "state.json").write_text(json.dumps({"evaluates": "encoder", "step": 0}) + "\n")


def tensors(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """All tensors of one file of a checkpoint.

    UserError when it is missing, cut short, or not safetensors.
    """
    file = folder / name
    try:
        safetensors_header(file)
        return load_file(file)
    except FileNotFoundError:
        raise UserError("no such file", file=file, hint=AGAIN) from None
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as err:
        raise UserError(f"not a readable safetensors file ({err})", file=file, hint=AGAIN) from None


def state(folder: Path) -> dict[str, Any]:
    """The content of state.json. UserError when it is missing, or an entry has a wrong type or value."""
    file = folder / "state.json"
    try:
        saved = read_json(file, hint=AGAIN, nan=True)  # the mean threshold of an open gate is infinite
    except FileNotFoundError:
        raise UserError("no such file", file=file, hint=AGAIN) from None
    for key in ("step", "epoch", "collapsed", "worse", "best_epoch", "optim_tensors"):
        if key in saved and not (key == "best_epoch" and saved[key] is None):
            number(saved[key], key, 0, MAX_INT, whole=True, file=file, hint=AGAIN)
    for key, high in (("best_eer", 1e6), ("audio_seconds", 1e18)):
        if key in saved and not (key == "best_eer" and saved[key] is None):
            number(saved[key], key, 0, high, file=file, hint=AGAIN)
    for key, kind in (
        ("label_hash", str),
        ("evaluates", str),
        ("done", bool),
        (GROUPS, dict),
        ("means", dict),
    ):
        if key in saved and not isinstance(saved[key], kind):
            raise UserError(f"{key} is {short(saved[key])}", file=file, hint=AGAIN)
    for name, pair in saved.get("means", {}).items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(x) in (int, float) for x in pair):
            raise UserError(f"the mean of {short(name)} is {short(pair)}", file=file, hint=AGAIN)
    if ("label_hash" in saved) != (GROUPS in saved):
        lacks = "label_hash" if GROUPS in saved else GROUPS
        raise UserError(f"has no {lacks}", file=file, hint=AGAIN)
    stem, _, count = folder.name.partition("-")
    if stem == "ckpt" and count.isdecimal() and str(saved.get("step", count)) != count:
        raise UserError(
            f"is from step {saved['step']}, but its folder is from step {count}", file=file, hint=AGAIN
        )
    return saved


def training_state(folder: Path) -> dict[str, Any]:
    """`state` of a checkpoint from which training can resume. UserError when an entry is missing or wrong."""
    saved = state(folder)
    for key in ("step", "epoch", "done", "means", "label_hash", "evaluates", GROUPS):
        if key not in saved:
            raise UserError(f"has no {key}", file=folder / "state.json", hint=AGAIN)
    return saved


def restore(
    folder: Path, model: torch.nn.Module, optimizers: dict, last: int | None = None
) -> dict[str, Any]:
    """Load model and optimizers from the checkpoint `folder`, and return its state.

    last: the training's last step.
    Raises UserError when an entry is missing or does not fit, or the checkpoint's step lies beyond `last`.
    """
    saved, file = training_state(folder), folder / "state.json"
    if last is not None and saved["step"] > last:
        raise UserError(
            f"is from step {saved['step']}, but the training has only {last}", file=file, hint=AGAIN
        )
    weights, memory = tensors(folder), tensors(folder, "optim.safetensors")
    if saved.get("optim_tensors", len(memory)) != len(memory):
        rule = f"contains {len(memory)} tensors, but {saved['optim_tensors']} were saved"
        raise UserError(rule, file=folder / "optim.safetensors", hint=AGAIN)
    load_state_strict(model, weights, folder)
    _unpack(optimizers, memory, saved[GROUPS], folder)
    return saved


def encoder_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of the evaluated encoder, as `--init` and extraction use them.

    UserError when state.json is wrong.
    """
    saved = state(folder)
    if "evaluates" not in saved:
        raise UserError("has no 'evaluates'", file=folder / "state.json", hint=AGAIN)
    prefix = saved["evaluates"] + "."
    return {k[len(prefix) :]: v for k, v in tensors(folder).items() if k.startswith(prefix)}


def digest(model: str | Path) -> str:
    """SHA-256 of a checkpoint's weights, in hex.

    It identifies what a run started from, wherever the file lies.
    """
    with open(resolve_model(model) / "model.safetensors", "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def init_encoder(encoder: Any, model: str | Path) -> None:
    """`--init`: load the encoder of another run; heads stay new. UserError when the architectures differ."""
    folder = resolve_model(model)
    load_state_strict(encoder, encoder.initial(encoder_weights(folder), folder), folder)


def init_objective(objective: Any, model: str | Path, label_hash: str) -> None:
    """`--init --keep-head`: load encoder, heads and gate of a run on exactly the same labels.

    label_hash: hash of this run's labels. A gate of another kind than that run's starts anew. UserError: that model
    has no such head, was trained on other utterances or labels, or has another architecture.
    """
    folder = resolve_model(model)
    trained_on = state(folder).get("label_hash")
    weights = objective.encoder.initial(tensors(folder), folder)
    heads = [k for k in objective.state_dict() if not k.startswith(("encoder.", "gate."))]
    if trained_on is None or any(key not in weights for key in heads):
        raise UserError(
            "was trained without a head over these labels, so --keep-head has nothing to keep",
            file=folder,
            hint="leave out --keep-head, or start from a model of an AAM-softmax round on these labels",
        )
    if trained_on != label_hash:
        raise UserError(
            "was trained on other utterances or labels, so its head does not fit",
            file=folder,
            hint="remove --keep-head to get a new head, or train on that run's data directory",
        )
    saved, ours = weights, objective.state_dict()
    gates = [{k: _kind(v) for k, v in of.items() if k.startswith("gate.")} for of in (saved, ours)]
    if gates[0] != gates[1]:
        saved = {k: v for k, v in saved.items() if k not in gates[0]} | {k: ours[k] for k in gates[1]}
    hint = (
        "use that run's encoder, objective and augment sections (its config.yaml), or leave out --keep-head"
    )
    load_state_strict(objective, saved, folder, hint)


def load_state_strict(
    module: torch.nn.Module, weights: dict[str, torch.Tensor], folder: Path, hint: str | None = None
) -> None:
    """Load weights with the module's names, shapes and types. UserError names the first one that differs."""
    compare(module.state_dict(), weights, folder, hint)
    module.load_state_dict(weights)


def compare(
    ours: dict[str, torch.Tensor], saved: dict[str, torch.Tensor], folder: Path, hint: str | None = None
) -> None:
    """UserError when two sets of weights differ in a name, a shape or a type."""
    for key in [*ours, *saved]:
        saved_kind, own_kind = _kind(saved.get(key)), _kind(ours.get(key))
        if saved_kind != own_kind:
            raise UserError(
                f"its model differs from this config's: {key[:100]} is {saved_kind} in the checkpoint "
                f"and {own_kind} in the config",
                file=folder,
                hint=hint or "use the same encoder section as that run's config.yaml",
            )
