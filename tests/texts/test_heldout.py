"""Held-out texts read together with the texts that were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.errors import BadInput, DataError
from sordino.texts.heldout import read_heldout, short_names

STORY = "The lamp was trimmed at dusk and the fog came in over the bar before the boats were home. "


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_short_names_tell_paths_apart() -> None:
    assert short_names([Path("x/keeper/heldout"), Path("x/noir/heldout")]) == ["keeper/heldout", "noir/heldout"]
    assert short_names([Path("a/b.txt")]) == ["b.txt"]


def test_one_set_of_all_paths_or_each_a_set_of_its_own(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / "x.txt", f"{STORY} {folder}") for folder in ("a", "b")]
    whole = read_heldout(paths)
    assert list(whole.sets) == ["a/x.txt, b/x.txt"]
    assert len(whole.pieces) == 2
    apart = read_heldout(paths, apart=True)
    assert [(name, len(pieces)) for name, pieces in apart.sets.items()] == [("a/x.txt", 1), ("b/x.txt", 1)]
    assert apart.training == ()


def test_text_that_was_trained_on_is_reported(tmp_path: Path) -> None:
    held, other = write(tmp_path / "held.txt", STORY * 3), write(tmp_path / "other.txt", "Nothing of it is here. " * 9)
    training = [write(tmp_path / "train.txt", STORY * 5)]
    texts = read_heldout([held, other], training, apart=True)
    assert texts.overlaps
    assert all("held.txt" in line or "of 1 pieces" in line for line in texts.overlaps)
    assert len(texts.training) == 1
    assert read_heldout([], training).sets == {}


def test_a_text_that_is_given_twice_or_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", STORY)
    with pytest.raises(BadInput, match="twice"):
        read_heldout([path, path])
    with pytest.raises(DataError):
        read_heldout([tmp_path / "none.txt"])
