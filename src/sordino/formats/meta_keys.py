"""What the `sordino` object of a prompt file may hold: keys and their values, by kind of prompt (docs/formats.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from sordino.prompts.attention import LEAST_STRENGTH, MOST_HOLD, MOST_STRENGTH
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.soft_prompt import PLACEMENTS, RATINGS

_HASH = re.compile("[0-9a-f]{64}")
_SAMPLE_KEYS = frozenset({"prompt", "with", "without"})
Check = Callable[[Any], bool]
# By key: the expected value, in words and as a test.
Keys = Mapping[str, tuple[str, Check]]


@dataclass(frozen=True)
class Holder:
    """The `sordino` object of one kind of prompt.

    newest: its last format version. hash_key: of the content hash. own: the key of what only this kind has, or "". objects_from:
    the first version whose placement may be an object. always: whether every file has the `sordino` object. required: its keys.
    """

    keys: Keys
    newest: int
    hash_key: Literal["tensor_sha256", "content_sha256"]
    own: Literal["", "kv", "mixture"] = ""
    objects_from: int = 1
    always: bool = True
    required: tuple[str, ...] = ()


def is_text_list(value: Any) -> bool:
    """Whether it is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_text(value: Any) -> bool:
    """Whether it is a text."""
    return isinstance(value, str)


def is_size(value: Any) -> bool:
    """Whether it is a whole number that a size can be."""
    return type(value) is int and 0 <= value < 1 << 62


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number, and not true or false."""
    return type(value) in (int, float)


def is_object(value: Any) -> bool:
    """Whether it is a JSON object."""
    return isinstance(value, dict)


def is_hash(value: Any) -> bool:
    """Whether it is a SHA-256 in lower-case hexadecimal."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def is_sample(value: Any) -> bool:
    """Whether it is an object of texts with the keys of a sample."""
    return isinstance(value, dict) and value.keys() <= _SAMPLE_KEYS and all(map(is_text, value.values()))


BASE_KEYS: Keys = {
    "id": ("a text", is_text),
    "family": ("a text", is_text),
    "d_model": ("a whole number", is_size),
    "n_layers": ("a whole number", is_size),
    "vocab_size": ("a whole number", is_size),
    "embedding_rms": ("a number", is_number),
    "fingerprint": ("a text", is_text),
}
_KEYS: Keys = {
    "format_version": ("1", is_size),
    "tensor_sha256": ("64 hexadecimal digits", is_hash),
    "base": ("an object", is_object),
    "placement": (
        f"{' or '.join(PLACEMENTS)}, or an object",
        lambda value: is_object(value) or (is_text(value) and value in PLACEMENTS),
    ),
    "licence": ("a text", is_text),
    "tags": ("a list of texts", is_text_list),
    "rating": (", ".join(RATINGS), lambda value: value in RATINGS),
    "created": ("a text", is_text),
    "training": ("an object", is_object),
    "heldout": ("an object", is_object),
    "samples": (
        'a list of objects of texts "prompt", "with", "without"',
        lambda value: isinstance(value, list) and all(map(is_sample, value)),
    ),
}
PLACEMENT_KEYS: Keys = {
    "position": (" or ".join(PLACEMENTS), lambda value: is_text(value) and value in PLACEMENTS),
    "hold": (f"a whole number from 1 to {MOST_HOLD}", lambda value: is_size(value) and 1 <= value <= MOST_HOLD),
    "strength": (
        f"a number from {LEAST_STRENGTH} to {MOST_STRENGTH:g}",
        lambda value: is_number(value) and LEAST_STRENGTH <= value <= MOST_STRENGTH,
    ),
}
_SHARED = {key: _KEYS[key] for key in _KEYS if key not in ("format_version", "tensor_sha256", "base", "placement")}
_HEAD = {"format_version": _KEYS["format_version"], "content_sha256": _KEYS["tensor_sha256"]}
_KV_KEYS: Keys = {
    **_HEAD,
    "kind": (repr(KVPrompt.kind), lambda value: value == KVPrompt.kind),
    "kv": ("an object", is_object),
    "base": _KEYS["base"],
    "placement": ("an object", is_object),
    **_SHARED,
}
# Each component of a mixture has its own placement.
_MIXTURE_KEYS: Keys = {**_HEAD, "mixture": ("an object", is_object), "base": _KEYS["base"], **_SHARED}

# Version 2 has `placement` as an object. A file that needs nothing of it is written as version 1.
SOFT_PROMPT = Holder(_KEYS, 2, "tensor_sha256", objects_from=2, always=False)
KV_PROMPT = Holder(_KV_KEYS, 1, "content_sha256", "kv", required=("kind", "kv", "placement"))
# Version 2 has KV prompts among the components. A mixture without any is written as version 1.
MIXTURE = Holder(_MIXTURE_KEYS, 2, "content_sha256", "mixture", required=("mixture",))
