"""Strict configuration: a pydantic model for each class; YAML files give what differs from the defaults.

A section that selects a class is a mapping with `name` and the fields of that class:

    encoder: {name: ecapa, channels: 128}

Each package defines a union of its configs (`pyspkv.models.registry.EncoderConfig`, ...); `name` selects the
member. `validate` turns plain data into a config, and `build` turns a config into an object of its class.
Unknown keys, unknown names, wrong types and values out of range stop the run with the key's full name.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pyspkv.base.errors import UserError
from pyspkv.base.foreign import MAX_DEPTH, MAX_INT, read_text, short

MAX_FILE = 1_000_000  # bytes of a config file
MAX_NODES = 20_000  # keys and values of one file; reading that many takes about a second
MAX_NUMBER = 100  # characters of a number or a date

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
C = TypeVar("C", bound=type)
Pair = TypeVar("Pair", bound=tuple)


class Config(BaseModel):
    """Base of all configs. Names, types and ranges are checked, and a config is immutable."""

    model_config = ConfigDict(**STRICT, frozen=True, protected_namespaces=())


def in_order(ends: Pair) -> Pair:
    """Validator of a pair (lower end, upper end). ValueError when they are swapped."""
    if ends[0] > ends[1]:
        raise ValueError("the lower value must come first")
    return ends


# Types of fields. Sizes have an upper limit, so that the config.yaml of somebody else's model cannot fill the
# memory.
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=1000)]  # of layers and the like
Seconds = Annotated[float, Field(gt=0, le=3600)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[tuple[float, float], AfterValidator(in_order)]  # lower end, upper end
Epochs = Annotated[tuple[NotNegative, NotNegative], AfterValidator(in_order)]  # from, to

_CLASSES: dict[type, type] = {}  # config class: the class that it belongs to


def implements(config: type[Config]) -> Callable[[C], C]:
    """Class decorator: `build` makes an object of this class from a `config`."""

    def register(cls: C) -> C:
        _CLASSES[config] = cls
        return cls

    return register


class _Loader(yaml.SafeLoader):
    """SafeLoader for untrusted files: plain data within limits; every problem is a YAMLError that knows its
    line.

    It reads 1e-3 as a number (YAML 1.1 reads it as a string). It refuses duplicate keys, keys that are not
    text, aliases (nine lines of them can expand to 10^9 values), nesting beyond MAX_DEPTH and numbers beyond
    64 bits.
    """

    depth = nodes = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _fault(f"an alias (*{event.anchor}) is not supported; write the value itself", event)
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
                value.encode()  # fails for half of a surrogate pair, which no file can hold
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            raise _fault(f"{short(node.value)} is not a valid {node.tag.rpartition(':')[2]}", node) from None
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise _fault("a number beyond 64 bits", node)
        return value

    def construct_mapping(self, node, deep=False):
        if not isinstance(node, yaml.MappingNode):
            raise _fault(f"{short(node.value)} is not a mapping", node)
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


def _undefined(loader: yaml.SafeLoader, node: yaml.Node) -> None:
    loader.construct_undefined(node)


for _tag in ("set", "omap", "pairs", "binary"):  # no config needs these, and JSON cannot hold them
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _undefined)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: str, file=None) -> Any:
    """YAML text -> plain data. UserError with the line when it is not valid YAML."""
    loader: _Loader | None = None
    line: int | None = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.reader.ReaderError as err:
        what, line = f"character {err.character:#x} is not allowed", text.count("\n", 0, err.position) + 1
    except yaml.MarkedYAMLError as err:
        what, line = str(err.problem), err.problem_mark.line + 1 if err.problem_mark else None
    except (ValueError, OverflowError) as err:  # an escape such as "\UFFFFFFFF", a version of 5000 digits
        what, line = str(err), loader.get_mark().line + 1 if loader else None
    raise UserError(f"cannot be read as YAML: {what[:200]}", file=file, line=line)


def class_of(config: Config) -> type[Any]:
    """The class that `build` makes from a config."""
    return _CLASSES[type(config)]


def build(config: Config, *args, **kwargs) -> Any:
    """Make an object of the class that `config` belongs to; `args` and `kwargs` go to its constructor.

    Raises UserError when the sizes in the config do not work together.
    """
    try:
        made = class_of(config)(config, *args, **kwargs)
        if empty := [n for n, p in getattr(made, "named_parameters", dict)() if p.numel() == 0]:
            raise ValueError(f"{empty[0]} is empty")
    except (AssertionError, ValueError, RuntimeError, ArithmeticError) as err:
        rule = f"'{getattr(config, 'name', '')}' cannot be built with these sizes: {err}"
        raise UserError(rule, hint="some size is too small, see docs/config.md") from err
    return made


@functools.cache
def _adapter(cls: Any) -> TypeAdapter:
    """The validator of a type, cached because making one takes a hundred times as long as a validation."""
    if isinstance(cls, type) and not issubclass(cls, BaseModel):  # a dataclass
        cls.__pydantic_config__ = STRICT  # type: ignore[attr-defined] # the name that pydantic looks for
    return TypeAdapter(cls)


def validate(cls: Any, raw: Any, where: str = "") -> Any:
    """Check plain data and return it as a `cls`. UserError names the first key that is wrong.

    Args:
        cls: a config class, a dataclass, or a union of configs.
        raw: plain data, usually from YAML.
        where: name of the section that `raw` comes from, for error messages.
    """
    try:
        return _adapter(cls).validate_json(json.dumps(raw, default=str))  # JSON mode: a list may fill a tuple
    except ValidationError as err:
        raise _user_error(cls, err.errors()[0], raw, where) from None


def _user_error(cls: Any, first: Mapping[str, Any], raw: Any, where: str) -> UserError:
    """Translate a pydantic error into a UserError.

    Its attribute `key` lets `load` find the file that is wrong.
    """
    path = (*([where] if where else []), *_path(first["loc"], raw))
    kind, context = first["type"], first.get("ctx", {})
    key, section, hint = ".".join(path), path[-1] if path else "config", "see docs/config.md"
    if kind == "union_tag_invalid":
        name, known = context["tag"], context["expected_tags"].replace("'", "")
        shown = name if len(name) < 60 else short(name)
        rule, hint = f"{key}.name: no {section} is called '{shown}'", f"choose one of {known}"
        path = (*path, "name")
    elif kind == "union_tag_not_found":
        rule = f"'{key}' must be a mapping with a 'name', got {short(first['input'])}"
    elif kind in ("dict_type", "model_type", "dataclass_type"):
        rule = f"config key '{key}' must be a mapping, got {short(first['input'])}"
    elif kind in ("unexpected_keyword_argument", "extra_forbidden"):
        rule, hint = f"unknown config key '{key}'", f"known here: {', '.join(_known(cls, first['loc'][:-1]))}"
    elif kind == "value_error":  # raised by a validator of this project
        got = "" if isinstance(first["input"], dict) else f", got {short(first['input'])}"
        rule = f"config key '{key}': {context['error']}{got}"
    else:
        rule = f"config key '{key}': {first['msg'].lower()}, got {short(first['input'])}"
    error = UserError(rule, hint=hint)
    error.key = path  # type: ignore[attr-defined] # read by `load` only
    return error


def _path(loc: Sequence[int | str], raw: Any) -> list[str]:
    """The keys that lead to an error, without the `name` that pydantic adds between section and keys."""
    path: list[str] = []
    entered = True  # `raw` is the section at `path`, and its `name` has not been skipped yet
    for part in loc[:-1]:
        if entered and isinstance(raw, dict) and raw.get("name") == part:
            entered = False
            continue
        path.append(str(part))
        raw = raw[part] if isinstance(raw, dict) or isinstance(part, int) else None
        entered = True
    return path + [str(part) for part in loc[-1:]]


def _known(cls: Any, loc: Sequence[int | str]) -> list[str]:
    """The keys that the section at `loc` of `cls` may have."""
    while get_origin(cls) is Annotated:
        cls = get_args(cls)[0]
    members = [c for c in get_args(cls) if loc and _name_of(c) == loc[0]]
    if members:  # `cls` is a union
        return _known(members[0], loc[1:])
    fields = {k: f.annotation for k, f in getattr(cls, "model_fields", {}).items()}
    if not fields and dataclasses.is_dataclass(cls):
        fields = dict.fromkeys(f.name for f in dataclasses.fields(cls))
    return _known(fields.get(loc[0]), loc[1:]) if loc else list(fields)


def _name_of(cls: Any) -> Any:
    field = getattr(cls, "model_fields", {}).get("name")
    return field and field.default


def read(path: str | Path) -> dict:
    """The mapping in a YAML file ({} for an empty file). UserError when it is not YAML or not a mapping."""
    raw = _parse(read_text(path, MAX_FILE), path)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError("a config must be a mapping `key: value`", file=path)
    return raw


def read_section(path: str | Path, section: str, cls: Any) -> Any:
    """One section of a resolved config as a `cls`; the classes of other sections need not be imported."""
    try:
        return validate(cls, read(path).get(section), section)
    except UserError as err:
        raise UserError(str(err), file=path) from None


def load(
    cls: type,
    paths: str | Path | Sequence[str | Path] | None,
    overrides: Sequence[str] = (),
    warn: Callable[[str], None] | None = None,
) -> Any:
    """Read YAML files, apply `key.sub=value` overrides (values in YAML), and validate the result as `cls`.

    A later file overrides an earlier one. Mappings are merged key by key, except that a section with another
    `name` replaces the earlier section completely, because its fields belong to another class. A dotted key
    in a file (`objective.gate: {name: all}`) sets that one value, as --set does. UserError names the file
    with the wrong key.

    warn: called with a line of text for each value that such a replacement took away, where the new class has
    a field of that name, too, and another value in it.
    """
    files = [] if paths is None else [paths] if isinstance(paths, (str, Path)) else list(paths)
    raw: dict = {}
    origin: dict[tuple[str, ...], str] = {}  # path of keys -> the file or option that set it
    lost: dict[tuple[str, ...], Any] = {}  # path of keys -> the value that a replacement took away
    for file in files:
        content = read(file)
        _merge(raw, {k: v for k, v in content.items() if "." not in str(k)}, str(file), origin, lost)
        for key in [k for k in content if "." in str(k)]:
            _set(raw, key, content[key], str(file), origin, lost)
    for item in overrides:
        _override(raw, item, origin, lost)
    try:
        config = validate(cls, raw)
    except UserError as err:
        where = _origin(getattr(err, "key", ()), origin) or " + ".join(map(str, files))
        raise UserError(str(err), file=where) if where else err from None
    for path, value in lost.items() if warn else ():
        _tell_lost(raw, dump(config), path, value, origin, warn)
    return config


def known(config: Config, items: Sequence[str]) -> list[str]:
    """Those of the `key.sub=value` whose key the classes in `config` have, and what is not of this form."""
    raw = dump(config)

    def unknown(item: str) -> bool:
        key, eq, _ = item.partition("=")
        return bool(key and eq) and _value(raw, key.split(".")) is _ABSENT

    return [x for x in items if not unknown(x)]


_ABSENT = object()


def _value(raw: Any, path: Sequence[str]) -> Any:
    """The value at `path`, or _ABSENT."""
    for key in path:
        if not isinstance(raw, dict) or key not in raw:
            return _ABSENT
        raw = raw[key]
    return raw


def _tell_lost(raw: dict, new: dict, path: tuple[str, ...], value: Any, origin: dict, warn) -> None:
    """Warn of a lost value, unless it is set again, its field is gone with its class, or the default equals it."""
    now = _value(new, path)
    if now is _ABSENT or now == value or _value(raw, path) is not _ABSENT:
        return
    section, key = path[:-1], ".".join(path)
    name = _value(new, (*section, "name"))
    where = _origin((*section, "name"), origin)
    warn(
        f"{key}={short(value)} was lost when {where} chose {'.'.join(section)}.name: {name}; it is now {short(now)}. "
        f"Change: set {key} there"
    )


def _merge(below: dict, above: dict, file: str, origin: dict, lost: dict, at: tuple[str, ...] = ()) -> None:
    """Merge `above` into `below`, in place. `lost` gets the values of sections that are replaced."""
    for key, value in above.items():
        old: Any = below.get(key)
        here = (*at, key)
        if not _both(old, value) or _other_class(old, value):
            _replace(old, value, here, origin, lost)
            below[key] = {} if isinstance(value, dict) else value
        origin[here] = file
        if isinstance(value, dict):
            _merge(below[key], value, file, origin, lost, here)


def _both(old: Any, new: Any) -> bool:
    return isinstance(old, dict) and isinstance(new, dict)


def _other_class(old: dict, new: dict) -> bool:
    return "name" in old and "name" in new and old["name"] != new["name"]


def _replace(old: Any, new: Any, here: tuple[str, ...], origin: dict, lost: dict) -> None:
    """Note that `new` takes the place of `old`: what set the values of `old` no longer counts.

    Its values are lost if `new` is a section that chooses another class.
    """
    if _both(old, new) and _other_class(old, new):
        lost |= {(*here, k): v for k, v in old.items() if k != "name"}
    for stale in [k for k in origin if k[: len(here)] == here]:
        del origin[stale]


def _override(raw: dict, item: str, origin: dict, lost: dict) -> None:
    """Apply one `--set key.sub=value`."""
    key, eq, value = item.partition("=")
    if not eq or not key:
        raise UserError(f"--set {item}: expected key=value", hint="for example --set optim.lr=0.001")
    try:
        parsed = _parse(value)
    except UserError as err:
        raise UserError(f"--set {short(item)}: the value is not YAML ({err})") from None
    _set(raw, key, parsed, f"--set {key}", origin, lost)


def _set(raw: dict, key: str, value: Any, where: str, origin: dict, lost: dict) -> None:
    """Set the dotted `key` to `value`. `lost` is as in `_merge`."""
    names = key.split(".")
    if len(names) > MAX_DEPTH:
        raise UserError(f"key {key[:40]}...: nested deeper than {MAX_DEPTH}", file=where)
    at = raw
    for name in names[:-1]:
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            raise UserError(f"key {short(key)}: '{name}' is not a section", file=where)
    _replace(at.get(names[-1]), value, tuple(names), origin, lost)
    at[names[-1]] = value
    origin[tuple(names)] = where


def _origin(key: tuple[str, ...], origin: dict) -> str | None:
    """The file or option that set `key`, or that set the closest section around it."""
    while key:
        if key in origin:
            return origin[key]
        key = key[:-1]
    return None


def dump(config: Config) -> dict[str, Any]:
    """The resolved config as plain data, `name` first; `load` can read it again."""
    return _name_first(config.model_dump(mode="json"))


def _name_first(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    out = {k: _name_first(v) for k, v in value.items()}
    return {"name": out.pop("name"), **out} if "name" in out else out


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text, which `load` can read."""
    return yaml.safe_dump(dump(config), sort_keys=False)


def to_yaml_section(section: str, config: Config) -> str:
    """The resolved config as YAML text under the key `section`."""
    return yaml.safe_dump({section: dump(config)}, sort_keys=False)
