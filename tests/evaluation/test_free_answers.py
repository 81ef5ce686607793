"""SQuAD's measures by hand, and a condition written with as the soft prompt that it is."""

from __future__ import annotations

import pytest
import torch

from sordino.evaluation.conditions import instruction, no_prompt
from sordino.evaluation.free_answers import as_soft_prompt, exact_match, token_f1
from sordino.forward.placement import prompt_embeds
from tests.parity.plain import plain_embeds
from tests.tiny_models import tiny_base


def test_what_does_not_count() -> None:
    assert exact_match(" The Sea.", "sea") == 1
    assert exact_match("a  ship, at sea", "Ship at the sea") == 1
    assert exact_match("seas", "sea") == 0


def test_f1_counts_words_as_often_as_both_have_them() -> None:
    assert token_f1("grey grey sea", "grey sea") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert token_f1("lamp", "sea") == 0
    assert token_f1("", "sea") == 0
    assert token_f1("the", "A") == 1


@pytest.mark.parametrize("bos", [False, True])
def test_text_in_front_is_the_soft_prompt_of_its_embeddings(bos: bool) -> None:
    base = tiny_base("llama", bos=bos)
    told = instruction(base, "Answer shortly.")
    prompt = as_soft_prompt(base, told)
    assert prompt is not None
    torch.testing.assert_close(prompt_embeds(base, prompt), plain_embeds(base, told).float(), rtol=0, atol=1e-7)
    assert as_soft_prompt(base, no_prompt(base)) is None
