"""The cell that publishes: first what it will disclose, and nothing sent; sent when that is ticked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sordino
from tests.hub_server import stand_in, use
from tests.notebooks.forms import filled

# httpx, of the Hub's client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def run_push(voice: Path, **values: Any) -> None:
    (source,) = (cell.source for cell in filled(**values).cells if cell.id == "push")
    exec(source, {"voice": voice, "report": voice.with_suffix(".html")})


def test_nothing_is_sent_before_what_is_disclosed_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    voice = Path(sordino.__file__).parent / "data" / "prompts" / "keeper.zip"
    with stand_in() as server:
        use(server, tmp_path / "home", monkeypatch)
        run_push(voice)
        assert capsys.readouterr().out == ""
        run_push(voice, repository="ines/keeper")
        shown = capsys.readouterr().out
        assert shown.startswith("This will disclose:\n")
        assert shown.endswith("Nothing was sent yet.\n")
        assert server.repositories == {}
        run_push(voice, repository="ines/keeper", send=True)
        assert "Pushed: " in capsys.readouterr().out
        (made,) = server.repositories.values()
        assert made.private
        assert "adapter_model.safetensors" in made.commits[made.refs["main"]]
