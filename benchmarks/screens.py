"""Draw the pictures of docs/ui.md: each screen at 1280, 768 and 375 px, light and dark, on one sheet.

A real server with the bundled model: its prompts, a story that it continues, a chat, a training run of 40 steps. Some minutes.

    python -m benchmarks.screens docs/pictures        all of them
    python -m benchmarks.screens docs/pictures write chat
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from sordino import formats
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.e2e.browser import browser
from tests.e2e.steps import SOCKET, WAIT, Server, choose, lamp

WIDTHS, HEIGHT, SCALE, GAP = (1280, 768, 375), 800, 0.6, 16
DATA = resources.files("sordino").joinpath("data")
STORY = (
    "Wind NW by N, six and rising. The boat did not come.\n\n"
    "I trimmed the lamp at four and sat by it until the bread was done. A gull has taken to the east window, and looks in "
    "as a clerk looks in who has been told to wait.\n\n"
)
CHAT = [
    {
        "role": "assistant",
        "content": "*She sets the lamp down.* You are wet, Tom. Come in, before the stairs are wet too.",
    },
    {"role": "user", "content": "Thank you. I saw the lamp from the pier."},
]
STEPS = 40
# Shown alone too, at 1280 px and light.
ALONE = {"compare": "write.png"}


def main() -> None:
    folder, *names = sys.argv[1:]
    expect.set_options(timeout=WAIT)
    with tempfile.TemporaryDirectory() as place, browser() as chromium:
        server = Server(Path(place))
        try:
            _draw(server, chromium, Path(folder), names or list(SCREENS))
        finally:
            server.close()


def _draw(server: Server, chromium: Browser, folder: Path, names: Sequence[str]) -> None:
    if "first" in names:
        _sheet(server, chromium, folder, "first")
    _furnish(server, chromium)
    if "run" in names:
        _train(server)
    for name in names:
        if name != "first":
            _sheet(server, chromium, folder, name)


def _furnish(server: Server, chromium: Browser) -> None:
    """A model, the packaged prompts and one made for another model, a story with a continuation, a chat."""
    httpx.post(f"{server.url}/ui/models", json={"name": "smollm2"}).raise_for_status()
    for file in DATA.joinpath("prompts").iterdir():
        (server.library / file.name).write_bytes(file.read_bytes())
    old = SoftPrompt(
        np.zeros((20, 4096), dtype=np.float32) + 0.01,
        Metadata(name="Sonnets", author="an old list", base=BaseRef(id="EleutherAI/gpt-j-6B")),
    )
    formats.write(old, server.library / "sonnets.zip")
    with _page(server, chromium, 1280, "light") as page:
        lamp(page, "blue")
        choose(page, "keeper")
        page.locator("#title").fill("The east window")
        page.locator("#story").fill(STORY)
        page.locator("#go").click()
        expect(page.locator("#go")).to_be_enabled()
        expect(page.locator("#saved")).to_have_text("saved")
    chat = {"title": "Ada", "character": {"name": "Ada", "system": "Ada keeps the light."}, "chat": CHAT, "revision": 0}
    httpx.put(f"{server.url}/ui/stories/ada", json={"text": "", "memory": "", "note": "", **chat}).raise_for_status()


def _train(server: Server) -> None:
    texts = [("files", (file.name, file.read_bytes())) for file in DATA.joinpath("keeper", "train").iterdir()]
    run = httpx.post(f"{server.url}/ui/texts", files=texts).raise_for_status().json()["id"]
    settings = {"settings": {"name": "The keeper's log", "steps": STEPS}}
    httpx.post(f"{server.url}/ui/jobs/{run}/train", json=settings).raise_for_status()
    while (job := httpx.get(f"{server.url}/ui/jobs").json()[0])["state"] != "done":
        assert job["state"] not in ("failed", "stopped"), job
        time.sleep(2)


@contextmanager
def _page(server: Server, chromium: Browser, width: int, scheme: Any) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
    # With a seed: the same pictures each time.
    context.add_init_script(SOCKET)
    page = context.new_page()
    page.goto(server.url)
    yield page
    context.close()


def _sheet(server: Server, chromium: Browser, folder: Path, name: str) -> None:
    rows = []
    for scheme in ("light", "dark"):
        pictures = []
        for width in WIDTHS:
            with _page(server, chromium, width, scheme) as page:
                if name != "first":
                    lamp(page, "blue")
                    choose(page, "keeper")
                SCREENS[name](page)
                page.mouse.move(0, HEIGHT - 1)
                page.wait_for_timeout(500)
                pictures.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        rows.append(pictures)
    if name in ALONE:
        rows[0][0].save(folder / ALONE[name], optimize=True)
    sheet = Image.new("RGB", (sum(WIDTHS) + GAP * (len(WIDTHS) - 1), 2 * HEIGHT + GAP), "#8d867a")
    for row, pictures in enumerate(rows):
        at = 0
        for picture in pictures:
            sheet.paste(picture, (at, row * (HEIGHT + GAP)))
            at += picture.width + GAP
    small = sheet.resize((round(sheet.width * SCALE), round(sheet.height * SCALE)), Image.Resampling.LANCZOS)
    small.save(folder / f"ui-{name}.webp", quality=88, method=6)
    print(f"ui-{name}.webp", flush=True)


def _place(hash_: str, ready: str = "") -> Callable[[Page], None]:
    def turn(page: Page) -> None:
        page.evaluate("hash => { location.hash = hash; }", hash_)
        if ready:
            expect(page.locator(ready).first).to_be_visible()

    return turn


def _open_story(page: Page) -> None:
    if page.locator("#stories-side").is_hidden():
        page.locator("#stories-open").click()
    page.locator("#stories").get_by_role("button", name="The east window").click()
    expect(page.locator("#title")).to_have_value("The east window")
    if page.viewport_size["width"] < 960 and page.locator("#stories-side").is_visible():
        page.keyboard.press("Escape")


def _compare(page: Page) -> None:
    _open_story(page)
    page.locator("#compare-open").click()
    page.locator("#compare-go").click()
    expect(page.locator("#compare-go")).to_have_text("Compare")


def _clicked(button: str, story: bool = False) -> Callable[[Page], None]:
    def click(page: Page) -> None:
        if story:
            _open_story(page)
        page.locator(button).click()

    return click


def _chat(page: Page) -> None:
    _place("#chat")(page)
    if page.locator("#chats-side").is_hidden():
        page.locator("#chats-open").click()
    page.locator("#chats").get_by_role("button", name="Ada").first.click()
    expect(page.locator("#turns")).to_contain_text("the pier")


def _run(page: Page) -> None:
    page.evaluate("async () => { location.hash = `#train/${(await (await fetch('ui/jobs')).json())[0].id}`; }")
    expect(page.locator("#run .verdict")).to_be_visible()


SCREENS: dict[str, Callable[[Page], None]] = {
    "first": lambda page: expect(page.locator("#first")).to_be_visible(),
    "write": _open_story,
    "compare": _compare,
    "settings": _clicked("#settings-open", story=True),
    "lamp": _clicked("#lamp-open", story=True),
    "models": _clicked("#model-open"),
    "chat": _chat,
    "prompts": _place("#prompts", "#rows > li"),
    "prompt": _place("#prompts/keeper", "#prompt h2"),
    "train": _place("#train", "#texts-drop"),
    "run": _run,
    "connect": _place("#connect"),
}

if __name__ == "__main__":
    main()
