"""The scripts in examples/ run as they are shown: train, use, convert, each on what the one before it made."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import sordino
from sordino import formats
from tests.test_layers import imported_places
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
    patch.setattr("sordino.models.base_model.load", lambda name, **options: base)
    said: list[str] = []
    patch.setattr("builtins.print", lambda *parts: said.append(" ".join(map(str, parts))))
    example("train_on_a_folder")(str(folder / "texts"), str(folder / "voice.zip"), "5")
    patch.undo()
    return folder / "voice.zip", "\n".join(said)


def test_train_on_a_folder(trained: tuple[Path, str]) -> None:
    file, said = trained
    assert "in front of the text" in said
    assert "step 5: validation loss" in said
    assert "step 5: Day" in said
    assert formats.read(file).n_tokens == 20


def test_generate_with_a_prompt(trained: tuple[Path, str], monkeypatch, capsys) -> None:
    base = tiny_base("llama", dtype=torch.float32)
    monkeypatch.setattr("sordino.models.base_model.load", lambda name, **options: base)
    example("generate_with_a_prompt")(str(trained[0]), "The keeper")
    fit, without, with_ = capsys.readouterr().out.split("\nwith")
    assert fit.startswith("fit: it was trained on these very weights")
    assert without.startswith("out: The keeper")
    assert with_.startswith(":    The keeper")


def test_use_with_transformers(trained: tuple[Path, str], monkeypatch, capsys) -> None:
    base = tiny_base("llama", dtype=torch.float32)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda name: base.network)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name: base.tokenizer)
    example("use_with_transformers")("tiny", str(trained[0]), "The keeper", "ships")
    expected = sordino.Model(base).generate(
        ["The keeper", "ships"], sordino.load(trained[0]), max_tokens=60, temperature=0
    )
    shown = capsys.readouterr().out
    assert shown.startswith("The keeper|")
    assert shown == "".join(f"{text}|{said}\n" for text, said in zip(["The keeper", "ships"], expected, strict=True))


def test_the_example_of_attach_runs_on_a_file_that_train_wrote(trained: tuple[Path, str], monkeypatch, capsys) -> None:
    base = tiny_base("llama", dtype=torch.float32)
    monkeypatch.chdir(trained[0].parent)
    (lines,) = re.findall(r"(?:\n {4,}\S.*)+", inspect.cleandoc(sordino.attach.__doc__ or ""))
    exec(textwrap.dedent(lines), {"sordino": sordino, "network": base.network, "tokenizer": base.tokenizer})
    expected = sordino.Model(base).generate(
        ["It rained all day", "The door"], sordino.load("voice.zip"), hold="off", max_tokens=60, temperature=0
    )
    assert capsys.readouterr().out == f"{expected}\n"


def test_convert_a_file(trained: tuple[Path, str], tmp_path: Path, capsys) -> None:
    example("convert_a_file")(str(trained[0]), str(tmp_path / "peft"), "peft")
    assert "20 virtual tokens of width 32" in capsys.readouterr().out
    assert formats.detect(tmp_path / "peft") == "peft"
    assert (formats.read(tmp_path / "peft").matrix == formats.read(trained[0]).matrix).all()


def test_every_example_is_run_here_and_uses_nothing_but_the_public_names() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "train_on_a_folder",
        "generate_with_a_prompt",
        "use_with_transformers",
        "convert_a_file",
    }
    for path in EXAMPLES.glob("*.py"):
        assert list(imported_places(ast.parse(path.read_text(encoding="utf-8")))) == [], path.name
