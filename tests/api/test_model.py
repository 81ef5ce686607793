"""A model writes texts, one or many, after what soft prompts it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sordino
from sordino.engine.config import Sampling
from sordino.engine.generate import TextRequest, complete
from sordino.errors import BadInput, ConfigError, DoesNotFit
from tests.api.inputs import prompt
from tests.tiny_models import tiny_base


def test_a_text_gives_a_text_and_lists_give_a_list(model) -> None:
    own, both = prompt(model.base), ["The keeper", "ships and the sea"]
    mixture = sordino.Mixture((own, prompt(model.base, seed=1)), [0.5, 0.5])
    sampling = Sampling(max_tokens=9)
    expected = complete(model.base, [TextRequest(text, own, 7) for text in both], sampling)
    assert model.generate(both, own, seed=7, max_tokens=9) == expected
    assert model.generate(both[0], own, seed=7, max_tokens=9) == expected[0]
    assert model.generate(both, [own, own], seed=[7, 7], max_tokens=9) == expected
    rows = [TextRequest(both[0], each, 7) for each in (None, own, mixture)]
    assert model.generate(both[0], [None, own, mixture], seed=7, max_tokens=9) == complete(model.base, rows, sampling)
    assert model.generate([], own) == []
    pieces = list(model.stream(both, own, seed=7, max_tokens=9))
    assert ["".join(piece.text for piece in pieces if piece.request == row) for row in (0, 1)] == expected
    assert sum(piece.finish is not None for piece in pieces) == 2


def test_hold_and_strength_take_the_place_of_the_prompts_own(model) -> None:
    own = prompt(model.base)
    text = "The keeper wrote of the sea and of the ship"
    mixture = sordino.Mixture((own, prompt(model.base, seed=1)), [0.5, 0.5])
    held = own.with_metadata(attention=sordino.PromptAttention(hold=2, strength=3))
    rows = [TextRequest(text, each, 7) for each in (None, held)]
    expected = complete(model.base, rows, Sampling(max_tokens=9))
    assert model.generate(text, [None, own], seed=7, max_tokens=9, hold=2, strength=3) == expected
    assert model.generate(text, held, seed=7, max_tokens=9) == expected[1]
    off = model.generate(text, held, seed=7, max_tokens=9, hold="off", strength=1)
    assert off == model.generate(text, own, seed=7, max_tokens=9)
    pieces = model.stream(text, own, seed=7, max_tokens=9, hold=2, strength=3)
    assert "".join(piece.text for piece in pieces) == expected[1]
    each = sordino.Mixture((held, mixture.components[1]), [0.5, 0.5])
    found = model.generate(text, mixture, seed=7, max_tokens=9, hold=[2, 0], strength=[3, 1])
    assert found == model.generate(text, each, seed=7, max_tokens=9)
    with pytest.raises(ConfigError, match="no soft prompt to hold"):
        model.generate(text, hold=2)


def test_stop_is_a_text_or_several(model) -> None:
    whole = model.generate("The keeper", max_tokens=30, temperature=0)
    end = whole[4:6]
    assert model.generate("The keeper", max_tokens=30, temperature=0, stop=end) == whole[: whole.index(end)]
    assert model.generate("The keeper", max_tokens=30, temperature=0, stop=["\0", end]) == whole[: whole.index(end)]


def test_what_cannot_be_is_refused(model) -> None:
    with pytest.raises(BadInput, match="2 texts, 3 prompts, 1 seeds"):
        model.generate(["a", "b"], [None, None, None])
    for wrong in (5, None, ["a", 5], [[1, 2]]):
        with pytest.raises(BadInput, match="text: wrong type; expected a string, or a list of them, got"):
            model.generate(wrong)
    with pytest.raises(ConfigError, match="unknown setting; got max_token"):
        model.generate("a", max_token=3)
    with pytest.raises(DoesNotFit):
        model.generate("a", prompt(model.base, width=16))
    other = prompt(model.base).with_metadata(base=sordino.Model(tiny_base("gpt2", dtype=torch.float32)).base.ref)
    assert model.fit(other).kind == "no"
    with pytest.raises(DoesNotFit, match="family gpt2 instead of llama"):
        model.generate("a", other)
    assert model.generate("a", other, force=True, max_tokens=3) == model.generate("a", prompt(model.base), max_tokens=3)


def test_a_model_of_transformers_writes_the_same(model) -> None:
    taken = sordino.Model.from_transformers(model.base.network, model.base.tokenizer, name="mine")
    assert taken.base.name == "mine"
    own = prompt(model.base)
    assert taken.generate("The keeper", own, max_tokens=8) == model.generate("The keeper", own, max_tokens=8)


@pytest.mark.parametrize("given", ["keeper", "voice.zip", 3, ["keeper"]])
def test_a_name_is_no_soft_prompt(model, given: object, tmp_path: Path) -> None:
    with pytest.raises(sordino.SordinoError, match=r"prompt: not a soft prompt; got .*; sordino\.load"):
        model.generate("the sea", given)
    with pytest.raises(sordino.SordinoError, match="not a soft prompt"):
        sordino.evaluate(model, given, heldout=tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": "one"}, "seed: out of range"),
        ({"temperature": "hot"}, "temperature: a setting is of the wrong type; expected a number, got 'hot'"),
        ({"max_token": 3}, r"unknown setting; got max_token; did you mean max_tokens\?"),
        ({"strength": "2"}, "strength: out of range; expected a number from 0.25 to 4, got '2'"),
    ],
)
def test_settings_of_another_type_are_refused_by_name(model, settings: dict[str, object], words: str) -> None:
    with pytest.raises(sordino.SordinoError, match=words):
        model.generate("the sea", prompt(model.base), **settings)
