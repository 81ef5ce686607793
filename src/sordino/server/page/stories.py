"""The stories of the page: a JSON file each in the user's data folder.

A story has a revision. A save that is made from another revision than the stored one is refused (409), unless it asks to
`overwrite`. A writer's own last save is no conflict: a page that is reloaded may not know whether it arrived.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from pydantic import Field

from sordino.errors import BadInput, StorageError
from sordino.library.files import changing
from sordino.server.bodies import StrictBody, few_entries
from sordino.server.errors import Refused
from sordino.server.openai_fields import Items
from sordino.storage import make_folder, write_bytes

router = APIRouter(prefix="/ui/stories", include_in_schema=False)

# Of a story in the list.
_BEGINNING_CHARS = 100
# More than a message of a chat has.
_MOST_PARTS = 64

Id = Annotated[str, InPath(pattern=r"^[A-Za-z0-9-]{1,64}$")]


class Story(StrictBody):
    """revision: the one that this was made from, 0 for a new one. generated: ranges of the text, [from, to) in UTF-16 code units,
    that the model wrote and nobody has edited. output: what an encoder-decoder wrote for the text. chat: a conversation in place of
    a text. writer: the id of the page that saved it.
    """

    id: str = ""
    title: str = Field(default="", max_length=300)
    text: str = ""
    memory: str = ""
    note: str = ""
    output: str = ""
    generated: Items[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]] = Field(default_factory=list)
    chat: Items[Annotated[dict[str, str | Items[str]], few_entries(_MOST_PARTS, "parts of a message")]] | None = None
    character: dict[str, Any] | None = None
    revision: Annotated[int, Field(ge=0)] = 0
    changed: float = 0.0
    writer: str = Field(default="", max_length=64)


class StoryUpdate(Story):
    """overwrite: whatever is stored. after: the writer whose last save this is made from, whatever its revision."""

    overwrite: bool = False
    after: str = Field(default="", max_length=64)


class Stories:
    """A folder of stories. May be used from any thread, and by several servers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def all(self) -> list[Story]:
        """Newest first; files that are not stories are left out."""
        found = [self._read(path) for path in self._folder.glob("*.json")]
        return sorted((one for one in found if one is not None), key=lambda one: -one.changed)

    def get(self, name: str) -> Story | None:
        return self._read(self._path(name))

    def put(self, name: str, update: StoryUpdate) -> Story:
        """Raises Refused (409) where the stored story is newer, BadInput for what could not be read again, StorageError."""
        make_folder(self._folder)
        with self._lock, changing(self._folder):
            stored = self.get(name)
            is_known = (
                stored is None
                or stored.revision == update.revision
                or (stored.writer != "" and stored.writer == update.after)
            )
            if not is_known and not update.overwrite:
                raise Refused(409, "this story was changed in another tab")
            revision = max(update.revision, stored.revision if stored else 0) + 1
            fields = update.model_dump(exclude={"overwrite", "after", "id", "revision", "changed"})
            story = Story(**fields, id=name, revision=revision, changed=time.time())
            content = _content(story)
            write_bytes(self._path(name), content)
            return story

    def remove(self, name: str) -> None:
        """Raises StorageError."""
        with self._lock:
            try:
                self._path(name).unlink(missing_ok=True)
            except OSError as error:
                raise StorageError("the story cannot be deleted", where=name, got=error.strerror) from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _read(self, path: Path) -> Story | None:
        try:
            return Story.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None


def _content(story: Story) -> bytes:
    """The file. Raises BadInput for what could not be read again: deep nesting, numbers that JSON lacks."""
    try:
        content = json.dumps(story.model_dump(), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        Story.model_validate_json(content)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput("the story cannot be saved", where="character", got=reason, do="simplify it") from None
    return content


@router.get("")
def stories(request: Request) -> list[dict[str, Any]]:
    """Titles, without texts. begins: the first words of the story, or of what the user says first in a chat."""
    summary = {"id", "title", "changed", "revision"}
    return [
        {**story.model_dump(include=summary), "begins": _beginning(story), "is_chat": story.chat is not None}
        for story in _stories(request).all()
    ]


def _beginning(story: Story) -> str:
    first = next((turn for turn in story.chat or () if turn.get("role") == "user"), {})
    return str(first.get("content", story.text))[:_BEGINNING_CHARS]


@router.get("/{name}")
def story(request: Request, name: Id) -> dict[str, Any]:
    found = _stories(request).get(name)
    if found is None:
        raise Refused(404, "there is no such story")
    return found.model_dump()


@router.put("/{name}")
def save(request: Request, name: Id, update: StoryUpdate) -> dict[str, Any]:
    return _stories(request).put(name, update).model_dump(include={"id", "revision", "changed"})


@router.delete("/{name}")
def remove(request: Request, name: Id) -> dict[str, Any]:
    _stories(request).remove(name)
    return {}


def _stories(request: Request) -> Stories:
    found: Stories = request.app.state.stories
    return found
