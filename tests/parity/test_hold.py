"""Hold and strength give what a plain forward pass with log w(t) in its mask gives: one row, no cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sordino.errors import ConfigError
from sordino.forward.longer import extend_prefixes
from sordino.forward.nll import head_of, nll_of_prompts_and_rows
from sordino.forward.prefix import encode_prefixes, forward_rows
from sordino.forward.rows import rows_from_examples
from sordino.forward.weighting import PromptSpan, span_of
from sordino.prompts.attention import PromptAttention
from tests.parity.test_prefix import _prompts, _relative, _texts, exact
from tests.tiny_models import FAMILIES, tiny

HELD = [
    PromptAttention(hold=4),
    PromptAttention(hold=3, strength=2.5),
    PromptAttention(strength=0.5),
    PromptAttention(),
]
PROMPT_LENGTHS, PROMPT_OF_ROW = [5, 11, 3, 1], [0, 1, 2, 3, 0, 1]
TEXT_LENGTHS = [13, 5, 9, 1, 20, 24]


def reference_masks(network, prompt: int, size: int, attention: PromptAttention) -> Any:
    """Masks of one row of `size` positions after a prompt, written out from the definition, a number at a time."""

    def mask(window: float) -> Tensor:
        mask_SS = torch.full((size, size), torch.finfo(network.dtype).min, dtype=network.dtype)
        for query in range(size):
            for key in range(query + 1):
                if query - key < window:
                    held = query >= prompt and 1 <= key < prompt
                    mask_SS[query, key] = math.log(attention.weight(query - prompt + 1)) if held else 0.0
        return mask_SS[None, None]

    if "sliding_attention" in (getattr(network.config, "layer_types", None) or ()):
        return {"full_attention": mask(math.inf), "sliding_attention": mask(network.config.sliding_window)}
    return mask(math.inf)


def reference_logits(network, prompt_PD: Tensor, ids: list[int], attention: PromptAttention) -> Tensor:
    """Logits [T, V] of the text's positions."""
    embeds_TD = network.get_input_embeddings()(torch.tensor(ids))
    both_1SD = torch.cat([prompt_PD.to(embeds_TD.dtype), embeds_TD])[None]
    prompt = len(prompt_PD)
    masks = reference_masks(network, prompt, both_1SD.shape[1], attention)
    # Not transformers' eager attention: its softmax rounds to float32.
    return network(inputs_embeds=both_1SD, attention_mask=masks, use_cache=False).logits[0, prompt:]


def _held(prompts: list[Tensor]) -> list[PromptSpan | None]:
    return [span_of(len(prompt), attention) for prompt, attention in zip(prompts, HELD, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_held_rows_equal_the_plain_mask(family):
    """Rows of one example, packed rows, and text in the prefix."""
    network = tiny(family)
    prompts, texts = _prompts(network, PROMPT_LENGTHS), _texts(network, TEXT_LENGTHS)
    plain = [reference_logits(network, prompts[k], ids, HELD[k]) for k, ids in zip(PROMPT_OF_ROW, texts, strict=True)]
    prefixes = encode_prefixes(network, prompts, _held(prompts))
    head = head_of(network)

    hidden_BTD = forward_rows(network, prefixes, rows_from_examples([[ids] for ids in texts], PROMPT_OF_ROW))
    for hidden_TD, wanted_TV in zip(hidden_BTD, plain, strict=True):
        torch.testing.assert_close(head.logits(hidden_TD[: len(wanted_TV)]), wanted_TV, rtol=0, atol=exact(family))

    packed_BTD = forward_rows(
        network, prefixes, rows_from_examples([[texts[0], texts[4]], [texts[1], texts[5]]], [0, 1])
    )
    for hidden_TD, (first, second) in zip(packed_BTD, ((0, 4), (1, 5)), strict=True):
        wanted_TV = torch.cat([plain[first], plain[second]])
        torch.testing.assert_close(head.logits(hidden_TD[: len(wanted_TV)]), wanted_TV, rtol=0, atol=exact(family))

    # The beginning of each text as part of its prefix, in two ways.
    cut = [len(ids) // 2 for ids in texts]
    begun = rows_from_examples([[ids[:at]] for ids, at in zip(texts, cut, strict=True)], PROMPT_OF_ROW)
    rest = rows_from_examples([[ids[at:]] for ids, at in zip(texts, cut, strict=True)], list(range(len(texts))))
    embed = network.get_input_embeddings()
    written = [
        torch.cat([prompts[k], embed(torch.tensor(ids[:at], dtype=torch.long))])
        for k, ids, at in zip(PROMPT_OF_ROW, texts, cut, strict=True)
    ]
    spans = [_held(prompts)[k] for k in PROMPT_OF_ROW]
    for longer in (extend_prefixes(network, prefixes, begun), encode_prefixes(network, written, spans)):
        hidden_BTD = forward_rows(network, longer, rest)
        for hidden_TD, wanted_TV, at in zip(hidden_BTD, plain, cut, strict=True):
            wanted_TV = wanted_TV[at:]
            torch.testing.assert_close(head.logits(hidden_TD[: len(wanted_TV)]), wanted_TV, rtol=0, atol=exact(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_held_gradients_equal_the_plain_mask(family):
    network = tiny(family)
    prompts, texts = _prompts(network, PROMPT_LENGTHS), _texts(network, TEXT_LENGTHS)
    plain = torch.cat(
        [
            torch.nn.functional.cross_entropy(
                reference_logits(network, prompts[k], ids, HELD[k])[:-1],
                torch.tensor(ids[1:], dtype=torch.long),
                reduction="none",
            )
            for k, ids in zip(PROMPT_OF_ROW, texts, strict=True)
        ]
    )
    rows = rows_from_examples([[ids] for ids in texts], PROMPT_OF_ROW)
    labelled_BT = (rows.example_BT >= 0) & (rows.offset_BT > 0)
    found = nll_of_prompts_and_rows(network, prompts, rows, labelled_BT, _held(prompts))
    torch.testing.assert_close(found.double(), plain.double(), rtol=0, atol=max(1e-5, exact(family)))
    gradients = [torch.autograd.grad(loss.mean(), prompts, allow_unused=True) for loss in (found, plain)]
    own, wanted = ([g for g in of if g is not None] for of in gradients)
    assert _relative(own, wanted) < 10 * exact(family)


def test_plain_attention_is_no_span():
    assert span_of(5, PromptAttention()) is None
    assert span_of(5, PromptAttention(hold=128)) == PromptSpan(5, PromptAttention(hold=128))


def test_a_family_without_proven_masks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sordino.forward.prefix.packable", lambda network: False)
    network = tiny("llama")
    with pytest.raises(ConfigError, match="hold and strength"):
        encode_prefixes(network, _prompts(network, [3]), [PromptSpan(3, PromptAttention(hold=4))])
