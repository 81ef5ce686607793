"""The style that all pictures share."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.evaluation.pictures import Dot, draw_dots, drawable, new_figure, plain_axes, write_picture


def test_drawable() -> None:
    assert drawable("a\nb") == "a b"
    assert drawable("灯x\x1b") == "?x?"
    assert drawable("$1 \\n") == "\\$1 \\\\n"
    assert drawable("x" * 30) == "x" * 23 + "…"


@pytest.mark.parametrize("name", ["dots.png", "dots.svg"])
def test_a_picture_has_the_kind_of_its_name_and_the_same_bytes_each_time(tmp_path: Path, name: str) -> None:
    written = []
    for _ in range(2):
        figure = new_figure(4, 3)
        axes = figure.add_subplot()
        draw_dots(axes, [Dot("first", 2.0, (1.5, 2.5), accented=True), Dot("second", 3.0)], with_values=True)
        plain_axes(axes, "x")
        write_picture(figure, tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(b"\x89PNG" if name.endswith(".png") else b"<?xml")


def test_the_first_dot_is_at_the_top() -> None:
    axes = new_figure(4, 3).add_subplot()
    draw_dots(axes, [Dot("first", 2.0), Dot("second", 3.0)])
    bottom, top = axes.get_ylim()
    assert bottom > 1 > 0 > top
