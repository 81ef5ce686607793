"""Rows of a task: labels found and named, examples drawn evenly, prompts cut at their beginning."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from sordino.errors import ConfigError, DataError
from sordino.evaluation.answers import score_rows
from sordino.evaluation.conditions import instruction, no_prompt
from sordino.evaluation.config import TaskConfig
from sordino.evaluation.tasks import check_rows, drawn_shots, label_trees, labels_of, rows_behind
from sordino.texts.pieces import Piece
from tests.parity.plain import plain_nll
from tests.texts.test_joined import byte_level_base
from tests.tiny_models import tiny_base


def rows(answers: list[str], prompt: str = "x:") -> list[Piece]:
    return [Piece(f"rows.jsonl:{n}", "completion", answer, prompt=f"{prompt}{n}") for n, answer in enumerate(answers)]


def test_labels_are_what_the_completions_take_in_the_alphabets_order() -> None:
    labels = labels_of(tiny_base("llama"), rows([" good", " bad", " good"]))
    assert labels.texts == (" bad", " good")
    assert [labels.index(piece) for piece in rows([" good", " bad"])] == [1, 0]
    with pytest.raises(DataError, match=r"rows.jsonl:0.*none of the labels"):
        labels.index(rows([" fine"])[0])


def test_named_labels_get_the_white_space_that_the_completions_have() -> None:
    base = tiny_base("llama")
    assert labels_of(base, rows([" good", " bad"]), ["good", " bad ", "mixed"]).texts == (" good", " bad", " mixed")
    assert labels_of(base, rows(["good", "bad"]), ["good", "mixed"]).texts == ("good", "mixed")
    with pytest.raises(ConfigError, match="empty or given twice"):
        labels_of(base, rows([" good"]), ["good", ""])


def test_labels_that_look_alike_are_refused() -> None:
    for answers in ([" good", "good", " bad"], [" good\n", " good", " bad"], ["very good", "very  good", "bad"]):
        with pytest.raises(DataError, match="only in white space"):
            labels_of(tiny_base("llama"), rows(answers))


def test_a_label_that_opens_another_is_refused_with_both_names() -> None:
    with pytest.raises(DataError, match="'good' and 'goods'"):
        labels_of(tiny_base("llama"), rows([" goods", " good"]))


def test_one_label_and_too_many_are_refused() -> None:
    base = tiny_base("llama")
    with pytest.raises(DataError, match="only one label"):
        labels_of(base, rows([" good"] * 5))
    many = rows([f" {n}x" for n in range(101)])
    with pytest.raises(DataError, match="not a closed set"):
        labels_of(base, many)
    assert len(labels_of(base, many, [f"{n}x" for n in range(101)]).texts) == 101


def test_rows_without_a_question_are_refused() -> None:
    with pytest.raises(DataError, match="an empty prompt"):
        check_rows([Piece("r:1", "completion", " good", prompt=" ")], "held")
    with pytest.raises(DataError, match="got a text"):
        check_rows([Piece("r:1", "text", "good")], "held")
    with pytest.raises(DataError, match="no rows"):
        check_rows([], "held")


def test_prompts_lose_their_beginning() -> None:
    base = tiny_base("llama")
    short, long = Piece("a", "completion", " x", prompt="abc"), Piece("b", "completion", " x", prompt="abcdefgh")
    cut = rows_behind(base, no_prompt(base), [short, long], [(" x",)] * 2, 5)
    assert cut.ids == (tuple(base.encode("abc")), tuple(base.encode("abcdefgh")[-5:]))
    assert "beginning: 1" in cut.note
    assert rows_behind(base, no_prompt(base), [short], [(" x",)], 5).note == ""


@pytest.mark.parametrize("count", [1, 2, 4, 6, 7])
def test_examples_show_every_answer_as_often_as_the_others(count: int) -> None:
    pieces = rows([" good"] * 20 + [" bad"] * 5 + [" mixed"] * 3)
    drawn = drawn_shots(pieces, count, seed=3)
    assert len({piece.name for piece in drawn}) == count
    times = Counter(piece.text for piece in drawn)
    assert max(times.values()) - min(times[answer] for answer in (" good", " bad", " mixed")) <= 1
    assert drawn == drawn_shots(pieces, count, seed=3)


def test_a_rare_answer_is_shown_as_often_as_there_is() -> None:
    drawn = drawn_shots(rows([" good"] * 9 + [" bad"]), 6, seed=0)
    assert Counter(piece.text for piece in drawn) == {" good": 5, " bad": 1}
    assert [p.name for p in drawn_shots(rows([" a", " b"] * 9), 4, seed=0)] != [
        p.name for p in drawn_shots(rows([" a", " b"] * 9), 4, seed=1)
    ]
    with pytest.raises(ConfigError, match="too few rows"):
        drawn_shots(rows([" a", " b"]), 3, seed=0)


def test_a_text_in_front_gives_its_last_token_to_rows_that_change_it() -> None:
    base = byte_level_base(trim=False)
    pieces = [
        Piece(f"r:{n}", "completion", ("b", "x")[n % 2], prompt=prompt) for n, prompt in enumerate(("   ax", "xx"))
    ]
    front = instruction(base, "b")
    found = rows_behind(base, front, pieces, [("b", "x")] * 2, 99)
    # "\n" and three spaces are one token: the last line break of the heading is a row's own.
    assert found.condition.ids == front.ids[:-1] == tuple(base.encode("b\n"))
    assert [(*found.condition.ids, *ids) for ids in found.ids] == [
        tuple(base.encode(f"b\n\n{p.prompt}")) for p in pieces
    ]
    assert (found.condition.length, found.condition.tokens, front.tokens) == (2, 2, 3)
    # Cut, a row begins in its middle, and the heading is whole.
    cut = rows_behind(base, front, pieces, [("b", "x")] * 2, 1)
    assert [(*cut.condition.ids, *ids) for ids in cut.ids] == [(*front.ids, *base.encode("x"))] * 2
    got = score_rows(base, [no_prompt(base), front], pieces, labels_of(base, pieces), TaskConfig())
    for n, piece in enumerate(pieces):
        for at, label in enumerate(("b", "x")):
            before = base.encode(f"b\n\n{piece.prompt}")
            flags = [False] * len(before) + [True]
            expected = plain_nll(
                base.network, base.embed(torch.tensor([], dtype=torch.long)), [*before, *base.encode(label)], flags
            )
            assert got[n, 1, at] == pytest.approx(-float(expected.sum()), abs=1e-6)


def test_rows_share_a_tree_of_labels_where_their_tokens_agree() -> None:
    trees = label_trees([((1,), (2,)), ((1,), (3,)), ((1,), (2,))], ["a", "b"])
    assert trees[0] is trees[2]
    assert trees[1].ids == ((1,), (3,))
    with pytest.raises(DataError, match="'a' and 'b'"):
        label_trees([((1,), (2,)), ((1,), (1, 2))], ["a", "b"])
