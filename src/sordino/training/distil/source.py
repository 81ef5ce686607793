"""The long text that is to be distilled: words, text files, character cards, lorebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sordino.errors import BadInput, DataError
from sordino.texts.cards import SIGNATURE, card_of, document_of, filled, lore_of
from sordino.texts.files import cleaned, read_text, reading

_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class LongText:
    """name, first_message: of a character, "" where the text is of none."""

    text: str
    name: str = ""
    first_message: str = ""


def read_source(paths: Sequence[Path], words: str = "") -> LongText:
    """All of it as one text, a blank line between its parts; the files of a folder by their names.

    Raises DataError, BadInput, MissingExtra.
    """
    files = [file for path in paths for file in (_files_in(path) if path.is_dir() else [path])]
    parts = [LongText(words.strip()), *(_read(file) for file in files)]
    characters = [part for part in parts if part.name]
    if len(characters) > 1:
        names = ", ".join(part.name for part in characters)
        raise BadInput("several character cards", where="TEXT", got=names, do="distil one at a time")
    text = "\n\n".join(part.text for part in parts if part.text)
    if not text:
        raise DataError("there is no text to distil", where=", ".join(map(str, paths)) or "TEXT")
    return replace(characters[0], text=text) if characters else LongText(text)


def _files_in(folder: Path) -> list[Path]:
    with reading(folder):
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _read(path: Path) -> LongText:
    if not path.is_file():
        # Opening a pipe waits for whoever writes to it.
        raise DataError("is neither a file nor a folder", where=path)
    with reading(path), path.open("rb") as file:
        is_picture = file.read(len(SIGNATURE)) == SIGNATURE
    if not is_picture and path.suffix.lower() != ".json":
        return LongText(cleaned(read_text(path), path)[0].strip())
    try:
        return _character(path)
    except BadInput as error:
        # What is too large is of the right kind.
        expected = error.expected if error.got else "a text, a character card or a lorebook"
        raise DataError(error.what, where=path, expected=expected, got=error.got, do=error.do) from None


def _character(path: Path) -> LongText:
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise BadInput("too large", expected=f"at most {_MOST_BYTES >> 20} MiB", got=f"{size >> 20}")
    content = path.read_bytes()
    document = document_of(content)
    # It may have a name and a description, as a card does.
    if isinstance(document, dict) and isinstance(document.get("entries"), dict | list):
        return LongText(filled(lore_of(document).text, ""))
    card = card_of(content)
    text = "\n\n".join(filter(None, (card.text, card.lore.text)))
    return LongText(filled(text, card.name), card.name, filled(card.greetings[0], card.name) if card.greetings else "")


def files_and_words(given: Sequence[str]) -> tuple[tuple[Path, ...], str]:
    """What was given as TEXT: files that exist, and words. Raises BadInput for what is neither."""
    files = [text for text in given if _is_file(text)]
    words = [text for text in given if text not in files]
    for text in words:
        # A single word is a misspelt file name.
        if len(text.split()) < 2:
            raise BadInput(
                "no such file", where=text, do="check the spelling, or give a text of several words in quotes"
            )
    return tuple(map(Path, files)), "\n\n".join(words)


def _is_file(text: str) -> bool:
    try:
        # "" would be the working directory.
        return text != "" and Path(text).exists()
    except (OSError, ValueError):
        # Longer than a name can be.
        return False
