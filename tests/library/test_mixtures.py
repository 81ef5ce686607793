"""Mixtures in a library: entries like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.errors import BadInput
from sordino.library.editing import edit
from sordino.library.library import Library
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.prompt_files import drop, matrix, names


def _mixture(seed: int = 0, **said: object) -> Mixture:
    components = tuple(SoftPrompt(matrix(seed + k, 3 + k), Metadata(name=f"c{k}")) for k in range(2))
    return Mixture(components, np.array([0.25, 0.75]), metadata=Metadata(**said))


def test_a_mixture_is_an_entry_like_any_other(tmp_path: Path) -> None:
    lib = Library([tmp_path])
    entry = lib.add(_mixture(description="Two."), name="both")
    assert entry.path == tmp_path / "both.mix.zip"
    assert (entry.name, entry.components, entry.n_tokens, entry.d_model) == ("both", 2, 4, 8)
    assert (entry.metadata.name, entry.metadata.description) == ("both", "Two.")
    assert lib.entry("both").path == lib.resolve("both") == lib.entry("both.mix.zip").path == entry.path
    assert lib.add(_mixture(description="Two."), name="both.mix.zip").path == entry.path
    assert lib.twin(_mixture()) == entry
    assert lib.twin(_mixture(5)) is None
    edited = edit(entry.path, {"description": "Two voices."})
    assert isinstance(edited, Mixture)
    assert lib.entry("both").metadata.description == "Two voices."
    lib.remove("both")
    assert lib.scan() == []


def test_a_mixture_and_a_soft_prompt_do_not_share_a_name(tmp_path: Path) -> None:
    lib = Library([tmp_path])
    lib.add(SoftPrompt(matrix()), name="v")
    with pytest.raises(BadInput, match="another soft prompt has this name"):
        lib.add(_mixture(), name="v")
    assert lib.add(_mixture(), name="v", replace=True).components == 2
    assert names(lib) == ["v"]
    assert (tmp_path / ".trash" / "v.zip").exists()
    lib.add(SoftPrompt(matrix()), name="v", replace=True)
    assert [entry.components for entry in lib.scan()] == [0]


def test_files_of_both_kinds_dropped_by_hand_get_two_names(tmp_path: Path) -> None:
    lib = Library([tmp_path])
    drop(tmp_path / "v.zip")
    formats.write_mixture(_mixture(), tmp_path / "v.mix.zip")
    assert names(lib) == ["v", "v-2"]


def test_a_broken_mixture_is_listed_with_the_reason(tmp_path: Path) -> None:
    formats.write_mixture(_mixture(), tmp_path / "m.mix.zip")
    content = (tmp_path / "m.mix.zip").read_bytes()
    (tmp_path / "m.mix.zip").write_bytes(content[: len(content) // 2])
    (entry,) = Library([tmp_path]).scan()
    assert entry.name == "m"
    assert "not a whole zip" in entry.error


def test_the_components_names_are_part_of_what_a_file_says(tmp_path: Path) -> None:
    lib = Library([tmp_path])
    lib.add(_mixture(), name="m")
    mixture = _mixture()
    renamed = replace(mixture, components=tuple(c.with_metadata(author="A") for c in mixture.components))
    with pytest.raises(BadInput, match="another soft prompt has this name"):
        lib.add(renamed, name="m")


def test_installing_a_mixture(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    formats.write_mixture(_mixture(), tmp_path / "evening.mix.zip")
    lib = Library([tmp_path / "library"])
    assert (
        lib.add(formats.read_any(tmp_path / "evening.mix.zip"), name="evening").path
        == tmp_path / "library" / "evening.mix.zip"
    )


def test_a_soft_prompt_does_not_take_a_mixtures_file(tmp_path: Path) -> None:
    """`m.mix` would be m.mix.zip, which is the mixture m."""
    lib = Library([tmp_path])
    lib.add(_mixture(), name="m")
    with pytest.raises(BadInput, match="which is of mixtures' files"):
        lib.add(SoftPrompt(matrix()), name="m.mix", replace=True)
    assert [(entry.name, entry.components) for entry in lib.scan()] == [("m", 2)]


def test_what_was_removed_twice_lies_there_twice_by_names_of_mixtures(tmp_path: Path) -> None:
    lib = Library([tmp_path])
    for seed in range(2):
        lib.add(_mixture(seed), name="m")
        assert lib.remove("m").name.endswith(".mix.zip")
    assert len(list((tmp_path / ".trash").glob("m*.mix.zip"))) == 2
