"""Run commands as a user types them, on a library with one soft prompt in it."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import sordino.cli
from sordino.cli import main
from sordino.library.library import Library
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.prompt_files import matrix

# A module that is first imported while a test has replaced a function would keep the replacement for good.
for _module in pkgutil.iter_modules(sordino.cli.__path__):
    importlib.import_module(f"sordino.cli.{_module.name}")
importlib.import_module("sordino.models.catalogue")

KNOWN = Metadata(
    name="The Keeper",
    author="Ines",
    description="Fog, oil and the turning light.",
    supported=("org/small",),
    base=BaseRef(id="org/small", family="llama", d_model=8, fingerprint="f" * 64),
    placement="start",
    licence="CC-BY-4.0",
    tags=("sea", "diary"),
    rating="general",
    training={"steps": 60, "learning_rate": 0.3},
    heldout={"nll": {"soft_prompt": 4.2, "none": 4.5}},
    samples=({"prompt": "At dusk", "without": "it was fine.", "with": "the lamp was trimmed."},),
)


def run(*args: object, **more: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], **more)  # type: ignore[arg-type]


def done(*args: object, **more: object) -> Result:
    """What a command that succeeds prints."""
    result = run(*args, **more)
    assert result.exit_code == 0, result.output
    return result


def ok(*args: object) -> str:
    return done(*args).output


def refused(*args: object) -> str:
    """The one line of a command that refuses its input."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def library_with_keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's folder. The current folder is an empty one beside it."""
    made, here = tmp_path / "library", tmp_path / "here"
    for each in (made, here):
        each.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("SORDINO_LIBRARY", str(made))
    Library([made]).add(SoftPrompt(matrix(), KNOWN), name="keeper")
    return made
