"""A server with SmolLM2, a browser, and a tab of it that talks to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import browser
from tests.e2e.sillytavern import sordino_at, tavern_at
from tests.e2e.steps import PAGE, SOCKET, Server
from tests.server.running import Running, running

# Playwright's own limit is 5 s.
expect.set_options(timeout=PAGE)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture(scope="session")
def tavern_and_sordino(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, str]]:
    """Started side by side, as both take long."""
    folders = [tmp_path_factory.mktemp(name) for name in ("sillytavern", "sordino")]
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        tavern = pool.submit(stack.enter_context, tavern_at(folders[0]))
        sordino = pool.submit(stack.enter_context, sordino_at(folders[1]))
        yield tavern.result(), sordino.result()


@pytest.fixture(scope="session")
def sordino(tavern_and_sordino: tuple[httpx.Client, str]) -> str:
    """The address of `sordino serve` with the packaged soft prompts."""
    return tavern_and_sordino[1]


@pytest.fixture(scope="session")
def tavern(tavern_and_sordino: tuple[httpx.Client, str]) -> httpx.Client:
    """A client of SillyTavern's own routes."""
    return tavern_and_sordino[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of this process, with a tiny model and a library of two soft prompts that fit it."""
    with running(tmp_path_factory.mktemp("tiny"), with_page=True) as one:
        yield one


@pytest.fixture
def tab(tiny: Running, chromium: Browser) -> Iterator[Page]:
    """A tab of a fresh browser over it. What breaks in it fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(PAGE)
    context.add_init_script(SOCKET)
    broken: list[str] = []
    context.on("weberror", lambda error: broken.append(str(error.error)))
    page = context.new_page()
    page.goto(tiny.url)
    expect(page.locator("#go")).to_be_enabled()
    yield page
    context.close()
    assert not broken


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"), "--model", "smollm2")
    yield one
    one.close()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """As a new user has it. Tests that leave more behind than soft prompts and stories have one of their own."""
    shared_server.clear()
    return shared_server


@pytest.fixture
def page(server: Server, chromium: Browser) -> Iterator[Page]:
    """A tab of a fresh browser. Whatever it asks of elsewhere, and what breaks in it, fails the test."""
    context = chromium.new_context(viewport={"width": 1100, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PAGE)
    context.add_init_script(SOCKET)
    tab = context.new_page()
    foreign: list[str] = []
    broken: list[str] = []
    own = (server.url, server.url.replace("http", "ws"), "data:", "blob:")
    context.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    context.on("weberror", lambda error: broken.append(str(error.error)))
    tab.goto(server.url)
    yield tab
    context.close()
    assert not foreign
    assert not broken
