#!/usr/bin/env python
"""Write docs/config.md, the page of all settings, from the config classes: utils/make_config_doc.py [FILE]"""

import sys
from collections.abc import Collection
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pyspkv.base.config import Config  # noqa: E402
from pyspkv.train.config import MAY_CHANGE_ON_RESUME, TrainConfig  # noqa: E402

HEAD = """# Config

<!-- Made by utils/make_config_doc.py from the config classes; edit those, then run it again. -->

This page lists every setting of a training: its default, its range, what it is, and when to change it.

A config file holds what differs from the defaults. `encoder`, `objective`, `sampler` and gates pick a class by `name`:

```yaml
encoder: {name: ecapa, channels: 128}
objective: {name: aam, margin: 0.3, gate: {name: lgl}}
optim: {lr: 2e-3, lr_schedule: {warmup_epochs: 2}}
```

`python -m pyspkv.bin.train --config FILE... --print-config` prints all settings as a training would take them. Of
several files a later one wins, key by key; a section with another `name` replaces the one before. `--set optim.lr=1e-3`
changes one setting. An unknown key, a wrong type or a value out of range stops the run, with the file it came from.
"""
ENDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}
WORDS = {int: "whole number", float: "number", bool: "true, false", str: "text"}


def union(annotation: Any) -> list[Any]:
    """The members of a union without `null`, or [annotation] if it is not a union."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return [a for a in get_args(annotation) if a is not NoneType]
    return [annotation]


def configs(annotation: Any) -> list[type[Config]]:
    return [c for c in union(annotation) if isinstance(c, type) and issubclass(c, Config)]


def ends(metadata: list[Any]) -> str:
    found = []
    for note in metadata:
        for part in (note, *getattr(note, "metadata", ())):
            found += [form.format(f"{getattr(part, k):,}") for k, form in ENDS.items() if hasattr(part, k)]
    return ", ".join(dict.fromkeys(found))


def values(annotation: Any, metadata: list[Any]) -> str:
    """The values that a field accepts: type and range."""
    null = ", null" if NoneType in get_args(annotation) else ""
    notes = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        notes += more
    [kind] = union(annotation) if null else [annotation]
    while get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        notes += more
    if get_origin(kind) is Literal:
        return ", ".join(f"`{v}`" for v in get_args(kind)) + null
    if get_origin(kind) is tuple:
        args = get_args(kind)
        number = "any number of" if Ellipsis in args else f"{len(args)} of"
        return f"{number}: {values(args[0], [])}{null}"
    if get_origin(kind) is dict:
        return f"mapping{null}"
    text = WORDS[kind]
    return (f"{text} {ends(notes)}" if ends(notes) else text) + null


def shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == {}:
        return "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    return '""' if value == "" else f"{value:,}".replace(",", "") if isinstance(value, int) else str(value)


def table(cls: type[Config], without: Collection[str] = ()) -> list[str]:
    """The table rows of a config class; sections inside it get dotted keys."""
    lines = ["| key | default | values | |", "|---|---|---|---|"]
    for key, default, kind, text in rows(cls, ""):
        if key.partition(".")[0] not in without:
            lines.append(f"| `{key}` | {default} | {kind} | {text} |")
    return lines


def rows(cls: type[Config], above: str) -> list[tuple[str, str, str, str]]:
    out = []
    for name, field in cls.model_fields.items():
        key, text = above + name, (field.description or "").replace("|", "\\|")
        inner = configs(field.annotation)
        if not text:  # `name`, which selects the class
            continue
        if len(inner) == 1:
            out += rows(inner[0], f"{key}.")
        elif inner:
            names = ", ".join(f"`{c.model_fields['name'].default}`" for c in inner)
            name_of = f"`{field.default.name}`" if isinstance(field.default, Config) else "must be given"
            out.append((f"{key}.name", name_of, names, text))
        else:
            out.append((key, f"`{shown(field.default)}`", values(field.annotation, field.metadata), text))
    return out


def section(title: str, cls: type[Config]) -> list[str]:
    told = " ".join((cls.__doc__ or "").split())
    body = table(cls)
    return ["", title, "", told, *(["", *body] if len(body) > 2 else ["", "It has no settings."])]


def page() -> str:
    """The text of the page."""
    fields, lines = TrainConfig.model_fields, [HEAD.rstrip()]
    sections = {k for k, f in fields.items() if configs(f.annotation)}
    lines += ["", "## Training", "", *table(TrainConfig, sections)]
    lines += [
        "",
        f"A resumed run may change {', '.join(f'`{k}`' for k in MAY_CHANGE_ON_RESUME)}: they say how, not what.",
    ]
    gates: dict[tuple[type[Config], ...], list[str]] = {}
    for name, field in fields.items():
        kinds = configs(field.annotation)
        if len(kinds) == 1:
            lines += section(f"## {name}", kinds[0])
        elif kinds:
            lines += ["", f"## {name}", "", field.description or ""]
            for cls in kinds:
                own = cls.model_fields["name"].default
                lines += section(f"### {name}: {own}", cls)
                if "gate" in cls.model_fields:
                    gates.setdefault(tuple(configs(cls.model_fields["gate"].annotation)), []).append(own)
    for kinds, users in gates.items():
        of = ", ".join(f"`{user}`" for user in users)
        lines += ["", f"## Gates of {', '.join(users)}", "", f"The section `objective.gate` of {of}."]
        for cls in kinds:
            lines += section(f"### gate: {cls.model_fields['name'].default}", cls)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/config.md").write_text(page(), encoding="utf-8")
