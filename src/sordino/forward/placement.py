"""Where a soft prompt stands relative to BOS: the only place that decides it.

    after_bos   prefix = BOS, virtual tokens;   row = text         the model keeps its attention sink: Gemma needs it
    start       prefix = virtual tokens;        row = BOS, text    what KoboldAI and PEFT do
    no prompt   prefix = BOS (or nothing);      row = text

Where the tokenizer writes no BOS the first two are the same.

Shape key: K prompts, P virtual tokens or prefix positions, D model width, H key-value heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sordino.errors import ConfigError, DoesNotFit
from sordino.forward.encoder_decoder import AnyPrefixes, InputPrefixes
from sordino.forward.prefix import Prefixes, check_spans, encode_prefixes, join_prefixes
from sordino.forward.weighting import PromptSpan, span_of
from sordino.models.base_model import BaseModel
from sordino.models.description import DescribedModel
from sordino.prompts.attention import PromptAttention
from sordino.prompts.kv_prompt import KVShape
from sordino.prompts.prompt import KeysValues, Prompt
from sordino.prompts.soft_prompt import PlacementName


class Placement(Protocol):
    """Where a prompt goes in one kind of architecture. An implementer owes:

    - `prefix_embeds` [P', D] float32, on the model's device: what runs once ahead of every row, the P vectors of the prompt among
      it. Differentiable towards `matrix_PD`, and defined for P = 0.
    - `leading_ids`: what the text of every row begins with; context, never a target.
    - `prefix_length`: P' for P virtual tokens, without a tensor. It depends on nothing but the model and P.

    These vectors do not depend on the rows after them. A decoder's prefix is the beginning of its text, which makes sharing what it
    runs to exact; an encoder-decoder's is the beginning of its encoder's input, and runs with each row (`InputPrefixes`).
    tests/forward/placement_conformance.py checks an implementation.
    """

    def prefix_embeds(self, base: BaseModel, matrix_PD: Tensor, /) -> Tensor: ...

    def leading_ids(self, base: DescribedModel, /) -> tuple[int, ...]: ...

    def prefix_length(self, base: DescribedModel, n_tokens: int, /) -> int: ...


@dataclass(frozen=True)
class TextPlacement:
    """In the text that reads the prompt, a decoder's or an encoder's input: after BOS, or at the start with BOS after it."""

    after_bos: bool

    def prefix_embeds(self, base: BaseModel, matrix_PD: Tensor) -> Tensor:
        matrix_PD = matrix_PD.to(base.device)
        return torch.cat([_bos_embeds(base), matrix_PD]) if self.after_bos else matrix_PD

    def leading_ids(self, base: DescribedModel) -> tuple[int, ...]:
        return () if self.after_bos else base.bos_ids

    def prefix_length(self, base: DescribedModel, n_tokens: int) -> int:
        return n_tokens + (len(base.bos_ids) if self.after_bos else 0)


# By the names that prompt files use.
PLACEMENTS: Mapping[str, Placement] = {"start": TextPlacement(False), "after_bos": TextPlacement(True)}


def prefix_embeds(base: BaseModel, matrix_PD: Tensor | None, placement: PlacementName) -> Tensor:
    """What runs once ahead of every row: inputs_embeds [P, D] in float32, differentiable towards `matrix_PD`. None: no prompt."""
    return _bos_embeds(base) if matrix_PD is None else PLACEMENTS[placement].prefix_embeds(base, matrix_PD)


def prompt_embeds(base: BaseModel, prompt: Prompt | None) -> Tensor:
    """As `prefix_embeds`, for a finished prompt of vectors, or for none. Raises ConfigError for keys and values, DoesNotFit."""
    if prompt is None:
        return _bos_embeds(base)
    vectors = prompt.prefix(base.ref)
    if isinstance(vectors, KeysValues):
        raise ConfigError(f"a {prompt.kind} has no vectors to look at", where=prompt.metadata.name)
    return prefix_embeds(base, torch.from_numpy(vectors.copy()), prompt.metadata.placement)


def leading_ids(base: DescribedModel, placement: PlacementName | None) -> tuple[int, ...]:
    """The ids that a row's own text begins with: BOS where the prompt stands before it. None means no prompt."""
    return () if placement is None else PLACEMENTS[placement].leading_ids(base)


def prefix_length(base: DescribedModel, prompt: Prompt | None) -> int:
    """Positions in front of a row's own text: the prompt, and a BOS unless it belongs to the text."""
    return len(base.bos_ids) if prompt is None else positions(base, prompt.n_tokens, prompt.metadata.placement)


def positions(base: DescribedModel, n_tokens: int, placement: PlacementName) -> int:
    """As `prefix_length`, for a prompt of `n_tokens` virtual tokens."""
    return PLACEMENTS[placement].prefix_length(base, n_tokens)


def most_positions(base: DescribedModel, n_tokens: int) -> int:
    """Positions ahead of a text's first own token, wherever a prompt of `n_tokens` virtual tokens is placed; 0: no prompt."""
    return len(base.bos_ids) + n_tokens


def encode_prompts(base: BaseModel, prompts: Sequence[Prompt | None]) -> AnyPrefixes:
    """K prompts of any kind, or none, as K prefixes. Those of vectors run through a decoder side by side, once.

    Raises DoesNotFit, and ConfigError where the model's family takes no hold or strength.
    """
    if base.encoder_decoder is not None:
        check_spans(base.network, [span_in(base, prompt) for prompt in prompts])
        return InputPrefixes(tuple(prompt_embeds(base, prompt) for prompt in prompts))
    return encode_for_decoder(base, prompts)


def encode_for_decoder(base: BaseModel, prompts: Sequence[Prompt | None]) -> Prefixes:
    """As `encode_prompts`."""
    content = [None if prompt is None else prompt.prefix(base.ref) for prompt in prompts]
    given = {
        k: _given_prefix(base, prompt, values)
        for k, (prompt, values) in enumerate(zip(prompts, content, strict=True))
        if prompt is not None and isinstance(values, KeysValues)
    }
    order = [k for k in range(len(prompts)) if k not in given]
    parts = list(given.values())
    if order:
        chosen = [prompts[k] for k in order]
        embeds = [prompt_embeds(base, prompt) for prompt in chosen]
        parts.insert(0, encode_prefixes(base.network, embeds, [span_in(base, prompt) for prompt in chosen]))
    return join_in_order(parts, [*order, *given])


def join_in_order(parts: Sequence[Prefixes], places: Sequence[int]) -> Prefixes:
    """As `join_prefixes`, in another order. places: where each of all prefixes goes."""
    if len(parts) == 1:
        return parts[0]
    return join_prefixes(parts).select(sorted(range(len(places)), key=places.__getitem__))


def span_in(base: DescribedModel, prompt: Prompt | None) -> PromptSpan | None:
    """Where a prompt is in its prefix, if text gives it more or less attention than usual."""
    return None if prompt is None else span_of(prefix_length(base, prompt), prompt.metadata.attention)


def behind_bos(
    base: BaseModel,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    last_KD: Tensor,
    placement: PlacementName,
    attention: PromptAttention,
) -> Prefixes:
    """A prompt's keys and values of each layer [1, H, P, C] as a prefix, after BOS where `placement` says so. last_KD: [1, D].

    Differentiable. Raises ConfigError, see `check_spans`.
    """
    length = PLACEMENTS[placement].prefix_length(base, keys[0].shape[2])
    if length > keys[0].shape[2]:
        bos = encode_prefixes(base.network, [_bos_embeds(base)])
        keys, values = (
            [torch.cat([of_bos, own], dim=2) for of_bos, own in zip(side, sides, strict=True)]
            for side, sides in ((bos.keys_KHPC, keys), (bos.values_KHPC, values))
        )
    span = span_of(length, attention)
    check_spans(base.network, (span,))
    return Prefixes(tuple(keys), tuple(values), last_KD.to(base.device, base.dtype), (length,), (span,) if span else ())


def _bos_embeds(base: BaseModel) -> Tensor:
    ids = torch.tensor(base.bos_ids, dtype=torch.long, device=base.device)
    return base.embed(ids).detach().float()


def _given_prefix(base: BaseModel, prompt: Prompt, given: KeysValues) -> Prefixes:
    heads, _, channels = given.keys_LHPC[0].shape
    shape, wanted = KVShape(len(given.keys_LHPC), heads, channels), base.kv_shape or _measured_shape(base)
    if shape != wanted:
        raise DoesNotFit(
            f"the {prompt.kind} is for another base model", where=prompt.metadata.name, expected=wanted, got=shape
        )
    keys, values, (last_KD,) = (
        [torch.from_numpy(array.copy()).to(base.device, base.dtype)[None] for array in arrays]
        for arrays in (given.keys_LHPC, given.values_LHPC, (given.last_D,))
    )
    return behind_bos(base, keys, values, last_KD, prompt.metadata.placement, prompt.metadata.attention)


def _measured_shape(base: BaseModel) -> KVShape:
    """Of the keys and values of one token. Raises DoesNotFit where layers differ: no KV prompt is for such a model."""
    one = encode_prefixes(base.network, [base.embed(torch.zeros(1, dtype=torch.long, device=base.device)).float()])
    sizes = {(tensor.shape[1], tensor.shape[3]) for tensor in (*one.keys_KHPC, *one.values_KHPC)}
    if len(sizes) > 1:
        raise DoesNotFit("the keys and values of the base model differ in size", where=base.name, got=sorted(sizes))
    heads, channels = sizes.pop()
    return KVShape(len(one.keys_KHPC), heads, channels)
