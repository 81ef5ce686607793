"""Sweeps and groups of runs in several processes: each computes some of the runs, one writes, and the results are one process's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino.formats import read
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.group import execute_group, new_group
from sordino.training.job import Job
from sordino.training.strategy import SINGLE_PROCESS, Strategy
from sordino.training.sweep.execute import Sweep, execute_sweep
from sordino.training.sweep.grid import Spec
from tests.training.gloo_processes import gloo
from tests.training.runs import days, off, small_base, write_texts

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(
    tokens=4, steps=16, batch=3, row_tokens=16, init="vocab", sample_tokens=4, validation_tokens=64, measure="none"
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts", days(12, 3))


def test_a_sweeps_results_and_winner_are_one_processs(texts: Path, tmp_path: Path) -> None:
    """Five runs in two processes: two whole ones each, and the rows of the last, until half of them end."""
    spec = Spec(("tiny",), ("embedding",), (4,), (0.05, 0.1, 0.2, 0.4, 0.8), ("vocab",), ("plain",), (0,), CONFIG)

    def swept(strategy: Strategy, base: BaseModel, name: str) -> str | None:
        sweep = Sweep(spec, TextPaths((texts,)), tmp_path / name)
        result = execute_sweep(sweep, lambda model: base, strategy=strategy)
        return result.file if result else None

    assert swept(SINGLE_PROCESS, small_base(), "one") == "winner.zip"
    assert gloo(2)(lambda strategy, base: swept(strategy, base, "two")) == ["winner.zip", None]
    one, two = (json.loads((tmp_path / name / "results.json").read_bytes()) for name in ("one", "two"))
    assert two["winner"] == one["winner"]
    assert two["rows_trained"] == one["rows_trained"]
    for ours, own in zip(*(_runs(found) for found in (two, one)), strict=True):
        assert (ours["name"], ours["why"], ours["steps"]) == (own["name"], own["why"], own["steps"])
        assert ours["validation"] == pytest.approx(own["validation"], abs=1e-4)
    winners = [torch.tensor(read(tmp_path / name / "winner.zip").matrix) for name in ("one", "two")]
    assert off(winners[1], winners[0]) <= 1e-3


def _runs(results: dict[str, Any]) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = results["models"][0]["runs"]
    return runs


def test_soft_prompts_that_are_trained_together_are_one_processs(texts: Path, tmp_path: Path) -> None:
    """Three in two processes."""

    def trained(strategy: Strategy, base: BaseModel, name: str) -> list[str]:
        like = Job(TextPaths(()), tmp_path / "none.zip", "tiny", Metadata(), CONFIG)
        group = new_group(like, dict.fromkeys(("ines", "juno", "karl"), texts), tmp_path / name)
        made = execute_group(group, base, strategy=strategy)
        return sorted(made or ())

    names = trained(SINGLE_PROCESS, small_base(), "one")
    assert gloo(2)(lambda strategy, base: trained(strategy, base, "two")) == [names, []]
    for name in names:
        one, two = (torch.tensor(read(tmp_path / folder / f"{name}.zip").matrix) for folder in ("one", "two"))
        assert off(two, one) <= 1e-4
