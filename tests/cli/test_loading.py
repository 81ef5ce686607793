"""What commands say before a base model is made ready."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import torch

from sordino.cli import loading
from sordino.errors import ConfigError
from sordino.models import files
from tests.cli.commands import ok, refused
from tests.tiny_models import tiny, tiny_gguf, tiny_tokenizer


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


def test_layers_are_packed_or_left_on_the_disk() -> None:
    assert [loading.ModelChoice(quantise="int8").layers, loading.ModelChoice(offload=True).layers] == [
        "int8",
        "offload",
    ]
    assert loading.ModelChoice().layers is None
    with pytest.raises(ConfigError, match="--offload: quantised layers are kept in memory; got --quantise too"):
        loading.ModelChoice(quantise="nf4", offload=True).load()


@pytest.mark.parametrize("flags", [["--quantise", "int8"], ["--offload"]])
def test_what_is_for_pytorch_is_not_given_to_llama_cpp(gguf_file: Path, flags: list[str]) -> None:
    said = refused("generate", "x", "--model", gguf_file, "--runner", "gguf", *flags)
    assert "--device, --dtype, --quantise and --offload are for PyTorch" in said


def test_texts_are_continued_with_layers_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    tiny("llama", dtype=torch.float32).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    how = [
        "--model",
        tmp_path / "m",
        "--max-tokens",
        "12",
        "--temperature",
        "0",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    plain = ok("generate", "the keeper", *how)
    assert ok("generate", "the keeper", *how, "--offload") == plain
    assert ok("generate", "the keeper", *how, "--quantise", "int8")
