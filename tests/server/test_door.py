"""Who answers a request at an address that two servers share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from sordino.server.door import Door, Ours


def answering(who: str) -> FastAPI:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
    async def answer(request: Request) -> dict[str, Any]:
        return {"who": who, "body": (await request.body()).decode("utf-8", "replace")}

    return app


@pytest.fixture
def client() -> Iterator[TestClient]:
    async def models(scope: Any) -> dict[str, Any]:
        return {"data": [{"id": "lamp"}, {"id": "lamp:keeper"}]}

    other = answering("other")
    other.add_middleware(Door, ours=Ours(answering("ours"), ("lamp", "org/lamp"), models))
    with TestClient(other) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "who"),
    [
        ("/v1/completions", {"model": "lamp", "prompt": "a"}, "other"),
        ("/v1/completions", {"model": "lamp:keeper", "prompt": "a"}, "ours"),
        ("/v1/completions", {"model": "org/lamp:keeper", "prompt": "a"}, "ours"),
        ("/v1/completions", {"model": "lamp", "soft_prompt": "keeper"}, "ours"),
        ("/v1/completions", {"model": "lamp", "soft_prompt": ""}, "other"),
        ("/v1/completions", {"model": "other:keeper"}, "other"),
        ("/v1/chat/completions", {"model": "lamp:keeper", "messages": []}, "ours"),
        ("/v1/responses", {"model": "lamp:keeper"}, "other"),
        ("/v1/soft_prompts", {}, "ours"),
        ("/v1/soft_prompt/load", {}, "ours"),
        ("/api/v1/generate", {}, "ours"),
    ],
)
def test_a_request_is_answered_by_who_knows_what_it_names(client: TestClient, path: str, body: Any, who: str) -> None:
    answer = client.post(path, json=body).json()
    assert answer["who"] == who
    assert answer["body"] == client.post("/v1/echo", json=body).json()["body"]


def test_the_models_are_those_of_both(client: TestClient) -> None:
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["lamp", "lamp:keeper"]


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "lamp", "prompt_embeds": "AA"}',
        '{"model": "lamp", "prompt\\u005fembeds": "AA"}',
        '{"messages": [{"content": [{"type": "prompt_embeds"}]}]}',
        '{"messages": [{"content": [{"prompt_embeds": "AA"}]}]}',
    ],
)
def test_no_tensor_comes_in_over_http(client: TestClient, body: str) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):
        refused = client.post(path, content=body, headers={"content-type": "application/json"})
        assert refused.status_code == 400
        assert "tensors are not taken over HTTP" in refused.json()["error"]["message"]


def test_what_is_no_json_is_the_others_to_refuse(client: TestClient) -> None:
    for body in (b"\xff", b"[" * 100_000, b"{"):
        sent = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert sent.json()["who"] == "other"
    assert (
        client.post("/v1/completions", content=b"text", headers={"content-type": "text/plain"}).json()["who"] == "other"
    )


def test_until_ours_is_ready_all_is_the_others() -> None:
    other = answering("other")
    other.add_middleware(Door, ours=Ours())
    with TestClient(other) as client:
        assert client.post("/api/v1/generate", json={}).json()["who"] == "other"
