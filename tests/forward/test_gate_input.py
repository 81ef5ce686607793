"""What a gate reads of a text is what transformers says of it, alone or among others."""

from __future__ import annotations

import pytest
import torch

from sordino.forward.gate_input import hidden_of_text, hidden_of_texts
from sordino.prompts.mixture import GATE_TOKENS
from tests.tiny_models import FAMILIES, tiny_base


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_it_is_the_mean_of_the_last_hidden_states(family: str, bos: bool) -> None:
    base = tiny_base(family, bos=bos)
    texts = [base.encode(text) for text in ("the keeper wrote of the lamp", "", "sea", "and the ship was")]
    found = hidden_of_texts(base, texts)
    for ids, hidden_D in zip(texts, found, strict=True):
        if not ids:
            assert not hidden_D.any()
            continue
        lead = list(base.bos_ids)
        wanted = base.network.base_model(input_ids=torch.tensor([lead + ids])).last_hidden_state[0, len(lead) :]
        torch.testing.assert_close(hidden_D, wanted.mean(dim=0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(hidden_of_text(base, ids), hidden_D, rtol=1e-6, atol=1e-6)


def test_passes_do_not_change_it() -> None:
    base = tiny_base("llama")
    texts = [base.encode("the keeper wrote " * count) for count in (3, 1, 0, 7, 2, 5)]
    torch.testing.assert_close(hidden_of_texts(base, texts, pass_tokens=30), hidden_of_texts(base, texts))


def test_only_the_last_tokens_are_read() -> None:
    base = tiny_base("llama", max_position_embeddings=1024)
    ids = [5 + at % 250 for at in range(GATE_TOKENS + 40)]
    torch.testing.assert_close(hidden_of_text(base, ids), hidden_of_text(base, ids[-GATE_TOKENS:]))
    assert not torch.allclose(hidden_of_text(base, ids), hidden_of_text(base, ids[:GATE_TOKENS]))
