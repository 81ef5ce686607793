"""Encoder-decoders by family, and what is not possible with them: the only place that says so.

A soft prompt stands ahead of the encoder's input. An encoder is bidirectional, so the states at the prompt depend on the text
after it, and what relies on a prompt that runs once has no counterpart there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sordino.errors import ConfigError

# transformers' model types, each in tests/parity/test_encoder_decoders.py.
ENCODER_DECODERS = frozenset({"t5", "mt5", "umt5", "t5gemma", "bart", "mbart", "pegasus", "marian"})

OnlyDecoders = Literal[
    "a KV prompt",
    "distillation",
    "baking",
    "a mixture's gate",
    "the effect at a distance",
    "sharding",
]
_TEXT_DEPENDS = "the states at a prompt ahead of an encoder's input depend on the text after it"
_REASONS: Mapping[OnlyDecoders, str] = {
    "a KV prompt": f"{_TEXT_DEPENDS}, so no keys and values stand for it",
    "distillation": "it has no text that a long prompt could stand ahead of",
    "baking": "Sordino adds tokens to the vocabulary of decoders only",
    "a mixture's gate": "a gate reads a decoder's hidden states",
    "the effect at a distance": "its encoder reads the whole input at once, so no text draws away from the prompt",
    "sharding": "the gradients of its two stacks of layers were not tried",
}


def refused(what: OnlyDecoders, where: str) -> ConfigError:
    """where: the encoder-decoder."""
    return ConfigError(
        f"{what} is not possible with an encoder-decoder: {_REASONS[what]}",
        where=where,
        do="see docs/encoder-decoders.md for what is",
    )
