"""A room imports only from those before it. Read from the source of every module, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sordino"

# The fourteen rooms, from the ground up; `settings` is a single module as the first two are. Each may import from those before
# it, and from itself. `api`, what `import sordino` offers, stands beside the command line.
ORDER = (
    "errors",
    "storage",
    "settings",
    "prompts",
    "texts",
    "formats",
    "models",
    "library",
    "forward",
    "engine",
    "evaluation",
    "training",
    "baking",
    "server",
    "api",
    "cli",
)
# Within a room: folders that the rest of the room may not import from, since they stand above it.
ABOVE_THEIR_ROOM = (
    ("evaluation", "analysis"),
    ("training", "sweep"),
    ("training", "mixture"),
)
# People call `save` on the prompt they hold, so one module reaches up to the formats, when it is called (docs/decisions/0013).
DEFERRED = {(("prompts", "saving"), ("formats",))}
VAGUE_NAMES = ("utils", "util", "helpers", "helper", "common", "misc", "tools", "shared")


def modules(source: Path = SOURCE) -> list[Path]:
    return sorted(path for path in source.rglob("*.py") if "data" not in path.relative_to(source).parts)


def place_of(path: Path) -> tuple[str, ...]:
    """(room, folder or module, ...); () for the package's own __init__ and __main__."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return () if parts[0].startswith("__") else parts


def imported_places(tree: ast.AST) -> Iterator[tuple[tuple[str, ...], int]]:
    """(place, line) of every import of something in sordino."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides where it points"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "sordino" and rest and not rest[0].startswith("__"):
                yield tuple(rest), node.lineno


def is_allowed(place: tuple[str, ...], used: tuple[str, ...]) -> bool:
    room = place[0] if place else ""
    if used[0] not in ORDER:
        return False
    if (place, used) in DEFERRED:
        return True
    if used[0] != room:
        return not room or ORDER.index(used[0]) < ORDER.index(room)
    return not any(used[:2] == above and place[:2] != above for above in ABOVE_THEIR_ROOM)


def violations(place: tuple[str, ...], tree: ast.AST) -> list[str]:
    return [
        f"line {line}: {'.'.join(place) or 'sordino'} imports {'.'.join(used)}"
        for used, line in imported_places(tree)
        if not is_allowed(place, used)
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_only_from_rooms_before_its_own(path: Path) -> None:
    place = place_of(path)
    assert not place or place[0] in ORDER, f"{place[0]} is no room in ORDER"
    assert violations(place, ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("place", "code", "found"),
    [
        ("formats.zips", "from sordino.library.library import Library", 1),
        ("formats.zips", "def f():\n    from sordino.forward import prefix", 1),
        ("formats.zips", "import sordino.cli.console", 1),
        ("evaluation.report", "from sordino.training.loop import train", 1),
        ("engine.engine", "from sordino.training.mixture.em import fit_weights", 1),
        ("training.loop", "from sordino.training.sweep import grid", 1),
        ("training.loop", "from sordino.training.mixture.em import fit_weights", 1),
        ("evaluation.report", "from sordino.evaluation.analysis import path", 1),
        ("library.library", "from sordino import unknown", 1),
        ("training.sweep.grid", "from sordino.training.config import TrainConfig", 0),
        ("training.sweep.grid", "from sordino.training.sweep import results", 0),
        (
            "library.library",
            "from sordino.formats.kobold import read\nfrom sordino import errors, __version__\nimport numpy",
            0,
        ),
        ("training.loop", "from sordino.training.config import TrainConfig\nfrom sordino.forward import prefix", 0),
        ("prompts.saving", "def save():\n    from sordino import formats", 0),
        ("prompts.saving", "from sordino.formats import write", 1),
        ("prompts.mixture", "def save():\n    from sordino import formats", 1),
        ("training.loop", "from sordino.api import load", 1),
        ("", "from sordino.cli import main", 0),
    ],
)
def test_the_rule_itself(place: str, code: str, found: int) -> None:
    assert len(violations(tuple(place.split(".")) if place else (), ast.parse(code))) == found


# What implements `engine.backend.Backend`, and what it is made of: the server and the page know the seam alone.
BEHIND_THE_BACKEND = (
    "sordino.engine.embedded",
    "sordino.engine.engine",
    "sordino.engine.runners",
    "sordino.models.base_model",
)


def test_the_server_and_the_page_know_no_implementation_of_a_backend() -> None:
    for path in modules(SOURCE / "server"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))
                found = [name for name in names if name.startswith(BEHIND_THE_BACKEND)]
                assert not found, f"{path.name}, line {node.lineno}"


def test_the_rooms_are_all_there_is() -> None:
    assert sorted(ORDER) == sorted({place_of(path)[0] for path in modules() if place_of(path)})


def test_packages_are_at_most_two_folders_deep_and_say_what_they_hold() -> None:
    for path in modules():
        parts = path.relative_to(SOURCE).with_suffix("").parts
        assert len(parts) <= 3, f"{path} is too deep"
        assert not set(parts) & set(VAGUE_NAMES), f"{path} says nothing about what it holds"
