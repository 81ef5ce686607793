"""Fields of sampling that have the same name on OpenAI's and KoboldAI's routes, and what the engine's settings are for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr

from sordino.models.description import DescribedModel
from sordino.server.errors import Refused, refusing
from sordino.server.foreign import texts_in

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# For other programs top_p 0, typical 0 and tfs 0 keep one token, as does a value just above 0.
ONE_TOKEN = 1e-9
# A list that is looked at item by item only where it is not too long.
_Texts = Annotated[list[StrictStr], Field(max_length=256)]
# Each group does nothing while its first field is 0, so the others are not even checked then.
_GROUPS = (
    ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_range", "dry_breakers"),
    ("xtc_probability", "xtc_threshold"),
    ("dynatemp_range", "dynatemp_exponent"),
    ("smoothing_factor", "smoothing_curve"),
)
# Settings of the engine that are called otherwise in requests.
NAMES = {"dry_range": "dry_penalty_last_n", "dry_breakers": "dry_sequence_breakers", "banned": "banned_strings"}


class SamplerFields(BaseModel):
    """dry_sequence_breakers: also as JSON in a text. banned_strings: texts that are not written. custom_token_bans: ids of tokens,
    also with commas between. ban_eos_token: the text cannot end by itself. ignore_eos: it goes on after its end.
    """

    dry_multiplier: Number | None = None
    dry_base: Number | None = None
    dry_allowed_length: StrictInt | None = None
    dry_penalty_last_n: StrictInt | None = None
    dry_sequence_breakers: _Texts | StrictStr | None = None
    xtc_probability: Number | None = None
    xtc_threshold: Number | None = None
    dynatemp_range: Number | None = None
    dynatemp_exponent: Number | None = None
    smoothing_factor: Number | None = None
    smoothing_curve: Number | None = None
    banned_strings: Annotated[list[Annotated[StrictStr, Field(max_length=500)]], Field(max_length=256)] | None = None
    custom_token_bans: Annotated[list[StrictInt], Field(max_length=1024)] | StrictStr | None = None
    ban_eos_token: StrictBool | None = None
    ignore_eos: StrictBool | None = None
    min_tokens: StrictInt | None = None


def sampler_settings(base: DescribedModel, fields: SamplerFields) -> dict[str, Any]:
    """The engine's settings that these fields give. Raises Refused."""
    given: dict[str, Any] = {}
    for first, *others in _GROUPS:
        if getattr(fields, first):
            for name in (first, *others):
                given[name] = getattr(fields, NAMES.get(name, name))
    if given.get("dry_range") == -1:
        # KoboldCpp's -1, like 0, means all.
        given["dry_range"] = 0
    try:
        if given.get("dry_breakers") is not None:
            given["dry_breakers"] = texts_in(given["dry_breakers"])
    except ValueError as error:
        raise Refused(400, f"dry_sequence_breakers: {error}", field="dry_sequence_breakers") from error
    ids = _banned_ids(base, fields.custom_token_bans)
    given["banned"] = (*ids, *_banned_texts(base, fields.banned_strings or ()))
    given["end"] = "forbid" if fields.ban_eos_token else "ignore" if fields.ignore_eos else "stop"
    given["min_tokens"] = fields.min_tokens
    return {name: value for name, value in given.items() if value is not None}


def _banned_ids(base: DescribedModel, given: Sequence[int] | str | None) -> list[tuple[int, ...]]:
    words = [word.strip() for word in given.split(",") if word.strip()] if isinstance(given, str) else given or ()
    ids = [int(word) if isinstance(word, int) or (word.isdecimal() and len(word) < 10) else -1 for word in words]
    if any(not 0 <= token < base.vocab_size for token in ids):
        message = f"custom_token_bans: token ids are 0 to {base.vocab_size - 1} here"
        raise Refused(400, message, field="custom_token_bans")
    return [(token,) for token in ids]


def _banned_texts(base: DescribedModel, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Each text as tokens, as it begins a text and as a word within one."""
    with refusing("banned_strings"):
        found = [tuple(base.encode(spaced)) for text in texts if text for spaced in (text, f" {text}")]
    return list(dict.fromkeys(ids for ids in found if ids))
