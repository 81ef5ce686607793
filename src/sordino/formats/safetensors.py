"""safetensors: a length, a JSON header, the numbers.

Not by the library of that name: it maps a path or takes a whole file into memory, where this reads a header within limits, in a
zip too; it knows no bfloat16 without torch; and it orders `__metadata__` by chance, so equal prompts would not be equal files.
Source: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.errors import SoftPromptFileError
from sordino.formats.choice import Named
from sordino.formats.json_text import MAX_JSON, check_room, parse
from sordino.formats.sources import Readable, Slice
from sordino.formats.tensors import TensorView, check_size, row_major

_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def looks_like_one(source: Readable) -> bool:
    """Whether the first bytes are a plausible length and the beginning of a JSON object."""
    if source.size < 10:
        return False
    head = source.read_at(0, 9)
    return head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= source.size - 8


def read(source: Readable) -> tuple[list[Named], dict[str, str]]:
    """The named tensors and the `__metadata__`. Raises SoftPromptFileError."""
    header, metadata, content = _parts(source)
    return [(name, _tensor(content, name, stated)) for name, stated in header.items()], metadata


def read_whole(source: Readable) -> tuple[list[Named], dict[str, str]]:
    """As `read`, and the tensors share no bytes and leave none out."""
    header, metadata, content = _parts(source)
    tensors = [(name, _tensor(content, name, stated)) for name, stated in header.items()]
    at = 0
    for begin, end in sorted(stated["data_offsets"] for stated in header.values()):
        if begin != at:
            break
        at = end
    if at != content.size:
        raise SoftPromptFileError("the tensors share bytes, or leave some out", where=source.where)
    return tensors, metadata


def _parts(source: Readable) -> tuple[dict[str, Any], dict[str, str], Slice]:
    """The header's entries, the `__metadata__`, and where the numbers are."""
    length = int.from_bytes(source.read_at(0, 8), "little")
    if length > MAX_JSON:
        raise SoftPromptFileError(
            "the safetensors header is too long", where=source.where, expected=f"at most {MAX_JSON} bytes", got=length
        )
    header = parse(source.read_at(8, length), f"{source.where}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SoftPromptFileError("`__metadata__` is not an object of texts", where=source.where)
    return header, metadata, Slice(source, 8 + length, source.size - 8 - length)


def pieces(
    tensors: Mapping[str, NDArray[np.float32] | NDArray[np.float16]], metadata: Mapping[str, str]
) -> list[bytes]:
    """The bytes of a file with these tensors, in this order: the same for the same tensors. Raises BadInput."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data, begin = [], 0
    for name, tensor in tensors.items():
        data.append(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes())
        end = begin + len(data[-1])
        header[name] = {
            "dtype": "F16" if tensor.dtype == np.float16 else "F32",
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # The numbers start at a multiple of 8.
    text += b" " * (-len(text) % 8)
    check_room(len(text), "a safetensors header")
    return [struct.pack("<Q", len(text)), text, *data]


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
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)
