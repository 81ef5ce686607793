"""`import sordino`: the names it offers, and that they load nothing before they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sordino
from tests.api.inputs import prompt

NAMES = [
    "AttachedPrompt",
    "DistilConfig",
    "EvaluateConfig",
    "KVPrompt",
    "Metadata",
    "Mixture",
    "Model",
    "PromptAttention",
    "Report",
    "RunView",
    "Sample",
    "Sampling",
    "SoftPrompt",
    "SordinoError",
    "Step",
    "TrainConfig",
    "TrainResult",
    "Validation",
    "attach",
    "distil",
    "evaluate",
    "load",
    "load_model",
    "peek",
    "push",
    "resume",
    "suited_models",
    "train",
    "unfinished",
]


def test_the_names_are_these_and_each_is_there() -> None:
    assert sordino.__all__ == NAMES
    assert all(getattr(sordino, name) is not None for name in NAMES)
    assert set(NAMES) <= set(dir(sordino))
    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        sordino.generate  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import sordino; dir(sordino); sordino.__all__", ("torch", "transformers", "numpy")),
        ("import sordino; sordino.SordinoError", ("torch", "transformers", "numpy")),
        (
            "import sordino; sordino.TrainConfig(); sordino.SoftPrompt; sordino.Model; sordino.load_model; sordino.evaluate",
            ("torch", "transformers"),
        ),
        (
            "import sordino; print(sordino.load(sys.argv[1]).n_tokens, sordino.peek(sys.argv[1]))",
            ("torch", "transformers"),
        ),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(code: str, absent: tuple[str, ...], model, tmp_path: Path) -> None:
    prompt(model.base).save(tmp_path / "voice.zip")
    found = f"import sys; {code}; sys.exit(' '.join({set(absent)!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", found, tmp_path / "voice.zip"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_type_checkers_and_python_find_the_same() -> None:
    tree = ast.parse(Path(sordino.__file__).read_text(encoding="utf-8"))
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {node.names[0].name: node.module for node in branch.body if isinstance(node, ast.ImportFrom)}
    assert {name: f"sordino.{module}" for name, module in sordino._MODULES.items()} == typed
    assert sorted(typed) == sordino.__all__
