"""inspect, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino.prompts.soft_prompt import BaseRef
from tests.cli.commands import contents, done, ok, refused, run
from tests.cli.tiny_setting import drop_voice, tiny_setting


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "text.txt").write_text(
        "the keeper of the lamp wrote that the sea was grey and the ship was gone", "utf-8"
    )
    return tiny_setting(tmp_path, monkeypatch)


def test_the_table(library: Path, tmp_path: Path) -> None:
    text = ok("inspect", "fog", "oil", "--text", tmp_path / "text.txt", "--picture", "in.svg")
    for part in (
        "nearest by cosine", "nearest by distance", "percentile", "left out", "attention", "Norms of the vocabulary's words",
        "On text.txt", "Attention on the prompt by layer:", "How alike: cosine of the mean vectors",
        "Mean cosine over pairs of virtual tokens",
    ):  # fmt: skip
        assert part in text, part
    assert Path("in.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_json_has_all_of_it(library: Path, tmp_path: Path) -> None:
    said = json.loads(run("inspect", "fog", "oil", "--text", tmp_path / "text.txt", "--json", "--words", 2).stdout)
    assert [one["label"] for one in said["soft_prompts"]] == ["fog", "oil"]
    fog = said["soft_prompts"][0]
    assert len(fog["tokens"]) == len(fog["importance"]["left_out"]) == 5
    assert len(fog["tokens"][0]["nearest_by_distance"]) == 2
    assert len(fog["attention"]["by_layer"]) == 3
    assert said["similarity"]["pooled"][0][1] == said["similarity"]["pooled"][1][0]


def test_quick_needs_no_text(library: Path) -> None:
    text = ok("inspect", "fog", "--quick")
    assert "left out" not in text
    assert "percentile" in text
    one = json.loads(run("inspect", "fog", "--quick", "--json").stdout)
    assert set(one) == {"model", "soft_prompts"}
    assert "attention" not in one["soft_prompts"][0]


def test_a_packaged_text_is_taken_where_none_is_given(library: Path) -> None:
    assert "On the packaged village gazette" in ok("inspect", "fog", "--limit", 64, "--row-tokens", 32)


def test_bad_input_is_refused_and_nothing_overwritten(library: Path, tmp_path: Path) -> None:
    Path("in.png").write_text("mine")
    before, text = contents(tmp_path), ("--text", tmp_path / "text.txt")
    assert "there is a file" in refused("inspect", "fog", "--picture", "in.png")
    assert ".png or .svg" in refused("inspect", "fog", "--picture", "in.jpg")
    assert "64 wide" in refused("inspect", "wide", *text)
    assert "did you mean fog" in refused("inspect", "fogg", *text)
    assert "--quick" in refused("inspect", "fog", "--quick", *text)
    assert "--quick" in refused("inspect", "fog", "--quick", "--limit", 5)
    for flag, value in (("--row-tokens", 16), ("--pass-tokens", 64), ("--speaker", "Ines")):
        assert flag in refused("inspect", "fog", "--quick", flag, value)
    assert "--speaker" in refused("inspect", "fog", "--speaker", "Ines")
    assert "--overwrite" in refused("inspect", "fog", "--quick", "--overwrite")
    assert "nowhere" in refused("inspect", "fog", "--text", "nowhere")
    assert contents(tmp_path) == before
    ok("inspect", "fog", "--quick", "--picture", "in.png", "--overwrite")
    assert Path("in.png").read_bytes().startswith(b"\x89PNG")


def test_those_of_different_models_are_shown_without_their_similarity(library: Path) -> None:
    drop_voice(library / "gptj.zip", seed=5, base=BaseRef(id="x/gptj", family="gptj", d_model=32))
    drop_voice(library / "llama.zip", seed=6, base=BaseRef(id="x/llama", family="llama", d_model=32))
    assert "--force" in refused("inspect", "gptj", "llama", "--quick")
    forced = done("inspect", "gptj", "llama", "--quick", "--force")
    assert "cannot be compared" in forced.stderr


def test_a_soft_prompt_too_long_to_measure_in_seconds_is_looked_at_without_a_text(library: Path, monkeypatch) -> None:
    monkeypatch.setattr("sordino.evaluation.analysis.inspection.BUDGET", 100)
    said = done("inspect", "fog")
    assert "left out" not in said.stdout
    assert "percentile" in said.stdout
    assert "--limit 128" in said.stderr
