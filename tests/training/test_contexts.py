"""Text between prompt and rows: which steps have it, and what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sordino.texts.neutral import training_texts
from sordino.training.contexts import BREAK, SHORTEST, Contexts, neutral_ids
from sordino.training.events import Validation
from sordino.training.form import form_of
from sordino.training.gradient import Batch, mean_nlls
from sordino.training.loop import Run, RunGroup, train, train_group
from tests.tiny_models import CONTEXT
from tests.training.runs import CONFIG, small_base, small_set, start_of


def _contexts(**changes: object) -> Contexts:
    base = small_base()
    return Contexts.of(base, replace(CONFIG, **{"context_tokens": 100, **changes}), small_set(base).train)


@pytest.mark.parametrize(("share", "steps"), [(0.5, 50), (0.25, 25), (1.0, 100), (0.0, 0), (0.07, 7)])
def test_a_share_of_the_steps_has_text_between_evenly_spread(share: float, steps: int) -> None:
    contexts = _contexts(context=share)
    has = [bool(contexts.at(step)) for step in range(100)]
    assert sum(has) == steps
    assert all(abs(sum(has[: step + 1]) - share * (step + 1)) <= 1 for step in range(100))


def test_a_context_is_text_of_the_package_or_of_the_run() -> None:
    base, contexts = small_base(), _contexts(context=1.0, context_tokens=70)
    own = [token for example in contexts.own for token in example.ids]
    sources = {"neutral": neutral_ids(base), "own": tuple(own)}

    def source_of(ids: tuple[int, ...]) -> str:
        body = ids[: -len(contexts.ending)]
        assert SHORTEST <= len(body) <= 70
        return next(
            name
            for name, text in sources.items()
            if any(tuple(text[at : at + len(body)]) == body for at in range(len(text) - len(body) + 1))
        )

    names = [source_of(contexts.at(step)) for step in range(40)]
    assert 2 <= names.count("own") < names.count("neutral")


def test_the_same_step_has_the_same_text_and_seeds_agree_in_lengths() -> None:
    first, other = _contexts(context=1.0), _contexts(context=1.0, seed=1)
    assert [first.at(step) for step in range(9)] == [_contexts(context=1.0).at(step) for step in range(9)]
    assert [first.at(step) for step in range(9)] != [other.at(step) for step in range(9)]
    assert [len(first.at(step)) for step in range(9)] == [len(other.at(step)) for step in range(9)]


def test_contexts_grow_to_their_longest_over_the_run() -> None:
    contexts = _contexts(context=1.0, context_tokens=130, steps=400)
    lengths = [len(contexts.at(step)) - len(contexts.ending) for step in range(400)]
    assert all(SHORTEST <= length <= SHORTEST + 66 * (step + 1) / 400 + 1 for step, length in enumerate(lengths))
    assert max(lengths[:100]) < 90 < 125 < max(lengths[300:])
    assert min(lengths[300:]) < 80


def test_a_context_leaves_room_for_prompt_and_row() -> None:
    contexts = _contexts(context=1.0, context_tokens=10_000)
    most = max(len(contexts.at(step)) for step in range(200))
    assert most + CONFIG.tokens + CONFIG.row_tokens + 1 <= CONTEXT
    assert most > CONTEXT // 2
    assert not _contexts(context=1.0, row_tokens=CONTEXT - 6).at(0)


def test_runs_that_are_trained_together_encode_the_packaged_texts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, read = small_base(), []
    monkeypatch.setattr("sordino.training.contexts.training_texts", lambda: read.append("all") or training_texts())
    config = replace(CONFIG, steps=1, context=1.0, context_tokens=20)
    runs = []
    for name in "ab":
        (tmp_path / name).mkdir()
        runs.append(Run(name, small_set(base), config, tmp_path / name, start_of(base)))
    (tmp_path / "together").mkdir()
    list(train_group(base, RunGroup(runs, tmp_path / "together")))
    assert read == ["all"]


def test_a_run_goes_on_with_the_texts_that_it_began_with() -> None:
    assert _contexts().identity() == _contexts().identity() != _contexts(context_tokens=99).identity()
    assert _contexts(context=0.0).identity() == {}


@pytest.mark.parametrize("context", [0.0, 0.5])
def test_a_run_with_contexts_is_judged_behind_one_too(context: float, tmp_path: Path) -> None:
    base = small_base()
    config = replace(CONFIG, context=context, context_tokens=40, hold=8)
    run = Run("", small_set(base), config, tmp_path, start_of(base))
    first = next(event for event in train(base, run) if isinstance(event, Validation))
    form, (*rows,) = form_of(base, config), run.data.validation
    between = (*neutral_ids(base)[:20], *base.encode(BREAK))
    sets = [(rows[::2], ()), (rows[1::2], between)] if context else [(rows, ())]
    batches = [Batch(form.source(run.start_PD, ids), part) for part, ids in sets]
    losses = mean_nlls(base, batches, config.pass_tokens)
    expected = sum(loss * batch.labelled for loss, batch in zip(losses, batches, strict=True))
    assert first.loss == pytest.approx(expected / sum(batch.labelled for batch in batches), rel=1e-6)
