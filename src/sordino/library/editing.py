"""Metadata of soft prompt files, changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sordino import formats
from sordino.errors import BadInput
from sordino.prompts.mixture import StoredPrompt, with_attention
from sordino.prompts.soft_prompt import SoftPrompt


def edit(path: Path, changes: Mapping[str, Any]) -> StoredPrompt:
    """Replace metadata fields of a native file, atomically; the matrices stay the same. Returns the new content.

    base: what the base model is called, as text; the rest that is known of it stays. hold, strength: as `with_attention`.
    Raises BadInput for other files (their formats cannot hold the fields), StorageError where the disk refuses: the old file is
    then intact.
    """
    prompt = formats.read_any(path)
    known = {"base": replace(prompt.metadata.base, id=changes["base"])} if "base" in changes else {}
    attended = {key: changes[key] for key in ("hold", "strength") if key in changes}
    fields = {key: value for key, value in changes.items() if key not in attended}
    prompt = with_attention(prompt, attended.get("hold"), attended.get("strength"))
    prompt = prompt.with_metadata(**{**fields, **known})
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
    formats.write_any(prompt, path, force=True)
    return prompt
