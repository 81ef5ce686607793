"""Soft prompts and weights together: the gradient is that of the formula, and voices that differ come apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from sordino.errors import ConfigError, DataError, Diverged
from sordino.evaluation import conditions
from sordino.forward.placement import encode_prompts
from sordino.forward.sources import PrefixSource
from sordino.forward.token_losses import losses
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import Metadata, PlacementName, SoftPrompt
from sordino.texts.examples import Example, make_examples
from sordino.texts.pieces import Piece
from sordino.training.config import Kind, TrainConfig
from sordino.training.events import Validation
from sordino.training.form import Form
from sordino.training.gradient import Batch
from sordino.training.loop import TrainSet
from sordino.training.mixture.components import Component, MatrixPart, component_form, component_of, stacked
from sordino.training.mixture.config import JointConfig
from sordino.training.mixture.joint import (
    JointResult,
    MixtureLoss,
    WeightedStep,
    excerpts_apart,
    temper,
    train_jointly,
)
from sordino.training.strategy import SINGLE_PROCESS
from tests.parity.plain import plain_nll
from tests.prompts.kv_of import kv_of
from tests.tiny_models import tiny_base

CONFIG = JointConfig(tokens=4, steps=40, batch=4, lr=0.5, evaluations=4)
SEA, OIL = "the keeper wrote of the sea and the ship ", "xxq zzk vvj qqx kkz jjv "


def examples_of(base: BaseModel, voices: tuple[str, ...] = (SEA, OIL), count: int = 8) -> list[Example]:
    """Of each voice `count` examples after the same prompt, one after another."""
    pieces = [
        Piece(f"{v}:{n}", "completion", (voice * 3)[n : n + 40], prompt="Say:\n")
        for n in range(count)
        for v, voice in enumerate(voices)
    ]
    return list(make_examples(pieces, base, max_tokens=48).examples)


def slots_of(base: BaseModel, lengths: tuple[int, ...], placement: PlacementName = "start") -> list[MatrixPart]:
    """Of embedding prompts alone."""
    form = component_form(base, "embedding", placement)
    return [MatrixPart(form, length, base.d_model, 1.0) for length in lengths]


def mixture_of(weights_K: Tensor, slots: list[MatrixPart], beta: float = 1.0) -> MixtureLoss:
    mixture = MixtureLoss(slots, TrainConfig(), lambda step: beta)
    mixture.weights_K = weights_K
    mixture.beta = beta
    return mixture


def jointly(
    base: BaseModel, train: list[Example], validation: list[Example], starts: list[Component], config: JointConfig
) -> tuple[list[WeightedStep], list[Validation], JointResult]:
    events = list(train_jointly(base, TrainSet(train, validation, ""), starts, config))
    assert isinstance(events[-1], JointResult)
    steps = [event for event in events if isinstance(event, WeightedStep)]
    return steps, [event for event in events if isinstance(event, Validation)], events[-1]


def matrices_of(base: BaseModel, lengths: tuple[int, ...] = (4, 4)) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(length, base.d_model, generator=random) * base.embedding_rms for length in lengths]


def starts_of(
    base: BaseModel, lengths: tuple[int, ...] = (4, 4), kinds: tuple[Kind, ...] = ("embedding", "embedding")
) -> list[Component]:
    forms = [component_form(base, kind, "start") for kind in kinds]
    return [
        Component(form, form.matrix_of_embeds(base, matrix))
        for form, matrix in zip(forms, matrices_of(base, lengths), strict=True)
    ]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gptj"])
@pytest.mark.parametrize("placement", ["start", "after_bos"])
@pytest.mark.parametrize(("beta", "pass_tokens"), [(1.0, 100_000), (1.0, 50), (0.05, 100_000)])
def test_the_gradient_is_that_of_the_formula_on_concatenations(
    family: str, placement: PlacementName, beta: float, pass_tokens: int
) -> None:
    base = tiny_base(family, bos=True)
    examples = examples_of(base, count=2)[:3]
    matrices = [m.double().requires_grad_() for m in matrices_of(base, (4, 6, 2))]
    slots = slots_of(base, (4, 6, 2), placement)
    mixture = mixture_of(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), slots, beta)
    weights_K = mixture.weights_K
    batch = Batch(PrefixSource(torch.cat(matrices), placement), examples)
    _, responsible_NK = mixture.accumulate(base, batch, batch.labelled, pass_tokens)
    got = [m.grad.clone() for m in matrices]
    for matrix in matrices:
        matrix.grad = None
    batch = Batch(PrefixSource(torch.cat(matrices), placement), examples)
    (loss,) = mixture.backward(base, [batch], pass_tokens, SINGLE_PROCESS)
    assert all(torch.equal(matrix.grad, own) for matrix, own in zip(matrices, got, strict=True))
    torch.testing.assert_close(mixture.weights_K, responsible_NK.mean(0))

    plain = [m.detach().clone().requires_grad_() for m in matrices]
    leading = list(base.bos_ids) if placement == "start" else []
    bos_PD = base.embed(torch.tensor(base.bos_ids if placement == "after_bos" else (), dtype=torch.long))
    nll_NK = torch.stack(
        [
            torch.stack(
                [
                    plain_nll(
                        base.network,
                        torch.cat([bos_PD, matrix]),
                        [*leading, *example.ids],
                        [False] * len(leading) + list(example.labelled),
                    ).sum()
                    for matrix in plain
                ]
            )
            for example in examples
        ]
    )
    likely_NK = weights_K * (-beta * nll_NK).exp()
    tokens = sum(sum(example.labelled) for example in examples)
    expected = -likely_NK.sum(1).log().sum() / beta / tokens
    expected.backward()
    # A prefix's embeddings are float32, whatever the model.
    tolerance = 1e-5
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for mine, matrix in zip(got, plain, strict=True):
        assert float((mine - matrix.grad).norm()) <= tolerance * float(matrix.grad.norm()) + 1e-12
    torch.testing.assert_close(
        responsible_NK, (likely_NK / likely_NK.sum(1, keepdim=True)).detach(), rtol=1e-4, atol=1e-7
    )


def test_it_learns_and_two_voices_get_a_component_each() -> None:
    base = tiny_base("llama", dtype=torch.float32)
    examples = examples_of(base)
    starts = excerpts_apart(base, examples, component_form(base, "embedding", "start"), 2, CONFIG)
    steps, validations, finished = jointly(base, examples, examples[:4], starts, replace(CONFIG, steps=120))
    measured = [event.loss for event in validations]
    assert min(measured) < measured[0] - 0.3
    assert finished.best_loss == min(measured)
    fronts = [component.condition(base) for component in finished.components]
    nll_NK = losses(base, fronts, examples, pass_tokens=9999).of_examples()
    best_N = nll_NK.argmin(dim=1).tolist()
    assert best_N == [best_N[0], 1 - best_N[0]] * (len(examples) // 2)
    assert steps[-1].weights == pytest.approx((0.5, 0.5), abs=0.1)


def test_the_base_model_is_left_alone_and_the_seed_decides() -> None:
    base = tiny_base("llama", dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.network.state_dict().items()}
    examples = examples_of(base)

    def result(seed: int) -> tuple[Tensor, ...]:
        config = replace(CONFIG, steps=6, seed=seed)
        components = jointly(base, examples, examples[:2], starts_of(base), config)[-1].components
        return tuple(component.matrix_RW for component in components)

    first, again, other = result(0), result(0), result(1)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert all(torch.equal(before[name], tensor) for name, tensor in base.network.state_dict().items())


def test_one_component_alone_is_plain_training_s_loss() -> None:
    base = tiny_base("llama", dtype=torch.float32)
    examples = examples_of(base)
    matrix = matrices_of(base)[0].requires_grad_()
    batch = Batch(PrefixSource(matrix, "start"), examples)
    mixture = mixture_of(torch.ones(1, dtype=torch.float64), slots_of(base, (len(matrix),)))
    loss_1, responsible_NK = mixture.accumulate(base, batch, batch.labelled, 9999)
    nll = losses(base, [conditions.matrix(base, "", matrix.detach(), Metadata())], examples, pass_tokens=9999).nll_TK
    assert loss_1.item() == pytest.approx(float(nll.mean()), rel=1e-5)
    assert (responsible_NK == 1).all()


def test_responsibilities_are_tempered_at_first() -> None:
    betas = [temper(step, CONFIG, 64.0) for step in range(CONFIG.steps)]
    assert betas[0] == pytest.approx(1 / 64)
    assert betas == sorted(betas)
    assert betas[10:] == [1.0] * 30
    assert temper(0, replace(CONFIG, anneal=0.0), 64.0) == 1.0


def test_without_validation_the_last_average_is_kept() -> None:
    base = tiny_base("llama", dtype=torch.float32)
    *_, finished = jointly(base, examples_of(base), [], starts_of(base), replace(CONFIG, steps=3))
    assert finished.best_step == 3
    assert not torch.equal(finished.components[0].matrix_RW, matrices_of(base)[0])


def test_excerpts_are_text_and_differ() -> None:
    base = tiny_base("llama", dtype=torch.float32)
    table = base.embed(torch.arange(base.vocab_size)).float()
    form = component_form(base, "embedding", "start")
    found = [component.matrix_RW for component in excerpts_apart(base, examples_of(base), form, 3, CONFIG)]
    assert len(found) == 3
    for matrix in found:
        assert (matrix[:, None] == table).all(dim=-1).any(dim=1).all()
    assert not torch.equal(found[0], found[1])


def test_bad_settings_no_data_and_a_loss_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--steps"):
        JointConfig(steps=0)
    base = tiny_base("llama", dtype=torch.float32)
    with pytest.raises(ConfigError, match="lower --row-tokens"):
        jointly(base, examples_of(base), [], starts_of(base, (4, 240)), CONFIG)
    with pytest.raises(DataError):
        jointly(base, [], [], starts_of(base), CONFIG)
    monkeypatch.setattr(MixtureLoss, "backward", lambda *a: [float("nan")])
    with pytest.raises(Diverged, match="--lr") as caught:
        jointly(base, examples_of(base), [], starts_of(base), CONFIG)
    assert "--resume" not in caught.value.message


def test_the_result_is_float32_and_finite() -> None:
    base = tiny_base("gpt2", dtype=torch.bfloat16)
    *_, finished = jointly(base, examples_of(base), [], starts_of(base), replace(CONFIG, steps=2))
    matrices = [component.matrix_RW for component in finished.components]
    assert all(m.dtype == torch.float32 and np.isfinite(m.numpy()).all() for m in matrices)


# Kinds ------------------------------------------------------------------------------------------------------------------


def behind_keys_and_values(base: BaseModel, form: Form, matrix_RW: Tensor, example: Example) -> Tensor:
    """NLL in nats of an example's labelled tokens after a KV prompt, by transformers' own cache; the first has no label."""
    assert form.kv is not None
    flat_PW, _ = form.kv.split(matrix_RW)
    shape = form.kv.shape
    by_layer = flat_PW.view(len(flat_PW), shape.layers, 2, shape.heads, shape.channels).permute(1, 2, 3, 0, 4)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(by_layer):
        cache.update(keys[None], values[None], layer)
    ids = torch.tensor([example.ids])
    logp = torch.log_softmax(base.network(input_ids=ids, past_key_values=cache).logits[0, :-1], -1)
    return -logp.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(example.labelled[1:])].sum()


@pytest.mark.parametrize("pass_tokens", [100_000, 50])
@pytest.mark.parametrize("kinds", [("kv", "kv"), ("embedding", "kv"), ("kv", "embedding")])
def test_components_of_both_kinds_have_the_gradient_of_the_formula(kinds: tuple[Kind, Kind], pass_tokens: int) -> None:
    base = tiny_base("llama")
    examples = examples_of(base, count=2)[:3]
    stack_PW, slots = stacked(starts_of(base, (4, 6), kinds), CONFIG)
    stack_PW = stack_PW.double().requires_grad_()
    mixture = mixture_of(torch.tensor([0.7, 0.3], dtype=torch.float64), slots)
    weights_K = mixture.weights_K
    batch = Batch(PrefixSource(stack_PW, "start"), examples)
    (loss,) = mixture.backward(base, [batch], pass_tokens, SINGLE_PROCESS)
    plain_PW = stack_PW.detach().clone().requires_grad_()
    columns = []
    for slot, rows in zip(slots, plain_PW.split([slot.rows for slot in slots]), strict=True):
        matrix = rows[:, : slot.width] * slot.scale
        columns.append(
            torch.stack(
                [
                    plain_nll(base.network, matrix, list(one.ids), list(one.labelled)).sum()
                    if slot.form.kv is None
                    else behind_keys_and_values(base, slot.form, matrix, one)
                    for one in examples
                ]
            )
        )
    likely_NK = weights_K * (-torch.stack(columns, dim=1)).exp()
    expected = -likely_NK.sum(1).log().sum() / sum(sum(one.labelled) for one in examples)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert stack_PW.grad is not None
    # The first position of a KV prompt is the attention sink, which is not trained.
    wanted_PW, row = plain_PW.grad.clone(), 0
    for slot in slots:
        if slot.form.kv is not None:
            wanted_PW[row] = 0
        row += slot.rows
    assert float((stack_PW.grad - wanted_PW).norm()) <= 1e-5 * float(wanted_PW.norm())
    torch.testing.assert_close(mixture.weights_K, (likely_NK / likely_NK.sum(1, keepdim=True)).mean(0).detach())


def test_stacking_changes_no_number_and_one_rate_is_each_kinds_own() -> None:
    base = tiny_base("llama")
    starts = starts_of(base, (4, 6, 2), ("kv", "embedding", "kv"))
    stack_PW, slots = stacked(starts, JointConfig())
    parts = stack_PW.split([slot.rows for slot in slots])
    for slot, part, start in zip(slots, parts, starts, strict=True):
        torch.testing.assert_close(slot.component(part).matrix_RW, start.matrix_RW)
    assert [slot.scale for slot in slots] == pytest.approx([1, base.embedding_rms * 0.25 / 0.1, 1])
    assert [slot.scale for slot in stacked(starts, JointConfig(lr=0.3))[1]] == pytest.approx([1, base.embedding_rms, 1])
    embeds = starts_of(base)
    alone, slots = stacked(embeds, JointConfig())
    assert torch.equal(alone, torch.cat([one.matrix_RW for one in embeds]))
    assert [slot.scale for slot in slots] == [1, 1]


@pytest.mark.parametrize("kinds", [("kv", "kv"), ("embedding", "kv")])
def test_components_of_any_kinds_learn(kinds: tuple[Kind, Kind]) -> None:
    """Two KV prompts come apart. Beside an embedding prompt a KV prompt, which can say more, may take both voices."""
    base = tiny_base("llama", dtype=torch.float32)
    examples, config = examples_of(base), replace(CONFIG, steps=120, lr=None)
    forms = [component_form(base, kind, "start") for kind in kinds]
    starts = [excerpts_apart(base, examples, form, 2, config)[k] for k, form in enumerate(forms)]
    _, validations, finished = jointly(base, examples, examples[:4], starts, config)
    assert finished.best_loss < validations[0].loss - 0.3
    assert [component.form.kv is not None for component in finished.components] == [kind == "kv" for kind in kinds]
    fronts = [component.condition(base) for component in finished.components]
    best_N = losses(base, fronts, examples, pass_tokens=9999).of_examples().argmin(dim=1).tolist()
    if kinds == ("kv", "kv"):
        assert best_N == [best_N[0], 1 - best_N[0]] * (len(examples) // 2)


def test_given_components_keep_their_kind_their_numbers_and_their_attention() -> None:
    base = tiny_base("llama", dtype=torch.float32)
    known = Metadata(placement="start", attention=PromptAttention(hold=6))
    vectors = SoftPrompt(matrices_of(base)[0].numpy(), known)
    for prompt in (vectors, kv_of(base, vectors)):
        again = component_of(base, prompt).prompt(Metadata())
        assert (again.kind, again.metadata.attention, again.metadata.placement) == (
            prompt.kind,
            known.attention,
            "start",
        )
        for one, other in zip(*(encode_prompts(base, [p]).tensors() for p in (prompt, again)), strict=True):
            torch.testing.assert_close(one, other)
