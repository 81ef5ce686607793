"""The gain after other text is that of plain concatenation: prompt, text, window in one row, without a cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sordino.evaluation.between import foreign_texts
from sordino.evaluation.conditions import Baselines
from sordino.evaluation.config import DistanceConfig, EvaluateConfig
from sordino.evaluation.distance import measure_distance
from sordino.evaluation.distance_plan import DistancePlan, plan_distance
from sordino.evaluation.distance_report import DistanceReport
from sordino.forward.gate_input import hidden_of_text
from sordino.forward.placement import leading_ids, prompt_embeds
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PLAIN, PromptAttention
from sordino.prompts.mixture import Gate, Mixture, Rule
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.pieces import Piece
from tests.parity.plain import plain_logits
from tests.parity.test_hold import reference_logits
from tests.prompts.keys_values_prompt import keys_values_of
from tests.tiny_models import FAMILIES, tiny_base

HELDOUT = [
    Piece(f"{n}.txt", "text", f"The keeper {n} wrote of the sea and the lamp, and the ship. " * 2) for n in range(4)
]
FOREIGN = (Piece("a", "text", "A long report was read of ships, and of the rocks to the west. " * 6),)
HELD = PromptAttention(hold=6, strength=1.5)
DISTANCES = (0, 5, 20)
SETTINGS = DistanceConfig(distances=DISTANCES, between=("foreign",), row_tokens=14, limit=40, hold=9, foreign=FOREIGN)


def embedding(
    base: BaseModel, tokens: int, seed: int, attention: PromptAttention, *, start: bool = False
) -> SoftPrompt:
    values = np.random.default_rng(seed).standard_normal((tokens, base.d_model)).astype(np.float32) * 0.5
    return SoftPrompt(values, Metadata(placement="start" if start else base.placement, attention=attention))


def measured(
    base: BaseModel, prompt: Prompt | Mixture, settings: DistanceConfig
) -> tuple[DistancePlan, DistanceReport]:
    prompts, baselines = {"p": prompt}, Baselines(("Write so:",))
    plan = plan_distance(base, prompts, HELDOUT, settings, baselines, seed=3)
    return plan, measure_distance(base, plan, prompts, EvaluateConfig(distance=settings, seed=3, pass_tokens=90))


def logps(base: BaseModel, prompt: SoftPrompt | None, before: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    """log p [T, V] of each token of the window."""
    lead = leading_ids(base, prompt.metadata.placement if prompt else None)
    attention = prompt.metadata.attention if prompt else PLAIN
    front_PD = prompt_embeds(base, prompt)
    ids = [*lead, *before, *window]
    logits = reference_logits(base.network, front_PD, ids, attention)[:-1]
    if len(front_PD):
        logits = torch.cat([plain_logits(base.network, front_PD, [])[-1:], logits])
    return torch.log_softmax(logits.double(), -1)[-len(window) :]


def by_hand(base: BaseModel, plan: DistancePlan, distance: int, nll_of) -> float:
    """Nats a token. nll_of: of the targets of one window, from (tokens before it, its ids, its labels)."""
    texts = foreign_texts(base, FOREIGN, DISTANCES[-1], len(plan.parts), seed=3).texts
    ending = tuple(base.encode("\n\n"))
    total, count = 0.0, 0
    for part, text in zip(plan.windows, texts, strict=True):
        for window in part:
            before = (*text[:distance], *ending) if distance else ()
            total += nll_of(before, window.ids, window.labelled)
            count += sum(window.labelled)
    return total / count


def plain_loss(base: BaseModel, prompt: SoftPrompt | None):
    def nll_of(before, ids, labelled) -> float:
        # Without BOS nothing predicts a first token, and it is no target.
        skip = 0 if labelled[0] else 1
        found = logps(base, prompt, (*before, *ids[:skip]), ids[skip:])
        targets = torch.tensor(ids[skip:])[:, None]
        return -float(found.gather(1, targets)[torch.tensor(labelled[skip:])].sum())

    return nll_of


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_gains_held_and_not_are_those_of_plain_concatenation(family: str, bos: bool) -> None:
    base = tiny_base(family, bos=bos)
    prompt = embedding(base, 4, 0, HELD, start=not bos)
    plan, report = measured(base, prompt, SETTINGS)
    assert [(line.label, line.hold, line.changed) for line in report.lines] == [
        ("p", 6, False),
        ("p", 9, True),
        ("p", None, True),
        ("Write so:", None, False),
    ]
    without = {distance: by_hand(base, plan, distance, plain_loss(base, None)) for distance in DISTANCES}
    for line in report.lines[:3]:
        tried = prompt.with_metadata(attention=replace(HELD, hold=line.hold))
        for distance, gain in line.gains.items():
            own = by_hand(base, plan, distance, plain_loss(base, tried))
            assert gain.value == pytest.approx(without[distance] - own, abs=2e-6), (line.heading, distance)
    heading = tuple(base.encode("Write so:\n\n"))
    none = plain_loss(base, None)
    for distance, gain in report.lines[3].gains.items():
        own = by_hand(base, plan, distance, lambda before, ids, labelled: none((*heading, *before), ids, labelled))
        assert gain.value == pytest.approx(without[distance] - own, abs=2e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("attention", [PLAIN, HELD])
def test_a_kv_prompt_has_the_gains_of_the_vectors_that_it_is_made_from(family: str, attention: PromptAttention) -> None:
    base = tiny_base(family, bos=True)
    vectors = embedding(base, 4, 0, attention, start=True)
    _, wanted = measured(base, vectors, SETTINGS)
    _, found = measured(base, keys_values_of(base, vectors), SETTINGS)
    for line, other in zip(found.lines, wanted.lines, strict=True):
        assert line.heading == other.heading
        for distance, gain in line.gains.items():
            assert gain.value == pytest.approx(other.gains[distance].value, abs=1e-6)


@pytest.mark.parametrize("rule", ["sequence", "probabilities"])
@pytest.mark.parametrize("gated", [False, True])
def test_a_mixture_has_its_components_gains_each_with_its_own_hold(rule: Rule, gated: bool) -> None:
    base = tiny_base("llama", bos=True)
    components = (embedding(base, 3, 0, HELD), embedding(base, 6, 1, PLAIN, start=True))
    random = np.random.default_rng(5)
    gate = (
        Gate(random.standard_normal((2, base.d_model)).astype(np.float32), np.zeros(2, np.float32)) if gated else None
    )
    mixed = Mixture(components, np.array([0.3, 0.7]), rule, gate)
    plan, report = measured(base, mixed, replace(SETTINGS, hold=None))

    def nll_of(before, ids, labelled) -> float:
        weights = torch.from_numpy(mixed.weights_K.copy())
        if gate is not None and len(before) > 1:
            weights = torch.from_numpy(gate.weights(hidden_of_text(base, before).numpy()))
        targets = torch.tensor(ids)[:, None]
        logp_KT = torch.stack([logps(base, one, before, ids).gather(1, targets)[:, 0] for one in components])
        logp_KT = logp_KT[:, torch.tensor(labelled)]
        if rule == "sequence":
            return -float(torch.logsumexp(weights.log() + logp_KT.sum(1), 0))
        return -float(torch.logsumexp(weights.log()[:, None] + logp_KT, 0).sum())

    line, not_held, _ = report.lines
    assert (line.hold, not_held.hold) == (6, None)
    for distance, gain in line.gains.items():
        without = by_hand(base, plan, distance, plain_loss(base, None))
        assert gain.value == pytest.approx(without - by_hand(base, plan, distance, nll_of), abs=2e-6)
    assert not_held.gains[20].value != pytest.approx(line.gains[20].value, abs=1e-4)
