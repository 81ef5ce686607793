"""People misspelt a soft prompt, a file or a model and waited 10 to 23 seconds for the error, until a model was loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import library_with_keeper, refused, run
from tests.waiting import WAIT

TEXT = "The lamp was trimmed and the log was written. " * 60
# Faults that are found without PyTorch, whose import takes seconds; and what the error names.
QUICK = [
    ("generate", "x", "-p", "nope"),
    ("generate", "x", "-p", "keeper", "-m", "./nope"),
    ("generate", "x", "-m", "./nope"),
    ("generate", "--batch", "nope.jsonl"),
    ("compare", "x", "-p", "keeper", "-p", "nope"),
    ("compare", "x", "-p", "keeper", "-m", "./nope"),
    ("evaluate", "nope", "--heldout", "text.txt"),
    ("evaluate", "keeper", "--heldout", "nope.txt"),
    ("evaluate", "keeper", "--heldout", "text.txt", "-m", "./nope"),
    ("evaluate", "keeper", "--heldout", "text.txt", "--off-domain", "nope.txt"),
    ("evaluate", "keeper", "--heldout", "text.txt", "--excerpts", "nope.txt"),
    ("inspect", "nope"),
    ("inspect", "keeper", "--text", "nope.txt"),
    ("inspect", "keeper", "-m", "./nope"),
    ("prune", "nope", "--data", "text.txt"),
    ("prune", "keeper", "--data", "text.txt", "-m", "./nope"),
    ("blend", "nope", "keeper", "--heldout", "text.txt"),
    ("blend", "keeper", "keeper2", "--heldout", "text.txt", "-m", "./nope"),
    ("mixture", "fit", "--components", "nope", "--data", "text.txt", "--out", "x.mix.zip"),
    ("mixture", "fit", "--components", "keeper", "--data", "text.txt", "--out", "x.mix.zip", "-m", "./nope"),
    ("distil", "nope.txt", "--out", "x.zip"),
    ("distil", "Be brief.", "--out", "x.zip", "--openings", "nope.txt"),
    ("show", "keeper", "-m", "./nope"),
    ("convert", "nope", "x.json", "-m", "smollm2"),
    ("serve", "--port", "0", "-m", "./nope"),
    ("serve", "--port", "0", "-m", "smollm2", "--other-model", "./nope"),
    ("serve", "--port", "0", "-m", "smollm2", "--soft-prompt", "nope"),
    ("ui", "--port", "0", "-m", "./nope"),
]  # fmt: skip
# And a soft prompt of another width than smollm2, which is 576 wide: it was refused after the loading of the model.
WIDE = [
    ("generate", "x", "-p", "keeper"),
    ("compare", "x", "-p", "keeper"),
    ("evaluate", "keeper", "--heldout", "text.txt"),
    ("answers", "keeper", "--heldout", "rows.jsonl"),
    ("inspect", "keeper", "--quick"),
    ("prune", "keeper", "--data", "text.txt"),
    ("blend", "keeper", "keeper2", "--heldout", "text.txt"),
    ("bake", "keeper", "--out", "x.gguf"),
    ("mixture", "fit", "--components", "keeper", "--data", "text.txt", "--out", "x.mix.zip"),
    ("convert", "keeper", "x.json", "-m", "smollm2"),
    ("serve", "--port", "0", "-m", "smollm2", "--soft-prompt", "keeper"),
    ("train", "text.txt", "--out", "x.zip", "--init", "file:keeper"),
    ("sweep", "text.txt", "--out-dir", "made", "--init", "file:keeper"),
]
# And those that need it, but no model.
SLOWER = [
    ("answers", "keeper", "--heldout", "nope.jsonl"),
    ("answers", "keeper", "--heldout", "text.txt"),
    ("train", "text.txt", "--out", "x.zip", "--init", "file:nope"),
    ("train", "nope.txt", "--out", "x.zip"),
    ("sweep", "text.txt", "--out-dir", "made", "--init", "file:nope"),
    ("sweep", "text.txt", "--out-dir", "made", "--model", "smollm2,./nope"),
]
WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from click.testing import CliRunner
from sordino.cli import main
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, arguments)
    print(json.dumps([result.exit_code, result.stderr]))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a text; the library has two soft prompts."""
    library = library_with_keeper(tmp_path, monkeypatch)
    (library / "keeper2.zip").write_bytes((library / "keeper.zip").read_bytes())
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return Path.cwd()


def test_without_pytorch_they_are_found(here: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(QUICK)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=True)
    for arguments, line in zip(QUICK, ended.stdout.splitlines(), strict=True):
        exit_code, said = json.loads(line)
        assert (exit_code, "nope" in said) == (2, True), f"{' '.join(arguments)}: {said}"


@pytest.mark.parametrize("arguments", WIDE, ids=" ".join)
def test_a_soft_prompt_of_other_sizes_is_found_before_a_model_is_loaded(
    here: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": " b"}\n' * 4, encoding="utf-8")
    for module in ("loading", "train", "sweep"):
        monkeypatch.setattr(f"sordino.cli.{module}.loaded_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("sordino.models.description.describe", lambda *_, **__: pytest.fail("a model was read"))
    assert "it is 8 wide" in refused(*arguments)
    assert not Path("made").exists()


@pytest.mark.parametrize("arguments", SLOWER, ids=" ".join)
def test_before_a_model_is_loaded_they_are_found(
    here: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    for module in ("loading", "train", "sweep"):
        monkeypatch.setattr(f"sordino.cli.{module}.loaded_model", lambda *_, **__: pytest.fail("a model was loaded"))
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "nope" in result.stderr or "text.txt" in result.stderr
