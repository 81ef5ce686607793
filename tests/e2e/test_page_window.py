"""What every place shares, in a real browser over a tiny model: messages, files that are let go, the list of models, the focus."""

from __future__ import annotations

import httpx
from playwright.sync_api import Page, expect

from tests.e2e.steps import NEEDED, prompt_row
from tests.server.running import Running

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
