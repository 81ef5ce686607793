"""What the tests look at: a tiny model, pieces of text, and a soft prompt."""

from __future__ import annotations

from sordino.prompts.soft_prompt import Metadata, PlacementName, SoftPrompt
from sordino.texts.pieces import Piece
from tests.prompt_files import matrix

PIECES = [
    Piece(str(n), "text", text=f"the keeper{n} of the lamp wrote{n} that the sea was{n} grey and the ship{n} was gone")
    for n in range(5)
]


def voice(seed: int = 1, tokens: int = 5, placement: PlacementName = "start", width: int = 32) -> SoftPrompt:
    return SoftPrompt(matrix(seed, tokens, width), Metadata(name=f"voice {seed}", placement=placement))
