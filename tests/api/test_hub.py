"""The Hub from Python, with a stand-in for it."""

from __future__ import annotations

from pathlib import Path

import pytest

import sordino
from sordino.errors import BadInput, HubError
from tests.hub_repositories import keeper
from tests.hub_server import stand_in, use

# The Hub's client itself sends large files in a way that its HTTP library calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_what_is_pushed_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper().save(tmp_path / "keeper.zip")
    with stand_in() as server:
        use(server, tmp_path / "home", monkeypatch)
        address = sordino.push(tmp_path / "keeper.zip", "ines/keeper", licence="MIT", private=True)
        assert address == f"{server.address}/ines/keeper"
        loaded = sordino.load("hf:ines/keeper@main")
        assert (loaded.content_hash, loaded.metadata.licence) == (keeper().content_hash, "MIT")
        assert sordino.peek("hf:ines/keeper").n_tokens == 4
        with pytest.raises(HubError, match="no such repository"):
            sordino.load("hf:ines/other")
        server.repositories["ines/keeper"].private = False
        with pytest.raises(BadInput, match="leave private out"):
            sordino.push(tmp_path / "keeper.zip", "ines/keeper", private=True)
