"""The stand-in for the Hub in place of the Hub, and an empty library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sordino.library.library import Library
from tests.hub_server import StandIn, stand_in, use


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as made:
        use(made, tmp_path / "home", monkeypatch)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty one for a library."""
    made = tmp_path / "library"
    made.mkdir()
    return made


@pytest.fixture
def library(folder: Path) -> Library:
    return Library([folder])
