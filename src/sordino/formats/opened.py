"""A soft prompt file whose headers were read: what every format's reader hands over."""

from __future__ import annotations

from dataclasses import dataclass

from sordino.formats.tensors import StoredTensor
from sordino.prompts.soft_prompt import Metadata


@dataclass(frozen=True)
class Opened:
    """The tensor, not yet read; the metadata, None where the file has none; the hash that the matrix should have, or ""."""

    tensor: StoredTensor
    metadata: Metadata | None = None
    content_hash: str = ""
