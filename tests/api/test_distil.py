"""`sordino.distil`: a long text in, a soft prompt out."""

from __future__ import annotations

from pathlib import Path

import pytest

import sordino
from tests.training.distil.lessons import WORDS, small_config


def test_words_and_files_become_a_soft_prompt(model: sordino.Model, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("the sea")
    config = small_config(tmp_path)
    settings = {"tokens": 3, "continuations": 16, "length": 6, "steps": 4, "batch": 3, "openings": config.openings}
    made = sordino.distil(model, [WORDS, notes], out=tmp_path / "v.zip", author="Ada", **settings)
    assert made.report is not None
    assert made.report.distilled is not None
    assert made.report.distilled.text_tokens == len(model.base.encode(f"{WORDS}\n\nthe sea"))
    assert sordino.load(made.file).metadata.author == "Ada"
    with pytest.raises(sordino.SordinoError, match="unknown setting"):
        sordino.distil(model, WORDS, out=tmp_path / "w.zip", row_tokens=3)
