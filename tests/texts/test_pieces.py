"""A piece can hold a long text compressed, and nobody notices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sordino.texts.pieces import Piece

TEXTS = [
    "",
    "short",
    "The keeper’s lamp, by the sea. " * 100,
    "a half of a pair \ud83d in JSON. " * 100,
    "灯台守の日記。" * 200,
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_as_it_was(text: str, packed: bool) -> None:
    piece = Piece("a", "text", text)
    if packed:
        piece.pack()
        piece.pack()
    assert piece.text == text
    assert piece.size == len(text)
    assert piece == Piece("a", "text", text)
    assert hash(piece) == hash(Piece("a", "text", text))
    assert replace(piece, text=text + "!").text == text + "!"
    assert replace(piece, text=text + "!").size == len(text) + 1


def test_a_piece_is_as_it_was_before_and_its_text_is_needed() -> None:
    piece = Piece(name="a", kind="text", text="sea " * 200)
    assert "sea sea" in repr(piece)
    with pytest.raises(TypeError):
        Piece("a", "text")


def test_a_long_text_takes_less_memory_than_its_characters() -> None:
    piece = Piece("a", "text", "The keeper’s lamp, by the sea. " * 1000)
    piece.pack()
    held = piece.__dict__["_text"]
    assert isinstance(held, bytes)
    assert len(held) < piece.size
