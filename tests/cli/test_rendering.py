"""The command line renders: it opens no checkpoint, no lock and no tensor, which is for the rooms below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sordino import cli

MODULES = sorted(Path(cli.__file__).parent.glob("*.py"))
REFUSED = ("torch", "numpy", "filelock", "safetensors", "transformers", "matplotlib", "sordino.training.checkpoint")
# matplotlib's figures and numpy's arrays may be named in annotations.
NAMED_ONLY = ("numpy.typing", "matplotlib.figure")


def imports_of(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def refused(name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in REFUSED) and not name.startswith(NAMED_ONLY)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_of_the_command_line_computes_nothing(path: Path) -> None:
    assert [name for name in imports_of(path.read_text(encoding="utf-8")) if refused(name)] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import torch", 1),
        ("def f():\n    from torch import Tensor", 1),
        ("from sordino.training.checkpoint import FILE", 1),
        ("from sordino.training import checkpoint", 1),
        ("import numpy as np", 1),
        ("from numpy.typing import NDArray", 0),
        ("from sordino.training.config import TrainConfig", 0),
    ],
)
def test_the_rule_itself(code: str, found: int) -> None:
    assert sum(map(refused, imports_of(code))) == found
