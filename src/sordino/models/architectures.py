"""Which base models can carry a soft prompt, decided from a configuration, before any weights are read.

In a decoder a soft prompt becomes keys and values in every layer, so all of them must attend through a KV cache. Recurrent and
convolutional layers have states that would have to be shared too. In an encoder-decoder it stands ahead of the encoder's input.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sordino.errors import ModelError
from sordino.prompts.encoder_decoders import ENCODER_DECODERS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Eight times the layers of the deepest known model. Reading a configuration makes a list of its layers.
_MAX_LAYERS = 1024
_ATTENTION = frozenset({"attention", "full_attention", "sliding_attention", "chunked_attention"})
_NEEDED_ARGUMENTS = ("inputs_embeds", "past_key_values")

_RECURRENT = "some of its layers are recurrent or convolutional, without the keys and values that a soft prompt becomes"
_ENCODER = "it is an encoder only: it fills gaps in a text and cannot continue one"
_ENCODER_DECODER = f"of encoder-decoders, these are in the tests: {', '.join(sorted(ENCODER_DECODERS))}"
_ENCODER_DECODER_GGUF = (
    "it is an encoder-decoder, which llama.cpp gives no vectors to; its folder or hub id runs under PyTorch"
)
_ADVICE = "choose a decoder such as Llama, Mistral, Qwen3, Gemma 3, GPT-2, GPT-J or GPT-NeoX, or the bundled smollm2"

# GGUF's own names, for the files that must be refused before transformers reads them.
_GGUF_REASONS = {
    **dict.fromkeys(
        ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "jamba", "bamba", "falcon-h1"), _RECURRENT
    ),
    **dict.fromkeys(
        ("granitehybrid", "nemotron_h", "plamo2", "lfm2", "lfm2moe", "kimi-linear", "qwen3next"), _RECURRENT
    ),
    **dict.fromkeys(("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "neo-bert", "modern-bert"), _ENCODER),
    **dict.fromkeys(("t5", "t5encoder"), _ENCODER_DECODER_GGUF),
}


def check_gguf_architecture(architecture: str, *, where: object) -> None:
    """Raises ModelError for an architecture, by GGUF's name, that cannot carry a soft prompt."""
    if architecture in _GGUF_REASONS:
        raise _refusal(architecture, _GGUF_REASONS[architecture], where)


def check_config(config: PreTrainedConfig, *, where: object) -> None:
    """Raises ModelError, with the reason, for a model that cannot carry a soft prompt."""
    reason = _reason_against(config)
    if reason:
        raise _refusal(config.model_type, reason, where)
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1:
        raise ModelError("the model has no layers", where=where, got=layers, do="fetch the model again")


def check_layers(settings: object, *, where: object) -> None:
    """Raises ModelError where a configuration, as JSON, counts more layers than any model has."""
    if not isinstance(settings, Mapping):
        return
    for key, value in settings.items():
        if isinstance(value, int) and "layer" in str(key) and value > _MAX_LAYERS:
            raise ModelError(
                "the configuration has too many layers",
                where=where,
                expected=f"at most {_MAX_LAYERS}",
                got=f"{key} {value:.6g}",
            )
        check_layers(value, where=where)


def _reason_against(config: PreTrainedConfig) -> str:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.is_encoder_decoder:
        return "" if config.model_type in ENCODER_DECODERS else _ENCODER_DECODER
    text = config.get_text_config()
    if not _ATTENTION.issuperset(_kinds_of_layers(text)):
        return _RECURRENT
    family = config.model_type
    if family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return _ENCODER
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "transformers knows no causal language model of this kind"
    network: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if isinstance(network, tuple):
        network = network[0]
    if getattr(network, "_is_stateful", False):
        return _RECURRENT
    taken = inspect.signature(network.forward).parameters
    missing = [name for name in _NEEDED_ARGUMENTS if name not in taken]
    return f"its forward pass takes no {' and no '.join(missing)}" if missing else ""


def _kinds_of_layers(config: PreTrainedConfig) -> set[str]:
    """The kinds of layers that a configuration lists; most list none, as their layers are all alike."""
    for name in ("layer_types", "layers_block_type", "block_types"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, (list, tuple)):
            return {str(kind) for kind in kinds}
    return set()


def _refusal(family: str, reason: str, where: object) -> ModelError:
    return ModelError(f"a model of the family {family!r} cannot carry a soft prompt: {reason}", where=where, do=_ADVICE)
