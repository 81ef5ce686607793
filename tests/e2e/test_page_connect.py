"""Connect, in a real browser: steps with values that work, who is connected, the load."""

from __future__ import annotations

from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, expect

from tests.e2e.steps import NEEDED, Server, fitting, lamp, shot
from tests.waiting import until

pytestmark = NEEDED

PROGRAMS = [
    "SillyTavern, Text Completion", "SillyTavern, Chat Completion", "KoboldAI Lite", "openai SDK", "LangChain",
    "llm (simonw)", "curl",
]  # fmt: skip


def test_each_program_has_its_steps(server: Server, page: Page) -> None:
    server.add("keeper")
    lamp(page, "blue")
    page.get_by_role("link", name="Connect", exact=True).click()
    cards = page.locator("#programs article")
    expect(cards.locator("h3")).to_have_text(PROGRAMS)
    # Each value is this server's own.
    for name in PROGRAMS[3:]:
        card = page.get_by_role("article", name=name)
        expect(card).to_contain_text(f"{server.url}/v1")
        expect(card).to_contain_text("smollm2:keeper")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the code for curl").click()
    # While "Copied" stands on it, its name says so too.
    expect(page.get_by_role("button", name="Copied the code for curl")).to_have_text("Copied")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert f"{server.url}/v1/completions" in copied
    assert '"model": "smollm2:keeper"' in copied

    # Who calls is there within seconds, and when in words.
    def call() -> None:
        httpx.get(f"{server.url}/v1/models", headers={"User-Agent": "a-client/1"})

    call()
    row = page.locator("#clients tr", has_text="a-client/1")
    expect(row).to_contain_text("OpenAI")
    # It is "now" for seconds: whoever calls again and again is.
    until(lambda: call() or "now" in row.inner_text())
    graph = page.locator("#graphs figure").first
    for tick in ("5 min ago", "2.5 min ago", "now"):
        expect(graph.locator(".plot")).to_contain_text(tick)
    fitting(page)
    shot(page, "connect")


def test_a_key_is_named_where_one_is_needed(chromium: Browser, tmp_path: Path) -> None:
    server = Server(tmp_path, "--model", "smollm2", "--api-key", "the key")
    try:
        page = chromium.new_page()
        page.goto(f"{server.url}/#connect")
        page.locator("#login-key").fill("the key")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("article", name="curl")).to_contain_text("Bearer YOUR-KEY")
        expect(page.locator("#addresses")).to_contain_text("The one that the server was started with")
        assert "the key" not in page.locator("#programs").inner_text()
        page.close()
    finally:
        server.close()
