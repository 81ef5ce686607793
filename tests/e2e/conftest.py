"""A server with SmolLM2, a browser, and a tab of it that talks to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.browser import browser
from tests.e2e.steps import Server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path, "--model", "smollm2")
    yield one
    one.close()


@pytest.fixture
def page(server: Server, chromium: Browser) -> Iterator[Page]:
    """A tab of a fresh browser. Whatever it asks of elsewhere, and what breaks in it, fails the test."""
    context = chromium.new_context(viewport={"width": 1100, "height": 900}, accept_downloads=True)
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
