"""The page's route for character cards."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File

from sordino.server.errors import refusing
from sordino.texts.cards import card_of

router = APIRouter(prefix="/ui/cards", include_in_schema=False)


@router.post("")
def read(file: Annotated[bytes, File()]) -> dict[str, str]:
    """What a chat needs of a card: see `card_of`."""
    with refusing("file"):
        return card_of(file)
