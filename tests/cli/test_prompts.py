"""list, show, install, remove, edit, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.library.library import Library
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.cli.commands import KNOWN, contents, ok, refused, run
from tests.prompt_files import matrix

# list


def test_list_shows_good_and_broken_files(folder: Path) -> None:
    (folder / "bad.zip").write_bytes(b"nothing")
    np.save(folder / "bare.npy", matrix())
    text = ok("list")
    assert "keeper" in text
    assert "org/small" in text
    assert "cannot be read" in text
    assert "bare.npy" in text


def test_list_as_json(folder: Path) -> None:
    (folder / "bad.zip").write_bytes(b"nothing")
    bad, keeper = json.loads(run("list", "--json").stdout)
    assert bad["error"]
    assert (keeper["name"], keeper["n_tokens"], keeper["d_model"], keeper["format"]) == ("keeper", 4, 8, "kobold")
    assert keeper["metadata"]["author"] == "Ines"


def test_list_of_an_empty_and_of_a_missing_library(folder: Path, tmp_path: Path) -> None:
    assert "is empty" in ok("list", "--library", tmp_path / "here")
    assert "does not exist" in ok("list", "--library", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_several_libraries(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "softprompts"
    other.mkdir()
    Library([other]).add(SoftPrompt(matrix(1)), name="keeper")
    text = ok("list", "--library", folder, "--library", other)
    assert "keeper@softprompts" in text


# show


def test_show_says_all_that_the_file_says(folder: Path) -> None:
    text = ok("show", "keeper")
    prompt = SoftPrompt(matrix(), KNOWN)
    for fact in ("The Keeper", "Ines", "Fog, oil", "org/small", "CC-BY-4.0", "sea, diary", "general", "4 tokens x 8"):
        assert fact in text
    for fact in (prompt.content_hash, "at the start", "steps: 60", "nll.soft_prompt: 4.2", "the lamp was trimmed."):
        assert fact in text


def test_show_takes_a_path_and_gives_json(folder: Path) -> None:
    facts = json.loads(ok("show", folder / "keeper.zip", "--json"))
    assert facts["content_hash"] == SoftPrompt(matrix()).content_hash
    assert facts["heldout"]["nll"]["none"] == 4.5
    assert "fit" not in facts


def test_show_keeps_a_strangers_control_characters_off_the_terminal(folder: Path) -> None:
    Library([folder]).add(
        SoftPrompt(matrix(1), Metadata(name="x", description="\x1b]0;owned\x07[bold]b[/bold]")), name="x"
    )
    for text in (ok("show", "x"), ok("list")):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "[bold]b[/bold]" in text


def test_show_of_unknown_and_broken(folder: Path) -> None:
    assert "did you mean keeper" in refused("show", "keper")
    assert "no such file" in refused("show", "./keper.zip")
    (folder / "bad.zip").write_bytes(b"nothing")
    line = refused("show", "bad")
    assert line.startswith("error: ")
    assert len(line.strip().splitlines()) == 1


# install


def test_install_takes_any_format_in(folder: Path) -> None:
    np.save("bare.npy", matrix(1))
    text = ok("install", "bare.npy", "--name", "bare voice")
    assert "Installed bare voice" in text
    assert formats.read(folder / "bare voice.zip").content_hash == SoftPrompt(matrix(1)).content_hash


def test_install_ends_with_a_command_that_can_work(folder: Path) -> None:
    """Old files for GPT-J ended with a command for smollm2, which is 576 wide."""
    made = {
        "old": SoftPrompt(matrix(1, 3, 4096), Metadata(supported=("EleutherAI/gpt-j-6B",))),
        "small": SoftPrompt(matrix(2, 3, 576)),
        "gemma": SoftPrompt(matrix(3, 3, 640)),
    }
    said = {}
    for name, prompt in made.items():
        formats.write(prompt, Path(f"{name}.zip"))
        said[name] = ok("install", f"{name}.zip")
    assert "Made for EleutherAI/gpt-j-6B (4096 wide)." in said["old"]
    assert "None of the models here fits it (smollm2, gemma3-270m" in said["old"]
    assert "sordino generate" not in said["old"]
    assert 'Use it: sordino generate "Some text" --soft-prompt "small"' in said["small"]
    assert '"Some text" --model gemma3-270m --soft-prompt "gemma"' in said["gemma"]
    assert "EleutherAI/gpt-j-6B (4096 wide)" in ok("show", "old")
    assert "a model 640 wide (the file does not name it)" in ok("show", "gemma")
    assert "EleutherAI/gpt-j-6B (4096 wide)" in ok("list")


def test_install_says_what_is_there_already(folder: Path) -> None:
    before = contents(folder)
    formats.write(SoftPrompt(matrix(), KNOWN), Path("copy.zip"))
    assert "Already in the library: keeper" in ok("install", "copy.zip")
    assert "Already in the library: keeper" in ok("install", "keeper")
    assert contents(folder) == before
    np.save("bare.npy", matrix())
    assert "keeper in the library is the same matrix" in ok("install", "bare.npy")


def test_install_refuses_and_replaces(folder: Path) -> None:
    np.save("keeper.npy", matrix(1))
    before = contents(folder)
    assert "--replace" in refused("install", "keeper.npy")
    assert "cannot have this name" in refused("install", "keeper.npy", "--name", "../keeper")
    assert "cannot have this name" in refused("install", "keeper.npy", "--name", "")
    assert contents(folder) == before
    ok("install", "keeper.npy", "--replace")
    assert formats.read(folder / "keeper.zip").content_hash == SoftPrompt(matrix(1)).content_hash


# remove


def test_remove_asks_unless_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--yes" in refused("remove", "keeper")
    assert (folder / "keeper.zip").is_file()
    monkeypatch.setattr("sordino.cli.console.is_interactive", lambda: True)
    assert run("remove", "keeper", input="n\n").exit_code == 1
    assert (folder / "keeper.zip").is_file()
    assert run("remove", "keeper", input="y\n").exit_code == 0
    assert not (folder / "keeper.zip").exists()
    assert (folder / ".trash" / "keeper.zip").is_file()


def test_remove_removes_all_or_none(folder: Path) -> None:
    for seed, name in enumerate(("v (1)", "v(1)")):
        formats.write(SoftPrompt(matrix(seed + 1)), folder / f"{name}.zip")
    before = contents(folder)
    assert "no soft prompt" in refused("remove", "--yes", "keeper", "nothing")
    assert contents(folder) == before
    # The second is only called v-1-2 because of the first.
    ok("remove", "--yes", "v-1", "v-1-2", "v-1")
    assert [path.name for path in folder.glob("*.zip")] == ["keeper.zip"]


# edit


def test_edit_changes_what_it_is_told_to(folder: Path) -> None:
    text = ok("edit", "keeper", "--description", "Salt.", "--tags", "sea, night", "--rating", "mature", "--author", "")
    assert "tags: sea, night" in text
    assert "author: (none)" in text
    there = formats.read(folder / "keeper.zip")
    assert there.content_hash == SoftPrompt(matrix()).content_hash
    changed = SoftPrompt(matrix(), KNOWN).with_metadata(
        description="Salt.", tags=("sea", "night"), rating="mature", author=""
    )
    assert there.metadata == changed.metadata


def test_edit_refuses(folder: Path) -> None:
    before = contents(folder)
    assert "nothing to change" in refused("edit", "keeper")
    assert "--rating" in refused("edit", "keeper", "--rating", "cosy")
    np.save("bare.npy", matrix())
    assert "only a native .zip" in refused("edit", "bare.npy", "--author", "x")
    assert contents(folder) == before
