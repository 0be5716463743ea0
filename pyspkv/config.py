"""Strict configuration: a dataclass beside each class, YAML that holds differences, and an error for anything else.

A section that picks a class is a mapping with `name` plus that class's fields:

    encoder: {name: ecapa, channels: 128}

`resolve` turns it into the class's own Config; `build` makes the object. Unknown keys, unknown names and wrong types
stop the run with the key's full name.
"""

import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, PlainValidator, TypeAdapter, ValidationError

from pyspkv.errors import UserError

COMPONENTS = {
    "encoder": {
        "ecapa": "pyspkv.models.ecapa:ECAPA",
        "resnet": "pyspkv.models.resnet:ResNet",
        "wavlm": "pyspkv.models.wavlm:WavLM",
        "dvector": "pyspkv.models.dvector:DVector",
        "xvector": "pyspkv.models.xvector:XVector",
    },
    "objective": {
        "margin": "pyspkv.objectives.margin:Margin",
        "contrastive": "pyspkv.objectives.contrastive:Contrastive",
        "dino": "pyspkv.objectives.dino:DINO",
        "reflective": "pyspkv.objectives.reflective:Reflective",
        "pairs": "pyspkv.objectives.pairs:Pairs",
        "cola": "pyspkv.objectives.cola:COLA",
        "apc": "pyspkv.objectives.apc:APC",
        "supervised": "pyspkv.objectives.semi:Semi",
        "gll": "pyspkv.objectives.semi:GatedLabels",
        "pseudo_label": "pyspkv.objectives.semi_baselines:PseudoLabel",
        "mean_teacher": "pyspkv.objectives.semi_baselines:MeanTeacher",
        "distil": "pyspkv.objectives.semi_baselines:Distil",
        "cdvat": "pyspkv.objectives.semi_baselines:CDVAT",
        "gcl": "pyspkv.objectives.semi_baselines:GCL",
    },
    "gate": {
        "none": "pyspkv.labels.gates:Gate",
        "lgl": "pyspkv.labels.gates:LossGate",
        "dlg": "pyspkv.labels.gates:DynamicLossGate",
    },
    "confidence_gate": {
        "all": "pyspkv.labels.confidence:Everything",
        "verification": "pyspkv.labels.confidence:Verification",
        "flexible": "pyspkv.labels.confidence:Flexible",
        "fixed": "pyspkv.labels.confidence:Fixed",
        "flexmatch": "pyspkv.labels.confidence:FlexMatch",
    },
    "sampler": {
        "plain": "pyspkv.sampler:Plain",
        "one_per_label": "pyspkv.sampler:OnePerLabel",
        "dialogues": "pyspkv.sampler:Dialogues",
        "repeat": "pyspkv.sampler:Repeat",
        "two_stream": "pyspkv.sampler:TwoStream",
    },
}


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.1 takes it for a string) and refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def component_class(kind: str, name: str) -> type:
    module, attribute = COMPONENTS[kind][name].split(":")
    return getattr(importlib.import_module(module), attribute)


def resolve(kind: str, raw: Any) -> Any:
    """{name: ..., fields} -> the named class's Config, with `name` kept as an attribute for `dump` and `build`."""
    if dataclasses.is_dataclass(raw):
        return raw
    if not isinstance(raw, dict) or "name" not in raw:
        raise UserError(
            f"'{kind}' must be a mapping with a 'name', got {raw!r}",
            mend=f"name one of {', '.join(COMPONENTS[kind])}",
        )
    fields = dict(raw)
    name = fields.pop("name")
    if not isinstance(name, str) or name not in COMPONENTS[kind]:
        raise UserError(
            f"{kind}.name: no {kind} is called '{name}'", mend=f"choose one of {', '.join(COMPONENTS[kind])}"
        )
    config = validate(component_class(kind, name).Config, fields, kind)
    config.name = name
    return config


def component(kind: str):
    """Field type of a section that picks a class of this kind."""
    return Annotated[Any, PlainValidator(lambda raw: resolve(kind, raw))]


def build(kind: str, config: Any, *args, **kwargs) -> Any:
    """The object of the class that `config` names. UserError: torch refuses its sizes."""
    try:
        made = component_class(kind, config.name)(config, *args, **kwargs)
        if empty := [n for n, p in getattr(made, "named_parameters", dict)() if p.numel() == 0]:
            raise ValueError(f"{empty[0]} is empty")
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as err:
        rule = f"{kind} '{config.name}' cannot be made with these sizes: {err}"
        raise UserError(rule, mend="look for a size of 0 or below, see --print-config") from err
    return made


def validate(cls: type, raw: dict, where: str = "") -> Any:
    """Build dataclass `cls` from `raw`; strict about names and types."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    try:
        return TypeAdapter(cls).validate_json(
            json.dumps(raw, default=str)
        )  # JSON mode: a list may fill a tuple
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join([where, *map(str, first["loc"])] if where else map(str, first["loc"]))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            names = (
                ", ".join(f.name for f in dataclasses.fields(cls))
                if len(first["loc"]) == 1
                else "--print-config"
            )
            raise UserError(f"unknown config key '{key}'", mend=f"known here: {names}") from None
        raise UserError(
            f"config key '{key}': {first['msg'].lower()}, got {first['input']!r}", mend="see --print-config"
        ) from None


def read(path: str | Path) -> dict:
    """The mapping in a YAML file."""
    try:
        with open(path, encoding="utf-8") as f:
            raw = yaml.load(f, _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        mark = getattr(err, "problem_mark", None)
        what = getattr(err, "problem", None) or "not UTF-8 YAML"
        raise UserError(f"cannot be read as YAML: {what}", file=path, line=mark and mark.line + 1) from None
    if not isinstance(raw, dict):
        raise UserError("a config must be a mapping `key: value`", file=path)
    return raw


def read_section(path: str | Path, kind: str) -> Any:
    """One section of a resolved config that picks a class, without the classes of the others."""
    try:
        return resolve(kind, read(path).get(kind))
    except UserError as err:
        raise UserError(str(err), file=path) from None


def _merge(into: dict, later: dict) -> None:
    for key, value in later.items():
        old = into.get(key)
        if (
            isinstance(old, dict)
            and isinstance(value, dict)
            and value.get("name", old.get("name")) == old.get("name")
        ):
            _merge(old, value)
        else:
            into[key] = value


def load(cls: type, path: str | Path | list | None, overrides: list[str] = ()) -> Any:
    """Read YAML files of differences (later ones win), apply `key.sub=value` overrides (in YAML), validate as `cls`."""
    raw: dict = {}
    for one in path if isinstance(path, list) else [path] if path is not None else []:
        _merge(raw, read(one))
        path = one
    for item in overrides:
        key, eq, value = item.partition("=")
        if not eq or not key:
            raise UserError(f"--set {item}: expected key=value", mend="for example --set optim.lr=0.001")
        *parents, last = key.split(".")
        at = raw
        for name in parents:
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                raise UserError(f"--set {item}: '{name}' is not a section")
        try:
            at[last] = yaml.load(value, _Loader)
        except yaml.YAMLError:
            raise UserError(f"--set {item}: the value is not YAML") from None
    try:
        return validate(cls, raw)
    except UserError as err:
        raise UserError(str(err), file=path) if path else err from None


def dump(config: Any) -> dict:
    """The resolved config as plain data, readable by `load` again."""
    out = {"name": config.name} if hasattr(config, "name") else {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        value = list(value) if isinstance(value, tuple) else value  # as YAML gives it back
        out[f.name] = dump(value) if dataclasses.is_dataclass(value) else value
    return out


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(dump(config), sort_keys=False)


def to_yaml_section(kind: str, config: Any) -> str:
    return yaml.safe_dump({kind: dump(config)}, sort_keys=False)
