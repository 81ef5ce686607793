"""The windows that are measured: of texts that hold far more, few pieces are tokenized."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sordino.evaluation.scoring import windows_of
from sordino.texts.pieces import Piece
from tests.tiny_models import tiny_base


def test_of_many_held_out_texts_those_are_tokenized_that_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    base: Any = tiny_base("llama", dtype=torch.float32)
    pieces = [
        Piece(f"{number}.txt", "text", f"Day {number}. " + "The keeper wrote of the lamp. " * 40)
        for number in range(500)
    ]
    read: list[str] = []
    encode = base.encode
    monkeypatch.setattr(type(base), "encode", lambda self, text: read.append(text) or encode(text))
    windows = windows_of(base, pieces, row_tokens=32, limit=64, first=True)
    assert 0 < len(read) < 100
    assert len({window.piece for window in windows}) > 1
    # Spread over all of them.
    assert read[0].startswith("Day 0.")
    assert int(read[-1].split(".")[0].removeprefix("Day ")) > 450
    read.clear()
    windows_of(base, pieces, row_tokens=32, limit=0, first=True)
    assert len(read) == 500
