"""Somebody had a model of Llama 2's kind (TinyLlama, Mistral, Zephyr, Phi-3): its tokenizer marks the first word of a text.

Completions and turns were learned and scored with that mark in the middle of the text, where the model never has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from benchmarks.relations import Fact, object_candidates
from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.evaluation import free_answers
from sordino.evaluation.answers import classify, score_rows
from sordino.evaluation.conditions import Baselines, instruction, no_prompt, with_examples
from sordino.evaluation.config import EvaluateConfig, TaskConfig
from sordino.evaluation.free_answers import answer_freely
from sordino.evaluation.measuring import measure
from sordino.evaluation.scoring import windows_behind
from sordino.evaluation.tasks import labels_of
from sordino.models.base_model import BaseModel
from sordino.models.chat_template import chat_ids
from sordino.texts.examples import make_examples
from sordino.texts.pieces import Piece, chat
from tests.server.running import running
from tests.word_start import GREEDY_TEMPLATE, KINDS, TEMPLATE, Kind, word_start_base

TALK = chat(
    "chat.jsonl:1",
    [
        {"role": "user", "content": "I saw"},
        {"role": "assistant", "content": "nothing"},
        {"role": "user", "content": "The lamp"},
        {"role": "assistant", "content": "was cold"},
    ],
)
ROWS = [
    Piece(f"task.jsonl:{n}", "completion", ("yes", "no")[n % 2], prompt=f"{opening} {n}\nVerdict:\n")
    for n, opening in enumerate(["The lamp was lit", "I saw nothing", "The lamp was cold"] * 4)
]


def whole(base: BaseModel, text: str, *, markup: bool = False) -> list[int]:
    """What the tokenizer itself makes of a whole text."""
    found = base.tokenizer(text, add_special_tokens=False, split_special_tokens=not markup)
    return [int(i) for i in found["input_ids"]]


def learned(base: BaseModel, piece: Piece) -> tuple[list[int], str]:
    """An example's ids, and the tokens that are labelled."""
    (example,) = make_examples([piece], base, max_tokens=200).examples
    chosen = [i for i, known in zip(example.ids, example.labelled, strict=True) if known]
    return list(example.ids), " ".join(base.tokenizer.convert_ids_to_tokens(chosen))


def plain(base: BaseModel, ids: Sequence[int], begin: int) -> float:
    """log p of the tokens from `begin` on, by the network alone."""
    logits = base.network(input_ids=torch.tensor([list(ids)])).logits[0]
    logp = logits.log_softmax(-1)
    return float(sum(logp[at - 1, ids[at]] for at in range(begin, len(ids))))


# Training ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_is_learned_as_it_stands_in_the_whole_text(kind: Kind) -> None:
    base = word_start_base(kind)
    for piece in ROWS:
        ids, said = learned(base, piece)
        assert ids == [*whole(base, piece.prompt + piece.text), base.tokenizer.eos_token_id]
        assert said == f"{piece.text} </s>"


def test_a_space_at_the_end_of_the_prompt_is_learned_with_the_word() -> None:
    base = word_start_base()
    ids, said = learned(base, Piece("a", "completion", "yes", prompt="Verdict: "))
    assert ids == [*whole(base, "Verdict: yes"), base.tokenizer.eos_token_id]
    assert said == "▁yes </s>"


@pytest.mark.parametrize("kind", KINDS)
def test_turns_are_learned_as_they_stand_in_the_whole_rendering(kind: Kind) -> None:
    base = word_start_base(kind)
    ids, said = learned(base, TALK)
    rendered = base.tokenizer.apply_chat_template(list(TALK.messages), tokenize=False)
    assert ids == whole(base, rendered, markup=True)
    assert said == "no t h i n g </s> w a s ▁cold </s>"


def test_an_end_marker_that_takes_the_line_break_behind_it_is_still_learned() -> None:
    base = word_start_base(template=GREEDY_TEMPLATE)
    ids, said = learned(base, TALK)
    rendered = base.tokenizer.apply_chat_template(list(TALK.messages), tokenize=False)
    assert ids == whole(base, rendered, markup=True)
    assert said == "no t h i n g <|end|> w a s ▁cold <|end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_a_bos_that_the_template_writes_is_left_out_and_nothing_else(kind: Kind) -> None:
    base = word_start_base(kind, template="<s>" + TEMPLATE, bos=True)
    assert base.bos_ids == (1,)
    rendered = base.tokenizer.apply_chat_template(list(TALK.messages), tokenize=False)
    ids, said = learned(base, TALK)
    assert [1, *ids] == whole(base, rendered, markup=True)
    assert said == "no t h i n g </s> w a s \u2581cold </s>"
    # After another text there is none.
    (behind,) = make_examples([TALK], base, max_tokens=200, behind="The lamp:\n").examples
    assert list(behind.ids) == whole(base, "The lamp:\n" + rendered.removeprefix("<s>"), markup=True)
    assert behind.labelled.count(True) == len(said.split())


@pytest.mark.parametrize("template", [TEMPLATE, GREEDY_TEMPLATE, "<s>" + TEMPLATE])
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_gives_what_training_saw_in_front_of_the_first_turn(kind: Kind, template: str) -> None:
    base = word_start_base(kind, template=template)
    ids, _ = learned(base, chat("c", TALK.messages[:2]))
    opening = chat_ids(base, TALK.messages[:1])
    assert tuple(ids[: len(opening)]) == opening


# Answers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_labels_have_the_log_probability_of_the_whole_text(kind: Kind) -> None:
    base = word_start_base(kind)
    heading, shots = "The lamp?", ROWS[:2]
    shown = heading + "\n\n" + "".join(f"{shot.prompt}{shot.text}\n\n" for shot in shots)
    fronts = {
        "": no_prompt(base),
        heading + "\n\n": instruction(base, heading),
        shown: with_examples(base, heading, shots),
    }
    labels = labels_of(base, ROWS)
    got = score_rows(base, list(fronts.values()), ROWS, labels, TaskConfig())
    for c, front in enumerate(fronts):
        for n, piece in enumerate(ROWS):
            before = whole(base, front + piece.prompt)
            for at, label in enumerate(labels.texts):
                ids = whole(base, front + piece.prompt + label)
                assert ids[: len(before)] == before
                assert got[n, c, at] == pytest.approx(plain(base, ids, len(before)), abs=1e-6)


def test_a_label_that_merges_with_the_prompt_is_scored_as_the_whole_text() -> None:
    base = word_start_base()
    rows = [
        Piece(f"r:{n}", "completion", ("yes", "no", "maybe")[n % 3], prompt=f"The lamp {n} Verdict: ") for n in range(6)
    ]
    labels = labels_of(base, rows)
    assert labels.texts == ("maybe", "no", "yes")
    got = score_rows(base, [no_prompt(base)], rows, labels, TaskConfig())
    for n, piece in enumerate(rows):
        # The space belongs to every label: " maybe" is no token, " yes" and " no" are.
        begin = len(whole(base, piece.prompt[:-1]))
        expected = [plain(base, whole(base, piece.prompt + label), begin) for label in labels.texts]
        assert got[n, 0] == pytest.approx(expected, abs=1e-6)


def test_the_report_says_what_plain_transformers_say() -> None:
    base = word_start_base()
    report = classify(base, {}, {"held": ROWS}, TaskConfig(resamples=100))
    line = next(line for line in report.sets[0].lines if line.kind == "no prompt")
    scores = np.array(
        [
            [plain(base, whole(base, p.prompt + label), len(whole(base, p.prompt))) for label in ("no", "yes")]
            for p in ROWS
        ]
    )
    right = np.array([("no", "yes").index(piece.text) for piece in ROWS])
    own = scores[np.arange(len(ROWS)), right]
    assert line.nll_per_label == pytest.approx(-own.mean(), abs=1e-6)
    assert line.nll.value == pytest.approx((np.log(np.exp(scores).sum(axis=1)) - own).mean(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_free_answers_are_written_and_scored_behind_the_same_ids(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    base = word_start_base(kind)
    seen: list[tuple[int, ...]] = []

    def recorded(base: BaseModel, requests: Sequence[TextRequest], sampling: Sampling) -> list[str]:
        seen.extend(request.text for request in requests if not isinstance(request.text, str))
        return complete(base, requests, sampling)

    monkeypatch.setattr(free_answers, "complete", recorded)
    report = answer_freely(
        base,
        {},
        {"held": ROWS},
        TaskConfig(row_tokens=12, resamples=100),
        max_tokens=3,
        baselines=Baselines(["The lamp?"]),
    )
    # Rows are longer than 12 tokens: they begin in the middle of a word, which no decoded text can say.
    cut = [tuple(whole(base, piece.prompt)[-12:]) for piece in ROWS]
    assert seen == cut * 2
    heading = whole(base, "The lamp?\n\n")
    losses = []
    for piece, ids in zip(ROWS, cut, strict=True):
        answer = whole(base, piece.prompt + piece.text)[len(whole(base, piece.prompt)) :]
        row = [*heading, *ids, *answer, base.tokenizer.eos_token_id]
        losses.append((plain(base, row, len(heading) + 12), len(answer) + 1))
    told = next(line for line in report.sets[0].lines if line.kind == "instruction")
    assert told.nll.value == pytest.approx(-sum(a for a, _ in losses) / sum(n for _, n in losses), abs=1e-6)


def test_objects_of_relations_have_one_space_in_front() -> None:
    facts = [Fact(f"s{n}", obj, f"facts:{n}") for n, obj in enumerate(["lamp", "cold"])]
    for kind in KINDS:
        base = word_start_base(kind)
        candidates = object_candidates(base, facts)
        tokens = base.tokenizer.convert_ids_to_tokens(candidates.tree.ids[candidates.index["lamp"]])
        assert tokens == ["▁lamp"]


# Held-out texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_texts_behind_an_instruction_are_one_text_with_it(kind: Kind) -> None:
    base = word_start_base(kind)
    pieces = [
        Piece("a.txt", "text", "The lamp was cold and I saw nothing"),
        Piece("b", "completion", "yes", prompt="lamp\n"),
        chat("c", TALK.messages[:2]),
    ]
    front = instruction(base, "The lamp:")
    measured, _ = measure(
        base, [front, no_prompt(base)], pieces, EvaluateConfig(row_tokens=100, resamples=100), text="t"
    )
    rendered = front.text + base.tokenizer.apply_chat_template(list(TALK.messages[:2]), tokenize=False)
    marked = base.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    turn = range(rendered.index("nothing"), len(rendered) - 1)
    spoken = [n for n, (start, _) in enumerate(marked["offset_mapping"]) if start in turn]
    answered = [*whole(base, front.text + "lamp\nyes"), base.tokenizer.eos_token_id]
    # Without BOS nothing predicts the first token of a text, so it counts nowhere.
    expected = plain(base, whole(base, front.text + pieces[0].text), len(front.ids) + 1)
    expected += plain(base, answered, len(whole(base, front.text + "lamp\n")))
    expected += plain(base, marked["input_ids"][: spoken[-1] + 1], spoken[0])
    assert measured.lines[0].nll.value * measured.tokens == pytest.approx(-expected, abs=1e-5)


@pytest.mark.parametrize("row_tokens", [4, 7, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_behind_a_text_hold_the_same_text_once(kind: Kind, row_tokens: int) -> None:
    base = word_start_base(kind)
    text, heading = "The lamp was cold and I saw nothing at all", "Verdict:\n"
    pieces = [Piece("a.txt", "text", text)]
    alone, behind = windows_behind(base, pieces, [heading], row_tokens=row_tokens, limit=0, first=True)
    count = len(whole(base, heading))
    assert len(alone) == len(behind) > 0
    assert all(list(window.ids[:count]) == whole(base, heading) for window in behind)
    assert not any(any(window.labelled[:count]) for window in behind)
    assert [i for window in behind for i in window.ids[count:]] == whole(base, heading + text)[count:]
    assert all(all(window.labelled[count:]) for window in behind)
    # Only the first word reads otherwise.
    assert [window.ids[count:] for window in behind[1:]] == [window.ids for window in alone[1:]]


# Serving ----------------------------------------------------------------------------------------------------------------


def test_log_probabilities_keep_a_tokens_space(tmp_path: Path) -> None:
    base = word_start_base(dtype=torch.float32)
    spaced, plain_word = base.tokenizer.convert_tokens_to_ids(["\u2581yes", "yes"])
    bias = {str(spaced): 100, str(plain_word): 99}
    with running(tmp_path, base) as live:
        asked = {
            "model": base.name,
            "prompt": "Verdict:",
            "max_tokens": 1,
            "logit_bias": bias,
            "logprobs": 0,
            "temperature": 0,
        }
        (choice,) = httpx.post(f"{live.url}/v1/completions", json=asked, timeout=30).json()["choices"]
    assert choice["text"] == " yes"
    assert choice["logprobs"]["tokens"] == [" yes"]
    assert [base.token_text(token) for token in (spaced, plain_word, base.tokenizer.eos_token_id)] == [
        " yes",
        "yes",
        "",
    ]
