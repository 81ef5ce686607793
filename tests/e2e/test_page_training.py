"""Training from the page, in a real browser: texts that are dropped, a run, and one that waits for it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.e2e.steps import NEEDED, Server, fitting, lamp, shot

pytestmark = NEEDED

TEXT = "The keeper wrote in the log that the lamp was clean, and that the wind had gone round to the west again. "
# A run gives way to whatever else the machine does: seconds where that is nothing.
WAIT = 240_000
SMALL = {"steps": "20", "batch": "1", "row_tokens": "32", "evaluate_every": "5", "sample_every": "5"}

# What a desktop gives a page when files are let go over it: the browser makes them from bytes, and the events are the real ones.
_DROP = """(place, files) => {
    const given = new DataTransfer();
    for (const [name, bytes] of files) {
        given.items.add(new File([Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0))], name));
    }
    const tell = (kind) => place.dispatchEvent(new DragEvent(kind, { dataTransfer: given, bubbles: true, cancelable: true }));
    tell("dragenter");
    const taken = !tell("dragover"), over = place.classList.contains("over");
    tell("drop");
    return [taken, over, place.classList.contains("over")];
}"""


def drop(place: Locator, files: Sequence[tuple[str, bytes]]) -> None:
    """Let files go over a place that takes them."""
    made = [(name, base64.b64encode(content).decode()) for name, content in files]
    # Taken: the browser would otherwise open the file in place of the page. Marked while it is over, and not after.
    assert place.evaluate(_DROP, made) == [True, True, False]


def log(number: int) -> tuple[str, bytes]:
    return f"log-{number}.txt", "\n\n".join(f"{TEXT}{number} {line} ships passed." for line in range(30)).encode()


def fill(page: Page, **more: str) -> None:
    """Settings of a run that takes seconds."""
    page.locator("#train-form summary", has_text="More").evaluate("one => { one.parentElement.open = true; }")
    for name, value in {**SMALL, **more}.items():
        page.locator(f"[name=train-{name}]").fill(value)
        page.locator(f"[name=train-{name}]").press("Tab")


def begin(page: Page, name: str, texts: Sequence[tuple[str, bytes]], **more: str) -> Locator:
    """Drop texts, wait until the page knows what they cost, and train: the run as it is shown."""
    drop(page.locator("#texts-drop"), texts)
    fill(page, **more)
    page.locator("#train-name").fill(name)
    expect(page.locator("#train-cost")).to_contain_text("steps of about", timeout=WAIT)
    page.get_by_role("button", name="Train", exact=True).click()
    return page.get_by_role("article", name=f"Run {name}", exact=True)


def test_training(server: Server, page: Page, tmp_path: Path) -> None:
    lamp(page, "blue")
    page.get_by_role("link", name="Train", exact=True).click()
    fitting(page)
    for number in range(3):
        name, content = log(number)
        (tmp_path / name).write_bytes(content)
    page.locator("#texts-drop input[multiple]").first.set_input_files([tmp_path / f"log-{n}.txt" for n in range(3)])
    # A reload keeps the texts.
    expect(page.locator("#texts-told")).to_contain_text("log-2.txt")
    page.reload()
    expect(page.locator("#texts-told")).to_contain_text("log-2.txt")
    page.locator("#train-name").fill("A <i>keeper</i>")
    fill(page)
    expect(page.locator("#texts-are")).to_contain_text("pieces to train on", timeout=WAIT)
    expect(page.locator("#train-cost")).to_contain_text("20 steps of about", timeout=WAIT)
    shot(page, "train")
    page.get_by_role("button", name="Train", exact=True).click()
    run = page.locator(".run").first
    # The curve moves, a sample appears; in the middle the page is loaded anew.
    expect(run.locator("polyline.first")).to_be_visible(timeout=WAIT)
    page.reload()
    expect(run.locator(".sample").first).to_be_visible(timeout=WAIT)
    run.scroll_into_view_if_needed()
    shot(page, "training")
    fitting(page)
    expect(run.get_by_role("button", name="Try it")).to_be_visible(timeout=WAIT)
    assert run.locator("h3").first.inner_text() == "A <i>keeper</i>"
    run.scroll_into_view_if_needed()
    shot(page, "trained")
    run.get_by_role("button", name="Try it").click()
    lamp(page, "green")
    page.locator("#story").fill("The wind")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_function("() => document.querySelector('#story').value.length > 30")


def test_files_are_dropped(page: Page) -> None:
    """Soft prompts on their page, several and a broken one; texts on theirs."""
    lamp(page, "blue")
    page.get_by_role("link", name="Soft prompts", exact=True).click()
    keeper = resources.files("sordino").joinpath("data", "prompts", "keeper.zip").read_bytes()
    drop(page.locator("#drop"), [("keeper.zip", keeper), ("<b>bad</b>.zip", b"PK nothing")])
    expect(page.locator("#prompts-told")).to_contain_text("keeper.zip: in the library as keeper")
    expect(page.locator("#prompts-told")).to_contain_text("<b>bad</b>.zip: ")
    keeper_row = page.get_by_role("row", name="keeper.zip")
    # What it says about itself is changed, and deleting takes two clicks.
    keeper_row.get_by_role("button", name="Details of").click()
    page.locator("summary", has_text="Change what it says").click()
    page.locator("#details").get_by_label("Author", exact=True).fill("<i>me</i>")
    page.locator("#details").get_by_role("button", name="Save").click()
    expect(page.locator("#details-told")).to_have_text("Written into the file.")
    page.locator("#details").get_by_role("button", name="Close").click()
    expect(keeper_row).to_contain_text("<i>me</i>")
    keeper_row.get_by_role("button", name="Delete").click()
    expect(keeper_row).to_be_visible()
    keeper_row.get_by_role("button", name="Really delete?").click()
    expect(page.locator("#prompts-told")).to_have_text("keeper.zip is in the library's trash")
    expect(page.get_by_text("The library is empty.")).to_be_visible()
    page.get_by_role("link", name="Train", exact=True).click()
    drop(page.locator("#texts-drop"), [log(0), log(1)])
    expect(page.locator("#texts-told")).to_contain_text("log-0.txt, log-1.txt")
    page.get_by_text("Paste text instead").click()
    page.locator("#paste").fill(TEXT)
    page.get_by_role("button", name="Add it").click()
    expect(page.locator("#texts-told")).to_contain_text("pasted-1.txt")
    drop(page.locator("#texts-drop"), [("latin.txt", b"na\xefve " * 999)])
    expect(page.locator("#train-cost")).to_contain_text("latin.txt, byte 2 (0xef): the text is not UTF-8", timeout=WAIT)
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_disabled()


def test_a_second_run_waits_for_the_first(page: Page) -> None:
    lamp(page, "blue")
    page.get_by_role("link", name="Train", exact=True).click()
    first = begin(page, "first", [log(0), log(1), log(2)], steps="4000", patience="0")
    expect(first.locator(".state")).to_contain_text("training; step", timeout=WAIT)
    second = begin(page, "second", [log(3), log(4), log(5)], steps="5")
    third = begin(page, "third", [log(6), log(7), log(8)], steps="5")
    expect(second.locator(".state")).to_have_text("waits for its turn")
    expect(third.locator(".state")).to_have_text("waits for its turn")
    shot(page, "queue")
    # One is taken out; the other's turn comes when the first is stopped, which can go on behind it.
    third.get_by_role("button", name="Take it out of the queue").click()
    expect(third.locator(".state")).to_contain_text("stopped")
    expect(second.locator(".state")).to_have_text("waits for its turn")
    first.get_by_role("button", name="Stop", exact=True).click()
    expect(first.locator(".state")).to_contain_text("stopped; step", timeout=WAIT)
    expect(second.locator(".state")).to_contain_text("training", timeout=WAIT)
    first.get_by_role("button", name="Resume").click()
    expect(first.locator(".state")).to_contain_text("waits for its turn")
    expect(second.get_by_role("button", name="Try it")).to_be_visible(timeout=WAIT)
    expect(first.locator(".state")).to_contain_text("training", timeout=WAIT)
    first.get_by_role("button", name="Stop", exact=True).click()
    expect(first.locator(".state")).to_contain_text("stopped", timeout=WAIT)
