"""What a run's matrix stands for, and that its losses and gradients are right for every kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sordino.forward.placement import encode_prompts
from sordino.forward.sources import encode_sources
from sordino.prompts.attention import PromptAttention
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.training.form import form_of, notes_on_hold
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls
from tests.prompts.prompt_conformance import check
from tests.tiny_models import FAMILIES, tiny_base
from tests.training.runs import CONFIG, small_set, start_of

TEXTS = ("the ship and the sea", "of the lamp keeper", "wrote and to the lamp")
PLACEMENTS = ["start", "after_bos"]
KV = replace(CONFIG, kind="kv", hold=6)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_kv_prompt_begins_as_the_embedding_prompt_that_it_is_made_from(family: str, placement: str) -> None:
    """Loss without and with text between, in one batch with the embedding prompt; and the finished prompt's prefix."""
    base = tiny_base(family, dtype=torch.float64, bos=True)
    examples, matrix_PD = small_set(base).train[:3], start_of(base)
    forms = [form_of(base, replace(KV, kind=kind, placement=placement)) for kind in ("embedding", "kv")]
    matrices = [form.matrix_of_embeds(base, matrix_PD) for form in forms]
    between = tuple(base.encode("the ship and the sea. "))
    for context in ((), between):
        batches = [Batch(form.source(own, context), examples) for form, own in zip(forms, matrices, strict=True)]
        vectors, keys = mean_nlls(base, batches, 4096)
        assert keys == pytest.approx(vectors, abs=1e-5)
    embedding, kv = (form.prompt(own, Metadata(name="x")) for form, own in zip(forms, matrices, strict=True))
    assert isinstance(embedding, SoftPrompt)
    assert isinstance(kv, KVPrompt)
    assert kv.metadata.attention == embedding.metadata.attention == forms[0].attention
    for one, other in zip(*(encode_prompts(base, [p]).tensors() for p in (embedding, kv)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("bos", "first"), [(True, 1), (False, 0)])
def test_a_kv_prompt_says_the_position_that_its_keys_are_rotated_for(bos: bool, first: int) -> None:
    """Without a BOS nothing stands ahead of it, wherever it was to be placed."""
    base = tiny_base("llama", bos=bos)
    form = form_of(base, replace(KV, placement="after_bos"))
    prompt = form.prompt(form.matrix_of_embeds(base, start_of(base)), Metadata())
    assert isinstance(prompt, KVPrompt)
    assert prompt.first_position == first


@pytest.mark.parametrize("kind", ["embedding", "kv"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pass_tokens", [4096, 20])
def test_gradients_are_those_of_the_loss(family: str, placement: str, kind: str, pass_tokens: int) -> None:
    """Against differences of the loss, in float64: after text and hold, in one pass and in several."""
    base = tiny_base(family, dtype=torch.float64, bos=True)
    form = form_of(base, replace(KV, kind=kind, placement=placement))
    matrix_PW = form.matrix_of_embeds(base, start_of(base)).double().requires_grad_()
    context, examples = tuple(base.encode("the ship and the sea. ")), small_set(base).train[:3]
    losses_and_gradients(base, [Batch(form.source(matrix_PW, context), examples)], pass_tokens)
    assert matrix_PW.grad is not None
    random = torch.Generator().manual_seed(1)
    for row in (slice(None), slice(0, 1)):
        along_PW = torch.zeros_like(matrix_PW)
        along_PW[row] = torch.randn(along_PW[row].shape, generator=random, dtype=torch.float64)
        along_PW /= along_PW.norm()
        step, losses = 1e-4, []
        for sign in (1, -1):
            moved = matrix_PW.detach() + sign * step * along_PW
            losses += mean_nlls(base, [Batch(form.source(moved, context), examples)], 4096)
        slope = (losses[0] - losses[1]) / (2 * step)
        found = float((matrix_PW.grad * along_PW).sum())
        if kind == "kv" and placement == "start" and row == slice(0, 1):
            # The attention sink is not trained.
            assert found == 0
        elif kind == "kv" and placement == "start":
            along_PW[0] = 0
            continue
        else:
            # GPT-J's attention rounds to float32.
            assert found == pytest.approx(slope, rel=0.05 if family == "gptj" else 1e-3, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_kv_prompts_conform(family: str) -> None:
    base = tiny_base(family)
    form = form_of(base, replace(KV, placement="start"))

    def made(seed: int) -> KVPrompt:
        random = torch.Generator().manual_seed(seed)
        matrix_PW = form.matrix_of_embeds(base, start_of(base))
        prompt = form.prompt(matrix_PW + 0.1 * torch.randn(matrix_PW.shape, generator=random), Metadata(name="x"))
        assert isinstance(prompt, KVPrompt)
        return prompt

    check(base, made)


def test_units_do_not_change_a_kv_prompt() -> None:
    base = tiny_base("llama")
    form = form_of(base, KV)
    assert form.kv is not None
    flat_PW, last_D = torch.randn(3, form.kv.shape.width), torch.randn(base.d_model)
    for one, other in zip(form.kv.split(form.kv.joined(flat_PW, last_D)), (flat_PW, last_D), strict=True):
        torch.testing.assert_close(one, other)


def test_hold_is_off_where_masks_are_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    assert form_of(base, KV).attention == PromptAttention(hold=6)
    monkeypatch.setattr("sordino.training.form.packable", lambda network: False)
    assert form_of(base, KV).attention == PromptAttention()
    assert notes_on_hold(base, KV) == ("hold is off: it is not tested on llama models (docs/models.md)",)
    assert notes_on_hold(base, replace(KV, hold=0)) == ()


def test_sources_of_both_kinds_are_encoded_in_their_order() -> None:
    base = tiny_base("llama")
    forms = [form_of(base, replace(CONFIG, kind=kind)) for kind in ("kv", "embedding", "kv")]
    starts = [base.embed(torch.tensor(base.encode(text)[:4])).float() for text in TEXTS]
    sources = [form.source(form.matrix_of_embeds(base, start)) for form, start in zip(forms, starts, strict=True)]
    together = encode_sources(base, sources)
    for k, source in enumerate(sources):
        alone = encode_sources(base, [source])
        for one, other in zip(together.select([k]).tensors(), alone.tensors(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert np.all(np.array(together.lengths) == 4 + len(base.bos_ids))
