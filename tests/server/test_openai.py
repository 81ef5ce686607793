"""OpenAI's routes, asked by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from sordino import formats
from sordino.server.foreign import NEUTRAL
from sordino.server.serving import ServerLimits
from tests.server.running import NO_JSON, TEXT, Running, plainly, running, voice
from tests.tiny_models import tiny_base
from tests.waiting import WAIT, until


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("openai"), limits=ServerLimits(max_tokens=100, n=8)) as made:
        yield made


@pytest.fixture(scope="module")
def client(live: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(live: Running, route: str, **fields: Any) -> httpx.Response:
    # As ASCII: half a surrogate pair can be said in JSON only so.
    headers = {"Content-Type": "application/json"}
    return httpx.post(f"{live.url}/v1/{route}", content=json.dumps(fields), headers=headers, timeout=30)


def fault(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["param"], error["message"]


def test_the_models_are_the_base_and_every_voice_that_fits(client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert sorted(models) == ["tiny-llama", "tiny-llama:clerk", "tiny-llama:keeper"]
    assert models["tiny-llama:keeper"].model_dump()["parent"] == "tiny-llama"
    assert client.models.retrieve("tiny-llama:clerk").id == "tiny-llama:clerk"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize("name", [None, "keeper", "clerk"])
def test_the_models_name_chooses_the_voice(live: Running, client: OpenAI, name: str | None) -> None:
    model = "tiny-llama" if name is None else f"tiny-llama:{name}"
    done = client.completions.create(model=model, prompt=TEXT, max_tokens=12, temperature=0)
    assert done.choices[0].text == plainly(live, name)
    assert done.model == model
    length = len(live.base.encode(TEXT)) + (0 if name is None else 4)
    assert done.usage is not None
    assert done.usage.prompt_tokens == length
    assert done.usage.total_tokens == length + done.usage.completion_tokens
    assert done.choices[0].finish_reason in ("length", "stop")


def test_the_field_chooses_too_and_an_empty_one_is_none(live: Running, client: OpenAI) -> None:
    def said(model: str, body: dict[str, Any]) -> str:
        done = client.completions.create(model=model, prompt=TEXT, max_tokens=12, temperature=0, extra_body=body)
        return done.choices[0].text

    assert said("tiny-llama", {"soft_prompt": "clerk"}) == plainly(live, "clerk")
    assert said("tiny-llama", {"soft_prompt": "clerk.zip"}) == plainly(live, "clerk")
    assert said("tiny-llama", {"soft_prompt": ""}) == plainly(live, None)
    assert said("tiny-llama:keeper", {"soft_prompt": "keeper"}) == plainly(live, "keeper")
    answer = post(live, "completions", model="tiny-llama:keeper", prompt=TEXT, soft_prompt="clerk")
    assert fault(answer)[:2] == (400, "soft_prompt")
    assert fault(post(live, "completions", prompt=TEXT, soft_prompt="nobody"))[:2] == (404, "soft_prompt")


def test_the_servers_default_is_not_for_openai(live: Running, client: OpenAI) -> None:
    live.serving.prompts.set_default("keeper")
    done = client.completions.create(model="tiny-llama", prompt=TEXT, max_tokens=12, temperature=0)
    live.serving.prompts.set_default(None)
    assert done.choices[0].text == plainly(live, None)


def test_a_stream_is_the_text_in_parts(live: Running, client: OpenAI) -> None:
    parts = list(
        client.completions.create(
            model="tiny-llama:keeper",
            prompt=TEXT,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(part.choices[0].text for part in parts if part.choices) == plainly(live, "keeper")
    reasons = [part.choices[0].finish_reason for part in parts if part.choices]
    assert reasons[-1] in ("length", "stop")
    assert set(reasons[:-1]) == {None}
    assert parts[-1].choices == []
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens >= 1
    assert len({part.id for part in parts}) == 1


def test_chats(live: Running, client: OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    ]
    done = client.chat.completions.create(
        model="tiny-llama:clerk", messages=messages, max_completion_tokens=9, temperature=0
    )
    rendered = live.base.chat_opening(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    )
    assert rendered.endswith("<|im_start|>assistant\n")
    expected = client.completions.create(
        model="tiny-llama:clerk", prompt=live.base.encode_markup(rendered), max_tokens=9, temperature=0
    )
    assert done.choices[0].message.content == expected.choices[0].text
    assert done.choices[0].message.role == "assistant"
    parts = list(
        client.chat.completions.create(
            model="tiny-llama:clerk", messages=messages, max_tokens=9, temperature=0, stream=True
        )
    )
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected.choices[0].text
    assert parts[-1].choices[0].finish_reason in ("length", "stop")


def test_several_at_once_have_seeds_in_a_row(live: Running, client: OpenAI) -> None:
    def texts(**more: Any) -> list[str]:
        done = client.completions.create(model="tiny-llama", prompt=TEXT, max_tokens=10, temperature=1.5, **more)
        assert [choice.index for choice in done.choices] == list(range(len(done.choices)))
        return [choice.text for choice in done.choices]

    three = texts(seed=7, n=3)
    assert three == [texts(seed=7 + i)[0] for i in range(3)]
    assert len(set(three)) > 1
    assert texts(seed=7, n=3) == three
    streamed = ["", "", ""]
    for part in client.completions.create(
        model="tiny-llama", prompt=TEXT, max_tokens=10, temperature=1.5, seed=7, n=3, stream=True
    ):
        streamed[part.choices[0].index] += part.choices[0].text
    assert streamed == three


def test_several_texts_and_ids(live: Running, client: OpenAI) -> None:
    both: Any = [TEXT, "the sea"]
    done = client.completions.create(model="tiny-llama", prompt=both, max_tokens=6, temperature=0)
    assert [choice.text for choice in done.choices] == [plainly(live, None, text, 6) for text in both]
    ids = [live.base.encode(text) for text in both]
    assert [
        c.text for c in client.completions.create(model="tiny-llama", prompt=ids, max_tokens=6, temperature=0).choices
    ] == [choice.text for choice in done.choices]


def test_stop_strings(live: Running, client: OpenAI) -> None:
    whole = plainly(live, None, max_tokens=30)
    stop = whole[3:5]
    done = client.completions.create(model="tiny-llama", prompt=TEXT, max_tokens=30, temperature=0, stop=[stop])
    assert done.choices[0].text == whole[: whole.index(stop)]
    assert done.choices[0].finish_reason == "stop"


def test_logprobs(live: Running, client: OpenAI) -> None:
    done = client.completions.create(model="tiny-llama", prompt=TEXT, max_tokens=5, temperature=0, logprobs=3)
    told = done.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 5
    # Greedy: what was said is the likeliest.
    assert all(
        value == pytest.approx(max(top.values()))
        for value, top in zip(told.token_logprobs, told.top_logprobs, strict=True)
    )
    messages: Any = [{"role": "user", "content": "Hi"}]
    chat = client.chat.completions.create(
        model="tiny-llama", messages=messages, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs
    assert content is not None
    assert content.content is not None
    assert len(content.content) == 4
    assert [len(one.top_logprobs) for one in content.content] == [2] * 4
    assert bytes(content.content[0].bytes or []).decode() == content.content[0].token


def test_a_bias_forbids_a_word(live: Running, client: OpenAI) -> None:
    word = live.base.encode(" keeper")[0]
    for bias, least in ((100, 12), (-100, 0)):
        done = client.completions.create(
            model="tiny-llama", prompt=TEXT, max_tokens=12, temperature=1, seed=1, logit_bias={str(word): bias}
        )
        assert done.choices[0].text.count(" keeper") == least


@pytest.mark.parametrize("field", sorted(NEUTRAL))
def test_fields_we_lack_are_taken_at_their_neutral_value_only(live: Running, field: str) -> None:
    ask = {"model": "tiny-llama", "prompt": "a", "max_tokens": 1}
    for value in (None, *NEUTRAL[field]):
        assert post(live, "completions", **ask, **{field: value}).status_code == 200
    for value in (12345, ["x"]):
        status, param, message = fault(post(live, "completions", **ask, **{field: value}))
        assert (status, param) == (400, field)
        assert field in message


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"nonsense": 1}, "nonsense", "unknown field"),
        ({"temperature": -1}, "temperature", "out of range"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": -0.1}, "top_p", "out of range"),
        ({"top_k": -5}, "top_k", "out of range"),
        ({"n": 0}, "n", "1 to 8"),
        ({"n": 9}, "n", "1 to 8"),
        ({"max_tokens": 0}, "max_tokens", "out of range"),
        ({"max_tokens": 101}, "max_tokens", "at most 100"),
        ({"prompt": None}, "prompt", ""),
        ({"prompt": []}, "prompt", "got none"),
        ({"prompt": [999999]}, "prompt", "token ids"),
        ({"stop": [""]}, "stop", "one character or more"),
        ({"stop": [str(one) for one in range(257)]}, "stop", "at most 256"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "-100 to 100"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "no such token"),
        ({"logprobs": 21}, "logprobs", "0 to 20"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "x: Extra inputs"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options", "False"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"temperature": 1e-310}, "temperature", "0.001 to 1000"),
        ({"logit_bias": {"01": 1}}, "logit_bias", "a token id"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "at most 1024"),
        ({"stream": True, "prompt": "word " * 300}, "prompt", "positions"),
        ({"stream": True, "logit_bias": {"99999": 1}}, "logit_bias", "no such token"),
        ({"soft_prompt": "\ud800"}, "soft_prompt", "no soft prompt"),
        ({"model": "tiny-llama:\ud800"}, "model", "no soft prompt"),
        ({"model": "\ud800"}, "model", "no such model"),
        ({"presence_penalty": 3}, "presence_penalty", "-2 to 2"),
        ({"soft_prompt": 5}, "soft_prompt", "string"),
        ({"soft_prompt": "keepr"}, "soft_prompt", "did you mean keeper"),
        ({"soft_prompt": "wide"}, "soft_prompt", "33 wide"),
        ({"soft_prompt": "broken"}, "soft_prompt", "broken.zip"),
        ({"soft_prompt": "../keeper"}, "soft_prompt", "no soft prompt"),
        ({"model": "gpt-4"}, "model", "no such model"),
        ({"model": "tiny-llama:keepr"}, "model", "did you mean keeper"),
        ({"prompt": "word " * 300}, "prompt", "positions"),
        ({"best_of": True}, "best_of", "not implemented"),
        ({"echo": 0}, "echo", "valid boolean"),
        ({"prompt": ["a"] * 9}, "prompt", "at most 8"),
        ({"prompt": ["a"] * 3, "n": 3}, "n", "at most 8"),
    ],
)
def test_every_wrong_field_is_named(live: Running, fields: dict[str, Any], param: str, said: str) -> None:
    status, named, message = fault(post(live, "completions", **{"model": "tiny-llama", "prompt": "a", **fields}))
    assert status in (400, 404)
    assert (named, said in message) == (param, True), message
    # Who asks by HTTP has fields, and no flags of a command.
    assert not message.startswith("--")


def test_wrong_chats_are_named(live: Running) -> None:
    for fields, param in (
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 3}, "top_logprobs"),
        (
            {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "max_completion_tokens": 3},
            "max_completion_tokens",
        ),
        ({"messages": [{"role": "user", "content": "half \ud800"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}], "stream": True}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 300}], "stream": True}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 101}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ):
        assert fault(post(live, "chat/completions", model="tiny-llama", **fields))[:2] == (400, param), fields


def test_what_is_no_request(live: Running) -> None:
    half = b'{"model": "tiny-llama", "prompt": "half \\ud800"}'
    answer = httpx.post(f"{live.url}/v1/completions", content=half, headers={"content-type": "application/json"})
    assert fault(answer)[:2] == (400, "prompt")
    assert (
        fault(httpx.post(f"{live.url}/v1/completions", content=b"{", headers={"content-type": "application/json"}))[0]
        == 400
    )
    for body in NO_JSON:
        answer = httpx.post(f"{live.url}/v1/completions", content=body, headers={"content-type": "application/json"})
        assert fault(answer) == (400, None, "the body is not JSON")
    assert fault(httpx.get(f"{live.url}/v1/nothing"))[0] == 404
    assert fault(httpx.get(f"{live.url}/v1/completions"))[0] == 405


def test_a_context_overflow_has_the_numbers(live: Running, client: OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match=r"at most 256 positions, got 4 in front \+ \d+ text \+ 100 new"
    ) as caught:
        client.completions.create(model="tiny-llama:keeper", prompt="the " * 200, max_tokens=100)
    assert caught.value.code == "context_length_exceeded"


def test_a_client_that_leaves_frees_its_rows(live: Running, client: OpenAI) -> None:
    bias = {str(word): -100 for word in live.base.stop_ids}
    before = live.left
    stream = client.completions.create(
        model="tiny-llama", prompt=TEXT, max_tokens=100, stream=True, n=3, temperature=1, logit_bias=bias
    )
    next(iter(stream))
    stream.close()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{live.url}/v1/completions",
            json={"model": "tiny-llama", "prompt": [TEXT] * 8, "max_tokens": 100, "logit_bias": bias},
            timeout=httpx.Timeout(WAIT, read=0.05),
        )
    until(lambda: live.left == before + 3 + 8 and live.serving.backend.counts() == (0, 0), "rows are left")


def test_a_file_that_is_replaced_takes_effect_on_the_next_request(tmp_path: Path) -> None:
    with running(tmp_path) as live:
        ask: dict[str, Any] = {"model": "tiny-llama:keeper", "prompt": TEXT, "max_tokens": 12, "temperature": 0}
        before = post(live, "completions", **ask).json()["choices"][0]["text"]
        assert before == plainly(live, "keeper")
        formats.write(voice(live.base, 99), live.folder / "keeper.zip", force=True)
        after = post(live, "completions", **ask).json()["choices"][0]["text"]
        assert after == plainly(live, "keeper") != before


def test_a_request_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(seconds=0.0)) as live:
        answer = post(live, "completions", model="tiny-llama", prompt=TEXT, max_tokens=50)
        assert answer.status_code == 503
        assert "took too long" in answer.text


def test_a_text_counts_once_for_all_its_continuations(live: Running, client: OpenAI) -> None:
    one, three = (
        client.completions.create(model="tiny-llama:keeper", prompt=TEXT, max_tokens=2, n=n, seed=1).usage
        for n in (1, 3)
    )
    assert one is not None
    assert three is not None
    assert one.prompt_tokens == three.prompt_tokens == len(live.base.encode(TEXT)) + 4
    assert three.completion_tokens > one.completion_tokens


def test_a_model_without_a_template_refuses_chats(tmp_path: Path) -> None:
    base = tiny_base("gpt2")
    base.tokenizer.chat_template = None
    with running(tmp_path, base) as live:
        answer = post(live, "chat/completions", model=base.name, messages=[{"role": "user", "content": "a"}])
        assert fault(answer)[:2] == (400, "messages")
        assert "no chat template" in answer.text
