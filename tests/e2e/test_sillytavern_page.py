"""SillyTavern's own page in a browser: each of its connection types that works with us, from its form to text on the screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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


@pytest.mark.parametrize("one", CONNECTIONS, ids=lambda one: one.kind or one.api)
def test_it_connects_and_a_message_is_answered(page: Page, sordino: str, one: Connection) -> None:
    connect(page, one, sordino)
    # As its sliders would: short answers, and no empty ones, which a small model likes.
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
    answers = page.locator('#chat .mes[is_user="false"][is_system="false"]')
    before = answers.count()
    page.locator("#send_textarea").fill("Write one line about the weather at sea.")
    page.locator("#send_but").click()
    expect(page.locator("#mes_stop")).to_be_hidden(timeout=WAIT)
    expect(answers).not_to_have_count(before, timeout=WAIT)
    expect(answers.last.locator(".mes_text")).not_to_have_text("", timeout=WAIT)
    expect(page.locator("#toast-container .toast-error")).to_have_count(0)
