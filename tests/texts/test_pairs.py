"""Pieces to pairs of an encoder-decoder: what it reads and what it writes."""

from __future__ import annotations

import pytest

from sordino.errors import ConfigError, DataError
from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example, make_examples
from sordino.texts.pairs import sentinels_of
from sordino.texts.pieces import Piece, chat
from tests.tiny_models import tiny_base

TEXT = "the keeper wrote of the sea and the ship and of the lamp; " * 4
EOS = 1


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base("t5")


def read_and_written(base: BaseModel, example: Example) -> tuple[str, str]:
    assert example.input is not None
    assert example.labelled == (False,) * example.input + (True,) * (len(example.ids) - example.input)
    return base.decode(example.ids[: example.input]), base.decode(example.ids[example.input :])


def test_a_prompt_and_its_completion_are_texts_of_their_own(base: BaseModel) -> None:
    made = make_examples([Piece("a", "completion", " yes", "is it?")], base, max_tokens=64).examples
    assert read_and_written(base, made[0]) == ("is it?", "yes")
    assert made[0].ids[-1] == EOS


def test_what_is_too_long_loses_the_inputs_beginning_and_the_outputs_end(base: BaseModel) -> None:
    found = make_examples([Piece("a", "completion", TEXT, TEXT)], base, max_tokens=20)
    assert len(found.examples[0].ids) == 20
    assert found.examples[0].input == 5
    assert base.encode(TEXT)[-5:] == list(found.examples[0].ids[:5])
    assert found.examples[0].ids[-1] != EOS
    assert any("lost their end" in note for note in found.notes)


@pytest.mark.parametrize("objective", ["prefix-lm", "span-corruption"])
def test_a_text_becomes_pairs_that_depend_on_its_windows_alone(base: BaseModel, objective: str) -> None:
    piece = Piece("a", "text", TEXT)
    made = [make_examples([piece], base, max_tokens=30, objective=objective).examples for _ in range(2)]
    assert made[0] == made[1]
    assert len(made[0]) == -(-len(base.encode(TEXT)) // 30)


def test_a_prefix_is_read_and_the_rest_written(base: BaseModel) -> None:
    made = make_examples([Piece("a", "text", TEXT)], base, max_tokens=30).examples
    assert [token for example in made for token in example.ids] == base.encode(TEXT)
    assert all(0 < example.input < len(example.ids) for example in made)
    assert len({example.input for example in made}) > 1


def test_spans_are_read_as_sentinels_and_written(base: BaseModel) -> None:
    sentinels = sentinels_of(base)
    ids = base.encode(TEXT)
    made = make_examples([Piece("a", "text", TEXT)], base, max_tokens=40, objective="span-corruption").examples
    again: list[int] = []
    left = 0
    for example in made:
        read, written = list(example.ids[: example.input]), list(example.ids[example.input :])
        assert written.pop() == EOS
        spans: dict[int, list[int]] = {}
        for token in written:
            if token in sentinels:
                spans[token] = []
                last = token
            else:
                spans[last].append(token)
        assert [token for token in read if token in sentinels] == sentinels[: len(spans)] == list(spans)
        left += sum(map(len, spans.values()))
        for token in read:
            again += spans.get(token, [token])
    assert again == ids
    assert 0.1 < left / len(ids) < 0.2


def test_a_heading_is_read_first(base: BaseModel) -> None:
    pieces = [Piece("a", "completion", " yes", "is it?"), Piece("b", "text", TEXT)]
    alone = make_examples(pieces, base, max_tokens=30).examples
    behind = make_examples(pieces, base, max_tokens=30, behind="Answer.\n\n").examples
    heading = len(base.encode("Answer.\n\n"))
    assert [example.ids[heading:] for example in behind] == [example.ids for example in alone]
    assert [example.input for example in behind] == [heading + example.input for example in alone]


def test_a_question_and_its_answer_that_were_read_as_a_chat(base: BaseModel) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    piece = chat("a", [*turns, {"role": "assistant", "content": "Yes."}])
    made = make_examples([piece], base, max_tokens=64).examples
    assert read_and_written(base, made[0]) == ("Be brief.\nIs it?", "Yes.")
    more = chat("b", [*piece.messages, {"role": "user", "content": "No?"}, {"role": "assistant", "content": "No."}])
    with pytest.raises(DataError, match="has no template for turns"):
        make_examples([more], base, max_tokens=64)


def test_what_cannot_be_is_refused() -> None:
    piece = Piece("a", "text", TEXT)
    with pytest.raises(ConfigError, match="no sentinels"):
        make_examples([piece], tiny_base("bart"), max_tokens=30, objective="span-corruption")
    with pytest.raises(ConfigError, match="this is for encoder-decoders"):
        make_examples([piece], tiny_base("llama"), max_tokens=30, objective="span-corruption")
