"""Texts that stand one after another: the whole text's tokens, each with the parts that it has characters of."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from sordino.errors import ModelError
from sordino.models.base_model import BaseModel, from_parts
from sordino.texts.examples import make_examples
from sordino.texts.joined import join, shared_beginning
from sordino.texts.pieces import Piece
from tests.tiny_models import tiny, tiny_base
from tests.word_start import word_start_base


def base_of(tokenizer: object, size: int) -> BaseModel:
    return from_parts(tiny("llama", vocab_size=size), tokenizer, name="tiny", fingerprint="x")


def byte_level_base(*, trim: bool) -> BaseModel:
    """Tokens with spaces on either side, over any characters: GPT-2's kind, and with `trim` offsets as Llama 3 has them."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "a"), ("Ċ", "Ġ"), ("b", "Ġ"), ("Ġ", "Ġ"), ("a", "b"), ("ĊĠ", "ĠĠ")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    return base_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer), len(vocabulary))


BASES = {
    "gpt2": lambda: byte_level_base(trim=False),
    "llama3": lambda: byte_level_base(trim=True),
    "first": lambda: word_start_base("first"),
    "legacy": lambda: word_start_base("legacy"),
    "tiny": lambda: tiny_base("llama"),
}
MADE: dict[str, BaseModel] = {}


def made(name: str) -> BaseModel:
    return MADE.setdefault(name, BASES[name]())


def shown(base: BaseModel, parts: Sequence[str], part: int) -> list[str]:
    joined = join(base, parts)
    return [
        token
        for token, known in zip(
            base.tokenizer.convert_ids_to_tokens(list(joined.ids)), joined.touches({part}), strict=True
        )
        if known
    ]


TEXT = st.text(alphabet="ab \n\u00e9\U0001f388e\u0301lamp", max_size=12)


@pytest.mark.parametrize("name", BASES)
@settings(max_examples=100, deadline=None)
@given(prompt=TEXT, completion=TEXT.filter(bool))
def test_labels_cover_exactly_the_completions_characters(name: str, prompt: str, completion: str) -> None:
    base = made(name)
    whole = prompt + completion
    (example,) = make_examples([Piece("a", "completion", completion, prompt=prompt)], base, max_tokens=999).examples
    end = base.tokenizer.eos_token_id
    ids = list(example.ids) if end is None else list(example.ids[:-1])
    assert ids == base.encode(whole)
    begin = example.labelled.index(True)
    assert all(example.labelled[begin:])
    _, spans = base.encode_spans(whole)
    assert spans is not None
    covered = {at for start, stop in spans[begin:] for at in range(start, stop)}
    assert set(range(len(prompt), len(whole))) <= covered
    # What is not labelled has no character of the completion.
    assert all(stop <= len(prompt) for _, stop in spans[:begin])


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_spans_of_byte_level_tokens_hold_their_spaces(name: str, text: str) -> None:
    base = made(name)
    ids, spans = base.encode_spans(text)
    assert spans is not None
    at = 0
    for token, (start, end) in zip(ids, spans, strict=True):
        size = len(base.tokenizer.convert_ids_to_tokens(token))  # A letter is a byte.
        assert start == len(text.encode()[:at].decode(errors="ignore"))
        at += size
        assert text.encode()[:at].decode(errors="ignore") in (text[:end], text[: end - 1])
    assert at == len(text.encode())


def test_parts_on_token_borders_have_the_tokens_they_have_alone() -> None:
    base = tiny_base("llama")
    joined = join(base, ("The keeper", " wrote", "", "\nof"))
    parts = [base.encode(text) for text in ("The keeper", " wrote", "\nof")]
    assert list(joined.ids) == [token for part in parts for token in part]
    assert [joined.begin(part) for part in range(5)] == [
        0, len(parts[0]), len(parts[0]) + len(parts[1]), len(parts[0]) + len(parts[1]), len(joined.ids),
    ]  # fmt: skip
    assert not any(joined.touches({2}))


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_a_token_across_a_join_touches_both_sides(name: str) -> None:
    base = made(name)
    assert shown(base, ("x ", "ax"), 0) == ["x", "Ġa"]
    assert shown(base, ("x ", "ax"), 1) == ["Ġa", "x"]
    assert shown(base, ("b", " x"), 1) == ["bĠ", "x"]
    assert shown(base, ("b\n", "   x"), 1) == ["ĊĠĠĠ", "x"]


def test_a_tokenizer_without_characters_is_right_or_refuses_by_name() -> None:
    # Bytes: every join is a border of tokens.
    base = base_of(ByT5Tokenizer(), 400)
    assert not base.tokenizer.is_fast
    joined = join(base, ("né", "", " yes"))
    assert list(joined.ids) == base.encode("né yes")
    assert joined.touches({2}) == (False,) * 3 + (True,) * 4
    assert (joined.begin(0), joined.begin(1), joined.begin(2)) == (0, 3, 3)

    class Blind:
        """Fast, but silent about characters."""

        def encode_spans(self, text: str, *, markup: bool) -> tuple[list[int], None]:
            return base_of_words.encode_markup(text) if markup else base_of_words.encode(text), None

    base_of_words = word_start_base()
    blind = Blind()
    for parts in (("Verdict:\n", "yes"), ("The lamp", " was", " cold")):
        assert join(blind, parts) == join(base_of_words, parts)
    with pytest.raises(ModelError, match=r"'Verdict: ' \+ 'yes'.*tokenizer.json"):
        join(blind, ("Verdict: ", "yes"))


def test_what_several_have_in_common() -> None:
    assert shared_beginning([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2
    assert shared_beginning([(1,), (2,)]) == 0
    assert shared_beginning([(), (2,)]) == 0
