"""The sliders of a mixture in a real browser, over a tiny model: by keyboard, on a narrow window, over a reload."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from sordino import formats
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata
from tests.e2e.browser import browser, faults
from tests.e2e.steps import KEEPS_SENT, NEEDED, choose, likeliest
from tests.server.running import Running, running, voice

pytestmark = NEEDED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("mixing"), with_page=True) as one:
        names = ("The keeper", "The clerk", "A very long name of a soft prompt that somebody gave it")
        parts = tuple(voice(one.base, seed, name=name) for seed, name in enumerate(names))
        mixture = Mixture(parts, np.array([2.0, 1.0, 1.0]), metadata=Metadata(name="Three", base=one.base.ref))
        formats.write_mixture(mixture, one.folder / "three.mix.zip")
        yield one


def asked_weights(page: Page) -> list[str]:
    """What the last message that was sent says of weights."""
    told: list[str] = page.evaluate("() => window.sent.filter((one) => one.includes('\"write\"'))")
    return told


def test_sliders_weigh_what_is_written_next(server: Running) -> None:
    with browser() as chromium:
        page = chromium.new_context(viewport={"width": 375, "height": 800}).new_page()
        page.add_init_script(KEEPS_SENT)
        page.goto(server.url)
        expect(page.locator("#mixing")).to_be_hidden()
        choose(page, "three")
        expect(page.locator("#lamp-text")).to_have_text("Active mixture (3 soft prompts, 4 tokens): Three")
        page.locator("#lamp-open").click()
        sliders = page.locator("#mixing").get_by_role("slider")
        expect(sliders).to_have_count(3)
        expect(sliders.first).to_have_attribute("aria-valuetext", "50%")
        expect(page.get_by_role("button", name="Reset weights")).to_be_disabled()
        # By keyboard: the first to the very end, the others to nothing.
        page.get_by_role("slider", name="The keeper").focus()
        page.keyboard.press("End")
        for at in (1, 2):
            sliders.nth(at).focus()
            page.keyboard.press("Home")
        expect(sliders.first).to_have_attribute("aria-valuetext", "100%")
        # The last weight cannot go to nothing.
        sliders.first.focus()
        page.keyboard.press("Home")
        expect(sliders.first).to_have_attribute("aria-valuetext", "100%")
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
        assert faults(page) == []
        if folder := os.environ.get("SORDINO_PICTURES"):
            page.screenshot(path=Path(folder) / "mixing.png")
        page.keyboard.press("Escape")
        likeliest(page)
        page.locator("#story").fill("The keeper")
        page.get_by_role("button", name="Continue").click()
        page.wait_for_function("() => window.sent.some((one) => one.includes('\"write\"'))")
        assert '"weights":{"three":[1,0,0]}' in asked_weights(page)[-1]
        page.wait_for_function("() => document.querySelector('#story').value.length > 10")
        # Kept by the tab; given back by the button.
        page.reload()
        page.locator("#lamp-open").click()
        expect(page.locator("#mixing").get_by_role("slider").first).to_have_attribute("aria-valuetext", "100%")
        page.get_by_role("button", name="Reset weights").click()
        expect(page.locator("#mixing").get_by_role("slider").first).to_have_attribute("aria-valuetext", "50%")
        page.keyboard.press("Escape")
        # The table and the details say what it is.
        page.get_by_role("link", name="Prompts", exact=True).click()
        expect(page.locator("#rows")).to_contain_text("mixture of 3")
        page.get_by_role("link", name="Three", exact=True).click()
        expect(page.locator("#prompt")).to_contain_text("Mixture of 3")
        expect(page.locator("#prompt")).to_contain_text("0.500")
        assert faults(page) == []
        # Without a mixture there are none.
        choose(page, "keeper")
        expect(page.locator("#mixing")).to_be_hidden()


def test_a_file_that_changes_is_shown_and_others_leave_the_slider_in_the_hand(server: Running) -> None:
    path = server.folder / "three.mix.zip"
    mixture = formats.read_any(path)
    assert isinstance(mixture, Mixture)
    with browser() as chromium:
        page = chromium.new_page()
        page.goto(server.url)
        choose(page, "three")
        page.locator("#lamp-open").click()
        # The panel gives the focus to the choice a moment after it is open.
        expect(page.locator("#choices input:checked")).to_be_focused()
        slider = page.get_by_role("slider", name="The keeper")
        slider.focus()
        try:
            with page.expect_response("**/ui/prompts/three"):
                formats.write(voice(server.base, 9), server.folder / "new.zip")
            expect(page.locator("#choices input[value=new]")).to_have_count(1)
            expect(slider).to_be_focused()
            formats.write_mixture(mixture.with_weights([0, 1, 3]), path, force=True)
            expect(slider).to_have_attribute("aria-valuetext", "0%")
        finally:
            formats.write_mixture(mixture, path, force=True)
