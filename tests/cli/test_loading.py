"""What commands say before a base model is made ready."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from sordino.cli import loading
from sordino.models import files
from tests.tiny_models import tiny_gguf


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    return tiny_gguf(tmp_path / "voice.gguf")


@pytest.mark.parametrize("answer", [True, False])
def test_a_quantised_file_is_converted_after_a_yes(
    gguf_file: Path, answer: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def confirm(question: str, *, abort: bool, **_: object) -> bool:
        asked.append(question)
        if not answer and abort:
            raise click.Abort
        return answer

    monkeypatch.setattr(loading, "is_interactive", lambda: True)
    monkeypatch.setattr(click, "confirm", confirm)
    if answer:
        assert loading.loaded_model(str(gguf_file), None, "cpu").d_model == 32
    else:
        with pytest.raises(click.Abort):
            loading.loaded_model(str(gguf_file), None, "cpu")
    assert asked == ["Convert it?"]
    assert (files.conversion_of(files.resolve(str(gguf_file))) is None) is answer
    said = capsys.readouterr().err
    assert "is quantised" in said
    assert "of memory" in said


def test_without_a_terminal_it_is_said_and_done_and_said_once(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "is_interactive", lambda: False)
    for expected in (True, False):
        loading.loaded_model(str(gguf_file), None, "cpu")
        assert ("is quantised" in capsys.readouterr().err) is expected
