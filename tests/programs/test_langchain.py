"""LangChain's OpenAI client: chat, streaming, structured output, and agents' messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from tests.programs.environment import environment, ran
from tests.server.process import started

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
from typing import Literal
import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

class Review(BaseModel):
    "A review of a book."
    genre: Literal["sea", "crime", "other"]
    stars: int = Field(ge=1, le=5)

chat = ChatOpenAI(base_url=sys.argv[1], model="smollm2:keeper", max_tokens=60, temperature=0.7, seed=1)
answer = chat.invoke([("system", "Be brief."), ("user", "Say one line about the sea.")])
pieces = [piece.content for piece in chat.stream("Say one line about the sea.")]
reviews = [
    chat.with_structured_output(given, **how).invoke("Review the book The Lighthouse.")
    for given, how in (
        (Review, {}),
        ({**Review.model_json_schema(), "additionalProperties": False}, {"method": "json_schema"}),
    )
]

def light(on: bool) -> str:
    "Switch the light."
    return "It burns."

asked, told = HumanMessage("Switch the light on."), ToolMessage("It burns.", tool_call_id="1")
called = AIMessage("", tool_calls=[{"name": "light", "args": {"on": True}, "id": "1"}])

def refused(chat, messages):
    try:
        chat.invoke(messages)
    except openai.BadRequestError as error:
        return error.param, error.message

print(json.dumps({
    "with tools": chat.bind_tools([light], tool_choice="none").invoke([asked]).content,
    "without": chat.invoke([asked]).content,
    "told": chat.invoke([asked, AIMessage("A moment."), told]).content,
    "refused": [
        refused(chat.bind_tools([light]), [asked]),
        refused(chat, [asked, called, told]),
        refused(chat.bind(reasoning_effort="high"), [asked]),
        refused(chat.bind(extra_body={"chat_template_kwargs": {"enable_thinking": True}}), [asked]),
    ],
    "answer": answer.content,
    "usage": answer.usage_metadata,
    "pieces": pieces,
    "reviews": [one.model_dump() if isinstance(one, BaseModel) else one for one in reviews],
}))
"""


@pytest.fixture(scope="module", params=["torch", "gguf"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as prompts:
        flags = ("--model", "smollm2", "--runner", request.param, "--port", "0", "--library", str(prompts), "--no-ui")
        with started(*flags, env={"XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("served"))}) as process:
            yield process.url()


def test_it_chats_streams_and_gets_what_its_schema_says(served: str, tmp_path: Path) -> None:
    python = environment("langchain")
    (tmp_path / "script.py").write_text(SCRIPT)
    found = json.loads(ran(python, tmp_path / "script.py", f"{served}/v1").splitlines()[-1])
    assert found["answer"]
    assert found["usage"]["output_tokens"] > 0
    assert len(found["pieces"]) > 2
    assert "".join(found["pieces"])
    for review in found["reviews"]:
        # Its client has checked them against the class, too.
        assert set(review) == {"genre", "stars"}
        assert review["genre"] in ("sea", "crime", "other")
        assert 1 <= review["stars"] <= 5
    assert found["with tools"] == found["without"]
    assert found["told"]
    assert [param for param, _ in found["refused"]] == [
        *("tools", "messages", "reasoning_effort", "chat_template_kwargs"),
    ]
    assert all("template" in message for _, message in found["refused"][1:])
