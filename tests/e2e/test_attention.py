"""Strength and hold beside the lamp, in a real browser over a tiny model: what a file says, what the user sets, over a reload."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from sordino import formats
from sordino.prompts.attention import PromptAttention
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata
from tests.e2e.browser import browser, faults
from tests.e2e.steps import KEEPS_SENT, NEEDED, choose, likeliest
from tests.server.running import Running, running, voice

pytestmark = NEEDED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("attention"), with_page=True) as one:
        held = voice(one.base, 1, name="Held", attention=PromptAttention(hold=64, strength=2.0))
        formats.write(held, one.folder / "held.zip")
        parts = (held, voice(one.base, 2, name="Plain"))
        formats.write_mixture(
            Mixture(parts, np.ones(2), metadata=Metadata(base=one.base.ref)), one.folder / "both.mix.zip"
        )
        yield one


def asked(page: Page) -> tuple[object, object]:
    """strength and hold of the next message that asks to write."""
    page.evaluate("() => { window.sent = []; }")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_function("() => window.sent.some((one) => one.includes('\"write\"'))")
    message = json.loads(page.evaluate("() => window.sent.find((one) => one.includes('\"write\"'))"))
    expect(page.get_by_role("button", name="Continue")).to_be_enabled()
    return message["strength"], message["hold"]


def test_strength_and_hold_go_with_what_is_written_next(server: Running) -> None:
    with browser() as chromium:
        page = chromium.new_context(viewport={"width": 375, "height": 800}).new_page()
        page.add_init_script(KEEPS_SENT)
        page.goto(server.url)
        expect(page.locator("#attention")).to_be_hidden()
        strength, hold = page.get_by_role("slider", name="Strength"), page.get_by_role("checkbox", name="Hold")
        # A file without a hold is offered one.
        choose(page, "keeper")
        page.locator("#lamp-open").click()
        expect(strength).to_have_attribute("aria-valuetext", "1")
        expect(hold).not_to_be_checked()
        expect(page.locator("#hold-tokens")).to_have_text("from 128 tokens on")
        page.keyboard.press("Escape")
        likeliest(page)
        page.locator("#story").fill("The keeper")
        assert asked(page) == (None, None)
        page.locator("#lamp-open").click()
        strength.focus()
        page.keyboard.press("End")
        hold.check()
        expect(strength).to_have_attribute("aria-valuetext", "4")
        assert asked(page) == (4, True)
        page.locator("#lamp-open").click()
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
        assert faults(page) == []
        # Kept, and given back to the file.
        page.reload()
        page.locator("#lamp-open").click()
        expect(strength).to_have_attribute("aria-valuetext", "4")
        expect(page.locator("#lamp-strength")).to_have_text("strength 4")
        expect(hold).to_be_checked()
        strength.dblclick()
        expect(page.locator("#lamp-strength")).to_be_hidden()
        expect(strength).to_have_attribute("aria-valuetext", "1")
        strength.fill("1")
        page.get_by_role("button", name="Reset").press("Enter")
        expect(strength).to_have_attribute("aria-valuetext", "1")
        expect(hold).not_to_be_checked()
        expect(strength).to_be_focused()
        assert asked(page) == (None, None)
        # A file that says how it is held.
        choose(page, "held")
        page.locator("#lamp-open").click()
        expect(strength).to_have_attribute("aria-valuetext", "2")
        expect(hold).to_be_checked()
        expect(page.locator("#hold-tokens")).to_have_text("from 64 tokens on")
        hold.uncheck()
        assert asked(page) == (None, False)
        page.locator("#lamp-open").click()
        hold.check()
        page.keyboard.press("Escape")
        choose(page, "both")
        page.locator("#lamp-open").click()
        expect(strength).to_have_attribute("aria-valuetext", "varies")
        expect(page.locator("#hold-tokens")).to_have_text("from 64, 128 tokens on")
        assert faults(page) == []
