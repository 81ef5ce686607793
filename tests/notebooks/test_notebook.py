"""notebooks/sordino.ipynb: a valid notebook without outputs, whose forms do something."""

from __future__ import annotations

import ast
import json
import re

import nbformat
import pytest
import torch

import sordino
from sordino.models import suited
from sordino.models.catalogue import catalogue
from sordino.models.suited import DeviceMemory
from tests.notebooks.forms import NOTEBOOK, fields, filled, read


def test_it_is_valid_and_nobody_ran_it() -> None:
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id
    assert set(notebook.metadata) == {"accelerator", "colab", "kernelspec", "language_info"}
    # As it was written: no line changes when it is read and written again.
    assert NOTEBOOK.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"


def test_every_cell_is_a_form_of_a_few_lines() -> None:
    for cell in read().cells:
        if cell.cell_type == "code":
            assert cell.source.startswith("# @title "), cell.id
            assert cell.metadata.get("cellView") == "form", cell.id
            assert len(cell.source.splitlines()) <= 36, cell.id


def test_every_field_is_used_and_every_line_that_looks_like_one_is_one() -> None:
    notebook = read()
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert code.count("# @param") == len(fields(notebook))
    for name, (value, kind) in fields(notebook).items():
        ast.literal_eval(value)
        assert len(re.findall(rf"\b{name}\b", _without_comments(code))) > 1, f"{name} is not used"
        if kind.startswith("["):
            assert ast.literal_eval(value) in json.loads(kind.partition("]")[0] + "]"), name


def test_drive_and_the_page_are_off_by_default() -> None:
    values = {name: value for name, (value, _) in fields(read()).items()}
    assert {values[name] for name in ("use_google_drive", "open_page", "begin_again")} == {"False"}
    assert values["repository"] == '""'


def test_the_models_are_those_of_the_catalogue() -> None:
    _, kind = fields(read())["base_model"]
    assert json.loads(kind.removesuffix(" {allow-input: true}")) == list(catalogue())


@pytest.mark.parametrize("gigabytes", [0, 15])
def test_the_gpu_is_named_or_said_to_be_missing(
    gigabytes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = (cell.source for cell in read().cells if cell.id == "machine")
    size = gigabytes * 10**9
    memory = DeviceMemory("GPU memory", size, size, 4) if size else DeviceMemory("memory", 12 * 10**9, 12 * 10**9, 4)
    monkeypatch.setattr(suited, "device_memory", lambda: memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: size > 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (size, size))
    exec(source, {"sordino": sordino})
    shown = capsys.readouterr().out
    assert ("Tesla T4, 15 GB\n" in shown) == (size > 0)
    # What to do is said with it.
    assert ("No GPU was found. In Colab: Runtime, Change runtime type" in shown) == (size == 0)
    assert "smollm2: about " in shown
    assert ("mistralai/Mistral-7B-Instruct-v0.3, quantise='nf4'" in shown) == (size > 0)


def test_forms_can_be_filled_in() -> None:
    assert fields(filled(steps=7, name="a 'b'"))["steps"] == ("7", '{type:"integer"}')
    assert ast.literal_eval(fields(filled(name="a 'b'"))["name"][0]) == "a 'b'"
    with pytest.raises(AssertionError, match="no such fields"):
        filled(step=7)


def _without_comments(code: str) -> str:
    return "\n".join(line.partition("# @")[0] for line in code.splitlines())
