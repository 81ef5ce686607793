"""meta.json, and a mixture's mixture.json: KoboldAI's four keys, and the `sordino` object for everything else (docs/formats.md).

`meta_keys` says which keys each kind of prompt has there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sordino.errors import BadInput, SoftPromptFileError
from sordino.formats.json_text import check_room, parse
from sordino.formats.meta_keys import BASE_KEYS, KV_PROMPT, PLACEMENT_KEYS, SOFT_PROMPT, Holder, Keys, is_text_list
from sordino.prompts.attention import PromptAttention
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.soft_prompt import PLACEMENTS, BaseRef, Metadata, SoftPrompt

_OWN_KEYS = frozenset({"name", "author", "supported", "description", "sordino"})


@dataclass(frozen=True)
class Described:
    """The content of a meta.json. content_hash: of the prompt that it was written with, or "".

    version: of the format; 0 without a `sordino` object. own: the object of what only this kind of prompt has, `Holder.own`.
    """

    metadata: Metadata
    content_hash: str = ""
    version: int = 0
    own: Mapping[str, Any] = field(default_factory=dict)


def from_json(obj: Mapping[str, Any], where: str, holder: Holder = SOFT_PROMPT) -> Described:
    """Read KoboldAI's keys as leniently as KoboldAI does (unknown keys are preserved), and the `sordino` object strictly.

    Raises SoftPromptFileError: a newer format version, an unknown key in `sordino`, a value of the wrong kind.
    """
    known: dict[str, Any] = {
        "name": _text(obj, "name", where),
        "author": ", ".join(_texts(obj, "author", where)),
        "supported": tuple(_texts(obj, "supported", where)),
        "description": _text(obj, "description", where),
        "foreign": {key: value for key, value in obj.items() if key not in _OWN_KEYS},
    }
    ours = obj.get("sordino")
    if ours is None and not holder.always:
        return Described(Metadata(**known))
    where = f"{where}: sordino"
    if not isinstance(ours, dict):
        raise wrong(where, "an object", ours)
    _check_version(ours.get("format_version"), where, holder.newest)
    given = checked(ours, holder.keys, where, holder.required)
    version = given.pop("format_version")
    if "placement" in given:
        given |= _placed(given["placement"], f"{where}.placement", may_be_object=version >= holder.objects_from)
    content_hash, own = given.pop(holder.hash_key, ""), given.pop(holder.own, {})
    given.pop("kind", None)
    if "base" in given:
        given["base"] = BaseRef(**checked(given["base"], BASE_KEYS, f"{where}.base"))
    for key in ("tags", "samples"):
        if key in given:
            given[key] = tuple(given[key])
    return Described(Metadata(**known, **given), content_hash, version, own)


def to_json(
    known: Metadata, holder: Holder, content_hash: str, own: Mapping[str, Any] | None = None, *, version: int = 1
) -> dict[str, Any]:
    """The object that `from_json` reads, its keys in a fixed order, unknown values left out.

    version: at least this one. Raises BadInput, naming the field, for metadata that a file cannot hold.
    """
    base = known.base
    base_values = {
        item.name: getattr(base, item.name) for item in fields(base) if getattr(base, item.name) != item.default
    }
    if "embedding_rms" in base_values:
        # 1 and 1.0 are the same number and must give the same bytes.
        base_values["embedding_rms"] = float(base.embedding_rms)
    placement = _placement(known, as_object=holder.objects_from == 1) if "placement" in holder.keys else None
    ours = {
        "format_version": max(version, holder.objects_from if isinstance(placement, dict) else 1),
        holder.hash_key: content_hash,
        "kind": KVPrompt.kind if holder is KV_PROMPT else None,
        holder.own: own,
        "base": base_values,
        "placement": placement,
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


def _placement(known: Metadata, *, as_object: bool) -> str | dict[str, Any]:
    """The position alone, or an object with what changes attention."""
    attention = known.attention
    if attention.plain and not as_object:
        return known.placement
    hold = {} if attention.hold is None else {"hold": attention.hold}
    strength = {} if attention.strength == 1 else {"strength": float(attention.strength)}
    return {"position": known.placement, **hold, **strength}


def _placed(value: str | dict[str, Any], where: str, *, may_be_object: bool) -> dict[str, Any]:
    """The metadata's placement and attention."""
    if isinstance(value, str):
        return {"placement": value}
    if not may_be_object:
        raise wrong(where, " or ".join(PLACEMENTS), value)
    own = checked(value, PLACEMENT_KEYS, where, ("position",))
    return {"placement": own.pop("position"), "attention": PromptAttention(**own)}


def to_bytes(prompt: SoftPrompt) -> bytes:
    """meta.json: UTF-8, indented by two, ending in a line feed. Raises BadInput for metadata that could not be read again."""
    data = encoded(to_json(prompt.metadata, SOFT_PROMPT, prompt.content_hash), "meta.json")
    from_json(parse(data, "metadata"), "metadata")
    check_width(prompt.metadata, prompt.d_model)
    return data


def encoded(obj: Mapping[str, Any], member: str) -> bytes:
    """JSON in the form for `member`. Raises BadInput."""
    try:
        text = json.dumps(obj, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        data = text.encode("utf-8")
    except (TypeError, ValueError) as error:
        # Lone surrogates, nan, and types that JSON does not have.
        raise BadInput("cannot be written", where="metadata", got=error) from error
    check_room(len(data), member)
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
        raise wrong(f"{where}.format_version", "1" if newest == 1 else f"1 to {newest}", version)
    if version > newest:
        raise newer(where, f"format_version {newest}", version)


def checked(
    obj: Mapping[str, Any],
    keys: Keys,
    where: str,
    required: Iterable[str] = (),
    *,
    do: str = "put your own keys beside `sordino`, not into it",
) -> dict[str, Any]:
    """`obj`, if it has only these keys, the required ones among them, and valid values. do: about an unknown key.

    Raises SoftPromptFileError.
    """
    for key, value in obj.items():
        if key not in keys:
            raise SoftPromptFileError(
                f"an unknown key {key[:40]!r}",
                where=where,
                expected=", ".join(keys),
                do=do,
            )
        wanted, is_good = keys[key]
        if not is_good(value):
            raise wrong(f"{where}.{key}", wanted, value)
    for key in required:
        if key not in obj:
            raise wrong(f"{where}.{key}", keys[key][0], None)
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
    if not is_text_list(value):
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


def newer(where: str, expected: str, got: int) -> SoftPromptFileError:
    """The error for a format version newer than this program."""
    return SoftPromptFileError(
        "written by a newer version of Sordino",
        where=where,
        expected=expected,
        got=got,
        do="update Sordino: pip install --upgrade sordino",
    )


def check_hash(where: object, what: str, key: str, expected: str, got: str) -> None:
    """Raise SoftPromptFileError where data does not match the hash in its file; "" where the file has none."""
    if expected and expected != got:
        raise SoftPromptFileError(
            f"{what} was changed after this file was written",
            where=where,
            expected=f"{key} {expected[:16]}...",
            got=f"{got[:16]}...",
            do=f"get the original, or, to accept the change, delete {key} from the file's metadata",
        )
