"""KV prompts, `.kv.zip`: meta.json, and the keys and values as safetensors (docs/formats.md).

Both members are stored: nothing in the file unpacks to more than its size.

Shape key: P virtual tokens, D model width, W = layers * 2 * heads * channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.errors import SoftPromptFileError
from sordino.formats import meta, safetensors
from sordino.formats.folders import META
from sordino.formats.json_text import parse, read_object
from sordino.formats.meta_keys import KV_PROMPT, Keys, is_size
from sordino.formats.sources import Readable
from sordino.formats.tensors import TensorView, check, load, shape_of
from sordino.formats.zips import Archive
from sordino.prompts.kv_prompt import MAX_KV_WIDTH, KVPrompt, KVShape
from sordino.prompts.soft_prompt import Metadata

# The member that makes a zip a KV prompt, and the tensors in it.
TENSORS = "kv_prompt.safetensors"
FLAT, LAST = "flat", "last"
# How the keys are stored, in the file's words.
_ROTATED = "rotated"


@dataclass(frozen=True)
class OpenedKV:
    """A KV prompt whose headers were read and agree. last: None where the file has none."""

    flat: TensorView
    last: TensorView | None
    shape: KVShape
    metadata: Metadata
    content_hash: str = ""

    @property
    def n_tokens(self) -> int:
        return shape_of(self.flat, MAX_KV_WIDTH)[0]

    @property
    def d_model(self) -> int:
        """0 where the file does not state it."""
        return self.metadata.base.d_model if self.last is None else self.last.shape[-1]


def is_kv_prompt(archive: Archive) -> bool:
    """Whether this zip holds a KV prompt."""
    return any(member.filename == TENSORS for member in archive.members)


def open_archive(archive: Archive) -> OpenedKV:
    """Read the headers of both members. Raises SoftPromptFileError."""
    members = archive.stored(2, "a KV prompt")
    if sorted(members) != sorted((TENSORS, META)):
        raise SoftPromptFileError(
            "the members are not those of a KV prompt",
            where=archive.where,
            expected=f"{TENSORS}, {META}",
            got=", ".join(sorted(name[:40] for name in members)),
        )
    source = members[META]
    described = meta.from_json(read_object(source), source.where, KV_PROMPT)
    shape, dtype = stated(described, source.where)
    return opened(_tensors(members[TENSORS], dtype), shape, described)


def opened(tensors: Mapping[str, TensorView], shape: KVShape, described: meta.Described) -> OpenedKV:
    """A KV prompt whose sizes agree. tensors: FLAT, and perhaps LAST. Raises SoftPromptFileError."""
    flat, last = tensors[FLAT], tensors.get(LAST)
    n_tokens, width = shape_of(flat, MAX_KV_WIDTH)
    if width != shape.width or len(flat.shape) != 2:
        raise SoftPromptFileError(
            "the tensor is not of the stated layers, heads and channels",
            where=flat.source.where,
            expected=f"[{n_tokens}, {shape.width}] for {shape}",
            got=list(flat.shape),
        )
    if last is not None:
        if len(last.shape) != 1:
            raise SoftPromptFileError(
                "the tensor has the wrong number of dimensions",
                where=last.source.where,
                expected="[d_model]",
                got=list(last.shape),
            )
        last = replace(last, shape=(1, *last.shape), strides=(last.shape[0], 1))
        meta.of_width(described.metadata, last.source.where, shape_of(last)[1])
    if described.metadata.base.n_layers not in (0, shape.layers):
        raise SoftPromptFileError(
            "the metadata does not agree with the tensor",
            where=f"{flat.source.where}: base.n_layers",
            expected=shape.layers,
            got=described.metadata.base.n_layers,
        )
    return OpenedKV(flat, last, shape, described.metadata, described.content_hash)


def verify(found: OpenedKV) -> None:
    """All checks of `read` but the hash, in the memory of one piece. Raises SoftPromptFileError."""
    check(found.flat, MAX_KV_WIDTH)
    if found.last is not None:
        check(found.last)


def read(found: OpenedKV, where: str) -> KVPrompt:
    """The KV prompt. Raises SoftPromptFileError."""
    last_D = np.empty(0, np.float32) if found.last is None else load(found.last)[0]
    prompt = KVPrompt(load(found.flat, MAX_KV_WIDTH), found.shape, last_D, found.metadata)
    meta.check_hash(where, "the KV prompt", KV_PROMPT.hash_key, found.content_hash, prompt.content_hash)
    return prompt


def to_bytes(prompt: KVPrompt) -> bytes:
    """meta.json. Raises BadInput for metadata that could not be read again."""
    shape = prompt.shape
    own = {
        "layers": shape.layers,
        "heads": shape.heads,
        "channels": shape.channels,
        "dtype": _stored_type(prompt).name,
        "keys": _ROTATED,
        "first_position": prompt.first_position,
    }
    data = meta.encoded(meta.to_json(prompt.metadata, KV_PROMPT, prompt.content_hash, own), META)
    meta.from_json(parse(data, "metadata"), "metadata", KV_PROMPT)
    meta.check_width(prompt.metadata, prompt.d_model)
    return data


def members_of(prompt: KVPrompt) -> list[tuple[str, Sequence[bytes]]]:
    """The members of the file, in order. Raises BadInput."""
    return [(TENSORS, safetensors.pieces(tensors_of(prompt), {})), (META, [to_bytes(prompt)])]


def tensors_of(prompt: KVPrompt) -> dict[str, NDArray[Any]]:
    """The tensors as they are stored: float16 where it holds every number exactly."""
    dtype = _stored_type(prompt)
    last = {LAST: prompt.last_D.astype(dtype)} if len(prompt.last_D) else {}
    return {FLAT: prompt.flat_PW.astype(dtype), **last}


def _stored_type(prompt: KVPrompt) -> np.dtype[Any]:
    with np.errstate(over="ignore"):
        exact = all(
            np.array_equal(array.astype(np.float16).astype(np.float32), array)
            for array in (prompt.flat_PW, prompt.last_D)
        )
    return np.dtype(np.float16 if exact else np.float32)


def stated(described: meta.Described, where: str) -> tuple[KVShape, str]:
    """The sizes and the type that meta.json states. Raises SoftPromptFileError."""
    where = f"{where}: sordino.kv"
    own = meta.checked(described.own, _KEYS, where, _KEYS)
    placement = described.metadata.placement
    first = 1 if placement == "after_bos" else 0
    if own["first_position"] != first:
        raise meta.wrong(
            f"{where}.first_position", f"{first}, as placement.position is {placement}", own["first_position"]
        )
    return KVShape(own["layers"], own["heads"], own["channels"]), own["dtype"]


def _tensors(source: Readable, dtype: str) -> dict[str, TensorView]:
    """FLAT, and LAST where it is there, which take up the whole file. Raises SoftPromptFileError."""
    found, extra = safetensors.read(source, no_gaps=True)
    tensors = dict(found)
    if extra.keys() - {"format"} or FLAT not in tensors or tensors.keys() - {FLAT, LAST}:
        raise SoftPromptFileError(
            "the tensors are not those of a KV prompt",
            where=source.where,
            expected=f"{FLAT}, and {LAST} or nothing",
            got=", ".join(name[:40] for name in [*list(tensors)[:4], *list(extra)[:4]]),
        )
    for name, tensor in tensors.items():
        if tensor.dtype != dtype:
            raise SoftPromptFileError(
                "the tensor has the wrong type", where=f"{source.where}: {name}", expected=dtype, got=tensor.dtype
            )
    return tensors


def _is_count(value: Any) -> bool:
    return is_size(value) and value > 0


_KEYS: Keys = {
    "layers": ("a whole number above 0", _is_count),
    "heads": ("a whole number above 0", _is_count),
    "channels": ("a whole number above 0", _is_count),
    "dtype": ("float32 or float16", lambda value: value in ("float32", "float16")),
    "keys": (repr(_ROTATED), lambda value: value == _ROTATED),
    "first_position": ("0 or 1", lambda value: type(value) is int and value in (0, 1)),
}
