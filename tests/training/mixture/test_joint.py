"""Soft prompts and weights together: the gradient is that of the formula, and voices that differ come apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sordino.errors import ConfigError, DataError, Diverged
from sordino.evaluation import conditions
from sordino.forward.sources import PrefixSource
from sordino.forward.token_losses import losses
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, PlacementName
from sordino.texts.examples import Example, make_examples
from sordino.texts.pieces import Piece
from sordino.training.config import TrainConfig
from sordino.training.events import Validation
from sordino.training.gradient import Batch
from sordino.training.loop import TrainSet
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
from tests.tiny_models import tiny_base

CONFIG = JointConfig(tokens=4, steps=40, batch=4, lr=0.5, evaluations=4)
SEA, OIL = "the keeper wrote of the sea and the ship ", "xxq zzk vvj qqx kkz jjv "


def examples_of(base: BaseModel, voices: tuple[str, ...] = (SEA, OIL), count: int = 8) -> list[Example]:
    """Of each voice `count` examples behind the same prompt, one after another."""
    pieces = [
        Piece(f"{v}:{n}", "completion", (voice * 3)[n : n + 40], prompt="Say:\n")
        for n in range(count)
        for v, voice in enumerate(voices)
    ]
    return list(make_examples(pieces, base, max_tokens=48).examples)


def mixture_of(weights_K: Tensor, lengths: tuple[int, ...], beta: float = 1.0) -> MixtureLoss:
    mixture = MixtureLoss(lengths, TrainConfig(), lambda step: beta)
    mixture.weights_K = weights_K
    mixture.beta = beta
    return mixture


def jointly(
    base: BaseModel, train: list[Example], validation: list[Example], starts: list[Tensor], config: JointConfig
) -> tuple[list[WeightedStep], list[Validation], JointResult]:
    events = list(train_jointly(base, TrainSet(train, validation, ""), starts, "start", config))
    assert isinstance(events[-1], JointResult)
    steps = [event for event in events if isinstance(event, WeightedStep)]
    return steps, [event for event in events if isinstance(event, Validation)], events[-1]


def starts_of(base: BaseModel, lengths: tuple[int, ...] = (4, 4)) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(length, base.d_model, generator=random) * base.embedding_rms for length in lengths]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gptj"])
@pytest.mark.parametrize("placement", ["start", "after_bos"])
@pytest.mark.parametrize(("beta", "pass_tokens"), [(1.0, 100_000), (1.0, 50), (0.05, 100_000)])
def test_the_gradient_is_that_of_the_formula_on_concatenations(
    family: str, placement: PlacementName, beta: float, pass_tokens: int
) -> None:
    base = tiny_base(family, bos=True)
    examples = examples_of(base, count=2)[:3]
    matrices = [m.double().requires_grad_() for m in starts_of(base, (4, 6, 2))]
    mixture = mixture_of(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), (4, 6, 2), beta)
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
    starts = excerpts_apart(base, examples, "start", 2, CONFIG)
    steps, validations, finished = jointly(base, examples, examples[:4], starts, replace(CONFIG, steps=120))
    measured = [event.loss for event in validations]
    assert min(measured) < measured[0] - 0.3
    assert finished.best_loss == min(measured)
    fronts = [conditions.matrix(base, "", matrix, Metadata()) for matrix in finished.matrices]
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
        return jointly(base, examples, examples[:2], starts_of(base), config)[-1].matrices

    first, again, other = result(0), result(0), result(1)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert all(torch.equal(before[name], tensor) for name, tensor in base.network.state_dict().items())


def test_one_component_alone_is_plain_training_s_loss() -> None:
    base = tiny_base("llama", dtype=torch.float32)
    examples = examples_of(base)
    matrix = starts_of(base)[0].requires_grad_()
    batch = Batch(PrefixSource(matrix, "start"), examples)
    mixture = mixture_of(torch.ones(1, dtype=torch.float64), (len(matrix),))
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
    assert not torch.equal(finished.matrices[0], starts_of(base)[0])


def test_excerpts_are_text_and_differ() -> None:
    base = tiny_base("llama", dtype=torch.float32)
    table = base.embed(torch.arange(base.vocab_size)).float()
    found = excerpts_apart(base, examples_of(base), "start", 3, CONFIG)
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
    assert all(m.dtype == torch.float32 and np.isfinite(m.numpy()).all() for m in finished.matrices)
