"""GGUF files as transformers folders: dequantised to float32 once, because reading one takes half a minute.

transformers reads the files (`gguf_file=`). What it gets wrong is corrected here:
- the model is marked as quantised and refuses save_pretrained, though its weights are plain floats;
- vocabularies whose pre-tokenizer it does not know silently get GPT-2's: SmolLM2's splits digits first, which changes how the blank
  lines before "1." are tokenized;
- byte-level tokenizers get GPT-2's "<|endoftext|>", with an id after the last embedding where the file has no such token.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from sordino.errors import ModelError
from sordino.models.architectures import check_layers
from sordino.models.gguf_header import GgufHeader
from sordino.models.loading import check_complete, quietly, reading

# By `tokenizer.ggml.pre`: llama.cpp, like these models' own tokenizers, splits at every digit and then as GPT-2 does.
_DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
# Settings of the loading, not of the tokenizer.
_NOT_KEPT = ("is_local", "local_files_only", "name_or_path", "tokenizer_file", "gguf_file")


def convert(header: GgufHeader, folder: Path, *, model_id: str) -> None:
    """Fill the empty `folder` with the model of a GGUF file: float32 safetensors, configuration, tokenizer.

    Needs 4 bytes a parameter on the disk and in memory, there with two more copies of the largest tensor. Raises ModelError where
    transformers cannot read the file.
    """
    n_tokens = _count_tokens(header)
    with _reading(header):
        read: Any = AutoModelForCausalLM.from_pretrained
        network, loading = read(header.path.parent, dtype=torch.float32, output_loading_info=True, **_source(header))
        check_complete(loading, header.path)
        tokenizer = AutoTokenizer.from_pretrained(header.path.parent, **_source(header))
        _unmark(network, model_id)
    with quietly():
        network.save_pretrained(folder)
    _save_tokenizer(tokenizer, header, folder, n_tokens)


def describe(header: GgufHeader, folder: Path, *, model_id: str) -> None:
    """As `convert`, without the weights: configuration and tokenizer. Raises ModelError where transformers cannot read them."""
    n_tokens = _count_tokens(header)
    config = read_gguf_config(header)
    with _reading(header):
        tokenizer = AutoTokenizer.from_pretrained(header.path.parent, **_source(header))
    config.name_or_path = model_id
    config.save_pretrained(folder)
    _save_tokenizer(tokenizer, header, folder, n_tokens)


def read_gguf_config(header: GgufHeader) -> PreTrainedConfig:
    """The configuration that transformers makes of a GGUF file's metadata. Raises ModelError."""
    check_layers(
        {f"{key} (layers)": n for key, n in header.fields.items() if key.endswith(".block_count")}, where=header.path
    )
    with _reading(header):
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(header.path.parent, **_source(header)))


@contextmanager
def _reading(header: GgufHeader) -> Iterator[None]:
    what = f"transformers cannot read this GGUF file (architecture {header.architecture[:80]!r})"
    # tqdm writes to stderr in spite of transformers' setting.
    with reading(what, header.path), quietly(), redirect_stderr(io.StringIO()):
        yield


def _count_tokens(header: GgufHeader) -> int:
    tokens = header.fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError("the file has no tokenizer", where=header.path, expected="a language model")
    return len(tokens)


def _source(header: GgufHeader) -> dict[str, Any]:
    return {"gguf_file": header.path.name, "local_files_only": True}


def _unmark(network: Any, model_id: str) -> None:
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(network, name):
            delattr(network, name)
    network.is_quantized = False
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.config.name_or_path = model_id


def _save_tokenizer(tokenizer: Any, header: GgufHeader, folder: Path, n_tokens: int) -> None:
    if not tokenizer.is_fast:
        raise ModelError("the tokenizer of this GGUF file cannot be saved", where=header.path)
    if str(header.fields.get("tokenizer.ggml.pre")) in _DIGITS_FIRST:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    with quietly():
        tokenizer.save_pretrained(folder)
    _tidy(folder / "tokenizer.json", folder / "tokenizer_config.json", n_tokens)


def _tidy(tokenizer: Path, settings: Path, n_tokens: int) -> None:
    """Keep only the file's tokens and the tokenizer's settings, in a form that loads quickly."""
    state = json.loads(tokenizer.read_text(encoding="utf-8"))
    invented = {token["content"] for token in state["added_tokens"] if token["id"] >= n_tokens}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < n_tokens]
    merges = state["model"].get("merges", [])
    # The older spelling "a b" loads a third faster than ["a", "b"], but cannot hold a space.
    if merges and not any(" " in part for merge in merges for part in merge):
        state["model"]["merges"] = [" ".join(merge) for merge in merges]
    tokenizer.write_text(json.dumps(state, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    written = json.loads(settings.read_text(encoding="utf-8"))
    kept = {key: value for key, value in written.items() if key not in _NOT_KEPT and str(value) not in invented}
    # tokenizer.json is complete; the classes of some families would rebuild it from its vocabulary, which takes seconds.
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
