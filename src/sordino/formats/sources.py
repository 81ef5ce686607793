"""Bytes that lie somewhere: in a file, in part of a file, behind base64. Nothing is read before it is asked for.

Every reader of a format works on a `Source`, so that a claim in a header can be compared with what is there before
memory is taken for it, and so that a file never costs more memory than the piece in hand.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from sordino.errors import SoftPromptFileError

# Pieces in which tensors are read and checksums are taken.
CHUNK = 1 << 20


class Source(Protocol):
    """`size` bytes. where: what to call them in an error."""

    where: str
    size: int

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes. Raises SoftPromptFileError where they are not there. Ask for small pieces."""

    def verify(self) -> None:
        """Compare with a stored checksum, if the container has one. Raises SoftPromptFileError."""


class FileSource:
    """An open file, unbuffered."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.where = where
        self.size = os.fstat(file.fileno()).st_size
        self._file = file

    def read_at(self, offset: int, count: int) -> bytes:
        check_range(self, offset, count)
        try:
            self._file.seek(offset)
            data = self._file.read(count)
            # An unbuffered read may stop early, as on network drives.
            while len(data) < count and (more := self._file.read(count - len(data))):
                data += more
        except OSError as error:
            raise SoftPromptFileError(f"cannot be read ({error.strerror})", where=self.where) from error
        if len(data) < count:
            raise too_short(self, offset, count)
        return data

    def verify(self) -> None:
        pass


class Slice:
    """A part of another source."""

    def __init__(self, whole: Source, offset: int, size: int, where: str = "") -> None:
        self.where = where or whole.where
        check_range(whole, offset, size)
        self.size = size
        self._whole, self._offset = whole, offset

    def read_at(self, offset: int, count: int) -> bytes:
        check_range(self, offset, count)
        return self._whole.read_at(self._offset + offset, count)

    def verify(self) -> None:
        self._whole.verify()


class Base64Source:
    """What a run of base64 characters (no line breaks) stands for."""

    def __init__(self, text: Source, where: str) -> None:
        self.where = where
        self._text = text
        tail = text.read_at(text.size - 2, 2) if text.size >= 4 else b""
        if text.size % 4:
            raise SoftPromptFileError(
                "the base64 text is broken", where=where, expected="a multiple of 4 characters", got=text.size
            )
        self.size = text.size // 4 * 3 - tail.count(b"=")

    def read_at(self, offset: int, count: int) -> bytes:
        check_range(self, offset, count)
        if not count:
            return b""
        first, last = offset // 3, (offset + count - 1) // 3
        try:
            data = base64.b64decode(self._text.read_at(first * 4, (last - first + 1) * 4), validate=True)
        except binascii.Error as error:
            raise SoftPromptFileError("the base64 text is broken", where=self.where, got=error) from error
        data = data[offset - first * 3 :][:count]
        if len(data) < count:
            raise SoftPromptFileError("the base64 text is broken", where=self.where, got="padding in the middle")
        return data

    def verify(self) -> None:
        self._text.verify()


class Cursor:
    """Reads a source from front to back, with a small buffer."""

    _BUFFER = 1 << 16

    def __init__(self, source: Source, offset: int = 0) -> None:
        self.source, self.offset = source, offset
        self._buffer, self._start = b"", 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes; at most a few KiB are asked for at a time."""
        begin = self.offset - self._start
        if begin < 0 or begin + count > len(self._buffer):
            available = max(self.source.size - self.offset, 0)
            wanted = min(max(count, self._BUFFER), available)
            if wanted < count:
                raise too_short(self.source, self.offset, count)
            self._buffer, self._start, begin = self.source.read_at(self.offset, wanted), self.offset, 0
        self.offset += count
        return self._buffer[begin : begin + count]

    def take_slice(self, count: int) -> Slice:
        """The next `count` bytes, not read."""
        part = Slice(self.source, self.offset, count)
        self.offset += count
        return part


def read_all(source: Source, *, limit: int) -> bytes:
    """A small source whole, its checksum compared. Raises SoftPromptFileError where it is larger than `limit`."""
    if source.size > limit:
        raise SoftPromptFileError("too large", where=source.where, expected=f"at most {limit} bytes", got=source.size)
    source.verify()
    return source.read_at(0, source.size)


def chunks(source: Source) -> Iterator[bytes]:
    """All of a source, piece by piece."""
    for offset in range(0, source.size, CHUNK):
        yield source.read_at(offset, min(CHUNK, source.size - offset))


def check_range(source: Source, offset: int, count: int) -> None:
    """Raises SoftPromptFileError where not all of these bytes are in the source."""
    if offset < 0 or count < 0 or offset + count > source.size:
        raise too_short(source, offset, count)


def too_short(source: Source, offset: int, count: int) -> SoftPromptFileError:
    """The error of data that ends before something in it says."""
    return SoftPromptFileError(
        "broken or cut short",
        where=source.where,
        expected=f"{count} bytes at byte {offset}",
        got=f"{source.size} bytes in all",
        do="copy or download it again",
    )
