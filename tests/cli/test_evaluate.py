"""evaluate, as a user types it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from sordino.evaluation.config import ContinuationConfig
from sordino.prompts.soft_prompt import BaseRef
from tests.cli.commands import done, ok, refused, run
from tests.cli.tiny_setting import drop_voice, tiny_setting

FAST = ("--limit", 200, "--row-tokens", 32)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    heldout, train = tmp_path / "heldout", tmp_path / "train"
    for folder in (heldout, train):
        folder.mkdir()
    sentence = "the{n} keeper{n} of the{n} lamp{n} wrote{n} down that{n} the sea{n} was{n} grey{n}"
    for n in range(6):
        words = sentence.format(n=n)
        (heldout / f"{n}.txt").write_text(words, encoding="utf-8")
        (train / f"{n}.txt").write_text(f"Oil {n}. " + words.replace("sea", "sky").replace("lamp", "light"), "utf-8")
    return tiny_setting(tmp_path, monkeypatch)


def test_the_table_says_what_it_means(library: Path, tmp_path: Path) -> None:
    text = ok("evaluate", "fog", "oil", "--heldout", tmp_path / "heldout", "--excerpts", tmp_path / "train", *FAST)
    for part in (
        "soft prompt fog",
        "soft prompt oil",
        "no prompt",
        "Note: not compared with an instruction",
        "20 tokens of the training text",
        "64 tokens of the training text",
        "of 6 held-out texts",
        "lower is better",
        "95 % intervals, drawn by piece (6 units)",
        "fog: These 5 vectors",
        "oil: These 3 vectors",
        "the packaged village gazette",
        "no excerpts of 256 tokens: the model's context is too short",
    ):
        assert part in text, part


def test_json_has_all_of_it(library: Path, tmp_path: Path) -> None:
    command = ("evaluate", "fog", "--heldout", tmp_path / "heldout", "--instruction", "Write as a keeper:")
    said = json.loads(run(*command, "--off-domain", tmp_path / "train", "--json", *FAST).stdout)
    assert said["model"] == "tiny-llama"
    labels = [(c["kind"], c["label"]) for c in said["heldout"]["conditions"]]
    assert labels == [("soft prompt", "fog"), ("no prompt", "no prompt"), ("instruction", "Write as a keeper:")]
    assert said["off_domain"]["text"] == "train"
    assert said["soft_prompts"][0]["worth"] is None
    assert "no training texts were given" in said["notes"][0]
    again = json.loads(run(*command, "--off-domain", tmp_path / "train", "--json", *FAST).stdout)
    assert again == said


def test_continuations_are_a_table_of_their_own(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = partial(ContinuationConfig, tokens=8, behind=20)
    monkeypatch.setattr("sordino.cli.evaluate.ContinuationConfig", short)
    command = ("evaluate", "fog", "--hold", 16, "--heldout", tmp_path / "heldout", "--continuations", 6, *FAST)
    text = ok(*command)
    for part in ("What the model writes after other text", "distinct-2", "fog, held from 16", "fog, not held"):
        assert part in text, part
    said = json.loads(run(*command, "--json").stdout)["continuations"]
    assert [(line["label"], line["hold"]) for line in said["lines"]] == [("fog", 16), ("fog", None), (None, None)]


def test_held_out_texts_that_were_trained_on_are_told(library: Path, tmp_path: Path) -> None:
    result = done("evaluate", "fog", "--heldout", tmp_path / "train", "--excerpts", tmp_path / "train", *FAST)
    assert "warning" in result.stderr
    assert "held-out" in result.stderr


def test_bad_input_is_refused(library: Path, tmp_path: Path) -> None:
    held = ("--heldout", tmp_path / "heldout")
    assert "64 wide" in refused("evaluate", "wide", *held)
    assert "did you mean fog" in refused("evaluate", "fogg", *held)
    assert "nowhere" in refused("evaluate", "fog", "--heldout", "nowhere")
    assert "--instruction" in refused("evaluate", "fog", *held, "--instruction", " ")
    assert "--row-tokens" in refused("evaluate", "fog", *held, "--row-tokens", 1)
    assert "--limit" in refused("evaluate", "fog", *held, "--limit", -1)
    assert "lower --row-tokens" in refused("evaluate", "fog", *held, "--row-tokens", 255)
    assert "--heldout" in refused("evaluate", "fog")
    assert "leave --continuations out" in refused("evaluate", "fog", *held, "--continuations", 8)
    assert "give --excerpts too" in refused("evaluate", "fog", *held, "--excerpt-draws", 2)


def test_distance_has_a_table_a_picture_and_json(library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("A report of ships and rocks was read to the end. " * 20, encoding="utf-8")
    command = ("evaluate", "fog", "--heldout", tmp_path / "heldout", *FAST, "--distance-tokens", 200, "--hold", 16)
    picture = tmp_path / "far.png"
    text = ok(*command, "--distance", "64,16", "--foreign", other, "--picture", picture)
    for part in (
        "Gain after other text",
        "other texts",
        "the same voice",
        "the model's own writing with fog",
        "soft prompt fog, not held",
        "soft prompt fog, held from 16",
        "kept at 64",
    ):
        assert part in text, part
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "--overwrite" in refused(*command, "--distance", "16", "--picture", picture)
    said = json.loads(run(*command, "--distance", "16", "--foreign", other, "--json").stdout)
    assert said["distance"]["distances"] == [0, 16]
    assert [(line["label"], line["hold"]) for line in said["distance"]["lines"]][:2] == [("fog", 16), ("fog", None)]
    assert json.loads(run(*command[:4], *FAST, "--json").stdout)["distance"] is None


def test_bad_distances_are_refused(library: Path, tmp_path: Path) -> None:
    held = ("evaluate", "fog", "--heldout", tmp_path / "heldout")
    for flag, value in (("--foreign", tmp_path), ("--lora", tmp_path), ("--distance-tokens", 9)):
        assert "give --distance too" in refused(*held, flag, value)
    assert "give --distance too" in refused(*held, "--picture", tmp_path / "far.png")
    assert "give --picture too" in refused(*held, "--distance", "64", "--overwrite")
    assert "not a list of distances" in refused(*held, "--distance", "near")
    assert "not a list of distances; expected 0,64,256: ascending from 0, got -5,0,64" in refused(
        *held, "--distance", "-5,64"
    )
    assert "not a folder of a LoRA adapter" in refused(*held, "--distance", "64", "--lora", tmp_path)
    assert "give shorter distances" in refused(*held, "--distance", "9999", *FAST)


def test_a_prompt_of_another_model_needs_force(library: Path, tmp_path: Path) -> None:
    drop_voice(library / "gptj.zip", seed=5, base=BaseRef(id="x/gptj", family="gptj", d_model=32))
    command = ("evaluate", "gptj", "--heldout", tmp_path / "heldout", *FAST)
    assert "--force" in refused(*command)
    forced = done(*command, "--force")
    assert "warning: gptj" in forced.stderr
