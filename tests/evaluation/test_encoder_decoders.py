"""Measuring prompts of encoder-decoders: held-out texts, tasks, what each virtual token does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sordino.errors import ConfigError
from sordino.evaluation.analysis.inspection import inspected
from sordino.evaluation.answers import classify, score_rows
from sordino.evaluation.conditions import Condition, instruction, no_prompt, soft_prompt
from sordino.evaluation.config import DistanceConfig, EvaluateConfig, InspectConfig, TaskConfig
from sordino.evaluation.free_answers import answer_freely
from sordino.evaluation.measuring import evaluate
from sordino.evaluation.tasks import labels_of
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.pieces import Piece
from tests.parity.plain_pairs import plain_pair_nll
from tests.tiny_models import tiny_base

TOLERANCE = 1e-7
ROWS = [
    Piece(f"r:{n}", "completion", " lamp" if n % 2 else " seashell", prompt=f"the {word} was seen from")
    for n, word in enumerate(("keeper", "ship", "sea", "fog of the night"))
]
TEXTS = [Piece(f"t:{n}", "text", "the keeper wrote of the sea and the ship, and of the lamp. " * 3) for n in range(3)]


@pytest.fixture(scope="module", params=["t5", "mt5", "bart", "t5gemma"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return tiny_base(request.param)


def prompt_of(base: BaseModel, tokens: int, seed: int = 0) -> SoftPrompt:
    matrix = np.random.default_rng(seed).normal(size=(tokens, base.d_model)) * base.embedding_rms
    return SoftPrompt(matrix.astype(np.float32), Metadata(name=f"p{tokens}", placement="start", base=base.ref))


def plain(base: BaseModel, prompt: SoftPrompt | None, read: str, written: list[int]) -> float:
    matrix = torch.from_numpy(prompt.matrix.copy()) if prompt else torch.zeros(0, base.d_model)
    return float(plain_pair_nll(base, matrix, base.encode(read), written).sum())


def test_held_out_rows_are_measured_as_plain_concatenation(base: BaseModel) -> None:
    prompt = prompt_of(base, 5)
    report = evaluate(base, {"p": prompt}, ROWS, EvaluateConfig(resamples=100), progress=lambda done, total: None)
    outputs = [[*base.encode(piece.text.lstrip()), 1] for piece in ROWS]
    tokens = sum(map(len, outputs))
    for kind, own in (("soft prompt", prompt), ("no prompt", None)):
        line = next(line for line in report.heldout.lines if line.kind == kind)
        expected = sum(plain(base, own, piece.prompt, ids) for piece, ids in zip(ROWS, outputs, strict=True)) / tokens
        assert abs(line.nll.value - expected) < TOLERANCE


def test_labels_are_scored_as_plain_concatenation(base: BaseModel) -> None:
    prompt = prompt_of(base, 5)
    labels = labels_of(base, ROWS)
    conditions: list[Condition] = [soft_prompt(base, "p", prompt), no_prompt(base), instruction(base, "Where was it?")]
    got_NCL = score_rows(base, conditions, ROWS, labels, TaskConfig(resamples=100, pass_tokens=90))
    for n, piece in enumerate(ROWS):
        for at, text in enumerate(labels.texts):
            ids = base.encode(text.lstrip())
            heading = "Where was it?\n\n"
            for c, (own, head) in enumerate(((prompt, ""), (None, ""), (None, heading))):
                assert abs(got_NCL[n, c, at] + plain(base, own, head + piece.prompt, ids)) < TOLERANCE


def test_a_task_with_mixtures_and_free_answers(base: BaseModel) -> None:
    one, other = prompt_of(base, 3), prompt_of(base, 6, seed=1)
    for rule in ("sequence", "probabilities", "vote"):
        mixed = Mixture((one, one), np.array([0.3, 0.7]), rule=rule)
        report = classify(base, {"one": one, "other": other, "both": mixed}, {"held": ROWS}, TaskConfig(resamples=100))
        alone, same = report.sets[0].own("one"), report.sets[0].own("both")
        assert alone.accuracy.value == same.accuracy.value
    free = answer_freely(base, {"one": one}, {"held": ROWS}, TaskConfig(resamples=100, shots=()), max_tokens=4)
    assert all(len(written) == len(ROWS) for written in free.sets[0].written)


@pytest.mark.parametrize("rule", ["sequence", "probabilities"])
def test_a_mixture_of_equals_is_each_of_them(base: BaseModel, rule: str) -> None:
    one = prompt_of(base, 3)
    mixed = Mixture((one, one), np.array([0.3, 0.7]), rule=rule)
    report = evaluate(base, {"one": one, "both": mixed}, ROWS, EvaluateConfig(resamples=100))
    values = {line.label: line.nll.value for line in report.heldout.lines}
    assert abs(values["one"] - values["both"]) < TOLERANCE


def test_plain_texts_are_measured_in_both_ways() -> None:
    base = tiny_base("t5")
    found = [
        evaluate(base, {"p": prompt_of(base, 4)}, TEXTS, EvaluateConfig(resamples=100, objective=objective))
        for objective in ("prefix-lm", "span-corruption")
    ]
    assert found[0].heldout.tokens > found[1].heldout.tokens > 0
    assert all(line.nll.value > 0 for report in found for line in report.heldout.lines)


def test_the_inside_of_a_prompt(base: BaseModel) -> None:
    prompt = prompt_of(base, 4)
    inside = inspected(base, "p", prompt, ("rows", ROWS), InspectConfig(limit=64))
    assert inside.depth is not None
    found = inside.depth.importance
    expected = [plain(base, prompt, piece.prompt, [*base.encode(piece.text.lstrip()), 1]) for piece in ROWS]
    tokens = sum(len(base.encode(piece.text.lstrip())) + 1 for piece in ROWS)
    assert abs(found.loss - sum(expected) / tokens) < TOLERANCE
    shares_LP = inside.depth.attention.shares_LP
    assert shares_LP.shape == (base.n_layers, 4)
    assert ((shares_LP > 0) & (shares_LP < 1)).all()


def test_the_effect_at_a_distance_is_refused(base: BaseModel) -> None:
    config = EvaluateConfig(resamples=100, distance=DistanceConfig((0, 64)))
    with pytest.raises(ConfigError, match="the effect at a distance is not possible with an encoder-decoder"):
        evaluate(base, {"p": prompt_of(base, 4)}, TEXTS, config)
