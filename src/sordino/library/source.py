"""The seam for places that hold prompt files: folders, repositories of the Hub, a list on a web page."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sordino.formats import Peek


@dataclass(frozen=True)
class Item:
    """What a source lists: a file or folder that should be a soft prompt, not read yet.

    label: its file name without its ending, `.zip` or a longer one. path: where it is on this machine, or will be once it was
    opened; for messages, and no two items of a source share one. revision: equal as long as the content is; a time stamp, a commit.
    changed: seconds since 1970 of the last change, 0 where that is unknown or over.
    """

    label: str
    path: Path
    revision: Hashable
    changed: float = 0.0


class Source(Protocol):
    """A place that holds prompt files. An implementer owes:

    - `list` never raises: a place that cannot be reached is an empty one. It reads no file, and its order is stable.
    - `describe` reads a header and takes no memory for a tensor. It raises a SordinoError or an OSError for a broken item.
    - `open` gives the path of a local file or folder that holds exactly the item's revision, for `formats` to read: whatever comes
      from outside goes through its checks. It raises NotInLibrary where that revision is gone.
    - All may be called from any thread, and as often as one likes.

    tests/library/source_conformance.py checks an implementation.
    """

    @property
    def name(self) -> str:
        """Distinguishes names of this source from equal ones of another: `v@name`."""

    def list(self) -> Iterable[Item]: ...

    def describe(self, item: Item, /) -> Peek: ...

    def open(self, item: Item, /) -> Path: ...
