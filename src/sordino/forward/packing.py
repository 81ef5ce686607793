"""Pack examples into rows: several short examples share a row, so that no work is spent on padding.

Packing is exact (an example attends to its prefix and itself only), so the width of a row is only a question of cost: wide rows
waste attention on masked pairs, narrow ones waste padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sordino.forward.rows import Rows, rows_from_examples
from sordino.models.description import DescribedModel
from sordino.texts.example_store import Example, SoftTargets

# The cost of one masked query-key pair relative to one token in the linear layers, measured on SmolLM2-135M, two CPU cores: 2,304
# FLOPs a layer to 7.1 million, at well under half the speed of a matrix product. Larger models have a smaller ratio; the choice of
# width is not sensitive to it.
PAIR_COST = 1 / 1200
MAX_WIDTHS = 12


@dataclass(frozen=True)
class LabelledRows:
    """Rows, and which of their tokens are targets. example_N: the example of the n-th labelled token, in row order. soft: what is
    predicted in place of the labelled tokens, in row order; None for these themselves.
    """

    rows: Rows
    labelled_BT: Tensor
    example_N: Tensor
    soft: SoftTargets | None = None


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """First-fit decreasing: indices of `lengths` grouped into bins of at most `width`. Every index appears exactly once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    bins: list[list[int]] = []
    room: list[int] = []
    for i in order:
        if lengths[i] > width:
            raise ValueError(f"an example of {lengths[i]} tokens in rows of {width}")
        for b, free in enumerate(room):
            if lengths[i] <= free:
                bins[b].append(i)
                room[b] -= lengths[i]
                break
        else:
            bins.append([i])
            room.append(width - lengths[i])
    return bins


def best_packing(lengths: Sequence[int], prefix_length: int) -> list[list[int]]:
    """The cheapest of several widths' packings: cost = rows x width x (1 + (prefix + width) x PAIR_COST)."""
    return min(_packings(lengths), key=lambda bins: _cost(len(bins), _width(bins, lengths), prefix_length))


def best_packings(sets: Sequence[Sequence[int]], prefix_length: int) -> list[list[list[int]]]:
    """One packing for each set of lengths, for rows that share a pass and so a width: the cheapest in sum.

    Never has more positions, padding counted, than the best packings of the single sets together.
    """
    own = [best_packing(lengths, prefix_length) for lengths in sets]
    if len(sets) == 1:
        return own
    size = _size(own, sets)
    longest = max(max(lengths) for lengths in sets)
    widths = {_width(bins, lengths) for lengths in sets for bins in _packings(lengths)}
    wide = sorted(width for width in widths if width >= longest)
    tried = [own, *([pack(lengths, width) for lengths in sets] for width in wide[:: -(-len(wide) // MAX_WIDTHS)])]

    def cost(packings: list[list[list[int]]]) -> float:
        width = max(_width(bins, lengths) for bins, lengths in zip(packings, sets, strict=True))
        return _cost(sum(map(len, packings)), width, prefix_length)

    return min((packings for packings in tried if _size(packings, sets) <= size), key=cost)


def _packings(lengths: Sequence[int]) -> list[list[list[int]]]:
    longest, total = max(lengths), sum(lengths)
    # Widths at which a whole number of rows is just filled; beyond a dozen, attention costs more than padding.
    counts = range(total // longest, 0, -1)[:MAX_WIDTHS]
    widths = sorted({longest, *(-(-total // rows) for rows in counts)})
    return [pack(lengths, width) for width in widths]


def _width(bins: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return max(sum(lengths[i] for i in group) for group in bins)


def _size(packings: Sequence[Sequence[Sequence[int]]], sets: Sequence[Sequence[int]]) -> int:
    """Positions of all sets' rows at the width of the widest."""
    return sum(map(len, packings)) * max(_width(bins, of) for bins, of in zip(packings, sets, strict=True))


def _cost(rows: int, width: int, prefix_length: int) -> float:
    return rows * width * (1 + (prefix_length + width) * PAIR_COST)


def one_by_one(lengths: Sequence[int]) -> list[list[int]]:
    """One example a row, longest first: for architectures on which packing is not proven."""
    return [[i] for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))]


def with_leading_ids(example: Example, ids: Sequence[int]) -> Example:
    """The example after ids that are context, not targets."""
    if not ids:
        return example
    own = None if example.input is None else len(ids) + example.input
    return replace(example, ids=(*ids, *example.ids), labelled=(False,) * len(ids) + tuple(example.labelled), input=own)


def row_example(base: DescribedModel, example: Example, leading: Sequence[int]) -> Example:
    """An example as its row holds it: after the ids that a row's own text begins with; an encoder-decoder's with what ends the
    input and begins the decoder's text.
    """
    sides = base.encoder_decoder
    if sides is None:
        return with_leading_ids(example, leading)
    if example.input is None:
        raise ValueError("an example for a decoder, in front of an encoder-decoder")
    at, between = example.input, (*sides.end_ids, *sides.start_ids)
    ids = (*leading, *example.ids[:at], *between, *example.ids[at:])
    labelled = (*([False] * (len(leading) + at + len(between))), *example.labelled[at:])
    return replace(example, ids=ids, labelled=labelled, input=len(leading) + at + len(sides.end_ids))


def labelled_rows(examples: Sequence[Example], groups: Sequence[Sequence[int]], prompts: Sequence[int]) -> LabelledRows:
    """Rows from `groups` of example indices; `prompts[b]` is the prefix of row b. All examples have soft targets, or none has."""
    rows = rows_from_examples([[examples[i].ids for i in group] for group in groups], prompts)
    labelled_BT = torch.zeros_like(rows.ids_BT, dtype=torch.bool)
    source_BT = torch.zeros_like(rows.ids_BT)
    for b, group in enumerate(groups):
        start = 0
        for i in group:
            end = start + len(examples[i].ids)
            labelled_BT[b, start:end] = torch.tensor(examples[i].labelled, dtype=torch.bool)
            source_BT[b, start:end] = i
            start = end
    own = [examples[i].soft for group in groups for i in group]
    given = [soft for soft in own if soft is not None]
    if given and len(given) < len(own):
        raise ValueError("some examples have soft targets and others have none")
    inputs = [examples[group[0]].input for group in groups]
    if inputs and inputs[0] is not None:
        rows = replace(rows, input_B=torch.tensor(inputs))
    return LabelledRows(rows, labelled_BT, source_BT[labelled_BT], SoftTargets.joined(given) if given else None)


def input_passes(
    examples: Sequence[Example], ahead: Sequence[int], max_tokens: int, *, own_pass: int
) -> list[list[int]]:
    """Indices of an encoder-decoder's examples, one a row, cut into passes of like lengths: the cheapest cut of their order by
    length, padding counted, where a pass costs `own_pass` positions more. A pass holds one row, or at most `max_tokens`
    positions each of prompts, inputs and outputs.

    ahead: positions of each row's prompt. In a pass the indices are in their order, so rows of one prompt stay together.
    """
    # What an encoder reads, and what its decoder writes: its last token is only predicted.
    reads = [front + (one.input or 0) for one, front in zip(examples, ahead, strict=True)]
    writes = [len(one.ids) - (one.input or 0) - 1 for one in examples]
    order = sorted(range(len(examples)), key=lambda i: (reads[i], writes[i], i))
    # cheapest[n]: of the first n rows, with where their last pass begins.
    cheapest: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        found: tuple[int, int] | None = None
        read = write = prompt = 0
        for begin in range(end - 1, -1, -1):
            row, rows = order[begin], end - begin
            read, write, prompt = max(read, reads[row]), max(write, writes[row]), max(prompt, ahead[row])
            if found is not None and rows * max(prompt, read - prompt, write) > max_tokens:
                break
            cost = cheapest[begin][0] + rows * (read + write) + own_pass
            if found is None or cost < found[0]:
                found = cost, begin
        assert found is not None
        cheapest.append(found)
    cut: list[list[int]] = []
    end = len(order)
    while end:
        begin = cheapest[end][1]
        cut.insert(0, sorted(order[begin:end]))
        end = begin
    return cut


def passes(groups: list[list[int]], lengths: Sequence[int], max_tokens: int) -> list[list[list[int]]]:
    """Rows cut into forward passes of at most `max_tokens` positions (padding counted), at least one row a pass."""
    width = max((sum(lengths[i] for i in group) for group in groups), default=1)
    rows_a_pass = max(1, max_tokens // max(width, 1))
    return [groups[at : at + rows_a_pass] for at in range(0, len(groups), rows_a_pass)]
