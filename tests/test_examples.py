"""The scripts in examples/ run as they are shown: train, use, convert, each on what the one before it made."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino import formats
from tests.tiny_models import tiny_base

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LOG = "The keeper wrote of the lamp and the sea, and of the ships that went by in the fog. "


def example(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A soft prompt made by the first example on a tiny model, and what the script said."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "texts").mkdir()
    for number in range(6):
        (folder / "texts" / f"{number}.txt").write_text(f"Day {number}. " + LOG * (number + 3))
    patch = pytest.MonkeyPatch()
    base = tiny_base("llama", dtype=torch.float32)
    patch.setattr("sordino.models.base_model.load", lambda name: base)
    said: list[str] = []
    patch.setattr("builtins.print", lambda *parts: said.append(" ".join(map(str, parts))))
    example("train_on_a_folder")(str(folder / "texts"), str(folder / "voice.zip"), "5")
    patch.undo()
    return folder / "voice.zip", "\n".join(said)


def test_train_on_a_folder(trained: tuple[Path, str]) -> None:
    file, said = trained
    assert "split by file" in said
    assert "step 5: validation loss" in said
    assert "step 5: Day" in said
    assert formats.read(file).n_tokens == 20


def test_generate_with_a_prompt(trained: tuple[Path, str], monkeypatch, capsys) -> None:
    base = tiny_base("llama", dtype=torch.float32)
    monkeypatch.setattr("sordino.models.base_model.load", lambda name: base)
    example("generate_with_a_prompt")(str(trained[0]), "The keeper")
    fit, without, with_ = capsys.readouterr().out.split("\nwith")
    assert fit.startswith("fit: it was trained on these very weights")
    assert without.startswith("out: The keeper")
    assert with_.startswith(":    The keeper")


def test_convert_a_file(trained: tuple[Path, str], tmp_path: Path, capsys) -> None:
    example("convert_a_file")(str(trained[0]), str(tmp_path / "peft"), "peft")
    assert "20 virtual tokens of width 32" in capsys.readouterr().out
    assert formats.detect(tmp_path / "peft") == "peft"
    assert (formats.read(tmp_path / "peft").matrix == formats.read(trained[0]).matrix).all()


def test_relations(tmp_path: Path, monkeypatch, capsys) -> None:
    objects = ("the sea", "lamp", "the ship", "keeper", "lamp oil")
    for name, first, count in (("train", 0, 12), ("dev", 20, 6), ("test", 40, 8)):
        lines = [json.dumps({"sub": f"Poe {n}", "obj": objects[n % 5]}) for n in range(first, first + count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    templates = ("[X] was born in [Y] .", "The place of [X] is [Y] .", "[Y] is where [X] was born .")
    file = tmp_path / "templates.jsonl"
    file.write_text("\n".join(json.dumps({"template": t, "weight": w + 1}) for w, t in enumerate(templates)))
    base = tiny_base("llama", dtype=torch.float32)
    monkeypatch.setattr("sordino.models.base_model.load", lambda name: base)
    example("relations")(str(tmp_path), str(file), "3")
    said = capsys.readouterr().out
    for part in (
        "4 candidates, 2 of them of several tokens",
        "templates left out: 1 (words behind [Y]",
        "objects left out: 1 (its tokens begin with another object's)",
        "test: 1 of 8 facts left out",
        "test, 7 facts",
    ):
        assert part in said, part
    lines = (
        "majority",
        "best single template",
        "ensemble of 2 templates",
        "one soft prompt",
        "mixture of 2 soft prompts",
    )
    assert all(any(row.startswith(line) for row in said.splitlines()) for line in lines)


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "train_on_a_folder",
        "generate_with_a_prompt",
        "convert_a_file",
        "relations",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "usage: "),
        (("nowhere", "templates.jsonl"), "error: "),
        (("nowhere", "templates.jsonl", "many"), "usage: "),
    ],
)
def test_relations_refuses_in_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "relations.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == (2 if said == "error: " else 1)
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1
