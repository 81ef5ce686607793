"""Tiny random models of every family that the tests run, with a small real tokenizer.

The weights are drawn wider than transformers' 0.02, or attention would be flat and a wrong mask would hardly show.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

if TYPE_CHECKING:
    from sordino.base_model import BaseModel

VOCAB_SIZE = 320
CONTEXT = 256
SPECIALS = ("<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>")
WORDS = ("the", " the", " and", " of", " to", " keeper", " wrote", " lamp", " sea", " ship", "ing", "ed", " was")

CHATML = (
    "{{ bos_token if add_bos is defined and add_bos else '' }}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
_WIDE: dict[str, Any] = {
    **_SHARED,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_OLD: dict[str, Any] = {**_SHARED, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT, "n_inner": 64}

_CONFIGS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {**_WIDE, "num_key_value_heads": 2}),
    "gpt2": (GPT2Config, GPT2LMHeadModel, _OLD),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, _WIDE),
    "gptj": (GPTJConfig, GPTJForCausalLM, {**_OLD, "rotary_dim": 4, "tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {**_WIDE, "num_key_value_heads": 2, "head_dim": 16}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            **_WIDE,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
FAMILIES: tuple[str, ...] = tuple(_CONFIGS)


def tiny(family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random frozen model in eval mode, the same for the same arguments. Overrides are fields of the family's config."""
    config_class, network_class, fields = _CONFIGS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_class._from_config(config_class(**{**fields, **overrides}), dtype=torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                # Biases and norm weights begin as zeros and ones, behind which a wrong formula can hide.
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.to(dtype).eval().requires_grad_(False)


def tiny_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 256 bytes and a few words; any text round-trips. With `bos`, it writes <bos> in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIALS, *alphabet]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        letters = word.replace(" ", "Ġ")
        for end in range(1, len(letters)):
            merged = letters[: end + 1]
            if merged not in pieces:
                pieces.append(merged)
                merges.append((letters[:end], letters[end]))
    if len(pieces) > VOCAB_SIZE:
        raise ValueError(f"{len(pieces)} tokens do not fit a vocabulary of {VOCAB_SIZE}")
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", SPECIALS.index("<bos>"))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    fast.chat_template = CHATML
    fast.model_max_length = CONTEXT
    return fast


def tiny_base(
    family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, bos: bool | None = None, **overrides: Any
) -> BaseModel:
    """`tiny` with its tokenizer. `bos` says whether the tokenizer writes one; by default only Gemma's does."""
    from sordino import base_model

    network = tiny(family, dtype=dtype, seed=seed, **overrides)
    tokenizer = tiny_tokenizer(bos=family == "gemma3" if bos is None else bos)
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.double().numpy().tobytes())
    return base_model.from_parts(network, tokenizer, name=f"tiny-{family}", fingerprint=digest.hexdigest())
