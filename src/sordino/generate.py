"""Continue texts, each behind its own soft prompt or none, in one batch.

A row's random stream depends on its seed alone, never on its batch-mates. Text is emitted when its characters are whole and
when it can no longer become a stop string.

Shape key: B rows, V vocabulary, S key positions (prefix, text, what was generated), D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from sordino.base_model import BaseModel
from sordino.detokenise import Detokeniser
from sordino.errors import ConfigError
from sordino.memory import memory_named
from sordino.nll import head_of
from sordino.placement import leading_ids, prompt_embeds
from sordino.prefix import Prefixes, decode_step, encode_prefixes, forward_rows_cached, packable
from sordino.rows import rows_from_examples
from sordino.sampling import Sampling, sample
from sordino.soft_prompt import SoftPrompt

FinishReason = Literal["length", "stop"]


@dataclass(frozen=True)
class Request:
    """A text to continue, the soft prompt to continue it with (or None), and the seed of its random stream."""

    text: str
    prompt: SoftPrompt | None = None
    seed: int = 0


@dataclass(frozen=True)
class Piece:
    """A stretch of new text for one request. `finish` is set on a request's last piece only."""

    request: int
    text: str
    finish: FinishReason | None = None


@dataclass
class _Row:
    """One running request and what it has said."""

    index: int
    random: torch.Generator
    context_ids: list[int]
    text: Detokeniser
    new_ids: list[int] = field(default_factory=list)


def generate(base: BaseModel, requests: Sequence[Request], sampling: Sampling) -> Iterator[Piece]:
    """Yield pieces of the continuations as they come, all requests in one batch.

    Raises ConfigError where a request has nothing to be continued from or does not fit the model's context, and DoesNotFit
    for a soft prompt of another width.
    """
    if not requests:
        return
    if len(requests) > 1 and not packable(base.network):
        # Rows of different lengths leave holes in the cache, which only our own masks know to skip.
        for index, request in enumerate(requests):
            for piece in generate(base, [request], sampling):
                yield Piece(index, piece.text, piece.finish)
        return
    with memory_named("writing", "shorten the text, lower --max-tokens, or have fewer texts at a time (--batch-size)"):
        yield from _generate_batch(base, requests, sampling)


def complete(base: BaseModel, requests: Sequence[Request], sampling: Sampling) -> list[str]:
    """The whole continuations, in the order of the requests."""
    texts = [""] * len(requests)
    for piece in generate(base, requests, sampling):
        texts[piece.request] += piece.text
    return texts


# As a decorator the mode is on while this generator runs and off while it waits: a `with` would leave it on for the consumer.
@torch.inference_mode()
def _generate_batch(base: BaseModel, requests: Sequence[Request], sampling: Sampling) -> Iterator[Piece]:
    rows = []
    for index, request in enumerate(requests):
        ids = check_request(base, request, sampling)
        rows.append(_Row(index, _stream(request), ids, Detokeniser(base.decode, ids, sampling.stop)))
    prefixes, slots = _prefixes_of(base, requests)
    text_rows = rows_from_examples([[row.context_ids] for row in rows], slots).to(base.device)
    hidden_BTD, cache = forward_rows_cached(base.network, prefixes, text_rows)
    lengths_B = torch.tensor([len(row.context_ids) for row in rows], device=base.device)
    keys = _Keys.after_prefill(prefixes, text_rows.prompt_B, lengths_B)
    state_BD = prefixes.last_KD[text_rows.prompt_B].clone()
    for b, row in enumerate(rows):
        if row.context_ids:
            state_BD[b] = hidden_BTD[b, len(row.context_ids) - 1]
    head = head_of(base.network)
    while True:
        logits_BV = head.logits(state_BD).float()
        ids = [
            sample(logits_V, row.context_ids + row.new_ids, sampling, row.random, n_new=len(row.new_ids)).token
            for logits_V, row in zip(logits_BV, rows, strict=True)
        ]
        alive: list[int] = []
        for b, (row, token) in enumerate(zip(rows, ids, strict=True)):
            piece = _advance(base, row, token, sampling)
            if piece.text or piece.finish:
                yield piece
            if piece.finish is None:
                alive.append(b)
        if not alive:
            return
        if len(alive) < len(rows):
            rows, ids = [rows[b] for b in alive], [ids[b] for b in alive]
            chosen = torch.tensor(alive, device=base.device)
            cache.batch_select_indices(chosen)
            keys = keys.select(chosen)
        state_BD, keys = _decode(base, cache, keys, ids)


def _prefixes_of(base: BaseModel, requests: Sequence[Request]) -> tuple[Prefixes, list[int]]:
    """Each different soft prompt is run once; a slot per request says which is its own."""
    slot_of: dict[tuple[str, str], int] = {}
    embeds: list[Tensor] = []
    slots: list[int] = []
    for request in requests:
        prompt = request.prompt
        if prompt is not None:
            base.check_fit(prompt, force=True)
        key = ("", "") if prompt is None else (prompt.content_hash, prompt.metadata.placement)
        if key not in slot_of:
            slot_of[key] = len(embeds)
            embeds.append(prompt_embeds(base, prompt))
        slots.append(slot_of[key])
    return encode_prefixes(base.network, embeds), slots


def _stream(request: Request) -> torch.Generator:
    return torch.Generator().manual_seed(request.seed)


def check_request(base: BaseModel, request: Request, sampling: Sampling) -> list[int]:
    """The ids of the request's own text, a BOS behind the prompt included.

    Raises ConfigError where there is nothing to continue, or text and new tokens do not fit the model's context.
    """
    prompt = request.prompt
    placement = prompt.metadata.placement if prompt else None
    context_ids = [*leading_ids(base, placement), *base.encode(request.text)]
    prefix_length = (prompt.n_tokens if prompt else 0) + (0 if placement == "start" else len(base.bos_ids))
    if not context_ids and prefix_length == 0:
        raise ConfigError(
            "there is nothing to continue",
            where="TEXT",
            got="an empty text, no soft prompt and a model without BOS",
            do="give a text",
        )
    if prefix_length + len(context_ids) + sampling.max_tokens > base.context_length:
        raise ConfigError(
            "the text does not fit the model's context",
            where=f"TEXT {request.text[:30]!r}",
            expected=f"at most {base.context_length} tokens",
            got=f"{prefix_length} soft + {len(context_ids)} text + {sampling.max_tokens} new",
            do="shorten the text or lower --max-tokens",
        )
    return context_ids


@dataclass(frozen=True)
class _Keys:
    """What stands in the cache: the position of every key, whether it is real, and the next position of every row."""

    positions_BS: Tensor
    real_BS: Tensor
    next_B: Tensor

    @staticmethod
    def after_prefill(prefixes: Prefixes, prompt_B: Tensor, lengths_B: Tensor) -> _Keys:
        device = prompt_B.device
        prefix_B = torch.tensor(prefixes.lengths, device=device)[prompt_B]
        pad_B = prefixes.width - prefix_B
        index_S = torch.arange(prefixes.width + int(lengths_B.max()), device=device)
        positions_BS = index_S[None, :] - pad_B[:, None]
        return _Keys(
            positions_BS, (positions_BS >= 0) & (positions_BS < (prefix_B + lengths_B)[:, None]), prefix_B + lengths_B
        )

    def select(self, rows: Tensor) -> _Keys:
        return _Keys(self.positions_BS[rows], self.real_BS[rows], self.next_B[rows])

    def grown(self) -> _Keys:
        """With one more key a row, at its next position."""
        return _Keys(
            torch.cat([self.positions_BS, self.next_B[:, None]], dim=1),
            torch.cat([self.real_BS, torch.ones_like(self.real_BS[:, :1])], dim=1),
            self.next_B + 1,
        )


def _decode(base: BaseModel, cache: DynamicCache, keys: _Keys, ids: list[int]) -> tuple[Tensor, _Keys]:
    """One token further for every row: the hidden states [B, D] behind `ids`."""
    ids_B = torch.tensor(ids, device=base.device)
    position_B, keys = keys.next_B, keys.grown()
    return decode_step(base.network, cache, ids_B, position_B, keys.positions_BS, keys.real_BS), keys


def _advance(base: BaseModel, row: _Row, token: int, sampling: Sampling) -> Piece:
    """Take the sampled token into the row and say what may be emitted now."""
    if token in base.stop_ids:
        return Piece(row.index, row.text.finish(), "stop")
    row.new_ids.append(token)
    text = row.text.push(token)
    if row.text.stopped:
        return Piece(row.index, text, "stop")
    if len(row.new_ids) >= sampling.max_tokens:
        return Piece(row.index, text + row.text.finish(), "length")
    return Piece(row.index, text)
