"""Tensors as files store them, and the one way from there to a float32 matrix.

A `TensorView` says where numbers are and holds none. `shape_of` checks a header's claim against the size of the data; `load` reads
the numbers. Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sordino.errors import SoftPromptFileError
from sordino.formats.sources import CHUNK, Readable
from sordino.prompts.soft_prompt import MAX_WIDTH, Metadata, check_finite, checked_shape

# Bytes per element of the types that a soft prompt can have.
ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_NUMPY = {"float16": "f2", "float32": "f4", "float64": "f8"}
# Above this, the numbers are checked before the matrix is allocated, so that a broken file takes no memory of its size.
_LARGE = 8 << 20


@dataclass(frozen=True)
class TensorView:
    """Numbers in a source. dtype: a key of ITEM_SIZES, or the name of a type that is refused.

    strides and offset count elements, as torch's do. The source holds nothing but elements of this type.
    """

    source: Readable
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    big_endian: bool = False

    def part(self, index: int) -> TensorView:
        """Entry `index` along the first dimension."""
        offset = self.offset + index * self.strides[0]
        return replace(self, shape=self.shape[1:], strides=self.strides[1:], offset=offset)


@dataclass(frozen=True)
class Opened:
    """A soft prompt file whose headers were read: the result of every format's reader.

    metadata: None where the file has none. content_hash: of the matrix, or "" where the file has none. warning: one line about
    what the reader left out, or "".
    """

    tensor: TensorView
    metadata: Metadata | None = None
    content_hash: str = ""
    warning: str = ""

    @cached_property
    def n_tokens(self) -> int:
        return shape_of(self.tensor)[0]

    @cached_property
    def d_model(self) -> int:
        return shape_of(self.tensor)[1]


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a C-ordered tensor of this shape."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def check_size(content: Readable, dtype: str, shape: Sequence[int]) -> None:
    """Raise SoftPromptFileError where a tensor of a known type would take more bytes, or fewer, than there are."""
    if dtype in ITEM_SIZES and (wanted := math.prod(shape) * ITEM_SIZES[dtype]) != content.size:
        raise SoftPromptFileError(
            "the header does not agree with the data",
            where=content.where,
            expected=f"{wanted} bytes for shape {list(shape)}",
            got=content.size,
            do="copy or download it again",
        )


def shape_of(tensor: TensorView, most_width: int = MAX_WIDTH) -> tuple[int, int]:
    """(P, D), once the type, the shape and the number of bytes agree. Raises SoftPromptFileError."""
    where = tensor.source.where
    if tensor.dtype not in ITEM_SIZES:
        raise SoftPromptFileError(
            "the tensor has the wrong type", where=where, expected=" or ".join(ITEM_SIZES), got=tensor.dtype
        )
    shape = checked_shape(tensor.shape, where=where, most_width=most_width)
    strides = tensor.strides[-2:]
    there = tensor.source.size // ITEM_SIZES[tensor.dtype]
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if tensor.offset < 0 or min(strides) < 0 or last >= there:
        raise SoftPromptFileError(
            "the header states more numbers than there are",
            where=where,
            expected=f"{shape[0]} x {shape[1]} of {tensor.dtype}",
            got=f"{there} of them",
            do="copy or download it again",
        )
    _lines(shape, strides, where)
    return shape


def check(tensor: TensorView, most_width: int = MAX_WIDTH) -> None:
    """All checks of `load`, in the memory of one piece of the matrix. Raises SoftPromptFileError."""
    shape = shape_of(tensor, most_width)
    tensor.source.verify()
    for _ in _blocks(tensor, shape):
        pass


def load(tensor: TensorView, most_width: int = MAX_WIDTH) -> NDArray[np.float32]:
    """The matrix float32 [P, D]. Checks what `shape_of` checks, the container's checksum, and that all values are finite."""
    shape = shape_of(tensor, most_width)
    tensor.source.verify()
    if shape[0] * shape[1] * 4 > _LARGE:
        for _ in _blocks(tensor, shape):
            pass
    matrix_PD = np.empty(shape, np.float32)
    by_rows = _lines(shape, tensor.strides[-2:], tensor.source.where)[0]
    lines = matrix_PD if by_rows else matrix_PD.T
    for first, block in _blocks(tensor, shape):
        lines[first : first + len(block)] = block
    return matrix_PD


def _lines(shape: tuple[int, int], strides: tuple[int, ...], where: str) -> tuple[bool, int, int, int]:
    """The elements as lines without gaps: (lines are rows, number of lines, length, step between them)."""
    (rows, columns), (row_step, column_step) = shape, strides
    by_rows = column_step == 1 or columns == 1
    count, length, step = (rows, columns, row_step) if by_rows else (columns, rows, column_step)
    has_gaps = not by_rows and row_step != 1 and rows != 1
    if has_gaps or (count > 1 and step < length):
        # With overlapping lines a small file could claim a large matrix.
        raise SoftPromptFileError(
            "the tensor is a view that skips or repeats numbers",
            where=where,
            expected="rows or columns without gaps",
            got=f"strides {list(strides)}",
            do="save a contiguous copy of it instead",
        )
    return by_rows, count, length, step


def _blocks(tensor: TensorView, shape: tuple[int, int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first line, some lines [lines, length] as float32), all of them, checked to be finite."""
    size = ITEM_SIZES[tensor.dtype]
    _, count, length, step = _lines(shape, tensor.strides[-2:], tensor.source.where)
    at_once = max(CHUNK // (length * size), 1) if step == length else 1
    for first in range(0, count, at_once):
        number = min(at_once, count - first)
        data = tensor.source.read_at((tensor.offset + first * step) * size, number * length * size)
        block = _as_float32(data, tensor.dtype, big_endian=tensor.big_endian)
        check_finite(block, where=tensor.source.where, near=f" near line {first}")
        yield first, block.reshape(number, length)


def _as_float32(data: bytes, dtype: str, *, big_endian: bool) -> NDArray[np.float32]:
    order = ">" if big_endian else "<"
    if dtype == "bfloat16":
        # The upper half of a float32.
        return (np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    # A float64 beyond float32 becomes inf, which the caller refuses; a signalling nan warns and is refused as well.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.frombuffer(data, order + _NUMPY[dtype]).astype(np.float32)
