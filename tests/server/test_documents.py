"""docs/serving.md names every endpoint and every field that means nothing here, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from sordino.server.app import api
from sordino.server.foreign import ALIASES, NEUTRAL, UNUSED
from tests.server.ignored_fields import IGNORED, IGNORED_IN_STREAMS
from tests.server.running import running

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_every_endpoint_is_documented_and_every_documented_one_is_there(tmp_path: Path) -> None:
    with running(tmp_path) as live:
        routes = api(live.serving).openapi()["paths"]
    there = {
        (method.upper(), re.sub(r":\w+}", "}", path)) for path, operations in routes.items() for method in operations
    }
    told = set(re.findall(r"`(GET|POST|PUT|DELETE) (/[^`]*)`", PAGE)) - {("GET", "/openapi.json")}
    assert told == there


def test_every_field_without_a_meaning_is_documented() -> None:
    fields = PAGE[PAGE.index("## Fields") :]
    assert [
        name for name in (*NEUTRAL, *UNUSED, *ALIASES, *IGNORED, *IGNORED_IN_STREAMS) if f"`{name}`" not in fields
    ] == []
