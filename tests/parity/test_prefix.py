"""Shared prefixes give what plain concatenation gives: loss, logits and gradient; a row alone, among others, and packed.

Float64 on tiny models leaves rounding out of the question: what differs there is wrong. (`tiny` keeps their norms in float64; only
GPT-J's attention still rounds to float32, hence its own tolerances.) Float32 says what users get.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sordino.forward.nll import head_of, nll_of_prompts_and_rows, nll_of_rows
from sordino.forward.one_row import one_row_pays
from sordino.forward.prefix import PACKABLE_FAMILIES, Prefixes, back_propagate, encode_prefixes, forward_rows
from sordino.forward.rows import Rows, rows_from_examples
from tests.parity.plain import plain_logits, plain_nll
from tests.tiny_models import FAMILIES, tiny

# Longer than Gemma 3's window in tests (8), both prompt and text.
PROMPT_LENGTHS = [3, 11, 1]
TEXT_LENGTHS = [13, 5, 9, 1, 20]
PROMPT_OF_ROW = [0, 1, 1, 2, 0]


def exact(family: str) -> float:
    """How far NLL and logits may be off in float64; gradients ten times as far, relative to their norm."""
    return 1e-7 if family == "gptj" else 1e-10


def _prompts(network, lengths=PROMPT_LENGTHS, seed=1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    width = network.get_input_embeddings().weight.shape[1]
    return [
        (torch.randn(length, width, generator=random, dtype=torch.float64) * 0.5).to(network.dtype).requires_grad_()
        for length in lengths
    ]


def _texts(network, lengths=TEXT_LENGTHS, seed=2) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(network.config.vocab_size, (length,), generator=random).tolist() for length in lengths]


def _labels(texts: list[list[int]]) -> list[list[bool]]:
    """Every third token is not a target, the first one always is: it is predicted from the prefix."""
    return [[i % 3 != 1 for i in range(len(ids))] for ids in texts]


def _packed(texts, labels, packing, prompt_of_row) -> tuple[Rows, Tensor]:
    """packing: the texts of each row."""
    rows = rows_from_examples([[texts[i] for i in row] for row in packing], prompt_of_row)
    labelled = torch.zeros_like(rows.ids_BT, dtype=torch.bool)
    for b, row in enumerate(packing):
        flat = [flag for i in row for flag in labels[i]]
        labelled[b, : len(flat)] = torch.tensor(flat)
    return rows, labelled


def _fast(network, prompts, texts, labels, prompt_of_row, packing=None) -> Tensor:
    """packing: without, a text in each row."""
    packing = packing or [[i] for i in range(len(texts))]
    return nll_of_rows(network, encode_prefixes(network, prompts), *_packed(texts, labels, packing, prompt_of_row))


def _plain(network, prompts, texts, labels, prompt_of_row, packing=None) -> Tensor:
    packing = packing or [[i] for i in range(len(texts))]
    pairs = [(k, i) for row, k in zip(packing, prompt_of_row, strict=True) for i in row]
    return torch.cat([plain_nll(network, prompts[k], texts[i], labels[i]) for k, i in pairs])


def _relative(difference: list[Tensor], reference: list[Tensor]) -> float:
    def flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten().double() for tensor in tensors])

    return float((flat(difference) - flat(reference)).norm() / flat(reference).norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradient_equal_plain_concatenation(family, dtype):
    loss_tolerance, gradient_tolerance = (1e-5, 1e-5) if dtype == torch.float32 else (exact(family), 10 * exact(family))
    network = tiny(family, dtype=dtype)
    prompts, texts = _prompts(network), _texts(network)
    labels = _labels(texts)

    plain = _plain(network, prompts, texts, labels, PROMPT_OF_ROW)
    plain_gradient = torch.autograd.grad(plain.mean(), prompts)
    fast = _fast(network, prompts, texts, labels, PROMPT_OF_ROW)
    fast_gradient = torch.autograd.grad(fast.mean(), prompts)

    torch.testing.assert_close(
        fast, plain, rtol=0, atol=loss_tolerance * 10 if dtype == torch.float32 else loss_tolerance
    )
    assert abs((fast.mean() - plain.mean()).item()) <= loss_tolerance
    assert _relative(list(fast_gradient), list(plain_gradient)) <= gradient_tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_plain_concatenation(family):
    network = tiny(family)
    prompts, texts = _prompts(network), _texts(network)
    prefixes = encode_prefixes(network, prompts)
    hidden = forward_rows(network, prefixes, rows_from_examples([[ids] for ids in texts], PROMPT_OF_ROW))
    for b, (k, ids) in enumerate(zip(PROMPT_OF_ROW, texts, strict=True)):
        plain = plain_logits(network, prompts[k], ids)[len(prompts[k]) :]
        torch.testing.assert_close(head_of(network).logits(hidden[b, : len(ids)]), plain, rtol=0, atol=exact(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_every_row_equals_plain_concatenation(family, monkeypatch):
    """What a GPU does with small models. Packed rows, prompts of several lengths, one that is empty."""
    monkeypatch.setattr("sordino.forward.nll.one_row_pays", lambda *_: True)
    network = tiny(family)
    prompts, texts = _prompts(network, [3, 11, 0]), _texts(network, [4, 12, 7, 3, 9, 5])
    labels = _labels(texts)
    packing, prompt_of_row = [[0, 1], [2, 3], [4], [5]], [1, 0, 1, 2]
    # After nothing nothing predicts the first token.
    labels[5][0] = False
    found = nll_of_prompts_and_rows(network, prompts, *_packed(texts, labels, packing, prompt_of_row))
    plain = _plain(network, prompts, texts, labels, prompt_of_row, packing)
    torch.testing.assert_close(found, plain, rtol=0, atol=exact(family))
    gradients = (torch.autograd.grad(of.mean(), prompts[:2]) for of in (found, plain))
    assert _relative(*map(list, gradients)) <= 10 * exact(family)


def test_a_gpu_runs_a_prompt_again_where_that_is_little(monkeypatch):
    network = tiny("qwen3")

    def pays(prompt: int, text: int, count: int) -> bool:
        rows = rows_from_examples([[[1] * text]] * count, [0] * count)
        return one_row_pays(network, [torch.zeros(prompt, 32)], rows, ())

    assert not pays(20, 128, 8)
    monkeypatch.setattr(type(network), "device", property(lambda self: torch.device("cuda")))
    assert pays(20, 128, 8)
    assert not pays(0, 128, 8)
    # Short texts after a long prompt: their memory would be the prompt's.
    assert pays(100, 32, 16)
    assert not pays(100, 32, 40)
    # A large model is busy with arithmetic.
    monkeypatch.setattr("sordino.forward.one_row._LAUNCHES_FLOP", 1e6)
    assert not pays(20, 128, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_one_by_one(family):
    network = tiny(family)
    prompts, texts = _prompts(network, [3, 11]), _texts(network, [4, 12, 7, 1, 9, 3])
    labels = _labels(texts)
    # Row 0: two examples after prompt 0; row 1: three after prompt 1, shorter in all, so padded; row 2: one after prompt 0.
    packing, prompt_of_row = [[0, 1], [2, 3, 5], [4]], [0, 1, 0]
    packed = _fast(network, prompts, texts, labels, prompt_of_row, packing)
    plain = _plain(network, prompts, texts, labels, prompt_of_row, packing)
    torch.testing.assert_close(packed, plain, rtol=0, atol=exact(family))
    assert _relative(
        list(torch.autograd.grad(packed.mean(), prompts)), list(torch.autograd.grad(plain.mean(), prompts))
    ) <= 10 * exact(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_alone_is_the_row_among_others(family):
    network = tiny(family)
    prompts, texts = _prompts(network), _texts(network)
    labels = _labels(texts)
    together = _fast(network, prompts, texts, labels, PROMPT_OF_ROW)
    each = zip(PROMPT_OF_ROW, texts, labels, strict=True)
    alone = torch.cat([_fast(network, [prompts[k]], [ids], [flags], [0]) for k, ids, flags in each])
    torch.testing.assert_close(together, alone, rtol=0, atol=exact(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_leaves_gather_the_gradient_of_several_passes(family):
    network = tiny(family)
    prompts, texts = _prompts(network), _texts(network)
    whole = _fast(network, prompts, texts, [[True] * len(t) for t in texts], PROMPT_OF_ROW).sum()
    expected = torch.autograd.grad(whole, prompts)
    prefixes = encode_prefixes(network, prompts)
    leaves = prefixes.as_leaves()
    for k, ids in zip(PROMPT_OF_ROW, texts, strict=True):
        rows = rows_from_examples([[ids]], [k])
        nll_of_rows(network, leaves, rows, torch.ones_like(rows.ids_BT, dtype=torch.bool)).sum().backward()
    back_propagate(prefixes.tensors(), leaves.tensors())
    got = [prompt.grad for prompt in prompts]
    assert _relative(list(got), list(expected)) <= 10 * exact(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_without_a_prompt_stand_beside_rows_with_one(family):
    network = tiny(family)
    (prompt,) = _prompts(network, [4])
    nothing = prompt.detach()[:0]
    ids = _texts(network, [10])[0]
    flags = [False] + [True] * 9
    mixed = _fast(network, [nothing, prompt], [ids, ids], [flags, flags], [0, 1])
    plain = torch.cat([plain_nll(network, nothing, ids, flags), plain_nll(network, prompt, ids, flags)])
    torch.testing.assert_close(mixed, plain, rtol=0, atol=exact(family))
    alone = _fast(network, [nothing], [ids], [flags], [0])
    torch.testing.assert_close(alone, mixed[:9], rtol=0, atol=exact(family))


def test_every_family_that_is_packed_is_tested():
    assert set(
        FAMILIES.values() if isinstance(FAMILIES, dict) else (tiny(f).config.model_type for f in FAMILIES)
    ) == set(PACKABLE_FAMILIES)


def test_gradient_checkpointing_is_refused():
    network = tiny("llama")
    # Transformers 5.19 has the older name alone.
    name = "activation_checkpointing_enable"
    getattr(network, name if hasattr(network, name) else "gradient_checkpointing_enable")()
    network.train()
    with pytest.raises(RuntimeError, match="checkpointing"):
        encode_prefixes(network, _prompts(network))


def test_a_model_that_does_not_use_its_cache_is_noticed(monkeypatch):
    network = tiny("gpt2")
    plain_forward = network.base_model.forward
    monkeypatch.setattr(
        network.base_model, "forward", lambda **kw: plain_forward(**{**kw, "past_key_values": None, "use_cache": False})
    )
    with pytest.raises(RuntimeError, match="did not use the cache"):
        encode_prefixes(network, _prompts(network))


def test_an_unproven_architecture_runs_one_example_a_row(monkeypatch):
    """The path of unknown families, transformers' own masks, is exact too: seen on a family that we can check."""
    for family in ("llama", "gemma3"):
        network = tiny(family)
        prompts, texts = _prompts(network), _texts(network)
        labels = _labels(texts)
        expected = _fast(network, prompts, texts, labels, PROMPT_OF_ROW)
        monkeypatch.setattr("sordino.forward.prefix.PACKABLE_FAMILIES", frozenset())
        unpacked = _fast(network, prompts, texts, labels, PROMPT_OF_ROW)
        torch.testing.assert_close(unpacked, expected, rtol=0, atol=exact(family))
        with pytest.raises(ValueError, match="one example a row"):
            _fast(network, prompts, texts, labels, [0], [[0, 1]])
        monkeypatch.undo()


def test_prefixes_are_not_changed_by_rows():
    network = tiny("gpt2")
    prompts = _prompts(network)
    prefixes: Prefixes = encode_prefixes(network, prompts)
    before = [t.clone() for t in prefixes.tensors()]
    for _ in range(2):
        forward_rows(network, prefixes, rows_from_examples([[ids] for ids in _texts(network)], PROMPT_OF_ROW))
    assert all(torch.equal(a, b) for a, b in zip(before, prefixes.tensors(), strict=True))
