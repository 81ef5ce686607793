"""A run in a notebook's cell: what is shown, when, and that texts cannot become a page."""

from __future__ import annotations

import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino.errors import TrainingError
from sordino.training.events import (
    METRICS,
    Cost,
    Finished,
    MetricsFile,
    Sample,
    Started,
    Step,
    Validation,
    Warned,
    Working,
)
from sordino.training.run_view import RunView
from sordino.training.state import Progress


class Shown:
    """IPython's `display`, and the handle that it returns."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def display(self, view: RunView, *, display_id: bool) -> Shown:
        assert display_id
        self.update(view)
        return self

    def update(self, view: Any) -> None:
        self.pages.append(view._repr_html_())


def step(number: int) -> Step:
    return Step(number, 3.0 - number / 10, 0.1, 1.0, 512, 0.25)


def test_it_shows_where_the_run_is_its_curve_and_its_samples() -> None:
    shown = Shown()
    view = RunView(shown.display, seconds=0)
    assert "<img" not in shown.pages[0]
    view(Cost(1.0, 1.0, 10, 90.0, 2**30, 2**31))
    view(Started("the data", 10))
    view(step(1))
    view(Validation(1, 2.75, best=True))
    assert "Step 1 of 10, 0.2 s a step, loss 2.900" in shown.pages[-1]
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown.pages[-1])
    assert b64decode(picture).startswith(b"\x89PNG")
    for number in range(4):
        view(Sample(number, "The <lamp>", f" & <script>{number}"))
    assert "The &lt;lamp&gt;</i>| &amp; &lt;script&gt;3" in shown.pages[-1]
    assert "script&gt;0" not in shown.pages[-1], "only the last ones"
    assert "<script" not in "".join(shown.pages)
    view(Warned("little < text"))
    view(Working("Measuring", 3, 8))
    assert "Warning: little &lt; text" in shown.pages[-1]
    assert "Measuring, 3 of 8" in shown.pages[-1]


def test_steps_alone_do_not_draw_it_again_and_again() -> None:
    shown = Shown()
    view = RunView(shown.display, seconds=3600)
    for number in range(1, 50):
        view(step(number))
    assert len(shown.pages) == 1
    view(Validation(50, 2.0, best=True))
    assert len(shown.pages) == 2


def test_a_run_that_goes_on_keeps_its_curve_up_to_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / METRICS).touch()
    metrics = MetricsFile(tmp_path / METRICS, 0)
    for number in (1, 2, 3, 4):
        metrics.add(step(number))
    shown = Shown()
    view = RunView(shown.display, resumed=tmp_path, seconds=0)
    assert "<img" in shown.pages[0]
    # The checkpoint was at step 2.
    view(step(3))
    assert [event.step for event in view._events] == [1, 2, 3]
    with pytest.raises(TrainingError, match="metrics cannot be read"):
        RunView(shown.display, resumed=tmp_path / "nothing")


def test_an_early_end_is_told() -> None:
    shown = Shown()
    RunView(shown.display)(Finished(torch.zeros(1, 1), "early", Progress()))
    assert "Stopped early" in shown.pages[-1]
