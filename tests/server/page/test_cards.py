"""What a chat gets of a character card."""

from __future__ import annotations

import json

from sordino.server.page.cards import read
from tests.texts.test_cards import V1


def test_names_are_filled_in_by_the_page_and_not_here() -> None:
    """The user's name may change in the middle of a chat."""
    book = {"entries": [{"content": "Gulls bite.", "keys": ["gull"]}]}
    card = {**V1, "alternate_greetings": ["Who goes there?"], "character_book": book}
    told = read(json.dumps({"data": card}).encode())
    assert told["name"] == "Ada"
    assert told["text"] == "You are {{char}}.\n\n{{char}} keeps the light."
    assert told["greetings"] == ("Good evening, {{user}}.", "Who goes there?")
    [entry] = told["lore"]["entries"]
    assert (entry["content"], entry["keys"], told["lore"]["patterns"]) == ("Gulls bite.", ("gull",), 0)
