"""Evaluation from Python, and its report as a text."""

from __future__ import annotations

from pathlib import Path

import pytest

import sordino
from tests.api.inputs import prompt, texts


def test_evaluation_measures_and_prints_a_table(model, tmp_path: Path) -> None:
    for name in ("heldout", "training"):
        texts(tmp_path / name, 3)
    report = sordino.evaluate(
        model,
        {"first": prompt(model.base), "second": prompt(model.base, seed=1)},
        heldout=str(tmp_path / "heldout"),
        training=[tmp_path / "training" / "0.txt", str(tmp_path / "training" / "1.txt")],
        instructions=["Write as a keeper:"],
        limit=300,
        resamples=100,
        excerpt_tokens=(20,),
        row_tokens=32,
    )
    assert {line.kind for line in report.heldout.lines} == {"soft prompt", "no prompt", "instruction", "excerpt"}
    shown = str(report)
    assert "soft prompt first" in shown
    assert "excerpt 20 tokens of the training text" in shown
    assert "first: These 4 vectors" in shown
    alone = sordino.evaluate(model, prompt(model.base), heldout=tmp_path / "heldout", limit=100, resamples=100)
    assert alone.n_tokens == {"p0": 4}
    assert "real excerpts are left out" in str(alone)


def test_distance_is_a_list_of_tokens(model, tmp_path: Path) -> None:
    texts(tmp_path / "heldout", 3)
    report = sordino.evaluate(
        model,
        prompt(model.base),
        heldout=tmp_path / "heldout",
        limit=100,
        resamples=100,
        row_tokens=32,
        distance=[16, 40],
    )
    assert report.distance is not None
    assert report.distance.distances == (0, 16, 40)
    assert "the model's own writing with p0" in str(report)


@pytest.mark.parametrize("distance", [768, "0,64", [0, "64"], [1.5]])
def test_what_is_no_list_of_distances_is_refused(model, tmp_path: Path, distance: object) -> None:
    texts(tmp_path / "heldout", 1)
    with pytest.raises(sordino.SordinoError, match="not a list of distances"):
        sordino.evaluate(model, prompt(model.base), heldout=tmp_path / "heldout", distance=distance)
