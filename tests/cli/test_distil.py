"""sordino distil, as a user types it: on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sordino import formats
from sordino.training import execute, loop
from tests.cli.commands import done, refused, run
from tests.log_texts import stopping
from tests.tiny_models import tiny_base
from tests.training.distil.lessons import OPENINGS, WORDS

QUICK = ("--tokens", 3, "--continuations", 16, "--length", 6, "--steps", 4, "--batch", 3, "--openings", "openings.txt")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a text and openings; whatever model is asked for is tiny."""
    base = tiny_base("llama", dtype=torch.float32)
    monkeypatch.setattr("sordino.models.base_model.load", lambda name, **_: base)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keeper.txt").write_text(WORDS)
    (tmp_path / "openings.txt").write_text("\n".join(OPENINGS))
    return tmp_path


def test_a_file_becomes_a_soft_prompt(here: Path) -> None:
    result = done("distil", "keeper.txt", *QUICK, "--licence", "CC0-1.0")
    assert "of what the text does" in result.output
    made = formats.read(here / "keeper.zip")
    assert (made.n_tokens, made.metadata.name, made.metadata.licence) == (3, "keeper", "CC0-1.0")
    assert refused("distil", "keeper.txt", *QUICK).startswith("error:")


def test_words_become_one_and_json_is_alone_on_standard_output(here: Path) -> None:
    result = done("distil", WORDS, *QUICK, "--out", "words.zip", "--json")
    found = json.loads(result.stdout)
    assert set(found["distilled"]) == {"kept", "interval", "text_tokens", "agreement", "agreement_without"}
    assert Path(found["file"]).is_file()


@pytest.mark.parametrize("command", ["distil", "train"])
def test_a_stopped_run_goes_on(command: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(execute, "train", stopping(loop.train, after=1))
        result = run("distil", "keeper.txt", *QUICK)
    assert "Go on with: sordino train --resume" in result.output
    assert not (here / "keeper.zip").exists()
    result = done(command, "--resume", "keeper.run")
    assert (here / "keeper.zip").is_file()


def test_what_is_wrong_is_said_first() -> None:
    assert "no such file" in refused("distil", "keper.txt")
    assert "give --out NAME.zip" in refused("distil", "Be brief and kind.")
    assert "there is no text to distil" in refused("distil")
    assert "expected NAME.kv.zip" in refused("distil", "keeper.txt", "--kind", "kv", "--out", "keeper.zip")
    assert "a run is resumed with the settings it began with" in refused("distil", "--resume", ".", "--tokens", 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("short.txt",), "no longer than the soft prompt"),
        (("keeper.txt", "--openings", "few.txt"), "--openings: too few;"),
        (("keeper.txt", "--length", 4096), "does not fit the model's context"),
    ],
)
def test_a_text_that_is_refused_leaves_nothing_behind(here: Path, arguments: tuple[object, ...], words: str) -> None:
    (here / "short.txt").write_text("the sea")
    (here / "few.txt").write_text("the ship")
    before = sorted(here.iterdir())
    assert words in refused("distil", *arguments, "--tokens", 3)
    assert sorted(here.iterdir()) == before
