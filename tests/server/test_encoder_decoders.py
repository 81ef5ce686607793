"""An encoder-decoder behind the server: text in, text out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.running import Running, plainly, post, running
from tests.tiny_models import tiny_base
from tests.waiting import until

TEXT = "the keeper wrote of the sea"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("t5"), tiny_base("t5-1.1")) as made:
        yield made


def completion(live: Running, **fields: Any) -> httpx.Response:
    given = {"model": "tiny-t5-1.1:keeper", "prompt": TEXT, "temperature": 0, "max_tokens": 8, **fields}
    return post(live, "/v1/completions", **given)


def test_a_completion_is_the_output(live: Running) -> None:
    answer = completion(live, logprobs=2)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["text"] == plainly(live, "keeper", TEXT, 8)
    assert choice["logprobs"] is not None
    assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"])


def test_several_prompts_and_several_outputs(live: Running) -> None:
    one, other = (
        completion(live, model=f"tiny-t5-1.1:{name}").json()["choices"][0]["text"] for name in ("keeper", "clerk")
    )
    assert (one, other) == (plainly(live, "keeper", TEXT, 8), plainly(live, "clerk", TEXT, 8))
    several = completion(live, n=3, temperature=1, seed=5).json()["choices"]
    assert len(several) == 3
    assert completion(live, n=3, temperature=1, seed=5).json()["choices"] == several


def test_a_stream_is_the_same_text(live: Running) -> None:
    given = {"model": "tiny-t5-1.1:keeper", "prompt": TEXT, "temperature": 0, "max_tokens": 8, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=given, timeout=30) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == plainly(live, "keeper", TEXT, 8)


def test_a_client_that_leaves_frees_its_row(live: Running) -> None:
    before = live.left
    given = {"model": "tiny-t5-1.1:keeper", "prompt": TEXT, "max_tokens": 1000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=given, timeout=30) as answer:
        next(answer.iter_lines())
    until(lambda: live.left == before + 1 and live.serving.backend.counts() == (0, 0), "rows are left")


def test_koboldai(live: Running) -> None:
    answer = post(
        live,
        "/api/v1/generate",
        prompt=TEXT,
        soft_prompt="keeper.zip",
        max_length=8,
        temperature=0,
        use_default_badwordsids=False,
    )
    if answer.status_code == 422:
        post(live, "/api/v1/config/soft_prompt", value="keeper.zip")
        answer = post(live, "/api/v1/generate", prompt=TEXT, max_length=8, temperature=0)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["text"]


def test_what_is_not_possible_is_refused_with_the_reason(live: Running) -> None:
    chat = post(live, "/v1/chat/completions", model="tiny-t5-1.1", messages=[{"role": "user", "content": "Hello"}])
    assert (chat.status_code, "template" in chat.json()["error"]["message"]) == (400, True), chat.text
    echo = completion(live, echo=True, logprobs=1)
    assert echo.status_code == 400
    message = echo.json()["error"]["message"]
    assert message.startswith("echo: PyTorch does not support log probabilities of a text that is read; leave echo out")


def test_input_and_output_have_room_each(tmp_path: Path) -> None:
    with running(tmp_path / "bart", tiny_base("bart"), with_page=True) as made:
        long = "the " * 100
        read = len(made.base.encode(long))
        assert read + 100 > made.base.context_length
        # KoboldAI and the page cut what does not fit: all of it does.
        answer = post(made, "/api/v1/generate", prompt=long, max_length=100, temperature=0)
        assert answer.status_code == 200, answer.text
        measured = {"do": "measure", "id": 1, "text": {"story": long}, "soft_prompt": "keeper", "max_tokens": 100}
        said = json.loads(post(made, "/ui/ask", **measured).text)
        # With BOS, beside 4 virtual tokens and the end of the input.
        assert (said["used"], said["soft"], said["total"], said["dropped"]) == (read + 1, 4, 256, 0)
        assert json.loads(post(made, "/ui/ask", **measured | {"text": {"story": long * 3}}).text)["used"] == 256 - 4 - 1
        assert post(made, "/v1/completions", model="tiny-bart:keeper", prompt=long, max_tokens=100).status_code == 200
        answer = post(made, "/v1/completions", model="tiny-bart:keeper", prompt="the " * 200, max_tokens=1)
        assert answer.status_code == 400
