"""Libraries that the commands' tests work on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import library_with_keeper
from tests.cli.tiny_setting import tiny_setting


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library with one soft prompt, `keeper`."""
    return library_with_keeper(tmp_path, monkeypatch)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of soft prompts for a tiny model, which every command then loads."""
    return tiny_setting(tmp_path, monkeypatch)
