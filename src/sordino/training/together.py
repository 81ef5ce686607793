"""Several runs' steps, and their validation, together: rows of many runs in one pass, each behind its own run's prompt.

What is back-propagated is the sum of the runs' losses. No row sees another run's prompt, so each matrix gets the gradient of its
own run's loss and of nothing else: the gradient that the run has alone, but for rounding.

Shape key: K runs of a pass, P virtual tokens, D model width, N labelled tokens, n of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.forward.nll import nll_of_prompts_and_rows, nll_of_rows
from sordino.forward.packing import (
    LabelledRows,
    best_packing,
    best_packings,
    labelled_rows,
    one_by_one,
    passes,
    with_leading_ids,
)
from sordino.forward.placement import leading_ids, prefix_embeds
from sordino.forward.prefix import encode_prefixes, packable
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Placement
from sordino.texts.examples import Example
from sordino.training.gradient import loss_and_gradient, mean_nll


@dataclass(frozen=True)
class Batch:
    """One run's part of what is computed together: its matrix, where it sits, and examples to predict behind it."""

    matrix_PD: Tensor
    placement: Placement
    examples: Sequence[Example]


def losses_and_gradients(base: BaseModel, batches: Sequence[Batch], *, pass_tokens: int) -> list[float]:
    """`loss_and_gradient` of every batch, as many of them in one pass as it holds; a batch that fills one goes its own way."""
    losses = [0.0] * len(batches)
    for chosen in shared_passes(base, batches, pass_tokens=pass_tokens):
        if len(chosen) == 1:
            batch = batches[chosen[0]]
            found = [loss_and_gradient(base, batch.matrix_PD, batch.placement, batch.examples, pass_tokens=pass_tokens)]
        else:
            found = _in_one_pass(base, [batches[index] for index in chosen])
        for index, loss in zip(chosen, found, strict=True):
            losses[index] = loss
    return losses


@torch.no_grad()
def mean_nlls(base: BaseModel, batches: Sequence[Batch], *, pass_tokens: int) -> list[float]:
    """`mean_nll` of every batch; rows of several share passes."""
    means = [0.0] * len(batches)
    order = sorted(range(len(batches)), key=lambda index: (_prompt_length(base, batches[index]), index))
    for chosen in _grouped(
        order, lambda group: len(group) * max(_prompt_length(base, batches[i]) for i in group) <= pass_tokens
    ):
        if len(chosen) == 1:
            batch = batches[chosen[0]]
            means[chosen[0]] = mean_nll(base, batch.matrix_PD, batch.placement, batch.examples, pass_tokens=pass_tokens)
            continue
        for index, mean in zip(chosen, _means_together(base, [batches[i] for i in chosen], pass_tokens), strict=True):
            means[index] = mean
    return means


def _in_one_pass(base: BaseModel, batches: Sequence[Batch]) -> list[float]:
    embeds = [prefix_embeds(base, batch.matrix_PD, batch.placement) for batch in batches]
    packed, counts = _rows_of_several(base, batches, max(len(e) for e in embeds))
    nll_N = nll_of_prompts_and_rows(base.network, embeds, packed.rows, packed.labelled_BT)
    losses_K = torch.stack([nll_n.sum() / len(nll_n) for nll_n in nll_N.split(counts)])
    losses_K.sum().backward()
    losses: list[float] = losses_K.tolist()
    return losses


def _rows_of_several(base: BaseModel, batches: Sequence[Batch], prefix_length: int) -> tuple[LabelledRows, list[int]]:
    """All batches' rows, one batch after another, row by row behind its own prompt; and how many labelled tokens each has."""
    led = [_led(base, batch) for batch in batches]
    sets = [[len(example.ids) for example in examples] for examples in led]
    packable_here = packable(base.network)
    packings = best_packings(sets, prefix_length) if packable_here else [one_by_one(lengths) for lengths in sets]
    groups: list[list[int]] = []
    prompts: list[int] = []
    first = 0
    for k, (bins, lengths) in enumerate(zip(packings, sets, strict=True)):
        groups += [[first + i for i in group] for group in bins]
        prompts += [k] * len(bins)
        first += len(lengths)
    counts = [sum(sum(example.labelled) for example in examples) for examples in led]
    return labelled_rows([example for examples in led for example in examples], groups, prompts), counts


def shared_passes(base: BaseModel, batches: Sequence[Batch], *, pass_tokens: int) -> list[list[int]]:
    """Indices of batches that go through the model together: of like prompt length, as prompts are padded to the longest.

    A pass of several holds about `pass_tokens` positions of text at most, padding counted, and as many of prompts.
    """
    sizes = []
    for batch in batches:
        lengths = [len(example.ids) for example in _led(base, batch)]
        prompt = _prompt_length(base, batch)
        bins = best_packing(lengths, prompt) if packable(base.network) else one_by_one(lengths)
        sizes.append((prompt, max(sum(lengths[i] for i in group) for group in bins), len(bins)))

    def fits(chosen: Sequence[int]) -> bool:
        prompts = len(chosen) * max(sizes[index][0] for index in chosen)
        texts = max(sizes[index][1] for index in chosen) * sum(sizes[index][2] for index in chosen)
        return max(prompts, texts) <= pass_tokens

    return _grouped(sorted(range(len(batches)), key=lambda index: (*sizes[index], index)), fits)


def _grouped(order: Sequence[int], fits: Callable[[Sequence[int]], bool]) -> list[list[int]]:
    """`order` cut into stretches that fit, at least one a stretch."""
    groups: list[list[int]] = []
    for index in order:
        if groups and fits([*groups[-1], index]):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _led(base: BaseModel, batch: Batch) -> list[Example]:
    ids = leading_ids(base, batch.placement)
    return [with_leading_ids(example, ids) for example in batch.examples]


def _prompt_length(base: BaseModel, batch: Batch) -> int:
    return len(batch.matrix_PD) + (len(base.bos_ids) if batch.placement == "after_bos" else 0)


def _means_together(base: BaseModel, batches: Sequence[Batch], pass_tokens: int) -> list[float]:
    prefixes = encode_prefixes(base.network, [prefix_embeds(base, b.matrix_PD, b.placement) for b in batches])
    led = [_led(base, batch) for batch in batches]
    lengths = [len(example.ids) for examples in led for example in examples]
    owners = [k for k, examples in enumerate(led) for _ in examples]
    groups: list[list[int]] = []
    first = 0
    for examples in led:
        own = lengths[first : first + len(examples)]
        bins = best_packing(own, prefixes.width) if packable(base.network) else one_by_one(own)
        groups += [[first + i for i in group] for group in bins]
        first += len(examples)
    together = [example for examples in led for example in examples]
    total_K = torch.zeros(len(batches), dtype=torch.float64)
    for part in passes(groups, lengths, pass_tokens):
        packed = labelled_rows(together, part, [owners[group[0]] for group in part])
        nll_N = nll_of_rows(base.network, prefixes, packed.rows, packed.labelled_BT)
        owner_N = torch.tensor(owners)[packed.example_N]
        total_K.index_add_(0, owner_N, nll_N.cpu().double())
    counts = [sum(sum(example.labelled) for example in batch.examples) for batch in batches]
    return [total / count for total, count in zip(total_K.tolist(), counts, strict=True)]


# How much at once ---------------------------------------------------------------------------------------------------

MOST_POSITIONS = 65_536


def roomy_pass_tokens(base: BaseModel, usual: int) -> int:
    """Most positions in one pass of several runs, by what suits the device.

    On a CPU `usual`: products gain nothing beyond it, and memory grows. A GPU wants everything in one pass, so there it is
    what half of the free memory holds of the activations that a position leaves for the backward pass.
    """
    if base.device.type != "cuda":
        return usual
    free, _ = torch.cuda.mem_get_info(base.device)
    return max(usual, min(MOST_POSITIONS, int(free / 2 / _bytes_a_position(base))))


def _bytes_a_position(base: BaseModel) -> int:
    """Of a layer's activations: two norms that keep float32 copies, queries, keys, values and their mixture, and three as wide as
    the feed-forward part; frozen linear layers keep none of their inputs.
    """
    config = base.network.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * base.d_model
    return base.n_layers * (24 * base.d_model + base.dtype.itemsize * (4 * base.d_model + 3 * int(inner)))
