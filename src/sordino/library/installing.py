"""Copy a soft prompt from anywhere into a library, and remember where it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sordino import formats
from sordino.library.entry import Entry
from sordino.library.library import Library
from sordino.library.names import checked_name, default_name
from sordino.library.origins import Origin, record
from sordino.prompts.mixture import StoredPrompt


@dataclass(frozen=True)
class Installed:
    """entry: in the library. prompt: what was read. twin: another entry of the same content. new: False where it was there.

    origin: where it came from, as the library remembers it.
    """

    entry: Entry
    prompt: StoredPrompt
    twin: Entry | None = None
    new: bool = True
    origin: Origin | None = None


@dataclass(frozen=True)
class Wanted:
    """name: in the library; by default the file's, or `label`. index: which one, of a file that holds several."""

    name: str | None = None
    index: int | None = None
    replace: bool = False


PLAIN = Wanted()


def install(
    library: Library,
    path: Path,
    wanted: Wanted = PLAIN,
    *,
    warn: Callable[[str], None],
    label: str = "",
    origin: Origin | None = None,
) -> Installed:
    """Copy the soft prompt in a local file or folder into the library, unless it holds it already.

    label: what the file is called where it came from, if that is not its name here. warn: called with what was left out of it.
    Raises as `formats.read_any` and `Library.add`.
    """
    prompt = formats.read_any(path, index=wanted.index, warn=warn)
    label = label or default_name(path)
    if prompt.metadata.name == path.name:
        # It has no name, so it was given that of its folder, in a cache.
        prompt = prompt.with_metadata(name=label)
    name = checked_name(label if wanted.name is None else wanted.name)
    twin = library.twin(prompt)
    if twin and (wanted.name is None or twin.name == name) and _same_file(twin, prompt):
        found = Installed(twin, prompt, twin, new=False, origin=origin)
    else:
        entry = library.add(prompt, name=name, replace=wanted.replace)
        other = twin if twin and twin.path != entry.path else None
        found = Installed(entry, prompt, other, origin=origin)
    if origin is not None:
        record(library.folders[0], prompt.content_hash, origin)
    return found


def _same_file(twin: Entry, prompt: StoredPrompt) -> bool:
    """Whether nothing would be gained by another copy: the metadata agrees, but for a name that `prompt` may lack."""
    return replace(prompt.metadata, name=prompt.metadata.name or twin.metadata.name) == twin.metadata
