"""SillyTavern's own server, unchanged, between a client and ours: what its users get. `make e2e` installs it.

It has no controls for soft prompts, so they are chosen as its users would: by the model's name, and by the server's default. And
its own page in a browser: each of its connection types that works with us, from its form to text on the screen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import CHROMIUM
from tests.e2e.sillytavern import NEEDED
from tests.e2e.steps import WAIT
from tests.server.running import left_at
from tests.waiting import until

pytestmark = NEEDED

REPLAYED = json.loads((Path(__file__).parents[1] / "server" / "transcripts" / "sillytavern_1.19.json").read_text())
TEXT = "The keeper wrote in the log that"
MESSAGES = [{"role": "user", "content": "Write one line about the weather."}]


def test_its_openai_connection_lists_soft_prompts_and_writes_behind_them(tavern: httpx.Client, sordino: str) -> None:
    connection = {"chat_completion_source": "custom", "custom_url": f"{sordino}/v1"}
    listed = tavern.post("/api/backends/chat-completions/status", json=connection).json()
    names = {model["id"] for model in listed["data"]}
    assert {"smollm2", "smollm2:keeper", "smollm2:port-dolor"} <= names

    def said(model: str) -> str:
        # What its page sends: every sampler it has, at its default.
        body = {
            **connection,
            "model": model,
            "messages": MESSAGES,
            "temperature": 0,
            "max_tokens": 20,
            "stream": False,
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "top_p": 1,
            "top_k": 0,
            "stop": [],
            "n": 1,
            "user_name": "User",
            "char_name": "Keeper",
            "group_names": [],
            "include_reasoning": False,
        }
        answer = tavern.post("/api/backends/chat-completions/generate", json=body)
        assert "error" not in answer.json(), answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def ours(model: str) -> str:
        body = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 20}
        answer = httpx.post(f"{sordino}/v1/chat/completions", json=body, timeout=60)
        return str(answer.json()["choices"][0]["message"]["content"])

    assert said("smollm2:keeper") == ours("smollm2:keeper")
    assert said("smollm2") == ours("smollm2")
    assert said("smollm2:keeper") != said("smollm2")


def test_its_text_completion_connection_streams(tavern: httpx.Client, sordino: str) -> None:
    body = {
        "api_type": "vllm",
        "api_server": sordino,
        "model": "smollm2:keeper",
        "prompt": TEXT,
        "stream": True,
        "max_tokens": 16,
        "temperature": 0,
        "top_p": 1,
        "min_p": 0,
        "stop": [],
        "seed": 1,
        "n": 1,
    }
    with tavern.stream("POST", "/api/backends/text-completions/generate", json=body) as answer:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    text = "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])
    plain = httpx.post(
        f"{sordino}/v1/completions",
        json={"model": "smollm2:keeper", "prompt": TEXT, "max_tokens": 16, "temperature": 0},
        timeout=60,
    )
    assert text == plain.json()["choices"][0]["text"]


def as_its_page_sends(kind: str, server: str, **fields: Any) -> dict[str, Any]:
    """What SillyTavern's page sends to its own server: the settings of its preset Default for this type of connection."""
    sent = REPLAYED[kind]
    penalties = {name: 1 for name in ("rep_pen", "repetition_penalty", "repeat_penalty") if name in sent}
    limits = {name: 16 for name in ("max_new_tokens", "max_tokens", "n_predict", "num_predict") if name in sent}
    return {
        **sent,
        **penalties,
        **limits,
        "prompt": TEXT,
        "temperature": 0,
        "api_type": kind,
        "api_server": server,
        **fields,
    }


@pytest.mark.parametrize("kind", ["koboldcpp", "ooba", "vllm", "aphrodite"])
def test_its_other_connections_write_behind_the_servers_default(tavern: httpx.Client, sordino: str, kind: str) -> None:
    connection = {"api_type": kind, "api_server": sordino}
    status = tavern.post("/api/backends/text-completions/status", json=connection).json()
    assert status["result"] == "smollm2"

    def written() -> str:
        answer = tavern.post("/api/backends/text-completions/generate", json=as_its_page_sends(kind, sordino)).json()
        assert "choices" in answer, answer
        return str(answer["choices"][0]["text"])

    def choose(file: str) -> None:
        assert httpx.put(f"{sordino}/api/v1/config/soft_prompt", json={"value": file}).status_code == 200

    direct = {"model": "smollm2:keeper", "prompt": TEXT, "max_tokens": 16, "temperature": 0}
    choose("")
    bare = written()
    choose("keeper.zip")
    behind = written()
    assert behind == httpx.post(f"{sordino}/v1/completions", json=direct, timeout=60).json()["choices"][0]["text"]
    assert behind != bare
    body = as_its_page_sends(kind, sordino, stream=True)
    with tavern.stream("POST", "/api/backends/text-completions/generate", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == behind
    choose("")


def test_its_koboldai_connection_writes_streams_and_aborts_behind_the_servers_default(
    tavern: httpx.Client, sordino: str
) -> None:
    status = tavern.post("/api/backends/kobold/status", json={"api_server": f"{sordino}/api"}).json()
    assert status["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert status["koboldCppVersion"] == "KoboldCpp"
    body: dict[str, Any] = {
        "api_server": f"{sordino}/api",
        "prompt": TEXT,
        "max_context_length": 1024,
        "max_length": 16,
        "gui_settings": False,
        "can_abort": True,
        "streaming": False,
        "temperature": 0,
        "rep_pen": 1,
        "rep_pen_range": 0,
        "rep_pen_slope": 0,
        "tfs": 1,
        "top_a": 0,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "typical": 1,
        "sampler_order": [6, 0, 1, 3, 4, 2, 5],
        "use_default_badwordsids": False,
        "mirostat": 0,
    }

    def written() -> str:
        answer = tavern.post("/api/backends/kobold/generate", json=body).json()
        assert "results" in answer, answer
        return str(answer["results"][0]["text"])

    def chosen(file: str) -> str:
        assert httpx.put(f"{sordino}/api/v1/config/soft_prompt", json={"value": file}).status_code == 200
        return written()

    bare, behind = chosen(""), chosen("keeper.zip")
    assert bare != behind
    direct = {"model": "smollm2:keeper", "prompt": TEXT, "max_tokens": 16, "temperature": 0}
    assert behind == httpx.post(f"{sordino}/v1/completions", json=direct, timeout=60).json()["choices"][0]["text"]

    with tavern.stream("POST", "/api/backends/kobold/generate", json={**body, "streaming": True}) as answer:
        pieces = [json.loads(line[6:])["token"] for line in answer.iter_lines() if line.startswith("data: ")]
    assert "".join(pieces) == behind
    assert len(pieces) > 4

    def rows() -> int:
        return int(httpx.get(f"{sordino}/health").json()["running"])

    before = left_at(sordino)
    long = {**body, "streaming": True, "max_length": 1000}
    with tavern.stream("POST", "/api/backends/kobold/generate", json=long) as answer:
        # Held: lines that nobody can read any more close the answer.
        lines = answer.iter_lines()
        next(lines)
        assert rows() == 1
    until(lambda: rows() == 0, "the row of a client that left is still there")
    assert left_at(sordino) == before + 1


# Its page in a browser ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connection:
    """One of the page's forms. kind: of text completion, or the source of chats. field: where its address goes. path: of ours."""

    api: str
    kind: str
    field: str
    button: str
    shown: str
    path: str = ""


TEXTS = ("koboldcpp", "ooba", "vllm", "aphrodite")
FIELDS = {"ooba": "textgenerationwebui"}
CONNECTIONS = [
    *(
        Connection(
            "textgenerationwebui",
            kind,
            f"#{FIELDS.get(kind, kind)}_api_url_text",
            "#api_button_textgenerationwebui",
            "smollm2",
        )
        for kind in TEXTS
    ),
    Connection("kobold", "", "#api_url_text", "#api_button", "SmolLM2-135M-Instruct", "/api"),
    Connection("openai", "custom", "#custom_api_url_text", "#api_button_openai", "Valid|Status check bypassed", "/v1"),
]


@pytest.fixture(scope="module")
def page(tavern: httpx.Client, chromium: Browser) -> Iterator[Page]:
    """The page of somebody who has just installed it, with short answers."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.goto(str(tavern.base_url))
    tab.locator(".popup:has(.onboarding) .popup-button-ok").click(timeout=WAIT)
    expect(tab.locator("#send_textarea")).to_be_visible(timeout=WAIT)
    yield tab
    context.close()


def connect(page: Page, one: Connection, server: str) -> None:
    if not page.locator("#rm_api_block").is_visible():
        page.locator("#sys-settings-button > .drawer-toggle").click()
    page.locator("#main_api").select_option(one.api)
    if one.api == "textgenerationwebui":
        page.locator("#textgen_type").select_option(one.kind)
    elif one.kind:
        page.locator("#chat_completion_source").select_option(one.kind)
    page.locator(one.field).fill(f"{server}{one.path}")
    # Its list of earlier addresses would cover the button.
    page.locator(one.field).evaluate("field => field.blur()")
    if one.kind == "custom":
        page.locator("#custom_model_id").fill("smollm2:keeper")
    page.locator(one.button).click()
    expect(page.locator("#send_textarea")).to_have_attribute(
        "placeholder", "Type a message, or /? for help", timeout=WAIT
    )
    expect(page.locator(".online_status_text:visible").first).to_contain_text(re.compile(one.shown), timeout=WAIT)
    page.locator("#sys-settings-button > .drawer-toggle").click()


def short_answers(page: Page) -> None:
    """As its sliders would: and no empty ones, which a small model likes."""
    page.evaluate(
        """const fields = {amount_gen: 16, openai_max_tokens: 16, min_length_textgenerationwebui: 8};
        for (const [id, value] of Object.entries(fields)) {
            const field = document.getElementById(id);
            field.value = value;
            field.dispatchEvent(new Event("input", {bubbles: true}));
        }
        const bans = document.getElementById("use_default_badwordsids");
        if (!bans.checked) bans.click();"""
    )


def write(page: Page) -> dict[str, Any]:
    """Send a message, wait for its answer. Returns what the page sent to its own server."""
    # Not its answers: a greeting goes when the first message comes.
    own, last = page.locator('#chat .mes[is_user="true"]'), page.locator("#chat .mes").last
    before = own.count()
    page.locator("#send_textarea").fill("Write one line about the weather at sea.")
    with page.expect_request("**/generate", timeout=WAIT) as sent:
        page.locator("#send_but").click()
    expect(page.locator("#mes_stop")).to_be_hidden(timeout=WAIT)
    expect(own).to_have_count(before + 1, timeout=WAIT)
    expect(last).to_have_attribute("is_user", "false", timeout=WAIT)
    expect(last.locator(".mes_text")).not_to_have_text("", timeout=WAIT)
    expect(page.locator("#toast-container .toast-error")).to_have_count(0)
    return dict(sent.value.post_data_json)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("one", CONNECTIONS, ids=lambda one: one.kind or one.api)
def test_it_connects_and_a_message_is_answered(page: Page, sordino: str, one: Connection) -> None:
    connect(page, one, sordino)
    short_answers(page)
    sent = write(page)
    if one.kind in TEXTS:
        # What is replayed elsewhere is what the page sends; its server adds `stream`, and passes less on to vLLM.
        replayed = set(REPLAYED[one.kind]) - {"stream"}
        assert replayed - {"model"} <= set(sent)
        assert one.kind == "vllm" or set(sent) <= replayed | {"model"}


def written_with(sordino: str, name: str) -> float:
    """Requests so far with this soft prompt."""
    found = re.search(rf'soft_prompt="{name}"}} (\S+)', httpx.get(f"{sordino}/metrics").text)
    return float(found[1]) if found else 0.0


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("kind", ["koboldcpp", "ooba"])
def test_who_cannot_name_a_model_writes_with_the_servers_default(page: Page, sordino: str, kind: str) -> None:
    """With every preset that comes with it, and as many stopping strings as a group chat has."""
    connect(page, next(one for one in CONNECTIONS if one.kind == kind), sordino)
    presets = page.locator("#settings_preset_textgenerationwebui option").all_inner_texts()
    assert "Deterministic" in presets
    page.evaluate(
        """stops => {
            const field = document.getElementById("custom_stopping_strings");
            field.value = JSON.stringify(stops);
            field.dispatchEvent(new Event("input", {bubbles: true}));
        }""",
        [f"\nMember {number}:" for number in range(40)],
    )
    httpx.put(f"{sordino}/api/v1/config/soft_prompt", json={"value": "keeper.zip"}).raise_for_status()
    try:
        for preset in presets:
            page.locator("#settings_preset_textgenerationwebui").select_option(label=preset, force=True)
            short_answers(page)
            before = written_with(sordino, "keeper")
            assert len(write(page)["stop"]) > 40
            assert written_with(sordino, "keeper") == before + 1
    finally:
        httpx.put(f"{sordino}/api/v1/config/soft_prompt", json={"value": ""}).raise_for_status()
