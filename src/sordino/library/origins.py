"""Where a library's soft prompts were got from: one small file each, under the content hash, in a hidden folder of the library.

So a file that is renamed keeps its origin, a file's bytes stay as they were, and two programs never write the same record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sordino.library.files import listed
from sordino.prompts.soft_prompt import today
from sordino.storage import make_folder, write_bytes

_FOLDER = ".origins"


@dataclass(frozen=True)
class Origin:
    """source: `hf:USER/NAME`, or an address. revision: the commit, or what else tells two states of the source apart. file: its
    name there, "" for a folder of files. sha256: of that file, or of the weights in a folder. installed: the date.
    """

    source: str
    revision: str = ""
    file: str = ""
    sha256: str = ""
    installed: str = field(default_factory=today)

    def __str__(self) -> str:
        at = f" at {self.revision[:12]}" if self.revision else ""
        return f"{self.source}{at}{f', {self.file}' if self.file else ''}, installed {self.installed}"


def record(folder: Path, content_hash: str, origin: Origin) -> None:
    """Remember where the soft prompt of this hash came from; the newest origin counts. Raises StorageError."""
    make_folder(folder / _FOLDER, parents=False)
    text = json.dumps(asdict(origin), indent=1, sort_keys=True) + "\n"
    write_bytes(folder / _FOLDER / f"{content_hash}.json", text.encode())


def origins(folder: Path) -> Mapping[str, Origin]:
    """All that are recorded in a library's folder, by content hash. What cannot be read is left out."""
    found = ((Path(item.path).stem, _read(Path(item.path))) for item in listed(folder / _FOLDER))
    return {content_hash: origin for content_hash, origin in found if origin is not None}


def origin_of(folder: Path, content_hash: str) -> Origin | None:
    return _read(folder / _FOLDER / f"{content_hash}.json")


def _read(path: Path) -> Origin | None:
    try:
        origin = Origin(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return origin if all(isinstance(value, str) for value in asdict(origin).values()) else None
