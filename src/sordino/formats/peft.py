"""PEFT adapters that are soft prompts: adapter_config.json and adapter_model.safetensors (or .bin).

`sordino.json`, which PEFT ignores, holds the rest of the metadata. Source: peft/tuners/prompt_tuning/config.py,
peft/utils/save_and_load.py, and for KV prompts `get_prompt` of peft/peft_model.py, version 0.21.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sordino.errors import SoftPromptFileError
from sordino.formats import kv_prompts, meta, safetensors, torch_files
from sordino.formats.choice import PEFT_KEY, Named, of_adapter, only
from sordino.formats.folders import CONFIG, OLD_WEIGHTS, OUR_TENSORS, OURS, WEIGHTS, Members
from sordino.formats.json_text import read_object
from sordino.formats.kv_prompts import FLAT, LAST, OpenedKV
from sordino.formats.meta_keys import KV_PROMPT, SOFT_PROMPT
from sordino.formats.model_card import CARD, card
from sordino.formats.sources import Files
from sordino.formats.tensors import Opened, TensorView, shape_of
from sordino.prompts.encoder_decoders import ENCODER_DECODERS
from sordino.prompts.kv_prompt import MAX_KV_WIDTH, KVPrompt, KVShape, SinglePrompt
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt

# For these PEFT saves the final vectors; for multitask prompts, the factors that they are made of.
_KINDS = ("PROMPT_TUNING", "P_TUNING", "CPT", "MULTITASK_PROMPT_TUNING")
# Of an encoder-decoder, these stand ahead of the encoder's input and nowhere else.
_ENCODER_KINDS = ("PROMPT_TUNING", "P_TUNING")
# For these it saves keys and values, [n_tokens, layers * 2 * heads * channels]; with a projection, what that gives.
_KV_KINDS = ("PREFIX_TUNING", "CARTRIDGE")


def read(members: Members, index: int | None, path: Path, files: Files) -> Opened | OpenedKV:
    """The soft prompt in an adapter's files. path: of the folder or zip. Raises SoftPromptFileError."""
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
    is_kv = config["peft_type"] in _KV_KINDS
    described = _described(members, config, path, is_kv=is_kv)
    tensors = _tensors(members, where, files)
    if is_kv:
        only(index, where)
        last = safetensors.read(members[OUR_TENSORS]())[0] if OUR_TENSORS in members else []
        return _open_kv([*tensors, *last], config, described, where)
    opened = of_adapter(tensors, index, where)
    if config.get("num_transformer_submodules") == 2:
        opened = replace(opened, tensor=_ahead_of_encoder(opened.tensor, place))
    _check_sizes(config, shape_of(opened.tensor), place)
    return replace(opened, metadata=described.metadata, content_hash=described.content_hash)


def files(prompt: SoftPrompt) -> dict[str, list[bytes]]:
    """The files of a folder that peft.PeftModel.from_pretrained loads. Raises BadInput."""
    own = {
        "num_attention_heads": None,
        "num_layers": prompt.metadata.base.n_layers or None,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "token_dim": prompt.d_model,
        "tokenizer_name_or_path": None,
    }
    return _files(prompt, own, prompt.matrix, meta.to_bytes(prompt))


def kv_files(prompt: KVPrompt, *, cartridge: bool) -> dict[str, list[bytes]]:
    """As `files`, for a KV prompt: as PREFIX_TUNING or CARTRIDGE, with the last hidden state beside PEFT's files.

    Raises BadInput.
    """
    shape = prompt.shape
    kind: dict[str, Any] = (
        {"num_frozen_tokens": 1, "peft_type": "CARTRIDGE"}
        if cartridge
        else {
            "encoder_hidden_size": shape.heads * shape.channels,
            "peft_type": "PREFIX_TUNING",
            "prefix_projection": False,
        }
    )
    sizes: dict[str, Any] = {
        "num_attention_heads": shape.heads,
        "num_layers": shape.layers,
        "token_dim": shape.heads * shape.channels,
    }
    tensors = kv_prompts.tensors_of(prompt)
    last = {OUR_TENSORS: safetensors.pieces({LAST: tensors[LAST]}, {"format": "pt"})} if LAST in tensors else {}
    return _files(prompt, kind | sizes, tensors[FLAT], kv_prompts.to_bytes(prompt)) | last


def _files(
    prompt: SinglePrompt, own: dict[str, Any], weights: NDArray[Any], described: bytes
) -> dict[str, list[bytes]]:
    """own: what adapter_config.json says of this kind of prompt. described: sordino.json."""
    config = {
        "base_model_name_or_path": prompt.metadata.base.id or None,
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.n_tokens,
        "revision": None,
        "task_type": "SEQ_2_SEQ_LM" if prompt.metadata.base.family in ENCODER_DECODERS else "CAUSAL_LM",
    }
    return {
        # PEFT opens it in the platform's encoding, so it is ASCII.
        CONFIG: [json.dumps(config | own, indent=2, sort_keys=True).encode("ascii") + b"\n"],
        WEIGHTS: safetensors.pieces({PEFT_KEY: weights}, {"format": "pt"}),
        OURS: [described],
        CARD: [card(prompt)],
    }


def _described(members: Members, config: dict[str, Any], path: Path, *, is_kv: bool) -> meta.Described:
    """What the adapter says of its prompt: sordino.json where it is there. Raises SoftPromptFileError."""
    if OURS in members:
        source = members[OURS]()
        return meta.from_json(read_object(source), source.where, KV_PROMPT if is_kv else SOFT_PROMPT)
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        place = f"{path}: {CONFIG}: base_model_name_or_path"
        raise SoftPromptFileError("a value of the wrong kind", where=place, expected="a text")
    # In PEFT a soft prompt stands before everything, BOS included.
    name = path.absolute().name.removesuffix(".zip")
    return meta.Described(Metadata(name=name, base=BaseRef(id=base or "")))


def _open_kv(found: Sequence[Named], config: dict[str, Any], described: meta.Described, where: str) -> OpenedKV:
    """Keys and values. Raises SoftPromptFileError."""
    place = f"{where}: {CONFIG}"
    tensors = {FLAT if name == PEFT_KEY else name: tensor for name, tensor in found}
    if len(tensors) < len(found) or FLAT not in tensors or tensors.keys() - {FLAT, LAST}:
        raise SoftPromptFileError(
            "the adapter holds more than a KV prompt" if FLAT in tensors else "the adapter holds no KV prompt",
            where=where,
            expected=PEFT_KEY,
            got=", ".join(name[-60:] for name, _ in found[:4]),
        )
    sizes = {key: config.get(key) for key in ("num_layers", "num_attention_heads", "token_dim")}
    for key, size in sizes.items():
        if type(size) is not int or not 0 < size <= MAX_KV_WIDTH:
            raise meta.wrong(f"{place}: {key}", "a whole number above 0", size)
    layers, heads, width = (int(size or 0) for size in sizes.values())
    if width % heads:
        raise meta.wrong(f"{place}: token_dim", f"a multiple of {heads} heads", width)
    if described.metadata.placement != "start":
        raise meta.wrong(f"{where}: {OURS}: placement.position", "start, as in PEFT", described.metadata.placement)
    shape = KVShape(layers, heads, width // heads)
    if described.own and kv_prompts.stated(described, f"{where}: {OURS}")[0] != shape:
        raise meta.wrong(f"{where}: {OURS}: kv", str(shape), dict(described.own))
    opened = kv_prompts.opened(tensors, shape, described)
    if config.get("num_virtual_tokens") not in (None, opened.n_tokens):
        raise meta.wrong(f"{place}: num_virtual_tokens", str(opened.n_tokens), config["num_virtual_tokens"])
    return opened


def _check_kind(config: dict[str, Any], where: str) -> None:
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind not in _KINDS + _KV_KINDS:
        raise SoftPromptFileError(
            "this PEFT adapter is not a soft prompt",
            where=where,
            expected=f"peft_type {', '.join(_KINDS + _KV_KINDS)}",
            got=str(kind)[:40],
        )
    allowed: tuple[int | None, ...] = (None, 1)
    if task == "SEQ_2_SEQ_LM" and kind in _ENCODER_KINDS:
        task, allowed = None, (None, 1, 2)
    if task not in (None, "CAUSAL_LM") or config.get("num_transformer_submodules") not in allowed:
        raise SoftPromptFileError(
            "this soft prompt was not trained for a causal language model, nor to stand ahead of an encoder",
            where=where,
            expected="task_type CAUSAL_LM and num_transformer_submodules 1; SEQ_2_SEQ_LM for "
            + ", ".join(_ENCODER_KINDS),
            got=f"{str(task)[:40]}, {str(config.get('num_transformer_submodules'))[:20]}",
        )


def _ahead_of_encoder(tensor: TensorView, where: str) -> TensorView:
    """The first half of the rows: for two submodules PEFT saves as many again for the decoder, and never uses them."""
    rows, width = tensor.shape
    if rows % 2:
        raise SoftPromptFileError("the tensor has no halves", where=where, expected="an even number of rows", got=rows)
    return replace(tensor, shape=(rows // 2, width))


def _check_sizes(config: dict[str, Any], shape: tuple[int, int], where: str) -> None:
    for key, size in zip(("num_virtual_tokens", "token_dim"), shape, strict=True):
        if config.get(key) not in (None, size):
            raise SoftPromptFileError(
                "the configuration does not agree with the tensor",
                where=f"{where}: {key}",
                expected=size,
                got=str(config[key])[:40],
            )


def _tensors(members: Members, where: str, files: Files) -> Sequence[Named]:
    if WEIGHTS in members:
        return safetensors.read(members[WEIGHTS]())[0]
    if OLD_WEIGHTS in members:
        return torch_files.read(members[OLD_WEIGHTS](), files)
    raise SoftPromptFileError(f"there is no {WEIGHTS}", where=where)
