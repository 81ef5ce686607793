"""safetensors: a length, a JSON header, the numbers.

Not by the library of that name: it maps a path or takes a whole file into memory, where this reads a header within limits, in a
zip too; it knows no bfloat16 without torch; and it orders `__metadata__` by chance, so equal prompts would not be equal files.
Source: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.errors import SoftPromptFileError
from sordino.formats.choice import Named
from sordino.formats.json_text import MAX_JSON, check_room, parse
from sordino.formats.meta_keys import is_size
from sordino.formats.sources import Readable, Slice
from sordino.formats.tensors import TensorView, check_size, row_major

_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def looks_like_one(source: Readable) -> bool:
    """Whether the first bytes are a plausible length and the beginning of a JSON object."""
    if source.size < 10:
        return False
    head = source.read_at(0, 9)
    return head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= source.size - 8


def read(source: Readable, *, no_gaps: bool = False) -> tuple[list[Named], dict[str, str]]:
    """The named tensors and the `__metadata__`. no_gaps: the tensors must leave no bytes out and share none.

    Raises SoftPromptFileError.
    """
    length = int.from_bytes(source.read_at(0, 8), "little")
    if length > MAX_JSON:
        raise SoftPromptFileError(
            "the safetensors header is too long", where=source.where, expected=f"at most {MAX_JSON} bytes", got=length
        )
    header = parse(source.read_at(8, length), f"{source.where}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SoftPromptFileError("`__metadata__` is not an object of texts", where=source.where)
    content = Slice(source, 8 + length, source.size - 8 - length)
    tensors = [(name, _tensor(content, name, stated)) for name, stated in header.items()]
    if no_gaps:
        _check_no_gaps(sorted(stated["data_offsets"] for stated in header.values()), content)
    return tensors, metadata


def _check_no_gaps(offsets: Sequence[Sequence[int]], content: Slice) -> None:
    at = 0
    for begin, end in offsets:
        if begin != at:
            break
        at = end
    if at != content.size:
        raise SoftPromptFileError("the tensors share bytes, or leave some out", where=content.where)


def pieces(
    tensors: Mapping[str, NDArray[np.float32] | NDArray[np.float16]], metadata: Mapping[str, str]
) -> list[bytes]:
    """The bytes of a file with these tensors, in this order: the same for the same tensors. Raises BadInput."""
    described = [
        (name, "F16" if tensor.dtype == np.float16 else "F32", tensor.shape, tensor.nbytes)
        for name, tensor in tensors.items()
    ]
    header = header_of(described, metadata)
    check_room(len(header) - 8, "a safetensors header")
    return [
        header,
        *(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes() for tensor in tensors.values()),
    ]


def header_of(tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file, up to its numbers. tensors: name, type, shape and bytes of each, in the order of their numbers."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin := begin + size]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # The numbers start at a multiple of 8.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _tensor(content: Readable, name: str, stated: Any) -> TensorView:
    where = f"{content.where}: {name[:60]}"
    if not isinstance(stated, dict) or set(stated) != {"dtype", "shape", "data_offsets"}:
        raise SoftPromptFileError("the description of a tensor is broken", where=where, got=str(stated)[:80])
    shape, offsets, dtype = stated["shape"], stated["data_offsets"], str(stated["dtype"])[:20]
    if (
        not _are_sizes(shape)
        or not _are_sizes(offsets)
        or len(offsets) != 2
        or offsets[0] > offsets[1]
        or len(shape) > 8
    ):
        raise SoftPromptFileError("the description of a tensor is broken", where=where, got=str(stated)[:80])
    dtype = _TYPES.get(dtype, dtype)
    part = Slice(content, offsets[0], offsets[1] - offsets[0], where)
    check_size(part, dtype, shape)
    return TensorView(part, dtype, tuple(shape), row_major(tuple(shape)))


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(map(is_size, values))
