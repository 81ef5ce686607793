"""A mixture's answers are its rule worked out from each component alone, token by token where the rule is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sordino.evaluation.answers import classify
from sordino.evaluation.conditions import soft_prompt
from sordino.evaluation.config import TaskConfig
from sordino.evaluation.mixed import mixture_weights
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import RULES, Gate, Mixture, Rule
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.pieces import Piece
from tests.parity.plain import plain_embeds, plain_nll
from tests.prompt_files import matrix
from tests.tiny_models import tiny_base

# Labels of several tokens with a beginning in common, so that a rule by token is not one by label.
LABELS = (" sea gull", " sea lion", " wolf")
ROWS = [Piece(f"r:{n}", "completion", LABELS[n % 3], prompt=f"Animal {n * 7}:") for n in range(9)]
WEIGHTS = np.array([0.7, 0.3])


def components(base: BaseModel) -> tuple[SoftPrompt, ...]:
    return tuple(
        SoftPrompt(matrix(seed, tokens, base.d_model), Metadata(placement=placement))
        for seed, tokens, placement in ((1, 3, "after_bos"), (2, 6, "start"))
    )


def plain_tokens(base: BaseModel, prompt: SoftPrompt, text: str, label: str) -> np.ndarray:
    condition = soft_prompt(base, "x", prompt)
    ids, answer = [*condition.leading, *base.encode(text)], base.encode(label)
    flags = [False] * len(ids) + [True] * len(answer)
    return -plain_nll(base.network, plain_embeds(base, condition), [*ids, *answer], flags).numpy()


def expected(base: BaseModel, rule: Rule, text: str, weights: np.ndarray) -> np.ndarray:
    """Probabilities over the labels."""
    parts = components(base)
    tokens = {label: [plain_tokens(base, prompt, text, label) for prompt in parts] for label in LABELS}
    whole = np.array([[np.exp(tokens[label][k].sum()) for label in LABELS] for k in range(2)])
    if rule == "sequence":
        said = weights @ whole
    elif rule == "probabilities":
        said = np.array([np.prod(weights @ np.exp(np.stack(tokens[label]))) for label in LABELS])
    elif rule == "logits":
        said = np.exp(weights @ np.log(whole))
    else:
        said = np.zeros(3)
        for k in range(2):
            said[whole[k].argmax()] += weights[k]
    return said / said.sum()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_by_hand(rule: Rule) -> None:
    base = tiny_base("llama", bos=True)
    mixture = Mixture(components(base), WEIGHTS, rule)
    alone = components(base)[0]
    report = classify(base, {"m": mixture, "a": alone}, {"held": ROWS}, TaskConfig(resamples=100))
    line = report.sets[0].own("m")
    said = np.stack([expected(base, rule, piece.prompt, WEIGHTS) for piece in ROWS])
    right = np.array([sorted(LABELS).index(piece.text) for piece in ROWS])
    assert sorted(LABELS) == list(LABELS)
    assert line.accuracy.value == pytest.approx((said.argmax(axis=1) == right).mean())
    if rule != "vote":
        assert line.nll.value == pytest.approx(-np.log(said[np.arange(9), right]).mean(), abs=1e-7)
    assert (line.nll_per_label is None) == (rule in ("logits", "vote"))
    kinds = [one.kind for one in report.sets[0].lines]
    assert kinds == ["soft prompt", "mixture", "no prompt", "instruction", "majority"]
    assert "m" in report.sets[0].lines[0].differences


def test_a_mixture_of_one_is_its_component() -> None:
    base = tiny_base("llama", bos=True)
    alone = components(base)[1]
    report = classify(base, {"m": Mixture((alone,), np.ones(1)), "a": alone}, {"held": ROWS}, TaskConfig(resamples=100))
    mixed, own = report.sets[0].own("m"), report.sets[0].own("a")
    assert mixed.nll.value == pytest.approx(own.nll.value, abs=1e-12)
    assert mixed.nll_per_label == pytest.approx(own.nll_per_label, abs=1e-12)
    assert mixed.confusion == own.confusion


def test_a_gates_weights_are_those_of_each_text_alone() -> None:
    base = tiny_base("llama", bos=True)
    random = np.random.default_rng(0)
    gate = Gate(random.standard_normal((2, base.d_model)).astype(np.float32), np.array([0.1, -0.2], dtype=np.float32))
    mixture = Mixture(components(base), np.full(2, 0.5), "sequence", gate)
    texts = [tuple(base.encode(piece.prompt)) for piece in ROWS]
    got = mixture_weights(base, mixture, texts)
    for text, weights in zip(texts, got, strict=True):
        hidden = base.network.base_model(torch.tensor([[*base.bos_ids, *text]])).last_hidden_state[0, 1:]
        np.testing.assert_allclose(weights, gate.weights(hidden.mean(dim=0).numpy()), atol=1e-9)
    assert got.std(axis=0).min() > 0
    line = classify(base, {"m": mixture}, {"held": ROWS}, TaskConfig(resamples=100)).sets[0].own("m")
    said = np.stack([expected(base, "sequence", piece.prompt, w) for piece, w in zip(ROWS, got, strict=True)])
    right = np.array([LABELS.index(piece.text) for piece in ROWS])
    assert line.nll.value == pytest.approx(-np.log(said[np.arange(9), right]).mean(), abs=1e-7)
