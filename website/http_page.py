"""docs/http.md, made from the server's OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sordino.library.library import Library
from sordino.server.app import api
from sordino.server.metrics import ServerMetrics
from sordino.server.prompts import ServedPrompts
from sordino.server.serving import Idle, ServerLimits

_Schema = Mapping[str, Any]
_HEAD = """# HTTP

This page is made from the server's OpenAPI document by `make docs`; do not edit it. A running server sends the document at
`/openapi.json`.

What the fields do, who may connect, and what is refused: [serving.md](serving.md). A field may be left out unless it is required;
`null` is the same as leaving it out. `/api/latest/...` is the same as `/api/v1/...`.

An error is `{"error": {"message", "type", "param", "code"}}`, as OpenAI's. Under `/api/` it is `{"detail": {FIELD: [MESSAGE]}}`
with status 422, or `{"detail": {"msg", "type"}}`.
"""


def http_reference() -> str:
    """The whole page: the routes by whose API they are, then the bodies that several of them share."""
    idle = Idle(ServedPrompts(None, Library([Path("library")])), ServerMetrics(), ServerLimits())
    document = api(idle).openapi()
    schemas: dict[str, _Schema] = document["components"]["schemas"]
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            (group,) = operation["tags"]
            groups.setdefault(group, []).extend(_operation(f"{method.upper()} {path}", operation, schemas))
    parts = [_HEAD]
    for group, lines in groups.items():
        parts += [f"## {group[0].upper()}{group[1:]}\n", *lines]
    shared = [name for name in schemas if not name.startswith("Body_") and "ValidationError" not in name]
    parts.append("## Bodies\n")
    for name in shared:
        parts += [f"### {name}\n", *_described(schemas[name]), *_fields(schemas[name])]
    return "\n".join(parts)


def _operation(name: str, operation: _Schema, schemas: Mapping[str, _Schema]) -> Iterator[str]:
    yield f"### `{name}`\n"
    yield from _described(operation)
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        named = schema.get("$ref", "").rpartition("/")[2]
        if named.startswith("Body_"):
            schema = schemas[named]
        if named and not named.startswith("Body_"):
            yield f"Body, `{kind}`: {_link(named)}.\n"
        elif "properties" in schema:
            yield f"Body, `{kind}`:\n"
            yield from _fields(schema)
        else:
            yield f"Body, `{kind}`: {_type(schema)}.\n"


def _described(documented: _Schema) -> Iterator[str]:
    if said := documented.get("description"):
        yield f"{said.replace('<', '&lt;')}\n"


def _fields(schema: _Schema) -> Iterator[str]:
    yield "| field | type | default |"
    yield "|---|---|---|"
    for name, field in schema["properties"].items():
        default = "required" if name in schema.get("required", ()) else ""
        if field.get("default") is not None:
            default = f"`{json.dumps(field['default'], ensure_ascii=False)}`"
        yield f"| `{name}` | {_type(field)} | {default} |"
    yield ""


def _type(schema: _Schema) -> str:
    """In words. `null` is not said: it is the same as leaving a field out."""
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each != {"type": "null"})
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if kind == "array":
        most = f"at most {schema['maxItems']:,}" if "maxItems" in schema else ""
        return _joined(f"list of {_type(schema.get('items', {}))}", most)
    if schema.get("contentMediaType") == "application/octet-stream":
        return "file"
    return _joined(kind, *_range(schema))


def _range(schema: _Schema) -> Iterator[str]:
    if "minimum" in schema:
        yield f"from {schema['minimum']:g}"
    if "exclusiveMinimum" in schema:
        yield f"above {schema['exclusiveMinimum']:g}"
    if "maximum" in schema:
        yield f"to {schema['maximum']:g}"
    if "maxLength" in schema:
        yield f"at most {schema['maxLength']:,} characters"


def _joined(kind: str, *more: str) -> str:
    return ", ".join([kind, *filter(None, more)])


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"
