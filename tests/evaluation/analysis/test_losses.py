"""Many candidates in one batch are what each of them is alone, and alone is what plain concatenation gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sordino.errors import ConfigError
from sordino.evaluation.analysis.losses import importance, losses_of, passage_of, without
from sordino.evaluation.conditions import soft_prompt
from sordino.evaluation.scoring import nll_of_windows
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import Metadata, PlacementName
from tests.evaluation.analysis.looked_at import PIECES, voice
from tests.parity.plain import plain_nll
from tests.tiny_models import FAMILIES, tiny_base


@pytest.mark.parametrize("placement", ["start", "after_bos"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_leaving_out_in_one_batch_is_leaving_out_one_by_one(family: str, bos: bool, placement: PlacementName) -> None:
    base = tiny_base(family, bos=bos)
    prompt = voice(tokens=4, placement=placement)
    passage = passage_of(base, PIECES, row_tokens=24, limit=0)
    found = importance(base, prompt, passage, pass_tokens=300)

    def alone(matrix: np.ndarray) -> float:
        """Plain concatenation, a window at a time."""
        total = 0.0
        for window in passage.windows:
            soft_PD = torch.from_numpy(np.array(matrix)).double()
            ids, labelled = list(window.ids), list(window.labelled)
            bos_PD = base.embed(torch.tensor(base.bos_ids, dtype=torch.long)).float().double()
            # Without virtual tokens there is nothing for BOS to stand after.
            if placement == "after_bos" or not len(matrix):
                soft_PD = torch.cat([bos_PD, soft_PD])
            else:
                ids, labelled = [*base.bos_ids, *ids], [False] * len(base.bos_ids) + labelled
            total += float(plain_nll(base.network, soft_PD, ids, labelled).sum())
        return total / passage.tokens

    tolerance = 1e-6 if family == "gptj" else 1e-9
    assert found.loss == pytest.approx(alone(prompt.matrix), abs=tolerance)
    assert found.without == pytest.approx(alone(prompt.matrix[:0]), abs=tolerance)
    for at, cost in enumerate(found.costs):
        assert cost == pytest.approx(alone(without(prompt.matrix, at)) - found.loss, abs=tolerance)
    assert found.tokens == sum(sum(window.labelled) for window in passage.windows)


def test_it_is_measured_with_the_prompt_s_own_hold() -> None:
    base = tiny_base("llama")
    passage = passage_of(base, PIECES, row_tokens=24, limit=0)
    prompt = voice(tokens=4, placement=base.placement)
    held = prompt.with_metadata(attention=PromptAttention(hold=3))
    condition = soft_prompt(base, "", held)
    wanted = nll_of_windows(base, [condition], passage.windows, pass_tokens=300).sum() / passage.tokens
    found = importance(base, held, passage, pass_tokens=300)
    assert found.loss == pytest.approx(float(wanted), abs=1e-9)
    assert found.loss != pytest.approx(importance(base, prompt, passage, pass_tokens=300).loss, abs=1e-4)


def test_without_drops_one_row_and_closes_the_gap() -> None:
    np.testing.assert_array_equal(without(voice().matrix, 1), voice().matrix[[0, 2, 3, 4]])


def test_one_token_left_out_is_no_prompt() -> None:
    base = tiny_base("llama")
    passage = passage_of(base, PIECES, row_tokens=24, limit=0)
    found = importance(base, voice(tokens=1), passage, pass_tokens=300)
    assert found.loss + found.costs[0] == pytest.approx(found.without, abs=1e-12)


def test_the_size_of_a_pass_changes_nothing() -> None:
    base = tiny_base("llama")
    passage = passage_of(base, PIECES, row_tokens=24, limit=0)
    matrices = [voice(seed, tokens=seed).matrix for seed in (1, 4, 9)]
    large = losses_of(base, matrices, Metadata(), passage, pass_tokens=4096)
    small = losses_of(base, matrices, Metadata(), passage, pass_tokens=1)
    np.testing.assert_allclose(small, large, atol=1e-10)


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    base = tiny_base("llama")
    passage = passage_of(base, PIECES, row_tokens=24, limit=0)
    with pytest.raises(ConfigError, match="does not fit the model's context"):
        losses_of(base, [voice(tokens=250).matrix], Metadata(), passage, pass_tokens=4096)
