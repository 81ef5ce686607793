"""benchmarks/why.py: means over complete voices, and what is said of one that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measuring, why

KEYS = ("NLL", "NLL at the end", "damage", "positions", "cpu_seconds", "bytes")


def rows(voice: str, writers: list[str], style: float) -> list[dict[str, Any]]:
    made = [
        {
            **dict.fromkeys(KEYS, 1.0),
            "voice": voice,
            "writer": writer,
            "style, first": style,
            "style, last": style / 2,
            "style": [style, style / 2],
            "followed": 3,
            "asked": 40,
            "a batch mixes": "one",
        }
        for writer in writers
    ]
    return [{"voice": voice, "AUC of the judge": 0.9}, *made]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "some-machine" / "holding.json"
    file.parent.mkdir()
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr(why, "PICTURE", why.ROOT / "docs" / "pictures" / "holding.png")
    return file


def written(file: Path, *parts: list[dict[str, Any]]) -> list[str]:
    machine = {"processor": "Some", "gpu": None, "date": "2026-11-29"}
    file.write_text(json.dumps({"machine": machine, "rows": [row for part in parts for row in part]}))
    return list(why.table())


def test_means_over_complete_voices(file: Path) -> None:
    every = list(why._LINES)
    said = written(file, rows("noir", every, 0.8), rows("keeper", every, 0.4), rows("gazette", every[:3], 0.2))
    assert "means over 2 voices" in said[0]
    assert "gazette" not in said[0]
    table = [line for line in said if line.startswith("|")]
    assert len(table) == 2 + len(every)
    assert table[2].startswith("| KV prompt, held | 0.60 | 0.30 | 50% | 1.000 |")


def test_of_a_voice_that_is_not_complete_what_is_missing_is_said(file: Path) -> None:
    said = written(file, rows("noir", ["KV, held", "nothing"], 0.2))
    assert "noir alone" in said[0]
    assert said[1].startswith("Not run yet: KV prompt, not held, ")
    # A style at the beginning that is hardly one has no share that is kept.
    assert "| 0.20 | 0.10 | – |" in said[-2]


def test_without_results_the_page_says_so(file: Path) -> None:
    assert list(why.table()) == ["Not measured yet: the run takes about forty minutes on two idle cores."]


def test_the_picture_has_a_line_for_each_writer(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []
    monkeypatch.setattr(why, "write_picture", lambda figure, path: drawn.append(figure))
    written(file, rows("noir", list(why._LINES), 0.8))
    why.draw()
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(map(why._named, why._LINES))
