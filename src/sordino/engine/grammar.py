"""Texts that match a JSON schema: which tokens may come next, by llguidance (docs/decisions/0017-json-schemas.md).

Shape key: V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from sordino.errors import ConfigError, MissingExtra, ModelError
from sordino.models.description import DescribedModel

# One space after commas and colons, as most JSON has it. Where any space may come, small models write nothing else.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Characters of a schema.
_LONGEST = 1 << 16


@dataclass(frozen=True, eq=False)
class Grammar:
    """What a text has to match. Each row that is written by it follows with a state of its own."""

    _matcher: Any
    _vocab_size: int

    def begin(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy(), self._vocab_size)


class GrammarState:
    """A grammar after the tokens that were drawn so far."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Whether each token may come next [V]; an end of the text where it matches. Raises ModelError."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        found = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        return found.view(np.bool_)

    def push(self, token: int) -> None:
        """Raises ModelError."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def over(self) -> bool:
        """Whether nothing but an end can come."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ModelError("the text can follow its schema no further", got=_reason(self._matcher.get_error()))


class Grammars:
    """Of one model. Its vocabulary is read at the first schema, which takes seconds. Any thread may call it."""

    def __init__(self, model: DescribedModel) -> None:
        self._model, self._tokenizer, self._lock = model, None, Lock()

    def of_schema(self, schema: Mapping[str, Any] | bool) -> Grammar:
        """Raises MissingExtra, and ConfigError for what is no schema, or has parts that are not implemented."""
        text = json.dumps(schema)
        if len(text) > _LONGEST:
            raise _refused("the JSON schema is too long", expected=f"at most {_LONGEST} characters", got=len(text))
        tokenizer, module = self._vocabulary(), _llguidance()
        try:
            grammar = module.LLMatcher.grammar_from_json_schema(text, overrides=_LAYOUT)
        except ValueError as error:
            raise _refused("this is no JSON schema", got=_reason(str(error))) from error
        matcher = module.LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refused("this JSON schema cannot be followed", got=_reason(matcher.get_error()))
        return Grammar(matcher, self._model.vocab_size)

    def _vocabulary(self) -> Any:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _tokenizer_of(self._model)
            return self._tokenizer


def _tokenizer_of(model: DescribedModel) -> Any:
    if not model.tokenizer.is_fast:
        raise _refused(f"{model.name} has a tokenizer that llguidance cannot read")
    # Its JSON and not the object: padding and truncation, which may be set in it, are none of a text's own tokens.
    described = json.loads(model.tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    ends = sorted(model.stop_ids)
    # A tokenizer may know more tokens than the network.
    module, size = _llguidance(), max(model.vocab_size, len(model.tokenizer))
    try:
        return module.LLTokenizer(json.dumps(described), n_vocab=size, eos_token=ends)
    except ValueError as error:
        raise _refused(f"{model.name} has a tokenizer that llguidance cannot read", got=_reason(str(error))) from error


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtra(
            "llguidance is not installed", where="response_format", got=error.name, do="pip install 'sordino[schema]'"
        ) from None
    return llguidance


def _refused(message: str, *, expected: object = "", got: object = "") -> ConfigError:
    return ConfigError(message, where="response_format", expected=expected, got=got)


def _reason(message: str) -> str:
    """The first line of a message of llguidance."""
    return message.strip().partition("\n")[0][:300]
