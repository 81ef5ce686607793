"""Processes that reduce over gloo conform, and their gradients are one process's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sordino.errors import ConfigError, TrainingError
from sordino.forward.prefix import encode_prefixes
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PromptAttention
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls
from sordino.training.strategy import SINGLE_PROCESS, Strategy, agreed, agreed_number, check_alike
from tests.tiny_models import tiny_base
from tests.training import strategy_conformance
from tests.training.gloo_processes import gloo
from tests.training.runs import off, small_base, small_set, start_of


@pytest.mark.slow
@pytest.mark.parametrize(("count", "shard"), [(2, False), (4, False), (2, True)])
def test_they_conform(count: int, shard: bool, tmp_path: Path) -> None:
    strategy_conformance.check(gloo(count, shard=shard), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_the_gradient_is_one_processs_to_a_millionth(count: int, shard: bool) -> None:
    """In one pass and in several, of many rows and of fewer than there are processes; of a prompt that is held, as by default."""

    def gradients(strategy: Strategy, base: BaseModel) -> list[torch.Tensor]:
        base, found = strategy.place(base), []
        for rows, pass_tokens, hold in ((7, 1024, None), (7, 40, None), (7, 1024, 8), (1, 40, 8)):
            matrix = start_of(base).requires_grad_()
            source = PrefixSource(matrix, "start", attention=PromptAttention(hold))
            losses_and_gradients(base, [Batch(source, small_set(base).train[:rows])], pass_tokens, strategy)
            assert matrix.grad is not None
            found.append(matrix.grad)
        return found

    alone = gradients(SINGLE_PROCESS, small_base())
    for ours in gloo(count, shard=shard)(gradients):
        assert all(off(own, other) <= 1e-6 for own, other in zip(ours, alone, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_other_families_can_be_sharded(family: str) -> None:
    """Each process holds half of every layer; GPT-2's keys and values come from one module, Gemma's layers have windows."""

    def gradient(strategy: Strategy, base: BaseModel) -> tuple[torch.Tensor, float, int]:
        base = strategy.place(base)
        matrix = start_of(base).requires_grad_()
        batch = Batch(PrefixSource(matrix, "start"), small_set(base).train)
        losses_and_gradients(base, [batch], 40, strategy)
        assert matrix.grad is not None
        held = sum(getattr(one, "to_local", one.detach)().numel() for one in base.network.parameters())
        return matrix.grad, mean_nlls(base, [batch], 40, strategy)[0], held

    alone, loss, whole = gradient(SINGLE_PROCESS, small_base(family))
    for ours, own_loss, held in gloo(2, shard=True, family=family)(gradient):
        assert off(ours, alone) <= 1e-6
        assert own_loss == pytest.approx(loss, abs=1e-6)
        assert held < whole


@pytest.mark.slow
def test_a_shard_is_gathered_for_gradients_that_enter_by_keys_alone() -> None:
    """FSDP2 itself waits for a gradient of the layer's output."""

    def gradient(strategy: Strategy, base: BaseModel) -> torch.Tensor:
        matrix = start_of(base).requires_grad_()
        prefixes = encode_prefixes(strategy.place(base).network, [matrix])
        prefixes.keys_KHPC[-1].square().sum().backward()
        assert matrix.grad is not None
        return matrix.grad

    alone = gradient(SINGLE_PROCESS, small_base())
    for ours in gloo(2, shard=True)(gradient):
        assert off(ours, alone) <= 1e-6


@pytest.mark.slow
def test_what_cannot_be_sharded_is_refused_by_name() -> None:
    def refusals(strategy: Strategy, base: BaseModel) -> list[str]:
        found = []
        for one in (replace(base, quantise="nf4"), tiny_base("t5")):
            with pytest.raises(ConfigError) as raised:
                strategy.place(one)
            found.append(raised.value.message)
        return found

    for packed, two_stacks in gloo(2, shard=True)(refusals):
        assert packed == "--shard: packed weights cannot be sharded; got --quantise nf4"
        assert "sharding is not possible with an encoder-decoder" in two_stacks


@pytest.mark.slow
def test_what_processes_find_out_for_themselves_is_agreed_on() -> None:
    def found(strategy: Strategy, base: BaseModel) -> tuple[float, list[float], str]:
        own = 0.1 if strategy.saves else 7.3
        check_alike(strategy, {"texts": "the same"})
        try:
            check_alike(strategy, own)
        except TrainingError as error:
            refused = error.message
        return agreed_number(strategy, own), agreed(strategy, torch.tensor([own, -own])).tolist(), refused

    first, second = gloo(2)(found)
    assert first == second
    assert first[0] == 0.1
    assert first[1] == torch.tensor([0.1, -0.1]).tolist()
    assert "different texts" in first[2]
