"""NumPy's .npy. numpy.lib.format parses the header without evaluating it; `tensors` reads the numbers.

google-research/prompt-tuning saves its prompts as bare .npy files; KoboldAI's zips hold one. bfloat16, which NumPy does
not know, is stored as two-byte "V2".
"""

from __future__ import annotations

import io
import struct
import tokenize
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from sordino.errors import SoftPromptFileError
from sordino.formats.sources import Readable, Slice
from sordino.formats.tensors import TensorView, check_size, row_major

MAGIC = npy_format.MAGIC_PREFIX
# NumPy's own limit for untrusted headers.
_MAX_HEADER = 10_000
_TYPES = {"f2": "float16", "f4": "float32", "f8": "float64", "V2": "bfloat16"}
_Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
# Version 3.0 is 2.0 with names beyond Latin-1 for the fields of records, which soft prompts do not have.
_READERS: dict[int, Callable[[io.BytesIO], _Header]] = {
    1: npy_format.read_array_header_1_0,
    2: npy_format.read_array_header_2_0,
    3: npy_format.read_array_header_2_0,
}


def stored(source: Readable) -> TensorView:
    """The tensor in an .npy. Raises SoftPromptFileError for a broken header, or one that does not match the data."""
    start, (shape, is_fortran, type_) = _header(source)
    dtype = _TYPES.get(type_.str.lstrip("<>|="), type_.str[:20])
    content = Slice(source, start, source.size - start)
    check_size(content, dtype, shape)
    strides = row_major(shape)
    if is_fortran:
        strides = tuple(reversed(row_major(tuple(reversed(shape)))))
    return TensorView(content, dtype, shape, strides, big_endian=type_.str.startswith(">"))


def pieces(matrix: NDArray[np.float32]) -> list[bytes]:
    """The bytes of an .npy, version 1.0, float32 little-endian: the same on every platform and with every NumPy."""
    shape = f"({matrix.shape[0]}, {matrix.shape[1]})"
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    # Magic, version, length and header fill 128 bytes, as NumPy would.
    header = text.ljust(128 - 10 - 1).encode("ascii") + b"\n"
    return [MAGIC + b"\x01\x00" + struct.pack("<H", len(header)) + header, matrix.astype("<f4", copy=False).tobytes()]


def _header(source: Readable) -> tuple[int, _Header]:
    """Where the numbers start; the shape, whether it is in Fortran's order, and the type."""
    head = source.read_at(0, min(12, source.size))
    if not head.startswith(MAGIC) or len(head) < 12:
        raise SoftPromptFileError("not an .npy file", where=source.where, expected=MAGIC, got=head[:6])
    version = head[6]
    if version not in _READERS:
        raise SoftPromptFileError("an unknown version of .npy", where=source.where, expected="1, 2 or 3", got=version)
    length, begin = (
        (struct.unpack("<H", head[8:10])[0], 10) if version == 1 else (struct.unpack("<I", head[8:12])[0], 12)
    )
    if length > _MAX_HEADER:
        raise SoftPromptFileError(
            "the .npy header is too long", where=source.where, expected=f"at most {_MAX_HEADER} bytes", got=length
        )
    text = source.read_at(begin, length)
    try:
        header = _parsed(version, head[8:begin] + text)
    except (
        ValueError,
        TypeError,
        SyntaxError,
        OverflowError,
        RecursionError,
        MemoryError,
        tokenize.TokenError,
    ) as error:
        raise _broken(text, source.where) from error
    shape, _, type_ = header
    if type_.names or type_.subdtype or len(shape) > 32 or not all(0 <= size < 1 << 40 for size in shape):
        raise _broken(text, source.where)
    return begin + length, header


@lru_cache(maxsize=256)
def _parsed(version: int, header: bytes) -> _Header:
    """Most files of a library have one of a few headers, and parsing one takes longer than reading the rest of the file."""
    with warnings.catch_warnings():
        # About headers of Python 2, which are read correctly.
        warnings.simplefilter("ignore")
        return _READERS[version](io.BytesIO(header))


def _broken(header: bytes, where: str) -> SoftPromptFileError:
    return SoftPromptFileError(
        "the .npy header is broken or not that of an array of floats", where=where, got=header.strip()[:100]
    )
