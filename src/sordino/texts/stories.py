"""KoboldAI's stories to pieces.

A story is one JSON object: `gamestarted`, `prompt` (the opening) and `actions` (what followed), which are a list of strings, or an
object by number, or KoboldAI United's `{"actions": {number: {"Selected Text": ...}}}`. KoboldAI Lite marks turns inside
them with {{[INPUT]}}, {{[OUTPUT]}} and {{[SYSTEM]}}, their ends with {{[INPUT_END]}} and so on; or, with `raw_instruct_tags`, with
the tags that `savedsettings` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sordino.errors import DataError
from sordino.texts.markers import KOBOLD, TurnMarks, marked_turns
from sordino.texts.pieces import Piece, chat
from sordino.texts.records import Record
from sordino.texts.tally import Tally

_OPENING = {"instruct_starttag": "user", "instruct_endtag": "assistant", "instruct_systag": "system"}
_TAGS = (*_OPENING, *(f"{key}_end" for key in _OPENING))


def is_story(record: Record) -> bool:
    return "actions" in record and ("gamestarted" in record or "prompt" in record)


def story_piece(record: Record, name: str, path: object, tally: Tally) -> Piece:
    """The story as one text, or as a chat if it has marks of turns. Memory and notes are left out."""
    opening = record.get("prompt", "")
    actions = record["actions"]
    if isinstance(actions, Mapping) and isinstance(actions.get("actions"), (Mapping, list)):
        actions = actions["actions"]
    if isinstance(actions, Mapping):
        actions = [actions[key] for key in sorted(actions, key=_running_number)]
    parts = [_action_text(action) for action in actions] if isinstance(actions, list) else [None]
    if not isinstance(opening, str) or None in parts:
        raise DataError(
            "the KoboldAI story cannot be read",
            where=path,
            expected="`prompt` as text and `actions` as a list or an object of texts",
            got=f"`actions` of another shape ({type(record['actions']).__name__})",
        )
    if record.get("memory") or record.get("authorsnote"):
        tally.counts["memory"] += 1
    text = opening + "".join(part for part in parts if part)
    for marks in (KOBOLD, _own_marks(record)):
        if marks and any(marks.roles[match[1]] == "assistant" for match in marks.opening.finditer(text)):
            tally.understood["KoboldAI stories with marks of turns read as chats"] += 1
            return chat(name, marked_turns(text, marks))
    return Piece(name, "text", KOBOLD.closing.sub("", KOBOLD.opening.sub("", text)))


def _own_marks(record: Record) -> TurnMarks | None:
    """The marks in the settings of a story in KoboldAI Lite's instruct mode, which writes them unchanged."""
    settings = record.get("savedsettings")
    if not isinstance(settings, Mapping) or str(settings.get("opmode")) != "4":
        return None
    tags = {key: settings[key].replace("\\n", "\n").strip() for key in _TAGS if isinstance(settings.get(key), str)}
    roles = {tags[key]: role for key, role in _OPENING.items() if tags.get(key)}
    if "assistant" not in roles.values() or "user" not in roles.values():
        return None
    closing = [tags[f"{key}_end"] for key in _OPENING if tags.get(f"{key}_end")]
    return TurnMarks(_any_of(roles), _any_of(closing or roles), roles)


def _any_of(tags: Iterable[str]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(re.escape(tag) for tag in sorted(tags, key=len, reverse=True))})")


def _running_number(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isascii() and key.isdigit() and len(key) < 16 else (1 << 62, key)


def _action_text(action: object) -> str | None:
    if isinstance(action, Mapping):
        action = action.get("Selected Text", action.get("text"))
    return action if isinstance(action, str) else None
