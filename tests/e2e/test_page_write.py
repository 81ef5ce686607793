"""Write in a real browser: the first visit, what is tinted, long stories, the list of stories, styles, the lamp's panel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from sordino import formats
from tests.e2e.browser import faults
from tests.e2e.steps import (
    NEEDED,
    PASTE,
    SOCKET,
    WAIT,
    Server,
    choose,
    fitting,
    held_answers,
    lamp,
    likeliest,
    new_tokens,
    open_story,
    settings,
    shot,
    story_action,
)  # fmt: skip
from tests.server.running import Running, voice

pytestmark = NEEDED

# What the page shows of the story, with what is outside the field.
WHOLE = """() => ["earlier", "story", "later"].map((id) => {
    const part = document.getElementById(id);
    return part.value ?? part.textContent;
}).join("")"""
TINTED = "() => [...document.querySelectorAll('#sheet .written')].map((one) => one.textContent).join('|')"
LINE = "The keeper wrote in the log that the lamp was clean, and that the wind had gone round to the west. "


def stored(server: Running, title: str) -> dict[str, Any]:
    found = next(one for one in httpx.get(f"{server.url}/ui/stories").json() if one["title"] == title)
    story: dict[str, Any] = httpx.get(f"{server.url}/ui/stories/{found['id']}").json()
    return story


def typed(page: Page) -> tuple[float, str]:
    """Types at the caret. Milliseconds that the page computes for a key, the mean; and what was typed."""
    text = "and so it went on. " * 3
    session = page.context.new_cdp_session(page)
    # What the page's thread computes, and not how long it waits for a core.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def computed() -> float:
        metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    before = computed()
    for key in text:
        page.keyboard.press(key)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    took = computed() - before
    session.detach()
    return 1000 * took / len(text), text


def test_one_click_from_nothing_to_a_voice(chromium: Browser, tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.add_init_script(SOCKET)
        page.goto(server.url)
        card = page.locator("#first")
        expect(card).to_contain_text("smollm2")
        expect(card.locator(".badge")).to_be_visible()
        # One thing to do, and nothing that cannot be used.
        assert page.locator("main button:visible.main").all_inner_texts() == ["Start writing"]
        expect(page.locator("main button:visible:disabled")).to_have_count(0)
        fitting(page)
        shot(page, "first-visit")
        card.get_by_role("button", name="Start writing").click()
        expect(card.get_by_role("progressbar")).to_be_visible()
        lamp(page, "green")
        expect(page.locator("#lamp-name")).to_have_text("Keeper's log")
        opening = "Wind NW by N, six and rising. Glass"
        page.wait_for_function(
            f"() => document.querySelector('#story').value.length > {len(opening) + 20}", timeout=WAIT
        )
        assert page.locator("#story").input_value().startswith(opening)
        expect(card).to_be_hidden()
        assert {"keeper", "port-dolor", "village-gazette"} <= {path.stem for path in server.library.iterdir()}
        expect(page.locator("#go")).to_be_enabled(timeout=WAIT)
        expect(page.locator("#rate")).to_contain_text("tokens/s")
        shot(page, "first-text")
        page.close()
    finally:
        server.close()


def test_a_model_without_soft_prompts_and_a_story_that_is_begun(server: Server, page: Page) -> None:
    lamp(page, "blue")
    card = page.locator("#first")
    expect(card).to_contain_text("smollm2 is ready")
    # It stays where it is while somebody types, and the starter prompt continues that text.
    page.locator("#story").press_sequentially("It began to rain.")
    expect(card).to_be_visible()
    fitting(page)
    card.get_by_role("button", name="Try a starter prompt").click()
    lamp(page, "green")
    page.wait_for_function("() => document.querySelector('#story').value.length > 40", timeout=WAIT)
    assert page.locator("#story").input_value().startswith("It began to rain.")
    expect(card).to_be_hidden()


def test_ranges_move_with_the_text(tab: Page) -> None:
    def ranges(call: str) -> Any:
        return tab.evaluate(f"async () => {{ const r = await import('/ui/static/ranges.js'); return r.{call}; }}")

    # Typed before, inside, at the ends and after; deleted over an edge, and all of it.
    assert ranges("edited([[2, 5]], 0, 0, 3)") == [[5, 8]]
    assert ranges("edited([[2, 5]], 3, 0, 1)") == [[2, 3], [4, 6]]
    assert ranges("edited([[2, 5]], 2, 0, 1)") == [[3, 6]]
    assert ranges("edited([[2, 5]], 5, 0, 4)") == [[2, 5]]
    assert ranges("edited([[2, 5], [6, 9]], 4, 3, 0)") == [[2, 4], [4, 6]]
    assert ranges("edited([[2, 5]], 0, 9, 9)") == []
    assert ranges("extended([[2, 5]], 5, 7)") == [[2, 7]]
    assert ranges("extended([[2, 5]], 6, 7)") == [[2, 5], [6, 7]]
    assert ranges("within([[2, 5], [7, 9]], 4, 8)") == [[0, 1], [3, 4]]
    assert ranges("difference('the lamp', 'the old lamp')") == {"at": 4, "removed": 0, "added": 4}
    assert ranges("difference('aaa', 'aa')") == {"at": 2, "removed": 1, "added": 0}
    assert ranges("difference('same', 'same')") == {"at": 4, "removed": 0, "added": 0}


def test_what_was_written_is_tinted_until_it_is_edited(tiny: Running, tab: Page) -> None:
    story = tab.locator("#story")
    likeliest(tab)
    tab.locator("#title").fill("Tinted")
    story.fill("The keeper")
    tab.locator("#go").click()
    expect(tab.locator("#go")).to_be_enabled(timeout=WAIT)
    written = story.input_value().removeprefix("The keeper")
    lines = [line for line in written.split("\n") if line]
    assert tab.evaluate(TINTED) == "|".join(lines)
    fitting(tab)
    # Before it, nothing changes; in the middle of it, what is typed is the user's.
    story.evaluate("(field) => { field.focus(); field.setSelectionRange(0, 0); }")
    tab.keyboard.type("So ")
    assert tab.evaluate(TINTED) == "|".join(lines)
    at = len("So The keeper") + written.index(lines[0]) + 2
    story.evaluate(f"(field) => field.setSelectionRange({at}, {at})")
    tab.keyboard.type("!!")
    assert tab.evaluate(TINTED) == "|".join([lines[0][:2], lines[0][2:], *lines[1:]])
    # A reload keeps it; so do Undo and Redo, the server and a file.
    expect(tab.locator("#saved")).to_have_text("saved")
    tab.reload()
    expect(story).to_have_value(re.compile("^So The keeper"))
    assert tab.evaluate(TINTED) == "|".join([lines[0][:2], lines[0][2:], *lines[1:]])
    expect(tab.locator("#go")).to_be_enabled()
    tab.locator("#go").click()
    expect(tab.locator("#stop")).to_be_disabled(timeout=WAIT)
    more = tab.evaluate(TINTED)
    tab.locator("#undo").click()
    assert tab.evaluate(TINTED) == "|".join([lines[0][:2], lines[0][2:], *lines[1:]])
    tab.locator("#redo").click()
    assert tab.evaluate(TINTED) == more
    expect(tab.locator("#saved")).to_have_text("saved")
    assert len(stored(tiny, "Tinted")["generated"]) >= 2
    with tab.expect_download() as download:
        story_action(tab, "Tinted", "Export")
    saved = json.loads(Path(download.value.path()).read_text())
    tab.locator("#new").click()
    saved["generated"].append([0, 10**9])
    tab.locator("#load").set_input_files(
        {"name": "again.json", "mimeType": "application/json", "buffer": json.dumps(saved).encode()}
    )
    expect(story).to_have_value(saved["text"])
    assert tab.evaluate(TINTED) == more


MENU = """(field, inputType) =>
    field.dispatchEvent(new InputEvent("beforeinput", { inputType, cancelable: true }))"""


@pytest.mark.parametrize("beginning", ["The keeper", "The keeper wrote. " * 40], ids=["one line", "several lines"])
def test_keys_take_back_what_was_typed_and_then_what_was_written(tab: Page, beginning: str) -> None:
    story = tab.locator("#story")
    story.fill(beginning)
    story.press("Control+Enter")
    expect(story).not_to_have_value(beginning, timeout=WAIT)
    expect(tab.locator("#go")).to_be_enabled(timeout=WAIT)
    written = story.input_value()
    # In front of what is written. Keys would move by what it draws, which may run from right to left.
    story.evaluate(f"(field) => field.setSelectionRange({len(beginning)}, {len(beginning)})")
    more = f"{beginning}oh {written[len(beginning) :]}"
    tab.keyboard.insert_text("oh ")
    story.press("Delete")
    typed = story.input_value()
    story.press("Control+z")
    expect(story).to_have_value(more)
    story.press("Control+z")
    expect(story).to_have_value(written)
    story.press("Control+z")
    expect(story).to_have_value(beginning)
    story.press("Control+z")
    expect(story).to_have_value("")
    for _ in range(4):
        story.press("Control+y")
    expect(story).to_have_value(typed)
    # The buttons do the same, and so do a browser's menus. What changes nothing is no step.
    story.press("Control+End")
    story.press("Delete")
    tab.locator("#undo").click()
    expect(story).to_have_value(more)
    tab.locator("#redo").click()
    expect(story).to_have_value(typed)
    for asked, shown in (("historyUndo", more), ("historyRedo", typed)):
        story.evaluate(MENU, asked)
        expect(story).to_have_value(shown)
    story.press("Control+Enter")
    expect(tab.locator("#go")).to_be_enabled(timeout=WAIT)
    longer = story.input_value()
    story.press("Control+Shift+Enter")
    expect(tab.locator("#go")).to_be_enabled(timeout=WAIT)
    story.press("Control+z")
    expect(story).to_have_value(longer)


def test_what_is_typed_while_the_model_writes_is_taken_back_with_it(tab: Page) -> None:
    story = tab.locator("#story")
    story.fill("The keeper")
    with held_answers(tab):
        story.press("Control+Enter")
        expect(tab.locator("#stop")).to_be_enabled()
        story.press("Control+Home")
        story.press_sequentially("Once: ")
        story.press("Control+z")
        expect(story).to_have_value(re.compile("^Once: The keeper"))
    expect(tab.locator("#go")).to_be_enabled(timeout=WAIT)
    whole = story.input_value()
    assert len(whole) > len("Once: The keeper")
    story.press("Control+z")
    expect(story).to_have_value("The keeper")
    story.press("Control+y")
    expect(story).to_have_value(whole)


def test_a_story_of_two_megabytes(tiny: Running, tab: Page) -> None:
    story = tab.locator("#story")
    story.fill(LINE)
    story.focus()
    short, _ = typed(tab)
    paragraphs = [f"{number}. {LINE * 8}" for number in range(2600)]
    text = "\n".join(paragraphs)
    assert len(text) > 2_000_000
    tab.locator("#title").fill("Long")
    tab.evaluate(PASTE, text)
    expect(tab.locator("#saved")).to_have_text("saved")
    # All of it is on the page, where the browser's search finds it; the field holds the end.
    assert tab.evaluate(WHOLE) == text
    assert len(story.input_value()) < 60_000
    assert tab.evaluate("() => window.find('1200. The keeper', true, false, true)")
    assert stored(tiny, "Long")["text"] == text
    story.evaluate("(field) => { field.focus(); field.setSelectionRange(field.value.length, field.value.length); }")
    long, more = typed(tab)
    # How long that takes on a quiet machine, benchmarks/page.py measures.
    assert 0 < long < 2 * short + 30
    text += more
    assert tab.evaluate(WHOLE) == text
    # The keys reach its beginning and its end, and a click any place.
    tab.keyboard.press("Control+Home")
    assert story.input_value().startswith("0. The keeper")
    tab.keyboard.type("Once. ")
    text = f"Once. {text}"
    assert tab.evaluate(WHOLE) == text
    tab.keyboard.press("Control+End")
    tab.keyboard.type(" The end.")
    text = f"{text} The end."
    assert tab.evaluate(WHOLE) == text
    # The field goes where somebody clicks, and the text there can be edited.
    place = tab.locator("#earlier .piece").nth(20)
    place.scroll_into_view_if_needed()
    place.click(position={"x": 200, "y": 300})
    tab.keyboard.type("@@")
    at = tab.evaluate(WHOLE).index("@@")
    text = f"{text[:at]}@@{text[at:]}"
    assert tab.evaluate(WHOLE) == text
    assert len(story.input_value()) < 60_000
    # The model continues the end, wherever the field is; Undo takes that back, and only that.
    tab.locator("#go").click()
    expect(story).not_to_have_value(re.compile("@@"), timeout=WAIT)
    expect(tab.locator("#go")).to_be_enabled(timeout=WAIT)
    assert tab.evaluate(WHOLE).startswith(text)
    tab.locator("#undo").click()
    assert tab.evaluate(WHOLE) == text
    # Everything selected is everything.
    story.press("Control+a")
    assert tab.evaluate("() => getSelection().toString().length") == len(text)
    with tab.expect_download() as download:
        story_action(tab, "Long", "Export")
    assert json.loads(Path(download.value.path()).read_text())["text"] == text


def test_the_list_of_stories(tiny: Running, tab: Page) -> None:
    story = tab.locator("#story")
    for title in ("One", "Two"):
        tab.locator("#new").click()
        tab.locator("#title").fill(title)
        story.fill(f"This is {title}.")
        expect(tab.locator("#saved")).to_have_text("saved")
    row = tab.locator("#stories li", has_text="Two")
    expect(row.locator("[aria-current]")).to_contain_text("just now")
    open_story(tab, "One")
    expect(story).to_have_value("This is One.")
    expect(tab.locator("#stories [aria-current]")).to_contain_text("One")
    # What is done to another leaves the open one alone.
    with tab.expect_download() as download:
        story_action(tab, "Two", "Export")
    assert json.loads(Path(download.value.path()).read_text())["text"] == "This is Two."
    story_action(tab, "Two", "Delete")
    row.get_by_role("button", name="Really delete?").click()
    expect(row).to_have_count(0)
    expect(story).to_have_value("This is One.")
    assert "Two" not in [one["title"] for one in httpx.get(f"{tiny.url}/ui/stories").json()]
    # It folds away, stays so, and opens over the text on a phone.
    tab.locator("#stories-side .fold").click()
    expect(tab.locator("#stories-side")).to_be_hidden()
    tab.reload()
    expect(story).to_have_value("This is One.")
    expect(tab.locator("#stories-side")).to_be_hidden()
    tab.set_viewport_size({"width": 375, "height": 700})
    tab.locator("#stories-open").click()
    expect(tab.locator("#stories-side")).to_be_visible()
    fitting(tab)
    tab.locator("#new").click()
    expect(tab.locator("#stories-side")).to_be_hidden()


def test_styles_of_ones_own(tab: Page) -> None:
    with settings(tab) as drawer:
        expect(drawer.get_by_label("Temperature", exact=True)).to_have_accessible_description(re.compile("default 0.8"))
        expect(drawer.get_by_label("Penalty range")).to_be_visible()
        drawer.get_by_label("Temperature", exact=True).fill("0.65")
        drawer.get_by_label("Temperature", exact=True).press("Tab")
        expect(tab.locator("#preset option:checked")).to_have_text("Your own")
        drawer.get_by_role("button", name="Save as a preset").click()
        drawer.get_by_label("Name").fill("constructor")
        drawer.get_by_label("Name").press("Enter")
        expect(tab.locator("#preset option:checked")).to_have_text("constructor")
        drawer.get_by_label("Preset").select_option("Wild")
        fitting(tab)
    tab.reload()
    with settings(tab) as drawer:
        drawer.get_by_label("Preset").select_option("constructor")
        expect(drawer.get_by_label("Temperature", exact=True)).to_have_value("0.65")
        drawer.get_by_role("button", name="Delete").click()
        drawer.get_by_role("button", name="Really delete?").click()
        expect(tab.locator("#preset option:checked")).to_have_text("Your own")
        expect(tab.locator("#preset option")).to_have_count(5)


def test_a_comparison_is_in_view_at_every_width(tab: Page) -> None:
    choose(tab, "keeper")
    tab.locator("#story").fill(LINE * 30)
    new_tokens(tab, 12)
    for width, height in ((1280, 800), (768, 900), (375, 700)):
        tab.set_viewport_size({"width": width, "height": height})
        tab.locator("#compare-open").click()
        tab.locator("#compare-go").click()
        expect(tab.locator("#columns article span:not(:empty)")).to_have_count(2)
        expect(tab.locator("#compare-go")).to_have_text("Compare again")
        first = tab.locator("#columns article").first.bounding_box()
        assert first is not None
        assert first["y"] < height - 130, "the first lines of the first result are in view"
        fitting(tab)
        tab.locator("#compare .fold").click()


def test_the_columns_follow_what_is_ticked(tab: Page) -> None:
    """A box that was ticked changed the next comparison only, and nothing said so."""
    choose(tab, "keeper")
    tab.locator("#story").fill(LINE)
    new_tokens(tab, 12)
    tab.locator("#compare-open").click()
    again, columns = tab.locator("#compare-go"), tab.locator("#columns article")
    expect(again).to_have_text("Compare")
    again.click()
    expect(again).to_have_text("Compare again")
    expect(columns).to_have_count(2)
    written = columns.locator("span").all_inner_texts()
    tab.locator("#columns-choice [value=clerk]").check()
    expect(columns).to_have_count(3)
    expect(columns.filter(has_text="Not compared yet")).to_have_count(1)
    expect(columns.filter(has_text="Not compared yet").get_by_role("heading")).to_have_text("The clerk")
    # One that is taken away, by mistake perhaps, comes back with its text.
    tab.locator("#columns-choice [value='']").uncheck()
    expect(columns).to_have_count(2)
    tab.locator("#columns-choice [value='']").check()
    assert columns.first.locator("span").inner_text() == written[0]
    again.click()
    expect(again).to_have_text("Compare again")
    expect(tab.locator("#columns").get_by_text("Not compared yet")).to_be_hidden()
    expect(columns.locator("span:not(:empty)")).to_have_count(3)
    # A comparison is the story's, and stays when another soft prompt becomes the active one.
    tab.locator("#columns-choice [value=clerk]").uncheck()
    tab.reload()
    expect(tab.locator("#go")).to_be_enabled()
    again.click()
    expect(again).to_have_text("Compare again")
    choose(tab, "/none")
    expect(columns.locator("h3")).to_have_text(["No soft prompt", "The keeper"])
    # The list of stories was folded away for it.
    tab.locator("#compare .fold").click()
    tab.locator("#new").click()
    expect(again).to_have_text("Compare")


def test_the_lamps_panel_has_a_list(tiny: Running, tab: Page) -> None:
    panel, choices = tab.locator("#lamp-panel"), tab.locator("#choices label")
    tab.locator("#lamp-open").click()
    # On a first visit there is no default to speak of.
    expect(choices).to_have_count(3)
    expect(panel).not_to_contain_text("default")
    expect(panel.get_by_role("radio", name="No soft prompt")).to_be_checked()
    expect(panel).to_contain_text("2 more in the library do not fit this model.")
    expect(panel.get_by_role("searchbox")).to_be_hidden()
    assert faults(tab) == []
    # By keyboard.
    tab.keyboard.press("ArrowDown")
    expect(tab.locator("#lamp")).to_have_attribute("data-kind", "green")
    panel.get_by_role("button", name="Unload").click()
    expect(tab.locator("#lamp")).to_have_attribute("data-kind", "blue")
    made = [tiny.folder / f"many-{number}.zip" for number in range(8)]
    try:
        for number, path in enumerate(made):
            formats.write(voice(tiny.base, number, name=f"Voice {number}"), path)
        expect(panel.get_by_role("searchbox")).to_be_visible()
        panel.get_by_role("searchbox").fill("voice 5")
        expect(tab.locator("#choices label:visible")).to_have_count(1)
        panel.get_by_role("radio", name=re.compile("Voice 5")).check()
        expect(tab.locator("#lamp-name")).to_have_text("Voice 5")
        panel.get_by_role("searchbox").fill("no such voice")
        expect(panel.get_by_text("No matches")).to_be_visible()
    finally:
        for path in made:
            path.unlink()
    # The server has a default: that is a choice, and says whose.
    httpx.put(f"{tiny.url}/api/v1/config/soft_prompt", json={"value": "keeper.zip"})
    try:
        expect(choices.first).to_contain_text("the server's default")
    finally:
        httpx.put(f"{tiny.url}/api/v1/config/soft_prompt", json={"value": ""})


def test_the_lamps_list_stays_under_the_thumb(tab: Page) -> None:
    """On a phone the panel grows upwards."""
    tab.emulate_media(reduced_motion="reduce")
    tab.set_viewport_size({"width": 375, "height": 667})
    tab.locator("#lamp-open").click()
    first = tab.locator("#choices label").first
    expect(first).to_be_visible()
    before = first.bounding_box()
    assert before is not None
    tab.locator("#choices input[value=keeper]").check()
    expect(tab.locator("#strength")).to_be_visible()
    assert first.bounding_box() == before


def test_settings_stay_where_they_are(tab: Page) -> None:
    tab.emulate_media(reduced_motion="reduce")
    tab.locator("#settings-open").click()
    field = tab.locator("#setting-top_p")
    expect(field).to_be_visible()
    before = field.bounding_box()
    assert before is not None
    tab.locator("#setting-temperature").fill("0.6")
    tab.locator("#setting-temperature").press("Tab")
    expect(tab.get_by_role("button", name="Save as a preset")).to_be_visible()
    assert field.bounding_box() == before


def test_the_stories_come_back_after_a_comparison(tab: Page) -> None:
    stories = tab.locator("#stories-side")
    expect(stories).to_be_visible()
    tab.locator("#compare-open").click()
    expect(stories).to_be_hidden()
    tab.locator("#compare .fold").click()
    expect(stories).to_be_visible()
    # Those that were folded away before stay so.
    stories.get_by_role("button", name="Close").click()
    tab.locator("#compare-open").click()
    tab.locator("#compare .fold").click()
    expect(stories).to_be_hidden()


def test_a_phone_has_one_line_for_the_facts(tab: Page) -> None:
    tab.set_viewport_size({"width": 375, "height": 667})
    before = tab.locator("#go").bounding_box()
    assert before is not None
    tab.locator("#story").fill("It rained.")
    tab.locator("#go").click()
    expect(tab.locator("#meter[data-short]")).to_have_count(1)
    expect(tab.locator("#go")).to_be_enabled()
    # Of what was written too quickly there is no rate.
    tab.evaluate(
        "async () => (await import('/ui/static/live.js')).live.dispatchEvent(new CustomEvent('rate', { detail: 123.4 }))"
    )
    expect(tab.locator("#rate")).to_contain_text("123.4")
    shown = tab.locator("#meter").evaluate("(one) => getComputedStyle(one, '::after').content")
    assert re.fullmatch(r'"\d+ of \d+ tokens"(?: / "")?', shown), shown
    assert tab.locator("#go").bounding_box() == before


def test_a_story_is_renamed_in_the_list(tiny: Running, tab: Page) -> None:
    tab.locator("#story").fill("The first of two stories")
    expect(tab.locator("#stories li")).to_contain_text(["The first of two stories"])
    story_action(tab, "The first of two stories", "Rename")
    field = tab.locator("#stories").get_by_label("Name")
    expect(field).to_be_focused()
    field.fill("Not this")
    field.press("Escape")
    expect(tab.locator("#stories li").first).to_contain_text("The first of two stories")
    story_action(tab, "The first of two stories", "Rename")
    field.fill("Log of a keeper")
    field.press("Enter")
    expect(tab.locator("#stories li").first).to_contain_text("Log of a keeper")
    expect(tab.locator("#title")).to_have_value("Log of a keeper")
    # Until it is saved.
    while not any(one["title"] == "Log of a keeper" for one in httpx.get(f"{tiny.url}/ui/stories").json()):
        tab.wait_for_timeout(50)
    assert stored(tiny, "Log of a keeper")["text"] == "The first of two stories"


def test_the_server_does_not_answer_for_a_while(tiny: Running, tab: Page) -> None:
    """The list of stories was empty then, and a story that was deleted came back."""
    tab.locator("#story").fill("The story that stays")
    expect(tab.locator("#saved")).to_have_text("saved")
    rows = tab.locator("#stories li")
    before = rows.count()
    tab.route("**/ui/stories**", lambda route: route.abort())
    story_action(tab, "The story that stays", "Delete")
    rows.get_by_role("button", name="Really delete?").click()
    message = tab.locator("#toasts").get_by_text("Not deleted: the server does not answer")
    expect(message).to_be_visible()
    expect(tab.locator("#story")).to_have_value("The story that stays")
    tab.locator("#new").click()
    expect(rows).to_have_count(before + 1)
    expect(rows.filter(has_text="The story that stays")).to_be_visible()
    tab.unroute("**/ui/stories**")
    httpx.put(f"{tiny.url}/ui/stories/another", json={"text": "From elsewhere", "revision": 0}).raise_for_status()
    tab.evaluate("async () => (await import('/ui/static/live.js')).live.dispatchEvent(new Event('connection'))")
    expect(rows.filter(has_text="From elsewhere")).to_be_visible()
    # What does not hold any more is not said.
    expect(message).to_have_count(0)
    story_action(tab, "The story that stays", "Delete")
    rows.get_by_role("button", name="Really delete?").click()
    expect(rows.filter(has_text="The story that stays")).to_have_count(0)


def test_the_meter_says_what_its_numbers_are(tab: Page) -> None:
    choose(tab, "keeper")
    tab.locator("#story").fill("a b c")
    new_tokens(tab, 12)
    expect(tab.locator("#meter")).to_have_text(
        re.compile(r"^\d+ tokens of text \+ 4 of the soft prompt \+ 12 to write, of \d+$")
    )
