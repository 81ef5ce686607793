"""What the tests of the page have in common: its server, the lamp, what holds for every view, pictures."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from sordino.models.cache import cache_folder
from tests.e2e.browser import AXE, CHROMIUM, faults
from tests.server.process import Process, started
from tests.waiting import until

NEEDED = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: make e2e"),
]

PROMPTS = resources.files("sordino").joinpath("data", "prompts")

# Every message that the page sends is in `window.sent`, too.
KEEPS_SENT = """window.sent = [];
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (said) { window.sent.push(said); return send.call(this, said); };
"""
# Puts a text into the story as a paste does, with the caret at its end.
PASTE = """text => {
    const field = document.querySelector("#story");
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
}"""
# window.took: milliseconds from each key to the end of the frame that shows it.
WATCH_KEYS = """() => {
    window.took = [];
    const begun = [], channel = new MessageChannel();
    channel.port1.onmessage = () => window.took.push(performance.now() - begun.shift());
    document.addEventListener("keydown", (event) => requestAnimationFrame(() => {
        begun.push(event.timeStamp);
        channel.port2.postMessage(0);
    }), true);
}"""

# In each tab of `tab` and `page`. window.sent: what the page asks the engine for, as it leaves the browser; with a seed, so that
# what is drawn at random is the same in each run. window.held: answers of the engine that the page has not received yet
# (`held_answers`).
SOCKET = """
window.sent = [], window.held = null, window.drawn = 0;
const { send } = WebSocket.prototype, { set } = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
WebSocket.prototype.send = function (said) {
    const message = JSON.parse(said);
    if (message.do === "write") message.seed ??= ++window.drawn;
    window.sent.push(message);
    return send.call(this, JSON.stringify(message));
};
Object.defineProperty(WebSocket.prototype, "onmessage", {
    set(receive) {
        set.call(this, (event) => {
            if (window.held && JSON.parse(event.data).is !== "state") window.held.push(() => receive(event));
            else receive(event);
        });
    },
});
"""
# What a desktop gives a page when files are let go over it: the browser makes them from bytes, and the events are the real ones.
_DROP = """(place, [files, at]) => {
    const given = new DataTransfer();
    for (const [name, bytes] of files) {
        given.items.add(new File([Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0))], name));
    }
    const over = at ? document.querySelector(at) : place;
    const tell = (kind) => over.dispatchEvent(new DragEvent(kind, { dataTransfer: given, bubbles: true, cancelable: true }));
    tell("dragenter");
    const taken = !tell("dragover"), marked = place.classList.contains("over");
    tell("drop");
    return [taken, marked, place.classList.contains("over")];
}"""

# Milliseconds for what the model writes, or a training run does. They take a second or two where nobody else wants the machine;
# beside other work, and a run gives way to all of it, minutes. A wait ends as soon as what it is for is there, so a long one
# lets nothing through that a short one would not: how quick the page is, others measure.
WAIT = 240_000
# And for what the page and the server do by themselves: expect waits as long, where no other time is given (conftest.py).
PAGE = 120_000


class Server:
    """`sordino serve`, which a test may stop and start again at the same address.

    The library is where a user has it, in a home of the test's own: pictures show that. The cache of models is the user's.
    memory: bytes that the server, and each process that it starts, may have.
    """

    def __init__(self, folder: Path, *flags: str, memory: int | None = None) -> None:
        home = folder / "home"
        self.library = home / ".local" / "share" / "sordino" / "soft_prompts"
        self.library.mkdir(parents=True)
        self.training = folder / "config" / "sordino" / "training"
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        self._env = {
            "XDG_CONFIG_HOME": str(folder / "config"),
            "HOME": str(home),
            "XDG_CACHE_HOME": cache,
            "SORDINO_CACHE": str(cache_folder()),
        }
        self._flags = ("--library", str(self.library), "--runner", "torch", *flags)
        self._memory = memory
        self._stack = started(*self._flags, "--port", "0", env=self._env, memory=memory)
        self.process: Process = self._stack.__enter__()
        self.url = self.process.url()

    def kill(self) -> None:
        self.process.process.send_signal(signal.SIGKILL)
        self._stack.__exit__(None, None, None)

    def again(self) -> None:
        port = self.url.rpartition(":")[2]
        self._stack = started(*self._flags, "--port", port, env=self._env, memory=self._memory)
        self.process = self._stack.__enter__()
        self.process.url()

    def close(self) -> None:
        self._stack.__exit__(None, None, None)
        # Runs outlive their server; one that a failed test left would take the machine from the tests after it.
        for path in self.training.glob("*/job.json"):
            if pid := json.loads(path.read_bytes()).get("pid"):
                with suppress(psutil.Error):
                    psutil.Process(pid).kill()

    def clear(self) -> None:
        """As a new user has it: no soft prompts, no default, no stories."""
        if self.process.process.poll() is not None:
            self.again()
        httpx.put(f"{self.url}/api/v1/config/soft_prompt", json={"value": ""}).raise_for_status()
        for one in httpx.get(f"{self.url}/ui/stories").json():
            httpx.delete(f"{self.url}/ui/stories/{one['id']}").raise_for_status()
        for path in self.library.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        until(lambda: not httpx.get(f"{self.url}/v1/soft_prompts").json()["data"])

    def add(self, *names: str) -> None:
        """Put packaged soft prompts into the library."""
        for name in names:
            (self.library / f"{name}.zip").write_bytes(PROMPTS.joinpath(f"{name}.zip").read_bytes())


@contextmanager
def held_answers(page: Page) -> Iterator[None]:
    """What the engine answers reaches the page after this block: meanwhile the model writes, however fast it is."""
    page.evaluate("() => { window.held = []; }")
    yield
    page.evaluate("() => { const { held } = window; window.held = null; for (const receive of held) receive(); }")


def sent(page: Page) -> dict[str, Any]:
    """The last text that the page asked for."""
    last: dict[str, Any] = page.evaluate("() => window.sent.filter((one) => one.do === 'write').at(-1)")
    return last


def drop(place: Locator, files: Sequence[tuple[str, bytes]], at: str = "") -> None:
    """Let files go over a place that takes them, or over another element, `at`, while that place is shown."""
    expect(place).to_be_visible()
    made = [(name, base64.b64encode(content).decode()) for name, content in files]
    # Taken: the browser would otherwise open the file in place of the page. Marked while it is over, and not after.
    assert place.evaluate(_DROP, [made, at]) == [True, True, False]


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("SORDINO_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def lamp(page: Page, kind: str) -> None:
    """The lamp becomes of this kind, and is of this colour on the screen."""
    expect(page.locator("#lamp")).to_have_attribute("data-kind", kind, timeout=WAIT)
    picture = Image.open(io.BytesIO(page.locator("#lamp").screenshot())).convert("RGB")
    red, green, blue = picture.getpixel((picture.width // 2, picture.height // 2))
    seen = "grey" if max(red, green, blue) - min(red, green, blue) < 20 else "green" if green > blue else "blue"
    assert seen == kind


def fitting(page: Page) -> None:
    """Nothing is wider than the window, and axe finds nothing serious."""
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    assert faults(page) == []


def choose(page: Page, name: str) -> None:
    """Choose a soft prompt in the lamp's panel: one of the library, "/none", or "/default", the server's."""
    page.locator("#lamp-open").click()
    page.locator(f'#choices input[value="{name}"]').check()
    page.locator("#lamp-open").click()
    expect(page.locator("#lamp-panel")).to_be_hidden()


@contextmanager
def settings(page: Page) -> Iterator[Locator]:
    """The drawer of Write, open meanwhile."""
    page.locator("#settings-open").click()
    yield page.locator("#settings")
    page.locator("#settings .fold").click()


def new_tokens(page: Page, count: int) -> None:
    with settings(page) as drawer:
        drawer.get_by_label("New tokens").fill(str(count))
        drawer.get_by_label("New tokens").press("Tab")


def likeliest(page: Page) -> None:
    """No chance in what is written: what is drawn at random ends after a few words now and then."""
    with settings(page) as drawer:
        drawer.get_by_label("Preset").select_option("Always the likeliest")


def open_story(page: Page, title: str) -> None:
    page.locator("#stories").get_by_role("button", name=re.compile(f"^{re.escape(title)}")).click()


def story_action(page: Page, title: str, action: str) -> None:
    """What is in the menu of a story."""
    row = page.locator("#stories li", has_text=title)
    row.get_by_role("button", name="Actions").click()
    row.get_by_role("button", name=action).click()


def prompt_row(page: Page, file: str) -> Locator:
    """The row of this file on the page Prompts."""
    return page.locator(f'#rows > li[data-file="{file}"]')


def prompt_action(page: Page, file: str, action: str) -> None:
    """What is in the menu of a soft prompt."""
    row = prompt_row(page, file)
    row.get_by_role("button", name="More about").click()
    row.locator(".menu").get_by_text(action, exact=True).click()
