"""Every example after every component: each number is that of plain concatenation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sordino.errors import ConfigError, OutOfMemory
from sordino.evaluation.conditions import check_room, soft_prompt
from sordino.forward import token_losses
from sordino.forward.token_losses import losses
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import make_examples
from sordino.texts.pieces import Piece
from tests.parity.plain import plain_embeds, plain_nll
from tests.tiny_models import FAMILIES, tiny_base

PIECES = [
    Piece("a:1", "completion", " the lamp", prompt="What did the keeper see?"),
    Piece("b", "text", "A ship was seen; the fog took it to the sea. Nothing followed."),
    Piece("a:2", "completion", " of the sea and the ship", prompt="Who wrote"),
]


def voice(base: BaseModel, tokens: int, seed: int, placement: str) -> SoftPrompt:
    matrix = np.random.default_rng(seed).standard_normal((tokens, base.d_model)).astype(np.float32) * 0.5
    return SoftPrompt(matrix, Metadata(placement=placement))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_every_loss_is_that_of_plain_concatenation(family: str, bos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(family, bos=bos)
    fronts = [
        soft_prompt(base, "", voice(base, 3, 0, "after_bos")),
        soft_prompt(base, "", voice(base, 9, 1, "start")),
        soft_prompt(base, "", voice(base, 5, 2, "after_bos")),
    ]
    examples = make_examples(PIECES, base, max_tokens=16).examples
    # Small enough for several groups of prefixes, and several passes of each.
    monkeypatch.setattr(token_losses, "PREFIX_POSITIONS", 12)
    told: list[tuple[int, int]] = []
    got = losses(base, fronts, examples, pass_tokens=60, progress=lambda done, total: told.append((done, total)))
    for k, front in enumerate(fronts):
        expected = [
            plain_nll(
                base.network,
                plain_embeds(base, front),
                [*front.leading, *example.ids],
                [False] * len(front.leading) + list(example.labelled),
            )
            for example in examples
        ]
        torch.testing.assert_close(got.nll_TK[:, k], torch.cat(expected), rtol=0, atol=1e-7)
        torch.testing.assert_close(got.of_examples()[:, k], torch.stack([e.sum() for e in expected]), rtol=0, atol=1e-6)
    assert got.tokens_N.tolist() == [sum(example.labelled) for example in examples]
    assert told[-1] == (3 * len(examples), 3 * len(examples))


def test_an_unpacked_architecture_scores_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("qwen3")
    fronts = [soft_prompt(base, "", voice(base, 3, 0, "start")), soft_prompt(base, "", voice(base, 4, 1, "start"))]
    examples = make_examples(PIECES, base, max_tokens=16).examples
    packed = losses(base, fronts, examples, pass_tokens=100).nll_TK
    monkeypatch.setattr("sordino.forward.prefix.PACKABLE_FAMILIES", frozenset())
    torch.testing.assert_close(losses(base, fronts, examples, pass_tokens=100).nll_TK, packed, rtol=0, atol=1e-7)


def test_what_does_not_fit_the_context_is_refused() -> None:
    base = tiny_base("llama")
    examples = make_examples([Piece("b", "text", "the sea " * 200)], base, max_tokens=250).examples
    with pytest.raises(ConfigError, match="lower --row-tokens"):
        check_room(base, soft_prompt(base, "", voice(base, 20, 0, "start")), max(len(one.ids) for one in examples))


def test_memory_that_runs_out_names_the_flag_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(token_losses, "nll_of_rows", no_memory)
    base = tiny_base("llama")
    examples = make_examples(PIECES, base, max_tokens=16).examples
    with pytest.raises(OutOfMemory, match="--pass-tokens"):
        losses(base, [soft_prompt(base, "", voice(base, 3, 0, "start"))], examples, pass_tokens=99)
