"""Losses and gradients of a step, and validation losses: rows of any number of runs in one pass, each after its own run's prompt.

What is back-propagated is the sum of the runs' losses. No row sees another run's prompt, so each matrix gets the gradient of its
own run's loss and of nothing else: the gradient that the run has alone, but for rounding.

A prompt is run once a step, beside the text where the step is one pass. Where it is cut into several, the prompt's keys and
values are leaves that every pass adds its gradient to, and are back-propagated once at the end. Counted in FLOPs a step costs
4N a token (2N forward, 2N for the gradient of the activations; the weights are frozen), so twice a forward pass is the floor.

Shape key: K runs or components, P virtual tokens, W numbers of one, N labelled tokens of a pass, n of them after one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sordino.forward.nll import nll_of_prompts_and_rows, nll_of_rows
from sordino.forward.packing import (
    LabelledRows,
    best_packings,
    input_passes,
    labelled_rows,
    one_by_one,
    passes,
    row_example,
)
from sordino.forward.prefix import back_propagate, packable
from sordino.forward.sources import PrefixSource, encode_sources, spans_of
from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example
from sordino.training.strategy import SINGLE_PROCESS, Strategy, most, share_of_runs

MAX_POSITIONS = 65_536
# The loss is multiplied by it before the backward pass, and what arrives at a matrix is divided. Behind a saturated attention, as
# T5's, gradients fall below the normal numbers, and Intel's processors multiply those at a fifth of the speed or less (LOG.md). A
# power of two changes no other bit.
SCALE = 2.0**80
# The fixed cost of one pass of an encoder-decoder, in positions: on a CPU, on a GPU.
_OWN_PASS = (64, 8192)


@dataclass(frozen=True)
class Batch:
    """One run's part of a step: its prefix, the examples to predict after it, and the steps done so far."""

    source: PrefixSource
    examples: Sequence[Example]
    step: int = 0

    @property
    def labelled(self) -> int:
        return sum(sum(example.labelled) for example in self.examples)

    def of(self, matrix_PW: Tensor, examples: Sequence[Example]) -> Batch:
        """The same with another matrix and other examples."""
        return replace(self, source=self.source.of(matrix_PW), examples=examples)

    def rows(self, base: BaseModel) -> list[Example]:
        """The examples after the ids that a row's own text begins with."""
        ids = () if self.source.context else self.source.leading_ids(base)
        return [row_example(base, example, ids) for example in self.examples]


# (base, batches, pass_tokens, strategy) -> a loss for each batch, in nats a token.
Losses = Callable[[BaseModel, Sequence[Batch], int, Strategy], list[float]]


@dataclass(frozen=True)
class Loss:
    """What runs minimise. backward: also adds each loss's gradient to what the batch's matrix was computed from. mean: without
    gradients, for validation. pass_tokens: most positions of text in one forward pass.
    """

    backward: Losses
    mean: Losses


def losses_and_gradients(
    base: BaseModel, batches: Sequence[Batch], pass_tokens: int, strategy: Strategy = SINGLE_PROCESS
) -> list[float]:
    """Each batch's mean NLL in nats over its labelled tokens; its gradient is added to what its matrix was computed from."""
    leaves = [batch.source.matrix_PW.detach().requires_grad_() for batch in batches]
    losses_K = torch.zeros(len(batches), dtype=torch.float64)
    shares = share_of_runs(strategy, [batch.examples for batch in batches])
    own = [batch.of(leaf, share) for batch, leaf, share in zip(batches, leaves, shares, strict=True)]
    for chosen in [[k] for k in range(len(own))] if strategy.together else shared_passes(base, own, pass_tokens):
        together = [own[index] for index in chosen]
        counts = [batches[index].labelled for index in chosen]

        def means(nll_N: Tensor, part: LabelledRows, counts: Sequence[int] = counts) -> Tensor:
            split = _by_prompt(nll_N, part, len(counts))
            return torch.stack([nll_n.sum() / count for nll_n, count in zip(split, counts, strict=True)])

        sources = [batch.source for batch in together]
        parts = packed_passes(base, together, max(source.positions(base) for source in sources), pass_tokens)
        parts = with_idle_passes(base, batches[chosen[0]], parts, strategy)
        losses_K[chosen] = accumulate(base, sources, parts, means)
    hand_back(batches, leaves, losses_K, strategy)
    return losses_K.tolist()


def accumulate(
    base: BaseModel,
    sources: Sequence[PrefixSource],
    parts: Sequence[LabelledRows],
    losses_of: Callable[[Tensor, LabelledRows], Tensor],
) -> Tensor:
    """Back-propagate packed passes after K prefixes; the sum over passes of `losses_of`, float64 [losses].

    losses_of: from the float32 NLL [N] of a pass's labelled tokens, in row order, to its share of the losses.
    """
    network = base.network
    # GPUs do not slow down, and float16 would overflow.
    scale = 1.0 if base.device.type != "cpu" or base.dtype == torch.float16 else SCALE
    sources = [_divided(source, scale) for source in sources]
    if len(parts) == 1:
        (part,) = parts
        if base.encoder_decoder is not None or any(source.kv for source in sources):
            nll_N = nll_of_rows(network, encode_sources(base, sources), part.rows, part.labelled_BT, part.soft)
        else:
            embeds, spans = [source.embeds(base) for source in sources], spans_of(base, sources)
            nll_N = nll_of_prompts_and_rows(network, embeds, part.rows, part.labelled_BT, spans, part.soft)
        losses = losses_of(nll_N, part)
        (losses.sum() * scale).backward()
        return losses.detach().cpu().double()
    prefixes = encode_sources(base, sources)
    leaves = prefixes.as_leaves()
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        nll_N = nll_of_rows(network, leaves.to(base.dtype), part.rows, part.labelled_BT, part.soft)
        losses = losses_of(nll_N, part)
        (losses.sum() * scale).backward()
        total = total + losses.detach().cpu().double()
    back_propagate(prefixes.tensors(), leaves.tensors())
    return total


def _divided(source: PrefixSource, by: float) -> PrefixSource:
    """The same prefix, whose matrix gets its gradient divided by a power of two."""
    matrix_PW = source.matrix_PW.view_as(source.matrix_PW)
    if matrix_PW.requires_grad:
        matrix_PW.register_hook(lambda grad_PW: grad_PW / by)
    return source.of(matrix_PW)


def hand_back(batches: Sequence[Batch], leaves: Sequence[Tensor], losses: Tensor, strategy: Strategy) -> None:
    """Sum the losses and the leaves' gradients over all processes, and pass the gradients on to the batches' matrices."""
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    strategy.reduce([losses, *gradients])
    torch.autograd.backward([batch.source.matrix_PW for batch in batches], gradients)


@torch.no_grad()
def mean_nlls(
    base: BaseModel, batches: Sequence[Batch], pass_tokens: int, strategy: Strategy = SINGLE_PROCESS
) -> list[float]:
    """Each batch's mean NLL in nats over its labelled tokens."""
    total_K = torch.zeros(len(batches), dtype=torch.float64)
    shares = share_of_runs(strategy, [batch.examples for batch in batches])
    own = [replace(batch, examples=share) for batch, share in zip(batches, shares, strict=True)]
    lengths = [batch.source.positions(base) for batch in own]
    order = sorted((i for i, batch in enumerate(own) if batch.examples), key=lambda i: (lengths[i], i))
    groups = _grouped(order, lambda group: len(group) * max(lengths[i] for i in group) <= pass_tokens)
    for chosen in [[k] for k in range(len(own))] if strategy.together else groups:
        together = [own[index] for index in chosen]
        prefixes = encode_sources(base, [batch.source for batch in together])
        parts = packed_passes(base, together, prefixes.width, pass_tokens)
        parts = with_idle_passes(base, batches[chosen[0]], parts, strategy)
        for part in parts:
            nll_N = nll_of_rows(base.network, prefixes, part.rows, part.labelled_BT, part.soft)
            # Moved first: Apple's GPUs have no float64.
            split = _by_prompt(nll_N.cpu().double(), part, len(chosen))
            total_K[chosen] += torch.stack([nll_n.sum() for nll_n in split])
    strategy.reduce([total_K])
    return [total / batch.labelled for total, batch in zip(total_K.tolist(), batches, strict=True)]


MEAN_NLL = Loss(losses_and_gradients, mean_nlls)


def shared_passes(base: BaseModel, batches: Sequence[Batch], pass_tokens: int) -> list[list[int]]:
    """Indices of batches that go through the model together: of like prompt length, as prompts are padded to the longest.

    A pass of several holds `pass_tokens` positions of text at most, padding counted, and as many of prompts. A batch without
    examples is in none.
    """
    present = [index for index, batch in enumerate(batches) if batch.examples]
    if len(present) == 1:
        # Nothing to share: its rows are packed once, when it runs.
        return [present]
    sizes = {}
    for index in present:
        lengths, prompt = (
            [len(example.ids) for example in batches[index].rows(base)],
            batches[index].source.positions(base),
        )
        (bins,) = packings(base, [lengths], prompt)
        sizes[index] = (prompt, max(sum(lengths[i] for i in group) for group in bins), len(bins))

    def fits(chosen: Sequence[int]) -> bool:
        prompts = len(chosen) * max(sizes[index][0] for index in chosen)
        texts = max(sizes[index][1] for index in chosen) * sum(sizes[index][2] for index in chosen)
        return max(prompts, texts) <= pass_tokens

    return _grouped(sorted(sizes, key=lambda index: (*sizes[index], index)), fits)


def packings(base: BaseModel, sets: Sequence[Sequence[int]], prefix_length: int) -> list[list[list[int]]]:
    """For each set of lengths its rows, as groups of indices. One example a row if packing is unproven here."""
    return best_packings(sets, prefix_length) if packable(base.network) else [one_by_one(lengths) for lengths in sets]


def packed_passes(
    base: BaseModel, batches: Sequence[Batch], prefix_length: int, pass_tokens: int
) -> list[LabelledRows]:
    """The rows of all batches in turn, in passes of at most `pass_tokens` positions of text; batch k's rows have prefix k."""
    sets = [batch.rows(base) for batch in batches]
    examples = [example for rows in sets for example in rows]
    if not examples:
        return []
    lengths = [len(example.ids) for example in examples]
    owner = [k for k, rows in enumerate(sets) for _ in rows]
    if base.encoder_decoder is not None:
        ahead = [batch.source.positions(base) for batch in batches]
        cut = input_passes(
            examples, [ahead[k] for k in owner], pass_tokens, own_pass=_OWN_PASS[base.device.type == "cuda"]
        )
        return [labelled_rows(examples, [[i] for i in part], [owner[i] for i in part]) for part in cut]
    groups: list[list[int]] = []
    first = 0
    for bins in packings(base, [[len(example.ids) for example in rows] for rows in sets], prefix_length):
        groups += [[first + i for i in group] for group in bins]
        first += sum(map(len, bins))
    return [
        labelled_rows(examples, part, [owner[group[0]] for group in part])
        for part in passes(groups, lengths, pass_tokens)
    ]


def with_idle_passes(
    base: BaseModel, batch: Batch, parts: Sequence[LabelledRows], strategy: Strategy
) -> list[LabelledRows]:
    """This process's passes and, where each needs all processes, passes without a label until all have as many."""
    if not strategy.together:
        return list(parts)
    missing = most(strategy, len(parts)) - len(parts)
    filler = labelled_rows(batch.rows(base)[:1], [[0]], [0])
    idle = replace(filler, labelled_BT=torch.zeros_like(filler.labelled_BT), soft=None)
    return [*parts, *[idle] * missing]


def _by_prompt(nll_N: Tensor, part: LabelledRows, count: int) -> Sequence[Tensor]:
    """`nll_N` cut by the prefix of its rows, which come in that order."""
    labelled_B = part.labelled_BT.sum(1)
    sizes: list[int] = torch.zeros(count, dtype=torch.long).index_add(0, part.rows.prompt_B, labelled_B).tolist()
    split: Sequence[Tensor] = nll_N.split(sizes)
    return split


def _grouped(order: Sequence[int], fits: Callable[[Sequence[int]], bool]) -> list[list[int]]:
    """`order` cut into groups that fit, at least one index a group."""
    groups: list[list[int]] = []
    for index in order:
        if groups and fits([*groups[-1], index]):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def group_pass_tokens(base: BaseModel, usual: int) -> int:
    """Most positions in one pass of several runs, by what suits the device.

    On a CPU `usual`: products gain nothing beyond it, and memory grows. A GPU wants everything in one pass, so there it is
    what half of the free memory holds of the activations that a position leaves for the backward pass.
    """
    if base.device.type != "cuda":
        return usual
    free, _ = torch.cuda.mem_get_info(base.device)
    return max(usual, min(MAX_POSITIONS, int(free / 2 / _bytes_a_position(base))))


def _bytes_a_position(base: BaseModel) -> int:
    """What a position leaves in each layer: two norms that keep float32 copies, queries, keys, values and their mixture, and three
    as wide as the feed-forward part; frozen linear layers keep none of their inputs.
    """
    config = base.network.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * base.d_model
    return base.n_layers * (24 * base.d_model + base.dtype.itemsize * (4 * base.d_model + 3 * int(inner)))
