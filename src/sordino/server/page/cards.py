"""The page's route for character cards."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, File

from sordino.server.errors import refusing
from sordino.texts.cards import card_of

router = APIRouter(prefix="/ui/cards", include_in_schema=False)


@router.post("")
def read(file: Annotated[bytes, File()]) -> dict[str, Any]:
    """What a chat needs of a card, with placeholders for the two speakers: see `texts.cards.Card`."""
    with refusing("file"):
        card = card_of(file)
    return {"name": card.name, "text": card.text, "greetings": card.greetings, "lore": asdict(card.lore)}
