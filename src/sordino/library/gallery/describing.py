"""What an index says of a soft prompt, from its file's header."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sordino.formats import Peek
from sordino.library.gallery.index import MAX_LINE, MAX_SAMPLES, MAX_TAGS, MAX_TEXT, GalleryEntry
from sordino.prompts.fit import common_base
from sordino.prompts.soft_prompt import BaseRef, Metadata

# Of each text of a sample: a page shows it whole.
_SAMPLE_CHARS = 1500


def described(peeked: Peek, *, name: str, url: str, size: int, sha256: str = "") -> GalleryEntry:
    """The entry of a file whose header is `peeked`. Texts are cut to what an index may hold."""
    known = peeked.metadata
    return GalleryEntry(
        name=name,
        url=url,
        sha256=sha256,
        bytes=size,
        kind=peeked.kind,
        n_tokens=peeked.n_tokens,
        d_model=peeked.d_model,
        base=_base(peeked, known),
        title=_line(known.name),
        author=_line(known.author),
        description=known.description[:MAX_TEXT],
        licence=_line(known.licence),
        rating=known.rating,
        tags=tuple(filter(None, map(_line, known.tags)))[:MAX_TAGS],
        created=_line(known.created),
        gain=gain_of(known.heldout),
        samples=tuple(filter(None, map(_sample, known.samples)))[:MAX_SAMPLES],
    )


def gain_of(heldout: Mapping[str, Any]) -> float | None:
    """Nats per token that the soft prompt gains on held-out texts; None where its file does not state it."""
    nll = heldout.get("nll")
    without, own = (nll.get(key) if isinstance(nll, Mapping) else None for key in ("no_prompt", "soft_prompt"))
    if not isinstance(without, int | float) or not isinstance(own, int | float) or not math.isfinite(without - own):
        return None
    return round(float(without - own), 4)


def _base(peeked: Peek, known: Metadata) -> BaseRef:
    """As the file states it. An old file states less: then the first name that it gives its model."""
    stated = known.base if known.base != BaseRef() else common_base([part.metadata.base for part in peeked.parts])
    names = [_line(name) for name in (stated.id, *known.supported) if name]
    return BaseRef(
        id=names[0] if names else "",
        family=_line(stated.family),
        d_model=peeked.d_model,
        n_layers=stated.n_layers,
        vocab_size=stated.vocab_size,
        fingerprint=_line(stated.fingerprint),
    )


def _sample(sample: Mapping[str, str]) -> dict[str, str]:
    return {key: sample[key][:_SAMPLE_CHARS] for key in ("prompt", "without", "with") if sample.get(key)}


def _line(text: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(shown.split())[:MAX_LINE]
