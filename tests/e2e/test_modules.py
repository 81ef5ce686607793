"""The page's modules, read by ESLint: the browser tells of a missing import only when its line runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.browser import INSTALLED, NODE

PACKAGE = Path(__file__).parents[2] / "src" / "sordino"
FOLDERS = (PACKAGE / "server" / "page" / "static", PACKAGE / "data" / "gallery")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(NODE is None or not (INSTALLED / "eslint").is_dir(), reason="ESLint is not installed: make e2e"),
]


def found_in(*folders: Path) -> list[str]:
    command = [str(NODE), str(Path(__file__).parent / "unknown_names.cjs"), str(INSTALLED), *map(str, folders)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_no_module_uses_a_name_that_it_does_not_have() -> None:
    *found, count = found_in(*FOLDERS)
    assert found == []
    modules = sum(len(list(folder.rglob("*.js"))) for folder in FOLDERS)
    assert re.fullmatch(rf"{modules} modules", count)


def test_a_missing_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.js").write_text("export const one = () => NO_ANSWER;\n")
    assert "'NO_ANSWER' is not defined" in found_in(tmp_path)[0]
