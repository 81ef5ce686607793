"""The header of a GGUF file: its metadata and the positions of its tensors, read in a fraction of a second and without torch.

Format: the GGUF specification of ggml, versions 2 and 3, little endian. Every count, length and offset is checked against the
file's size before it is used, so a truncated or hostile file gives an error.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sordino.errors import ModelError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
# The name of the table of input embeddings.
EMBEDDINGS = "token_embd.weight"
_MAX_FIELDS, _MAX_TENSORS, _MAX_DIMENSIONS = 65_536, 1_000_000, 4


@dataclass(frozen=True)
class TensorLocation:
    """shape: in torch's order. offset, size: bytes, from the start of the file."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """fields: the metadata by key; arrays are lists. tensors: in the file's order."""

    path: Path
    fields: Mapping[str, Any]
    tensors: tuple[TensorLocation, ...]

    @property
    def architecture(self) -> str:
        name = self.fields.get("general.architecture", "")
        return name if isinstance(name, str) else ""

    @property
    def context_length(self) -> int:
        return self._number("context_length")

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """Of its keys and values: layers, heads that have some of their own, channels of a key and a value together."""
        heads = self._number("attention.head_count")
        keys = self._number("attention.key_length", self._number("embedding_length") // max(1, heads))
        shared = self._number("attention.head_count_kv", heads)
        return self._number("block_count"), shared, keys + self._number("attention.value_length", keys)

    def _number(self, name: str, default: int = 0) -> int:
        """Of its architecture; the largest where layers differ."""
        value = self.fields.get(f"{self.architecture}.{name}", default)
        numbers = value if isinstance(value, list) else [value]
        return max((one for one in numbers if isinstance(one, int)), default=default)

    @property
    def vocab_size(self) -> int:
        tokens = self.fields.get("tokenizer.ggml.tokens", [])
        return len(tokens) if isinstance(tokens, list) else 0

    @property
    def n_parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors)


def read_gguf_header(path: Path) -> GgufHeader:
    """Raises ModelError where `path` is not a GGUF file, is truncated, or is of another version."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(path, _Cursor(data))
    # mmap raises ValueError for an empty file.
    except (struct.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise _broken(path, f"a truncated or broken header ({error})") from error
    except OSError as error:
        raise unreadable(path, error) from error


class _Cursor:
    """A position in the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return value

    def string(self) -> str:
        length = self.number("<Q")
        if length > len(self.data) - self.at:
            raise IndexError("a string longer than the file")
        text = self.data[self.at : self.at + length].decode("utf-8", "surrogateescape")
        self.at += length
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_layout(kind))
        item, count = self.number("<I"), self.number("<Q")
        if item == _ARRAY or count > len(self.data) - self.at:
            raise IndexError("an array longer than the file, or of arrays")
        if item == _STRING:
            return [self.string() for _ in range(count)]
        layout = f"<{count}{_layout(item)[1]}"
        values = list(struct.unpack_from(layout, self.data, self.at))
        self.at += struct.calcsize(layout)
        return values


def _layout(kind: int) -> str:
    if kind not in _SCALARS:
        raise IndexError(f"a value of the unknown kind {kind}")
    return _SCALARS[kind]


def _header(path: Path, cursor: _Cursor) -> GgufHeader:
    if cursor.data[:4] != b"GGUF":
        raise _broken(path, f"a file that begins with {cursor.data[:4]!r}")
    cursor.at = 4
    version = cursor.number("<I")
    if version not in _VERSIONS:
        raise ModelError(
            "this version of GGUF is not read",
            where=path,
            expected="2 or 3, little endian",
            got=version,
            do="convert the model with a current llama.cpp",
        )
    n_tensors, n_fields = cursor.number("<Q"), cursor.number("<Q")
    if n_tensors > _MAX_TENSORS or n_fields > _MAX_FIELDS:
        raise IndexError(f"{n_tensors} tensors and {n_fields} fields")
    fields = {}
    for _ in range(n_fields):
        key = cursor.string()
        fields[key] = cursor.value(cursor.number("<I"))
    return GgufHeader(path, fields, _tensors(path, cursor, n_tensors, fields.get("general.alignment", 32)))


def _tensors(path: Path, cursor: _Cursor, count: int, alignment: object) -> tuple[TensorLocation, ...]:
    entries = []
    for _ in range(count):
        name, dimensions = cursor.string(), cursor.number("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise IndexError(f"a tensor of {dimensions} dimensions")
        # ggml names the fastest dimension first, torch last.
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
        entries.append((name, shape, cursor.number("<I"), cursor.number("<Q")))
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise IndexError(f"an alignment of {str(alignment)[:40]}")
    start = -(-cursor.at // alignment) * alignment
    tensors = tuple(TensorLocation(name, shape, start + at, _size(kind, shape)) for name, shape, kind, at in entries)
    if sum(tensor.size for tensor in tensors) > len(cursor.data):
        raise IndexError("tensors that are larger together than the file")
    cut = next((tensor for tensor in tensors if tensor.offset + tensor.size > len(cursor.data)), None)
    if cut is not None:
        raise _broken(path, f"{len(cursor.data)} bytes, which end before the tensor {cut.name!r} does")
    return tensors


def _size(kind: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises IndexError for a number type that the installed gguf package does not know."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise IndexError(f"numbers of the unknown type {kind}") from None
    return prod(shape) // block * size


def unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError("cannot be read", where=path, got=error.strerror or error)


def _broken(path: Path, got: str) -> ModelError:
    return ModelError(
        "not a whole GGUF file", where=path, expected="a model file of llama.cpp", got=got, do="fetch it again"
    )
