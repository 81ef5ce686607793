"""Bare .npy files, and the header parser that evaluates nothing."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.prompts.soft_prompt import Metadata
from tests.formats.makers import npy_bytes
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix, npy

FLOATS = matrix().tobytes()


def file(folder: Path, content: bytes) -> Path:
    # The name says nothing: the content does.
    path = folder / "voice.txt"
    path.write_bytes(content)
    return path


def with_header(text: str, data: bytes = FLOATS) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1") + data


@pytest.mark.parametrize("version", [1, 2, 3])
def test_reads_every_version(tmp_path: Path, version: int) -> None:
    path = file(tmp_path, npy_bytes("<f4", (4, 8), FLOATS, version=version))
    assert formats.detect(path) == "npy"
    assert np.array_equal(formats.read(path).matrix, matrix())
    assert formats.read(path).metadata == Metadata(name="voice")


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 8)}",
        '{"shape":(4L,8L),"fortran_order":False,"descr":"<f4"}',
        "  { 'shape' : ( 4 , 8 , ) , 'descr' : '<f4' , 'fortran_order' : False , }  \n",
    ],
)
def test_reads_headers_as_other_programs_write_them(tmp_path: Path, text: str) -> None:
    assert np.array_equal(formats.read(file(tmp_path, with_header(text))).matrix, matrix())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 8)",
        "'descr': '<f4', 'fortran_order': False, 'shape': (4, 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 8)} + 1",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 32}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': '(4, 8)'}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,, 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 8)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (4, 8)}",
        "{'descr': '<f4', 'fortran_order': (), 'shape': (4, 8)}",
        "{'descr': True, 'fortran_order': False, 'shape': (4, 8)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 8), 'more': 1}",
        "{'descr': '<V2x', 'fortran_order': False, 'shape': (4, 8)}",
        "{'descr': '(2,2)f4', 'fortran_order': False, 'shape': (4, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 3000 + ")" * 3000 + "}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 9000 + "1, 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').abort()}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 5000 + ", 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 4000 + ")}",
        "{" + " " * 9990,
    ],
)
def test_refuses_broken_headers(tmp_path: Path, text: str) -> None:
    both_refuse(file(tmp_path, with_header(text)), "header is broken")


@pytest.mark.parametrize(
    ("descr", "name"),
    [("<i4", "<i4"), ("|O", "|O"), ("<c8", "<c8"), ("<f16", "<f16"), ("|b1", "|b1"), ("|V3", "|V3")],
)
def test_refuses_other_types_by_name(tmp_path: Path, descr: str, name: str) -> None:
    both_refuse(file(tmp_path, npy_bytes(descr, (4, 8), FLOATS)), "wrong type", "float16", name)


def test_refuses_object_arrays_without_unpickling_them(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    both_refuse(tmp_path / "v.npy", "wrong type")


@pytest.mark.parametrize("shape", [(4, 9), (5, 8), (3, 8), (2, 3, 8), (10**11, 10**11), (0, 8), (4,)])
def test_refuses_a_shape_that_lies_about_the_data(tmp_path: Path, shape: tuple[int, ...]) -> None:
    both_refuse(file(tmp_path, npy_bytes("<f4", shape, FLOATS)), "does not agree with the data", str(list(shape)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (matrix()[0], "wrong number of dimensions"),
        (np.float32(1), "wrong number of dimensions"),
        (matrix().reshape(1, 1, 4, 8), "wrong number of dimensions"),
        (matrix(0, 0), "range"),
        (matrix(0, 2048), "range"),
        (matrix(0, 3000), "range"),
        (matrix(0, 2, 0), "range"),
        (matrix(0, 1, 65537), "range"),
    ],
)
def test_refuses_shapes_that_are_no_soft_prompt(tmp_path: Path, values: np.ndarray, words: str) -> None:
    both_refuse(file(tmp_path, npy(values)), words)


def test_the_largest_number_of_tokens_is_2047(tmp_path: Path) -> None:
    assert formats.read(file(tmp_path, npy(matrix(0, 2047)))).n_tokens == 2047


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e300])
@pytest.mark.parametrize("dtype", ["<f8", ">f8"])
def test_refuses_what_is_not_finite_in_float32(tmp_path: Path, bad: float, dtype: str) -> None:
    values = matrix().astype(dtype)
    values[2, 3] = bad
    assert "not finite" in refusal(file(tmp_path, npy(values)))


def test_refuses_nan_in_float16_and_bfloat16(tmp_path: Path) -> None:
    assert "not finite" in refusal(file(tmp_path, npy(np.full((2, 2), np.nan, np.float16))))
    assert "not finite" in refusal(file(tmp_path, npy_bytes("<V2", (1, 2), b"\x80\x3f\x80\x7f")))


def test_several_prompts_in_one_array_need_an_index(tmp_path: Path) -> None:
    path = file(tmp_path, npy(np.stack([matrix(0), matrix(1)])))
    assert "--index" in refusal(path)
    assert np.array_equal(formats.read(path, index=1).matrix, matrix(1))
    assert "0 to 1" in refusal(path, index=2)


def test_cut_short_or_padded(tmp_path: Path) -> None:
    whole = npy(matrix())
    for content in (whole[:-1], whole[:200], whole + b"\0"):
        both_refuse(file(tmp_path, content), "does not agree with the data")
    for length in (6, 9, 11):
        both_refuse(file(tmp_path, whole[:length]))
    both_refuse(file(tmp_path, whole[:60]), "cut short")
    both_refuse(file(tmp_path, b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + whole), "too long")
    both_refuse(file(tmp_path, b"\x93NUMPY\x07\x00" + whole[8:]), "unknown version")


def test_numpy_reads_what_we_write_and_would_write_the_same(tmp_path: Path) -> None:
    prompt = formats.read(file(tmp_path, npy(matrix(0, 20, 576))))
    formats.write(prompt, tmp_path / "out.npy", to="npy")
    assert np.array_equal(np.load(tmp_path / "out.npy", allow_pickle=False), prompt.matrix)
    assert (tmp_path / "out.npy").read_bytes() == npy(matrix(0, 20, 576))


def test_real_files_of_google_research(shared_dir: Path) -> None:
    for name, shape in (("sst2.npy", (100, 768)), ("prompt_5x256.npy", (5, 256))):
        path = shared_dir / "samples" / "google" / name
        assert formats.detect(path) == "npy"
        assert formats.peek(path).n_tokens == shape[0]
        assert np.array_equal(formats.read(path).matrix, np.load(path).astype(np.float32))
        assert formats.read(path).matrix.shape == shape
