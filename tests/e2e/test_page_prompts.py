"""Prompts in a real browser: old files and what is said of them, the page of one, files for another model, the list of models."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from playwright.sync_api import Browser, Page, Route, expect

from sordino import formats
from sordino.models import fingerprint
from sordino.models.cache import locked
from sordino.models.gguf_header import read_gguf_header
from tests.cases.test_old_zips import SPELLINGS, old_zip
from tests.e2e.steps import NEEDED, PROMPTS, WAIT, Server, drop, fitting, lamp, prompt_action, prompt_row
from tests.tiny_models import tiny, tiny_gguf

pytestmark = NEEDED

WIDTHS = (1280, 768, 375)


def test_a_folder_of_old_files(server: Server, page: Page, tmp_path: Path) -> None:
    """Somebody who has zips from 2022: all are taken in, and each says what it was made for and what to do."""
    lamp(page, "blue")
    page.goto(f"{server.url}/#prompts")
    files = [old_zip(tmp_path / f"old-{number}.zip", said) for number, said in enumerate(SPELLINGS)]
    page.locator("#upload").set_input_files(files)
    expect(page.locator("#toasts")).to_contain_text(f"{len(files)} added, none fits smollm2")
    expect(page.locator("#upload-failed")).to_be_hidden()
    row = prompt_row(page, "old-0.zip")
    expect(row).to_contain_text("Made for EleutherAI/gpt-j-6B (4096 wide); smollm2 is 576 wide.")
    expect(row.get_by_role("link", name="Train one for smollm2")).to_be_visible()
    # Nothing to write with: the way to a green lamp is offered again.
    page.locator("#rail a[href='#write']").click()
    expect(page.locator("#first")).to_contain_text(f"None of the {len(files)} files in the library fits smollm2.")
    expect(page.locator("#first").get_by_role("button", name="Try a starter prompt")).to_be_visible()
    page.locator("#rail a[href='#prompts']").click()
    # Those that fit come first.
    shutil.copy(str(PROMPTS.joinpath("village-gazette.zip")), server.library / "zz.zip")
    expect(page.locator("#rows > li").first).to_have_attribute("data-file", "zz.zip")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        fitting(page)
    # The way on begins to load that model: nothing is fetched in this test.
    asked: list[object] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(
            status=400, json={"error": {"message": "EleutherAI/gpt-j-6b: the Hugging Face Hub cannot be reached"}}
        )

    page.route("**/ui/models", lambda route: refuse(route) if route.request.method == "POST" else route.fallback())
    row.get_by_role("button", name="Load GPT-J 6B (about 24 GB)").click()
    expect(page.locator("#models-error")).to_have_text("EleutherAI/gpt-j-6b: the Hugging Face Hub cannot be reached")
    assert asked == [{"name": "EleutherAI/gpt-j-6b"}]


def test_files_are_dropped(page: Page) -> None:
    """Several, and a broken one."""
    lamp(page, "blue")
    page.get_by_role("link", name="Prompts", exact=True).click()
    keeper, other = (PROMPTS.joinpath(f"{name}.zip").read_bytes() for name in ("keeper", "village-gazette"))
    drop(page.locator("#prompts"), [("keeper.zip", keeper), ("<b>bad</b>.zip", b"PK nothing")])
    expect(page.locator("#toasts")).to_contain_text("1 added, it fits smollm2; 1 failed")
    expect(page.locator("#upload-failed")).to_contain_text("<b>bad</b>.zip: ")
    # Another of its name is refused in the page's own words, not in those of a field that it does not have.
    drop(page.locator("#prompts"), [("keeper.zip", other)])
    expect(page.locator("#upload-failed li")).to_contain_text("keeper.zip: another soft prompt has this name.")
    keeper_row = prompt_row(page, "keeper.zip")
    # What it says about itself is changed, and deleting takes two clicks.
    prompt_action(page, "keeper.zip", "Edit")
    page.locator("#prompt").get_by_label("Author", exact=True).fill("<i>me</i>")
    page.locator("#prompt").get_by_role("button", name="Save").click()
    expect(page.locator("#toasts")).to_contain_text("Saved to keeper.zip")
    page.get_by_role("link", name="Prompts", exact=True).click()
    expect(keeper_row).to_contain_text("<i>me</i>")
    prompt_action(page, "keeper.zip", "Delete")
    # Something else changes the table meanwhile: the question stands.
    drop(page.locator("#prompts"), [("empty.zip", b"")])
    expect(page.locator("#upload-failed")).to_contain_text("empty.zip: ")
    keeper_row.get_by_role("button", name="Really delete?").click()
    expect(page.locator("#toasts")).to_contain_text("keeper.zip moved to the library's trash")
    expect(page.get_by_text("The library is empty.")).to_be_visible()
    # It is put back, and goes again.
    page.locator("#toasts").get_by_role("button", name="Undo").click()
    expect(keeper_row).to_contain_text("<i>me</i>")


def test_the_page_of_a_soft_prompt(server: Server, page: Page) -> None:
    server.add("keeper")
    prompt = formats.read_any(Path(str(PROMPTS.joinpath("keeper.zip"))))
    kept = {"256": 0.93, "1536": 0.78}
    losses = {"no_prompt": 4.15, "soft_prompt": 3.72, "best_instruction": 4.09, "best_excerpt": 3.84}
    known = prompt.with_metadata(name="Held", heldout={**prompt.metadata.heldout, "nll": losses, "gain_kept": kept})
    formats.write_any(known, server.library / "held one.zip")
    lamp(page, "blue")
    page.goto(f"{server.url}/#prompts")
    row = prompt_row(page, "held one.zip")
    expect(row.get_by_role("img", name="gain: 0.43 nats per token")).to_be_visible()
    expect(row.get_by_role("img", name="kept: 78% after 1536 tokens of other text")).to_be_visible()
    # By the keyboard: down to the next row, Enter, and back.
    page.locator("#rows a.name").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"#prompts/(held%20one|keeper)$"))
    page.go_back()
    expect(page.locator("#library")).to_be_visible()
    # A link to it works in a fresh tab.
    page.goto(f"{server.url}/#prompts/held%20one")
    page.reload()
    one = page.locator("#prompt")
    expect(one.get_by_role("heading", name="Held", exact=True)).to_be_visible()
    expect(one).to_contain_text("It predicts held-out texts 0.43 nats per token better than the model alone")
    expect(one).to_contain_text("That is 0.37 better than the best instruction and 0.12 better than the best excerpt.")
    expect(one).to_contain_text("After 1,536 tokens of other text it keeps 78% of its gain.")
    expect(
        one.get_by_role("img", name=re.compile("^Share of the gain kept after other text: 100% at 0"))
    ).to_be_visible()
    expect(one.locator(".gains tbody tr")).to_have_count(3)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        fitting(page)
    page.set_viewport_size({"width": 1100, "height": 900})
    one.get_by_role("button", name="Load Held").click()
    lamp(page, "green")
    one.get_by_role("button", name="Unload Held").click()
    lamp(page, "blue")
    one.get_by_role("button", name="Compare").click()
    expect(page.locator("#compare-go")).to_be_visible()
    lamp(page, "green")
    page.go_back()
    one.get_by_role("button", name="Try it").click()
    expect(page.locator("#story")).to_be_visible()
    # A file that is not there is said, with the way back.
    page.goto(f"{server.url}/#prompts/nobody")
    expect(one.get_by_role("alert")).to_contain_text("no soft prompt has this name")
    one.get_by_role("link", name="Prompts").click()
    expect(page.locator("#library")).to_be_visible()
    # Gone from the list, and back.
    prompt_action(page, "held one.zip", "Delete")
    prompt_row(page, "held one.zip").get_by_role("button", name="Really delete?").click()
    expect(prompt_row(page, "held one.zip")).to_have_count(0)
    page.locator("#toasts").get_by_role("button", name="Undo").click()
    expect(prompt_row(page, "held one.zip")).to_be_visible()


def test_the_list_of_models_and_a_download(chromium: Browser, tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        page = chromium.new_page(viewport={"width": 1100, "height": 900})
        page.goto(f"{server.url}/#prompts")
        lamp(page, "grey")
        page.locator("#model-open").click()
        models = page.locator("#models")
        expect(models.get_by_role("button", name="Load smollm2")).to_be_visible()
        # Each under the heading that is true of it.
        for heading, title in (("On this machine", "SmolLM2 135M"), ("To download", "Mistral 7B")):
            group = models.locator("h3", has_text=heading).locator("xpath=following-sibling::ul[1]")
            expect(group.locator("li", has_text=title)).to_be_visible()
        row = models.locator("li", has_text="Mistral 7B")
        expect(row).to_contain_text("mistralai/Mistral-7B-Instruct-v0.3 · Apache-2.0")
        expect(row).to_contain_text("14.5 GB to download")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            fitting(page)
        # A name that is nowhere, and a hub that is not reached, are sentences beside the list.
        page.locator("#models-name").fill("/nowhere/at/all")
        models.get_by_role("button", name="Load", exact=True).click()
        expect(page.locator("#models-error")).to_contain_text("no such base model")
        page.locator("#models-name").fill("someone/not-there")
        models.get_by_role("button", name="Load", exact=True).click()
        expect(page.locator("#models-error")).to_contain_text("someone/not-there", timeout=WAIT)
        assert not re.search(r"Error\b", page.locator("#models-error").inner_text())
        # Cancelled while another process converts the same file, which would take as long as that does.
        # The seed is this test's own: no other has converted the file.
        file = tiny_gguf(tmp_path / "tiny.gguf", network=tiny("llama", dtype=torch.float32, seed=1812))
        identity = fingerprint.of_gguf(read_gguf_header(file))
        with locked(f"converted-{identity[:32]}"):
            page.locator("#models-name").fill(str(file))
            models.get_by_role("button", name="Load", exact=True).click()
            expect(page.locator("#models-loading")).to_be_visible()
            expect(page.locator("#models-progress")).to_be_visible()
            models.get_by_role("button", name="Cancel").click()
            expect(page.locator("#models-loading")).to_be_hidden(timeout=WAIT)
        expect(models).to_be_visible()
        # Loaded: the dialog closes itself.
        models.get_by_role("button", name="Load smollm2").click()
        expect(models).to_be_hidden(timeout=WAIT)
        expect(page.locator("#toasts")).to_contain_text("smollm2 is loaded")
        lamp(page, "blue")
        page.close()
    finally:
        server.close()
