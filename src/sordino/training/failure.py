"""What ended a training run, as a file: another program shows it in words of its own and searches no log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sordino.errors import SordinoError
from sordino.storage import write_bytes

FILE = "error.json"


@dataclass(frozen=True)
class Failure:
    """The parts of a SordinoError. settings: the names of those that it speaks of; in its texts they are flags (`--row-tokens`)."""

    what: str
    where: str = ""
    expected: str = ""
    got: str = ""
    do: str = ""
    settings: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: Exception) -> Failure:
        if isinstance(error, SordinoError):
            settings = tuple(dict.fromkeys(_settings_in(f"{error.where} {error.what} {error.do}")))
            return cls(error.what, error.where, error.expected, error.got, error.do, settings)
        if isinstance(error, OSError) and error.filename is not None:
            return cls(error.strerror or type(error).__name__, str(error.filename))
        return cls(f"{type(error).__name__}: {error}")

    @property
    def message(self) -> str:
        """On one line."""
        return SordinoError(self.what, where=self.where, expected=self.expected, got=self.got, do=self.do).message

    def write(self, path: Path) -> None:
        """Atomically. Raises StorageError."""
        write_bytes(path, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> Failure | None:
        """None where there is no such file, or it is no failure."""
        try:
            stored = json.loads(path.read_bytes())
            failure = cls(**{**stored, "settings": tuple(stored["settings"])})
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        texts = (failure.what, failure.where, failure.expected, failure.got, failure.do, *failure.settings)
        return failure if all(isinstance(text, str) for text in texts) else None


@contextmanager
def recorded(path: Path | None) -> Iterator[None]:
    """Whatever ends the block is written to `path` too, if there is one."""
    try:
        yield
    except Exception as error:
        if path is not None:
            Failure.of(error).write(path)
        raise


def _settings_in(text: str) -> list[str]:
    words = (word.strip(",.;:()'\"`") for word in text.split())
    return [word.removeprefix("--").partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
