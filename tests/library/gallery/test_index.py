"""gallery.json: its bytes, and what a reader refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino.errors import BadInput, SoftPromptFileError
from sordino.library.gallery.index import (
    MAX_ENTRIES,
    MAX_FILE,
    MAX_INDEX,
    GalleryEntry,
    GalleryIndex,
    read_index,
    write_index,
)
from sordino.prompts.soft_prompt import BaseRef

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "v1-gallery.json"
FULL = GalleryEntry(
    name="golden",
    url="files/golden.zip",
    sha256="0123456789abcdef" * 4,
    bytes=1234,
    kind="embedding prompt",
    n_tokens=2,
    d_model=3,
    base=BaseRef("org/golden", "llama", 3, 2, 100, 0.0, "fedcba9876543210" * 4),
    title="Golden",
    author="Sordino",
    description="Zwölf Boxkämpfer – 灯台.\nA second line.",
    licence="Apache-2.0",
    rating="mature",
    tags=("test", "gold"),
    created="2026-01-01",
    gain=0.25,
    samples=({"prompt": "a", "with": "b", "without": "c"},),
)
BARE = GalleryEntry("bare", "https://files.example/bare.kv.zip", "0" * 64, 1, "KV prompt", 1, 0)
INDEX = GalleryIndex("Two", (FULL, BARE))


def test_the_writer_gives_these_bytes_and_the_reader_reads_them() -> None:
    assert write_index(INDEX) == GOLDEN.read_bytes()
    assert read_index(GOLDEN.read_bytes(), "golden") == INDEX


def changed(**changes: Any) -> bytes:
    """The golden index with keys of its first entry changed; None takes a key away."""
    obj = json.loads(GOLDEN.read_bytes())
    entry = obj["entries"][0]
    for key, value in changes.items():
        entry[key] = value
        if value is None:
            del entry[key]
    return json.dumps(obj).encode()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("name", "../golden"),
        ("name", "con"),
        ("name", "golden.zip"),
        ("name", "a\nb"),
        ("url", None),
        ("url", "javascript:alert(1)"),
        ("url", "file:///etc/passwd"),
        ("url", "ftp://files.example/x.zip"),
        ("url", "http://[files/x.zip"),
        ("url", "x" * 2001),
        ("url", "files/\x1b[2J.zip"),
        ("sha256", None),
        ("sha256", "0" * 63),
        ("sha256", "G" * 64),
        ("bytes", 0),
        ("bytes", -1),
        ("bytes", 1.5),
        ("bytes", True),
        ("bytes", MAX_FILE + 1),
        ("kind", "LoRA"),
        ("n_tokens", 0),
        ("d_model", 1 << 17),
        ("base", {"d_model": 4}),
        ("base", {"weights": "x"}),
        ("base", {"id": "a\x1b[2Jb"}),
        ("title", "x" * 301),
        ("title", ["x"]),
        ("description", "x" * 8001),
        ("rating", "none"),
        ("tags", ["x"] * 33),
        ("tags", [1]),
        ("gain", "much"),
        ("gain", 1e7),
        ("samples", [{"prompt": "x"}] * 5),
        ("samples", [{"html": "x"}]),
        ("samples", [{"with": "x" * 8001}]),
        ("script", "x"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(SoftPromptFileError, match=r"entries\[0\]") as caught:
        read_index(changed(**{key: value}), "https://files.example/gallery.json")
    assert key in caught.value.message
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"entries": []}', "not a gallery"),
        (b'{"format": "sordino gallery", "entries": []}', "version"),
        (b'{"format": "sordino gallery", "version": true, "entries": []}', "version"),
        (b'{"format": "sordino gallery", "version": 2, "entries": [1]}', "newer version"),
        (b'{"format": "sordino gallery", "version": 1}', "entries"),
        (b'{"format": "sordino gallery", "version": 1, "entries": [1]}', "entries"),
        (b'{"format": "sordino gallery", "version": 1, "entries": [], "more": 1}', "more"),
        (b'{"format": "sordino gallery", "version": 1, "entries": [' + b"{}," * MAX_ENTRIES + b"{}]}", "at most"),
        (b'{"format": ' + b"[" * 100_000, "nested too deep"),
        (b" " * (MAX_INDEX + 1), "too large"),
        (b'{"format": "sordino gallery", "version": 1, "title": "\\ud800", "entries": []}', "UTF-8"),
    ],
)
def test_what_is_no_index_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(SoftPromptFileError, match=what):
        read_index(data, "here")


def test_two_entries_of_one_name_are_refused() -> None:
    obj = json.loads(GOLDEN.read_bytes())
    obj["entries"][1]["name"] = "GOLDEN"
    with pytest.raises(SoftPromptFileError, match="one name"):
        read_index(json.dumps(obj).encode(), "here")


def test_nothing_is_written_that_could_not_be_read() -> None:
    with pytest.raises(BadInput):
        write_index(GalleryIndex("x", (BARE, BARE)))
