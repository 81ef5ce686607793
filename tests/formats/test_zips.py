"""The zip reader: it agrees with zipfile on good archives and believes nothing in bad ones."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest

from sordino import formats
from sordino.errors import SoftPromptFileError
from sordino.formats.sources import Files
from sordino.formats.zips import Archive, write_zip
from tests.formats.makers import kobold, npy_bytes, zipped
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix, npy


def contents(path: Path) -> dict[str, bytes]:
    with Files() as files:
        archive = Archive(files.open(path), files)
        found = {}
        for member in archive.members:
            source = archive.open(member)
            source.verify()
            # Backwards too: compressed members start again from the front.
            tail = source.read_at(max(source.size - 5, 0), min(source.size, 5))
            found[member.filename] = source.read_at(0, source.size)
            assert found[member.filename].endswith(tail)
        return found


@pytest.mark.parametrize("method", [0, 8, 12, 14])
def test_reads_what_zipfile_writes(tmp_path: Path, method: int) -> None:
    members = {
        "empty": b"",
        "zeros": bytes(100_000),
        "text": b"lamp " * 9999,
        "noise": matrix(0, 300, 300).tobytes(),
        "ä": b"1",
    }
    assert contents(zipped(tmp_path / "v.zip", members, method)) == members


def test_reads_streamed_members_comments_and_zip64(tmp_path: Path) -> None:
    stream = io.BytesIO()

    class Pipe:
        """A file that cannot seek: zipfile writes sizes after the members."""

        write, flush = stream.write, stream.flush

    with zipfile.ZipFile(Pipe(), "w") as archive:  # type: ignore[arg-type]
        with archive.open("a", "w", force_zip64=True) as member:
            member.write(b"content")
        archive.comment = b"a comment with PK\x05\x06 in it"
    (tmp_path / "v.zip").write_bytes(stream.getvalue())
    assert contents(tmp_path / "v.zip") == {"a": b"content"}


def test_zip64_records_at_the_end_are_read(tmp_path: Path) -> None:
    data = zipped(tmp_path / "v.zip", {"a": b"content"}).read_bytes()
    end = data.rindex(b"PK\x05\x06")
    _, _, _, _, count, size, offset, _ = struct.unpack("<4s4H2LH", data[end:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    ones = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "w.zip").write_bytes(data[:end] + record + locator + ones)
    assert zipfile.ZipFile(tmp_path / "w.zip").read("a") == b"content"
    assert contents(tmp_path / "w.zip") == {"a": b"content"}


def test_zipfile_reads_what_we_write() -> None:
    stream = io.BytesIO()
    write_zip(stream, [("a", [b"one", b"two"]), ("b", [])])
    with zipfile.ZipFile(stream) as archive:
        assert archive.testzip() is None
        assert archive.read("a") == b"onetwo"
        info = archive.getinfo("a")
    assert (info.date_time, info.create_system, info.external_attr >> 16) == ((1980, 1, 1, 0, 0, 0), 3, 0o100644)
    assert (info.compress_type, info.extra, info.flag_bits) == (0, b"", 0)


def test_not_a_zip_and_cut_short(tmp_path: Path) -> None:
    whole = kobold(tmp_path / "v.zip").read_bytes()
    for length in (4, 30, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "v.zip").write_bytes(whole[:length])
        both_refuse(tmp_path / "v.zip", "not a whole zip")
    (tmp_path / "v.zip").write_bytes(whole[7:])
    both_refuse(tmp_path / "v.zip", "not a soft prompt file")
    # A download that lost its beginning: the directory is there, and points to nothing.
    (tmp_path / "v.zip").write_bytes(b"PK" + whole[50:])
    both_refuse(tmp_path / "v.zip")


@pytest.mark.parametrize("method", [0, 8, 12, 14])
def test_a_damaged_tensor_is_noticed(tmp_path: Path, method: int) -> None:
    path = kobold(tmp_path / "v.zip", npy(matrix(0, 40, 64)), method=method)
    data = bytearray(path.read_bytes())
    data[4000] ^= 1
    path.write_bytes(data)
    assert any(word in refusal(path) for word in ("damaged", "cut short"))


def test_a_zip_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    bomb = npy_bytes("<f8", (2047, 2048), bytes(2047 * 2048 * 8))
    both_refuse(kobold(tmp_path / "v.zip", bomb, method=8), "zip bomb")
    inner = kobold(tmp_path / "inner.zip", bomb[: 15 << 20], method=8).read_bytes()
    # Each wrapping may unpack to 16 times its size; together they may not.
    both_refuse(zipped(tmp_path / "w.zip", {"v.zip": inner}, 8), "does not agree")
    whole = kobold(tmp_path / "inner.zip", bomb, method=8).read_bytes()
    both_refuse(zipped(tmp_path / "x.zip", {"v.zip": whole}, 8), "zip bomb")
    stored = kobold(tmp_path / "stored.zip", bomb).read_bytes()
    both_refuse(zipped(tmp_path / "y.zip", {"v.zip": stored}, 8), "zip bomb")


def test_a_large_lzma_dictionary_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = kobold(tmp_path / "v.zip", method=14)
    data = path.read_bytes()
    # After the member's header: version 9.4 and 5 bytes of properties, then lc/lp/pb and the dictionary's size.
    at = data.index(b"\x09\x04\x05\x00") + 5
    for size, good in ((16 << 20, True), ((16 << 20) + 1, False), (0xFFFFFFFF, False)):
        path.write_bytes(data[:at] + struct.pack("<I", size) + data[at + 4 :])
        if good:
            assert formats.read(path).n_tokens == 4
        else:
            both_refuse(path, "dictionary is too large")


def test_a_broken_lzma_header_is_refused(tmp_path: Path) -> None:
    path = kobold(tmp_path / "v.zip", method=14)
    data = path.read_bytes()
    at = data.index(b"\x09\x04\x05\x00") + 2
    for broken in (b"\x06\x00\x5d", b"\x05\x00\xff", b"\x05\x00\xe0"):
        path.write_bytes(data[:at] + broken + data[at + 3 :])
        both_refuse(path, "LZMA header is damaged")


def _patched(path: Path, where: str, offset: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = data.index({"local": b"PK\x03\x04", "directory": b"PK\x01\x02", "end": b"PK\x05\x06"}[where]) + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("where", "offset", "value", "words"),
    [
        ("directory", 8, b"\x01\x00", "encrypted"),
        ("directory", 10, b"\x63\x00", "packed in an unknown way"),
        ("directory", 20, b"\xff\xff\xff\x7f", "cut short"),
        ("directory", 24, b"\x01\x00\x00\x00", "two sizes"),
        ("directory", 28, b"\xff\xff", "not a whole zip"),
        ("directory", 42, b"\xff\xff\xff\x7f", "cut short"),
        ("directory", 46, b"Tensor", "no tensor.npy"),
        ("local", 0, b"PK\x03\x05", ""),
        ("local", 30, b"Tensor", "differ"),
        ("end", 4, b"\x01\x00", "several parts"),
        ("end", 8, b"\x09\x00\x09\x00", "directory is broken"),
        ("end", 12, b"\xff\xff\xff\x7f", "too large"),
        ("end", 16, b"\xff\xff\xff\x7f", "cut short"),
    ],
)
def test_lies_in_the_directory_are_refused(tmp_path: Path, where: str, offset: int, value: bytes, words: str) -> None:
    path = tmp_path / "v.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tensor.npy", npy(matrix()))
    _patched(path, where, offset, value)
    both_refuse(path, words)


def test_a_member_may_not_reach_into_the_directory(tmp_path: Path) -> None:
    path = zipped(tmp_path / "v.zip", {"tensor.npy": npy(matrix())})
    size = struct.pack("<II", len(npy(matrix())) + 10, len(npy(matrix())) + 10)
    _patched(path, "directory", 20, size)
    with pytest.raises(SoftPromptFileError, match="cut short"):
        formats.peek(path)
