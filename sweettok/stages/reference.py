"""The page docs/settings.md: all settings of all stages, from the dataclasses and their comments."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_type_hints

from omegaconf import MISSING

from sweettok.config import field_comments, to_dict
from sweettok.stages import STAGES

INTRODUCTION = """# Settings

<!-- Written by `sweettok config --reference`. -->

A configuration file sets its `stage` and the settings that differ from the defaults below, or from those of its `base`
file. Settings on the command line override the file: `sweettok train FILE optimizer.lr=5e-5`. `sweettok config FILE`
prints all settings of a file. Settings without a default are required.
"""


def reference() -> str:
    """The page, in Markdown."""
    parts, sections = [INTRODUCTION, "## Stages\n"], {}
    for name, task in STAGES.items():
        parts += [f"### `stage: {name}`\n", describe(task.run_class, sections)]
    parts.append("## Sections\n")
    done = set()
    while todo := [cls for cls in sections if cls not in done]:
        done.add(todo[0])
        parts += [f"### {todo[0].__name__}\n", describe(todo[0], sections)]
    return "\n".join(parts)


def describe(cls: type, sections: dict[type, None]) -> str:
    """Docstring of a class and a table of its settings; classes of nested sections are added to `sections`."""
    types, comments = get_type_hints(cls), field_comments(cls)
    rows = ["| setting | type | default | |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(cls):
        kind, text = types[field.name], comments[field.name]
        if field.name == "stage":
            continue
        if dataclasses.is_dataclass(kind):
            sections.setdefault(kind)
            changes = differences(field.default_factory(), kind())
            default = ", ".join(f"`{name}={value}`" for name, value in changes.items())
            text = text or inspect.getdoc(kind).splitlines()[0]
            rows.append(f"| `{field.name}` | [{kind.__name__}](#{kind.__name__.lower()}) | {default} | {text} |")
        else:
            value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            default = "" if value == MISSING else f"`{plain(value)}`"
            rows.append(f"| `{field.name}` | {type_name(kind)} | {default} | {text[:1].upper()}{text[1:]} |")
    return f"{inspect.getdoc(cls)}\n\n" + "\n".join(rows) + "\n"


def differences(config: Any, defaults: Any) -> dict[str, Any]:
    """Settings of a section that differ from the defaults of its class."""
    pairs = zip(to_dict(config).items(), to_dict(defaults).values(), strict=True)
    return {name: plain(value) for (name, value), default in pairs if value != default and not isinstance(value, dict)}


def plain(value: Any) -> str:
    """A value in YAML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(plain, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def type_name(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return name.replace("sweettok.tokenizer.layout.", "").replace(" | None", ", or null").replace("NoneType", "null")
