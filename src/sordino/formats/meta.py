"""meta.json, and a mixture's mixture.json: KoboldAI's four keys, and the `sordino` object for everything else (docs/formats.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sordino.errors import BadInput, SoftPromptFileError
from sordino.formats.json_text import check_room, parse
from sordino.prompts.attention import LEAST_STRENGTH, MOST_HOLD, MOST_STRENGTH, PromptAttention
from sordino.prompts.soft_prompt import PLACEMENTS, RATINGS, BaseRef, Metadata, SoftPrompt

# Version 2 has `placement` as an object. A file that needs nothing of it is written as version 1.
FORMAT_VERSION = 2
_OWN_KEYS = frozenset({"name", "author", "supported", "description", "sordino"})
_SAMPLE_KEYS = frozenset({"prompt", "with", "without"})
Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Described:
    """The content of a meta.json. content_hash: of the matrix (of a mixture: the whole) that it was written with, or "".

    mixture: the object of that name; empty for a soft prompt.
    """

    metadata: Metadata
    content_hash: str = ""
    mixture: Mapping[str, Any] = field(default_factory=dict)


def from_json(obj: Mapping[str, Any], where: str, *, of_mixture: bool = False) -> Described:
    """Read KoboldAI's keys as leniently as KoboldAI does (unknown keys are preserved), and the `sordino` object strictly.

    of_mixture: whether it is a mixture.json. Raises SoftPromptFileError: a newer format version, an unknown key in `sordino`, a
    value of the wrong kind.
    """
    known: dict[str, Any] = {
        "name": _text(obj, "name", where),
        "author": ", ".join(_texts(obj, "author", where)),
        "supported": tuple(_texts(obj, "supported", where)),
        "description": _text(obj, "description", where),
        "foreign": {key: value for key, value in obj.items() if key not in _OWN_KEYS},
    }
    ours = obj.get("sordino")
    if ours is None and not of_mixture:
        return Described(Metadata(**known))
    where = f"{where}: sordino"
    if not isinstance(ours, dict):
        raise wrong(where, "an object", ours)
    _check_version(ours.get("format_version"), where, 1 if of_mixture else FORMAT_VERSION)
    given = checked(ours, _MIXTURE_KEYS if of_mixture else _KEYS, where)
    version = given.pop("format_version")
    if "placement" in given:
        given |= _placed(given["placement"], f"{where}.placement", version)
    content_hash = given.pop("content_sha256" if of_mixture else "tensor_sha256", "")
    mixture = given.pop("mixture", {})
    if "base" in given:
        given["base"] = BaseRef(**checked(given["base"], _BASE_KEYS, f"{where}.base"))
    for key in ("tags", "samples"):
        if key in given:
            given[key] = tuple(given[key])
    return Described(Metadata(**known, **given), content_hash, mixture)


def to_json(prompt: SoftPrompt) -> dict[str, Any]:
    """The object that `from_json` reads, its keys in a fixed order, unknown values left out.

    Raises BadInput, naming the field, for metadata that a file cannot hold.
    """
    return _described(prompt.metadata, {"tensor_sha256": prompt.content_hash, "placement": _placement(prompt.metadata)})


def _placement(known: Metadata) -> str | dict[str, Any]:
    """The position alone, or an object with what changes attention."""
    attention = known.attention
    if attention.plain:
        return known.placement
    hold = {} if attention.hold is None else {"hold": attention.hold}
    strength = {} if attention.strength == 1 else {"strength": float(attention.strength)}
    return {"position": known.placement, **hold, **strength}


def _placed(value: str | dict[str, Any], where: str, version: int) -> dict[str, Any]:
    """The metadata's placement and attention."""
    if isinstance(value, str):
        return {"placement": value}
    if version == 1:
        raise wrong(where, " or ".join(PLACEMENTS), value)
    own = checked(value, _PLACEMENT_KEYS, where)
    if "position" not in own:
        raise wrong(f"{where}.position", " or ".join(PLACEMENTS), None)
    return {"placement": own.pop("position"), "attention": PromptAttention(**own)}


def mixture_to_json(known: Metadata, content_hash: str, mixture: Mapping[str, Any]) -> dict[str, Any]:
    """As `to_json`, for a mixture's mixture.json."""
    return _described(known, {"content_sha256": content_hash, "mixture": dict(mixture)})


def _described(known: Metadata, own: Mapping[str, Any]) -> dict[str, Any]:
    """own: the values that only soft prompts or only mixtures have."""
    base = known.base
    base_values = {
        item.name: getattr(base, item.name) for item in fields(base) if getattr(base, item.name) != item.default
    }
    if "embedding_rms" in base_values:
        # 1 and 1.0 are the same number and must give the same bytes.
        base_values["embedding_rms"] = float(base.embedding_rms)
    ours = {
        "format_version": 2 if isinstance(own.get("placement"), dict) else 1,
        "tensor_sha256": own.get("tensor_sha256"),
        "content_sha256": own.get("content_sha256"),
        "mixture": own.get("mixture"),
        "base": base_values,
        "placement": own.get("placement"),
        "licence": known.licence,
        "tags": list(known.tags),
        "rating": known.rating,
        "created": known.created,
        "training": _sorted(known.training, "training"),
        "heldout": _sorted(known.heldout, "heldout"),
        "samples": _sorted(known.samples, "samples"),
    }
    return {
        "name": known.name,
        **({"author": known.author} if known.author.strip() else {}),
        "supported": list(known.supported),
        "description": known.description,
        **_sorted(known.foreign, "foreign"),
        "sordino": {key: value for key, value in ours.items() if value},
    }


def to_bytes(prompt: SoftPrompt) -> bytes:
    """meta.json: UTF-8, indented by two, ending in a line feed. Raises BadInput for metadata that could not be read again."""
    data = encoded(to_json(prompt), "meta.json")
    from_json(parse(data, "metadata"), "metadata")
    check_width(prompt.metadata, prompt.d_model)
    return data


def encoded(obj: Mapping[str, Any], holder: str) -> bytes:
    """JSON in the form for `holder`. Raises BadInput."""
    try:
        text = json.dumps(obj, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        data = text.encode("utf-8")
    except (TypeError, ValueError) as error:
        # Lone surrogates, nan, and types that JSON does not have.
        raise BadInput("cannot be written", where="metadata", got=error) from error
    check_room(len(data), holder)
    return data


def of_width(known: Metadata, where: object, d_model: int) -> Metadata:
    """The metadata of a file, if it goes with a tensor of this width. Raises SoftPromptFileError."""
    if known.base.d_model not in (0, d_model):
        raise SoftPromptFileError(
            "the metadata does not agree with the tensor",
            where=f"{where}: base.d_model",
            expected=d_model,
            got=known.base.d_model,
        )
    return known


def check_width(known: Metadata, d_model: int) -> None:
    """Raise BadInput for metadata of a base model of another width."""
    if known.base.d_model not in (0, d_model):
        raise BadInput(
            "the base model has another width than the matrix",
            where="metadata: base.d_model",
            expected=d_model,
            got=known.base.d_model,
        )


def _check_version(version: Any, where: str, newest: int) -> None:
    if type(version) is not int or version < 1:
        raise wrong(f"{where}.format_version", "1", version)
    if version > newest:
        raise SoftPromptFileError(
            "written by a newer version of Sordino",
            where=where,
            expected=f"format_version {newest}",
            got=version,
            do="update Sordino: pip install --upgrade sordino",
        )


def checked(obj: Mapping[str, Any], keys: Mapping[str, tuple[str, Check]], where: str) -> dict[str, Any]:
    """`obj`, if it has only these keys and valid values. Raises SoftPromptFileError."""
    for key, value in obj.items():
        if key not in keys:
            raise SoftPromptFileError(
                f"an unknown key {key[:40]!r}",
                where=where,
                expected=", ".join(keys),
                do="put your own keys beside `sordino`, not into it",
            )
        wanted, is_good = keys[key]
        if not is_good(value):
            raise wrong(f"{where}.{key}", wanted, value)
    return dict(obj)


def _text(obj: Mapping[str, Any], key: str, where: str) -> str:
    value = obj.get(key)
    if value is not None and not isinstance(value, str):
        raise wrong(f"{where}: {key}", "a text", value)
    return value or ""


def _texts(obj: Mapping[str, Any], key: str, where: str) -> list[str]:
    """A list of texts, or one text: the `supported` of old files is "a, b"; a comma in `author` belongs to a name."""
    value = obj.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")] if key == "supported" else [value]
        return [part for part in parts if part.strip()]
    if not _is_list_of_texts(value):
        raise wrong(f"{where}: {key}", "a list of texts, or a text", value)
    return list(value)


def _sorted(value: Any, field: str) -> Any:
    """`value` as plain JSON with sorted keys: equal metadata must give equal bytes."""
    try:
        return json.loads(json.dumps(value, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput("not plain JSON", where=f"metadata: {field}", got=error) from error


def wrong(where: str, expected: str, got: Any) -> SoftPromptFileError:
    """The error of a value of the wrong kind."""
    return SoftPromptFileError("a value of the wrong kind", where=where, expected=expected, got=repr(got)[:60])


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_hash(value: Any) -> bool:
    """Whether it is a SHA-256 in lower-case hexadecimal."""
    return isinstance(value, str) and len(value) == 64 and all(char in "0123456789abcdef" for char in value)


def _is_sample(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= _SAMPLE_KEYS and all(map(_is_text, value.values()))


# By key: the expected value, in words and as a test.
_BASE_KEYS: dict[str, tuple[str, Check]] = {
    "id": ("a text", _is_text),
    "family": ("a text", _is_text),
    "d_model": ("a whole number", _is_size),
    "n_layers": ("a whole number", _is_size),
    "vocab_size": ("a whole number", _is_size),
    "embedding_rms": ("a number", lambda value: type(value) in (int, float)),
    "fingerprint": ("a text", _is_text),
}
_KEYS: dict[str, tuple[str, Check]] = {
    "format_version": ("1", _is_size),
    "tensor_sha256": ("64 hexadecimal digits", is_hash),
    "base": ("an object", _is_object),
    "placement": (
        f"{' or '.join(PLACEMENTS)}, or an object",
        lambda value: _is_object(value) or (_is_text(value) and value in PLACEMENTS),
    ),
    "licence": ("a text", _is_text),
    "tags": ("a list of texts", _is_list_of_texts),
    "rating": (", ".join(RATINGS), lambda value: value in RATINGS),
    "created": ("a text", _is_text),
    "training": ("an object", _is_object),
    "heldout": ("an object", _is_object),
    "samples": (
        'a list of objects of texts "prompt", "with", "without"',
        lambda value: isinstance(value, list) and all(map(_is_sample, value)),
    ),
}
_PLACEMENT_KEYS: dict[str, tuple[str, Check]] = {
    "position": (" or ".join(PLACEMENTS), lambda value: _is_text(value) and value in PLACEMENTS),
    "hold": (f"a whole number from 1 to {MOST_HOLD}", lambda value: _is_size(value) and 1 <= value <= MOST_HOLD),
    "strength": (
        f"a number from {LEAST_STRENGTH} to {MOST_STRENGTH:g}",
        lambda value: type(value) in (int, float) and LEAST_STRENGTH <= value <= MOST_STRENGTH,
    ),
}
# Each component of a mixture has its own placement.
_MIXTURE_KEYS: dict[str, tuple[str, Check]] = {
    "format_version": _KEYS["format_version"],
    "content_sha256": _KEYS["tensor_sha256"],
    "mixture": ("an object", _is_object),
    **{key: value for key, value in _KEYS.items() if key not in ("format_version", "tensor_sha256", "placement")},
}
