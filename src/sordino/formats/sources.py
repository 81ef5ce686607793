"""Bytes in a file, in part of a file, or in base64. Nothing is read before it is requested.

Every reader of a format works on a `Readable`, so that the claims of a header can be compared with the size of the data before
memory is allocated, and so that reading never needs more memory than one piece.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, BinaryIO, Protocol

from sordino.errors import SoftPromptFileError

# Pieces in which tensors are read and checksums are taken.
CHUNK = 1 << 20
# Limits for one file. A good one is read a few times, and unpacked once, or twice where a zip holds a zip.
_BYTES, _BYTES_PER_STORED = 64 << 20, 40
_SECONDS, _STORED_PER_SECOND = 5, 1 << 20
# Unpacked data stays in memory up to this size, then in a temporary file.
_IN_MEMORY = 4 << 20
# Headers are many small reads that lie close together: of a file, so many bytes are read at once, and the last few reads are held.
_WINDOW, _LARGEST_WINDOW, _WINDOWS = 1 << 12, 1 << 15, 3


class Readable(Protocol):
    """`size` bytes. where: their name in errors."""

    where: str
    size: int

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes. Raises SoftPromptFileError where there are fewer. Request small pieces."""

    def verify(self) -> None:
        """Compare with a stored checksum, if the container has one. Raises SoftPromptFileError."""


class Files(ExitStack):
    """The open files of one soft prompt, and the work done to read them; closed together.

    size: bytes of all of them. mtime: seconds since 1970, of the newest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size, self.mtime = 0, 0.0
        self._bytes, self._began = 0, time.thread_time()

    def open(self, path: Path) -> FileSource:
        """Raises SoftPromptFileError."""
        try:
            file = self.enter_context(path.open("rb", buffering=0))
        except OSError as error:
            raise SoftPromptFileError(f"cannot be read ({error.strerror})", where=path) from error
        status = os.fstat(file.fileno())
        self.size, self.mtime = self.size + status.st_size, max(self.mtime, status.st_mtime)
        return FileSource(file, str(path), status.st_size, self)

    def scratch(self) -> IO[bytes]:
        """A temporary file for unpacked data."""
        return self.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY))

    def spend(self, count: int, where: str) -> None:
        """Count bytes that were read or unpacked. Raises SoftPromptFileError where their sum, or the time, is out of proportion.

        The time is this thread's processor time, so a slow drive or a busy machine does not count.
        """
        self._bytes += count
        seconds = time.thread_time() - self._began
        if self._bytes > _BYTES + _BYTES_PER_STORED * self.size or seconds > _SECONDS + self.size / _STORED_PER_SECOND:
            raise SoftPromptFileError(
                "reading it takes far more work than a soft prompt of this file size",
                where=where,
                got=f"{self._bytes} bytes, {seconds:.0f} s",
                do="do not trust this file",
            )


class FileSource:
    """An open file. size: its bytes when it was opened."""

    def __init__(self, file: BinaryIO, where: str, size: int, files: Files) -> None:
        self.where, self.size = where, size
        self._file, self._files = file, files
        self._windows: list[tuple[int, bytes]] = []

    def read_at(self, offset: int, count: int) -> bytes:
        check_range(self, offset, count)
        self._files.spend(count, self.where)
        for start, data in self._windows:
            if start <= offset and offset + count <= start + len(data):
                return data[offset - start : offset - start + count]
        if count > _LARGEST_WINDOW:
            return self._read(offset, count)
        size = min(max(count, _WINDOW), self.size)
        start = min(offset, self.size - size)
        data = self._read(start, size)
        self._windows = [(start, data), *self._windows[: _WINDOWS - 1]]
        return data[offset - start : offset - start + count]

    def _read(self, offset: int, count: int) -> bytes:
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


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes, where: str) -> None:
        self.where, self.size, self._data = where, len(data), data

    def read_at(self, offset: int, count: int) -> bytes:
        check_range(self, offset, count)
        return self._data[offset : offset + count]

    def verify(self) -> None:
        pass


class Slice:
    """A part of another source."""

    def __init__(self, whole: Readable, offset: int, size: int, where: str = "") -> None:
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
    """The bytes that base64 characters (without line breaks) encode."""

    def __init__(self, text: Readable, where: str) -> None:
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


class SourceFile(io.RawIOBase):
    """A Readable as a file object, for Python's own readers of archives. limit: the most bytes they may read at a time."""

    def __init__(self, source: Readable, limit: int) -> None:
        super().__init__()
        self._source, self._limit, self._at = source, limit, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        if at < 0:
            raise OSError("before the beginning")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        there = max(self._source.size - self._at, 0)
        count = there if size is None or size < 0 else min(size, there)
        if count > self._limit:
            raise SoftPromptFileError(
                "a header is too large", where=self._source.where, expected=f"at most {self._limit} bytes", got=count
            )
        data = self._source.read_at(self._at, count)
        self._at += count
        return data


class Cursor:
    """Reads a source from front to back, with a small buffer."""

    _BUFFER = 1 << 16

    def __init__(self, source: Readable) -> None:
        self.source, self.offset = source, 0
        self._buffer, self._start = b"", 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes: at most a few KiB at a time."""
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


def read_all(source: Readable, *, limit: int) -> bytes:
    """All of a small source, its checksum verified. Raises SoftPromptFileError where it is larger than `limit`."""
    if source.size > limit:
        raise SoftPromptFileError("too large", where=source.where, expected=f"at most {limit} bytes", got=source.size)
    source.verify()
    return source.read_at(0, source.size)


def chunks(source: Readable) -> Iterator[bytes]:
    """All of a source, piece by piece."""
    for offset in range(0, source.size, CHUNK):
        yield source.read_at(offset, min(CHUNK, source.size - offset))


def check_range(source: Readable, offset: int, count: int) -> None:
    """Raises SoftPromptFileError where not all of these bytes are in the source."""
    if offset < 0 or count < 0 or offset + count > source.size:
        raise too_short(source, offset, count)


def too_short(source: Readable, offset: int, count: int) -> SoftPromptFileError:
    """The error of data that is shorter than its own header states."""
    return SoftPromptFileError(
        "broken or cut short",
        where=source.where,
        expected=f"{count} bytes at byte {offset}",
        got=f"{source.size} bytes in all",
        do="copy or download it again",
    )
