"""ensemble, and mixtures wherever a command takes a soft prompt, as a user types them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.prompts.mixture import Gate, Mixture
from sordino.prompts.soft_prompt import BaseRef
from tests.cli.commands import done, ok, refused
from tests.cli.tiny_setting import drop_voice, tiny_llama
from tests.prompt_files import matrix

SHORT = ("--max-tokens", 6)


@pytest.fixture
def both(library: Path) -> Mixture:
    """fog and oil as a mixture in the library."""
    parts = tuple(formats.read(library / f"{name}.zip") for name in ("fog", "oil"))
    made = Mixture(parts, np.array([0.7, 0.3])).with_metadata(name="Both", description="Fog and oil.")
    formats.write_mixture(made, library / "both.mix.zip")
    return made


def written(mixture: Mixture, seed: int = 0) -> str:
    return complete(tiny_llama(), [TextRequest("The sea", mixture, seed)], Sampling(max_tokens=6))[0]


# ensemble build


def test_an_ensemble_is_built_from_names(library: Path) -> None:
    said = ok("ensemble", "build", "fog", "oil", "--rule", "vote", "--weights", "3,1", "--out", "e.mix.zip")
    assert "Wrote e.mix.zip: vote of 2 soft prompts" in said
    made = formats.read_any(Path("e.mix.zip"))
    assert isinstance(made, Mixture)
    assert (made.rule, made.weights_K.tolist(), made.metadata.name) == ("vote", [0.75, 0.25], "e")
    assert [part.content_hash for part in made.components] == [
        formats.read(library / f"{name}.zip").content_hash for name in ("fog", "oil")
    ]
    assert made.metadata.training["components"] == ["fog", "oil"]


def test_equal_weights_and_probabilities_unless_said(library: Path) -> None:
    ok("ensemble", "build", "fog", "oil", "--out", "e.mix.zip", "--name", "Evening")
    made = formats.read_any(Path("e.mix.zip"))
    assert isinstance(made, Mixture)
    assert (made.rule, made.weights_K.tolist(), made.metadata.name) == ("probabilities", [0.5, 0.5], "Evening")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fog", "wide", "--out", "e.mix.zip"), "different base models"),
        (("fog", "fgo", "--out", "e.mix.zip"), "did you mean fog"),
        (("fog", "oil", "--out", "e.zip"), "NAME.mix.zip"),
        (("fog", "oil", "--out", "con.mix.zip"), "Windows reserves"),
        (("fog", "oil", "--weights", "1", "--out", "e.mix.zip"), "2 numbers"),
        (("fog", "oil", "--weights", "1,x", "--out", "e.mix.zip"), "2 numbers"),
        (("fog", "oil", "--weights", "1,-1", "--out", "e.mix.zip"), "2 numbers"),
        (("fog", "both", "--out", "e.mix.zip"), "cannot be a component"),
    ],
)
def test_what_is_no_ensemble_is_refused(both: Mixture, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("ensemble", "build", *arguments)
    assert not list(Path().iterdir())


def test_an_existing_file_is_replaced_by_overwrite_only(library: Path) -> None:
    Path("e.mix.zip").write_bytes(b"mine")
    assert "--overwrite" in refused("ensemble", "build", "fog", "oil", "--out", "e.mix.zip", "--force")
    assert Path("e.mix.zip").read_bytes() == b"mine"
    ok("ensemble", "build", "fog", "oil", "--out", "e.mix.zip", "--overwrite")


def test_different_base_models_are_refused_and_equal_ones_kept(library: Path) -> None:
    llama = BaseRef("org/a", "llama", 32, 3, 320)
    drop_voice(library / "a.zip", seed=5, base=replace(llama, fingerprint="a" * 64))
    drop_voice(library / "b.zip", seed=6, base=replace(llama, fingerprint="b" * 64))
    drop_voice(library / "c.zip", seed=7, base=replace(llama, n_layers=4))
    refusal = refused("ensemble", "build", "a", "c", "--out", "e.mix.zip")
    assert "different base models" in refusal
    assert "3 layers" in refusal
    assert "4 layers" in refusal
    ok("ensemble", "build", "a", "b", "--out", "e.mix.zip")
    assert formats.peek(Path("e.mix.zip")).metadata.base == llama


def test_the_same_matrix_twice_is_said(library: Path) -> None:
    drop_voice(library / "mist.zip", seed=1)
    result = done("ensemble", "build", "fog", "mist", "--out", "e.mix.zip")
    assert "mist holds the same numbers as fog" in result.stderr


# The library


def test_a_mixture_is_listed_shown_edited_installed_and_removed(both: Mixture, library: Path) -> None:
    assert "mixture of 2" in ok("list")
    (entry,) = [entry for entry in json.loads(ok("list", "--json")) if entry["name"] == "both"]
    assert (entry["components"], entry["n_tokens"], entry["format"]) == (2, 5, "mixture")
    shown = ok("show", "both")
    assert "mixture of 2, up to 5 tokens x 32" in shown
    assert "0.700  fog" in shown
    told = json.loads(ok("show", "both", "--json"))
    assert [part["weight"] for part in told["components"]] == [0.7, 0.3]
    assert told["rule"] == "sequence"
    assert "placement" not in told
    ok("edit", "both", "--description", "Two voices.")
    assert formats.peek(library / "both.mix.zip").metadata.description == "Two voices."
    assert "Already in the library" in ok("install", library / "both.mix.zip")
    ok("install", library / "both.mix.zip", "--name", "again")
    assert (library / "again.mix.zip").exists()
    ok("remove", "both", "--yes")
    assert not (library / "both.mix.zip").exists()


def test_the_fit_is_the_weakest_components(both: Mixture, library: Path) -> None:
    exact = both.components[0].with_metadata(base=tiny_llama().ref)
    unknown = replace(both, components=(exact, both.components[1]))
    formats.write_mixture(unknown, library / "half.mix.zip")
    assert json.loads(done("show", "half", "--json", "--model", "tiny").stdout)["fit"]["kind"] == "unknown"
    other = both.components[1].with_metadata(base=BaseRef("org/o", "gptj", 32, 9, 9))
    formats.write_mixture(replace(both, components=(exact, other)), library / "half.mix.zip", force=True)
    assert "made for another model" in refused("generate", "The sea", "-p", "half", *SHORT)
    whole = replace(both, components=(exact, exact))
    formats.write_mixture(whole, library / "half.mix.zip", force=True)
    assert json.loads(done("show", "half", "--json", "--model", "tiny").stdout)["fit"]["kind"] == "exact"


def test_no_other_format_holds_a_mixture(both: Mixture) -> None:
    assert "unzip it" in refused("convert", "both", "out.safetensors")
    assert not list(Path().iterdir())


# Writing


def test_a_mixture_writes(both: Mixture, library: Path) -> None:
    assert done("generate", "The sea", "-p", "both", *SHORT).stdout == written(both) + "\n"
    assert done("generate", "The sea", "-p", library / "both.mix.zip", *SHORT).stdout == written(both) + "\n"
    results = json.loads(done("compare", "The sea", "-p", "fog", "-p", "both", "--json", *SHORT).stdout)["results"]
    assert [result["soft_prompt"] for result in results] == [None, "fog", "both"]
    assert results[2]["continuation"] == written(both)


def test_weights_and_token_mixture(both: Mixture, library: Path) -> None:
    said = done("generate", "The sea", "-p", "both", "--weights", "1,9", *SHORT).stdout
    assert said == written(both.with_weights([0.1, 0.9])) + "\n"
    said = done("generate", "The sea", "-p", "both", "--token-mixture", *SHORT).stdout
    assert said == written(replace(both, rule="probabilities")) + "\n"
    gated = replace(both, gate=Gate(matrix(3, 2, 32), np.zeros(2, np.float32)))
    formats.write_mixture(gated, library / "gated.mix.zip")
    assert done("generate", "The sea", "-p", "gated", *SHORT).stdout == written(gated) + "\n"
    said = done("generate", "The sea", "-p", "gated", "--weights", "7,3", *SHORT).stdout
    assert said == written(both) + "\n"


@pytest.mark.parametrize("option", [("--weights", "1,2"), ("--token-mixture",)])
def test_options_of_mixtures_need_one(both: Mixture, option: tuple[str, ...]) -> None:
    for command in (("generate", "x", "-p", "fog"), ("generate", "x"), ("compare", "x", "-p", "fog")):
        assert "none of the soft prompts is a mixture" in refused(*command, *option)
    assert "2 numbers" in refused("generate", "x", "-p", "both", "--weights", "1,2,3")


# evaluate


def test_a_mixture_is_one_condition_and_its_components_are_shown_when_asked(both: Mixture, tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    held.write_text("The keeper wrote of the lamp and the sea. " * 12)
    report = json.loads(done("evaluate", "both", "--heldout", held, "--json", "--row-tokens", 32).stdout)
    lines = [line["label"] for line in report["heldout"]["conditions"] if line["kind"] == "soft prompt"]
    assert lines == ["both"]
    asked = json.loads(done("evaluate", "both", "--components", "--heldout", held, "--json", "--row-tokens", 32).stdout)
    lines = [line for line in asked["heldout"]["conditions"] if line["kind"] == "soft prompt"]
    assert [line["label"] for line in lines] == ["both", "both/0 fog", "both/1 oil"]
    # A mixture of whole texts cannot be worse than its best component by more than that one's weight says.
    assert lines[0]["nll"] <= min(line["nll"] for line in lines[1:]) + 0.1
    assert "none of the soft prompts is a mixture" in refused("evaluate", "fog", "--components", "--heldout", held)


def test_weights_of_nothing_are_not_ignored(library: Path) -> None:
    assert "not weights" in refused("ensemble", "build", "fog", "oil", "--weights", "", "--out", "x.mix.zip")
