"""Compressed data, unpacked once and piece by piece, only as far as it is read."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from typing import IO, Protocol

from sordino.errors import SoftPromptFileError
from sordino.formats.sources import Files, Readable, check_range, too_short

STORED, DEFLATE, BZIP2, LZMA = 0, 8, 12, 14
# Not a method of zips.
GZIP = -1
METHODS = {STORED: "stored", DEFLATE: "deflate", BZIP2: "bzip2", LZMA: "LZMA"}
# KoboldAI's own files use 8 MiB. The dictionary is allocated before the first byte comes out.
_MAX_LZMA_DICTIONARY = 16 << 20
_PACKED_CHUNK = 1 << 16
# Larger than what most headers need, smaller than most matrices.
_PIECE = 1 << 17


class _Decompressor(Protocol):
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflater:
    """zlib with the interface of the other two."""

    def __init__(self, window_bits: int) -> None:
        self._zlib = zlib.decompressobj(window_bits)

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail and not self._zlib.eof

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


class Unpacked:
    """The content of a compressed member. Each byte is unpacked once and stored, so reading backwards is cheap."""

    def __init__(self, packed: Readable, method: int, size: int, files: Files) -> None:
        self.where, self.size = packed.where, size
        self._packed, self._method, self._files = packed, method, files
        self._position = self._taken = 0
        # Opened at the first read: listing a directory must not allocate a dictionary.
        self._scratch: IO[bytes] | None = None
        self._decompressor: _Decompressor | None = None

    def read_at(self, offset: int, count: int) -> bytes:
        check_range(self, offset, count)
        if self._scratch is None:
            self._scratch, self._decompressor = self._files.scratch(), self._start()
        try:
            self._unpack_to(self._scratch, offset + count)
            self._scratch.seek(offset)
            return self._scratch.read(count)
        except OSError as error:
            raise SoftPromptFileError(f"cannot be unpacked ({error.strerror})", where=self.where) from error

    def verify(self) -> None:
        """Unpack all of it, and check that nothing follows the declared size."""
        self.read_at(self.size, 0)

    def _unpack_to(self, scratch: IO[bytes], end: int) -> None:
        if self._decompressor is None:
            return
        scratch.seek(self._position)
        while self._position < end:
            piece = self._unpack(min(self.size - self._position, _PIECE))
            if not piece:
                raise too_short(self, self._position, end - self._position)
            self._files.spend(len(piece), self.where)
            scratch.write(piece)
            self._position += len(piece)
        if self._position == self.size:
            if self._unpack(1):
                raise SoftPromptFileError(
                    "it unpacks to more than it says", where=self.where, expected=f"{self.size} bytes"
                )
            # Frees its dictionary: zips in zips never hold two.
            self._decompressor = None

    def _unpack(self, most: int) -> bytes:
        """1 to `most` bytes, or none at the end of the data."""
        assert self._decompressor is not None
        while True:
            data = b""
            if self._decompressor.needs_input:
                data = self._packed.read_at(self._taken, min(_PACKED_CHUNK, self._packed.size - self._taken))
                self._taken += len(data)
            try:
                piece = self._decompressor.decompress(data, most)
            except EOFError:
                # bz2 and lzma raise when they are read after their end mark.
                return b""
            except (zlib.error, lzma.LZMAError, OSError, ValueError) as error:
                raise SoftPromptFileError(
                    "the compressed data is damaged", where=self.where, got=error, do="copy or download it again"
                ) from error
            if piece or not data:
                return piece

    def _start(self) -> _Decompressor:
        self._taken = 0
        if self._method in (DEFLATE, GZIP):
            # zlib's: negative for a raw stream, 16 more for gzip's header and checksum.
            return _Inflater(-zlib.MAX_WBITS if self._method == DEFLATE else 16 + zlib.MAX_WBITS)
        if self._method == BZIP2:
            return bz2.BZ2Decompressor()
        return self._start_lzma()

    def _start_lzma(self) -> _Decompressor:
        """A decoder for the raw stream after zip's own header: version, length of the properties, properties."""
        _, length, mode, dictionary = struct.unpack("<2HBL", self._packed.read_at(0, 9))
        if length != 5 or mode >= 9 * 5 * 5:
            raise SoftPromptFileError(
                "the LZMA header is damaged", where=self.where, got=f"{length} bytes, mode {mode}"
            )
        if dictionary > _MAX_LZMA_DICTIONARY:
            raise SoftPromptFileError(
                "the LZMA dictionary is too large",
                where=self.where,
                expected=f"at most {_MAX_LZMA_DICTIONARY} bytes",
                got=dictionary,
                do="the file is damaged or hostile: copy or download it again",
            )
        self._taken = 9
        settings = {
            "id": lzma.FILTER_LZMA1,
            "dict_size": max(dictionary, 4096),
            "lc": mode % 9,
            "lp": mode // 9 % 5,
            "pb": mode // 45,
        }
        try:
            return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[settings])
        except (lzma.LZMAError, ValueError) as error:
            raise SoftPromptFileError("the LZMA header is damaged", where=self.where, got=error) from error
