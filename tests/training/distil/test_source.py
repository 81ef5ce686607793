"""The long text: words, files, cards and lorebooks, as one text."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import pytest

from sordino.errors import BadInput, DataError
from sordino.training.distil.source import LongText, files_and_words, read_source
from tests.texts.test_cards import V1, V2, chunk, picture

BOOK = {"entries": {"0": {"content": "Gulls bite."}, "1": {"content": "x", "disable": True}}}
ABOUT = "You are Ada.\n\nAda keeps the light."


def test_cards_lorebooks_and_texts_become_one_text(tmp_path: Path) -> None:
    card, book, notes = tmp_path / "ada.png", tmp_path / "world.json", tmp_path / "notes.md"
    card.write_bytes(picture(chunk(b"tEXt", b"chara\0" + base64.b64encode(json.dumps(V2).encode()))))
    book.write_text(json.dumps(BOOK))
    notes.write_text("Short sentences.\n")
    read = read_source([card, book, notes], "Be brief.")
    assert read.text == f"Be brief.\n\n{ABOUT}\n\nGulls bite.\n\nShort sentences."
    assert (read.name, read.first_message) == ("Ada", "Good evening, You.")
    assert read_source([notes]) == LongText("Short sentences.")
    assert read_source([tmp_path]).text == f"{ABOUT}\n\nShort sentences.\n\nGulls bite."


def test_a_cards_own_lorebook_belongs_to_it(tmp_path: Path) -> None:
    card = tmp_path / "ada.json"
    card.write_text(json.dumps({"data": {**V1, "character_book": BOOK}}))
    assert read_source([card]).text == f"{ABOUT}\n\nGulls bite."


def test_what_cannot_be_distilled_says_why(tmp_path: Path) -> None:
    card, other, list_, empty = (tmp_path / name for name in ("a.json", "b.json", "c.json", "d.txt"))
    card.write_text(json.dumps(V1))
    other.write_text(json.dumps({**V1, "name": "Bea"}))
    list_.write_text("[1]")
    empty.write_text("\n")
    with pytest.raises(BadInput, match=r"several character cards; got Ada, Bea"):
        read_source([card, other])
    with pytest.raises(DataError, match="the file contains no character"):
        read_source([list_])
    with pytest.raises(DataError, match="no text to distil"):
        read_source([empty])


def test_what_is_too_large_says_how_large_it_may_be(tmp_path: Path) -> None:
    card = tmp_path / "a.json"
    card.write_text(json.dumps({**V1, "description": "sea " * 300_000}))
    with pytest.raises(DataError, match=r"too long with its .* expected at most 1,000,000 characters, got 1,2"):
        read_source([card])
    card.write_text(json.dumps({**V1, "name": "x" * 301}))
    with pytest.raises(DataError, match=r"name is too long; expected at most 300 characters, got 301"):
        read_source([card])


def test_a_lorebook_with_a_name_is_no_character(tmp_path: Path) -> None:
    book = tmp_path / "world.json"
    for entries in ([], {"0": {"content": ""}}, {"0": {"content": "off", "disable": True}}):
        book.write_text(json.dumps({"name": "The World", "description": "All of it.", "entries": entries}))
        with pytest.raises(DataError, match="no text to distil"):
            read_source([book])


def test_what_the_system_does_not_give_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom nothing is refused."""
    (tmp_path / "a.json").write_text(json.dumps(V1))

    def denied(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    for function, named in (("open", tmp_path / "a.json"), ("iterdir", tmp_path)):
        with monkeypatch.context() as patch:
            patch.setattr(Path, function, denied)
            with pytest.raises(DataError, match=f"{re.escape(str(named))}: cannot be read .Permission denied"):
                read_source([named])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_source([tmp_path / "pipe"])


def test_words_are_told_from_names_of_files(tmp_path: Path) -> None:
    notes = tmp_path / "my notes.txt"
    notes.write_text("x")
    assert files_and_words([str(notes), "Be brief.", "Be kind."]) == ((notes,), "Be brief.\n\nBe kind.")
    assert files_and_words(["word " * 2000])[0] == ()
    for text in ("nots.txt", ""):
        with pytest.raises(BadInput, match="no such file"):
            files_and_words([text])
