"""A library of ten thousand soft prompts in a real browser: what is drawn is counted, not timed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.steps import NEEDED, WAIT
from tests.server.running import Running, running

pytestmark = NEEDED

FILES = 10_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("tiny"), with_page=True) as one:
        for number in range(FILES):
            # As many files, of one content.
            os.link(one.folder / "keeper.zip", one.folder / f"p{number:04}.zip")
        # `sordino serve` reads them before it is ready.
        assert len(httpx.get(f"{one.url}/v1/soft_prompts", timeout=WAIT / 1000).json()["data"]) == FILES + 4
        yield one


def test_all_of_them_can_be_found_and_few_are_drawn(tiny: Running, tab: Page) -> None:
    tab.goto(f"{tiny.url}/#prompts")
    rows, more = tab.locator("#rows > li"), tab.get_by_role("button", name="Show more")
    expect(rows).to_have_count(200, timeout=WAIT)
    expect(more).to_have_text("Show more (9,804 left)")
    more.click()
    expect(rows).to_have_count(400)
    tab.locator("#search").fill("p9876")
    expect(rows).to_have_count(1)
    expect(more).to_be_hidden()

    tab.locator("#lamp-open").click()
    options = tab.locator("#choices > label")
    assert options.count() < 210
    panel = tab.locator("#lamp-panel")
    expect(panel).to_contain_text("200 of 10,003 are listed. Search for the others.")
    panel.get_by_label("Search").fill("p5432")
    tab.locator("#choices input[value=p5432]").check()
    expect(tab.locator("#lamp")).to_have_attribute("data-kind", "green")
    # It stays listed without the search.
    panel.get_by_label("Search").fill("")
    expect(tab.locator("#choices input[value=p5432]")).to_be_checked()
    tab.keyboard.press("Escape")

    # The lists of Connect and of Train are as short, and are searched as well.
    for place, button in (("connect", "connect-choice"), ("train", "train-from")):
        tab.goto(f"{tiny.url}/#{place}")
        tab.locator(f"#{button}").click()
        options = tab.locator(f"#{button}-list > label")
        assert 200 <= options.count() < 210
        tab.locator(f"#{button}-list").locator("..").get_by_label("Search").fill("p5433")
        expect(options).to_have_count(1)
        options.click()
        expect(options).to_be_hidden()
        expect(tab.locator(f"#{button}")).to_have_js_property("value", "p5433")

    tab.goto(f"{tiny.url}/#write")
    tab.locator("#compare-open").click()
    compared = tab.locator("#columns-choice input")
    expect(compared.and_(tab.locator("[value=p5432]"))).to_be_checked()
    assert compared.count() < 210
    tab.locator("#compare").get_by_label("Search").fill("p5433")
    expect(compared).to_have_count(1)
    compared.check()
    # Those that a search hides stay chosen.
    expect(tab.locator("#columns article h3")).to_have_text(
        ["No soft prompt", re.compile("p5432"), re.compile("p5433")]
    )
    assert tab.evaluate("() => document.querySelectorAll('*:not(option)').length") < 15_000
