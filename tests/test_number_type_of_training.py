"""Whatever trains does it in the number type that one rule chooses (`models.base_model.training_dtype`)."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch

from sordino.models.base_model import DTYPES, BaseModel
from sordino.models.sizes import ModelSizes
from sordino.training.job_files import Command
from tests.cli.commands import run
from tests.log_texts import write_log
from tests.test_layers import SOURCE, imported_places, modules
from tests.tiny_models import tiny_base
from tests.training.distil.lessons import OPENINGS, WORDS

SMALL = {"steps": 8, "tokens": 3, "batch": 2}
FLAGS = tuple(part for name, value in SMALL.items() for part in (f"--{name}", value))
LESSON = {**SMALL, "continuations": 16, "length": 6, "openings": "openings.txt"}


def command(*arguments: object) -> Callable[[str | None], object]:
    return lambda dtype: run(*arguments, *(("--dtype", dtype) if dtype else ()))


# What begins to train, given the number type that the user names: by the modules that it is in. The page's runs are `Command`s.
ENTRIES: dict[str, tuple[str, Callable[[str | None], object]]] = {
    "train": ("cli.train", command("train", "log", "--row-tokens", 16, *FLAGS)),
    "train --prompt": (
        "cli.train",
        command("train", "--prompt", "a=log", "--prompt", "b=log", "--out-dir", "made", "--row-tokens", 16, *FLAGS),
    ),
    "distil": ("cli.distil", command("distil", "text.txt", *(f"--{name}={value}" for name, value in LESSON.items()))),
    "sweep": ("cli.sweep", command("sweep", "log", "--out-dir", "made", "--row-tokens", 16, *FLAGS)),
    "mixture": (
        "cli.mix",
        command("mixture", "fit", "--joint", 2, "--data", "log", "--out", "m.mix.zip", *FLAGS),
    ),
    "demo": ("cli.demo", lambda dtype: run("demo", "--minutes", 0.001)),
}


class Began(Exception):
    """Training would begin."""


@cache
def tiny(dtype: torch.dtype) -> BaseModel:
    return tiny_base("llama", dtype=dtype, max_position_embeddings=1024)


@pytest.fixture
def began_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The number types of the models that runs began with, in a folder with texts. Whatever model is asked for is tiny."""
    begun: list[torch.dtype] = []

    def begin(base: BaseModel, *_: object) -> None:
        begun.append(base.dtype)
        raise Began

    def load(name: str, *, dtype: str | None = None, **_: object) -> BaseModel:
        return tiny(next((number for known, number in DTYPES.items() if known == dtype), torch.float32))

    monkeypatch.setattr("sordino.training.loop.GroupMember", begin)
    monkeypatch.setattr("sordino.models.base_model.choose_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr("sordino.models.base_model.load", load)
    monkeypatch.setattr("sordino.models.sizes.sizes_of", lambda name: ModelSizes(name, tiny(torch.float32).ref))
    monkeypatch.setenv("SORDINO_LIBRARY", str(tmp_path / "library"))
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log")
    (tmp_path / "text.txt").write_text(WORDS)
    (tmp_path / "openings.txt").write_text("\n".join(OPENINGS))
    return begun


@pytest.mark.parametrize(
    ("entry", "has_bfloat16", "named", "expected"),
    [
        (entry, *case)
        for entry in ENTRIES
        for case in ((True, None, torch.bfloat16), (False, None, torch.float32), (True, "float32", torch.float32))
        if entry != "demo" or case[1] is None
    ],
)
def test_what_trains_asks_for_the_number_type(
    entry: str,
    has_bfloat16: bool,
    named: str | None,
    expected: torch.dtype,
    began_in: list[torch.dtype],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sordino.models.base_model.multiplies_bfloat16", lambda: has_bfloat16)
    with suppress(Began):
        ENTRIES[entry][1](named)
    assert began_in == [expected]


def test_nothing_else_trains() -> None:
    """Above the room that trains, these modules call what begins a run. In Python a model is in memory, as it was loaded."""
    begins = {"execute", "follow", "execute_group", "execute_sweep", "sweep_on_ray", "execute_mixture", "train_jointly"}
    found = set()
    for path in modules():
        above = path.relative_to(SOURCE).parts[0] in ("baking", "server", "api", "cli")
        names = {place[-1] for place, _ in imported_places(ast.parse(path.read_text(encoding="utf-8"))) if above}
        if names & begins:
            found.add(".".join(path.relative_to(SOURCE).with_suffix("").parts))
    assert found == {"api.training", *(module for module, _ in ENTRIES.values())}
    assert set(get_args(Command)) <= set(ENTRIES)
