"""Files of this and other programs, kept as bytes: what we wrote once we write for ever, and can read for ever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.prompts.attention import PromptAttention
from sordino.prompts.kv_prompt import KVPrompt, KVShape
from sordino.prompts.mixture import Gate, Mixture
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt

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
MIXTURE = Mixture(
    (PROMPT, SoftPrompt(-2 * MATRIX[:1], Metadata(name="Other", placement="after_bos"))),
    np.array([0.75, 0.25]),
    "sequence",
    Gate(np.array([[0.5, -1.0, 0.25], [0.0, 1.5, -0.75]], np.float32), np.array([0.1, -0.3], np.float32)),
    Metadata(
        name="Golden mixture",
        supported=("org/golden",),
        base=BaseRef("org/golden", "llama", 3, 2, 100, 0.125, "0123456789abcdef" * 4),
        licence="Apache-2.0",
        training={"method": "EM", "steps": 12},
        heldout={"nll": 4.0},
    ),
)
KV_PROMPT = KVPrompt(
    np.array([[0.5, -1.0, 2.0, 0.25, 0.1, -3.5, 1.0, 4.0], [1.5, 0.0, 0.3, 8.0, -0.125, 2.0, -1.0, 0.75]], np.float32),
    KVShape(2, 1, 2),
    np.array([1.0, -2.5, 0.125], np.float32),
    replace(PROMPT.metadata, name="Golden keys", placement="after_bos", attention=PromptAttention(128)),
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


def test_mixtures_are_written_as_these_bytes_and_read(tmp_path: Path) -> None:
    formats.write_mixture(MIXTURE, tmp_path / "v1.mix.zip")
    assert files(tmp_path / "v1.mix.zip") == files(GOLDEN / "v1.mix.zip")
    found = formats.read_any(GOLDEN / "v1.mix.zip")
    assert isinstance(found, Mixture)
    assert (found.content_hash, found.metadata, found.rule) == (MIXTURE.content_hash, MIXTURE.metadata, "sequence")
    assert found.weights_K.tolist() == [0.75, 0.25]
    assert [prompt.metadata for prompt in found.components] == [prompt.metadata for prompt in MIXTURE.components]
    assert found.gate is not None
    assert found.gate.bias_K.tolist() == MIXTURE.gate.bias_K.tolist()


def test_a_mixtures_hash_is_what_it_was() -> None:
    assert MIXTURE.content_hash == "905f1c2589df14e6e7b8fe3e5ae3f24b26038358d1ec13d5397aa559d16e8822"


def test_kv_prompts_are_written_as_these_bytes_and_read(tmp_path: Path) -> None:
    formats.write(KV_PROMPT, tmp_path / "v1.kv.zip")
    assert files(tmp_path / "v1.kv.zip") == files(GOLDEN / "v1.kv.zip")
    found = formats.read_any(GOLDEN / "v1.kv.zip")
    assert isinstance(found, KVPrompt)
    assert (found.content_hash, found.metadata, found.shape) == (
        KV_PROMPT.content_hash,
        KV_PROMPT.metadata,
        KV_PROMPT.shape,
    )


def test_a_kv_prompts_hash_is_what_it_was() -> None:
    assert KV_PROMPT.content_hash == "28f3979a0624ac00785bf78816ed970244f3f47484b205fa3bba76b18024008d"
