"""Zip archives: a bounded reader, and a writer whose bytes depend on nothing but the members.

The standard library's zipfile holds a directory of any size in memory, believes every size it reads, and lets an LZMA
member ask for 4 GiB: one flipped byte does. Here the directory, names, sizes and the LZMA dictionary are checked first.
Source: PKWARE APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from sordino.errors import SoftPromptFileError
from sordino.formats.sources import Files, Slice, Source, chunks, too_short
from sordino.formats.unpack import METHODS, Unpacked

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_END_FORMAT = struct.Struct("<4s4H2LH")
_END64_FORMAT = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_FORMAT = struct.Struct("<4sLQL")
_ENTRY_FORMAT = struct.Struct("<4s6H3L5H2L")
_LOCAL_FORMAT = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _UTF8 = 0x2041, 0x800
_MAX_COMMENT = 65535
_MAX_DIRECTORY = 1 << 20
# Numbers do not shrink much: float16 values stored as float64 reach 8 times. Below this size nothing is a bomb.
_BOMB_SIZE, _BOMB_RATIO = 16 << 20, 16
_JUNK = re.compile(r"(.*/)?(__MACOSX/.*|\._[^/]*|\.DS_Store|Thumbs\.db|desktop\.ini)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Member:
    """An entry of the archive's directory."""

    name: str
    flags: int
    method: int
    crc: int
    packed_size: int
    size: int
    offset: int


class Archive:
    """A zip whose directory was read and checked. files: those that all of this comes from."""

    def __init__(self, source: Source, files: Files) -> None:
        self.where = source.where
        self._source, self.files = source, files
        offset, size, count = _find_directory(source)
        self._directory_offset = offset
        # What macOS and Windows add when people pack a folder is no member; nor are folders.
        self.members = tuple(
            member
            for member in _read_directory(source, offset, size, count)
            if not member.name.endswith("/") and not _JUNK.fullmatch(member.name)
        )

    def check_apart(self) -> None:
        """Raises SoftPromptFileError where members share bytes: together they would take more memory than the archive is long."""
        total = sum(member.packed_size for member in self.members)
        if total > self._source.size:
            raise SoftPromptFileError(
                "the zip's members lie in one another",
                where=self.where,
                expected=f"at most {self._source.size} bytes in all",
                got=total,
                do="do not trust this file",
            )

    def open(self, member: Member) -> Source:
        """The member's content. Checks what can be checked without unpacking; Source.verify checks the CRC."""
        where = f"{self.where}: {member.name}"
        if member.flags & _ENCRYPTED:
            raise SoftPromptFileError("encrypted", where=where, do="pack it again without a password")
        if member.method not in METHODS:
            known = ", ".join(METHODS.values())
            raise SoftPromptFileError("packed in an unknown way", where=where, expected=known, got=member.method)
        check_ratio(member.size, self.files, where)
        packed = self._packed(member, where)
        if member.method != 0:
            return _Checked(Unpacked(packed, member.method, member.size, self.files), member.crc)
        if member.size != member.packed_size:
            raise SoftPromptFileError(
                "a stored member has two sizes", where=where, expected=member.size, got=member.packed_size
            )
        return _Checked(packed, member.crc)

    def _packed(self, member: Member, where: str) -> Slice:
        head = _LOCAL_FORMAT.unpack(self._source.read_at(member.offset, _LOCAL_FORMAT.size))
        signature, name_size, extra_size = head[0], head[9], head[10]
        begin = member.offset + _LOCAL_FORMAT.size
        name = _decode(self._source.read_at(begin, name_size), member.flags, self.where)
        if signature != _LOCAL or name != member.name:
            raise _broken(self._source, "the directory and the member's own header differ", name)
        begin += name_size + extra_size
        if begin + member.packed_size > self._directory_offset:
            raise too_short(self._source, begin, member.packed_size)
        return Slice(self._source, begin, member.packed_size, where)


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
    """Raises SoftPromptFileError where what is packed in a file unpacks to more than a soft prompt can."""
    if size > _BOMB_SIZE and size > _BOMB_RATIO * files.size:
        raise SoftPromptFileError(
            "a zip bomb: it unpacks to far more than a soft prompt of this file size",
            where=where,
            expected=f"at most {_BOMB_RATIO} times {files.size} bytes",
            got=size,
        )


def write_zip(file: BinaryIO, members: Sequence[tuple[str, Sequence[bytes]]]) -> None:
    """Write members (name, pieces of content) stored: 1980-01-01, Unix, mode 0644, no extra fields. Names are ASCII."""
    directory = []
    for name, pieces in members:
        size, crc = sum(map(len, pieces)), 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
        # Version needed 2.0, no flags, stored, 00:00:00, 1980-01-01.
        head = (20, 0, 0, 0, 0x21, crc, size, size, len(name), 0)
        offset = file.tell()
        file.write(_LOCAL_FORMAT.pack(_LOCAL, *head) + name.encode("ascii"))
        file.writelines(pieces)
        made_by_unix = 3 << 8 | 20
        directory.append(
            _ENTRY_FORMAT.pack(_ENTRY, made_by_unix, *head, 0, 0, 0, 0o100644 << 16, offset) + name.encode("ascii")
        )
    offset, entries = file.tell(), b"".join(directory)
    end = _END_FORMAT.pack(_END, 0, 0, len(directory), len(directory), len(entries), offset, 0)
    file.write(entries + end)


def _find_directory(source: Source) -> tuple[int, int, int]:
    """Offset, size and number of entries of the directory, from the record at the end of the archive."""
    position, end = _find_end(source)
    _, disk, start_disk, here, count, size, offset, _ = end
    limit = position
    if position >= _LOCATOR_FORMAT.size:
        at = position - _LOCATOR_FORMAT.size
        signature, _, position64, _ = _LOCATOR_FORMAT.unpack(source.read_at(at, _LOCATOR_FORMAT.size))
        if signature == _LOCATOR:
            fields = _END64_FORMAT.unpack(source.read_at(position64, _END64_FORMAT.size))
            if fields[0] != _END64:
                raise _broken(source, "the zip64 record is not where it should be", position64)
            disk, start_disk, here, count, size, offset = fields[4:]
            limit = min(position64, position)
    if disk or start_disk or here != count:
        raise _broken(source, "an archive in several parts", f"part {disk}")
    if size > _MAX_DIRECTORY:
        raise SoftPromptFileError(
            "the zip's directory is too large",
            where=source.where,
            expected=f"at most {_MAX_DIRECTORY} bytes",
            got=size,
        )
    if offset + size > limit:
        raise too_short(source, offset, size)
    return offset, size, count


def _find_end(source: Source) -> tuple[int, tuple[bytes, int, int, int, int, int, int, int]]:
    # Most archives have no comment: one small read.
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


def _read_directory(source: Source, offset: int, size: int, count: int) -> list[Member]:
    data, at, members = source.read_at(offset, size), 0, []
    while at < size:
        if at + _ENTRY_FORMAT.size > size:
            raise _broken(source, "the directory is cut short", f"{size} bytes")
        fields = _ENTRY_FORMAT.unpack_from(data, at)
        signature, _, _, flags, method, _, _, crc, packed_size, member_size, name_size, extra_size, comment_size = (
            fields[:13]
        )
        begin = at + _ENTRY_FORMAT.size
        at = begin + name_size + extra_size + comment_size
        if signature != _ENTRY or at > size:
            raise _broken(source, "the directory is broken", f"byte {begin}")
        name = _decode(data[begin : begin + name_size], flags, source.where)
        _check_name(name, source.where)
        extra = data[begin + name_size : begin + name_size + extra_size]
        sizes = _with_zip64(source, [member_size, packed_size, fields[16]], extra)
        members.append(Member(name, flags, method, crc, sizes[1], sizes[0], sizes[2]))
    if len(members) != count:
        raise _broken(source, "the directory is broken", f"{len(members)} of {count} entries")
    return members


def _with_zip64(source: Source, values: list[int], extra: bytes) -> list[int]:
    """size, packed size and offset, those that are all ones replaced by the zip64 extra field's."""
    if 0xFFFFFFFF not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            large = [value for (value,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8])]
            if len(large) >= values.count(0xFFFFFFFF):
                return [large.pop(0) if value == 0xFFFFFFFF else value for value in values]
            break
        at += 4 + length
    raise _broken(source, "a member's zip64 sizes are missing", f"{len(extra)} bytes")


def _decode(name: bytes, flags: int, where: str) -> str:
    try:
        # ASCII is the same in both, and fast.
        return name.decode("utf-8" if flags & _UTF8 or name.isascii() else "cp437")
    except UnicodeDecodeError as error:
        raise SoftPromptFileError("a member's name is not text", where=where, got=name[:40]) from error


def _check_name(name: str, where: str) -> None:
    """Members are never written to disk, but a name that would leave the folder is nobody's honest mistake."""
    parts = name.removesuffix("/").split("/")
    if "\\" in name or "\0" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise SoftPromptFileError(
            "a member's name is a path out of the archive",
            where=where,
            got=repr(name[:80]),
            do="do not trust this file",
        )


def _broken(source: Source, what: str, got: object) -> SoftPromptFileError:
    return SoftPromptFileError(f"not a whole zip: {what}", where=source.where, got=got, do="copy or download it again")
