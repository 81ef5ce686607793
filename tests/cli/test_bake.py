"""bake, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sordino import formats
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.cli.commands import contents, ok, refused, run
from tests.cli.tiny_setting import drop_voice
from tests.prompt_files import matrix
from tests.tiny_models import tiny_gguf


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    library, folder = tmp_path / "library", tmp_path / "here"
    for one in (library, folder):
        one.mkdir()
    drop_voice(library / "Sea Fog (2).zip", seed=1)
    held = Metadata(name="oil", attention=PromptAttention(hold=64))
    formats.write(SoftPrompt(matrix(2, 3, 32), held), library / "oil.zip")
    drop_voice(library / "wide.zip", seed=3, width=64)
    tiny_gguf(folder / "tiny.gguf")
    monkeypatch.chdir(folder)
    return folder


def test_two_soft_prompts_in_a_file_and_in_a_folder(here: Path) -> None:
    said = run("bake", "Sea Fog (2)", "oil", "--model", "tiny.gguf", "--out", "baked.gguf", "--json")
    texts = json.loads(said.stdout)["texts"]
    assert texts["oil"] == "<|oil:0|><|oil:1|><|oil:2|>"
    assert texts["Sea-Fog-2"].startswith("<|Sea-Fog-2:0|>")
    assert "oil asks for hold 64, which a baked model does not keep" in said.stderr
    shown = ok("bake", "oil", "--model", "tiny.gguf", "--out", "baked", "--always")
    assert "<|oil:0|><|oil:1|><|oil:2|>" in shown
    tokenizer = AutoTokenizer.from_pretrained(here / "baked")
    assert tokenizer.decode(tokenizer("the")["input_ids"]) == "<|oil:0|><|oil:1|><|oil:2|>the"


def test_what_is_refused(here: Path) -> None:
    before = contents(here)
    for arguments, reason in (
        (("oil", "--model", "tiny.gguf"), "--out"),
        (("oil", "--model", "tiny.gguf", "--out", "nowhere/x.gguf"), "the folder does not exist"),
        (("oil", "--model", "tiny.gguf", "--out", "tiny.gguf"), "there is a file of this name"),
        (("oil", "--model", "tiny.gguf", "--out", "x.gguf", "--always"), "--always"),
        (
            ("oil", "--model", "tiny.gguf", "--out", "oil.zip"),
            "expected NAME.gguf, or the name of a folder, got oil.zip",
        ),
        (("oil", "--model", "tiny.gguf", "--out", "oil.kv.zip"), "the name of a soft prompt's file"),
        (("wide", "--model", "tiny.gguf", "--out", "x.gguf"), "does not fit"),
        (("oil", "oil", "--model", "tiny.gguf", "--out", "x.gguf"), "given twice"),
        (("nobody", "--model", "tiny.gguf", "--out", "x.gguf"), "nobody"),
    ):
        assert reason in refused("bake", *arguments)
    assert contents(here) == before
