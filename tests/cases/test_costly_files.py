"""Small files that cost a reader much: one of 2.8 KB took 20 seconds, and a server that was sent it stood still."""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sordino import formats
from sordino.errors import SoftPromptFileError
from sordino.formats import sources
from sordino.formats.unpack import Unpacked
from sordino.library.library import Library
from tests.cli.commands import ok
from tests.formats.makers import META, kobold, prompt, saved, tensor, zipped
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix, npy

STORAGES = 200


def packed(members: dict[str, bytes], method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def storages_backwards() -> dict[str, bytes]:
    """torch's zip of many tensors whose data is looked for from the end to the front, in a zip."""
    pickle = b"\x80\x02]("
    for number in reversed(range(STORAGES)):
        key = b"%d" % number
        pickle += (
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX" + struct.pack("<I", len(key)) + key + b"X\3\0\0\0cpuK\1tQ"
        )
    inner = {"a/data.pkl": pickle + b"e.", "a/pad": bytes(15 << 20)}
    return {"x.zip": packed(inner | {f"a/data/{number}": bytes(4) for number in range(STORAGES)}, 0)}


def stream_again_and_again() -> dict[str, bytes]:
    """A storage in the front of a pickle that is read again for each of many instructions at its end."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1NtQ."
    magic = b"\x80\2\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b".\x80\2M\xe9\3."
    stream = magic + b"\x80\2}X\x0d\0\0\0little_endian\x88s.\x80\2" + storage + b"\x80\2]X\1\0\0\x000a."
    stream += struct.pack("<q", 1) + bytes(4)
    pad = 15 << 20
    body = b"\x80\3B" + struct.pack("<I", len(stream)) + stream + b"q\0000ctorch.storage\n_load_from_bytes\nq\x010B"
    body += struct.pack("<I", pad) + bytes(pad) + b"0" + b"h\1h\0\x85R0" * STORAGES
    return {"a/data.pkl": body + b"N."}


@pytest.mark.parametrize("make", [storages_backwards, stream_again_and_again])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_packed_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], dict[str, bytes]], method: int
) -> None:
    unpacked = []
    unpack = Unpacked._unpack

    def counted(self: Unpacked, most: int) -> bytes:
        unpacked.append(len(piece := unpack(self, most)))
        return piece

    monkeypatch.setattr(Unpacked, "_unpack", counted)
    path = zipped(tmp_path / "v.zip", make(), method)
    refusal(path)
    assert sum(unpacked) <= 16 << 20


def test_work_out_of_proportion_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kobold(tmp_path / "v.zip", npy(matrix(0, 100, 100)), method=8)
    assert formats.read(path).n_tokens == 100
    monkeypatch.setattr(sources, "_BYTES", 1 << 10)
    monkeypatch.setattr(sources, "_BYTES_PER_STORED", 1)
    both_refuse(path, "far more work")
    monkeypatch.undo()
    monkeypatch.setattr(sources, "_SECONDS", -1000)
    both_refuse(path, "far more work")


def test_a_broken_file_in_a_library_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    looked: list[str] = []
    peek = formats.peek
    monkeypatch.setattr(formats, "peek", lambda path: looked.append(path.name) or peek(path))
    library = Library([tmp_path])
    # Somebody may still be writing it.
    assert [library.scan()[0].error for _ in range(2)] == [library.scan()[0].error] * 2
    assert len(looked) == 3
    monkeypatch.setattr("sordino.library.library._SETTLED_SECONDS", -1.0)
    errors = [library.scan()[0].error for _ in range(3)]
    assert len(looked) == 4
    assert len(set(errors)) == 1
    assert "not a whole zip" in errors[0]
    formats.write(prompt(), tmp_path / "bad.zip", force=True)
    assert library.scan()[0].error == ""


def test_dictionary_keys_that_hash_alike_are_refused(tmp_path: Path) -> None:
    """49,000 multiples of 2^61 - 1 as the keys of one dictionary took 49 seconds."""
    alike = b"".join(b"\x8a\x0b" + ((2**61 - 1) * number).to_bytes(11, "little") + b"N" for number in range(2, 40_000))
    (tmp_path / "v.bin").write_bytes(b"\x80\x02}(" + alike + b"u.")
    began = time.thread_time()
    both_refuse(tmp_path / "v.bin", "61 bits")
    assert time.thread_time() - began < 5
    # torch's own dictionaries have numbers as keys: parameters of an optimiser.
    (tmp_path / "v.bin").write_bytes(saved({0: tensor(), 2**60: 1}))
    assert formats.read(tmp_path / "v.bin").n_tokens == 4


@pytest.mark.parametrize("depth", [70, 400, 493, 900])
@pytest.mark.parametrize("key", ["foreign", "training"])
def test_deep_metadata_is_refused_and_lists_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, depth: int
) -> None:
    """Metadata nested 493 deep was read, and then ended `sordino list --json`."""
    deep = "[" * depth + "]" * depth
    text = f'{{"name": "v", "x": {deep}}}' if key == "foreign" else None
    text = text or f'{{"name": "v", "sordino": {{"format_version": 1, "training": {{"x": {deep}}}}}}}'
    path = kobold(tmp_path / "v.zip", meta=text.encode())
    both_refuse(path, "nested too deep")
    monkeypatch.setenv("SORDINO_LIBRARY", str(tmp_path))
    assert "nested too deep" in json.loads(ok("list", "--json"))[0]["error"]


@pytest.mark.parametrize("number", [10**300, 10**400, -(10**4000)])
def test_numbers_beyond_float64_are_refused(tmp_path: Path, number: int) -> None:
    for sordino in ({"base": {"embedding_rms": number}}, {"heldout": {"nll": number}}):
        path = kobold(tmp_path / "v.zip", meta=META | {"sordino": {"format_version": 1, **sordino}})
        both_refuse(path, "too large")


def test_negated_and_conjugated_tensors_are_refused(tmp_path: Path) -> None:
    """torch negates the numbers of such a view when it reads it; they were read as they are stored."""
    complex_ = torch.view_as_complex(tensor().reshape(4, 4, 2).contiguous())
    negated = complex_.conj().imag
    assert negated.is_neg()
    for value in (negated, {"prompt_embeddings": negated}):
        (tmp_path / "v.pt").write_bytes(saved(value))
        both_refuse(tmp_path / "v.pt", "negates", "resolve_neg")
    (tmp_path / "v.pt").write_bytes(saved(negated.resolve_neg().clone()))
    assert torch.equal(torch.tensor(formats.read(tmp_path / "v.pt").matrix), negated)


def test_a_disk_without_room_to_unpack_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    path = kobold(tmp_path / "v.zip", method=8)
    monkeypatch.setattr(sources.Files, "scratch", lambda _: Full())
    with pytest.raises(SoftPromptFileError, match="cannot be unpacked"):
        formats.read(path)
