"""What every place shares, in a real browser over a tiny model: messages, files that are let go, the list of models, the focus."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from playwright.sync_api import Page, Route, expect

from sordino import formats
from tests.e2e.steps import NEEDED, choose, drop, lamp, prompt_row
from tests.server.running import Running, voice

pytestmark = NEEDED


def state(page: Page, values: str) -> None:
    """Let the page learn these values of the server's state."""
    page.evaluate(f"""async () => {{
        const {{ live }} = await import("/ui/static/live.js");
        live.state = {{ ...live.state, {values} }};
        live.dispatchEvent(new Event("state"));
    }}""")


def test_a_message_stays_while_somebody_points_at_it(tab: Page) -> None:
    tab.clock.install()
    show = "async (text) => (await import('/ui/static/toast.js')).toast(text, '', { label: 'Undo', run: () => {} })"
    tab.evaluate(show, "moved")
    message = tab.locator("#toasts .toast", has_text="moved")
    message.get_by_role("button", name="Undo").hover()
    tab.clock.run_for(20_000)
    expect(message).to_be_visible()
    message.get_by_role("button", name="Undo").focus()
    tab.mouse.move(10, 10)
    tab.clock.run_for(20_000)
    expect(message).to_be_visible()
    tab.locator("#title").focus()
    tab.clock.run_for(7000)
    expect(message).to_be_hidden()


def test_text_that_is_dragged_is_the_browsers(tab: Page) -> None:
    taken = """(kind) => {
        const given = new DataTransfer();
        given.setData("text/plain", "a word");
        const event = new DragEvent(kind, { dataTransfer: given, bubbles: true, cancelable: true });
        return !document.querySelector("#say-text").dispatchEvent(event);
    }"""
    assert [tab.evaluate(taken, kind) for kind in ("dragover", "drop")] == [False, False]
    expect(tab.locator("#toasts .toast")).to_have_count(0)


def test_files_may_be_dropped_anywhere(tiny: Running, tab: Page) -> None:
    """Where nobody takes a file, the browser leaves the page for it."""
    content = (tiny.folder / "clerk.zip").read_bytes()
    places = ("write", "chat", "connect", "find", "prompts")
    for place, at in [*((place, "") for place in places), ("write", "#rail"), ("chat", "#top")]:
        tab.goto(f"{tiny.url}/#{place}")
        path = tiny.folder / f"on-{place}{at[1:]}.zip"
        drop(tab.locator(f"#{place}"), [(path.name, content)], at)
        expect(prompt_row(tab, path.name)).to_be_visible()
        path.unlink()
    tab.goto(f"{tiny.url}/#write")
    drop(tab.locator("#write"), [("The tale.txt", b"It rained.")])
    expect(tab.locator("#title")).to_have_value("The tale")
    expect(tab.locator("#story")).to_have_value("It rained.")
    tab.goto(f"{tiny.url}/#train")
    drop(tab.locator("#train"), [("log.txt", b"It rained.")])
    expect(tab.locator("#texts-list")).to_contain_text("log.txt")
    tab.get_by_role("button", name="Start over").click()


def test_a_text_that_no_place_opens_is_asked_about(tiny: Running, tab: Page) -> None:
    """In Chat it went to the library, and failed there."""
    message = tab.locator("#toasts .toast")
    for place in ("prompts", "find", "connect"):
        tab.goto(f"{tiny.url}/#{place}")
        drop(tab.locator(f"#{place}"), [("notes.txt", b"It rained.")])
        expect(message).to_contain_text("notes.txt is a text. What is it for?")
        expect(message.get_by_role("button", name="Put it in the message")).to_have_count(0)
        message.get_by_role("button", name="Close").click()
    tab.goto(f"{tiny.url}/#chat")
    drop(tab.locator("#chat"), [("notes.md", b"It rained.")])
    tab.locator("#say-text").fill("Read this:")
    message.get_by_role("button", name="Put it in the message").click()
    expect(tab.locator("#say-text")).to_have_value("Read this:\n\nIt rained.")
    expect(tab.locator("#say-text")).to_be_focused()
    expect(message).to_have_count(0)
    drop(tab.locator("#chat"), [("one.txt", b"It rained."), ("two.jsonl", b'{"text": "It snowed."}')])
    expect(message).to_contain_text("2 texts. Soft prompts are trained on texts.")
    message.get_by_role("button", name="Train on them").click()
    expect(tab.locator("#texts-list li")).to_have_text(["one.txt", "two.jsonl"])
    tab.get_by_role("button", name="Start over").click()


def test_a_message_lies_over_no_control_of_a_small_window(tab: Page) -> None:
    """At 200 % zoom it covered the button that closes Compare."""
    said = "The keeper is gone from the library. What is written next has no soft prompt."
    for size in ({"width": 640, "height": 400}, {"width": 375, "height": 667}, {"width": 320, "height": 568}):
        tab.set_viewport_size(size)
        for opened, part in (("#compare-open", "#compare"), ("#settings-open", "#settings")):
            tab.locator(opened).click()
            tab.evaluate("async (text) => (await import('/ui/static/toast.js')).toast(text, 'bad')", said)
            message = tab.locator("#toasts .toast").bounding_box()
            close = tab.locator(f"{part} .fold").bounding_box()
            go = tab.locator("#go").bounding_box()
            assert message is not None
            for control in (close, go):
                assert control is not None
                below = message["y"] + message["height"] <= control["y"]
                assert below or message["x"] + message["width"] <= control["x"], (size, part, message, control)
            tab.locator("#toasts").get_by_role("button", name="Close").click()
            tab.locator(f"{part} .fold").click()


def test_the_lamp_has_its_colour_where_the_system_chooses_the_others(tab: Page) -> None:
    choose(tab, "keeper")
    tab.emulate_media(forced_colors="active")
    lamp(tab, "green")
    current = tab.locator("#rail a[aria-current]")
    assert current.evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"


def test_several_files_go_each_where_it_belongs(tiny: Running, tab: Page, tmp_path: Path) -> None:
    """Only the first was taken, and without a word about the others."""
    old = tmp_path / "old.json"
    formats.write(voice(tiny.base, 3, name="Old"), old, to="mkultra")
    drop(tab.locator("#write"), [("One.txt", b"It rained."), (old.name, old.read_bytes()), ("Two.md", b"It snowed.")])
    expect(prompt_row(tab, "old.zip")).to_be_visible()
    (tiny.folder / "old.zip").unlink()
    tab.goto(f"{tiny.url}/#write")
    expect(tab.locator("#story")).to_have_value("It snowed.")
    for title in ("One", "Two"):
        expect(tab.locator("#stories").get_by_role("button", name=re.compile(f"^{title}"))).to_be_visible()


def test_a_dialog_takes_no_files(tab: Page) -> None:
    tab.locator("#model-open").click()
    expect(tab.locator("#models")).to_be_visible()
    refused = """(place) => {
        const given = new DataTransfer();
        given.items.add(new File(["It rained."], "tale.txt"));
        const tell = (kind) => !place.dispatchEvent(
            new DragEvent(kind, { dataTransfer: given, bubbles: true, cancelable: true }));
        return [tell("dragover"), given.dropEffect, tell("drop")];
    }"""
    assert tab.locator("#models").evaluate(refused) == [True, "none", True]
    tab.keyboard.press("Escape")
    # One that is taken comes after it.
    drop(tab.locator("#write"), [("other.txt", b"It snowed.")])
    expect(tab.locator("#title")).to_have_value("other")
    expect(tab.locator("#stories").get_by_role("button", name=re.compile("^tale"))).to_have_count(0)


def test_a_folder_is_dropped(tiny: Running, tab: Page, tmp_path: Path) -> None:
    for name in ("log/one.txt", "log/older/two.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{name}: it rained.")
    tab.goto(f"{tiny.url}/#train")
    browser = tab.context.new_cdp_session(tab)
    data = {"items": [], "files": [str(tmp_path / "log")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.send("Input.dispatchDragEvent", {"type": kind, "x": 700, "y": 300, "data": data})
    expect(tab.locator("#texts-list li")).to_have_text(["log/older/two.txt", "log/one.txt"])
    expect(tab.locator("#train-name")).to_have_value("log")
    tab.get_by_role("button", name="Start over").click()


def test_who_loses_a_soft_prompt_is_told(tiny: Running, tab: Page) -> None:
    path = tiny.folder / "lent.zip"
    formats.write(voice(tiny.base, 4, name="Lent"), path)
    choose(tab, "lent")
    expect(tab.locator("#lamp-name")).to_have_text("Lent")
    path.unlink()
    expect(tab.locator("#toasts")).to_contain_text("Lent is gone from the library")
    expect(tab.locator("#lamp-name")).to_have_text("No soft prompt")


def test_each_paragraph_runs_in_its_own_direction(tab: Page) -> None:
    tab.locator("#story").fill("שלום, עולם.\nHello, world.")
    # The text behind the field, which is laid out as the field's.
    ends = """() => [...document.querySelectorAll("#shade > div")].map((line) => {
        const range = document.createRange(), place = line.getBoundingClientRect();
        range.selectNodeContents(line);
        const text = range.getBoundingClientRect();
        return [text.left - place.left < 1, place.right - text.right < 1];
    })"""
    assert tab.evaluate(ends) == [[False, True], [True, False]]
    assert tab.locator("#story").evaluate("(field) => getComputedStyle(field).unicodeBidi") == "plaintext"


def test_a_load_is_shown_at_once(tiny: Running, tab: Page) -> None:
    """Before the server has answered; and it may be over before the next look at the server's state."""
    held: list[Route] = []
    tab.route("**/ui/models", lambda route: held.append(route) if route.request.method == "POST" else route.fallback())
    tab.locator("#model-open").click()
    loading, error = tab.locator("#models-loading"), tab.locator("#models-error")

    def ask(name: str) -> Route:
        tab.locator("#models-name").fill(name)
        tab.locator("#models").get_by_role("button", name="Load", exact=True).click()
        expect(loading).to_contain_text(f"{name}: preparing")
        expect(loading).to_be_in_viewport()
        return held.pop()

    ask("missing").fulfill(status=400, json={"error": {"message": "no such base model"}})
    expect(error).to_have_text("no such base model")
    expect(loading).to_be_hidden()
    ask("large").fulfill(json={})
    expect(error).to_have_text("")
    expect(loading).to_be_visible()
    state(tab, "loads: 1, error: 'it is too large'")
    expect(error).to_have_text("it is too large")
    expect(loading).to_be_hidden()


def test_a_model_that_is_loaded_between_two_looks(tiny: Running, tab: Page) -> None:
    """The server's state is looked at now and then: the page may never have seen that the model was being loaded."""
    tab.locator("#model-open").click()
    dialog = tab.locator("#models")
    expect(dialog).to_be_visible()
    state(tab, "loads: 1, error: 'it is too large'")
    expect(tab.locator("#models-error")).to_have_text("it is too large")
    state(tab, "loads: 2, error: '', model: { ...live.state.model, name: 'quick' }")
    expect(dialog).to_be_hidden()
    expect(tab.locator("#toasts")).to_contain_text("quick is loaded")


def test_the_story_is_left_while_it_is_read(tab: Page) -> None:
    # Nothing that the page asks for is answered.
    tab.evaluate("() => { WebSocket.prototype.send = () => {}; }")
    tab.locator("#story").fill("It rained.")
    tab.locator("#go").click()
    expect(tab.locator("#rate")).to_have_text("Reading the story ...")
    # The key that was pressed last is near: Continue is disabled, so Stop has the focus.
    expect(tab.locator("#stop")).to_be_focused()
    tab.locator("#new").click()
    expect(tab.locator("#rate")).to_have_text("")
    expect(tab.locator("#go")).to_be_enabled()


def test_the_focus_and_what_is_typed_outlive_a_change(tiny: Running, tab: Page) -> None:
    tab.goto(f"{tiny.url}/#prompts")
    row = prompt_row(tab, "keeper.zip")
    row.get_by_role("button", name="Load The keeper").press("Enter")
    expect(row.get_by_role("button", name="Unload The keeper")).to_be_focused()
    row.get_by_role("link", name="The keeper", exact=True).click()
    one = tab.locator("#prompt")
    one.get_by_role("button", name="Unload The keeper").press("Enter")
    expect(one.get_by_role("button", name="Load The keeper")).to_be_focused()
    one.locator("summary", has_text="Metadata").click()
    one.get_by_label("Description").fill("Kept by hand")
    one.get_by_label("Author").fill("B")
    # Another program changes the file meanwhile: what is not being edited is shown, and what is stays.
    changes = {"licence": "MIT", "author": "C"}
    httpx.patch(f"{tiny.url}/ui/prompts/keeper", json=changes).raise_for_status()
    expect(one.get_by_label("Licence")).to_have_value("MIT")
    expect(one.get_by_label("Description")).to_have_value("Kept by hand")
    expect(one.get_by_label("Author")).to_have_value("B")
    one.get_by_role("button", name="Save").press("Enter")
    expect(tab.locator("#toasts")).to_contain_text("Saved to keeper.zip")
    expect(one.locator(".lead")).to_have_text("Kept by hand")
    expect(one.get_by_role("button", name="Save")).to_be_focused()
    assert httpx.get(f"{tiny.url}/ui/prompts/keeper").json()["author"] == "B"
