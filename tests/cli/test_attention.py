"""--hold and --strength, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino import formats
from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.prompts.attention import PromptAttention
from sordino.prompts.mixture import Mixture, with_attention
from tests.cli.commands import ok, refused, run
from tests.cli.tiny_setting import tiny_llama

TEXT = "The sea and the keeper of the lamp wrote of the ship that was in the fog"


def written(library: Path, *options: object, name: object = "fog") -> str:
    found: str = json.loads(run("generate", TEXT, "-p", name, "--json", "--max-tokens", 12, *options).stdout)[
        "continuation"
    ]
    return found


def expected(path: Path, hold: Any = None, strength: Any = None) -> str:
    prompt = with_attention(formats.read_any(path), hold, strength)
    return complete(tiny_llama(), [TextRequest(TEXT, prompt, 0)], Sampling(max_tokens=12))[0]


def test_generate_holds_in_place_of_the_file(library: Path) -> None:
    fog = library / "fog.zip"
    assert written(library, "--hold", 2, "--strength", 3) == expected(fog, 2, 3.0) != written(library)
    assert ok("edit", "fog", "--hold", 2, "--strength", 3).count("attention: hold 2, strength 3") == 1
    assert formats.read(fog).metadata.attention == PromptAttention(2, 3.0)
    assert written(library) == expected(fog) == expected(fog, 2, 3.0)
    assert written(library, "--hold", "off", "--strength", 1) == expected(fog, "off", 1)
    for command in ("show", "list"):
        assert "hold 2, strength 3" in " ".join(ok(command, *(["fog"] if command == "show" else [])).split())
    assert "attention: plain" in ok("edit", "fog", "--hold", "off", "--strength", 1)


def test_components_keep_their_own_or_get_one_each(library: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.mix.zip"
    ok("edit", "fog", "--hold", 3)
    ok("ensemble", "build", "fog", "oil", "--out", out, "--force")
    mixed = formats.read_any(out)
    assert isinstance(mixed, Mixture)
    assert [str(part.metadata.attention) for part in mixed.components] == ["hold 3", "plain"]
    assert written(library, "--hold", "off,2", "--strength", "1,2", "--force", name=out) == expected(
        out, ["off", 2], [1, 2]
    )
    ok("edit", out, "--strength", "2,1")
    edited = formats.read_any(out)
    assert isinstance(edited, Mixture)
    assert [str(part.metadata.attention) for part in edited.components] == ["hold 3, strength 2", "plain"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--hold", "on"), "--hold: not understood"),
        (("--hold", "1.5"), "--hold: not understood"),
        (
            ("--hold", "2000000"),
            "--hold: out of range; expected a whole number of tokens from 1 to 1000000, or off, got",
        ),
        (("--strength", "much"), "--strength: not understood"),
        (("--strength", "9"), "--strength: out of range"),
        (("--hold", "1,2"), "--hold: a list is for a mixture's components"),
    ],
)
def test_what_cannot_be_is_refused(library: Path, options: tuple[str, str], words: str) -> None:
    assert words in refused("generate", TEXT, "-p", "fog", *options)


def test_without_a_prompt_it_does_nothing_and_is_refused(library: Path) -> None:
    assert "no soft prompt to hold" in refused("generate", TEXT, "--hold", 5)


def test_other_formats_warn_that_they_lose_it(library: Path, tmp_path: Path) -> None:
    ok("edit", "fog", "--hold", 128)
    for name, words in (
        ("fog.npy", "an .npy file cannot say so"),
        ("peft", "PEFT ignores that"),
        ("k.zip", "KoboldAI ignores"),
    ):
        said = " ".join(run("convert", "fog", tmp_path / name, "--force").stderr.split())
        assert "this soft prompt has hold 128" in said
        assert words in said


@pytest.mark.parametrize("hold", ["0x", "1.5", "-5", "9" * 5000, "64,,"])
def test_what_is_no_hold_is_refused_in_one_line(library: Path, hold: str) -> None:
    assert refused("generate", TEXT, "-p", "fog", "--hold", hold).startswith("error: --hold")
