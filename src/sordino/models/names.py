"""What the name of a base model means: a bundled model, a folder, a .gguf file, or an id on the Hugging Face Hub."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sordino.errors import ModelError
from sordino.models import hub
from sordino.models.bundled import BUNDLED
from sordino.models.cache import cache_folder

# The number types that a base model may be in, as torch calls them.
Dtype = Literal["float32", "bfloat16", "float16"]

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class ModelSource:
    """The model of a name. id: for soft prompt files, never a path. path: the folder or .gguf file; None on the hub."""

    name: str
    id: str
    kind: Literal["bundled", "folder", "gguf", "hub"]
    path: Path | None = None


def resolve(name: str) -> ModelSource:
    """The model that `name` means: a bundled name, a folder, a .gguf file, else an id on the Hugging Face Hub.

    Raises ModelError for a path that does not exist or is no model, and for what cannot be a hub id.
    """
    if name in BUNDLED:
        model = BUNDLED[name]
        return ModelSource(name, model.id, "bundled", cache_folder() / "models" / model.file)
    path = _local_path(name)
    if path is not None and path.is_dir():
        return _source_in_folder(name, path.resolve())
    if path is not None:
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                "not a base model", where=name, expected="a model folder, a .gguf file, a hub id or " + bundled_names()
            )
        return ModelSource(name, path.stem, "gguf", path.resolve())
    if _looks_like_a_path(name) or not _HUB_ID.fullmatch(name):
        raise ModelError(
            "no such base model",
            where=name or "--model",
            expected="a folder, a .gguf file, a hub id or " + bundled_names(),
            do=did_you_mean(name),
        )
    return ModelSource(name, name, "hub")


def absolute_name(name: str) -> str:
    """`name` for storage: it means the same model in every working directory.

    A path becomes absolute, its links are not resolved. Bundled names, hub ids and unknown names are unchanged.
    """
    path = None if name in BUNDLED else _local_path(name)
    return name if path is None else os.path.abspath(path)


def bundled_names() -> str:
    """ "smollm2 or gemma3-270m", for messages."""
    return " or ".join(BUNDLED)


def _local_path(name: str) -> Path | None:
    """The folder or file of this name, if it exists."""
    # Path's methods raise for a name that is too long and for the home of an unknown user; os.path's do not.
    path = os.path.expanduser(name)
    return Path(path) if name and (os.path.isdir(path) or os.path.isfile(path)) else None


def _source_in_folder(name: str, folder: Path) -> ModelSource:
    if (folder / "config.json").is_file():
        return ModelSource(name, _id_of_folder(folder), "folder", folder)
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return ModelSource(name, files[0].stem, "gguf", files[0])
    if files:
        raise ModelError(
            "the folder holds several .gguf files",
            where=name,
            got=", ".join(f.name for f in files[:4]),
            do="name one of them",
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError("an adapter, not a base model", where=name, do="give the model it was made for")
    raise ModelError("not a base model", where=name, expected="a folder with config.json or a .gguf file")


def _id_of_folder(folder: Path) -> str:
    """The hub id in the folder's configuration, else the folder's name; a path could reveal private data."""
    try:
        hub_id = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path", "")
    except (OSError, ValueError, AttributeError, RecursionError):
        hub_id = ""
    is_hub_id = isinstance(hub_id, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) and not hub_id.startswith(".")
    return hub_id if is_hub_id else folder.name


def _looks_like_a_path(name: str) -> bool:
    return (
        name.startswith((".", "~", "/", "\\"))
        or name.lower().endswith(".gguf")
        or "\\" in name
        or bool(_DRIVE.match(name))
    )


def did_you_mean(name: str) -> str:
    """Similar known names, for messages."""
    known = [*BUNDLED, *hub.downloaded()]
    plain = {candidate.rpartition("/")[2].lower(): candidate for candidate in reversed(known)}
    near = difflib.get_close_matches(name.rpartition("/")[2].lower(), list(plain), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(plain[n] for n in near)}?" if near else f"{bundled_names()} need no hub"
