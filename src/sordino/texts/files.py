"""Files on disk to clean text: which files, in which order, and what is refused.

Texts are UTF-8, with or without a byte order mark. Anything else is refused, with the place and a way to convert it. It is never
guessed: after a wrong guess a soft prompt learns damaged characters, and it goes unnoticed.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ftfy

from sordino.errors import DataError
from sordino.texts.foreign import refuse_foreign
from sordino.texts.web_pages import SUFFIXES

TEXT = frozenset({".txt", ".text", ".md", ".markdown"})
RECORDS = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv"})
MAX_BYTES = 1 << 30  # of a file that is read whole
# Bytes: of a larger text only parts are in memory, each about as large as a novel.
WHOLE = 16 << 20
PART = 1 << 20

_SAMPLE = 1 << 16


@dataclass(frozen=True)
class TextFile:
    """A file to read and its name in reports: relative to the given folder, never absolute."""

    path: Path
    name: str


def find_files(paths: Sequence[Path]) -> tuple[list[TextFile], list[str]]:
    """Files in the order given, folders walked recursively and sorted, hidden entries skipped; and notes for the user.

    A file that is named is read whatever its extension; in a folder only the known extensions are.
    Raises DataError for a path that does not exist or is not a file, and if nothing is left to read.
    """
    found: list[TextFile] = []
    others: Counter[str] = Counter()
    for path in paths:
        if path.is_dir():
            for inside in _walk(path):
                suffix = inside.suffix.lower()
                if suffix in TEXT | RECORDS:
                    found.append(TextFile(inside, inside.relative_to(path).as_posix()))
                else:
                    others[suffix or "no extension"] += 1
        else:
            found.append(TextFile(path, path.name))
    files = _once(found)
    if not files:
        raise DataError(
            "no text files found",
            where=", ".join(map(str, paths)),
            expected=f"files that end in {', '.join(sorted(TEXT | RECORDS))}",
        )
    notes = []
    if len(files) < len(found):
        notes.append(f"given more than once, read once: {len(found) - len(files)} of {len(found)} files")
    if others:
        named = "; HTML is read where it is named" * any(suffix in SUFFIXES for suffix in others)
        notes.append(f"files of other kinds skipped ({', '.join(sorted(others))}): {others.total()}{named}")
    return files, notes


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot be read ({error.strerror})", where=error.filename) from error

    inside = []
    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_run(Path(where, name))]
        inside += [Path(where, name) for name in names if not name.startswith(".")]
    yield from sorted(inside, key=lambda path: path.relative_to(folder).parts)


def _is_run(folder: Path) -> bool:
    """Whether the folder is of a training run, a group of runs or a sweep: its records are not the user's texts."""
    if os.path.isfile(folder / "sweep.json") or (folder.suffix == ".run" and os.path.isfile(folder / "settings.json")):
        return True
    records = ("settings.json", "group.json", "metrics.jsonl")
    return os.path.isfile(folder / "checkpoint.safetensors") and any(os.path.isfile(folder / name) for name in records)


def _once(found: list[TextFile]) -> list[TextFile]:
    """Each file once; a name that two different files share gets a number."""
    files: dict[Path, TextFile] = {}
    taken: Counter[str] = Counter()
    for file in found:
        # Path.resolve() would raise for a link that leads to itself; reading it gives the better error.
        real = Path(os.path.realpath(file.path))
        if real in files:
            continue
        taken[file.name] += 1
        name = file.name if taken[file.name] == 1 else f"{file.name} ({taken[file.name]})"
        files[real] = TextFile(file.path, name)
    return list(files.values())


def check_text(path: Path) -> None:
    """Raise DataError for what cannot be text, as far as the beginning of the file shows it."""
    with reading(path), _opened(path):
        pass


def read_text(path: Path) -> str:
    """The whole file as text without its byte order mark. Raises DataError."""
    with reading(path), _opened(path) as file:
        _check_size(file, path)
        offset = file.tell()
        return _decoded(file.read(), path, offset)


def read_parts(path: Path) -> Iterator[str]:
    """The text in parts of about PART bytes, each cut after a paragraph, else a line, else a word. Raises DataError."""
    with reading(path), _opened(path) as file:
        offset, rest = file.tell(), b""
        while data := file.read(PART):
            data = rest + data
            cut = _end_of_part(data)
            if cut:
                yield _decoded(data[:cut], path, offset)
            offset, rest = offset + cut, data[cut:]
        if rest:
            yield _decoded(rest, path, offset)


def _end_of_part(data: bytes) -> int:
    """Where to cut: in the second half, if it can be; 0 for nowhere."""
    for border in (b"\n\n", b"\n", b" "):
        at = data.rfind(border, len(data) // 2)
        if at >= 0:
            return at + len(border)
    return 0


def read_lines(path: Path, counts: Counter[str] | None = None) -> Iterator[tuple[int, str]]:
    """(line number from 1, line with its line end), one line in memory at a time. Raises DataError.

    A file that has carriage returns alone is read whole, and counted under "carriage".
    """
    with reading(path), _opened(path) as file:
        offset = file.tell()
        sample = file.read(_SAMPLE)
        file.seek(offset)
        lines: Iterable[bytes] = file
        if b"\r" in sample.rstrip(b"\r") and b"\n" not in sample:
            _check_size(file, path)
            lines = file.read().replace(b"\r\n", b"\n").replace(b"\r", b"\n").splitlines(keepends=True)
            if counts is not None:
                counts["carriage"] += 1
        for number, line in enumerate(lines, start=1):
            yield number, _decoded(line, path, offset)
            offset += len(line)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise what the system says of an unreadable file or folder as DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("no such file or folder", where=path, do="check the spelling") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=path) from error


def _opened(path: Path) -> BinaryIO:
    """An open regular file whose beginning looks like UTF-8 text, positioned after a byte order mark."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError("is neither a file nor a folder", where=path)
    file = path.open("rb")
    try:
        head = file.read(_SAMPLE)
        refuse_foreign(head, path)
        if wide := _wide_encoding(head):
            raise _not_utf8(path, path, wide, f"probably {wide}")
        file.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    except BaseException:
        file.close()
        raise
    return file


def _check_size(file: BinaryIO, path: Path) -> None:
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise DataError(
            "the file is too large to be read whole",
            where=path,
            expected=f"at most {MAX_BYTES:,} bytes",
            got=f"{size:,}",
            do="save it as plain text, JSONL or CSV, which are read in parts",
        )


def _wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32, by byte order mark or by where the NUL bytes of mostly Latin text fall; "" if neither."""
    for mark, encoding in (
        (b"\xff\xfe\x00\x00", "UTF-32LE"),
        (b"\x00\x00\xfe\xff", "UTF-32BE"),
        (b"\xff\xfe", "UTF-16LE"),
        (b"\xfe\xff", "UTF-16BE"),
    ):
        if head.startswith(mark):
            return encoding
    pairs = len(head) // 2
    for first, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        nul, other = head[first::2].count(0), head[1 - first :: 2].count(0)
        if pairs and nul > 0.4 * pairs and other < 0.1 * pairs:
            return encoding
    return ""


def _decoded(data: bytes, path: Path, offset: int) -> str:
    """Strict UTF-8. `offset`: where in the file `data` begins."""
    if b"\0" in data:
        raise DataError(
            "the text holds NUL bytes",
            where=f"{path}, byte {offset + data.index(0):,}",
            expected="plain text",
            do="this is a binary or a damaged file",
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = _probable_encoding(data)
        where = f"{path}, byte {offset + error.start:,} (0x{data[error.start]:02x})"
        got = f"probably {encoding}" if encoding else "another encoding, or a damaged file"
        raise _not_utf8(path, where, encoding or "ITS_ENCODING", got) from None


def _probable_encoding(data: bytes) -> str:
    """A guess, for the error only; "" where the bytes are not single-byte Western text."""
    if len(re.findall(rb"[\xc3\xe2][\x80-\xbf]", data)) > len(re.findall(rb"[\x80-\xff]", data)) / 4:
        return ""  # mostly valid UTF-8 with a damaged place
    high = len(re.findall(rb"[\x80-\xff]", data))
    return "WINDOWS-1252" if high < 0.15 * len(data) else ""


def _not_utf8(path: Path, where: object, encoding: str, got: str) -> DataError:
    convert = f"iconv -f {encoding} -t UTF-8 {shlex.quote(path.name)} > {shlex.quote(f'utf8-{path.name}')}"
    do = f"save it as UTF-8 in an editor, or run: {convert}"
    return DataError("the text is not UTF-8", where=where, expected="UTF-8", got=got, do=do)


def cleaned(text: str, where: object) -> tuple[str, bool]:
    """(text with Unix line ends and its mojibake undone, whether characters were repaired).

    Only wrongly decoded characters (`cafÃ©`) are repaired; quotes, ligatures, widths and entities stay as they are. It works line
    by line, since only parts of a text may be damaged. Raises DataError for a NUL, which no tokenizer was trained on.
    """
    if "\0" in text:
        raise DataError("the text holds NUL characters", where=where, do="this is a binary or a damaged file")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii():
        return text, False
    # JSON can hold halves of UTF-16 pairs, which no tokenizer accepts.
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    mended = "\n".join(line if line.isascii() else ftfy.fix_encoding(line) for line in whole.split("\n"))
    return mended, mended != text


_GUTENBERG_START = re.compile(
    r"^(\*{3} ?START OF (THE|THIS) PROJECT GUTENBERG .*|\*END\*? ?THE SMALL PRINT!? .*)$", re.MULTILINE
)
_GUTENBERG_END = re.compile(
    r"^(\*{3} ?END OF (THE|THIS) PROJECT GUTENBERG |End of (the |this )?Project Gutenberg)", re.MULTILINE
)
_GUTENBERG_CREDIT = re.compile(r"\s*(Produced by|E-text prepared by|This etext was prepared by)\b.*?\n\s*\n", re.DOTALL)


def without_gutenberg(text: str) -> str:
    """The text without Project Gutenberg's header, credits and licence; unchanged if there are none."""
    start = _GUTENBERG_START.search(text)
    if start is None:
        return text
    body = text[start.end() :]
    end = _GUTENBERG_END.search(body)
    body = body[: end.start()] if end else body
    credit = _GUTENBERG_CREDIT.match(body)
    return (body[credit.end() :] if credit else body).strip("\n") + "\n"
