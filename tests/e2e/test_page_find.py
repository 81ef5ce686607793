"""Find, in a real browser, and the page that `sordino gallery build` makes, from a real host of files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from sordino import formats
from sordino.library.gallery.build import build_site
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.e2e.steps import NEEDED, fitting, shot
from tests.library.gallery.serving import FileHost, file_host
from tests.prompt_files import matrix
from tests.server.running import Running, voice

pytestmark = NEEDED

SAMPLE = {"prompt": "At dusk", "with": " the lamp was trimmed.", "without": " it rained."}


@pytest.fixture
def host(tiny: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileHost]:
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    voices = tmp_path / "voices"
    voices.mkdir()
    one = voice(tiny.base, 5, name="Lighthouse", author="Ines", description="Fog and oil", samples=(SAMPLE,))
    formats.write(one, voices / "lighthouse.zip")
    formats.write(voice(tiny.base, 6, name="Another keeper"), voices / "keeper.zip")
    dark = Metadata(name="Dark", rating="mature", supported=("org/other",))
    formats.write(SoftPrompt(matrix(7), dark), voices / "dark.zip")
    build_site(voices, tmp_path / "site", title="Voices")
    before = {path.name: path.read_bytes() for path in tiny.folder.glob("*.zip")}
    with file_host(tmp_path / "site") as files:
        yield files
    # The server is shared.
    for one in httpx.get(f"{tiny.url}/ui/find").json()["galleries"]:
        httpx.delete(f"{tiny.url}/ui/find/galleries/{one['name']}")
    for path in tiny.folder.glob("*.zip"):
        path.unlink()
    for name, content in before.items():
        (tiny.folder / name).write_bytes(content)


def test_from_an_address_to_the_library(tab: Page, host: FileHost) -> None:
    tab.get_by_role("link", name="Prompts", exact=True).click()
    tab.get_by_role("link", name="Find", exact=True).click()
    fitting(tab)
    tab.get_by_role("button", name="Add a gallery").click()
    address = tab.get_by_label("Add one:")
    address.fill("http://files.example/voices")
    address.press("Enter")
    expect(tab.locator("#gallery-status")).to_contain_text("plain http")
    address.fill(f"{host.url}/index.html")
    address.press("Enter")
    expect(tab.get_by_text("Galleries (1)")).to_be_visible()
    rows = tab.locator("#found > li")
    # What fits comes first, and what is mature is not there.
    expect(rows).to_have_count(2)
    expect(rows.get_by_text("Made for this model")).to_have_count(2)
    shot(tab, "find-1280")
    tab.get_by_role("checkbox", name="Mature").check()
    expect(rows).to_have_count(3)
    expect(rows.nth(2)).to_contain_text("Dark")
    expect(rows.nth(2)).to_contain_text("Does not fit")
    tab.locator("#find-fit").select_option("fits")
    expect(rows).to_have_count(2)
    tab.locator("#find-words").fill("fog ines")
    expect(rows).to_have_count(1)
    rows.get_by_text("With and without it").click()
    expect(rows).to_contain_text("it rained.")

    path, arrived, released = "/files/lighthouse.zip", threading.Event(), threading.Event()
    host.held[path] = (500, arrived, released)
    host.cuts[path] = [10]
    tab.get_by_role("button", name="Install Lighthouse").click()
    expect(tab.get_by_role("progressbar", name="Installing Lighthouse")).to_have_attribute("value", "500")
    fitting(tab)
    tab.get_by_role("button", name="Cancel Lighthouse").click()
    released.set()
    expect(tab.get_by_role("button", name="Install Lighthouse")).to_be_visible()
    # The comparison stayed open while all that was drawn.
    expect(rows).to_contain_text("it rained.")
    del host.held[path]
    tab.get_by_role("button", name="Install Lighthouse").click()
    expect(tab.locator("#toasts")).to_contain_text("Lighthouse is in the library")
    tab.locator("#found").get_by_role("link", name="Open Lighthouse").click()
    expect(tab.locator("#details-title")).to_have_text("Lighthouse")


def test_what_goes_wrong_is_a_sentence(tab: Page, host: FileHost, tiny: Running, tmp_path: Path) -> None:
    tab.goto(f"{tiny.url}/#find")
    tab.locator("#galleries-count").click()
    tab.get_by_label("Add one:").fill(f"{host.url}/gallery.json")
    tab.get_by_role("button", name="Add", exact=True).click()
    tab.get_by_role("button", name="Install Another keeper").click()
    expect(tab.get_by_text("Another soft prompt has this name.")).to_be_visible()
    tab.get_by_role("button", name="Replace Another keeper").click()
    expect(tab.get_by_role("link", name="Open Another keeper")).to_be_visible()

    formats.write(voice(tiny.base, 8, name="New lighthouse"), tmp_path / "voices" / "new.zip")
    build_site(tmp_path / "voices", tmp_path / "site", title="Voices")
    tab.get_by_role("button", name="Look again at Voices").click()
    expect(tab.locator("#gallery-list")).to_contain_text("new: new")
    host.files["/files/new.zip"] = b"x" * len(host.content("/files/new.zip") or b"")
    tab.get_by_role("button", name="Install New lighthouse").click()
    expect(tab.locator("#found > li", has_text="New lighthouse")).to_contain_text("not the file that was listed")
    tab.set_viewport_size({"width": 375, "height": 800})
    fitting(tab)
    shot(tab, "find-375")
    for button in range(2):
        tab.locator("#gallery-list").get_by_role("button", name=["Remove", "Really delete?"][button]).click()
    expect(tab.locator("#galleries-count")).to_have_text("Galleries")


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("place", ["host", "disk"])
def test_the_built_page(host: FileHost, chromium: Browser, tmp_path: Path, place: str, width: int) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    address = f"{host.url}/index.html" if place == "host" else f"file://{tmp_path}/site/index.html"
    page.goto(address)
    cards = page.locator(".card:visible")
    expect(cards).to_have_count(2)
    expect(page.get_by_role("heading", name="Dark")).to_be_hidden()
    page.get_by_label("Rating").select_option(label="Mature")
    expect(cards).to_have_count(1)
    expect(page.get_by_role("heading", name="Dark")).to_be_visible()
    page.get_by_label("Rating").select_option(label="All ratings")
    expect(cards).to_have_count(3)
    expect(page.locator("#count")).to_have_text("3 shown")
    page.locator("#model").select_option(label="org/other")
    expect(cards).to_have_count(1)
    page.locator("#model").select_option("")
    page.locator("#words").fill("oil")
    expect(cards).to_have_count(1)
    expect(cards.get_by_text("it rained.")).to_be_hidden()
    cards.get_by_text("Compare with the model alone").click()
    expect(cards.get_by_text("it rained.")).to_be_visible()
    command = cards.locator("code").inner_text()
    if place == "host":
        assert command.startswith(f"sordino install {host.url}/files/lighthouse.zip#sha256=")
        expect(page.locator("#add code")).to_have_text(f"sordino gallery add {host.url}/gallery.json")
    else:
        assert command == f"sordino install {tmp_path}/site/files/lighthouse.zip"
    assert not said
    if place == "host":
        # On the disk, axe itself would ask for what the page's policy forbids.
        fitting(page)
    page.locator("#words").fill("nothing like it")
    expect(page.get_by_text("No matches")).to_be_visible()
    context.close()
