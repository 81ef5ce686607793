"""Metadata of soft prompt files, changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sordino import formats
from sordino.errors import BadInput
from sordino.library.files import changing, identity
from sordino.prompts.mixture import StoredPrompt, with_attention
from sordino.prompts.soft_prompt import SoftPrompt


def edit(path: Path, changes: Mapping[str, Any]) -> StoredPrompt:
    """Replace metadata fields of a native file, atomically; the matrices stay the same. Returns the new content.

    base: what the base model is called, as text; the rest that is known of it stays. hold, strength: as `with_attention`.
    Raises BadInput for other files (their formats cannot hold the fields) and for one that another program changes meanwhile,
    StorageError where the disk refuses: what is there is then intact.
    """
    with changing(path.parent):
        return _edited(path, changes)


def _edited(path: Path, changes: Mapping[str, Any]) -> StoredPrompt:
    before = identity(path)
    prompt = formats.read_any(path)
    if not path.is_file() or formats.detect(path) not in ("kobold", "kv", "mixture"):
        raise BadInput(
            "only a native .zip can be edited", where=path, do="`sordino install` or `sordino convert` makes one of it"
        )
    if isinstance(prompt, SoftPrompt) and (others := formats.other_members(path)):
        raise BadInput(
            "this zip holds more than a soft prompt, which writing it anew would drop",
            where=path,
            got=", ".join(others[:4]),
            do="`sordino install` makes a clean copy, which can be edited",
        )
    known = {"base": replace(prompt.metadata.base, id=changes["base"])} if "base" in changes else {}
    attended = {key: changes[key] for key in ("hold", "strength") if key in changes}
    fields = {key: value for key, value in changes.items() if key not in attended}
    prompt = with_attention(prompt, attended.get("hold"), attended.get("strength"))
    prompt = prompt.with_metadata(**{**fields, **known})
    # Other programs know no lock.
    if identity(path) != before:
        raise BadInput("another program changed the file meanwhile", where=path, do="look at it, then edit it again")
    formats.write_any(prompt, path, force=True)
    return prompt
