"""Bare .safetensors: which tensor, and headers that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from sordino import formats
from sordino.prompts.soft_prompt import Metadata
from tests.formats.makers import FULL, prompt, tensor
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix

GOOD: dict[str, Any] = {"t": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}}


def raw(path: Path, header: object, data: bytes = matrix().tobytes(), *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reads_every_kind_of_float(tmp_path: Path, dtype: torch.dtype) -> None:
    values = tensor().to(dtype)
    save_file({"anything": values}, tmp_path / "v")
    assert formats.detect(tmp_path / "v") == "safetensors"
    assert np.array_equal(formats.read(tmp_path / "v").matrix, values.float().numpy())
    assert formats.read(tmp_path / "v").metadata == Metadata(name="v")


def test_the_known_key_wins_over_other_tensors(tmp_path: Path) -> None:
    save_file({"a": tensor(1), "prompt_embeddings": tensor(0), "ids": torch.arange(3)}, tmp_path / "v")
    assert np.array_equal(formats.read(tmp_path / "v").matrix, matrix(0))


def test_one_matrix_among_other_things_is_it(tmp_path: Path) -> None:
    save_file({"a": tensor(1)[0].clone(), "b": tensor(2), "ids": torch.zeros(2, 3, dtype=torch.int64)}, tmp_path / "v")
    assert np.array_equal(formats.read(tmp_path / "v").matrix, matrix(2))


def test_several_matrices_need_an_index(tmp_path: Path) -> None:
    save_file({"a": tensor(1), "b": torch.stack([tensor(2), tensor(3)])}, tmp_path / "v")
    line = refusal(tmp_path / "v")
    assert "--index" in line
    assert "0: a [4, 8], 1-2: b [2, 4, 8]" in line
    for index in range(3):
        assert np.array_equal(formats.read(tmp_path / "v", index=index).matrix, matrix(index + 1))
    assert "0 to 2" in refusal(tmp_path / "v", index=3)
    assert "0 to 2" in refusal(tmp_path / "v", index=-1)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{not json", "not JSON"),
        ({}, "no tensor"),
        ({"__metadata__": {}}, "no tensor"),
        ({"__metadata__": {"a": 1}} | GOOD, "not an object of texts"),
        ({"t": 5}, "broken"),
        ({"t": {"dtype": "F32", "shape": [4, 8]}}, "broken"),
        ({"t": GOOD["t"] | {"shape": [4, -8]}}, "broken"),
        ({"t": GOOD["t"] | {"shape": [4.0, 8]}}, "broken"),
        ({"t": GOOD["t"] | {"shape": "48"}}, "broken"),
        ({"t": GOOD["t"] | {"data_offsets": [128, 0]}}, "broken"),
        ({"t": GOOD["t"] | {"data_offsets": [0]}}, "broken"),
        ({"t": GOOD["t"] | {"data_offsets": [0, 129]}}, "cut short"),
        ({"t": GOOD["t"] | {"data_offsets": [4, 128]}}, "does not agree"),
        ({"t": GOOD["t"] | {"shape": [4, 9]}}, "does not agree"),
        ({"t": GOOD["t"] | {"dtype": "F64"}}, "does not agree"),
        ({"t": GOOD["t"] | {"dtype": "I32"}}, "wrong type"),
        ({"t": GOOD["t"] | {"dtype": ["F32"]}}, "wrong type"),
        ({"t": GOOD["t"] | {"shape": [32]}}, "dimensions"),
        ({"t": GOOD["t"] | {"shape": [0, 8], "data_offsets": [0, 0]}}, "range"),
        ({"__metadata__": {"sordino": "[]"}} | GOOD, "not a JSON object"),
        ({"__metadata__": {"sordino": '{"sordino": {"format_version": 3}}'}} | GOOD, "newer"),
    ],
)
def test_refuses_headers_that_are_broken_or_lie(tmp_path: Path, header: object, words: str) -> None:
    both_refuse(raw(tmp_path / "v", header), words)


def test_refuses_a_header_of_100_mb(tmp_path: Path) -> None:
    with (tmp_path / "v").open("wb") as file:
        file.write(struct.pack("<Q", 100 << 20) + b"{")
        file.truncate((100 << 20) + 200)
    both_refuse(tmp_path / "v", "header is too long")


def test_refuses_what_is_cut_short(tmp_path: Path) -> None:
    path = raw(tmp_path / "v", GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    both_refuse(path, "cut short")
    path.write_bytes(whole[:20])
    both_refuse(path, "not a soft prompt file")


def test_the_library_of_that_name_reads_what_we_write(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "v", to="safetensors")
    tensors = load_file(tmp_path / "v")
    assert list(tensors) == ["prompt_embeddings"]
    assert np.array_equal(tensors["prompt_embeddings"], matrix())
    assert int.from_bytes((tmp_path / "v").read_bytes()[:8], "little") % 8 == 0
    assert formats.read(tmp_path / "v").metadata == FULL
