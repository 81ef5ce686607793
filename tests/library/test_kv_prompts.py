"""KV prompts in a library: entries like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino import formats
from sordino.errors import BadInput
from sordino.library.editing import edit
from sordino.library.library import Library
from sordino.library.names import kind_of_name, readable_name, safe_name, without_ending
from sordino.prompts.kv_prompt import KVPrompt, KVShape
from sordino.prompts.soft_prompt import SoftPrompt
from tests.formats.kv_makers import kv_prompt
from tests.prompt_files import drop, matrix, names


def test_a_kv_prompt_is_an_entry_like_any_other(tmp_path: Path) -> None:
    lib = Library([tmp_path])
    entry = lib.add(kv_prompt(description="Deep.").with_metadata(name=""), name="deep")
    assert entry.path == tmp_path / "deep.kv.zip"
    assert (entry.name, entry.kind, entry.format, entry.n_tokens, entry.d_model) == ("deep", "KV prompt", "kv", 3, 8)
    assert (entry.metadata.name, entry.metadata.description) == ("deep", "Deep.")
    assert [part.kv for part in entry.parts] == [KVShape(2, 1, 2)]
    assert lib.entry("deep").path == lib.resolve("deep") == lib.entry("deep.kv.zip").path == entry.path
    assert lib.twin(kv_prompt()) == entry
    assert lib.twin(kv_prompt(5)) is None
    edited = edit(entry.path, {"description": "Deeper."})
    assert isinstance(edited, KVPrompt)
    assert lib.entry("deep").metadata.description == "Deeper."
    assert lib.comparable_to(SoftPrompt(matrix())) == ({}, [])
    lib.remove("deep")
    assert lib.scan() == []


def test_kinds_do_not_share_a_name(tmp_path: Path) -> None:
    lib = Library([tmp_path])
    lib.add(SoftPrompt(matrix()), name="v")
    with pytest.raises(BadInput, match="another soft prompt has this name"):
        lib.add(kv_prompt(), name="v")
    assert lib.add(kv_prompt(), name="v", replace=True).kind == "KV prompt"
    assert names(lib) == ["v"]
    assert (tmp_path / ".trash" / "v.zip").exists()


def test_files_of_both_kinds_dropped_by_hand_get_two_names(tmp_path: Path) -> None:
    drop(tmp_path / "v.zip")
    formats.write(kv_prompt(), tmp_path / "v.kv.zip")
    assert names(Library([tmp_path])) == ["v", "v-2"]


def test_an_embedding_prompt_does_not_take_a_kv_prompts_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="which is of KV prompts' files"):
        Library([tmp_path]).add(SoftPrompt(matrix()), name="m.kv")


def test_names_of_copies() -> None:
    assert readable_name("v.kv (1)") == "v-1"
    assert without_ending("v.KV.zip") == "v"
    assert (kind_of_name("v.kv.zip"), kind_of_name("v.zip"), kind_of_name("v")) == ("KV prompt", "embedding prompt", "")
    assert safe_name("v.kv") == "v"


def test_installing_what_peft_saved(tmp_path: Path) -> None:
    formats.write(kv_prompt(), tmp_path / "prefix", to="peft")
    lib = Library([tmp_path / "library"])
    read = formats.read_single(tmp_path / "prefix")
    assert lib.add(read, name="prefix").path == tmp_path / "library" / "prefix.kv.zip"
