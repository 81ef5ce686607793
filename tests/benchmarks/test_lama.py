"""benchmarks/lama.py on a tiny model: its table, and what it refuses."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import lama
from tests.tiny_models import tiny_base


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
    lama.main(str(tmp_path), str(file), "3")
    said = capsys.readouterr().out
    for part in (
        "4 candidates, 2 of them of several tokens",
        "templates left out: 1 (words after [Y]",
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "usage: "),
        (("nowhere", "templates.jsonl"), "error: "),
        (("nowhere", "templates.jsonl", "many"), "usage: "),
    ],
)
def test_relations_refuses_in_one_line(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lama", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "lama.py"), run_name="__main__")
    # Python prints a code that is a text.
    printed = capsys.readouterr().err if said == "error: " else str(ended.value.code)
    assert ended.value.code == 2 or said == "usage: "
    assert printed.startswith(said)
    assert len(printed.splitlines()) == 1
