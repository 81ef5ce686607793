"""The `sordino` object of meta.json: everything in it is understood, or refused by name."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sordino import formats
from sordino.errors import BadInput
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.formats.makers import FULL, META, kobold, prompt
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix, npy

HASH = SoftPrompt(matrix()).content_hash


def native(folder: Path, **ours: Any) -> Path:
    return kobold(folder / "v.zip", meta=META | {"sordino": {"format_version": 1} | ours})


def written(folder: Path, what: SoftPrompt) -> dict[str, Any]:
    formats.write(what, folder / "out.zip", force=True)
    with zipfile.ZipFile(folder / "out.zip") as archive:
        found: dict[str, Any] = json.loads(archive.read("meta.json"))
    return found


def test_all_that_is_known_goes_through_the_file(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "v.zip")
    back = formats.read(tmp_path / "v.zip")
    assert back.metadata == FULL
    assert back.content_hash == prompt().content_hash
    assert formats.peek(tmp_path / "v.zip").metadata == FULL


def test_keys_have_one_order_and_the_unknown_is_left_out(tmp_path: Path) -> None:
    assert list(written(tmp_path, prompt())["sordino"]) == [
        "format_version",
        "tensor_sha256",
        "base",
        "placement",
        "licence",
        "tags",
        "rating",
        "created",
        "training",
        "heldout",
        "samples",
    ]
    assert written(tmp_path, SoftPrompt(matrix(), Metadata(name="v"))) == {
        "name": "v",
        "supported": [],
        "description": "",
        "sordino": {"format_version": 1, "tensor_sha256": HASH, "placement": "start"},
    }
    assert written(tmp_path, prompt(Metadata(base=BaseRef(id="org/m", n_layers=2))))["sordino"]["base"] == {
        "id": "org/m",
        "n_layers": 2,
    }


def test_keys_of_other_programs_are_kept(tmp_path: Path) -> None:
    theirs = {"version": {"b": 1, "a": [None]}, "gallery": "a shelf"}
    kobold(tmp_path / "v.zip", meta=META | theirs)
    again = written(tmp_path, formats.read(tmp_path / "v.zip").with_metadata(author="Somebody"))
    assert list(again) == ["name", "author", "supported", "description", "gallery", "version", "sordino"]
    assert again["version"] == theirs["version"]
    assert "keys of other programs: gallery, version" in formats.file_disclosure(formats.read(tmp_path / "out.zip"))


def test_equal_prompts_are_equal_bytes(tmp_path: Path) -> None:
    shuffled = replace(
        FULL,
        training=dict(reversed(FULL.training.items())),
        samples=({"without": "there was", "with": "the lamp", "prompt": "Once"},),
        base=replace(FULL.base, embedding_rms=np.float64(FULL.base.embedding_rms)),
    )
    assert shuffled == FULL
    formats.write(prompt(), tmp_path / "a.zip")
    formats.write(SoftPrompt(np.asfortranarray(matrix()).astype(">f4"), shuffled), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_changed_matrix_is_noticed_and_can_be_accepted(tmp_path: Path) -> None:
    path = native(tmp_path, tensor_sha256=HASH, licence="MIT")
    assert formats.read(path).metadata.licence == "MIT"
    path = kobold(path, npy(matrix(1)), META | {"sordino": {"format_version": 1, "tensor_sha256": HASH}})
    line = refusal(path)
    assert "the matrix was changed" in line
    assert "delete tensor_sha256" in line
    # To look is to read headers: that much is right.
    assert formats.peek(path).n_tokens == 4
    assert formats.read(native(tmp_path)).content_hash == HASH


@pytest.mark.parametrize("version", [3, 99])
def test_a_newer_format_is_refused_before_its_keys_are(tmp_path: Path, version: int) -> None:
    both_refuse(native(tmp_path, format_version=version, of_the_future=1), "newer version", f"got {version}", "update")


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None])
def test_a_format_version_is_a_number_from_1(tmp_path: Path, version: object) -> None:
    both_refuse(native(tmp_path, format_version=version), "format_version")


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ({"mood": "dark"}, "unknown key 'mood'"),
        ({"base": {"colour": "red"}}, "unknown key 'colour'"),
        ({"base": "org/model"}, "sordino.base"),
        ({"base": {"d_model": "8"}}, "base.d_model"),
        ({"base": {"d_model": True}}, "base.d_model"),
        ({"base": {"d_model": -8}}, "base.d_model"),
        ({"base": {"d_model": 9}}, "base.d_model"),
        ({"base": {"embedding_rms": "0.1"}}, "base.embedding_rms"),
        ({"tensor_sha256": "abc"}, "tensor_sha256"),
        ({"tensor_sha256": HASH.upper()}, "tensor_sha256"),
        ({"placement": "end"}, "start or after_bos"),
        ({"placement": None}, "placement"),
        ({"rating": "cosy"}, "rating"),
        ({"rating": []}, "rating"),
        ({"licence": 5}, "licence"),
        ({"tags": "sea"}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"created": 2026}, "created"),
        ({"training": []}, "training"),
        ({"heldout": "good"}, "heldout"),
        ({"samples": {}}, "samples"),
        ({"samples": [{"prompt": 1}]}, "samples"),
        ({"samples": [{"seed": "1"}]}, "samples"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_name(tmp_path: Path, ours: dict[str, Any], words: str) -> None:
    both_refuse(native(tmp_path, **ours), words)


def test_an_object_that_is_none_is_refused(tmp_path: Path) -> None:
    both_refuse(kobold(tmp_path / "v.zip", meta=META | {"sordino": []}), "an object")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (Metadata(name="half \ud800"), "metadata"),
        (Metadata(name=5), "name"),  # type: ignore[arg-type]
        (Metadata(supported=(1,)), "supported"),  # type: ignore[arg-type]
        (Metadata(training={"loss": float("nan")}), "training"),
        (Metadata(training={"path": Path("x")}), "training"),
        (Metadata(heldout={"nll": np.float32(1)}), "heldout"),
        (Metadata(samples=({"prompt": "a", "seed": "1"},)), "samples"),
        (Metadata(base=BaseRef(d_model=9)), "base.d_model"),
        (Metadata(base=BaseRef(embedding_rms=float("inf"))), "metadata"),
        (Metadata(description="x" * (1 << 20)), "too large"),
    ],
)
@pytest.mark.parametrize("to", ["kobold", "peft", "mkultra", "safetensors"])
def test_what_no_file_can_hold_is_refused_before_anything_is_written(
    tmp_path: Path, metadata: Metadata, words: str, to: str
) -> None:
    with pytest.raises(BadInput, match=words):
        formats.write(prompt(metadata), tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


def test_the_specification_names_every_key() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    for key in (
        *asdict(Metadata()).keys() - {"foreign", "attention"},
        *asdict(PromptAttention()),
        *asdict(BaseRef()),
        "format_version",
        "tensor_sha256",
    ):
        assert f"`{key}`" in text, key


@pytest.mark.parametrize(
    ("attention", "placement"),
    [
        (PromptAttention(hold=128), {"position": "after_bos", "hold": 128}),
        (PromptAttention(strength=2), {"position": "after_bos", "strength": 2.0}),
        (PromptAttention(1, 0.25), {"position": "after_bos", "hold": 1, "strength": 0.25}),
    ],
)
def test_hold_and_strength_are_in_the_file(tmp_path: Path, attention: PromptAttention, placement: object) -> None:
    held = SoftPrompt(matrix(), Metadata(name="Held", placement="after_bos", attention=attention))
    formats.write(held, tmp_path / "held.zip")
    with zipfile.ZipFile(tmp_path / "held.zip") as archive:
        ours = json.loads(archive.read("meta.json"))["sordino"]
    assert (ours["format_version"], ours["placement"]) == (2, placement)
    again = formats.read(tmp_path / "held.zip").metadata
    assert (again.attention, again.placement) == (attention, "after_bos")


@pytest.mark.parametrize(
    "placement",
    [
        {},
        {"position": "behind"},
        {"position": []},
        {"position": "start", "hold": 0},
        {"position": "start", "hold": True},
        {"position": "start", "hold": 1e9},
        {"position": "start", "hold": None},
        {"position": "start", "strength": 5},
        {"position": "start", "strength": 0},
        {"position": "start", "strength": float("nan")},
        {"position": "start", "strength": "2"},
        {"position": "start", "weight": 2},
        [],
        7,
    ],
)
def test_an_invalid_placement_is_refused_by_name(tmp_path: Path, placement: object) -> None:
    both_refuse(native(tmp_path, format_version=2, placement=placement), "placement")


def test_a_file_of_version_1_has_no_placement_object(tmp_path: Path) -> None:
    both_refuse(native(tmp_path, placement={"position": "start", "hold": 128}), "placement")
