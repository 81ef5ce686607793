"""Tiny random models of every family that the tests run, with a small real tokenizer.

The weights are drawn wider than transformers' 0.02, or attention would be flat and a wrong mask would hardly show.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
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
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaRMSNorm

if TYPE_CHECKING:
    from sordino.models.base_model import BaseModel

VOCAB_SIZE = 320
CONTEXT = 256
# Of families that have no configuration of their own here.
SMALL_FIELDS: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
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

_T5: dict[str, Any] = {
    **_SHARED,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    # T5's own factor, which its initialisation multiplies by roots of its sizes.
    "initializer_factor": 1.5,
}
_GATED: dict[str, Any] = {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_BART: dict[str, Any] = {
    **_SHARED,
    "init_std": 0.15,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_PART: dict[str, Any] = {
    **_WIDE,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    # With it, transformers computes attention in float32.
    "attn_logit_softcapping": None,
}
# By the names that tests use: "t5" is the first T5, "t5-1.1" the gated one.
_ENCODER_DECODERS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    "t5": (T5Config, T5ForConditionalGeneration, _T5),
    "t5-1.1": (T5Config, T5ForConditionalGeneration, _GATED),
    "mt5": (MT5Config, MT5ForConditionalGeneration, _GATED),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration, _GATED),
    "t5gemma": (
        T5GemmaConfig,
        T5GemmaForConditionalGeneration,
        {
            "encoder": _PART,
            "decoder": {**_PART, "num_hidden_layers": 2, "layer_types": _PART["layer_types"][:2]},
            **_SHARED,
        },
    ),
    "bart": (BartConfig, BartForConditionalGeneration, {**_BART, "forced_bos_token_id": 2}),
    "mbart": (MBartConfig, MBartForConditionalGeneration, _BART),
    "pegasus": (PegasusConfig, PegasusForConditionalGeneration, {**_BART, "decoder_start_token_id": 0}),
    "marian": (MarianConfig, MarianMTModel, {**_BART, "decoder_start_token_id": 0}),
}
_CONFIGS |= _ENCODER_DECODERS
ENCODER_DECODERS: tuple[str, ...] = tuple(_ENCODER_DECODERS)


def tiny(
    family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu", **overrides: Any
) -> PreTrainedModel:
    """A random frozen model in eval mode, the same for the same arguments. Overrides are fields of the family's config."""
    config_class, network_class, fields = _CONFIGS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_class._from_config(config_class(**{**fields, **overrides}), dtype=torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                # Biases and norm weights begin as zeros and ones, after which a wrong formula can hide.
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    network = network.to(device, dtype).eval().requires_grad_(False)
    if dtype == torch.float64:
        _keep_norms_exact(network)
        if family == "t5gemma":
            # Its own attention takes the softmax in float32, whatever the model's dtype.
            for part in (network.config.encoder, network.config.decoder):
                part._attn_implementation = "sdpa"
    return network


def saved_tiny(
    folder: Path, family: str = "llama", *, dtype: torch.dtype = torch.float32, shards: str = "1GB", **overrides: Any
) -> Path:
    """A folder with a tiny model and its tokenizer, as transformers saves them. shards: most bytes of a file of weights."""
    tiny(family, dtype=dtype, **overrides).save_pretrained(folder, max_shard_size=shards)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _keep_norms_exact(network: PreTrainedModel) -> None:
    """RMS norms in float64: transformers' own round their input to float32, whatever the model's dtype."""
    for module in network.modules():
        if type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")):
            is_gemma = isinstance(module, Gemma3RMSNorm | T5GemmaRMSNorm)
            offset, eps = (1.0, module.eps) if is_gemma else (0.0, module.variance_epsilon)
            module.forward = partial(_exact_norm, module.weight + offset, eps)


def _exact_norm(weight: torch.Tensor, eps: float, x: torch.Tensor) -> torch.Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def tiny_tokenizer(*, bos: bool = False, ends: bool = False, sentinels: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 256 bytes and a few words; any text round-trips. With `bos`, it writes <bos> in front, with
    `ends` <eos> after. sentinels: T5's <extra_id_0> and on, as far as the vocabulary has room.
    """
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
    if bos or ends:
        one = " ".join([*(["<bos>"] if bos else []), "$A", *(["<eos>"] if ends else [])])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=one,
            pair=one + " $B",
            special_tokens=[(token, SPECIALS.index(token)) for token in ("<bos>", "<eos>")],
        )
    if sentinels:
        names = [f"<extra_id_{number}>" for number in range(sentinels)]
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    fast.chat_template = CHATML
    fast.model_max_length = CONTEXT
    return fast


def tokenizer_for(family: str, *, bos: bool | None = None) -> PreTrainedTokenizerFast:
    """As the family's own write BOS and the end of an input; without templates for encoder-decoders."""
    writes_bos = family in ("gemma3", "t5gemma", "bart") if bos is None else bos
    if family not in ENCODER_DECODERS:
        return tiny_tokenizer(bos=writes_bos)
    sentinels = 8 if family in ("t5", "t5-1.1", "mt5", "umt5") else 0
    tokenizer = tiny_tokenizer(bos=writes_bos, ends=family != "t5gemma", sentinels=sentinels)
    tokenizer.chat_template = None
    return tokenizer


def tiny_base(
    family: str,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    bos: bool | None = None,
    device: str = "cpu",
    **overrides: Any,
) -> BaseModel:
    """`tiny` with its tokenizer. `bos` says whether the tokenizer writes one; by default only Gemma's does."""
    from sordino.models import base_model

    network = tiny(family, dtype=dtype, seed=seed, device=device, **overrides)
    tokenizer = tokenizer_for(family, bos=bos)
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().double().numpy().tobytes())
    return base_model.from_parts(network, tokenizer, name=f"tiny-{family}", fingerprint=digest.hexdigest())


def tiny_gguf(
    path: Path,
    *,
    network: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    pre: str = "smollm",
) -> Path:
    """A GGUF file, float32, of a tiny Llama and its tokenizer, as llama.cpp's converter writes it."""
    network = network or tiny("llama", dtype=torch.float32)
    tokenizer = tokenizer or tiny_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    _write_gguf_config(writer, network.config)
    _write_gguf_tokenizer(writer, tokenizer, network.config.vocab_size, pre)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, network.config.num_hidden_layers)
    heads = {"q_proj": network.config.num_attention_heads, "k_proj": network.config.num_key_value_heads}
    for name, tensor in network.state_dict().items():
        values = tensor.numpy()
        kind = name.split(".")[-2]
        if kind in heads:
            # llama.cpp rotates neighbouring channels, transformers the halves of a head.
            split = values.reshape(heads[kind], 2, values.shape[0] // heads[kind] // 2, values.shape[1])
            values = split.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_gguf_config(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_name("tiny llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_gguf_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, size: int, pre: str) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *(f"unused{i}" for i in range(size - len(tokens)))])
    writer.add_token_types(
        [*(control if token in SPECIALS else normal for token in tokens), *[unused] * (size - len(tokens))]
    )
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(SPECIALS.index("<bos>"))
    writer.add_eos_token_id(SPECIALS.index("<eos>"))
    writer.add_pad_token_id(SPECIALS.index("<pad>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
