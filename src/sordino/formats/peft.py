"""PEFT's prompt tuning folders: adapter_config.json and adapter_model.safetensors (or .bin).

`sordino.json`, which PEFT does not look at, keeps the rest of the metadata. Source: peft/tuners/prompt_tuning/config.py and
peft/utils/save_and_load.py, version 0.21.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sordino.errors import SoftPromptFileError
from sordino.formats import meta, safetensors
from sordino.formats.choice import Named, choose
from sordino.formats.json_text import read_object
from sordino.formats.opened import Opened
from sordino.formats.sources import Source
from sordino.formats.tensors import shape_of
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt

CONFIG, WEIGHTS, OLD_WEIGHTS, OURS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "sordino.json",
)


def read(folder: Path, open_file: Callable[[Path], Source], read_torch: Callable[[Source], Sequence[Named]]) -> Opened:
    """The soft prompt in a folder. read_torch: reads an old adapter_model.bin. Raises SoftPromptFileError."""
    config = read_object(open_file(folder / CONFIG))
    where = f"{folder}: {CONFIG}"
    _check_kind(config, where)
    tensors = _tensors(folder, open_file, read_torch)
    others = [name for name, _ in tensors if name != safetensors.KEY]
    if others:
        # Heads and embeddings that were trained along: without them the soft prompt is not what was trained.
        raise SoftPromptFileError(
            "the adapter holds more than a soft prompt",
            where=folder,
            expected=safetensors.KEY,
            got=", ".join(others[:4]),
        )
    tensor = choose(tensors, None, str(folder))
    _check_sizes(config, shape_of(tensor), where)
    base = config.get("base_model_name_or_path")
    if os.path.isfile(folder / OURS):
        source = open_file(folder / OURS)
        described = meta.from_json(read_object(source), source.where)
        return Opened(tensor, described.metadata, described.content_hash)
    if base is not None and not isinstance(base, str):
        raise SoftPromptFileError(
            "a value of the wrong kind", where=f"{where}: base_model_name_or_path", expected="a text"
        )
    # In PEFT a soft prompt stands before everything, BOS included.
    return Opened(tensor, Metadata(name=folder.absolute().name, base=BaseRef(id=base or "")))


def files(prompt: SoftPrompt) -> dict[str, list[bytes]]:
    """The files of a folder that peft.PeftModel.from_pretrained loads. Raises BadInput."""
    base = prompt.metadata.base
    config = {
        "base_model_name_or_path": base.id or None,
        "inference_mode": True,
        "num_attention_heads": None,
        "num_layers": base.n_layers or None,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.n_tokens,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "token_dim": prompt.d_model,
        "tokenizer_name_or_path": None,
    }
    return {
        # ASCII: PEFT opens it in the platform's encoding.
        CONFIG: [json.dumps(config, indent=2).encode("ascii") + b"\n"],
        WEIGHTS: safetensors.pieces(prompt, {"format": "pt"}),
        OURS: [meta.to_bytes(prompt)],
    }


def _check_kind(config: dict[str, Any], where: str) -> None:
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "PROMPT_TUNING":
        raise SoftPromptFileError(
            "this PEFT adapter is not a soft prompt",
            where=where,
            expected="peft_type PROMPT_TUNING",
            got=str(kind)[:40],
        )
    if task not in (None, "CAUSAL_LM") or config.get("num_transformer_submodules") not in (None, 1):
        raise SoftPromptFileError(
            "this soft prompt was trained for something else than writing on",
            where=where,
            expected="task_type CAUSAL_LM, num_transformer_submodules 1",
            got=f"{str(task)[:40]}, {str(config.get('num_transformer_submodules'))[:20]}",
        )


def _check_sizes(config: dict[str, Any], shape: tuple[int, int], where: str) -> None:
    for key, size in zip(("num_virtual_tokens", "token_dim"), shape, strict=True):
        if config.get(key) not in (None, size):
            raise SoftPromptFileError(
                "the configuration does not agree with the tensor",
                where=f"{where}: {key}",
                expected=size,
                got=str(config[key])[:40],
            )


def _tensors(
    folder: Path, open_file: Callable[[Path], Source], read_torch: Callable[[Source], Sequence[Named]]
) -> Sequence[Named]:
    if os.path.isfile(folder / WEIGHTS):
        return safetensors.read(open_file(folder / WEIGHTS))[0]
    if os.path.isfile(folder / OLD_WEIGHTS):
        return read_torch(open_file(folder / OLD_WEIGHTS))
    raise SoftPromptFileError(f"the folder has no {WEIGHTS}", where=folder)
