"""How a refusal should look: our error, one line, which begins with the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino import formats
from sordino.errors import SoftPromptFileError


def refusal(path: Path, *, index: int | None = None) -> str:
    """The one-line error that reading gives."""
    with pytest.raises(SoftPromptFileError) as caught:
        formats.read_any(path, index=index)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    assert len(line) < 600
    return line


def both_refuse(path: Path, *words: str) -> None:
    """The headers alone show it: looking refuses as reading does."""
    line = refusal(path)
    assert all(word in line for word in words), line
    with pytest.raises(SoftPromptFileError) as caught:
        formats.peek(path)
    assert all(word in str(caught.value) for word in words), caught.value
