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
def library(tmp_path: Path) -> Library:
    (tmp_path / "library").mkdir()
    return Library([tmp_path / "library"])
