"""NumPy's .npy, read by a parser of ours: numpy's own would evaluate the header and may unpickle the content.

google-research/prompt-tuning saves its prompts as bare .npy files; KoboldAI's zips hold one. bfloat16, which NumPy does
not know, is stored as two-byte "V2". Source: numpy/lib/format.py, versions 1.0 to 3.0.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sordino.errors import SoftPromptFileError
from sordino.formats.sources import Slice, Source
from sordino.formats.tensors import ITEM_SIZES, StoredTensor, row_major
from sordino.prompts.soft_prompt import SoftPrompt

MAGIC = b"\x93NUMPY"
# NumPy's own limit for headers from strangers.
_MAX_HEADER = 10_000
_TYPES = {"f2": "float16", "f4": "float32", "f8": "float64", "V2": "bfloat16"}
_ITEM = re.compile(
    r"""\s*(['"])(?P<key>descr|fortran_order|shape)\1\s*:\s*
    (?P<value>'[^']*'|"[^"]*"|True|False|\([\s\dL,]*\))\s*(?:,|(?=\}))""",
    re.VERBOSE | re.ASCII,
)
_BEGIN, _END = re.compile(r"\s*\{"), re.compile(r"\s*\}\s*")
# Python 2 wrote 20L.
_SIZE = re.compile(r"\s*(\d{1,12})L?\s*", re.ASCII)


def stored(source: Source) -> StoredTensor:
    """The tensor in an .npy. Raises SoftPromptFileError where the header is not one, or lies about the data."""
    start, header = _header(source)
    fields = _fields(header, source.where)
    descr = fields["descr"].strip("'\"")
    dtype = _TYPES.get(descr.lstrip("<>|="), descr[:20])
    shape = _shape(fields["shape"], source.where)
    content = Slice(source, start, source.size - start)
    if dtype in ITEM_SIZES:
        _check_size(content, shape, ITEM_SIZES[dtype])
    strides = row_major(shape)
    if fields["fortran_order"] == "True":
        strides = tuple(reversed(row_major(tuple(reversed(shape)))))
    return StoredTensor(content, dtype, shape, strides, big_endian=descr.startswith(">"))


def pieces(prompt: SoftPrompt) -> list[bytes]:
    """The bytes of an .npy of the matrix."""
    return pieces_of(prompt.matrix)


def pieces_of(matrix: NDArray[np.float32]) -> list[bytes]:
    """The bytes of an .npy, version 1.0, float32 little-endian: the same on every platform and with every NumPy."""
    shape = f"({matrix.shape[0]}, {matrix.shape[1]})"
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    # Magic, version, length and header fill 128 bytes, as NumPy would.
    header = text.ljust(128 - 10 - 1).encode("ascii") + b"\n"
    return [
        MAGIC + b"\x01\x00" + struct.pack("<H", len(header)) + header,
        matrix.astype("<f4", copy=False).tobytes(),
    ]


def _header(source: Source) -> tuple[int, str]:
    """Where the numbers start, and the header's text."""
    head = source.read_at(0, min(12, source.size))
    if not head.startswith(MAGIC) or len(head) < 12:
        raise SoftPromptFileError("not an .npy file", where=source.where, expected=MAGIC, got=head[:6])
    version = head[6]
    if version not in (1, 2, 3):
        raise SoftPromptFileError("an unknown version of .npy", where=source.where, expected="1, 2 or 3", got=version)
    length, begin = (
        (struct.unpack("<H", head[8:10])[0], 10) if version == 1 else (struct.unpack("<I", head[8:12])[0], 12)
    )
    if length > _MAX_HEADER:
        raise SoftPromptFileError(
            "the .npy header is too long", where=source.where, expected=f"at most {_MAX_HEADER} bytes", got=length
        )
    return begin + length, source.read_at(begin, length).decode("latin-1")


def _fields(header: str, where: str) -> Mapping[str, str]:
    """The texts of descr, fortran_order and shape. A type that is a list of fields is refused here."""
    fields: dict[str, str] = {}
    begin = _BEGIN.match(header)
    at = begin.end() if begin else len(header)
    while item := _ITEM.match(header, at):
        fields[item["key"]] = item["value"]
        at = item.end()
    if (
        set(fields) != {"descr", "fortran_order", "shape"}
        or fields["descr"][0] not in "'\""
        or fields["fortran_order"] not in ("True", "False")
        or not _END.fullmatch(header, at)
    ):
        raise _broken(header, where)
    return fields


def _shape(text: str, where: str) -> tuple[int, ...]:
    if not text.startswith("("):
        raise _broken(text, where)
    parts = text[1:-1].split(",")
    if not parts[-1].strip():
        parts.pop()
    sizes = [_SIZE.fullmatch(part) for part in parts]
    if not all(sizes) or len(sizes) > 32:
        raise _broken(text, where)
    return tuple(int(size[1]) for size in sizes if size)


def _broken(header: str, where: str) -> SoftPromptFileError:
    return SoftPromptFileError(
        "the .npy header is broken or not of an array of floats", where=where, got=repr(header.strip()[:100])
    )


def _check_size(content: Source, shape: tuple[int, ...], item_size: int) -> None:
    wanted = item_size
    for size in shape:
        wanted *= size
    if wanted != content.size:
        raise SoftPromptFileError(
            "the .npy header does not agree with the data",
            where=content.where,
            expected=f"{wanted} bytes for shape {list(shape)}",
            got=content.size,
            do="copy or download it again",
        )
