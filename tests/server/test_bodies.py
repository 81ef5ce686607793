"""Bodies with very many unknown fields: an error each took seconds in which no other request was answered."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from sordino.server.bodies import StrictBody
from sordino.server.page.stories import Story
from sordino.server.page.training_settings import RunRequest
from tests.server.running import running

MANY = {f"x{number}": 0 for number in range(100_000)}


class Small(StrictBody):
    known: int = 0


def test_an_unknown_field_is_named_and_very_many_are_one_error() -> None:
    assert Small.model_validate({"known": 1}).known == 1
    with pytest.raises(ValidationError, match="other"):
        Small.model_validate({"other": 1})
    for body, given in ((Small, MANY), (Story, MANY), (RunRequest, {"settings": MANY})):
        with pytest.raises(ValidationError, match="at most 256 fields were expected") as found:
            body.model_validate(given)
        assert found.value.error_count() == 1


def test_the_pages_routes_refuse_them_at_once(tmp_path: Path) -> None:
    with running(tmp_path, with_page=True) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        client.get("/health")
        requests = [
            ("POST", "/ui/ask", {"do": "write", "id": 1, **MANY}),
            ("PUT", "/ui/stories/a", MANY),
            ("POST", "/v1/soft_prompt/load", MANY),
            ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a", **MANY}]}),
        ]
        for method, path, body in requests:
            answer = client.request(method, path, json=body)
            assert "at most 256 fields" in answer.text, (path, answer.text[:200])
            assert len(answer.content) < 1000
