"""SillyTavern's own page in a browser: each of its connection types that works with us, from its form to text on the screen."""

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

pytestmark = [*NEEDED, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

# Milliseconds for what the model writes; see `tests.e2e.steps.WAIT`.
WAIT = 240_000


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
REPLAYED = json.loads((Path(__file__).parents[1] / "server" / "transcripts" / "sillytavern_1.19.json").read_text())
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
