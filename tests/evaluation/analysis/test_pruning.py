"""Greedy pruning on losses that are known, and on a tiny model against doing it by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sordino.errors import ConfigError
from sordino.evaluation.analysis.losses import losses_of, passage_of, without
from sordino.evaluation.analysis.pruning import Stage, default_block, greedy, pruned, rounds_of, stages_of, within
from sordino.evaluation.config import PruneConfig
from sordino.prompts.soft_prompt import BaseRef, Metadata
from tests.evaluation.analysis.looked_at import PIECES, voice
from tests.tiny_models import tiny_base

WORTH = (5.0, 1.0, 4.0, 2.0, 3.0)


def loss_of(sets: Sequence[tuple[int, ...]]) -> list[float]:
    """Each position takes its worth off the loss."""
    return [100 - sum(WORTH[at] for at in kept) for kept in sets]


def test_the_least_worth_goes_first() -> None:
    stages = greedy(5, loss_of, down_to=1, block=1)
    assert [stage.kept for stage in stages] == [(0, 1, 2, 3, 4), (0, 2, 3, 4), (0, 2, 4), (0, 2), (0,)]
    assert [stage.loss for stage in stages] == [85, 86, 88, 91, 95]


def test_blocks_are_measured_as_they_are() -> None:
    stages = greedy(5, loss_of, down_to=2, block=2)
    assert [stage.kept for stage in stages] == [(0, 1, 2, 3, 4), (0, 2, 4), (0, 2)]
    assert [stage.loss for stage in stages] == [85, 88, 91]


def test_tokens_that_work_together_are_not_dropped_together() -> None:
    """Either of the first two suffices: greedy drops one and keeps the other, though both look idle at first."""

    def measure(sets: Sequence[tuple[int, ...]]) -> list[float]:
        return [10 - 5 * bool({0, 1} & set(kept)) - 1 * (2 in kept) for kept in sets]

    assert [stage.kept for stage in greedy(3, measure, down_to=1, block=1)] == [(0, 1, 2), (1, 2), (1,)]


@pytest.mark.parametrize(("count", "down_to", "block"), [(5, 1, 1), (7, 2, 3), (4, 4, 1), (9, 1, 4)])
def test_rounds_are_counted_ahead(count: int, down_to: int, block: int) -> None:
    measured = 0

    def measure(sets: Sequence[tuple[int, ...]]) -> list[float]:
        nonlocal measured
        measured += len(sets)
        return [float(sum(kept)) for kept in sets]

    greedy(count, measure, down_to=down_to, block=block)
    assert measured == rounds_of(count, down_to=down_to, block=block)


def test_within_a_tolerance() -> None:
    stages = [Stage((0, 1, 2), 1.0, 2.0), Stage((0, 1), 0.9, 2.05), Stage((0,), 0.8, 2.3)]
    assert within(stages, 0.0) == stages[0]
    assert within(stages, 0.1) == stages[1]
    assert within(stages, 1.0) == stages[2]
    assert within([Stage((0, 1), 1.0), Stage((0,), 0.5)], 0).kept == (0,)


def test_long_prompts_go_in_blocks() -> None:
    assert [default_block(count) for count in (1, 20, 24, 25, 100)] == [1, 1, 1, 2, 5]


def test_a_real_prompt_is_shortened_and_measured_as_it_is() -> None:
    base = tiny_base("llama")
    prompt = voice(tokens=4)
    passage = passage_of(base, PIECES[:3], row_tokens=24, limit=0)
    other = passage_of(base, PIECES[3:], row_tokens=24, limit=0)
    seen = []
    stages = stages_of(
        base,
        prompt,
        passage,
        other,
        PruneConfig(tokens=2, block=1, pass_tokens=500),
        progress=lambda done, total: seen.append((done, total)),
    )
    # By hand: every shorter prompt alone.
    matrix, kept = prompt.matrix, [0, 1, 2, 3]
    for stage in stages[1:]:
        losses = [
            float(losses_of(base, [without(matrix, at)], Metadata(), passage, pass_tokens=500)[0])
            for at in range(len(kept))
        ]
        at = int(np.argmin(losses))
        matrix = without(matrix, at)
        kept.pop(at)
        assert stage.kept == tuple(kept)
        assert stage.loss == pytest.approx(min(losses), abs=1e-10)
        assert stage.heldout == pytest.approx(
            float(losses_of(base, [matrix], Metadata(), other, pass_tokens=500)[0]), abs=1e-10
        )
    assert seen[-1] == (8, 8)
    np.testing.assert_array_equal(pruned(prompt, stages, stages[-1], tokens=1).matrix, matrix)


def test_what_was_dropped_is_in_its_metadata() -> None:
    prompt = voice(tokens=3).with_metadata(
        base=BaseRef(id="org/small"),
        licence="MIT",
        training={"steps": 5},
        heldout={"nll": 1},
        samples=({"prompt": "a"},),
    )
    stages = [Stage((0, 1, 2), 1.0, 2.0), Stage((0, 2), 1.1, 2.123456)]
    short = pruned(prompt, stages, stages[1], tokens=77)
    assert short.metadata.training == {
        "steps": 5,
        "pruned": {
            "of": prompt.content_hash,
            "tokens_before": 3,
            "dropped": [2],
            "loss_before": 2.0,
            "loss_after": 2.12346,
            "measured_tokens": 77,
        },
    }
    again = pruned(short, [Stage((0, 1), 1.0), Stage((1,), 1.5)], Stage((1,), 1.5), tokens=7)
    assert again.metadata.training["pruned"]["earlier"] == short.metadata.training["pruned"]
    assert again.metadata.training["pruned"]["of"] == short.content_hash
    assert (short.metadata.licence, short.metadata.base.id, short.metadata.name) == ("MIT", "org/small", "voice 1")
    # Of the whole prompt, and not true of this one.
    assert (short.metadata.heldout, short.metadata.samples) == ({}, ())


def test_lengths_that_do_not_exist_are_refused() -> None:
    base = tiny_base("llama")
    passage = passage_of(base, PIECES, row_tokens=24, limit=0)
    for down_to, block, flag in ((0, 1, "--tokens"), (6, 1, "--tokens"), (2, 0, "--block")):
        with pytest.raises(ConfigError, match=flag):
            stages_of(base, voice(), passage, None, PruneConfig(tokens=down_to, block=block, pass_tokens=500))
