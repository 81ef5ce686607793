"""Continue texts, each behind its own soft prompt, a mixture of several, or none, in one batch.

A mixture's components are rows that share every step: one token is drawn from what they say together, and all take it.
A row's random stream depends on its seed alone, never on its batch-mates. Text is emitted when its characters are whole and
when it can no longer become a stop string.

Shape key: B rows, K components of a request, V vocabulary, S key positions (prefix, text, what was generated), D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from sordino.base_model import BaseModel
from sordino.combining import responsible, spoken
from sordino.detokenise import Detokeniser
from sordino.errors import ConfigError
from sordino.gate_text import hidden_of_texts
from sordino.memory import memory_named
from sordino.nll import head_of
from sordino.placement import leading_ids, prompt_embeds
from sordino.prefix import Prefixes, decode_step, encode_prefixes, forward_rows_cached, packable
from sordino.prompt_mixture import Mixture, Prompt, Rule, components_of, uniform
from sordino.rows import rows_from_examples
from sordino.sampling import Sampling, sample
from sordino.seen_tokens import SeenTokens
from sordino.soft_prompt import SoftPrompt

FinishReason = Literal["length", "stop"]


@dataclass(frozen=True)
class Request:
    """A text to continue, the soft prompt or mixture to continue it with (or None), and the seed of its random stream."""

    text: str
    prompt: Prompt | None = None
    seed: int = 0


@dataclass(frozen=True)
class Piece:
    """A stretch of new text for one request. `finish` is set on a request's last piece only."""

    request: int
    text: str
    finish: FinishReason | None = None


@dataclass
class _Running:
    """One running request and what it has said. log_weights_K: its components', as they are now."""

    index: int
    random: torch.Generator
    seen: SeenTokens
    text: Detokeniser
    rule: Rule
    log_weights_K: Tensor

    @property
    def rows(self) -> int:
        return len(self.log_weights_K)


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
    contexts = [_contexts(base, request, sampling) for request in requests]
    weights = _log_weights(base, requests)
    running = [
        _Running(
            index,
            _stream(request),
            SeenTokens(ids_K[0], sampling.repetition_range),
            Detokeniser(base.decode, ids_K[0], sampling.stop),
            request.prompt.rule if isinstance(request.prompt, Mixture) else "probabilities",
            log_weights_K,
        )
        for index, (request, ids_K, log_weights_K) in enumerate(zip(requests, contexts, weights, strict=True))
    ]
    ids_B = [ids for ids_K in contexts for ids in ids_K]
    prefixes, slots = _prefixes_of(base, [prompt for request in requests for prompt in components_of(request.prompt)])
    text_rows = rows_from_examples([[ids] for ids in ids_B], slots).to(base.device)
    hidden_BTD, cache = forward_rows_cached(base.network, prefixes, text_rows)
    lengths_B = torch.tensor([len(ids) for ids in ids_B], device=base.device)
    keys = _Keys.after_prefill(prefixes, text_rows.prompt_B, lengths_B)
    state_BD = prefixes.last_KD[text_rows.prompt_B].clone()
    for b, ids in enumerate(ids_B):
        if ids:
            state_BD[b] = hidden_BTD[b, len(ids) - 1]
    head = head_of(base.network)
    while True:
        logits_BV = head.logits(state_BD).float()
        alive: list[_Running] = []
        chosen_B: list[int] = []
        tokens_B: list[int] = []
        first = 0
        pieces = []
        for one in running:
            token = _drawn(one, logits_BV[first : first + one.rows], sampling)
            piece = _advance(base, one, token, sampling)
            pieces.append(piece)
            if piece.finish is None:
                alive.append(one)
                chosen_B += range(first, first + one.rows)
                tokens_B += [token] * one.rows
            first += one.rows
        yield from (piece for piece in pieces if piece.text or piece.finish)
        if not alive:
            return
        if len(alive) < len(running):
            running = alive
            chosen = torch.tensor(chosen_B, device=base.device)
            cache.batch_select_indices(chosen)
            keys = keys.select(chosen)
        state_BD, keys = _decode(base, cache, keys, tokens_B)


def _drawn(one: _Running, logits_KV: Tensor, sampling: Sampling) -> int:
    """The next token of a request, from what its components say together; its weights are then those behind that token."""
    logits_V, logp_KV = spoken(logits_KV, one.log_weights_K, one.rule)
    token = sample(logits_V, one.seen, sampling, one.random).token
    if one.rule == "sequence":
        one.log_weights_K = responsible(one.log_weights_K, logp_KV[:, token])
    return token


def _log_weights(base: BaseModel, requests: Sequence[Request]) -> list[Tensor]:
    """What each request begins with: the logarithms [K] of its mixture's weights, or of its gate's for its text."""
    gated = [i for i, r in enumerate(requests) if isinstance(r.prompt, Mixture) and r.prompt.gate]
    hidden_ND = hidden_of_texts(base, [base.encode(requests[i].text) for i in gated]).double().numpy()
    found: list[Tensor] = []
    for index, request in enumerate(requests):
        weights_K = request.prompt.weights_K if isinstance(request.prompt, Mixture) else uniform(1)
        if isinstance(request.prompt, Mixture) and index in gated:
            weights_K = request.prompt.weights_for(hidden_ND[gated.index(index)])
        found.append(torch.from_numpy(weights_K.copy()).log().float().to(base.device))
    return found


def _prefixes_of(base: BaseModel, prompts: Sequence[SoftPrompt | None]) -> tuple[Prefixes, list[int]]:
    """Each different soft prompt is run once; a slot per row says which is its own."""
    slot_of: dict[tuple[str, str], int] = {}
    embeds: list[Tensor] = []
    slots: list[int] = []
    for prompt in prompts:
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
    """The ids of the request's own text, a BOS behind the prompt (of a mixture: its first) included.

    Raises ConfigError where there is nothing to continue, or text and new tokens do not fit the model's context.
    """
    return _contexts(base, request, sampling)[0]


def _contexts(base: BaseModel, request: Request, sampling: Sampling) -> list[list[int]]:
    """As `check_request`, for each component."""
    text_ids = base.encode(request.text)
    prompts = components_of(request.prompt)
    if len({_front(base, prompt) for prompt in prompts}) > 1 and not packable(base.network):
        raise ConfigError(
            "on this architecture a mixture's components must be of one length and placement",
            where=request.prompt.metadata.name if request.prompt else "",
            got=", ".join(f"{prompt.n_tokens} tokens" for prompt in prompts if prompt),
            do="choose a model of a family in docs/models.md",
        )
    return [_context(base, request.text, text_ids, prompt, sampling) for prompt in prompts]


def _front(base: BaseModel, prompt: SoftPrompt | None) -> tuple[int, int]:
    """Positions in front of a request's row, and ids that the row itself begins with."""
    placement = prompt.metadata.placement if prompt else None
    bos = 0 if placement == "start" else len(base.bos_ids)
    return (prompt.n_tokens if prompt else 0) + bos, len(leading_ids(base, placement))


def _context(
    base: BaseModel, text: str, text_ids: list[int], prompt: SoftPrompt | None, sampling: Sampling
) -> list[int]:
    context_ids = [*leading_ids(base, prompt.metadata.placement if prompt else None), *text_ids]
    prefix_length = _front(base, prompt)[0]
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
            where=f"TEXT {text[:30]!r}",
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


def _advance(base: BaseModel, row: _Running, token: int, sampling: Sampling) -> Piece:
    """Take the sampled token into the row and say what may be emitted now."""
    if token in base.stop_ids:
        return Piece(row.index, row.text.finish(), "stop")
    row.seen.push(token)
    text = row.text.push(token)
    if row.text.stopped:
        return Piece(row.index, text, "stop")
    if row.seen.new.total() >= sampling.max_tokens:
        return Piece(row.index, text + row.text.finish(), "length")
    return Piece(row.index, text)
