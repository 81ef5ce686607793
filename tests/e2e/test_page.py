"""The page in a real browser, against `sordino serve` with SmolLM2 in a process of its own: what its users do.

One story from an upload to a reload while a text streams; training is in test_page_training.py. Pictures of it go into the folder
SORDINO_PICTURES, if that is set: docs/ui.md and the README show them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, expect

from tests.e2e.steps import (
    NEEDED,
    PASTE,
    PROMPTS,
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
    prompt_row,
    settings,
    shot,
    story_action,
)  # fmt: skip
from tests.waiting import until

pytestmark = NEEDED

# How many characters of the story are shaded.
UNSEEN = "[...document.querySelectorAll('#sheet mark')].reduce((sum, one) => sum + one.textContent.length, 0)"
# The lengths that the story had, one after another.
_WATCH = """() => {
    window.grew = [];
    const field = document.querySelector("#story");
    for (const name of ["value", "setRangeText"]) {
        const kind = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, name);
        const grow = (change) => function (...given) {
            change.apply(this, given);
            if (field.textLength !== window.grew.at(-1)) window.grew.push(field.textLength);
        };
        if (kind.set) Object.defineProperty(field, name, { ...kind, set: grow(kind.set) });
        else field[name] = grow(kind.value);
    }
}"""


def test_a_writers_story(server: Server, page: Page, tmp_path: Path) -> None:
    # An empty library says what to do.
    lamp(page, "blue")
    expect(page.get_by_role("button", name="Try a starter prompt")).to_be_visible()
    fitting(page)
    shot(page, "write-empty")
    # Upload a zip, a broken file beside it, and read the reason.
    page.get_by_role("link", name="Prompts", exact=True).click()
    (tmp_path / "keeper.zip").write_bytes(PROMPTS.joinpath("keeper.zip").read_bytes())
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    page.locator("#upload").set_input_files([tmp_path / "keeper.zip", tmp_path / "bad.zip"])
    expect(page.locator("#toasts")).to_contain_text("1 added, it fits smollm2; 1 failed")
    expect(page.locator("#upload-failed")).to_contain_text("bad.zip: ")
    # Drop one into the folder, and a broken one.
    server.add("village-gazette")
    (server.library / "damaged.zip").write_bytes(b"PK nothing")
    expect(prompt_row(page, "village-gazette.zip")).to_be_visible()
    expect(prompt_row(page, "damaged.zip")).to_contain_text("Broken: ")
    fitting(page)
    page.locator("#search").fill("no such words")
    expect(page.locator("#rows-none")).to_have_text("No matches")
    page.locator("#search").fill("")
    # Load it: the lamp turns green and says which.
    keeper = prompt_row(page, "keeper.zip")
    keeper.get_by_role("button", name=re.compile("^Load")).click()
    lamp(page, "green")
    assert re.fullmatch(
        r"Active soft prompt \(\d+ tokens\): .+", page.locator("#lamp-open").get_attribute("title") or ""
    )
    shot(page, "prompts")
    keeper.get_by_role("link", name="Keeper's log").click()
    expect(page.locator(".words span").nth(7)).to_be_visible()
    fitting(page)
    shot(page, "details")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
        page.get_by_role("button", name=re.compile("safetensors")).click()
    assert download.value.suggested_filename == "keeper.safetensors"
    # Write a line and see it stream, with the caret where the writer has it.
    page.get_by_role("link", name="Write", exact=True).click()
    story = page.locator("#story")
    story.fill("The keeper wrote in the log that the")
    if "SORDINO_PICTURES" not in os.environ:
        likeliest(page)
    page.evaluate(_WATCH)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    page.evaluate(
        "() => { const field = document.querySelector('#story'); field.focus(); field.setSelectionRange(4, 4); }"
    )
    page.keyboard.type("old ")
    page.wait_for_function("() => document.querySelector('#story').value.length > 150", timeout=WAIT)
    shot(page, "write")
    expect(page.get_by_role("button", name="Continue")).to_be_enabled(timeout=WAIT)
    written = story.input_value()
    assert written.startswith("The old keeper wrote in the log that the")
    assert len(page.evaluate("() => window.grew")) > 10
    expect(page.locator("#meter")).to_contain_text("soft")
    expect(page.locator("#saved")).to_have_text("saved")
    # Undo gives back what a retry took, and then takes the continuation.
    new_tokens(page, 1000)
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_role("button", name="Continue")).to_be_enabled()
    page.get_by_role("button", name="Undo").click()
    expect(story).to_have_value(written)
    new_tokens(page, 80)
    # So it does with what was typed after it, and Redo brings both back.
    story.press("Control+End")
    page.keyboard.insert_text(" Then he slept.")
    typed = story.input_value()
    page.get_by_role("button", name="Undo").click()
    expect(story).to_have_value(written)
    page.get_by_role("button", name="Undo").click()
    opening = story.input_value()
    assert len(opening) < len(written)
    page.get_by_role("button", name="Redo").click()
    expect(story).to_have_value(written)
    page.get_by_role("button", name="Redo").click()
    expect(story).to_have_value(typed)
    for before in (written, opening):
        page.get_by_role("button", name="Undo").click()
        expect(story).to_have_value(before)
    # Compare: side by side, in one batch.
    page.locator("#compare-open").click()
    page.locator("#compare-go").click()
    expect(page.locator("#columns article")).to_have_count(2)
    expect(page.locator("#compare-go")).to_have_text("Compare again", timeout=WAIT)
    assert all(len(text) > 40 for text in page.locator("#columns article span").all_inner_texts())
    fitting(page)
    shot(page, "compare")
    # One of them is used: it stands after the story. Another takes its place, and each can be undone.
    plain, behind = page.locator("#columns article span").all_inner_texts()
    before = story.input_value()
    page.get_by_role("button", name="Use this one: Keeper's log").click()
    expect(story).not_to_have_value(before)
    used = story.input_value()
    # A column is shown without the space that it begins with.
    assert (used[: len(before)], used[len(before) :].lstrip()) == (before, behind.lstrip())
    page.get_by_role("button", name="Use this one: No soft prompt").click()
    expect(story).not_to_have_value(used)
    assert story.input_value()[len(before) :].lstrip() == plain.lstrip()
    page.get_by_role("button", name="Undo").click()
    expect(story).to_have_value(used)
    page.get_by_role("button", name="Undo").click()
    expect(story).to_have_value(before)
    # Unload: blue again. A reload keeps text and choice.
    text = story.input_value()
    choose(page, "/none")
    lamp(page, "blue")
    page.reload()
    lamp(page, "blue")
    expect(page.locator("#story")).to_have_value(text)
    # A tab that follows the server's default changes with it, whoever sets it.
    httpx.put(f"{server.url}/api/v1/config/soft_prompt", json={"value": "village-gazette.zip"})
    choose(page, "/default")
    lamp(page, "green")
    httpx.put(f"{server.url}/api/v1/config/soft_prompt", json={"value": ""})
    lamp(page, "blue")
    httpx.put(f"{server.url}/api/v1/config/soft_prompt", json={"value": "village-gazette.zip"})
    lamp(page, "green")
    httpx.put(f"{server.url}/api/v1/config/soft_prompt", json={"value": ""})
    lamp(page, "blue")


def test_the_server_dies_and_two_tabs_edit_one_story(server: Server, page: Page) -> None:
    lamp(page, "blue")
    story = page.locator("#story")
    story.fill("It began to rain")
    likeliest(page)
    new_tokens(page, 400)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    page.wait_for_function("() => document.querySelector('#story').value.length > 60", timeout=WAIT)
    server.kill()
    expect(page.locator("#write-status")).to_contain_text("The server stopped while writing")
    lamp(page, "grey")
    shot(page, "write-server-gone")
    had = story.input_value()
    assert len(had) > 40
    server.again()
    lamp(page, "blue")
    expect(page.get_by_role("button", name="Continue")).to_be_enabled()
    assert story.input_value() == had
    # What no longer holds is no longer said.
    expect(page.locator("#write-status")).to_have_text("")
    expect(page.locator("#saved")).to_have_text("saved")
    # The same story in another tab, changed there first.
    other = page.context.new_page()
    other.goto(server.url)
    expect(other.locator("#story")).to_have_value(had)
    other.locator("#story").fill("Changed there")
    expect(other.locator("#saved")).to_have_text("saved")
    story.fill("Changed here")
    expect(page.locator("#conflict")).to_be_visible()
    shot(page, "write-conflict")
    page.get_by_role("button", name="Open that version").click()
    expect(story).to_have_value("Changed there")


def test_what_is_written_stays_with_its_story(server: Server, page: Page) -> None:
    lamp(page, "blue")
    story = page.locator("#story")
    likeliest(page)
    new_tokens(page, 400)
    page.locator("#title").fill("First")
    story.fill("It began to rain")
    page.locator("#go").click()
    page.wait_for_function("() => document.querySelector('#story').value.length > 60", timeout=WAIT)
    page.locator("#new").click()
    expect(story).to_have_value("")
    page.locator("#title").fill("Second")
    story.fill("A letter came")
    # Long enough for several words more of the first; writing can begin here at once.
    expect(page.locator("#go")).to_be_enabled()
    page.wait_for_timeout(1500)
    expect(story).to_have_value("A letter came")
    expect(page.locator("#saved")).to_have_text("saved")
    stored = {one["title"]: one["id"] for one in httpx.get(f"{server.url}/ui/stories").json()}
    first = httpx.get(f"{server.url}/ui/stories/{stored['First']}").json()["text"]
    assert first.startswith("It began to rain")
    assert len(first) > 60
    # A reload, right after a change, is no other tab.
    story.fill("A letter came, and another")
    page.wait_for_timeout(50)
    page.reload()
    lamp(page, "blue")
    expect(story).to_have_value("A letter came, and another")
    expect(page.locator("#saved")).to_have_text("saved")
    page.locator("#go").click()
    page.wait_for_function("() => document.querySelector('#story').value.length > 60", timeout=WAIT)
    page.reload()
    lamp(page, "blue")
    story.press("End")
    story.press_sequentially(" And so on.")
    expect(page.locator("#saved")).to_have_text("saved")
    expect(page.locator("#conflict")).to_be_hidden()
    # What the server could not take is in the list until it can.
    page.route("**/ui/stories/*", lambda route: route.abort() if route.request.method == "PUT" else route.fallback())
    page.locator("#new").click()
    page.locator("#title").fill("Third")
    story.fill("Nobody has this yet")
    expect(page.locator("#saved")).to_have_text("in this browser only")
    page.locator("#new").click()
    expect(story).to_have_value("")
    page.unroute("**/ui/stories/*")
    expect(page.locator("#stories li", has_text="Third")).to_contain_text("in this browser only")
    open_story(page, "Third")
    expect(story).to_have_value("Nobody has this yet")
    expect(page.locator("#saved")).to_have_text("saved")
    assert "Third" in [one["title"] for one in httpx.get(f"{server.url}/ui/stories").json()]


def test_what_is_said_stays_with_its_chat(server: Server, page: Page) -> None:
    lamp(page, "blue")
    page.get_by_role("link", name="Chat", exact=True).click()
    say, turns = page.locator("#say-text"), page.locator("#turns article")
    say.fill("Who are you?")
    say.press("Enter")
    expect(turns).to_have_count(2)
    expect(page.locator("#chat-go")).to_be_enabled(timeout=WAIT)
    expect(page.locator("#chat-saved")).to_have_text("saved")
    had = turns.last.inner_text()
    # Another chat is asked something long, and left before it answers; Stop is pressed in the first.
    page.locator("#chat-new").click()
    expect(turns).to_have_count(0)
    say.fill("The tide turned and the keeper wrote it down. " * 300)
    with held_answers(page):
        say.press("Enter")
        page.locator("#chats li").filter(has_not=page.locator("[aria-current]")).get_by_role("button").first.click()
        expect(turns).to_have_count(2)
        expect(page.locator("#chat-stop")).to_be_hidden()
    page.wait_for_timeout(1000)
    assert turns.last.inner_text() == had
    # What is being edited is kept by sending.
    turns.first.get_by_role("button", name="Actions").click()
    turns.first.get_by_role("button", name="Edit").click()
    page.get_by_label("This turn").fill("Who were you?")
    say.fill("And who are you now?")
    say.press("Enter")
    expect(turns).to_have_count(4)
    expect(turns.first).to_contain_text("Who were you?")
    expect(page.locator("#chat-go")).to_be_enabled(timeout=WAIT)
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    expect(page.locator("#chat-saved")).to_have_text("saved")
    chats = [one for one in httpx.get(f"{server.url}/ui/stories").json() if one["is_chat"]]
    said = [httpx.get(f"{server.url}/ui/stories/{one['id']}").json()["chat"] for one in chats]
    assert sorted(len(chat) for chat in said) == [1, 4]


def test_files_a_long_story_and_a_reload_while_it_streams(server: Server, page: Page, tmp_path: Path) -> None:
    lamp(page, "blue")
    story = page.locator("#story")
    # What has dropped out of the model's view is shaded, and said.
    story.fill("It rained all day and the keeper wrote. " * 1500)
    expect(page.locator("#meter")).to_contain_text(", of 8192")
    page.wait_for_function(f"() => {UNSEEN} > 1000")
    expect(page.get_by_text("The model no longer sees the shaded text.")).to_be_visible()
    # A story goes into a file and comes back from it, memory and note too.
    story.fill("Once\n<script>alert(1)</script>")
    with settings(page) as drawer:
        drawer.get_by_label("Memory").fill("A lighthouse.")
    page.locator("#title").fill("Rain")
    with page.expect_download() as download:
        story_action(page, "Rain", "Export")
    assert download.value.suggested_filename == "Rain.json"
    download.value.save_as(tmp_path / "Rain.json")
    page.locator("#new").click()
    expect(story).to_have_value("")
    page.locator("#load").set_input_files(tmp_path / "Rain.json")
    expect(story).to_have_value("Once\n<script>alert(1)</script>")
    expect(page.locator("#memory")).to_have_value("A lighthouse.")
    (tmp_path / "no.json").write_text("{}")
    page.locator("#load").set_input_files(tmp_path / "no.json")
    expect(page.locator("#toasts")).to_contain_text("no.json: it contains no story")
    # A reload in the middle of a continuation keeps what had come.
    page.locator("#new").click()
    story.fill("The wind")
    likeliest(page)
    page.locator("#go").click()
    page.wait_for_function("() => document.querySelector('#story').value.length > 60", timeout=WAIT)
    had = story.input_value()
    page.reload()
    lamp(page, "blue")
    page.wait_for_function("() => document.querySelector('#story').value.startsWith('The wind')")
    assert story.input_value()[: len(had) - 20] == had[: len(had) - 20]
    # The stories are in the list: the first two were saved meanwhile.
    expect(page.locator("#stories li")).to_have_count(3)


def test_a_novel_and_characters_of_two_units(server: Server, page: Page) -> None:
    lamp(page, "blue")
    # More than a message may have: the tab stays connected, and the story is kept.
    page.evaluate(PASTE, "It rained. " * 600_000)
    page.wait_for_function(f"() => {UNSEEN} > 6_000_000")
    expect(page.locator("#saved")).to_have_text("saved")
    lamp(page, "blue")
    # Each of these is two of the browser's units and several tokens: the shade ends where the model's view begins.
    page.locator("#new").click()
    page.evaluate(PASTE, "\N{CLOUD WITH RAIN}\N{PERSON WITH FOLDED HANDS}" * 10_000)
    page.wait_for_function("() => document.querySelector('#story').value.length > 20_000")
    expect(page.locator("#meter")).to_contain_text(", of 8192")
    page.wait_for_function(f"() => {UNSEEN} > 30_000")
    assert page.evaluate(f"() => {UNSEEN}") < 40_000


def test_a_character_has_a_soft_prompt_of_its_own(server: Server, page: Page, tmp_path: Path) -> None:
    server.add("keeper")
    page.get_by_role("link", name="Chat", exact=True).click()
    expect(page.locator("#choices input[value=keeper]")).to_have_count(1)
    for name in ("Ada", "Bob"):
        (tmp_path / f"{name}.json").write_text(f'{{"name": "{name}", "first_mes": "I am {name}."}}')
        page.locator("#card").set_input_files(tmp_path / f"{name}.json")
        expect(page.locator("#turns")).to_contain_text(f"I am {name}.")
        choose(page, "keeper" if name == "Ada" else "/none")
        expect(page.locator("#chat-saved")).to_have_text("saved")
    lamp(page, "blue")
    chats = page.locator("#chats")
    chats.get_by_role("button", name="Ada").click()
    expect(page.locator("#turns")).to_contain_text("I am Ada.")
    lamp(page, "green")
    chats.get_by_role("button", name="Bob").click()
    lamp(page, "blue")
    # A chat goes into a file and comes back from it.
    chats.get_by_role("button", name="Ada").click()
    expect(page.locator("#turns")).to_contain_text("I am Ada.")
    row = chats.locator("li", has_text="Ada")
    row.get_by_role("button", name="Actions").click()
    with page.expect_download() as download:
        row.get_by_role("button", name="Export").click()
    download.value.save_as(tmp_path / "Ada again.json")
    page.locator("#chat-new").click()
    expect(page.locator("#turns article")).to_have_count(0)
    page.locator("#card").set_input_files(tmp_path / "Ada again.json")
    expect(page.locator("#turns")).to_contain_text("I am Ada.")
    expect(page.locator("#chat-with")).to_contain_text("Ada")
    lamp(page, "green")
    # What a card says stays text, whatever it is; half a character is none.
    (tmp_path / "odd.json").write_text('{"name": "<b>\\ud800</b>", "first_mes": "<script>alert(1)</script>"}')
    page.locator("#card").set_input_files(tmp_path / "odd.json")
    expect(page.locator("#turns")).to_contain_text("<script>alert(1)</script>")
    # The file of a soft prompt that is active goes away: the lamp says so.
    choose(page, "keeper")
    lamp(page, "green")
    (server.library / "keeper.zip").unlink()
    lamp(page, "blue")
    expect(page.locator("#lamp-text")).to_contain_text("The soft prompt keeper is gone")


def test_no_model_then_one_and_a_chat(chromium: Browser, tmp_path: Path) -> None:
    """The first visit of all: grey, a model is chosen on the page, blue; a character from a card answers."""
    server = Server(tmp_path)
    try:
        page = chromium.new_page(viewport={"width": 375, "height": 760})
        page.add_init_script(SOCKET)
        page.goto(server.url)
        lamp(page, "grey")
        expect(page.locator("#lamp-text")).to_have_text("No model is loaded")
        fitting(page)
        shot(page, "first-visit-phone")
        page.get_by_role("button", name="Choose a model").click()
        fitting(page)
        page.get_by_role("button", name="Load smollm2").click()
        # The dialog closes itself, and says so.
        expect(page.locator("#models")).to_be_hidden(timeout=WAIT)
        expect(page.locator("#toasts")).to_contain_text("smollm2 is loaded")
        lamp(page, "blue")
        page.get_by_role("link", name="Prompts", exact=True).click()
        page.get_by_role("button", name="Add the starter prompts").click()
        expect(page.locator("#toasts")).to_contain_text("Added to the library")
        fitting(page)
        load = page.locator("#rows").get_by_role("button", name=re.compile("^Load")).first.bounding_box()
        assert load is not None
        assert load["x"] + load["width"] <= 375, "what can be done with a soft prompt is in sight"
        shot(page, "prompts-phone")
        page.get_by_role("link", name="Chat", exact=True).click()
        card = tmp_path / "ada.json"
        card.write_text(
            '{"name": "Ada", "description": "{{char}} keeps a lighthouse.", "first_mes": "Good <b>evening</b>."}'
        )
        page.locator("#card").set_input_files(card)
        expect(page.locator("#turns article")).to_have_count(1)
        expect(page.locator("#turns")).to_contain_text("Good <b>evening</b>.")
        page.locator("#say-text").fill("Who are you?")
        page.locator("#say-text").press("Enter")
        expect(page.locator("#turns article")).to_have_count(3)
        expect(page.locator("#chat-go")).to_be_enabled(timeout=WAIT)
        assert page.locator("#turns article p").last.inner_text().strip()
        fitting(page)
        shot(page, "chat-phone")
        page.get_by_role("link", name="Connect", exact=True).click()
        httpx.get(f"{server.url}/v1/models", headers={"User-Agent": "a-client/1"})
        expect(page.locator("#clients")).to_contain_text("a-client/1")
        fitting(page)
        shot(page, "connect-phone")
        # It is remembered: the next server starts with it.
        page.close()
        server.kill()
        server.again()
        assert httpx.get(f"{server.url}/health").json()["model"] == "smollm2"
    finally:
        server.close()


def test_every_page_at_every_width(server: Server, page: Page) -> None:
    lamp(page, "blue")
    for width in (375, 1100):
        page.set_viewport_size({"width": width, "height": 800})
        for name in ("write", "chat", "prompts", "train", "connect"):
            page.goto(f"{server.url}/#{name}")
            expect(page.locator(f"#{name}")).to_be_visible()
            assert page.evaluate("() => scrollY") == 0, "the links to the other pages are in sight"
            fitting(page)
            shot(page, f"page-{name}-{width}")


def test_a_key_is_asked_for_once(chromium: Browser, tmp_path: Path) -> None:
    server = Server(tmp_path, "--model", "smollm2", "--api-key", "the key")
    try:
        page = chromium.new_page()
        page.goto(server.url)
        expect(page.locator("#login")).to_be_visible()
        expect(page.locator("#lamp-text")).to_have_text("The server needs its key")
        page.locator("#login-key").fill("wrong")
        page.locator("#login").get_by_role("button", name="Open").click()
        expect(page.locator("#login-status")).to_contain_text("not the key")
        page.locator("#login-key").fill("the key")
        page.locator("#login").get_by_role("button", name="Open").click()
        lamp(page, "blue")
        page.reload()
        lamp(page, "blue")
        page.close()
    finally:
        server.close()


def test_ten_tabs_stay_live_and_the_first_view_takes_little(server: Server, chromium: Browser) -> None:
    """Counted: how quick it is, benchmarks/page.py measures."""
    context = chromium.new_context()
    first = context.new_page()
    asked: list[str] = []
    first.on("request", lambda request: asked.append(request.url))
    first.goto(server.url)
    lamp(first, "blue")
    expect(first.get_by_role("button", name="Continue")).to_be_enabled()
    files = [url for url in asked if "/static/" in url]
    assert len(files) == len(set(files))
    # Some routes are polled.
    assert len(set(asked)) <= 75
    tabs = [first, *(context.new_page() for _ in range(9))]
    for tab in tabs[1:]:
        tab.goto(server.url)
    lamps = [tab.locator("#lamp") for tab in tabs]
    for one in lamps:
        expect(one).to_have_attribute("data-kind", "blue")
    server.add("keeper")
    until(lambda: "keeper.zip" in httpx.get(f"{server.url}/api/v1/config/soft_prompts_list").text)
    httpx.put(f"{server.url}/api/v1/config/soft_prompt", json={"value": "keeper.zip"})
    for one in lamps:
        expect(one).to_have_attribute("data-kind", "green")
    context.close()


def test_where_no_socket_gets_through_the_page_posts_and_polls(server: Server, chromium: Browser) -> None:
    """A notebook's proxy: HTTP passes, WebSockets do not."""
    context = chromium.new_context()
    context.route_web_socket(re.compile(".*"), lambda socket: socket.close())
    page = context.new_page()
    page.add_init_script("window.WebSocket = class { constructor() { setTimeout(() => this.onclose?.(), 10); } };")
    page.goto(server.url)
    lamp(page, "blue")
    page.locator("#story").fill("The keeper")
    likeliest(page)
    new_tokens(page, 1000)
    page.get_by_role("button", name="Continue").click()
    page.wait_for_function("() => document.querySelector('#story').value.length > 30", timeout=WAIT)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_role("button", name="Continue")).to_be_enabled()
    context.close()
