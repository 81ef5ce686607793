"""Continuations after other text: what is written with what, and what is made of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sordino.engine.generate import TextRequest, draw
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError
from sordino.evaluation.between import foreign_texts
from sordino.evaluation.config import ContinuationConfig, DistanceConfig, EvaluateConfig
from sordino.evaluation.continuations import (
    ContinuationReport,
    distinct_share,
    measure_continuations,
    repeated_share,
    table,
    to_json,
)
from sordino.evaluation.measuring import evaluate
from sordino.evaluation.report import to_json as report_json
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PromptAttention
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.neutral import BREAK
from sordino.texts.pieces import Piece
from tests.prompts.kv_of import kv_of
from tests.tiny_models import tiny_base

CONFIG = ContinuationConfig(count=9, tokens=12, behind=20)
SETTINGS = EvaluateConfig(limit=100, row_tokens=32, resamples=100, continuations=CONFIG)
HELDOUT = [Piece(f"{n}.txt", "text", f"The keeper {n} wrote of the sea and the lamp. " * 4) for n in range(6)]


def voice(base: BaseModel, hold: int | None = None, seed: int = 0) -> SoftPrompt:
    values = np.random.default_rng(seed).standard_normal((4, base.d_model)).astype(np.float32) * 0.5
    return SoftPrompt(values, Metadata(placement=base.placement, attention=PromptAttention(hold=hold)))


def measured(base: BaseModel, prompts: dict[str, SoftPrompt], **distance: object) -> ContinuationReport:
    return measure_continuations(base, prompts, replace(SETTINGS, distance=DistanceConfig(**distance)))


def test_shares_of_what_is_repeated_and_of_what_differs() -> None:
    assert repeated_share((1, 2, 3, 4, 5, 6)) == 0
    assert repeated_share((1, 2, 1, 2, 1, 2, 1)) == 0.5
    assert repeated_share((7, 7, 7, 7, 7, 7)) == pytest.approx(2 / 3)
    assert repeated_share((1, 2, 3)) == 0
    assert distinct_share([(1, 2, 3), (1, 2), (4,)]) == pytest.approx(2 / 3)
    assert distinct_share([(), (1,)]) == 0


def test_each_soft_prompt_is_held_and_not_and_there_is_a_line_without() -> None:
    base = tiny_base("llama")
    found = measured(base, {"a": voice(base), "b": voice(base, 8), "c": kv_of(base, voice(base, 8))}, hold=6)
    assert [(line.label, line.hold, line.changed) for line in found.lines] == [
        ("a", None, False),
        ("a", 6, True),
        *((label, hold, hold != 8) for label in ("b", "c") for hold in (8, 6, None)),
        ("", None, False),
    ]
    assert found.lines[-1].more.value == 0
    # Keys and values that do what the vectors do write what they write.
    for one, other in zip(found.lines[2:5], found.lines[5:8], strict=True):
        assert (one.distinct, one.repeated, one.tokens) == (other.distinct, other.repeated, other.tokens)
    assert measured(base, {"b": voice(base, 8)}) == measured(base, {"b": voice(base, 8)})


def test_the_numbers_are_those_of_the_texts() -> None:
    """Of the same requests, each drawn alone."""
    base = tiny_base("llama")
    prompt, settings = voice(base), replace(SETTINGS, seed=3, continuations=replace(CONFIG, count=5))
    settings = replace(settings, distance=DistanceConfig(foreign=tuple(HELDOUT)))
    line = measure_continuations(base, {"a": prompt}, settings).lines[0]
    texts = []
    for n, opening in enumerate(foreign_texts(base, HELDOUT, 20, 5, seed=3).texts):
        request = TextRequest((*opening, *base.encode(BREAK)), prompt, 3 + n)
        (drawn,) = draw(base, [request], Sampling(max_tokens=12), rows=1)
        texts.append(tuple(one.token for one in drawn.tokens))
    assert line.distinct == distinct_share(texts)
    assert line.repeated.value == pytest.approx(np.mean([repeated_share(ids) for ids in texts]))
    assert line.tokens.value == pytest.approx(np.mean([len(ids) for ids in texts]))
    # Too few for an interval.
    assert line.repeated.interval is None


def test_a_mixture_is_held_and_not() -> None:
    base = tiny_base("llama")
    mixed = Mixture((voice(base, 8), voice(base, 8, seed=1)), np.array([0.5, 0.5]), "probabilities")
    assert [line.hold for line in measured(base, {"m": mixed}).lines] == [8, None, None]


def test_it_is_in_the_report_its_table_and_its_json() -> None:
    base = tiny_base("llama")
    report = evaluate(base, {"a": voice(base, 8)}, HELDOUT, SETTINGS)
    assert report.continuations is not None
    assert [row[0] for row in table(report.continuations).rows] == [
        "soft prompt a, held from 8", "soft prompt a, not held", "no prompt"
    ]  # fmt: skip
    assert "distinct-2" in str(report)
    assert report_json(report)["continuations"] == to_json(report.continuations)
    assert [line["as_in_file"] for line in to_json(report.continuations)["lines"]] == [True, False, True]
    plain = evaluate(base, {"a": voice(base)}, HELDOUT, replace(SETTINGS, continuations=None))
    assert report_json(plain)["continuations"] is None


def test_what_does_not_fit_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    monkeypatch.setattr(base.network, "forward", None)
    with pytest.raises(ConfigError, match="leave --continuations out"):
        evaluate(base, {"a": voice(base)}, HELDOUT, replace(SETTINGS, continuations=ContinuationConfig()))
