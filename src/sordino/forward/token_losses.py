"""The loss of every example in every context, in one operation: K prefixes, and rows that each gather theirs by index.

Shape key: N examples, T labelled tokens of all of them (in the order of the examples), K contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sordino.forward.encoder_decoder import AnyPrefixes, InputPrefixes
from sordino.forward.longer import extend_prefixes
from sordino.forward.nll import nll_of_rows
from sordino.forward.packing import labelled_rows, one_by_one, pack, row_example
from sordino.forward.placement import encode_prompts
from sordino.forward.prefix import Prefixes, join_prefixes, packable
from sordino.forward.rows import rows_from_examples
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.prompts.prompt import Prompt
from sordino.texts.examples import Example

# Most prefix positions, padding counted, that are held as keys and values at once: 94 MB for SmolLM2-135M.
PREFIX_POSITIONS = 2048

Progress = Callable[[int, int], None]


class Context(Protocol):
    """What precedes a text: a soft prompt of any kind or none, then text of its own.

    positions: of the prompt, with the BOS ahead of it. ids: of the text after it, with the BOS that stands between the two.
    leading: ids that the measured text itself begins with (a BOS after a prompt that stands before it). prefix: prompt and `ids` as
    one prefix that has run already; None: they have not.
    """

    @property
    def prompt(self) -> Prompt | None: ...

    @property
    def positions(self) -> int: ...

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def leading(self) -> tuple[int, ...]: ...

    @property
    def prefix(self) -> Prefixes | None: ...


@dataclass(frozen=True)
class TokenLosses:
    """nll_TK: NLL in nats [T, K] of every labelled token in every context, float64 on the CPU. tokens_N: labelled tokens of each
    example; those of one example are adjacent, in the order of the examples.
    """

    nll_TK: Tensor
    tokens_N: Tensor

    def of_examples(self) -> Tensor:
        """NLL in nats [N, K] of whole examples: -log p(y|x) in each context."""
        return self.summed(self.nll_TK)

    def summed(self, values_TC: Tensor) -> Tensor:
        """Values of tokens [T, C] summed within examples: [N, C]."""
        example_T = torch.repeat_interleave(torch.arange(len(self.tokens_N)), self.tokens_N)
        totals_NC = values_TC.new_zeros(len(self.tokens_N), values_TC.shape[1])
        return totals_NC.index_add(0, example_T, values_TC)


def losses(
    base: BaseModel,
    contexts: Sequence[Context],
    examples: Sequence[Example],
    *,
    pass_tokens: int,
    progress: Progress = lambda done, total: None,
) -> TokenLosses:
    """Every example's labelled tokens in every context. progress: called with the rows done and their total.

    The caller checks that they fit the model's context. Raises OutOfMemory.
    """
    counts = [sum(example.labelled) for example in examples]
    begin_N = torch.tensor([0, *counts]).cumsum(0)
    nll_TK = torch.zeros(sum(counts), len(contexts), dtype=torch.float64)
    done = 0
    with memory_errors("measuring", "lower --pass-tokens"):
        for group in context_groups(contexts):
            for place_n, prompt_n, nll_n, finished in _passes(
                base, [contexts[k] for k in group], examples, begin_N, pass_tokens
            ):
                nll_TK[place_n, torch.tensor(group)[prompt_n]] = nll_n
                done += finished
                progress(done, len(examples) * len(contexts))
    return TokenLosses(nll_TK, torch.tensor(counts))


@torch.inference_mode()
def _passes(
    base: BaseModel, contexts: Sequence[Context], examples: Sequence[Example], begin_N: Tensor, pass_tokens: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """For each forward pass: the tokens that it scored, their contexts, their NLL, and how many examples it held."""
    prefixes = encode_contexts(base, contexts)
    led = [row_example(base, example, contexts[0].leading) for example in examples]
    lengths = [len(example.ids) for example in led]
    rows = pack(lengths, max(lengths)) if packable(base.network) else one_by_one(lengths)
    jobs = [(k, row) for k in range(len(contexts)) for row in rows]
    rows_a_pass = max(1, pass_tokens // (prefixes.width + max(lengths)))
    for at in range(0, len(jobs), rows_a_pass):
        part = jobs[at : at + rows_a_pass]
        packed = labelled_rows(led, [row for _, row in part], [k for k, _ in part])
        nll_n = nll_of_rows(base.network, prefixes, packed.rows, packed.labelled_BT).cpu().double()
        prompt_n = packed.rows.prompt_B[packed.labelled_BT.nonzero()[:, 0]]
        # Labelled tokens come row by row, and in a row example by example.
        place_n = torch.cat([torch.arange(int(begin_N[i]), int(begin_N[i + 1])) for _, row in part for i in row])
        yield place_n, prompt_n, nll_n, sum(len(row) for _, row in part)


def encode_contexts(base: BaseModel, contexts: Sequence[Context]) -> AnyPrefixes:
    """K contexts as K prefixes. In a decoder each prompt runs once, side by side with the others, and then the texts after them.

    Raises DoesNotFit and ConfigError as `encode_prompts`.
    """
    run = [context.prefix for context in contexts if context.prefix is not None]
    if len(run) == len(contexts):
        return run[0] if len(run) == 1 else join_prefixes(run)
    if run:
        raise ValueError("contexts that have run and others that have not")
    prompts = list({id(context.prompt): context.prompt for context in contexts}.values())
    at = [next(k for k, prompt in enumerate(prompts) if prompt is context.prompt) for context in contexts]
    prefixes = encode_prompts(base, prompts)
    if isinstance(prefixes, InputPrefixes):
        texts = [base.embed(torch.tensor(one.ids, dtype=torch.long, device=base.device)) for one in contexts]
        return prefixes.select(at).behind(texts)
    if any(context.ids for context in contexts):
        rows = rows_from_examples([[context.ids] for context in contexts], at)
        return extend_prefixes(base.network, prefixes, rows.to(base.device))
    return prefixes if at == list(range(len(prompts))) else prefixes.select(at)


def length_of(context: Context) -> int:
    """Positions of a context's prefix."""
    return context.positions + len(context.ids)


def context_groups(contexts: Sequence[Context]) -> Iterator[list[int]]:
    """Indices of contexts that run through the model together: of one sort and like length, within PREFIX_POSITIONS."""

    def sort(k: int) -> tuple[tuple[int, ...], bool, bool]:
        # A row of nothing at all, run beside rows of text, would be masked wholly.
        return contexts[k].leading, bool(contexts[k].ids), contexts[k].prefix is None

    order = sorted(range(len(contexts)), key=lambda k: (sort(k), length_of(contexts[k])))
    group: list[int] = []
    for k in order:
        fits = (len(group) + 1) * length_of(contexts[k]) <= PREFIX_POSITIONS
        if group and not (fits and sort(k) == sort(group[0])):
            yield group
            group = []
        group.append(k)
    yield group
