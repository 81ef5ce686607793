"""The notebook and its forms: the lines `name = value  # @param ...`, which Colab shows as fields and others as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "sordino.ipynb"
_FIELD = re.compile(r"^(\w+) = (.*?)  # @param (.*)$", re.MULTILINE)


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def fields(notebook: nbformat.NotebookNode) -> dict[str, tuple[str, str]]:
    """(value, what follows @param) of each field, by name."""
    found = [field for cell in notebook.cells for field in _FIELD.findall(cell.source)]
    return {name: (value, kind) for name, value, kind in found}


def filled(**values: Any) -> nbformat.NotebookNode:
    """The notebook with other values in its forms, as a user fills them in."""
    notebook = read()
    unknown = set(values) - set(fields(notebook))
    assert not unknown, f"no such fields: {unknown}"

    def line(match: re.Match[str]) -> str:
        name, _, kind = match.groups()
        return f"{name} = {values[name]!r}  # @param {kind}" if name in values else match[0]

    for cell in notebook.cells:
        cell.source = _FIELD.sub(line, cell.source)
    return notebook
