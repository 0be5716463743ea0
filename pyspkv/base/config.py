"""Strict configuration: a dataclass beside each class, YAML that holds differences, and an error for anything else.

A section that picks a class is a mapping with `name` plus that class's fields:

    encoder: {name: ecapa, channels: 128}

`resolve` turns it into the class's own Config; `build` makes the object. Unknown keys, unknown names and wrong types
stop the run with the key's full name.
"""

import dataclasses
import functools
import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, PlainValidator, TypeAdapter, ValidationError

from pyspkv.base.errors import UserError
from pyspkv.base.foreign import MAX_DEPTH, MAX_INT, read_text, short

MAX_FILE = 1_000_000  # bytes of a config file
MAX_NODES = 20_000  # keys and values of one: a second's work
MAX_NUMBER = 100  # characters of a number or a date

COMPONENTS = {
    "encoder": {
        "ecapa": "pyspkv.models.ecapa:ECAPA",
        "resnet": "pyspkv.models.resnet:ResNet",
        "wavlm": "pyspkv.models.wavlm:WavLM",
        "dvector": "pyspkv.models.dvector:DVector",
        "xvector": "pyspkv.models.xvector:XVector",
    },
    "objective": {
        "margin": "pyspkv.objectives.aam:Margin",
        "contrastive": "pyspkv.objectives.contrastive:Contrastive",
        "dino": "pyspkv.objectives.dino:DINO",
        "reflective": "pyspkv.objectives.ssrl:Reflective",
        "pairs": "pyspkv.objectives.dialogue:Pairs",
        "cola": "pyspkv.objectives.cola:COLA",
        "apc": "pyspkv.objectives.apc:APC",
        "supervised": "pyspkv.objectives.gll:Semi",
        "gll": "pyspkv.objectives.gll:GatedLabels",
        "pseudo_label": "pyspkv.objectives.semi_supervised:PseudoLabel",
        "mean_teacher": "pyspkv.objectives.semi_supervised:MeanTeacher",
        "distil": "pyspkv.objectives.semi_supervised:Distil",
        "cdvat": "pyspkv.objectives.semi_supervised:CDVAT",
        "gcl": "pyspkv.objectives.semi_supervised:GCL",
    },
    "gate": {
        "none": "pyspkv.objectives.loss_gates:Gate",
        "lgl": "pyspkv.objectives.loss_gates:LossGate",
        "dlg": "pyspkv.objectives.loss_gates:DynamicLossGate",
    },
    "confidence_gate": {
        "all": "pyspkv.objectives.confidence_gates:AcceptAll",
        "verification": "pyspkv.objectives.confidence_gates:Verification",
        "flexible": "pyspkv.objectives.confidence_gates:Flexible",
        "fixed": "pyspkv.objectives.confidence_gates:Fixed",
        "flexmatch": "pyspkv.objectives.confidence_gates:FlexMatch",
    },
    "sampler": {
        "plain": "pyspkv.batches.sampler:Plain",
        "one_per_label": "pyspkv.batches.sampler:OnePerLabel",
        "dialogues": "pyspkv.batches.sampler:Dialogues",
        "repeat": "pyspkv.batches.sampler:Repeat",
        "two_stream": "pyspkv.batches.sampler:TwoStream",
    },
}


# The largest sizes of an encoder: a config.yaml of somebody else's model must not fill the memory.
MOST, MOST_ELSE = {"layers": 1000, "blocks": 1000, "scale": 1000, "n_mels": 1000}, 1_000_000


class _Loader(yaml.SafeLoader):
    """SafeLoader for files of strangers: plain data, bounded, every fault a YAMLError that knows its line.

    It reads 1e-3 as a number (YAML 1.1 takes it for a string) and refuses a key given twice, keys that are not text,
    aliases (nine lines of them can stand for 10^9 values), nesting beyond MAX_DEPTH and numbers beyond 64 bits.
    """

    depth = nodes = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _fault(f"an alias (*{event.anchor}) is not read here, write the value out", event)
        if self.depth >= MAX_DEPTH:
            raise _fault(f"nested deeper than {MAX_DEPTH}", event)
        if self.nodes >= MAX_NODES:
            raise _fault(f"more than {MAX_NODES} values", event)
        self.nodes += 1
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node, deep=False):
        number = node.tag.endswith((":int", ":float", ":timestamp"))
        if number and isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_NUMBER:
            raise _fault(f"a number of {len(node.value)} characters", node)
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()  # half of a surrogate pair fits in no file
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            raise _fault(f"{short(node.value)} is no {node.tag.rpartition(':')[2]}", node) from None
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise _fault("a number beyond 64 bits", node)
        return value

    def construct_mapping(self, node, deep=False):
        if not isinstance(node, yaml.MappingNode):
            raise _fault(f"{short(node.value)} is no mapping", node)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if not isinstance(key, str):
                raise _fault(f"the key {short(key)} is not text", key_node)
            if key in seen:
                raise _fault(f"key '{key}' is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _fault(problem: str, at) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


for _tag in ("set", "omap", "pairs", "binary"):  # what no config holds, and JSON cannot
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_undefined)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: str, file=None) -> Any:
    """YAML text -> plain data. UserError: it is none, with the line."""
    loader, line, what = None, None, None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.reader.ReaderError as err:
        what, line = f"character {err.character:#x} is not allowed", text.count("\n", 0, err.position) + 1
    except yaml.MarkedYAMLError as err:
        what, line = err.problem, err.problem_mark and err.problem_mark.line + 1
    except (ValueError, OverflowError) as err:  # an escape such as "\UFFFFFFFF", a version of 5000 digits
        what, line = str(err), loader.get_mark().line + 1
    raise UserError(f"cannot be read as YAML: {what[:200]}", file=file, line=line)


def component_class(kind: str, name: str) -> type:
    module, attribute = COMPONENTS[kind][name].split(":")
    return getattr(importlib.import_module(module), attribute)


def resolve(kind: str, raw: Any) -> Any:
    """{name: ..., fields} -> the named class's Config, with `name` kept as an attribute for `dump` and `build`."""
    if dataclasses.is_dataclass(raw):
        return raw
    known = ", ".join(COMPONENTS[kind])
    if not isinstance(raw, dict) or "name" not in raw:
        rule = f"'{kind}' must be a mapping with a 'name', got {short(raw)}"
        raise _of_key((kind,), UserError(rule, hint=f"name one of {known}"))
    fields = dict(raw)
    name = fields.pop("name")
    if not isinstance(name, str) or name not in COMPONENTS[kind]:
        shown = name if isinstance(name, str) and len(name) < 60 else short(name)
        rule = f"{kind}.name: no {kind} is called '{shown}'"
        raise _of_key((kind, "name"), UserError(rule, hint=f"choose one of {known}"))
    config = validate(component_class(kind, name).Config, fields, kind)
    config.name = name
    return config


def _of_key(key: tuple[str, ...], err: UserError) -> UserError:
    """The error with the key that it is about, for `load` to look up its file."""
    err.key = key
    return err


def component(kind: str):
    """Field type of a section that picks a class of this kind."""
    return Annotated[Any, PlainValidator(lambda raw: resolve(kind, raw))]


def build(kind: str, config: Any, *args, **kwargs) -> Any:
    """The object of the class that `config` names. UserError: its sizes make none, or an absurdly large one."""
    if kind == "encoder":
        for f in dataclasses.fields(config):
            value, most = getattr(config, f.name), MOST.get(f.name, MOST_ELSE)
            for one in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(one, int) and one > most:
                    raise UserError(f"encoder.{f.name} {one} is above {most}", hint="see --print-config")
    try:
        made = component_class(kind, config.name)(config, *args, **kwargs)
        if empty := [n for n, p in getattr(made, "named_parameters", dict)() if p.numel() == 0]:
            raise ValueError(f"{empty[0]} is empty")
    except (AssertionError, ValueError, RuntimeError, ArithmeticError) as err:
        rule = f"{kind} '{config.name}' cannot be made with these sizes: {err}"
        raise UserError(rule, hint="look for a size of 0 or below, see --print-config") from err
    return made


@functools.cache
def _adapter(cls: type) -> TypeAdapter:
    """Made once a class: it takes a hundred times as long as a validation."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return TypeAdapter(cls)


def validate(cls: type, raw: dict, where: str = "") -> Any:
    """Build dataclass `cls` from `raw`; strict about names and types."""
    try:
        text = json.dumps(raw, default=str)
        return _adapter(cls).validate_json(text)  # JSON mode: a list may fill a tuple
    except ValidationError as err:
        first = err.errors()[0]
        path = (*([where] if where else []), *map(str, first["loc"]))
        key = ".".join(path)
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            names = (
                ", ".join(f.name for f in dataclasses.fields(cls))
                if len(first["loc"]) == 1
                else "--print-config"
            )
            unknown = UserError(f"unknown config key '{key}'", hint=f"known here: {names}")
            raise _of_key(path, unknown) from None
        rule = f"config key '{key}': {first['msg'].lower()}, got {short(first['input'])}"
        raise _of_key(path, UserError(rule, hint="see --print-config")) from None


def read(path: str | Path) -> dict:
    """The mapping in a YAML file."""
    raw = _parse(read_text(path, MAX_FILE), path)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError("a config must be a mapping `key: value`", file=path)
    return raw


def read_section(path: str | Path, kind: str) -> Any:
    """One section of a resolved config that picks a class, without the classes of the others."""
    raw = read(path).get(kind)
    try:
        return resolve(kind, raw)
    except UserError as err:
        raise UserError(str(err), file=path) from None


def load(cls: type, paths: str | Path | Sequence[str | Path] | None, overrides: Sequence[str] = ()) -> Any:
    """Read a YAML file of differences, or several, apply `key.sub=value` overrides (in YAML), and validate as `cls`.

    Of several files a later one wins: mappings merge key by key, but a section whose `name` differs from the one
    before replaces it whole, as its fields are another class's; anything else replaces. A dotted key of a file
    (`objective.gate: {name: all}`) sets that one value, as --set does. Errors name the file.
    """
    files = [] if paths is None else [paths] if isinstance(paths, (str, Path)) else list(paths)
    raw: dict = {}
    origin: dict[tuple[str, ...], str] = {}  # key by key, where its value came from
    for file in files:
        content = read(file)
        _merge(raw, {k: v for k, v in content.items() if "." not in str(k)}, str(file), origin)
        for key in [k for k in content if "." in str(k)]:
            _set(raw, key, content[key], str(file), origin)
    for item in overrides:
        _override(raw, item, origin)
    try:
        return validate(cls, raw)
    except UserError as err:
        where = _origin(getattr(err, "key", ()), origin) or " + ".join(map(str, files))
        raise UserError(str(err), file=where) if where else err from None


def _merge(below: dict, above: dict, file: str, origin: dict, at: tuple[str, ...] = ()) -> None:
    """Lay `above` over `below`, in place."""
    for key, value in above.items():
        old, here = below.get(key), (*at, key)
        other = (
            "name" in value and "name" in old and value["name"] != old["name"] if _both(old, value) else True
        )
        if other:
            for stale in [k for k in origin if k[: len(here)] == here]:
                del origin[stale]
            below[key] = {} if isinstance(value, dict) else value
        origin[here] = file
        if isinstance(value, dict):
            _merge(below[key], value, file, origin, here)


def _both(old: Any, new: Any) -> bool:
    return isinstance(old, dict) and isinstance(new, dict)


def _override(raw: dict, item: str, origin: dict) -> None:
    """One `--set key.sub=value`."""
    key, eq, value = item.partition("=")
    if not eq or not key:
        raise UserError(f"--set {item}: expected key=value", hint="for example --set optim.lr=0.001")
    try:
        parsed = _parse(value)
    except UserError as err:
        raise UserError(f"--set {short(item)}: the value is not YAML ({err})") from None
    _set(raw, key, parsed, f"--set {key}", origin)


def _set(raw: dict, key: str, value: Any, where: str, origin: dict) -> None:
    """Put `value` at the dotted `key`, in place of what is there."""
    names = key.split(".")
    if len(names) > MAX_DEPTH:
        raise UserError(f"key {key[:40]}...: nested deeper than {MAX_DEPTH}", file=where)
    at = raw
    for name in names[:-1]:
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            raise UserError(f"key {short(key)}: '{name}' is not a section", file=where)
    at[names[-1]] = value
    origin[tuple(names)] = where


def _origin(key: tuple[str, ...], origin: dict) -> str | None:
    """Where a key came from. A section knows its keys by its own name (`gate.threshold`): the last that ends so."""
    while key:
        for known in reversed(origin):
            if known[-len(key) :] == key:
                return origin[known]
        key = key[:-1]
    return None


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
