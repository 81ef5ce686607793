"""Zip archives: a bounded reader, and a writer whose bytes depend only on the members.

The standard library's zipfile reads the directory. It accepts a directory of any size, trusts every size in it, and lets an LZMA
member allocate 4 GiB, for which one flipped byte is enough. So directory, names, sizes and the LZMA dictionary are checked here,
and members are unpacked piece by piece. Reference: PKWARE APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import BinaryIO
from zipfile import ZipInfo

from sordino.errors import SoftPromptFileError
from sordino.formats.sources import Files, Readable, Slice, SourceFile, chunks, too_short
from sordino.formats.unpack import METHODS, Unpacked

_END, _LOCAL = b"PK\x05\x06", b"PK\x03\x04"
_END_FORMAT = struct.Struct("<4s4H2LH")
_LOCAL_FORMAT = struct.Struct("<4s5H3L2H")
_ENTRY_SIZE = 46
_ENCRYPTED, _UTF8 = 0x2041, 0x800
# All ones: the value is in a zip64 record, which zipfile reads.
_ONES_2, _ONES_4 = 0xFFFF, 0xFFFFFFFF
_MAX_COMMENT = 65535
_MAX_DIRECTORY = 1 << 20
# Numbers compress little: float16 values stored as float64 reach a ratio of 8. Below this size the ratio is not checked.
_BOMB_SIZE, _BOMB_RATIO = 16 << 20, 16
_JUNK = re.compile(r"(.*/)?(__MACOSX/.*|\._[^/]*|\.DS_Store|Thumbs\.db|desktop\.ini)", re.IGNORECASE | re.DOTALL)


class Archive:
    """A zip whose directory was read and checked. files: the open files that it is read from."""

    def __init__(self, source: Readable, files: Files) -> None:
        self.where = source.where
        self._source, self.files = source, files
        count, end = _checked_end(source)
        try:
            with zipfile.ZipFile(SourceFile(Slice(source, 0, end), _MAX_DIRECTORY)) as archive:
                found, self._directory_offset = archive.infolist(), archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
            raise _broken(source, "the directory is broken", error) from error
        if count not in (len(found), _ONES_2):
            raise _broken(source, "the directory is broken", f"{len(found)} of {count} entries")
        for member in found:
            _check_name(member.orig_filename, source.where)
        # Folders do not count, nor what macOS and Windows add to the zip of a folder.
        self.members = tuple(
            member for member in found if not member.is_dir() and not _JUNK.fullmatch(member.orig_filename)
        )

    def check_apart(self) -> None:
        """Raise SoftPromptFileError where members share bytes: together they would be larger than the archive."""
        total = sum(member.compress_size for member in self.members)
        if total > self._source.size:
            raise SoftPromptFileError(
                "the zip's members overlap",
                where=self.where,
                expected=f"at most {self._source.size} bytes in all",
                got=total,
                do="do not trust this file",
            )

    def stored(self, most: int, what: str) -> dict[str, Readable]:
        """All members of `what`, by name: at most so many, none compressed, none in another. Raises SoftPromptFileError."""
        self.check_apart()
        found: dict[str, Readable] = {}
        for member in self.members:
            if member.filename in found:
                raise SoftPromptFileError(f"the zip has two members called {member.filename[:40]}", where=self.where)
            if member.compress_type:
                raise SoftPromptFileError(
                    f"the members of {what} must be stored",
                    where=f"{self.where}: {member.filename[:40]}",
                    got="a compressed member",
                    do="pack it again without compression (zip -0)",
                )
            found[member.filename] = self.open(member)
            if len(found) > most:
                raise SoftPromptFileError(f"more members than {what} has", where=self.where, expected=f"at most {most}")
        return found

    def open(self, member: ZipInfo) -> Readable:
        """The member's content, checked as far as possible without unpacking; `Readable.verify` checks the CRC."""
        where = f"{self.where}: {member.filename}"
        if member.flag_bits & _ENCRYPTED:
            raise SoftPromptFileError("encrypted", where=where, do="pack it again without a password")
        if member.compress_type not in METHODS:
            known = ", ".join(METHODS.values())
            raise SoftPromptFileError("packed in an unknown way", where=where, expected=known, got=member.compress_type)
        check_ratio(member.file_size, self.files, where)
        packed = self._packed(member, where)
        if member.compress_type != 0:
            return _Checked(Unpacked(packed, member.compress_type, member.file_size, self.files), member.CRC)
        if member.file_size != member.compress_size:
            raise SoftPromptFileError(
                "a stored member has two sizes", where=where, expected=member.file_size, got=member.compress_size
            )
        return _Checked(packed, member.CRC)

    def _packed(self, member: ZipInfo, where: str) -> Slice:
        head = _LOCAL_FORMAT.unpack(self._source.read_at(member.header_offset, _LOCAL_FORMAT.size))
        signature, name_size, extra_size = head[0], head[9], head[10]
        begin = member.header_offset + _LOCAL_FORMAT.size
        name = self._source.read_at(begin, name_size)
        if signature != _LOCAL or name != member.orig_filename.encode(
            "utf-8" if head[2] & _UTF8 else "cp437", "replace"
        ):
            raise _broken(self._source, "the directory and the member's own header differ", name)
        begin += name_size + extra_size
        if begin + member.compress_size > self._directory_offset:
            raise too_short(self._source, begin, member.compress_size)
        return Slice(self._source, begin, member.compress_size, where)


class _Checked:
    """A member's content with its checksum."""

    def __init__(self, content: Slice | Unpacked, crc: int) -> None:
        self.where, self.size = content.where, content.size
        self.read_at = content.read_at
        self._content, self._crc = content, crc

    def verify(self) -> None:
        if isinstance(self._content, Unpacked):
            self._content.verify()
        crc = 0
        for piece in chunks(self._content):
            crc = zlib.crc32(piece, crc)
        if crc != self._crc:
            raise SoftPromptFileError(
                "damaged: the checksum is wrong",
                where=self.where,
                expected=f"{self._crc:08x}",
                got=f"{crc:08x}",
                do="copy or download it again",
            )


def check_ratio(size: int, files: Files, where: str) -> None:
    """Raise SoftPromptFileError where packed data is more than a soft prompt in a file of this size can be."""
    if size > _BOMB_SIZE and size > _BOMB_RATIO * files.size:
        raise SoftPromptFileError(
            "a zip bomb: it unpacks to far more than a soft prompt of this file size",
            where=where,
            expected=f"at most {_BOMB_RATIO} times {files.size} bytes",
            got=size,
        )


def write_zip(file: BinaryIO, members: Sequence[tuple[str, Sequence[bytes]]]) -> None:
    """Write members (name, pieces of content) stored: 1980-01-01, Unix, mode 0644, no extra fields. Names are ASCII."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, pieces in members:
            info = ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, b"".join(pieces))


def _checked_end(source: Readable) -> tuple[int, int]:
    """The number of entries, from the record at the end of the archive, and where that record ends.

    The comment is cut off: zipfile would look for the record in it. Raises SoftPromptFileError.
    """
    position, (_, disk, start_disk, here, count, size, offset, _) = _find_end(source)
    if _ONES_2 in (disk, start_disk, here, count) or _ONES_4 in (size, offset):
        return _ONES_2, position + _END_FORMAT.size
    if disk or start_disk or here != count:
        raise _broken(source, "an archive in several parts", f"part {disk}")
    if size > _MAX_DIRECTORY:
        raise SoftPromptFileError(
            "the zip's directory is too large", where=source.where, expected=f"at most {_MAX_DIRECTORY} bytes", got=size
        )
    if offset + size > position:
        raise too_short(source, offset, size)
    # zipfile accepts a name that is cut short by the end of the directory.
    data, at = source.read_at(offset, size), 0
    while at + _ENTRY_SIZE <= size:
        at += _ENTRY_SIZE + sum(struct.unpack_from("<3H", data, at + 28))
    if at != size:
        raise _broken(source, "the directory is cut short", f"{size} bytes")
    return count, position + _END_FORMAT.size


def _find_end(source: Readable) -> tuple[int, tuple[bytes, int, int, int, int, int, int, int]]:
    # Most archives have no comment, so one small read is enough.
    for window in (_END_FORMAT.size, _END_FORMAT.size + _MAX_COMMENT):
        begin = max(source.size - window, 0)
        tail = source.read_at(begin, source.size - begin)
        at = tail.rfind(_END)
        while at >= 0:
            if len(tail) - at >= _END_FORMAT.size:
                end = _END_FORMAT.unpack_from(tail, at)
                if at + _END_FORMAT.size + end[7] == len(tail):
                    return begin + at, end
            at = tail.rfind(_END, 0, at)
    raise SoftPromptFileError(
        "not a whole zip: its directory at the end is missing", where=source.where, do="copy or download it again"
    )


def _check_name(name: str, where: str) -> None:
    """Members are never written to disk, but a name that points out of the archive is never an accident."""
    parts = name.removesuffix("/").split("/")
    if "\\" in name or "\0" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise SoftPromptFileError(
            "a member's name is a path out of the archive",
            where=where,
            got=repr(name[:80]),
            do="do not trust this file",
        )


def _broken(source: Readable, what: str, got: object) -> SoftPromptFileError:
    return SoftPromptFileError(f"not a whole zip: {what}", where=source.where, got=got, do="copy or download it again")
