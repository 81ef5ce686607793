"""docs/python.md, made from the docstrings of what `import sordino` offers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cached_property
from typing import Any

import sordino
from sordino import errors
from sordino.settings import About

_WIDTH = 100
_HEAD = """# Python

This page is made from docstrings by `make docs`; do not edit it.

{example}

[examples/](../examples) holds scripts that run. Every error that Sordino raises on purpose is a `SordinoError`; the tree of them,
`sordino.errors`, is at the end.
"""


def python_reference() -> str:
    """The whole page: the functions, then the classes, both in alphabetical order."""
    found = [(name, getattr(sordino, name)) for name in sordino.__all__]
    functions = [_function(f"sordino.{name}", value, "##") for name, value in found if inspect.isfunction(value)]
    classes = [_class(name, value) for name, value in found if inspect.isclass(value)]
    head = _HEAD.format(example=inspect.cleandoc(sordino.__doc__ or ""))
    tree = "## Errors\n\n" + _block(inspect.cleandoc(errors.__doc__ or ""))
    return "\n".join([head, *functions, *classes, tree])


def _function(name: str, function: Any, level: str) -> str:
    return f"{level} `{name.rpartition('.')[2]}`\n\n{_block(_signature(name, function))}\n{_doc(function)}\n"


def _class(name: str, cls: type) -> str:
    parts = [f"## `{name}`\n", f"`class sordino.{name}`\n", _doc(cls), ""]
    if is_dataclass(cls):
        parts += [*_fields(cls), ""]
    for member, value in vars(cls).items():
        function = value.__func__ if isinstance(value, staticmethod) else value
        if not _doc(value) or (member.startswith("_") and member != "__call__"):
            continue
        if inspect.isfunction(function):
            parts.append(_function(f"{name}.{member}", function, "###"))
        elif isinstance(value, property | cached_property):
            parts.append(f"### `{member}`\n\nA property. {_doc(value)}\n")
    return "\n".join(parts)


def _fields(cls: Any) -> Iterator[str]:
    """A table: name, type, default, and for settings what they mean."""
    about = {
        field.name: value.help for field in fields(cls) for value in field.metadata.values() if isinstance(value, About)
    }
    yield "| field | type | default |" + (" meaning |" if about else "")
    yield "|---|---|---|" + ("---|" if about else "")
    for field in fields(cls):
        if not field.name.startswith("_"):
            meaning = f" {about.get(field.name, '')} |" if about else ""
            yield f"| `{field.name}` | {_code(str(field.type))} | {_default(field)} |{meaning}"


def _default(field: Field[Any]) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return ""
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return _code(f"{type(default).__name__}()" if is_dataclass(default) else repr(default))


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _signature(name: str, function: Any) -> str:
    """As in the source, `self` left out; an argument a line where they do not fit one."""
    signature = inspect.signature(function)
    parts: list[str] = []
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        if each.name != "self":
            parts.append(_parameter(each))
    result = f" -> {signature.return_annotation}"
    line = f"{name}({', '.join(parts)}){result}"
    return line if len(line) <= _WIDTH else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def _parameter(parameter: inspect.Parameter) -> str:
    stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}: {parameter.annotation}{default}"


def _doc(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "")


def _block(text: str) -> str:
    return f"```text\n{text}\n```\n"
