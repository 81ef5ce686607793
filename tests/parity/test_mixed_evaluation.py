"""The loss of windows after a mixture is what plain concatenations give, combined by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sordino.evaluation.conditions import MixedCondition, mixture, no_prompt, soft_prompt
from sordino.evaluation.mixed import nll_of_conditions
from sordino.evaluation.scoring import windows_of
from sordino.forward.gate_input import hidden_of_text
from sordino.forward.placement import leading_ids, prompt_embeds
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import RULES, Gate, Mixture, Rule
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import Example
from sordino.texts.pieces import Piece
from tests.parity.plain import plain_logits
from tests.tiny_models import FAMILIES, tiny_base

TEXT = "The keeper wrote of the sea and the lamp, and the ship was to the west of the rocks. " * 3


def mixed(base: BaseModel, rule: Rule, gate: Gate | None = None) -> Mixture:
    random = np.random.default_rng(3)

    def one(tokens: int, *, before_bos: bool = False) -> SoftPrompt:
        values = random.standard_normal((tokens, base.d_model)).astype(np.float32) * 0.5
        return SoftPrompt(values, Metadata(placement="start" if before_bos else base.placement))

    return Mixture((one(3), one(11), one(5, before_bos=True)), np.array([0.5, 0.3, 0.2]), rule, gate)


def by_hand(base: BaseModel, mix: Mixture, window: Example) -> float:
    at = [index for index, target in enumerate(window.labelled) if target]
    targets = torch.tensor([window.ids[index] for index in at])
    said = []
    for prompt in mix.components:
        lead = list(leading_ids(base, prompt.metadata.placement))
        logits = plain_logits(base.network, prompt_embeds(base, prompt), [*lead, *window.ids]).double()
        before = prompt_embeds(base, prompt).shape[0] + len(lead)
        said.append(torch.softmax(logits[[before + index - 1 for index in at]], dim=-1))
    probs_KNV = torch.stack(said)
    weights = torch.from_numpy(mix.weights_K.copy())
    if mix.gate is not None and at[0] > 1:
        weights = torch.from_numpy(mix.gate.weights(hidden_of_text(base, window.ids[: at[0]]).numpy()))
    of_targets_KN = probs_KNV.gather(2, targets.expand(len(said), -1)[..., None])[..., 0]
    if mix.rule == "sequence":
        return -float((weights * of_targets_KN.prod(1)).sum().log())
    mean_NV = torch.einsum("k,knv->nv", weights, probs_KNV)
    if mix.rule == "logits":
        mean_NV = torch.softmax(torch.einsum("k,knv->nv", weights, probs_KNV.log()), dim=-1)
    if mix.rule == "vote":
        votes = torch.zeros_like(mean_NV)
        for weight, probs_NV in zip(weights, probs_KNV, strict=True):
            votes[torch.arange(len(at)), probs_NV.argmax(-1)] += weight
        mean_NV = (1 - 1e-6) * votes + 1e-6 * mean_NV
    return -float(mean_NV[torch.arange(len(at)), targets].log().sum())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_windows_behind_a_mixture(family: str, rule: Rule) -> None:
    base = tiny_base(family)
    windows = windows_of(base, [Piece("sea.txt", "text", TEXT)], row_tokens=20, limit=0, first=family == "gemma3")
    mix = mixed(base, rule)
    conditions = [no_prompt(base), mixture(base, "m", mix), soft_prompt(base, "c", mix.components[1])]
    for pass_tokens in (40, 4096):
        found = nll_of_conditions(base, conditions, windows, pass_tokens=pass_tokens)
        np.testing.assert_allclose(found[:, 1], [by_hand(base, mix, window) for window in windows], rtol=1e-5)
    alone = nll_of_conditions(base, [conditions[0], conditions[2]], windows, pass_tokens=4096)
    np.testing.assert_allclose(found[:, [0, 2]], alone, rtol=1e-6)


@pytest.mark.parametrize("rule", ["sequence", "probabilities"])
def test_a_gate_reads_what_stands_before_the_first_target(rule: Rule) -> None:
    """Of a window whose first token alone is left unpredicted that is nothing: its weights are the file's."""
    base = tiny_base("llama")
    gate = Gate(np.random.default_rng(1).standard_normal((3, base.d_model)).astype(np.float32), np.zeros(3, np.float32))
    windows = windows_of(base, [Piece("sea.txt", "text", TEXT)], row_tokens=20, limit=0, first=False)
    windows = [
        replace(window, labelled=tuple(target and at >= cut for at, target in enumerate(window.labelled)))
        for cut, window in enumerate(windows)
    ]
    assert [window.labelled.index(True) for window in windows][:4] == [1, 1, 2, 3]
    mix = mixed(base, rule, gate)
    conditions: list[MixedCondition] = [mixture(base, "m", mix)]
    found = nll_of_conditions(base, conditions, windows, pass_tokens=4096)
    np.testing.assert_allclose(found[:, 0], [by_hand(base, mix, window) for window in windows], rtol=1e-5)
