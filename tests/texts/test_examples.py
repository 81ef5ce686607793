"""Pieces to examples: which tokens, which labels, and what happens to what is too long."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.errors import ConfigError, DataError, ModelError
from sordino.texts.examples import MIN_TAIL, Example, make_examples, window_borders
from sordino.texts.pieces import Message, Piece, chat
from sordino.texts.reading import read_pieces

END = 1
MARKS = {"<bos>": 0, "<end>": END, "<user>": 2, "<assistant>": 3, "<system>": 4}


class FakeBase:
    """A tokeniser of words with the space in front of them, and a chat template whose marks only `tokenizer` knows.

    strict: as Gemma's template, which writes BOS and refuses a conversation that does not open with the user.
    """

    def __init__(self, *, strict: bool = False, eos: int | None = END) -> None:
        self.words: dict[str, int] = {}
        self.strict = strict
        self.bos_ids: tuple[int, ...] = (0,) if strict else ()
        self.tokenizer: Any = SimpleNamespace(eos_token_id=eos)
        self.encoder_decoder: object | None = None

    def encode(self, text: str) -> list[int]:
        return self.encode_spans(text)[0]

    def encode_spans(self, text: str, *, markup: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        marks = f"{'|'.join(MARKS)}|" if markup else ""
        found = list(re.finditer(rf"{marks} ?\w+| ?[^\w\s]|\s", text))
        ids = [
            MARKS[word] if markup and word in MARKS else self.words.setdefault(word, 10 + len(self.words))
            for word in (match[0] for match in found)
        ]
        return ids, [match.span() for match in found]

    def decode(self, ids: Sequence[int]) -> str:
        known = {i: word for word, i in (*self.words.items(), *MARKS.items())}
        return "".join(known[i] for i in ids)

    def chat_segments(self, messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
        spoken = [message for message in messages if message["role"] != "system"]
        if self.strict and spoken[0]["role"] == "assistant":
            raise ModelError("conversation roles must alternate")
        segments: list[tuple[str, bool]] = [("<bos>", False)] if self.strict else []
        for message in messages:
            segments.append((f"<{message['role']}>", False))
            segments.append((message["content"] + "<end>", message["role"] == "assistant"))
        return segments


def shown(base: FakeBase, example: Example) -> str:
    """The example with brackets around what is labelled."""
    text, inside = "", False
    for i, labelled in zip(example.ids, example.labelled, strict=True):
        text += "[" * (labelled and not inside) + "]" * (inside and not labelled) + base.decode([i])
        inside = labelled
    return text + "]" * inside


def examples(base: FakeBase, *pieces: Piece, max_tokens: int = 1000) -> list[str]:
    return [shown(base, example) for example in make_examples(pieces, base, max_tokens=max_tokens).examples]


def talk(*turns: str, system: str = "") -> Piece:
    """Turns by user and assistant alternately; one that opens with > is the assistant's."""
    said: list[Message] = [{"role": "system", "content": system}] if system else []
    said += [{"role": "assistant" if turn.startswith(">") else "user", "content": turn.lstrip(">")} for turn in turns]
    return chat("log.jsonl", said)


# Texts


@given(n=st.integers(0, 3000), size=st.integers(1, 300))
def test_windows_cover_every_token_exactly_once(n: int, size: int) -> None:
    borders = window_borders(n, size)
    assert [i for first, end in borders for i in range(first, end)] == list(range(n))
    assert all(0 < end - first <= size for first, end in borders)
    if n > size and size >= 2 * MIN_TAIL:
        assert min(end - first for first, end in borders) >= MIN_TAIL


@given(
    words=st.lists(st.sampled_from(["a", "bb", "ccc", ".", "\n"]), min_size=1, max_size=200), size=st.integers(2, 50)
)
def test_examples_of_a_text_are_its_tokens_once_all_labelled(words: list[str], size: int) -> None:
    base, text = FakeBase(), " ".join(words)
    made = make_examples([Piece("a.txt", "text", text)], base, max_tokens=size)
    assert [i for example in made.examples for i in example.ids] == base.encode(text)
    assert all(all(example.labelled) and 0 < len(example.ids) <= size for example in made.examples)


def test_texts_do_not_run_into_each_other_and_carry_no_end_token() -> None:
    base = FakeBase()
    made = make_examples([Piece("a", "text", "one two"), Piece("b", "text", "three")], base, max_tokens=8)
    assert [(shown(base, e), e.piece) for e in made.examples] == [("[one two]", "a"), ("[three]", "b")]
    assert made.notes == ()


# Completions


def test_a_completion_is_labelled_with_its_end_and_its_prompt_is_not() -> None:
    assert examples(FakeBase(), Piece("a", "completion", " blue", "Sky:")) == ["Sky:[ blue<end>]"]
    assert examples(FakeBase(eos=None), Piece("a", "completion", " blue", "Sky:")) == ["Sky:[ blue]"]
    assert examples(FakeBase(), Piece("a", "completion", "blue")) == ["[blue<end>]"]


def test_a_token_across_the_join_is_learned_whole() -> None:
    assert examples(FakeBase(), Piece("a", "completion", "light at sea", "By moon")) == ["By[ moonlight at sea<end>]"]
    assert examples(FakeBase(), Piece("a", "completion", "yes", "Verdict: ")) == ["Verdict:[ yes<end>]"]


def test_a_long_prompt_loses_its_left_and_no_label() -> None:
    base = FakeBase()
    prompt = " ".join(f"w{i}" for i in range(50)) + ":"
    made = make_examples([Piece("a", "completion", " yes it is", prompt)], base, max_tokens=8)
    assert [shown(base, e) for e in made.examples] == [" w47 w48 w49:[ yes it is<end>]"]
    assert made.notes == ("prompts or chats of more than 8 tokens that lost the beginning of their context: 1",)


@given(
    runs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6),
    size=st.integers(4, 40),
)
def test_every_label_is_in_exactly_one_example_and_behind_its_own_context(
    runs: list[tuple[int, int]], size: int
) -> None:
    """Any pattern of unlabelled and labelled runs: here as the segments of a rendered chat."""
    ids, wanted, segments = 100, [], []
    for free, target in runs:
        for length, labelled in ((free, False), (target, True)):
            segments.append(("".join(f"{i} " for i in range(ids, ids + length)), labelled))
            wanted += list(range(ids, ids + length)) if labelled else []
            ids += length
    base = SimpleNamespace(
        tokenizer=SimpleNamespace(eos_token_id=None),
        encoder_decoder=None,
        bos_ids=(),
        encode_spans=lambda text, *, markup: (
            [int(word) for word in text.split()],
            [match.span() for match in re.finditer(r"\d+", text)],
        ),
        encode=None,
        chat_segments=lambda messages: segments,
    )
    piece = talk("hi", ">ho")
    if not wanted:
        with pytest.raises(DataError, match="nothing to learn"):
            make_examples([piece], base, max_tokens=size)
        return
    made = make_examples([piece], base, max_tokens=size).examples
    assert [i for e in made for i, known in zip(e.ids, e.labelled, strict=True) if known] == wanted
    for example in made:
        assert len(example.ids) <= size
        assert list(example.ids) == list(range(example.ids[0], example.ids[0] + len(example.ids)))
        first = example.labelled.index(True)
        assert first >= min(example.ids[first] - 100, size // 4)


# Chats


def test_the_assistants_turns_are_labelled_with_their_end_markers() -> None:
    made = examples(FakeBase(), talk("Hi", ">Hello there", "Bye", ">Farewell", system="Be kind"))
    assert made == [
        "<system>Be kind<end><user>Hi<end><assistant>[Hello there<end>]<user>Bye<end><assistant>[Farewell<end>]"
    ]


def test_the_templates_own_bos_is_left_out() -> None:
    assert examples(FakeBase(strict=True), talk("Hi", ">Hello")) == ["<user>Hi<end><assistant>[Hello<end>]"]


def test_a_greeting_gets_an_empty_user_turn_where_the_template_insists() -> None:
    base = FakeBase(strict=True)
    made = make_examples([talk(">Hello", "Hi", ">So", system="x")], base, max_tokens=99)
    assert shown(base, made.examples[0]).startswith("<system>x<end><user><end><assistant>[Hello<end>]<user>Hi<end>")
    assert len(made.notes) == 1
    assert made.notes[0].endswith(": 1")
    assert examples(FakeBase(), talk(">Hello")) == ["<assistant>[Hello<end>]"]


def test_a_model_without_a_template_refuses_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    base = FakeBase()

    def refuse(messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
        raise ModelError("the model has no chat template")

    monkeypatch.setattr(base, "chat_segments", refuse)
    for piece in (talk("Hi", ">Hello"), talk(">Hello")):
        with pytest.raises(ModelError, match="no chat template"):
            make_examples([piece], base, max_tokens=99)


def test_a_long_chat_is_split_in_front_of_user_turns_behind_its_system_message() -> None:
    base = FakeBase()
    turns = [turn for i in range(6) for turn in (f"ask {i}", f">answer {i}")]
    made = make_examples([talk(*turns, system="kind")], base, max_tokens=20)
    texts = [shown(base, e) for e in made.examples]
    assert len(texts) == 3
    assert all(text.startswith("<system>kind<end><user>ask") for text in texts)
    assert re.findall(r"\[answer (\d)<end>\]", "".join(texts)) == list("012345")
    assert made.notes == ("chats of more than 20 tokens, split before user turns: 1",)


def test_a_single_exchange_that_is_too_long_keeps_its_labels() -> None:
    base = FakeBase()
    answer = " ".join(f"w{i}" for i in range(40))
    made = make_examples([talk("ask " * 30, ">" + answer)], base, max_tokens=16)
    said = [i for e in made.examples for i, known in zip(e.ids, e.labelled, strict=True) if known]
    assert base.decode(said) == answer + "<end>"
    assert any("lost the beginning" in note for note in made.notes)


def test_a_turn_is_not_divided_where_a_cut_before_it_will_do() -> None:
    answers = [" ".join(f"{letter}{i}" for i in range(8)) for letter in "ab"]
    piece = chat(
        "log", [{"role": role, "content": text} for role, text in zip(("assistant",) * 2, answers, strict=True)]
    )
    made = examples(FakeBase(), piece, max_tokens=14)
    assert made == [f"<assistant>[{answers[0]}<end>]", f" a5 a6 a7<end><assistant>[{answers[1]}<end>]"]


def test_a_chat_that_fits_is_never_cut() -> None:
    piece = talk("Hi", ">Hello")
    made = make_examples([piece], FakeBase(), max_tokens=6)
    assert len(made.examples) == 1
    assert made.notes == ()


# Refusals


def test_nothing_to_learn_and_silly_lengths_are_refused() -> None:
    base = FakeBase()
    for pieces in ([], [Piece("a", "text", "")], [talk("only the user")]):
        with pytest.raises(DataError, match="nothing to learn"):
            make_examples(pieces, base, max_tokens=8)
    with pytest.raises(ConfigError, match="--row-tokens"):
        make_examples([Piece("a", "text", "one two")], base, max_tokens=1)


def test_the_corpora_beside_the_project(shared_dir: Path) -> None:
    base = FakeBase()
    for name in ("carroll/train", "bierce/train.jsonl", "reviews/heldout.jsonl"):
        pieces = read_pieces([shared_dir / "data" / name]).pieces
        made = make_examples(pieces, base, max_tokens=128).examples
        learned = [i for e in made for i, known in zip(e.ids, e.labelled, strict=True) if known]
        ends = 0 if name.startswith("carroll") else len(pieces)
        assert len(learned) == sum(len(base.encode(piece.text)) for piece in pieces) + ends
        assert max(len(e.ids) for e in made) <= 128
