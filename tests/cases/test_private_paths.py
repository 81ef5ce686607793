"""PEFT notes the path of the base model on the trainer's machine. It went into files that people shared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt, model_name
from tests.cli.commands import library_with_keeper, ok
from tests.formats.makers import prompt
from tests.prompt_files import matrix

PRIVATE = "/home/some.person/clients/acme-secret/llama-finetune"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (PRIVATE, "llama-finetune"),
        (f"{PRIVATE}/", "llama-finetune"),
        ("../../m/llama", "llama"),
        ("./llama", "llama"),
        ("~/models/llama", "llama"),
        ("C:\\Users\\some.person\\llama", "llama"),
        ("C:/Users/some.person/llama", "llama"),
        ("\\\\server\\share\\llama", "llama"),
        ("clients\\llama", "llama"),
        ("clients/acme/llama", "llama"),
        ("file:///home/some.person/llama", "llama"),
        (" /home/some.person/llama", "llama"),
        ("/", ""),
        ("..", ""),
        ("~", ""),
        ("org/llama", "org/llama"),
        ("llama-7b.v1", "llama-7b.v1"),
        ("https://huggingface.co/org/llama", "https://huggingface.co/org/llama"),
        ("", ""),
    ],
)
def test_of_a_path_the_last_component_is_left(text: str, name: str) -> None:
    assert model_name(text) == name
    assert BaseRef(text).id == name
    assert replace(BaseRef(), id=text).id == name


def adapter(folder: Path) -> Path:
    formats.write(SoftPrompt(matrix()), folder, to="peft")
    (folder / "sordino.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": PRIVATE}))
    return folder


@pytest.mark.parametrize("to", formats.WRITABLE)
def test_no_path_is_written_in_any_format(tmp_path: Path, to: str) -> None:
    found = formats.read(adapter(tmp_path / "theirs"))
    assert found.metadata.base.id == "llama-finetune"
    formats.write(found, tmp_path / "shared", to=to)
    files = [tmp_path / "shared"] if (tmp_path / "shared").is_file() else list((tmp_path / "shared").iterdir())
    written = b"".join(file.read_bytes() for file in files)
    assert b"some.person" not in written
    assert (b"llama-finetune" in written) == (to != "npy")


def test_no_path_is_written_into_a_mixture_or_its_components(tmp_path: Path) -> None:
    found = formats.read(adapter(tmp_path / "theirs"))
    mixture = Mixture((found, found), np.array([0.5, 0.5]), metadata=Metadata(name="m", base=BaseRef(PRIVATE)))
    formats.write_mixture(mixture, tmp_path / "v.mix.zip")
    assert b"some.person" not in (tmp_path / "v.mix.zip").read_bytes()
    back = formats.read_any(tmp_path / "v.mix.zip")
    assert isinstance(back, Mixture)
    assert back.metadata.base.id == back.components[0].metadata.base.id == "llama-finetune"


def test_an_ensemble_of_files_of_one_name_does_not_say_where_they_lay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library_with_keeper(tmp_path, monkeypatch)
    paths = [tmp_path / person / "keeper.zip" for person in ("some.person", "acme")]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        formats.write(prompt(Metadata(name="v"), seed), path)
    ok("ensemble", "build", *paths, "--out", tmp_path / "both.mix.zip", "--force")
    written = (tmp_path / "both.mix.zip").read_bytes()
    assert b"keeper (1)" in written
    assert b"some.person" not in written


def test_a_file_that_holds_one_already_is_cleaned_when_it_is_rewritten(tmp_path: Path) -> None:
    formats.write(prompt(Metadata(base=BaseRef("x" * len(PRIVATE)))), tmp_path / "v.safetensors", to="safetensors")
    old = (tmp_path / "v.safetensors").read_bytes().replace(b"x" * len(PRIVATE), PRIVATE.encode())
    (tmp_path / "v.safetensors").write_bytes(old)
    assert formats.peek(tmp_path / "v.safetensors").metadata.base.id == "llama-finetune"
    formats.write(formats.read(tmp_path / "v.safetensors"), tmp_path / "v.zip")
    assert b"some.person" not in (tmp_path / "v.zip").read_bytes()


def test_edit_changes_the_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = library_with_keeper(tmp_path, monkeypatch)
    before = formats.read(folder / "keeper.zip").metadata
    assert "base: org/other" in ok("edit", "keeper", "--base", "org/other")
    after = formats.read(folder / "keeper.zip").metadata
    assert after == replace(before, base=replace(before.base, id="org/other"))
    assert "base: mine" in ok("edit", "keeper", "--base", "/home/some.person/mine")
    assert "base: (none)" in ok("edit", "keeper", "--base", "")
