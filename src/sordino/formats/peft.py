"""PEFT adapters that are soft prompts: adapter_config.json and adapter_model.safetensors (or .bin).

`sordino.json`, which PEFT ignores, holds the rest of the metadata. Source: peft/tuners/prompt_tuning/config.py and
peft/utils/save_and_load.py, version 0.21.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sordino.errors import SoftPromptFileError
from sordino.formats import meta, safetensors
from sordino.formats.choice import Named, of_adapter
from sordino.formats.folders import CONFIG, OLD_WEIGHTS, OURS, WEIGHTS, Members
from sordino.formats.json_text import read_object
from sordino.formats.sources import Readable
from sordino.formats.tensors import Opened, shape_of
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt

# For these PEFT saves the final vectors; for multitask prompts, the factors that they are made of.
_KINDS = ("PROMPT_TUNING", "P_TUNING", "CPT", "MULTITASK_PROMPT_TUNING")


def read(members: Members, index: int | None, path: Path, read_torch: Callable[[Readable], Sequence[Named]]) -> Opened:
    """The soft prompt in an adapter's files. path: of the folder or zip. read_torch: reads an old adapter_model.bin.

    Raises SoftPromptFileError.
    """
    where = str(path)
    config = read_object(members[CONFIG]())
    place = f"{where}: {CONFIG}"
    _check_kind(config, place)
    if config.get("modules_to_save"):
        raise SoftPromptFileError(
            "the adapter holds more than a soft prompt",
            where=f"{place}: modules_to_save",
            got=str(config["modules_to_save"])[:80],
        )
    opened = of_adapter(_tensors(members, where, read_torch), index, where)
    _check_sizes(config, shape_of(opened.tensor), place)
    base = config.get("base_model_name_or_path")
    if OURS in members:
        source = members[OURS]()
        described = meta.from_json(read_object(source), source.where)
        return replace(opened, metadata=described.metadata, content_hash=described.content_hash)
    if base is not None and not isinstance(base, str):
        raise SoftPromptFileError(
            "a value of the wrong kind", where=f"{place}: base_model_name_or_path", expected="a text"
        )
    # In PEFT a soft prompt stands before everything, BOS included.
    return replace(
        opened, metadata=Metadata(name=path.absolute().name.removesuffix(".zip"), base=BaseRef(id=base or ""))
    )


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
    if kind not in _KINDS:
        raise SoftPromptFileError(
            "this PEFT adapter is not a soft prompt",
            where=where,
            expected=f"peft_type {', '.join(_KINDS)}",
            got=str(kind)[:40],
        )
    if task not in (None, "CAUSAL_LM") or config.get("num_transformer_submodules") not in (None, 1):
        raise SoftPromptFileError(
            "this soft prompt was not trained for a causal language model",
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


def _tensors(members: Members, where: str, read_torch: Callable[[Readable], Sequence[Named]]) -> Sequence[Named]:
    if WEIGHTS in members:
        return safetensors.read(members[WEIGHTS]())[0]
    if OLD_WEIGHTS in members:
        return read_torch(members[OLD_WEIGHTS]())
    raise SoftPromptFileError(f"there is no {WEIGHTS}", where=where)
