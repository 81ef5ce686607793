"""KoboldAI's zips as the world makes them, and our own as KoboldAI reads them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.formats.makers import META, bfloat16, kobold, npy_bytes, prompt, zipped
from tests.formats.refusals import both_refuse
from tests.prompt_files import matrix, npy

METHODS = {"stored": 0, "deflate": 8, "bzip2": 12, "LZMA": 14}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_reads_every_compression(tmp_path: Path, method: int) -> None:
    path = kobold(tmp_path / "v.zip", npy(matrix(0, 60, 256)), method=method)
    assert np.array_equal(formats.read(path).matrix, matrix(0, 60, 256))
    assert formats.detect(path) == "kobold"
    assert formats.peek(path).n_tokens == 60


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_every_kind_of_float_in_both_orders(tmp_path: Path, dtype: str, order: str) -> None:
    values = np.asarray(matrix(0, 5, 9).astype(dtype), order=order)
    assert np.array_equal(formats.read(kobold(tmp_path / "v.zip", npy(values))).matrix, values.astype(np.float32))


@pytest.mark.parametrize("descr", ["<V2", "|V2", "V2"])
def test_widens_bfloat16(tmp_path: Path, descr: str) -> None:
    # The upper halves of float32s: 1.0 is 3f80, -2.5 is c020.
    path = kobold(tmp_path / "v.zip", npy_bytes(descr, (1, 2), b"\x80\x3f\x20\xc0"))
    assert formats.read(path).matrix.tolist() == [[1.0, -2.5]]
    values = matrix(0, 5, 9)
    path = kobold(tmp_path / "w.zip", npy_bytes(descr, (5, 9), bfloat16(values)))
    np.testing.assert_allclose(formats.read(path).matrix, values, rtol=2**-7)


def test_large_matrices_are_read_in_pieces(tmp_path: Path) -> None:
    values = matrix(0, 2047, 1300)
    for order in "CF":
        path = kobold(tmp_path / "v.zip", npy(np.asarray(values.astype(np.float64), order=order)))
        assert np.array_equal(formats.read(path).matrix, values)


def test_accepts_a_leading_dimension_of_one(tmp_path: Path) -> None:
    values = matrix()
    for order in "CF":
        path = kobold(tmp_path / "v.zip", npy(np.asarray(values[None], order=order)))
        assert np.array_equal(formats.read(path).matrix, values)


# meta.json


@pytest.mark.parametrize(
    ("meta", "wanted"),
    [
        (META, Metadata("Gothic", "A. N. Other", ("Generic 6B",), "Fog.")),
        (
            {"name": "v", "supported": "gpt-j-6B, opt-6.7b,", "description": ""},
            Metadata("v", "", ("gpt-j-6B", "opt-6.7b")),
        ),
        ({"name": "v", "author": ["One", "Two"]}, Metadata("v", "One, Two")),
        ({"name": "v", "author": "Smith, John", "supported": None}, Metadata("v", "Smith, John")),
        ({"name": None, "description": None}, Metadata()),
        ({}, Metadata()),
        (
            {"name": "v", "n_tokens": 3, "version": {"of": "somebody else"}},
            Metadata("v", foreign={"n_tokens": 3, "version": {"of": "somebody else"}}),
        ),
    ],
)
def test_reads_meta_as_the_world_writes_it(tmp_path: Path, meta: object, wanted: Metadata) -> None:
    assert formats.read(kobold(tmp_path / "f.zip", meta=meta)).metadata == wanted


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = kobold(tmp_path / "v.zip", meta=b"\xef\xbb\xbf" + json.dumps(META).encode())
    assert formats.read(path).metadata.name == "Gothic"


def test_without_meta_the_file_name_is_the_name(tmp_path: Path) -> None:
    path = kobold(tmp_path / "old voice.zip", meta=None)
    assert formats.read(path).metadata == Metadata(name="old voice")
    assert formats.peek(path).metadata == Metadata(name="old voice")


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (b"name: Gothic", "not JSON"),
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"name": "\xff"}', "UTF-8"),
        (b'{"name": "\\ud800"}', "UTF-8"),
        (b'{"name": NaN}', "not JSON"),
        (b'{"rms": 1e999}', "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "too deep"),
        ({"name": 5}, "name"),
        ({"supported": [1]}, "supported"),
        ({"description": ["a"]}, "description"),
    ],
)
def test_refuses_what_is_no_meta(tmp_path: Path, meta: object, words: str) -> None:
    both_refuse(kobold(tmp_path / "v.zip", meta=meta), words)


def test_refuses_a_meta_of_100_mb_before_reading_it(tmp_path: Path) -> None:
    both_refuse(kobold(tmp_path / "v.zip", meta=b" " * (2 << 20)), "meta.json: too large", "524288")
    with zipfile.ZipFile(kobold(tmp_path / "w.zip", meta=None), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", b" " * (100 << 20))
    both_refuse(tmp_path / "w.zip", "zip bomb")


def test_a_meta_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    content = json.dumps(META).encode()
    path = zipped(
        tmp_path / "v.zip", {"tensor.npy": npy(matrix()), "meta.json": content + b" " * 1000}, zipfile.ZIP_DEFLATED
    )
    data = path.read_bytes()
    # In the member's header and in the directory.
    path.write_bytes(data.replace(struct.pack("<I", len(content) + 1000), struct.pack("<I", len(content))))
    both_refuse(path, "more than it says")


# Wrappings


def test_reads_what_people_pack_again(tmp_path: Path) -> None:
    whole = kobold(tmp_path / "whole.zip", method=14).read_bytes()
    members = {"tensor.npy": npy(matrix()), "meta.json": json.dumps(META).encode()}
    in_folder = {f"Gothic voice/{name}": content for name, content in members.items()}
    junk = {"__MACOSX/Gothic voice/._tensor.npy": b"x", "Gothic voice/.DS_Store": b"x", "Gothic voice/": b""}
    wrapped = {
        "zip in zip": zipped(tmp_path / "a.zip", {"whole.zip": whole}),
        "packed zip in zip": zipped(tmp_path / "b.zip", {"whole.ZIP": whole}, zipfile.ZIP_DEFLATED),
        "folder in zip": zipped(tmp_path / "c.zip", in_folder),
        "by macOS": zipped(tmp_path / "d.zip", junk | in_folder),
        "zip in folder in zip": zipped(tmp_path / "e.zip", {"folder/whole.zip": whole}),
        "extra members": zipped(tmp_path / "f.zip", members | {"readme.txt": b"Hello", "more/tensor.npy": b""}),
    }
    for kind, path in wrapped.items():
        assert np.array_equal(formats.read(path).matrix, matrix()), kind
        assert formats.peek(path).metadata.name == "Gothic", kind
        assert formats.detect(path) == "kobold", kind


def test_reads_unpacked_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(kobold(tmp_path / "v.zip")) as archive:
        archive.extractall(tmp_path / "flat")
        archive.extractall(tmp_path / "deep" / "v")
    (tmp_path / "deep" / ".DS_Store").write_bytes(b"x")
    for name in ("flat", "deep"):
        assert formats.detect(tmp_path / name) == "kobold"
        assert formats.read(tmp_path / name).metadata.name == "Gothic"
        assert formats.peek(tmp_path / name).size > 0
    (tmp_path / "flat" / "meta.json").unlink()
    assert formats.read(tmp_path / "flat").metadata.name == "flat"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "no tensor.npy"),
        ({"meta.json": b"{}"}, "no tensor.npy"),
        ({"Tensor.npy": npy(matrix())}, "no tensor.npy"),
        ({"a/tensor.npy": npy(matrix()), "b/tensor.npy": npy(matrix())}, "no tensor.npy"),
        ({"a.zip": b"x", "b.zip": b"x"}, "no tensor.npy"),
        ({"a.zip": b"x" * 100}, "not a whole zip"),
        ({"a/b/c/d/e/tensor.npy": npy(matrix())}, "no tensor.npy"),
        ({"tensor.npy": b""}, "not an .npy"),
        ({"tensor.npy": b"\x93NUMPY"}, "not an .npy"),
    ],
)
def test_refuses_zips_without_a_soft_prompt(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    both_refuse(zipped(tmp_path / "v.zip", members), words)


def test_refuses_folders_without_a_soft_prompt(tmp_path: Path) -> None:
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "one.txt").write_text("Once.")
    both_refuse(tmp_path / "stories", "no tensor.npy")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["tensor.npy", "meta.json"])
def test_refuses_two_members_of_one_name(tmp_path: Path, name: str) -> None:
    path = kobold(tmp_path / "v.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, npy(matrix(1)))
    both_refuse(path, f"two members called {name}")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "C:/evil", "a/../../evil", "a\\evil", "a//b"])
def test_refuses_paths_in_member_names(tmp_path: Path, name: str) -> None:
    path = kobold(tmp_path / "v.zip")
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        archive.writestr(info, b"x")
    both_refuse(path, "path out of the archive")


# KoboldAI's own rules, as its fileops.checksp and its loader have them


def test_koboldai_reads_what_we_write(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "v.zip")
    with zipfile.ZipFile(tmp_path / "v.zip") as archive:
        assert archive.testzip() is None
        with archive.open("tensor.npy") as member:
            version = np.lib.format.read_magic(member)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        with archive.open("tensor.npy") as member:
            values = np.load(io.BytesIO(member.read()), allow_pickle=False)
        with archive.open("meta.json") as member:
            meta = json.load(member)
    assert (version, shape, fortran, dtype) == ((1, 0), (4, 8), False, np.float32)
    assert np.array_equal(values, matrix())
    assert {key: meta[key] for key in ("name", "author", "supported", "description")} == {
        "name": "The Keeper",
        "author": "Анна",
        "supported": ["org/model", "org/other"],
        "description": 'Salt, "lamps"\nand log-books.',
    }


def test_a_blank_author_is_left_out(tmp_path: Path) -> None:
    formats.write(SoftPrompt(matrix(), Metadata(name="v", author=" ")), tmp_path / "v.zip")
    with zipfile.ZipFile(tmp_path / "v.zip") as archive:
        assert list(json.loads(archive.read("meta.json"))) == ["name", "supported", "description", "sordino"]
