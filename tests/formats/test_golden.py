"""Files of this and other programs, kept as bytes: what we wrote once we write for ever, and can read for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.soft_prompt import BaseRef, Metadata, SoftPrompt

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# Exact in every kind of float.
MATRIX = np.array([[0.5, -1.0, 2.0], [0.25, 0.0, -3.5]], np.float32)
PROMPT = SoftPrompt(
    MATRIX,
    Metadata(
        name="Golden",
        author="Sordino",
        supported=("org/golden",),
        description="Zwölf Boxkämpfer – 灯台.",
        base=BaseRef("org/golden", "llama", 3, 2, 100, 0.125, "0123456789abcdef" * 4),
        placement="start",
        licence="Apache-2.0",
        tags=("test",),
        rating="general",
        created="2026-01-01",
        training={"steps": 1, "learning_rate": 0.3, "init": "random numbers"},
        heldout={"nll": 4.25},
        samples=({"prompt": "a", "with": "b", "without": "c"},),
    ),
)
OURS = {"v1.zip": "kobold", "v1.json": "mkultra", "v1.npy": "npy", "v1.safetensors": "safetensors", "v1-peft": "peft"}
THEIRS = {
    "koboldai-lzma-float16.zip": "kobold",
    "koboldai-bfloat16-comma-supported.zip": "kobold",
    "mkultra-pickle.json": "mkultra",
    "torch-zip-parameter.pt": "torch",
    "torch-stream-state.bin": "torch",
}


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in ([path] if path.is_file() else path.iterdir())}


@pytest.mark.parametrize("name", OURS)
def test_writers_give_these_bytes(tmp_path: Path, name: str) -> None:
    formats.write(PROMPT, tmp_path / name, to=OURS[name])
    assert files(tmp_path / name) == files(GOLDEN / name)


@pytest.mark.parametrize("name", OURS)
def test_readers_read_these_bytes(name: str) -> None:
    found = formats.read(GOLDEN / name)
    assert found.content_hash == PROMPT.content_hash
    assert found.metadata == (Metadata(name="v1") if name == "v1.npy" else PROMPT.metadata)
    assert formats.detect(GOLDEN / name) == OURS[name]


@pytest.mark.parametrize("name", THEIRS)
def test_files_of_other_programs_are_read(name: str) -> None:
    assert np.array_equal(formats.read(GOLDEN / name).matrix, MATRIX)
    assert formats.detect(GOLDEN / name) == THEIRS[name]


def test_the_content_hash_is_what_it_was() -> None:
    assert PROMPT.content_hash == "9dd8de25771ee9285d47ed516b9009bddc221fc9f8a9203d5e993f2b96717a8d"
