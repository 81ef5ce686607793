"""Dependencies point one way. Read from the source of every module, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sordino"

# Each module or package may import from those before it, and from itself.
ORDER = (
    "errors",
    "atomic",
    "memory",
    "soft_prompt",
    "prompt_mixture",
    "similarity",
    "formats",
    "library_names",
    "library_files",
    "library",
    "architectures",
    "bundled_models",
    "chat_template",
    "fit",
    "blending",
    "gguf_header",
    "fingerprint",
    "transformers_seam",
    "gguf_conversion",
    "hub_models",
    "model_cache",
    "model_files",
    "described_model",
    "gguf_vocabulary",
    "base_model",
    "nearest",
    "texts",
    "combining",
    "bootstrap",
    "pace",
    "placement",
    "few_rows",
    "rows",
    "llama_layers",
    "frozen_llama",
    "prefix",
    "nll",
    "packing",
    "token_losses",
    "gate_text",
    "seen_tokens",
    "sampling",
    "detokenise",
    "engine",
    "generate",
    "train",
    "evaluate",
    "mixture",
    "sweep",
    "anatomy",
    "backends",
    "server",
    "ui",
    "cli",
)
# These lie beside each other: neither knows the other.
STRANGERS = (
    *combinations(("train", "evaluate", "mixture"), 2),
    ("mixture", "sweep"),
    ("anatomy", "train"),
    ("anatomy", "mixture"),
)
VAGUE_NAMES = ("utils", "util", "helpers", "helper", "common", "misc", "tools", "shared")


def modules(source: Path = SOURCE) -> list[Path]:
    return sorted(path for path in source.rglob("*.py") if "data" not in path.relative_to(source).parts)


def unit_of(path: Path) -> str:
    """The top-level module or package that a file belongs to; "" for the package's own __init__ and __main__."""
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "" if first in ("__init__", "__main__") else first


def imported_units(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(unit, line) of every import of something in sordino."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides where it points"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "sordino" else [node.module]
            )
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "sordino" and rest and not rest[0].startswith("__"):
                yield rest[0], node.lineno


def violations(unit: str, tree: ast.AST) -> list[str]:
    allowed = set(ORDER[: ORDER.index(unit) + 1]) if unit else {"cli"}
    allowed -= {other for first, second in STRANGERS for other in (first, second) if unit in (first, second)} - {unit}
    return [
        f"line {line}: {unit or 'sordino'} imports {used}" for used, line in imported_units(tree) if used not in allowed
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_only_earlier_layers(path: Path) -> None:
    unit = unit_of(path)
    assert not unit or unit in ORDER, f"{unit} has no place in ORDER"
    assert violations(unit, ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("unit", "code", "found"),
    [
        ("formats", "from sordino.library import Library", 1),
        ("formats", "def f():\n    from sordino import prefix", 1),
        ("formats", "import sordino.cli.console", 1),
        ("train", "from sordino.evaluation import measure", 1),
        ("evaluate", "from sordino.training.loop import train", 1),
        ("mixture", "from sordino.training.config import TrainConfig", 1),
        ("engine", "from sordino.training.mixture.em import fit_weights", 1),
        ("", "from sordino import prefix", 1),
        (
            "library",
            "from sordino.formats.kobold import read\nfrom sordino import errors, __version__\nimport numpy",
            0,
        ),
        ("train", "from sordino.training.config import TrainConfig\nfrom sordino import prefix", 0),
        ("", "from sordino.cli import main", 0),
    ],
)
def test_the_rule_itself(unit: str, code: str, found: int) -> None:
    assert len(violations(unit, ast.parse(code))) == found


# What implements `engine.backend.Backend`, and what it is made of: the server and the page know the seam alone.
BEHIND_THE_BACKEND = (
    "sordino.engine.embedded",
    "sordino.engine.runners.build",
    "sordino.models.base_model",
    "sordino.engine.engine",
    "sordino.engine.runners.llama_cpp_runner",
    "sordino.engine.runners.torch_runner",
)


@pytest.mark.parametrize("room", ["server", "ui"])
def test_the_server_and_the_page_know_no_implementation_of_a_backend(room: str) -> None:
    for path in modules(SOURCE / room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not names & set(BEHIND_THE_BACKEND), f"{path.name}, line {node.lineno}"


def test_every_place_in_the_order_is_taken() -> None:
    assert sorted(ORDER) == sorted({unit_of(path) for path in modules()} - {""})


def test_packages_are_at_most_two_folders_deep_and_say_what_they_hold() -> None:
    for path in modules():
        parts = path.relative_to(SOURCE).with_suffix("").parts
        assert len(parts) <= 3, f"{path} is too deep"
        assert not set(parts) & set(VAGUE_NAMES), f"{path} says nothing about what it holds"
