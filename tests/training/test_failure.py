"""What ended a run is written in parts and read back; what is no failure is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.errors import ConfigError, OutOfMemory
from sordino.training.failure import Failure
from sordino.training.loop import LOWER


def test_an_error_comes_back_with_its_parts(tmp_path: Path) -> None:
    error = ConfigError("out of range", where="--row-tokens", expected="2 to 9", got="the words --seed 5", do="take 4")
    Failure.of(error).write(tmp_path / "error.json")
    failure = Failure.read(tmp_path / "error.json")
    assert failure == Failure("out of range", "--row-tokens", "2 to 9", "the words --seed 5", "take 4", ("row_tokens",))
    assert failure.message == error.message


def test_the_settings_of_advice_are_named() -> None:
    assert Failure.of(OutOfMemory("no memory", do=LOWER)).settings == ("pass_tokens", "batch", "row_tokens", "tokens")


def test_other_exceptions_have_their_words() -> None:
    assert Failure.of(OSError(28, "No space left on device", "/a/b")).message == "/a/b: No space left on device"
    assert Failure.of(ZeroDivisionError("a bug")).message == "ZeroDivisionError: a bug"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"null", b'{"what": 5}', b'{"what": "a"}', b'{"what": "a", "settings": [5]}'),
        *(b"[" * 100_000, b"\xff", b'{"what": "a", "settings": [], "more": 1}'),
    ],
    ids=range(9),
)
def test_what_is_no_failure_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "error.json").write_bytes(content)
    assert Failure.read(tmp_path / "error.json") is None


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert Failure.read(tmp_path / "error.json") is None
