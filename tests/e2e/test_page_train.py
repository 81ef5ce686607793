"""Train in a real browser, over a tiny model: what has been typed and chosen stays, and what is said of a run is true."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page, Route, expect

from sordino import formats
from tests.e2e.steps import NEEDED
from tests.server.running import Running, voice
from tests.waiting import until

pytestmark = NEEDED


def a_run(**known: Any) -> dict[str, Any]:
    """A run, as the server describes it."""
    plain = {
        "id": "0a1b", "name": "log", "model": "elsewhere/model", "created": 1.0, "state": "done", "error": "", "named": [],
        "where": "", "steps": 20, "now": None, "settings": {"kind": "kv"}, "command": "train", "checkpoint": False,
        "report": False, "texts": ["log.txt"], "events": [], "after": 0, "results": None,
    }  # fmt: skip
    return plain | known


def text(content: str) -> list[Any]:
    return [{"name": "log.txt", "mimeType": "text/plain", "buffer": content.encode()}]


def answers(page: Page, path: str, said: object) -> None:
    page.route(f"**/ui/{path}", lambda route: route.fulfill(json=said))


def test_what_is_typed_and_chosen_stays(tiny: Running, tab: Page) -> None:
    tab.goto(f"{tiny.url}/#train")
    name, origin = tab.locator("#train-name"), tab.locator("#train-from")
    name.fill("The log")
    tab.reload()
    expect(name).to_have_value("The log")
    # Two texts of one name are two; the same one again is the same.
    pick = tab.locator("#texts-drop input[multiple]").first
    for count, content in (("1 text", "The lamp is clean."), ("2 texts", "The wind is west.")):
        pick.set_input_files(text(content))
        expect(tab.locator("#texts-status")).to_have_text(count)
    pick.set_input_files(text("The lamp is clean."))
    expect(tab.locator("#texts-list li")).to_have_text(["log (2).txt", "log.txt"])
    expect(name).to_have_value("The log")
    # What is looked at in an open list keeps the focus when another is offered; a choice outlives what is no longer.
    listed = tab.locator("#train-from-list")
    origin.click()
    listed.locator("[value=keeper]").focus()
    # The event that the list is open comes late on a busy machine.
    late = "list => list.closest('[popover]').dispatchEvent(new ToggleEvent('toggle', { newState: 'open' }))"
    listed.evaluate(late)
    expect(listed.locator("[value=keeper]")).to_be_focused()
    path = tiny.folder / "another.zip"
    formats.write(voice(tiny.base, 5, name="Another"), path)
    try:
        expect(tab.locator("#choices input[value=another]")).to_have_count(1)
        expect(listed.locator("[value=another]")).to_be_visible()
        expect(listed.locator("[value=keeper]")).to_be_focused()
        listed.locator("[value=another]").check()
        expect(listed).to_be_hidden()
    finally:
        path.unlink()
    expect(tab.locator("#choices input[value=another]")).to_have_count(0)
    expect(listed.locator("[value=another]")).to_have_count(0)
    expect(origin).to_have_js_property("value", "another")
    expect(origin).to_have_text("Another")
    # By the keyboard: the arrow keys choose, and Enter closes the list.
    origin.press("Enter")
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    expect(listed).to_be_hidden()
    expect(origin).not_to_have_js_property("value", "another")


def test_train_can_be_pressed_while_other_texts_are_read(tiny: Running, tab: Page) -> None:
    """It stayed disabled, because of a text that was removed, until the others had been measured: a minute and more."""
    refused = {"busy": False, "texts": None, "error": "log.txt: no text", "named": [], "where": "log.txt"}
    held: list[Route] = []
    tab.route("**/ui/jobs/*/look", lambda route: held.append(route))
    tab.goto(f"{tiny.url}/#train")
    pick, train = tab.locator("#texts-drop input[multiple]").first, tab.locator("#train-go")
    pick.set_input_files([*text("no text"), {**text("The lamp is clean.")[0], "name": "other.txt"}])
    until(lambda: tab.wait_for_timeout(50) or held)
    held.pop().fulfill(json=refused)
    expect(train).to_be_disabled()
    tab.get_by_role("button", name="Remove log.txt").click()
    expect(train).to_be_enabled()
    until(lambda: tab.wait_for_timeout(50) or held)
    expect(tab.locator("#train-cost")).to_have_text("Reading the texts ...")
    expect(train).to_be_enabled()
    # What is said of the texts as they were comes too late.
    stale = held.pop()
    pick.set_input_files([{**text("A third.")[0], "name": "third.txt"}])
    expect(tab.locator("#texts-list li")).to_have_count(2)
    until(lambda: tab.wait_for_timeout(50) or held)
    with tab.expect_response("**/look"):
        stale.fulfill(json=refused)
    tab.wait_for_timeout(300)
    expect(train).to_be_enabled()
    expect(tab.locator("#train-cost")).to_have_text("Reading the texts ...")
    tab.get_by_role("button", name="Start over").click()


def test_a_run_is_named_by_its_texts(tiny: Running, tab: Page) -> None:
    for names, suggested in (
        (["log-1", "log-2"], "log"),
        (["01-wind", "02-fog"], "My texts"),
        (["01-wind"], "01-wind"),
    ):
        tab.goto(f"{tiny.url}/#train")
        files: list[Any] = [{**text(name)[0], "name": f"{name}.txt"} for name in names]
        tab.locator("#texts-drop input[multiple]").first.set_input_files(files)
        expect(tab.locator("#train-name")).to_have_value(suggested)
        tab.get_by_role("button", name="Start over").click()
        expect(tab.locator("#texts-are")).to_be_hidden()


def test_a_run_is_gone_only_where_the_list_lacks_it(tiny: Running, tab: Page) -> None:
    tab.goto(f"{tiny.url}/#train")
    held: list[Route] = []
    tab.route("**/ui/jobs", lambda route: held.append(route))
    while not held:
        tab.wait_for_timeout(50)
    tab.goto(f"{tiny.url}/#train/0a1b")
    heading = tab.locator("#run h2")
    expect(heading).to_have_text("Reading the runs ...")
    # An answer from before it was opened says nothing about it.
    held.pop(0).fulfill(json=[])
    tab.wait_for_timeout(300)
    expect(heading).to_have_text("Reading the runs ...")
    tab.unroute("**/ui/jobs")
    for route in held:
        route.fulfill(json=[])
    expect(heading).to_have_text("This run is gone")


def test_what_a_run_does_before_its_steps(tiny: Running, tab: Page) -> None:
    now = {"what": "Measuring this machine", "done": 0, "total": 0, "left": 0}
    answers(tab, "jobs", [a_run(state="running", now=now)])
    answers(tab, "jobs/0a1b?*", a_run(state="running", now=now))
    tab.goto(f"{tiny.url}/#train/0a1b")
    expect(tab.locator("#run .state")).to_have_text("Measuring this machine · gives way to other work on this machine")
    expect(tab.locator("#runs small")).to_have_text("Measuring this machine")


def test_the_list_and_the_page_say_the_same_of_a_run(tiny: Running, tab: Page) -> None:
    answers(tab, "jobs", [a_run(state="running")])
    answers(tab, "jobs/0a1b?*", a_run(state="running"))
    tab.goto(f"{tiny.url}/#train/0a1b")
    expect(tab.locator("#run .state")).to_have_text(
        "Preparing the first step · gives way to other work on this machine"
    )
    expect(tab.locator("#runs small")).to_have_text("Preparing the first step")


def test_a_run_of_another_model(tiny: Running, tab: Page) -> None:
    answers(tab, "jobs", [a_run()])
    line = {"kind": "soft prompt", "label": "log", "tokens": 640, "nll": 3.5, "interval": [3.4, 3.6]}
    results = {"verdicts": ["It helps."], "heldout": [line], "distance": None, "samples": [], "notes": []}
    answers(tab, "jobs/0a1b?*", a_run(results=results))
    answers(tab, "jobs/0a1b/install", {"id": "wide"})
    answers(tab, "jobs/0a1b/again", a_run(id="0c2d", state="draft"))
    answers(tab, "jobs/0c2d/look", {"busy": False, "texts": None, "error": "no", "named": [], "where": ""})
    loads: list[object] = []

    def load(route: Route) -> None:
        if route.request.method != "POST":
            return route.fallback()
        loads.append(json.loads(route.request.post_data or ""))
        return route.fulfill(json={})

    tab.route("**/ui/models", load)
    tab.goto(f"{tiny.url}/#train/0a1b")
    run = tab.get_by_role("article", name="Run log")
    expect(run).to_contain_text("It helps.")
    run.get_by_text("Held-out losses").click()
    expect(run.get_by_role("row", name="soft prompt: log 640 3.500 3.400 to 3.600")).to_be_visible()
    expect(run).not_to_contain_text("[object")
    run.get_by_role("button", name="Try it").click()
    expect(run).to_contain_text(f"It is for elsewhere/model, and {tiny.base.name} is loaded.")
    run.get_by_role("button", name="Load elsewhere/model").click()
    tab.locator("#models-close").click()
    assert loads == [{"name": "elsewhere/model"}]
    # Trained again, it is for the same model.
    run.get_by_role("button", name="Actions").click()
    run.get_by_role("button", name="Train again with other settings").click()
    expect(tab.locator("#train-model")).to_have_js_property("value", "elsewhere/model")
    expect(tab.get_by_label("Kind")).to_have_value("kv")
    tab.get_by_role("button", name="Start over").click()
