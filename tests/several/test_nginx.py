"""Two servers behind a plain nginx, with the configuration of docs/serving.md."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.server.running import left_at
from tests.several.conftest import Pair
from tests.waiting import WAIT, until

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
# Never ended by the model.
LONG = {"prompt": "a", "max_tokens": 2000, "n": 4, "seed": 3, "ignore_eos": True, "stream": True}


def model_of(url: str) -> str:
    model: str = httpx.get(f"{url}/v1/models", timeout=WAIT).json()["data"][0]["id"]
    return model


def running(pair: Pair) -> int:
    """Requests that have not ended, on both."""
    states = [httpx.get(f"{url}/health", timeout=WAIT).json() for url in pair.urls]
    return sum(state["running"] + state["waiting"] for state in states)


def events(answer: httpx.Response) -> list[dict[str, Any] | str]:
    lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(found: list[dict[str, Any] | str]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in found:
        if isinstance(event, dict):
            for choice in event["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


def test_a_stream_is_passed_on_while_it_is_written(pair: Pair, nginx: str) -> None:
    ask = {"model": model_of(nginx), **LONG}
    with httpx.stream("POST", f"{nginx}/v1/completions", json=ask, timeout=WAIT) as answer:
        lines = answer.iter_lines()
        first = json.loads(next(lines).removeprefix("data: "))
        assert "choices" in first, first
        assert running(pair) > 0, "it was kept until it was complete"


def test_many_long_streams_are_whole(pair: Pair, nginx: str) -> None:
    ask = {"model": model_of(nginx), **LONG, "n": 2, "max_tokens": 200}
    whole = httpx.post(f"{pair.urls[0]}/v1/completions", json={**ask, "stream": False}, timeout=WAIT).json()
    wanted = {choice["index"]: choice["text"] for choice in whole["choices"]}

    def stream(_: int) -> list[dict[str, Any] | str]:
        with httpx.stream("POST", f"{nginx}/v1/completions", json=ask, timeout=WAIT) as answer:
            return events(answer)

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(stream, range(16)):
            assert found[-1] == "[DONE]"
            assert text_of(found) == wanted


def test_a_client_that_leaves_ends_its_request(pair: Pair, nginx: str) -> None:
    ask = {"model": model_of(nginx), **LONG}

    def left() -> float:
        return sum(map(left_at, pair.urls))

    before = left()
    with httpx.stream("POST", f"{nginx}/v1/completions", json=ask, timeout=WAIT) as answer:
        next(answer.iter_lines())
    until(lambda: running(pair) == 0)
    until(lambda: left() > before)


def test_koboldais_clients_poll_and_end_their_own_generation(pair: Pair, nginx: str) -> None:
    """Both are asked of the server that writes: the address of a client decides which one that is."""
    ask = {"prompt": "a", "max_length": 1500, "max_context_length": 2000, "genkey": "mine", "ban_eos_token": True}
    with ThreadPoolExecutor(1) as pool:
        generating = pool.submit(httpx.post, f"{nginx}/api/v1/generate", json=ask, timeout=WAIT)

        def check() -> str:
            answer = httpx.post(f"{nginx}/api/extra/generate/check", json={"genkey": "mine"}, timeout=WAIT)
            text: str = answer.json()["results"][0]["text"]
            return text

        until(lambda: check() or generating.done())
        aborted = httpx.post(f"{nginx}/api/extra/abort", json={"genkey": "mine"}, timeout=WAIT).json()
        text = generating.result().json()["results"][0]["text"]
        assert aborted["success"] or text
    with httpx.stream("POST", f"{nginx}/api/extra/generate/stream", json=ask, timeout=WAIT) as answer:
        lines = list(answer.iter_lines())
    assert sum(line.startswith("data: ") for line in lines) > 2
    assert json.loads(lines[-2].removeprefix("data: "))["finish_reason"] in ("length", "stop")


def test_all_requests_of_a_client_reach_one_server(pair: Pair, nginx: str) -> None:
    def answered() -> list[float]:
        pages = [httpx.get(f"{url}/metrics", timeout=WAIT).text for url in pair.urls]
        lines = [[line for line in page.splitlines() if line.startswith("sordino_requests_total{")] for page in pages]
        return [sum(float(line.rpartition(" ")[2]) for line in some) for some in lines]

    # What tests before this one began is counted when it has ended.
    until(lambda: running(pair) == 0)
    before = answered()
    ask = {"model": model_of(nginx), "prompt": "a", "max_tokens": 1}
    for _ in range(6):
        assert httpx.post(f"{nginx}/v1/completions", json=ask, timeout=WAIT).status_code == 200
    grown = [after - one for after, one in zip(answered(), before, strict=True)]
    assert sorted(grown) == [0, 6]


def test_the_page_and_uploads_go_through(pair: Pair, nginx: str) -> None:
    assert "<title>Sordino</title>" in httpx.get(nginx, timeout=WAIT).text
    with connect(nginx.replace("http", "ws") + "/ui/live", open_timeout=WAIT) as socket:
        assert json.loads(socket.recv(WAIT))["is"] == "state"
    # More than nginx takes by itself.
    file = {"file": ("large.bin", b"\0" * (5 << 20))}
    answer = httpx.post(f"{nginx}/v1/soft_prompts", files=file, timeout=WAIT)
    assert "not a soft prompt file" in answer.json()["error"]["message"]
