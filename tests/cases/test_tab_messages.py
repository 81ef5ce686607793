"""Ids of a page's messages that no JSON can repeat: after half a surrogate pair a tab was answered no more, and NaN came back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from tests.server.running import Running, running

IDS = ["NaN", "Infinity", "-1e999", '"\\ud800"', '{"a": "\\udfff"}', "[NaN]", "true", "1.5", "null", '"1"']


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("tab"), with_page=True) as made:
        yield made


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("number", IDS)
def test_the_tab_is_told_and_its_next_message_is_answered(live: Running, number: str) -> None:
    with connect(f"{live.url.replace('http', 'ws')}/ui/live", close_timeout=1) as tab:

        def answer() -> dict[str, object]:
            while True:
                found: dict[str, object] = json.loads(tab.recv(timeout=20), parse_constant=refuse_constant)
                if found["is"] in ("error", "measured"):
                    return found

        tab.send(f'{{"do": "measure", "id": {number}, "text": {{"story": "a"}}}}')
        found = answer()
        assert found["id"] is None
        assert str(found["message"]).startswith("id: an unused number was expected")
        tab.send('{"do": "measure", "id": 77, "text": {"story": "a"}}')
        assert answer()["id"] == 77


@pytest.mark.parametrize("number", IDS)
def test_a_message_that_is_posted_is_answered_too(live: Running, number: str) -> None:
    body = f'{{"do": "measure", "id": {number}, "text": {{"story": "a"}}}}'
    answered = httpx.post(f"{live.url}/ui/ask", content=body, headers={"Content-Type": "application/json"})
    for line in answered.text.splitlines():
        json.loads(line, parse_constant=refuse_constant)
