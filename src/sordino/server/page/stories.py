"""Stories that the page keeps: a JSON file each in the user's data folder.

A story has a revision. Who saves over another revision than the one that was read is told (409) and may ask for it (`over`). Nobody
is told of what they wrote themselves: a page that is reloaded may not know what became of its last save.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from sordino.errors import BadInput, SordinoError, StorageError
from sordino.server.errors import Refused, refused
from sordino.storage import make_folder, write_bytes

router = APIRouter(prefix="/ui/stories", include_in_schema=False)

Id = Annotated[str, InPath(pattern=r"^[A-Za-z0-9-]{1,64}$")]


class Story(BaseModel):
    """revision: the one that this was made from, 0 for a new one. chat: a conversation in place of a text. writer: the page that
    saved it, by a name of its own.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = ""
    title: str = Field(default="", max_length=300)
    text: str = ""
    memory: str = ""
    note: str = ""
    chat: list[dict[str, str]] | None = None
    character: dict[str, Any] | None = None
    revision: Annotated[int, Field(ge=0)] = 0
    changed: float = 0.0
    writer: str = Field(default="", max_length=64)


class Saved(Story):
    """over: whatever is there. after: the writer whose last save this is made from, whatever its revision."""

    over: bool = False
    after: str = Field(default="", max_length=64)


class Stories:
    """The folder. May be used from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def all(self) -> list[Story]:
        """Newest first; files that are no stories are left out."""
        found = [self._read(path) for path in self._folder.glob("*.json")]
        return sorted((one for one in found if one is not None), key=lambda one: -one.changed)

    def get(self, name: str) -> Story | None:
        return self._read(self._path(name))

    def put(self, name: str, said: Saved) -> Story:
        """Raises Refused (409) where the file has gone on since, BadInput where it could not be read again, StorageError."""
        with self._lock:
            there = self.get(name)
            seen = there is None or there.revision == said.revision or (there.writer and there.writer == said.after)
            if not seen and not said.over:
                raise Refused(409, "this story was changed in another tab")
            revision = max(said.revision, there.revision if there else 0) + 1
            story = Story(**said.model_dump(exclude={"over", "after", "id", "revision", "changed"}))
            story = story.model_copy(update={"id": name, "revision": revision, "changed": time.time()})
            content = _content(story)
            make_folder(self._folder)
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
    """The file. Raises BadInput for what would be written and not read again: deep nesting, numbers that JSON lacks."""
    try:
        content = json.dumps(story.model_dump(), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        Story.model_validate_json(content)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput("the story cannot be kept", where="character", got=reason, do="simplify it") from None
    return content


@router.get("")
def stories(request: Request) -> list[dict[str, Any]]:
    """Titles, without texts."""
    told = {"id", "title", "changed", "revision"}
    return [{**story.model_dump(include=told), "is_chat": story.chat is not None} for story in _stories(request).all()]


@router.get("/{name}")
def story(request: Request, name: Id) -> dict[str, Any]:
    found = _stories(request).get(name)
    if found is None:
        raise Refused(404, "there is no such story")
    return found.model_dump()


@router.put("/{name}")
def save(request: Request, name: Id, said: Saved) -> dict[str, Any]:
    try:
        return _stories(request).put(name, said).model_dump(include={"id", "revision", "changed"})
    except SordinoError as error:
        raise refused(error) from error


@router.delete("/{name}")
def remove(request: Request, name: Id) -> dict[str, Any]:
    try:
        _stories(request).remove(name)
    except SordinoError as error:
        raise refused(error) from error
    return {}


def _stories(request: Request) -> Stories:
    found: Stories = request.app.state.stories
    return found
