"""What other programs' clients send. Replays: the bodies in transcripts/ are sent by this test, not by those programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIStatusError, OpenAI

from sordino.engine.sampling import Sampling
from sordino.server.chat_fields import ChatRequest
from sordino.server.foreign import ALIASES, LABELS, NEUTRAL, UNUSED, order_of, texts_in
from sordino.server.openai_fields import CompletionRequest
from sordino.server.serving import ServerLimits
from tests.server.ignored_fields import IGNORED
from tests.server.running import TEXT, Running, plainly, post, running

TRANSCRIPTS = Path(__file__).parent / "transcripts"
SILLYTAVERN = json.loads((TRANSCRIPTS / "sillytavern_1.19.json").read_text())
LITE = json.loads((TRANSCRIPTS / "kobold_lite.json").read_text())["instruct"]
GREEDY = {"temperature": 0, "rep_pen": 1, "max_length": 10}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("clients"), limits=ServerLimits(max_tokens=100, n=8)) as made:
        yield made


@pytest.fixture
def default(live: Running) -> Iterator[None]:
    live.serving.prompts.set_default("keeper")
    yield
    live.serving.prompts.set_default(None)


def said(live: Running, **body: Any) -> str:
    answer = post(live, "/v1/completions", **{"prompt": TEXT, "max_tokens": 12, **body})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def written(live: Running, **body: Any) -> str:
    answer = post(live, "/api/v1/generate", **{"prompt": TEXT, **GREEDY, **body})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["results"][0]["text"])


# SillyTavern -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["koboldcpp", "ooba", "vllm", "aphrodite"])
def test_replay_of_sillytaverns_connections(live: Running, default: None, kind: str) -> None:
    body = SILLYTAVERN[kind]
    greedy = {**body, "temperature": 0} | {name: 1 for name in ALIASES if "penalty" in ALIASES[name] and name in body}
    answer = post(live, "/v1/completions", **{**greedy, "repetition_penalty": 1})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "tiny-llama:keeper"
    assert answer.json()["choices"][0]["text"] == plainly(live, "keeper")
    # As it was sent, and as a stream.
    assert post(live, "/v1/completions", **body).status_code == 200
    with httpx.stream("POST", f"{live.url}/v1/completions", json={**body, "stream": True}, timeout=30) as stream:
        assert [line for line in stream.iter_lines() if line][-1] == "data: [DONE]"


def test_a_request_without_a_model_gets_the_default_and_an_empty_soft_prompt_none(live: Running, default: None) -> None:
    for model in ({}, {"model": ""}, {"model": None}):
        assert said(live, temperature=0, **model) == plainly(live, "keeper")
    assert said(live, temperature=0, soft_prompt="") == plainly(live, None)
    assert said(live, temperature=0, soft_prompt="clerk") == plainly(live, "clerk")
    assert said(live, temperature=0, model="tiny-llama") == plainly(live, None)
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    assert post(live, "/v1/chat/completions", **chat).json()["model"] == "tiny-llama:keeper"


# Other names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({"max_new_tokens": 5}, {"max_tokens": 5}),
        ({"n_predict": 5, "num_predict": 5}, {"max_tokens": 5}),
        ({"typical": 0.5}, {"typical": 0.5}),
        ({"rep_pen": 1.8}, {"repetition_penalty": 1.8}),
        ({"repeat_penalty": 1.8, "repeat_last_n": 4}, {"repetition_penalty": 1.8, "repetition_range": 4}),
        ({"repeat_penalty": 1.8, "repeat_last_n": -1}, {"repetition_penalty": 1.8}),
        ({"stopping_strings": ["e"]}, {"stop": ("e",)}),
        ({"do_sample": False}, {"temperature": 0}),
        ({"temperature_last": True, "top_p": 0.5}, {"order": (6, 0, 1, 3, 4, 2, 5), "top_p": 0.5}),
        ({"sampler_order": [6, 0, 1, 2, 3, 4, 5], "top_k": 4}, {"order": (6, 0, 1, 2, 3, 4, 5), "top_k": 4}),
        ({"sampler_priority": ["min_p", "top_k", "temperature"], "top_k": 4}, {"order": (0, 5, 6, 1, 3, 4, 2), "top_k": 4}),
        ({"dry_multiplier": 2, "dry_allowed_length": 1}, {"dry_multiplier": 2, "dry_allowed_length": 1}),
        ({"dry_multiplier": 2, "dry_penalty_last_n": 3, "dry_sequence_breakers": '["x"]'},
         {"dry_multiplier": 2, "dry_range": 3, "dry_breakers": ("x",)}),
        ({"xtc_probability": 1, "xtc_threshold": 0.001}, {"xtc_probability": 1, "xtc_threshold": 0.001}),
        ({"dynatemp_range": 1, "dynatemp_exponent": 2}, {"dynatemp_range": 1, "dynatemp_exponent": 2}),
        ({"dynatemp_min": 0.5, "dynatemp_max": 2.5}, {"temperature": 1.5, "dynatemp_range": 1.0}),
        ({"dynatemp_low": 0.5, "dynatemp_high": 2.5, "dynatemp_range": 1}, {"temperature": 1.5, "dynatemp_range": 1.0}),
        ({"smoothing_factor": 0.4, "smoothing_curve": 2}, {"smoothing_factor": 0.4, "smoothing_curve": 2}),
        ({"custom_token_bans": "5, 6"}, {"banned": ((5,), (6,))}),
        ({"custom_token_bans": [5, 6]}, {"banned": ((5,), (6,))}),
        ({"ban_eos_token": True, "ignore_eos": True}, {"end": "forbid"}),
        ({"ignore_eos": True}, {"end": "ignore"}),
        ({"min_length": 12}, {"min_tokens": 12}),
        # SillyTavern's preset Deterministic, and a group chat of many.
        ({"top_p": 0, "typical": 0, "tfs": 0}, {"top_k": 1}),
        ({"stop": [f"\nMember {one}:" for one in range(40)] + ["e"]}, {"stop": ("e",)}),
    ],
)  # fmt: skip
def test_what_others_call_otherwise_works(live: Running, fields: dict[str, Any], own: dict[str, Any]) -> None:
    ask = {"prompt": TEXT, "seed": 1, "temperature": 1.3, **fields}
    if not any(ALIASES.get(name) == "max_tokens" for name in fields):
        ask["max_tokens"] = 12
    answer = post(live, "/v1/completions", **ask)
    assert answer.status_code == 200, answer.text
    expected = plainly(live, None, **{"temperature": 1.3, "top_p": 1.0, **own})
    assert answer.json()["choices"][0]["text"] == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"stopping_strings": 5}, "stopping_strings"),
        ({"rep_pen": "x"}, "rep_pen"),
        ({"dry_multiplier": 1, "dry_base": 0.1}, "dry_base"),
        ({"dry_multiplier": 1, "dry_penalty_last_n": -5}, "dry_penalty_last_n"),
        ({"dry_multiplier": 1, "dry_sequence_breakers": "5"}, "dry_sequence_breakers"),
        ({"sampler_order": [0, 1]}, "sampler_order"),
        ({"repetition_range": 10**400}, "repetition_range"),
        ({"min_tokens": 10**400}, "min_tokens"),
        ({"banned_strings": ["a" * 501]}, "banned_strings"),
        ({"custom_token_bans": "keeper"}, "custom_token_bans"),
        ({"custom_token_bans": [99999]}, "custom_token_bans"),
        ({"xtc_probability": 2}, "xtc_probability"),
        ({"mirostat_mode": 2}, "mirostat_mode"),
        ({"grammar_string": "root ::= x"}, "grammar_string"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
    ],
)
def test_what_would_change_the_text_is_refused_by_name(live: Running, fields: dict[str, Any], param: str) -> None:
    answer = post(live, "/v1/completions", **{"prompt": TEXT, "max_tokens": 3, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_the_table_has_each_field_once_and_none_that_is_implemented(live: Running) -> None:
    implemented = set(CompletionRequest.model_fields) | set(ChatRequest.model_fields)
    assert not set(NEUTRAL) & set(CompletionRequest.model_fields)
    assert not (set(UNUSED) | set(ALIASES)) & implemented
    assert not (set(NEUTRAL) - LABELS) & set(UNUSED)
    assert not set(ALIASES) & (set(NEUTRAL) | set(UNUSED))
    assert set(ALIASES.values()) <= implemented
    assert said(live, temperature=0, **dict.fromkeys(UNUSED, "anything")) == plainly(live, None)


def test_orders_and_lists_of_texts() -> None:
    assert order_of(None, None, temperature_last=False) == Sampling.order
    assert order_of([0, 1, 2, 3, 4, 5], None, temperature_last=True) == (6, 0, 1, 2, 3, 4, 5)
    assert texts_in('["\\n", ":"]') == ("\n", ":")
    assert texts_in("a,b") == ("a", "b")
    assert texts_in("[" * 100_000) == ("[" * 100_000,)
    assert texts_in(["", "x"]) == ("x",)
    for wrong in ("5", "{}", '[1, "a"]', '"ab"'):
        with pytest.raises(ValueError, match="a list of texts"):
            texts_in(wrong)


def test_a_wrong_model_is_told_what_is_near(live: Running) -> None:
    answer = post(live, "/v1/completions", model="tiny-lama:keeper", prompt=TEXT)
    assert (answer.status_code, "did you mean tiny-llama:keeper" in answer.text) == (404, True)


# KoboldAI Lite -----------------------------------------------------------------------------------------------------------


def test_replay_of_lites_instruct_mode_is_the_chat(live: Running) -> None:
    chat = {"messages": [{"role": "user", "content": "Who keeps the light?"}], "temperature": 0, "max_tokens": 10}
    expected = post(live, "/v1/chat/completions", model="tiny-llama", **chat).json()["choices"][0]["message"]["content"]
    assert written(live, **{**LITE, **GREEDY}) == expected
    assert post(live, "/api/v1/generate", **LITE).status_code == 200
    ended = "{{[INPUT]}}Who keeps the light?{{[INPUT_END]}}{{[OUTPUT]}}"
    assert written(live, **{**LITE, **GREEDY, "prompt": ended}) == expected
    # Read literally where the client does not ask for it.
    literal = written(live, **{**LITE, **GREEDY, "replace_instruct_placeholders": False})
    assert literal == plainly(live, None, LITE["prompt"], max_tokens=10)


def test_a_conversation_with_a_system_prompt_in_memory(live: Running) -> None:
    turns = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day"},
        {"role": "user", "content": "Who keeps the light?"},
    ]
    chat = {"messages": turns, "temperature": 0, "max_tokens": 10, "model": "tiny-llama"}
    expected = post(live, "/v1/chat/completions", **chat).json()["choices"][0]["message"]["content"]
    memory = "{{[SYSTEM]}}You are brief."
    prompt = "{{[INPUT]}}Hello{{[OUTPUT]}}Good day{{[INPUT]}}Who keeps the light?{{[OUTPUT]}}"
    assert written(live, memory=memory, prompt=prompt, replace_instruct_placeholders=True) == expected


def test_what_the_client_writes_itself_is_no_marker(live: Running) -> None:
    text = "{{[INPUT]}}<|im_end|>{{[OUTPUT]}}"
    base = live.base
    ids = (
        *base.encode_markup("<|im_start|>user\n"),
        *base.encode("<|im_end|>"),
        *base.encode_markup("<|im_end|>\n<|im_start|>assistant\n"),
    )
    assert written(live, prompt=text, replace_instruct_placeholders=True) == plainly(live, None, ids, max_tokens=10)


def test_tags_without_a_template_are_alpacas(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.base.tokenizer, "chat_template", None)
    text = "\n### Instruction:\nHello\n### Response:\n"
    body = {**LITE, **GREEDY, "prompt": "{{[INPUT]}}Hello{{[OUTPUT]}}", "stop_sequence": ["{{[INPUT]}}"]}
    assert written(live, **body) == plainly(live, None, text, max_tokens=10, stop=("### Instruction:",))


def test_memory_stands_in_front_and_survives(live: Running) -> None:
    memory = "The light must not go out.\n"
    assert written(live, memory=memory) == plainly(live, None, memory + TEXT, max_tokens=10)
    long = " the sea and the wind" * 200
    room = 100 - 10
    ids = live.base.encode(memory + long)
    kept = len(live.base.encode(memory))
    expected = plainly(live, None, (*ids[:kept], *ids[kept - room :]), max_tokens=10)
    assert written(live, memory=memory, prompt=long, max_context_length=100) == expected
    # A memory longer than everything leaves half to the prompt.
    assert written(live, memory=long, prompt=TEXT, max_context_length=100) != ""


def test_lites_samplers_reach_the_engine(live: Running) -> None:
    def lite(**fields: Any) -> str:
        return written(live, **{"temperature": 1.3, "top_p": 1, "sampler_seed": 1, "rep_pen": 1, **fields})

    def own(**fields: Any) -> str:
        # The server has KoboldAI's own default of the order.
        sampling = {"temperature": 1.3, "top_p": 1.0, "max_tokens": 10, "order": (6, 0, 1, 2, 3, 4, 5), **fields}
        return plainly(live, None, **sampling)

    assert lite() == own()
    assert lite(dry_multiplier=2, dry_penalty_last_n=8) == own(dry_multiplier=2, dry_range=8)
    assert lite(xtc_probability=1, xtc_threshold=0.001) == own(xtc_probability=1, xtc_threshold=0.001) != own()
    assert lite(dynatemp_range=1) == own(dynatemp_range=1) != own()
    assert lite(smoothing_factor=0.5) == own(smoothing_factor=0.5) != own()
    assert lite(presence_penalty=2) == own(presence_penalty=2)
    assert lite(logit_bias={"40": 50}) == own(logit_bias=((40, 50.0),)) != own()
    assert lite(bypass_eos=True) == own(end="ignore")
    assert lite(use_default_badwordsids=True) == own(end="forbid")
    assert lite(min_length=10) == own(min_tokens=10)
    assert lite(mirostat=2, mirostat_tau=3, grammar="x") == own()
    greedy = plainly(live, None, max_tokens=10)
    word = greedy.split()[0]
    assert word not in written(live, banned_tokens=[word], max_length=4).split()
    for fields, named in (({"logit_bias": {"99999": 1}}, "logit_bias"), ({"dry_multiplier": -1}, "dry_multiplier")):
        answer = post(live, "/api/v1/generate", prompt=TEXT, **fields)
        assert (answer.status_code, list(answer.json()["detail"])) == (422, [named])


# KoboldCpp ---------------------------------------------------------------------------------------------------------------


def test_tokens_there_and_back(live: Running) -> None:
    ids = live.base.encode(TEXT)
    assert post(live, "/api/extra/tokenize", prompt=TEXT).json() == {"value": len(ids), "ids": ids}
    assert post(live, "/api/extra/detokenize", ids=ids).json() == {"result": TEXT, "success": True}
    answer = post(live, "/api/extra/detokenize", ids=[10**6])
    assert (answer.status_code, list(answer.json()["detail"])) == (422, ["ids"])


def test_sillytavern_counts_tokens_for_each_connection(live: Running) -> None:
    ids = live.base.encode(TEXT)
    told = {"count": len(ids), "tokens": ids, "max_model_len": 256}
    for path in ("/tokenize", "/v1/tokenize"):
        assert post(live, path, model="", prompt=TEXT).json() == told
    assert post(live, "/v1/internal/encode", text=TEXT).json() == {"length": len(ids), "tokens": ids}
    assert httpx.get(f"{live.url}/v1/internal/model/info").json()["model_name"] == "tiny-llama"
    assert post(live, "/tokenize", text=TEXT).json()["error"]["param"] == "prompt"


def test_log_probabilities_of_the_last_generation(live: Running) -> None:
    text = written(live)
    assert httpx.get(f"{live.url}/api/extra/last_logprobs").json() == {"logprobs": None}
    assert written(live, logprobs=True, genkey="mine") == text
    found = post(live, "/api/extra/last_logprobs", genkey="mine").json()["logprobs"]
    # Half a character at the end is no text.
    assert "".join(found["tokens"]).startswith(text)
    assert [len(one["top_logprobs"]) for one in found["content"]] == [5] * len(found["tokens"])
    assert found["token_logprobs"] == [max(top.values()) for top in found["top_logprobs"]]
    assert post(live, "/api/extra/last_logprobs", genkey="another").json() == {"logprobs": None}


def test_the_last_seed_is_a_number_that_javascript_has(live: Running) -> None:
    for _ in range(3):
        written(live)
        seed = httpx.get(f"{live.url}/api/extra/perf").json()["last_seed"]
        assert 0 <= seed < 2**53
        assert written(live, temperature=1, sampler_seed=seed) == written(live, temperature=1, sampler_seed=seed)


def test_what_is_not_here_is_empty_and_quiet(live: Running) -> None:
    for path, empty in (("/api/extra/preloadstory", {}), ("/sdapi/v1/sd-models", []), ("/sdapi/v1/options", {})):
        answer = httpx.get(f"{live.url}{path}")
        assert (answer.status_code, answer.json()) == (200, empty)


def test_ignored_fields_of_koboldai_change_nothing(live: Running) -> None:
    assert written(live, **dict.fromkeys(IGNORED, "anything")) == plainly(live, None, max_tokens=10)


# OpenAI's and vLLM's -----------------------------------------------------------------------------------------------------

CHAT = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}


def chatted(live: Running, **fields: Any) -> httpx.Response:
    """By OpenAI's own client, which does not know every field."""
    other = {name: fields.pop(name) for name in ("chat_template_kwargs",) if name in fields}
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        try:
            raw = client.chat.completions.with_raw_response
            return raw.create(**{**CHAT, **fields}, extra_body=other).http_response
        except APIStatusError as error:
            return error.response


def test_a_text_behind_its_end_has_exactly_the_tokens_asked_for(live: Running) -> None:
    ends = {str(token): 30 for token in live.base.stop_ids}
    ask = {"model": "tiny-llama", "prompt": TEXT, "max_tokens": 7, "logit_bias": ends}
    assert post(live, "/v1/completions", **ask, seed=1).json()["usage"]["completion_tokens"] < 7
    assert post(live, "/v1/completions", **ask, seed=1, ignore_eos=True).json()["usage"]["completion_tokens"] == 7


def test_usage_comes_with_every_chunk(live: Running) -> None:
    usage = {"include_usage": True, "continuous_usage_stats": True}
    ask = {"model": "tiny-llama:keeper", "prompt": TEXT, "max_tokens": 5, "temperature": 0, "n": 2, "ignore_eos": True}
    with httpx.stream(
        "POST", f"{live.url}/v1/completions", json={**ask, "stream": True, "stream_options": usage}, timeout=30
    ) as answer:
        parts = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    whole = post(live, "/v1/completions", **ask).json()["usage"]
    assert [part["usage"]["prompt_tokens"] for part in parts] == [whole["prompt_tokens"]] * len(parts)
    counts = [part["usage"]["completion_tokens"] for part in parts]
    assert counts == sorted(counts)
    assert parts[-1]["usage"] == whole


def test_tools_are_taken_where_none_is_to_be_called(live: Running) -> None:
    tool = {"type": "function", "function": {"name": "light", "parameters": {}}}
    plain = chatted(live).json()["choices"]
    assert chatted(live, tools=[tool], tool_choice="none").json()["choices"] == plain
    assert chatted(live, tools=[], tool_choice="auto").json()["choices"] == plain
    for fields, named in (
        ({"tools": [tool]}, "tools"),
        ({"tools": [tool], "tool_choice": "auto"}, "tools"),
        ({"tools": [tool], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ):
        answer = chatted(live, **fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, named)


def test_a_tools_answer_goes_where_the_template_has_a_place(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [*CHAT["messages"], {"role": "tool", "content": "It burns.", "tool_call_id": "1"}]
    assert chatted(live, messages=told).status_code == 200
    call = {"id": "1", "type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}
    called = [CHAT["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}, told[1]]
    assert chatted(live, messages=called).json()["error"]["param"] == "messages"
    template = live.base.tokenizer.chat_template
    shown = "{% if message.tool_calls %}{{ message.tool_calls[0].function.arguments.on }}{% endif %}"
    shows = template.replace("{% endfor %}", shown + "{% endfor %}", 1)
    monkeypatch.setattr(live.base.tokenizer, "chat_template", shows)
    assert chatted(live, messages=called).status_code == 200
    silent = template.replace("message['content']", "(message['content'] if message['role'] == 'user' else '')")
    monkeypatch.setattr(live.base.tokenizer, "chat_template", silent)
    assert chatted(live, messages=told).json()["error"]["param"] == "messages"


def test_variables_of_the_template(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for fields, named in (
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ):
        answer = chatted(live, **fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, named)
    plain = chatted(live, reasoning_effort="none", chat_template_kwargs={}).json()["choices"]
    thinking = "{% if enable_thinking is defined %}think{% endif %}{{ reasoning_effort }}"
    monkeypatch.setattr(live.base.tokenizer, "chat_template", live.base.tokenizer.chat_template + thinking)
    expected = plainly(
        live,
        None,
        (*live.base.encode_markup("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"),
         *live.base.encode("thinkhigh")),
        max_tokens=4,
    )  # fmt: skip
    found = chatted(live, chat_template_kwargs={"enable_thinking": True}, reasoning_effort="high")
    assert found.json()["choices"][0]["message"]["content"] == expected
    assert plain == chatted(live).json()["choices"]


def test_a_request_has_an_id(live: Running) -> None:
    mine = httpx.get(f"{live.url}/v1/models", headers={"X-Request-Id": "abc-1"})
    assert mine.headers["x-request-id"] == "abc-1"
    random = [httpx.get(f"{live.url}/nothing", headers={"X-Request-Id": "a b"}).headers["x-request-id"] for _ in "12"]
    assert len(set(random)) == 2
    assert "a b" not in random
