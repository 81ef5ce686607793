"""The loss of the same tokens under every condition.

The texts are cut into windows, and each window stands behind the condition's prefix. The first token of a window counts only
if every condition can predict it: without a prompt, on a model without BOS, nothing can.

Shape key: W windows, C conditions, N target tokens, K prefixes of one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from sordino.base_model import BaseModel
from sordino.bootstrap import Floats
from sordino.errors import DataError
from sordino.evaluate.conditions import Condition
from sordino.memory import memory_named
from sordino.nll import nll_of_rows
from sordino.packing import labelled_rows, one_by_one, pack, with_leading_ids
from sordino.prefix import encode_prefixes, packable
from sordino.texts.examples import Example, make_examples
from sordino.texts.pieces import Piece

# Most prefix positions, padding counted, that are held as keys and values at once: 94 MB for SmolLM2-135M.
PREFIX_POSITIONS = 2048

Progress = Callable[[int, int], None]


def windows_of(base: BaseModel, pieces: Sequence[Piece], *, row_tokens: int, limit: int, first: bool) -> list[Example]:
    """The texts as windows of at most `row_tokens`, thinned evenly to `limit` targets (0: all of them).

    first: whether the windows' first tokens are targets.

    Raises DataError if no target is left.
    """
    made = make_examples(pieces, base, max_tokens=row_tokens).examples
    if not first:
        made = tuple(replace(example, labelled=(False, *example.labelled[1:])) for example in made)
    windows = [example for example in made if any(example.labelled)]
    if not windows:
        raise DataError(
            "the held-out texts are too short to measure", where="--heldout", expected="at least two tokens"
        )
    total = sum(sum(window.labelled) for window in windows)
    if not limit or total <= limit:
        return windows
    kept = max(1, len(windows) * limit // total)
    return [windows[at * len(windows) // kept] for at in range(kept)]


def target_bytes(base: BaseModel, windows: Sequence[Example]) -> int:
    """UTF-8 bytes of the targets' text. Whole windows are decoded and what is no target is taken off again: tokens decoded
    alone would lose spaces and parts of characters. Markers such as an end of turn have no bytes.
    """
    every = [token for window in windows for token in window.ids]
    others = [t for window in windows for t, target in zip(window.ids, window.labelled, strict=True) if not target]
    return len(base.decode(every).encode()) - len(base.decode(others).encode())


def nll_of_windows(
    base: BaseModel,
    conditions: Sequence[Condition],
    windows: Sequence[Example],
    *,
    pass_tokens: int,
    progress: Progress = lambda done, total: None,
) -> Floats:
    """The summed NLL in nats [W, C] of each window's targets behind each condition's prefix."""
    nll_WC = np.zeros((len(windows), len(conditions)))
    total = len(windows) * len(conditions)
    done = 0
    with memory_named("measuring", "lower --pass-tokens"):
        for group in prefix_groups(conditions):
            for nll_WK, finished in _passes(base, [conditions[c] for c in group], windows, pass_tokens):
                nll_WC[:, group] += nll_WK
                done += finished
                progress(done, total)
    return nll_WC


def prefix_groups(conditions: Sequence[Condition]) -> Iterator[list[int]]:
    """Indices of conditions that are run through the model together: of like length, within PREFIX_POSITIONS."""
    order = sorted(range(len(conditions)), key=lambda c: (conditions[c].leading, conditions[c].length))
    group: list[int] = []
    for c in order:
        fits = (len(group) + 1) * conditions[c].length <= PREFIX_POSITIONS
        if group and not (fits and conditions[c].leading == conditions[group[0]].leading):
            yield group
            group = []
        group.append(c)
    yield group


@torch.inference_mode()
def _passes(
    base: BaseModel, conditions: Sequence[Condition], windows: Sequence[Example], pass_tokens: int
) -> Iterator[tuple[Floats, int]]:
    """K conditions' share of the NLL [W, K], a forward pass at a time, and how many windows times conditions the pass held."""
    prefixes = encode_prefixes(base.network, [condition.embeds_PD for condition in conditions])
    led = [with_leading_ids(window, conditions[0].leading) for window in windows]
    lengths = [len(window.ids) for window in led]
    rows = pack(lengths, max(lengths)) if packable(base.network) else one_by_one(lengths)
    jobs = [(k, row) for k in range(len(conditions)) for row in rows]
    rows_a_pass = max(1, pass_tokens // (prefixes.width + max(lengths)))
    for at in range(0, len(jobs), rows_a_pass):
        part = jobs[at : at + rows_a_pass]
        packed = labelled_rows(led, [row for _, row in part], [k for k, _ in part])
        nll_N = nll_of_rows(base.network, prefixes, packed.rows, packed.labelled_BT).cpu().double()
        prompt_N = packed.rows.prompt_B[packed.labelled_BT.nonzero()[:, 0]]
        nll_WK = torch.zeros(len(windows), len(conditions), dtype=torch.float64)
        nll_WK.index_put_((packed.example_N, prompt_N), nll_N, accumulate=True)
        yield nll_WK.numpy(), sum(len(row) for _, row in part)
