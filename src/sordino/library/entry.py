"""An entry of a library, and the reason where it cannot be read."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sordino import formats
from sordino.errors import SordinoError
from sordino.library.source import Item, Source
from sordino.prompts.fit import Stated
from sordino.prompts.soft_prompt import Metadata

# What an entry has of a header as it is.
_SIZES = ("format", "kind", "components", "n_tokens", "d_model")
_OF_HEADER = (*_SIZES, "metadata", "parts")


@dataclass(frozen=True)
class Entry:
    """A soft prompt of the library, as its header describes it. A broken file has `error` (one line) and no sizes.

    path: where it is, or will be once `Library.open` was called. kind: `Prompt.kind`, or "mixture". d_model: 0 where a KV prompt
    does not say it. components: of a mixture, whose n_tokens is the longest component's; 0 for one prompt. parts: what each
    component says, or the one prompt. revision: changes when the content does. source: None for a file that vanished.
    """

    name: str
    path: Path
    n_tokens: int = 0
    d_model: int = 0
    metadata: Metadata = field(default_factory=Metadata)
    format: str = ""
    error: str = ""
    kind: str = ""
    components: int = 0
    parts: tuple[Stated, ...] = ()
    revision: Hashable = ()
    source: Source | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """All that a scan knows of it; for a broken file, what is wrong."""
        head = {"name": self.name, "path": str(self.path), "error": self.error}
        if self.error:
            return head
        return head | {name: getattr(self, name) for name in _SIZES} | {"metadata": asdict(self.metadata)}


def entry_of(name: str, source: Source, item: Item, header: formats.Peek | str) -> Entry:
    """header: or why it cannot be read."""
    known: dict[str, Any] = (
        {"error": header} if isinstance(header, str) else {name: getattr(header, name) for name in _OF_HEADER}
    )
    return Entry(name, item.path, revision=item.revision, source=source, **known)


def may_pass(error: SordinoError | OSError) -> bool:
    """Whether the disk failed and not the content: a drive that comes back, a file that another program has locked."""
    cause = error if isinstance(error, OSError) else error.__cause__
    # Libraries that unpack raise an OSError of no number for what they cannot read.
    return isinstance(cause, OSError) and cause.errno is not None


def reason(error: Exception, path: Path) -> str:
    """The error on one line, without the path, which the entry states."""
    return " ".join(str(error).split()).removeprefix(f"{' '.join(str(path).split())}: ")
