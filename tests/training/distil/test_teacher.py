"""The teacher is the model with the text in front, written once and read again to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sordino.errors import DataError
from sordino.training.distil.openings import make_openings
from sordino.training.distil.source import LongText
from sordino.training.distil.teacher import FILE, TextPrompt, continuations
from tests.prompts import prompt_conformance
from tests.training.distil.lessons import WORDS, small_base, small_config


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_text_is_a_prompt(family: str) -> None:
    base = small_base(family, dtype=torch.float64)
    prompt_conformance.check(base, lambda seed: TextPrompt.of(base, base.encode(WORDS)[: 8 + seed]))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_its_probabilities_are_those_of_plain_concatenation(family: str, template: str, tmp_path: Path) -> None:
    base, config = small_base(family), small_config(tmp_path, template=template)
    openings = make_openings(base, LongText(WORDS), config)
    written = continuations(base, openings, config, tmp_path)
    for one in written[:6]:
        front = [*base.bos_ids, *openings.prefix, *one.opening.behind]
        ids = torch.tensor([[*front, *(drawn.token for drawn in one.drawn)]])
        with torch.no_grad():
            logp_NV = base.network(input_ids=ids).logits[0, len(front) - 1 : -1].double().log_softmax(1)
        for logp_V, drawn in zip(logp_NV, one.drawn, strict=True):
            words, values = zip(*drawn.top, strict=True)
            assert drawn.logprob == pytest.approx(float(logp_V[drawn.token]), abs=1e-4)
            assert values == pytest.approx(logp_V[list(words)].tolist(), abs=1e-4)
            assert values[0] == pytest.approx(float(logp_V.max()), abs=1e-4)


def test_every_opening_is_continued_and_measured_ones_once(tmp_path: Path) -> None:
    base, config = small_base(), small_config(tmp_path)
    openings = make_openings(base, LongText(WORDS), config)
    written = continuations(base, openings, config, tmp_path)
    assert len(written) == config.continuations
    assert {one.opening for one in written} == set(openings.openings)
    measured = [one.opening for one in written if one.opening.part != "train"]
    assert len(measured) == len(set(measured))
    again = [one for one in written if one.opening == openings.of("train")[0]]
    assert len({tuple(drawn.token for drawn in one.drawn) for one in again}) == len(again) > 1


def test_they_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, config = small_base(), small_config(tmp_path)
    openings = make_openings(base, LongText(WORDS), config)
    first = continuations(base, openings, config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("sordino.training.distil.teacher.draw", None)
        assert continuations(base, openings, config, tmp_path) == first
    other = make_openings(base, LongText(WORDS + " And"), config)
    assert continuations(base, other, config, tmp_path) != first
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text()[:-20])
    with pytest.raises(DataError, match="delete the file"):
        continuations(base, other, config, tmp_path)


def test_an_end_is_learned_where_the_teacher_ended(tmp_path: Path) -> None:
    base, config = small_base(), small_config(tmp_path)
    openings = make_openings(base, LongText(WORDS), config)
    (one, *_) = continuations(base, openings, config, tmp_path)
    for ended in (False, True):
        example = type(one)(one.opening, one.drawn, ended).alone(1)
        assert sum(example.labelled) == len(one.drawn) + ended
        assert (example.ids[-1] == 1) >= ended


def test_the_file_is_lines_of_json(tmp_path: Path) -> None:
    base, config = small_base(), small_config(tmp_path)
    continuations(base, make_openings(base, LongText(WORDS), config), config, tmp_path)
    head, *lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert set(head) == {"version", "key"}
    assert {line["set"] for line in lines} == {"train", "validation", "heldout"}
