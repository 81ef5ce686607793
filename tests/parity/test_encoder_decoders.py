"""Encoder-decoders: rows of several prompts and lengths in one pass give what each row gives alone, by transformers' own forward
pass over plain concatenation; loss, logits and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sordino.forward.encoder_decoder import InputPrefixes
from sordino.forward.nll import head_of, nll_of_rows, states_before
from sordino.forward.packing import labelled_rows, row_example
from sordino.forward.placement import leading_ids
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel, from_parts
from sordino.models.quantised import quantise
from sordino.models.weight_formats import FORMATS, Format
from sordino.prompts.encoder_decoders import ENCODER_DECODERS as PROVEN
from sordino.texts.examples import Example
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls
from sordino.training.strategy import SINGLE_PROCESS, Strategy
from tests.models.test_quantised import dequantised
from tests.parity.plain_pairs import plain_inputs, plain_pair_logits, plain_pair_nll
from tests.tiny_models import ENCODER_DECODERS, tiny, tiny_base, tokenizer_for
from tests.training.runs import off
from tests.training.test_strategy import replicas

TOLERANCE = 1e-7
PAIRS = (
    ("the keeper wrote of the sea", " and of the ship"),
    ("a lamp", "the"),
    ("the ship was seen from the lamp of the keeper, and the sea was wide", " of the sea, and of the lamp, at night"),
    ("", "and"),
)


@pytest.fixture(scope="module", params=ENCODER_DECODERS)
def base(request: pytest.FixtureRequest) -> BaseModel:
    return tiny_base(request.param)


def examples(base: BaseModel) -> list[Example]:
    found = []
    for source, target in PAIRS:
        read, written = base.encode(source), [*base.encode(target), 1]
        found.append(Example((*read, *written), (False,) * len(read) + (True,) * len(written), "p", input=len(read)))
    return found


def matrices(base: BaseModel, *lengths: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(n, base.d_model, generator=random) * base.embedding_rms for n in lengths]


def parts(example: Example) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return example.ids[: example.input], example.ids[example.input :]


def test_every_family_that_loads_is_tested(base: BaseModel) -> None:
    assert base.family in PROVEN


def test_every_proven_family_is_tested() -> None:
    assert {tiny_base(name).family for name in ENCODER_DECODERS} == PROVEN


def test_a_row_in_a_crowded_batch_is_the_row_alone(base: BaseModel) -> None:
    prompts, made = matrices(base, 5, 1, 12), examples(base)
    leading = leading_ids(base, "start")
    rows = [row_example(base, example, leading) for example in made for _ in prompts]
    batch = labelled_rows(rows, [[at] for at in range(len(rows))], [k for _ in made for k in range(len(prompts))])
    states_ND = states_before(base.network, InputPrefixes(tuple(prompts)), batch.rows, batch.labelled_BT)
    logits_NV = head_of(base.network).logits(states_ND)
    nll_N = nll_of_rows(base.network, InputPrefixes(tuple(prompts)), batch.rows, batch.labelled_BT)
    first = 0
    for example in made:
        read, written = parts(example)
        for prompt_PD in prompts:
            expected = plain_pair_logits(base, prompt_PD, read, written)
            end = first + len(expected)
            assert off(logits_NV[first:end], expected) < TOLERANCE
            assert off(nll_N[first:end], plain_pair_nll(base, prompt_PD, read, written)) < TOLERANCE
            first = end


@pytest.mark.parametrize("pass_tokens", [10_000, 60])
def test_losses_and_gradients_of_many_prompts_are_those_of_each_alone(base: BaseModel, pass_tokens: int) -> None:
    made, starts = examples(base), matrices(base, 5, 1, 12)
    leaves = [start.clone().requires_grad_() for start in starts]
    batches = [Batch(PrefixSource(leaf, "start"), made[k:]) for k, leaf in enumerate(leaves)]
    losses = losses_and_gradients(base, batches, pass_tokens)
    means = mean_nlls(base, batches, pass_tokens)
    for k, start in enumerate(starts):
        alone = start.clone().requires_grad_()
        expected = torch.cat([plain_pair_nll(base, alone, *parts(example)) for example in made[k:]]).mean()
        expected.backward()
        expected = expected.detach()
        assert abs(losses[k] - float(expected)) < TOLERANCE
        assert abs(means[k] - float(expected)) < TOLERANCE
        assert alone.grad is not None
        assert leaves[k].grad is not None
        assert off(leaves[k].grad, alone.grad) < TOLERANCE


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", ["t5", "t5-1.1", "bart"])
def test_packed_weights_give_what_the_dequantised_ones_give(family: str, kind: Format) -> None:
    packed = quantise(tiny(family, dtype=torch.float32), kind, torch.float32, torch.device("cpu"))
    plain = dequantised(tiny(family, dtype=torch.float32), packed, torch.float32)
    found = []
    for network in (packed, plain):
        base = from_parts(network, tokenizer_for(family), name=family)
        leaf = matrices(base, 5)[0].requires_grad_()
        losses = losses_and_gradients(base, [Batch(PrefixSource(leaf, "start"), examples(base))], 200)
        assert leaf.grad is not None
        found.append((torch.tensor(losses), leaf.grad))
    assert off(found[0][0], found[1][0]) < 1e-6
    assert off(found[0][1], found[1][1]) < 1e-5


def test_replicas_share_a_step() -> None:
    base = tiny_base("t5-1.1")
    start = matrices(base, 5)[0]

    def computed(strategy: Strategy, base: BaseModel) -> tuple[list[float], Tensor]:
        leaf = start.clone().requires_grad_()
        losses = losses_and_gradients(base, [Batch(PrefixSource(leaf, "start"), examples(base))], 60, strategy)
        assert leaf.grad is not None
        return losses, leaf.grad

    losses, expected = computed(SINGLE_PROCESS, base)
    for found, grad in replicas(3, base)(computed):
        assert abs(found[0] - losses[0]) < TOLERANCE
        assert off(grad, expected) < TOLERANCE


def test_the_prompt_has_the_first_positions() -> None:
    """As in google-research/prompt-tuning: the vectors of words, as a prompt, are those words at the head of the input."""
    for family in ("t5", "bart"):
        base = tiny_base(family)
        read, written = base.encode("the keeper wrote"), [*base.encode(" of the sea"), 1]
        words_PD = base.embed(torch.tensor(read))
        as_prompt = plain_pair_logits(base, words_PD, [], written)
        example = Example((*written,), (True,) * len(written), "p", input=0)
        row = row_example(base, example, leading_ids(base, "start"))
        batch = labelled_rows([row], [[0]], [0])
        states = states_before(base.network, InputPrefixes((words_PD,)), batch.rows, batch.labelled_BT)
        assert off(head_of(base.network).logits(states), as_prompt) < TOLERANCE
        whole = torch.tensor([[*read, *base.bos_ids, *base.encoder_decoder.end_ids]])
        start = torch.tensor([[*base.encoder_decoder.start_ids, *written]])
        own = base.network(input_ids=whole, decoder_input_ids=start).logits[0]
        assert off(own[len(base.encoder_decoder.start_ids) - 1 : -1], as_prompt) < TOLERANCE


def test_a_learned_position_model_counts_from_the_prompt_on() -> None:
    """The text after P vectors has the positions from P on."""
    base = tiny_base("bart")
    encoder = base.network.get_encoder()
    table = encoder.embed_positions.weight
    seen: list[Tensor] = []
    handle = encoder.layernorm_embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    prompt_PD = matrices(base, 4)[0]
    plain_pair_logits(base, prompt_PD, base.encode("the"), [5, 1])
    handle.remove()
    read = plain_inputs(base, prompt_PD, base.encode("the"))[0]
    # BART's table begins at 2.
    torch.testing.assert_close(seen[0][0] - read, table[2 : 2 + len(read)], rtol=0, atol=1e-12)
