"""What a configuration and a tokenizer say of a base model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from sordino.errors import ModelError
from sordino.prompts.kv_prompt import KVShape

# Markers of the end of a text or a turn, where the tokenizer has them as special tokens.
_END_MARKERS = (
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)
# For models without a limit (ALiBi, relative positions): what they are commonly trained on.
_UNLIMITED_CONTEXT = 2048
# Their configurations state the 512 positions of pretraining; relative positions go on beyond, all as far away.
_RELATIVE_POSITIONS = ("t5", "mt5", "umt5")


@dataclass(frozen=True)
class EncoderDecoder:
    """What an encoder-decoder's two texts have besides their own tokens. end_ids: what ends the encoder's input. start_ids: what
    the decoder's text begins with, never a target.
    """

    end_ids: tuple[int, ...]
    start_ids: tuple[int, ...]


def encoder_decoder_of(config: PreTrainedConfig, generation: Any, tokenizer: Any) -> EncoderDecoder | None:
    """None for a decoder. generation: transformers' generation settings, or None. Raises ModelError."""
    if not config.is_encoder_decoder:
        return None

    def stated(name: str) -> Any:
        return next((value for of in (generation, config) if (value := getattr(of, name, None)) is not None), None)

    start = stated("decoder_start_token_id")
    start = stated("bos_token_id") if start is None else start
    if not isinstance(start, int):
        raise ModelError(
            "the configuration does not say what the decoder's text begins with",
            where="decoder_start_token_id",
            got=start,
            do="set it in the model's config.json",
        )
    forced = stated("forced_bos_token_id")
    # BART and mBART write a BOS, or the mark of a language, after the start; Gemma's start is its BOS.
    first = bos_ids_of(tokenizer) if forced is None else (int(forced),)
    before, plain, full = _framed(tokenizer)
    return EncoderDecoder(full[len(before) + len(plain) :], (start, *(() if first == (start,) else first)))


def input_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a configuration that says how a prompt's model reads: of an encoder-decoder in two parts, the encoder's."""
    encoder = getattr(config, "encoder", None)
    return encoder if isinstance(encoder, PreTrainedConfig) else config.get_text_config()


def windowed_of(config: PreTrainedConfig) -> tuple[bool, ...]:
    """For each layer whether it sees a sliding window only."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * int(config.num_hidden_layers)
    return tuple(kind == "sliding_attention" for kind in kinds)


def kv_shape_of(config: PreTrainedConfig) -> KVShape | None:
    """The shape of the keys and values, the same in every layer; None where configurations of that kind do not state it."""
    # One head for all queries; compressed keys and values; layers of several widths; layers that share theirs.
    unusual = ("multi_query", "kv_lora_rank", "global_head_dim", "per_layer_config", "num_kv_shared_layers")
    heads = getattr(config, "num_attention_heads", None)
    # As a dictionary: the attribute `per_layer_config` is there in any case.
    stated = config.to_dict()
    if not isinstance(heads, int) or any(stated.get(name) for name in unusual):
        return None
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    if not isinstance(channels, int) or not isinstance(shared, int):
        return None
    return KVShape(int(config.num_hidden_layers), shared, channels)


def context_length_of(config: PreTrainedConfig) -> int:
    """Positions that the model was trained on, by the names that configurations use; of an encoder-decoder, on either side."""
    if config.model_type in _RELATIVE_POSITIONS:
        return _UNLIMITED_CONTEXT
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return _UNLIMITED_CONTEXT


def rope_switch_of(config: PreTrainedConfig) -> float:
    """Positions after which the model turns all keys in another way, so that those of a prefix no longer fit: of RoPE scaled as in
    LongRoPE (arXiv 2402.13753). Infinite for others.
    """
    stated: Any = getattr(config, "rope_parameters", None) or {}
    for one in (stated, *(part for part in stated.values() if isinstance(part, dict))):
        if one.get("rope_type") == "longrope":
            original = one.get("original_max_position_embeddings")
            return float(original or getattr(config, "original_max_position_embeddings", None) or math.inf)
    return math.inf


def bos_ids_of(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer writes before every text: found by running it, because settings and behaviour disagree."""
    return _framed(tokenizer)[0]


def _framed(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A text's ids: what is written before them, they themselves, and all of it."""
    plain = tuple(int(i) for i in tokenizer("a", add_special_tokens=False)["input_ids"])
    full = tuple(int(i) for i in tokenizer("a")["input_ids"])
    for at in range(len(full) - len(plain) + 1):
        if full[at : at + len(plain)] == plain:
            return full[:at], plain, full
    return (), plain, plain


def stop_ids_of(tokenizer: Any, vocab_size: int, *configured: Any) -> frozenset[int]:
    """The tokenizer's end of text, its markers of a turn's end, and those of configurations: an id, a list or None each."""
    ids: set[int] = set()
    for ends in (tokenizer.eos_token_id, *configured):
        ids.update(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids.update(special[marker] for marker in _END_MARKERS if marker in special)
    # Some tokenizers have special tokens without an embedding, which no network can produce.
    return frozenset(int(i) for i in ids if 0 <= i < vocab_size)
