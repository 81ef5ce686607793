"""Hostile files cost little memory: the peak stays within 64 MB of the imported program's."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from tests.formats import kv_makers
from tests.formats.makers import kobold, npy_bytes, zipped
from tests.prompt_files import matrix, npy

pytest.importorskip("resource", reason="this system does not say how much memory a process took")

LIMIT_MB = 64
LARGE = 160 << 20
NAN = npy(np.full((1000, 3000), np.nan, np.float32))
# Just below the limit for JSON, and many times as large once parsed.
JSON_THAT_GROWS = {
    "lists": b"[" + b"[]," * 174_000 + b"[]]",
    "objects": b"[" + b'{"a":0},' * 65_000 + b"0]",
    "texts": b"[" + b'"\xc3\xa9\xe7\x81\xaf",' * 65_000 + b"0]",
    "deep": b"[" * 500_000,
    "digits": b"9" * 500_000,
}

# Reads the files it is given, each of which must be refused, and says how much the peak grew. On Linux ru_maxrss begins
# with what the parent process had at the fork, which would hide everything; VmHWM is the program's own.
READER = """
import re, resource, sys
from pathlib import Path
from sordino import formats
from sordino.errors import SoftPromptFileError
def peak():
    if sys.platform == "linux":
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
before = peak()
for path in map(Path, sys.argv[1:]):
    try:
        formats.read_any(path)
    except SoftPromptFileError:
        pass
    else:
        sys.exit(f"{path} was read")
    print(f"{path.name} {peak() - before:.1f}")
"""


def filled(path: Path, head: bytes, size: int, tail: bytes = b"", fill: bytes = b"") -> Path:
    """A file of `size` bytes between two ends: of zeros that take no room on the disk, or of `fill`."""
    with path.open("wb") as file:
        file.write(head)
        if fill:
            for _ in range(size // len(fill)):
                file.write(fill)
        else:
            file.seek(size, 1)
        file.write(tail)
    return path


def stored_zip(path: Path, name: str, head: bytes, size: int) -> Path:
    """A zip with one stored member that begins with `head`, is of `size` zeros after it, and has a wrong checksum."""
    whole = len(head) + size
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 33, 0, whole, whole, len(name), 0)
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, whole, whole, len(name), 0, 0, 0, 0, 0, 0)
    at = len(local) + len(name) + whole
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry) + len(name), at, 0)
    return filled(path, local + name.encode() + head, size, entry + name.encode() + end)


def hostile_zips(folder: Path) -> Iterator[Path]:
    tensor = npy(matrix())
    bomb = npy_bytes("<f8", (2047, 2048), bytes(2047 * 2048 * 8))
    for method in (8, 12, 14):
        yield kobold(folder / f"bomb-{method}.zip", bomb, method=method)
    yield zipped(folder / "bomb-in-bomb.zip", {"v.zip": (folder / "bomb-8.zip").read_bytes()}, 8)
    # Each asks for the largest dictionary; only one may be there at a time.
    nested = kobold(folder / "nested-lzma.zip", NAN, method=14)
    data = b""
    for wrappers in range(4):
        data = zipped(nested, {"v.zip": data}, 14).read_bytes() if wrappers else nested.read_bytes()
        at = data.index(b"\x09\x04\x05\x00") + 5
        data = data[:at] + struct.pack("<I", 16 << 20) + data[at + 4 :]
    nested.write_bytes(data)
    yield nested
    header = npy_bytes("<f4", (2000, LARGE // 8000), b"")
    yield stored_zip(folder / "stored-damaged.zip", "tensor.npy", header, LARGE // 8000 * 8000)
    yield stored_zip(folder / "inner-zip.zip", "v.zip", b"", LARGE)
    yield kobold(folder / "meta-100mb.zip", tensor, b" " * (100 << 20))
    for name, text in JSON_THAT_GROWS.items():
        yield kobold(folder / f"meta-{name}.zip", tensor, b'{"name": 5, "more": ' + text + b"}")
    lzma = kobold(folder / "dictionary.zip", tensor, method=14)
    data = lzma.read_bytes()
    at = data.index(b"\x09\x04\x05\x00") + 5
    lzma.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    yield lzma
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0)
    for number in (20_000, 2_000_000):
        size = number * 50
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, number & 0xFFFF, number & 0xFFFF, size, 0, 0)
        yield filled(folder / f"entries-{number}.zip", b"", size, end, fill=(entry + b"name") * 1000)


def hostile_headers(folder: Path) -> Iterator[Path]:
    nan = b"\xff\xff\xff\xff"
    header = npy_bytes("<f4", (2000, LARGE // 8000), b"")
    yield filled(folder / "nan-at-the-end.npy", header, LARGE // 8000 * 8000 - 4, nan)
    yield filled(
        folder / "fortran.npy",
        npy_bytes("<f4", (2000, LARGE // 8000), b"", fortran=True),
        LARGE // 8000 * 8000 - 4,
        nan,
    )
    yield filled(folder / "claims-more.npy", npy_bytes("<f8", (2047, 65536), b""), 1000)
    yield filled(folder / "header.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x0f{", LARGE)
    said = {"t": {"dtype": "F32", "shape": [2000, LARGE // 8000], "data_offsets": [0, LARGE // 8000 * 8000]}}
    text = json.dumps(said).encode()
    head = struct.pack("<Q", len(text)) + text
    yield filled(folder / "nan.safetensors", head, LARGE // 8000 * 8000 - 4, nan)
    yield filled(folder / "header.safetensors", struct.pack("<Q", LARGE) + b"{", LARGE)
    empty = {f"{number}": {"dtype": "F32", "shape": [0, 1], "data_offsets": [0, 0]} for number in range(9_000)}
    text = json.dumps(empty, separators=(",", ":")).encode()
    assert 500_000 < len(text) < 1 << 19
    (folder / "names.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    yield folder / "names.safetensors"


def hostile_folders(folder: Path) -> Iterator[Path]:
    """Three files that all grow, read for one soft prompt."""
    path = folder / "peft"
    path.mkdir()
    growing = b'"more": ' + JSON_THAT_GROWS["objects"] + b"}"
    (path / "adapter_config.json").write_bytes(b'{"peft_type": "PROMPT_TUNING", ' + growing)
    header = {"prompt_embeddings": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}}
    text = json.dumps(header).encode() + b" " * 500_000
    (path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + matrix().tobytes())
    (path / "sordino.json").write_bytes(b'{"sordino": [], ' + growing)
    yield path


def hostile_pickles(folder: Path) -> Iterator[Path]:
    def write_base64(file: BinaryIO) -> None:
        file.write(b"gAJCAAAAEA" + b"A" * 6)
        for _ in range(LARGE >> 20):
            file.write(b"A" * (1 << 20))

    path = folder / "large.json"
    with path.open("wb") as file:
        file.write(b'{"metadata": {}, "tensor": "')
        write_base64(file)
        file.write(b'"}')
    yield path
    yield filled(folder / "no-tensor.json", b'{"metadata": "', LARGE, b'"}', fill=b"a" * (1 << 20))
    yield filled(folder / "open.json", b'{"tensor": "', LARGE, fill=b"A" * (1 << 20))
    for name, step in {
        "lists": b"]",
        "dictionaries": b"}",
        "nested": b"\x85",
        "memo": b"\x94",
        "numbers": b"\x8a\x10" + b"\x7f" * 16,
        "text": b"X\x28\x00\x00\x00" + "é".encode() * 20,
        "names": b"ctorch\nFloatStorage\n",
        "ordered": b"ccollections\nOrderedDict\n)R",
        "bytes": b"B\x00\x00\x00\x00",
    }.items():
        yield filled(folder / f"{name}.pkl", b"\x80\x02](N", len(step) * 400_000, b"e.", fill=step * 1000)
    # As many tensors as the instructions allow, all views of one storage.
    stream = b"ctorch.storage\n_load_from_bytes\n"
    yield filled(
        folder / "calls.pkl", b"\x80\x03](", 20_000 * 45, b"e.", fill=(stream + b"C\x08\x80\x02NNNNN.\x85R0") * 100
    )
    yield filled(folder / "long-text.pkl", b"\x80\x02X\xff\xff\xff\x0f", LARGE)
    yield filled(folder / "long-bytes.pkl", b"\x80\x03B\xff\xff\xff\x0f", LARGE)


def hostile_mixtures(folder: Path) -> Iterator[Path]:
    """Sixteen components that are small in the file and large unpacked, that are large and broken, or that are not there."""
    small = kobold(folder / "small.zip", npy(matrix()), {"name": "v"}).read_bytes()
    packed = kobold(
        folder / "packed.zip", npy(np.zeros((1000, 3000), np.float32)), {"name": "v"}, method=8
    ).read_bytes()
    names = [f"components/{index}.zip" for index in range(16)]
    listed = [{"file": name, "weight": 1 / 16} for name in names]

    def described(**more: object) -> bytes:
        said = {"rule": "sequence", "components": listed, **more}
        return json.dumps({"sordino": {"format_version": 1, "mixture": said}}).encode()

    yield zipped(folder / "bombs.zip", {"mixture.json": described(), **dict.fromkeys(names, packed)})
    yield zipped(folder / "bombs-packed.zip", {"mixture.json": described(), **dict.fromkeys(names, packed)}, 8)
    zeros = kobold(folder / "zeros.zip", npy(np.zeros((1000, 3000), np.float32)), {"name": "v"}).read_bytes()
    yield zipped(folder / "zeros-packed.zip", {"mixture.json": described(), **dict.fromkeys(names, zeros)}, 8)
    broken = dict.fromkeys(names, zeros) | {names[-1]: kobold(folder / "nan.zip", NAN, {"name": "v"}).read_bytes()}
    yield zipped(folder / "last-is-broken.zip", {"mixture.json": described(), **broken})
    for name, text in JSON_THAT_GROWS.items():
        head = b'{"sordino": {"format_version": 1, "mixture": ' + text + b"}}"
        yield zipped(folder / f"json-{name}.zip", {"mixture.json": head, **dict.fromkeys(names, small)})
    grown = kobold(folder / "grown.zip", npy(matrix()), b'{"name": 5, "more": ' + JSON_THAT_GROWS["objects"] + b"}")
    yield zipped(folder / "json-inside.zip", {"mixture.json": described(), **dict.fromkeys(names, grown.read_bytes())})
    many = {f"components/{index}.zip": small for index in range(5000)}
    yield zipped(folder / "many.zip", {"mixture.json": described(), **many})
    gate = described(gate={"file": "gate.npy", "bias": [0] * 16})
    tall = npy_bytes("<f4", (16, 1 << 40), b"")
    yield zipped(folder / "gate.zip", {"mixture.json": gate, **dict.fromkeys(names, small), "gate.npy": tall})


def hostile_kv_prompts(folder: Path) -> Iterator[Path]:
    """Numbers that are not there, that are small in the file and large unpacked, or that are large and broken."""

    def made(name: str, tensors: bytes, meta: bytes, method: int = 0) -> Path:
        return zipped(folder / name, {"kv_prompt.safetensors": tensors, "meta.json": meta}, method)

    tall = {"flat": kv_makers.entry([2047, 1 << 22], 0, 2047 << 24)}
    wide = kv_makers.described(
        kv={"layers": 1 << 20, "heads": 1, "channels": 2, "dtype": "float32", "keys": "rotated", "first_position": 0}
    )
    yield made("not-there.kv.zip", kv_makers.safetensors(tall, b""), kv_makers.encoded(wide))
    rows = {"flat": kv_makers.entry([2000, 8], 0, 64000), "last": kv_makers.entry([60000], 64000, 304000)}
    good = kv_makers.encoded(kv_makers.described())
    yield made("packed.kv.zip", kv_makers.safetensors(rows, bytes(304000)), good, 8)
    many = np.zeros((2000, 8000), np.float32)
    many[-1, -1] = np.nan
    large = {"flat": kv_makers.entry([2000, 8000], 0, many.nbytes)}
    said = kv_makers.described(
        kv={"layers": 2000, "heads": 1, "channels": 2, "dtype": "float32", "keys": "rotated", "first_position": 0}
    )
    yield made("last-is-nan.kv.zip", kv_makers.safetensors(large, many.tobytes()), kv_makers.encoded(said))
    shared = {"flat": kv_makers.entry([2000, 8000], 0, many.nbytes), "last": kv_makers.entry([60000], 0, 240000)}
    yield made("shared.kv.zip", kv_makers.safetensors(shared, bytes(many.nbytes)), kv_makers.encoded(said))
    for name, text in JSON_THAT_GROWS.items():
        yield made(f"json-{name}.kv.zip", kv_makers.safetensors(kv_makers.good(), kv_makers.numbers()), text)
        yield made(f"header-{name}.kv.zip", len(text).to_bytes(8, "little") + text, good)


def grown_by(files: list[Path]) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-c", READER, *map(str, files)], capture_output=True, text=True, check=False, timeout=900
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in result.stdout.splitlines()}


@pytest.mark.parametrize(
    "make", [hostile_zips, hostile_headers, hostile_folders, hostile_pickles, hostile_mixtures, hostile_kv_prompts]
)
def test_hostile_files_cost_little_memory(tmp_path: Path, make: object) -> None:
    assert callable(make)
    files = list(make(tmp_path))
    grown = grown_by(files)
    assert len(grown) == len(files)
    assert max(grown.values()) < LIMIT_MB, grown


def test_the_measure_works(tmp_path: Path) -> None:
    """A good file of 40 MB is a refusal for the reader above; what it takes is seen."""
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("tensor.npy", npy(matrix(0, 2000, 5000)))
    result = subprocess.run(
        [sys.executable, "-c", READER.replace("sys.exit", "print"), str(tmp_path / "good.zip")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout.split()[-1]) > 38
