"""Files that are not plain text: recognized by their first bytes, and refused with a way to convert them."""

from __future__ import annotations

import shlex
from pathlib import Path

from sordino.errors import DataError

_PANDOC = "pandoc {} -t plain --wrap=none -o {}"
_DECOMPRESS = "unpack it first"
_EXPORT = "export its rows as JSONL or CSV"
_MAGIC = (
    (b"%PDF", "a PDF", "pdftotext {} {}"),
    (b"{\\rtf", "an RTF document", _PANDOC),
    (b"\xd0\xcf\x11\xe0", "an old Word document", "save it as plain text in LibreOffice or Word"),
    (b"\x1f\x8b", "a gzip archive", _DECOMPRESS),
    (b"BZh", "a bzip2 archive", _DECOMPRESS),
    (b"\xfd7zXZ\x00", "an xz archive", _DECOMPRESS),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", _DECOMPRESS),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _DECOMPRESS),
    (b"Rar!\x1a\x07", "a RAR archive", _DECOMPRESS),
    (b"PAR1", "a Parquet table", _EXPORT),
    (b"ARROW1", "an Arrow table", _EXPORT),
    (b"SQLite format 3\x00", "an SQLite database", _EXPORT),
)
# Zip formats, by the name of a member in the first bytes.
_ZIPS = (
    (b"mimetypeapplication/epub+zip", "an EPUB book", _PANDOC),
    (b"mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "an ODS spreadsheet", _EXPORT),
    (b"mimetypeapplication/vnd.oasis.opendocument", "an OpenDocument text (odt)", _PANDOC),
    (b"word/", "a Word document (docx)", _PANDOC),
    (b"xl/", "an Excel workbook (xlsx)", "save the sheet as CSV in UTF-8"),
    (b"ppt/", "a PowerPoint presentation (pptx)", "copy its text into a plain text file"),
)
_BY_SUFFIX = {
    ".epub": ("an EPUB book", _PANDOC),
    ".docx": ("a Word document (docx)", _PANDOC),
    ".odt": ("an OpenDocument text (odt)", _PANDOC),
    ".xlsx": ("an Excel workbook (xlsx)", "save the sheet as CSV in UTF-8"),
}


def refuse_foreign(head: bytes, path: Path) -> None:
    """Raise DataError, with the command that makes text of it, for another program's document, archive or table."""
    for magic, kind, do in _MAGIC:
        if head.startswith(magic):
            raise _refusal(kind, do, path)
    if head[60:68] == b"BOOKMOBI":
        raise _refusal("a Kindle book (mobi, azw)", "ebook-convert {} {}", path)
    if head.startswith(b"PK\x03\x04"):
        known = next(((kind, do) for part, kind, do in _ZIPS if part in head), None)
        kind, do = known or _BY_SUFFIX.get(path.suffix.lower(), ("a zip archive", _DECOMPRESS))
        raise _refusal(kind, do, path)


def _refusal(kind: str, do: str, path: Path) -> DataError:
    if "{}" in do:
        source = f"./{path.name}" if path.name.startswith("-") else path.name
        do = f"make text of it, for example: {do.format(shlex.quote(source), shlex.quote(path.stem.lstrip('-') + '.txt'))}"
    return DataError(f"this is {kind}", where=path, expected="plain text", do=do)
