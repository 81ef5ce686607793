"""What of a long story, or a long conversation, the model gets to see. Pure functions over text and token ids.

A story slides: memory and author's note stay, the oldest text between them goes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sordino.errors import ConfigError
from sordino.models.description import DescribedModel
from sordino.server.generation import chat_ids

# Lines of the story that come after the author's note, as in KoboldAI.
NOTE_DEPTH = 3


@dataclass(frozen=True)
class Fitted:
    """ids: what the model gets, without BOS. dropped: characters of the story, or messages, that it does not get."""

    ids: tuple[int, ...]
    dropped: int


def fit_story(model: DescribedModel, story: str, *, memory: str = "", note: str = "", room: int) -> Fitted:
    """As much of the story's end as fits into `room` tokens beside memory and note.

    Raises ConfigError where memory and note alone leave no room for the story.
    """
    around = len(model.encode(_composed("", memory, note)))
    if around >= room:
        raise ConfigError(
            "memory and author's note leave no room for the story",
            expected=f"fewer than {room} tokens",
            got=around,
            do="shorten them, or ask for fewer new tokens",
        )
    starts = model.token_starts(story)
    kept = min(len(starts), room - around)
    while True:
        dropped = 0 if kept == len(starts) else _word_behind(story, starts[-kept] if kept else len(story))
        ids = model.encode(_composed(story[dropped:], memory, note))
        # Tokens at the seams may come out otherwise than they were counted.
        if len(ids) <= room or kept == 0:
            return Fitted(tuple(ids[-room:]), dropped)
        kept = max(0, kept - (len(ids) - room))


def fit_chat(model: DescribedModel, messages: Sequence[Mapping[str, str]], *, room: int) -> Fitted:
    """The system message and as many of the latest others as fit into `room` tokens, in the model's chat template.

    Raises ModelError where the model has no template, ConfigError where not even the last message fits.
    """
    system = [one for one in messages[:1] if one.get("role") == "system"]
    others = messages[len(system) :]
    # Templates want a user's turn first.
    starts = [at for at in range(max(1, len(others))) if at == 0 or others[at].get("role") == "user"]

    def ids_of(dropped: int) -> tuple[int, ...]:
        return chat_ids(model, [*system, *others[dropped:]])

    # Rendered and counted as a whole, a few times: one message fewer a time takes minutes for a long chat.
    place = bisect_left(starts, True, key=lambda dropped: len(ids_of(dropped)) <= room)
    if place < len(starts):
        return Fitted(ids_of(starts[place]), starts[place])
    raise ConfigError(
        "the last message does not fit the model's context",
        expected=f"at most {room} tokens",
        do="shorten it or the character, or ask for fewer new tokens",
    )


def _composed(story: str, memory: str, note: str) -> str:
    if note:
        lines = story.split("\n")
        at = max(0, len(lines) - NOTE_DEPTH)
        story = "\n".join([*lines[:at], f"[{note}]", *lines[at:]])
    return f"{memory}\n{story}" if memory else story


def _word_behind(text: str, place: int) -> int:
    """The beginning of the first whole word at or behind a place, if one is near."""
    if place == 0 or text[place - 1].isspace():
        return place
    for at in range(place, min(len(text), place + 40)):
        if text[at].isspace():
            return at
    return place
