"""What a person had: a saved web page given by name; its tags and `&amp;` were learned. And books in other formats."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from sordino.errors import DataError, MissingExtra
from sordino.texts.reading import read_pieces

PAGE = """<!DOCTYPE html>
<html><head><title>Log</title><style>p{margin:0}</style><script>let x = "<p>no</p>";</script></head><body>
<h1>Log</h1><p class="entry">The bread is <b>ha</b>rd &amp; dry,
so I had it with&nbsp;soup.</p><hr><p>Wind.<br>Sea.</p><!-- no --><p hidden>no</p><p style="display: none">no</p>
<p style="margin-top: 99999999em">Caf\u00e9.</p><ul><li>one</li><li>two</li></ul><noscript>no</noscript></body></html>
"""
TEXT = "Log\n\nThe bread is hard & dry, so I had it with soup.\n\nWind.\nSea.\n\nCafé.\n\n  * one\n  * two\n"


@pytest.mark.parametrize("name", ["log.html", "log.HTM", "log.xhtml", "log.txt", "log"])
def test_a_page_is_read_as_a_browser_shows_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(PAGE, encoding="utf-8")
    result = read_pieces([path])
    assert [piece.text.replace("\u00a0", " ") for piece in result.pieces] == [TEXT]
    assert result.notes == ("HTML read as the text that a browser shows, files: 1",)


def test_xhtml_and_what_is_in_front_of_a_page(tmp_path: Path) -> None:
    for front in ('<?xml version="1.0" encoding="utf-8"?>\n', "\ufeff\n<!-- saved -->\n", "<!---->" * 500):
        (tmp_path / "page").write_text(f"{front}<html><body><p>Caf\u00e9 &lt;3</p></body></html>", encoding="utf-8")
        assert read_pieces([tmp_path / "page"]).pieces[0].text == "Café <3\n"


@pytest.mark.parametrize("text", ["Write <html> at the top.\n", "<hr> and <p>\n", "<!---->" * 600])
def test_a_text_with_tags_is_a_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    assert read_pieces([tmp_path / "a.md"]).pieces[0].text == text


def test_a_page_of_many_levels_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<html>" + "<font>x " * 700, encoding="utf-8")
    assert read_pieces([tmp_path / "a.html"]).pieces[0].text.split() == ["x"] * 700


def test_in_a_folder_pages_are_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "a.txt").write_text("Once.", encoding="utf-8")
    assert read_pieces([tmp_path]).notes == ("files of other kinds skipped (.html): 1; HTML is read where it is named",)


def test_without_the_extra_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inscriptis", None)
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    with pytest.raises(MissingExtra, match=r"pip install 'sordino\[texts\]'"):
        read_pieces([tmp_path / "a.html"])


@pytest.mark.parametrize(
    ("name", "member", "content", "told"),
    [
        (
            "b.epub",
            "mimetype",
            "application/epub+zip",
            "an EPUB book; expected plain text; make text of it, for example: pandoc b.epub",
        ),
        ("b.odt", "mimetype", "application/vnd.oasis.opendocument.text", "pandoc b.odt"),
        ("b.ods", "mimetype", "application/vnd.oasis.opendocument.spreadsheet", "an ODS spreadsheet"),
        (
            "b.docx",
            "word/document.xml",
            "<w/>",
            "a Word document (docx); expected plain text; make text of it, for example: pandoc b.docx",
        ),
        ("b.xlsx", "xl/workbook.xml", "<w/>", "save the sheet as CSV"),
        ("b.zip", "a.txt", "Once.", "a zip archive"),
    ],
)
def test_documents_in_zips_are_refused_with_a_way_on(
    tmp_path: Path, name: str, member: str, content: str, told: str
) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr(member, content)
    with pytest.raises(DataError) as caught:
        read_pieces([tmp_path / name])
    assert told in caught.value.message


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"%PDF-1.7", "a PDF; expected plain text; make text of it, for example: pdftotext ./-b.bin b.txt"),
        (b"{\\rtf1", "pandoc"),
        (b"\xd0\xcf\x11\xe0", "an old Word document"),
        (b"PAR1", "a Parquet table"),
        (b"SQLite format 3\x00", "an SQLite database"),
        (b"\x1f\x8b", "unpack it first"),
        (b"x" * 60 + b"BOOKMOBI", "a Kindle book"),
    ],
)
def test_other_documents_are_refused_with_a_way_on(tmp_path: Path, head: bytes, told: str) -> None:
    (tmp_path / "-b.bin").write_bytes(head + b" rest")
    with pytest.raises(DataError) as caught:
        read_pieces([tmp_path / "-b.bin"])
    assert told in caught.value.message
