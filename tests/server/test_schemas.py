"""`response_format` on both of OpenAI's routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from sordino import formats
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata
from tests.server.running import Running, running, voice

jsonschema_rs = pytest.importorskip("jsonschema_rs")

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 8},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["title", "stars"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "review", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("schemas")) as made:
        parts = (voice(made.base, 1, name="The keeper"), voice(made.base, 2, name="The clerk"))
        both = Mixture(parts, np.array([0.5, 0.5]), metadata=Metadata(name="Both", base=made.base.ref))
        formats.write_mixture(both, made.folder / "both.mix.zip")
        yield made


def post(live: Running, route: str, **body: Any) -> httpx.Response:
    given = (
        {"prompt": "A review:"} if route == "completions" else {"messages": [{"role": "user", "content": "A review"}]}
    )
    return httpx.post(f"{live.url}/v1/{route}", json={**given, "max_tokens": 120, **body}, timeout=60)


def texts(route: str, body: dict[str, Any]) -> list[str]:
    return [one["text"] if route == "completions" else one["message"]["content"] for one in body["choices"]]


@pytest.mark.parametrize("soft_prompt", ["", "keeper", "both"])
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_every_answer_matches_its_schema(live: Running, route: str, soft_prompt: str) -> None:
    valid = jsonschema_rs.validator_for(SCHEMA)
    for seed in (1, 2):
        more = {"n": 2, "seed": seed, "temperature": 1.3, "soft_prompt": soft_prompt}
        answer = post(live, route, response_format=FORMAT, **more)
        assert answer.status_code == 200, answer.text
        found = texts(route, answer.json())
        assert all(valid.is_valid(json.loads(text)) for text in found), found
        assert [one["finish_reason"] for one in answer.json()["choices"]] == ["stop", "stop"]
        assert texts(route, post(live, route, response_format=FORMAT, **more).json()) == found


def test_a_stream_matches_too(live: Running) -> None:
    body = {"prompt": "A review:", "max_tokens": 120, "seed": 3, "response_format": FORMAT, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body, timeout=60) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    text = "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])
    assert jsonschema_rs.validator_for(SCHEMA).is_valid(json.loads(text))


def test_a_json_object_is_one(live: Running) -> None:
    answer = post(live, "completions", response_format={"type": "json_object"}, max_tokens=20, seed=1)
    assert answer.json()["choices"][0]["text"].startswith("{")
    plain = [
        post(live, "completions", seed=1, max_tokens=5, **more).json()["choices"]
        for more in ({}, {"response_format": {"type": "text"}}, {"response_format": None})
    ]
    assert plain[0] == plain[1] == plain[2]


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"type": "json_schema"}, "needs json_schema"),
        ({"type": "json_object", "json_schema": FORMAT["json_schema"]}, "takes no json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}}, "strin"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {"type": "null"}}}}, "not"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "schema"),
        ({"type": "grammar"}, "json_schema"),
    ],
)
def test_what_is_no_schema_is_refused_before_a_row_is_queued(live: Running, wanted: Any, named: str) -> None:
    for route in ("completions", "chat/completions"):
        answer = post(live, route, response_format=wanted)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "response_format"), answer.text
        assert named in error["message"]
