"""sources, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino import formats
from sordino.prompts.soft_prompt import SoftPrompt
from tests.cli.commands import done, ok, refused, run
from tests.cli.tiny_setting import drop_voice, tiny_setting
from tests.prompt_files import matrix


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tiny_setting(tmp_path, monkeypatch)
    near = SoftPrompt(matrix(1, 5, 32) + 0.1 * matrix(8, 5, 32))
    formats.write(near, made / "mist.zip")
    return made


def test_the_library_is_ranked_the_alike_first(library: Path) -> None:
    text = ok("sources", "fog")
    assert [line.split()[0] for line in text.splitlines() if line.strip().startswith(("mist", "oil"))] == [
        "mist",
        "oil",
    ]
    assert "Left out, as they were made for another base model: 1." in text
    said = json.loads(run("sources", "fog", "--json").stdout)
    assert [row["source"] for row in said["sources"]] == ["mist", "oil"]
    assert said["sources"][0]["pooled"] > 0.9 > said["sources"][1]["pooled"]


def test_named_ones_alone_are_ranked(library: Path) -> None:
    text = ok("sources", "fog", "oil")
    assert "mist" not in text
    assert "oil" in text


def test_bad_input_is_refused(library: Path) -> None:
    assert "64 wide" in refused("sources", "fog", "wide")
    assert "did you mean fog" in refused("sources", "fogg")
    assert "no other soft prompt" in refused("sources", "wide")
    assert "given twice" in refused("sources", "fog", "oil", "oil")


def test_a_broken_file_is_told_and_passed_over(library: Path) -> None:
    (library / "broken.zip").write_bytes(b"PK no zip")
    drop_voice(library / "tar.zip", seed=9)
    result = done("sources", "fog")
    assert "tar" in result.stdout
    assert "broken.zip" in result.stderr
