"""The referee of `generate`: one padded prefill on transformers' cache, then a token for every row until all have ended.

Shape key: B rows, K components of a request, S key positions (prefix, text, new tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.engine.detokenizer import Detokenizer
from sordino.engine.generate import TextRequest
from sordino.engine.sampling import Sampling, sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.forward.combining import responsible, sampling_logits
from sordino.forward.gate_input import hidden_of_text
from sordino.forward.masks import layer_masks
from sordino.forward.nll import head_of
from sordino.forward.placement import leading_ids, prompt_embeds
from sordino.forward.prefix import encode_prefixes, forward_rows_cached
from sordino.forward.rows import rows_from_examples
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import Mixture, components_of, uniform


@dataclass
class _Row:
    """One request. log_weights_K: its components', as they are now."""

    request: TextRequest
    rows: slice
    random: torch.Generator
    seen: SeenTokens
    text: Detokenizer
    log_weights_K: Tensor
    written: str = ""
    over: bool = False


@torch.inference_mode()
def plain_complete(base: BaseModel, requests: Sequence[TextRequest], sampling: Sampling) -> list[str]:
    """What `complete` must give."""
    prompts = [prompt for request in requests for prompt in components_of(request.prompt)]
    texts = [request.text for request in requests for _ in components_of(request.prompt)]
    ids_B = [
        [*leading_ids(base, prompt.metadata.placement if prompt else None), *base.encode(text)]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    running: list[_Row] = []
    at = 0
    for request in requests:
        rows = slice(at, at + len(components_of(request.prompt)))
        text = Detokenizer(base.decode, ids_B[at], sampling.stop)
        seen = SeenTokens(ids_B[at], sampling.repetition_range)
        random = torch.Generator().manual_seed(request.seed)
        running.append(_Row(request, rows, random, seen, text, _log_weights(base, request)))
        at = rows.stop
    prefixes = encode_prefixes(base.network, [prompt_embeds(base, prompt) for prompt in prompts])
    text_rows = rows_from_examples([[ids] for ids in ids_B], range(len(ids_B)))
    hidden_BTD, cache = forward_rows_cached(base.network, prefixes, text_rows)
    state_BD = prefixes.last_KD.clone()
    for b, ids in enumerate(ids_B):
        if ids:
            state_BD[b] = hidden_BTD[b, len(ids) - 1]
    prefix_B, length_B = torch.tensor(prefixes.lengths), torch.tensor([len(ids) for ids in ids_B])
    index_S = torch.arange(prefixes.width + int(length_B.max()))
    positions_BS = index_S[None, :] - (prefixes.width - prefix_B)[:, None]
    next_B = prefix_B + length_B
    real_BS = (positions_BS >= 0) & (positions_BS < next_B[:, None])
    head = head_of(base.network)
    while True:
        logits_BV = head.logits(state_BD).float()
        tokens_B = torch.zeros(len(ids_B), dtype=torch.long)
        for row in running:
            if not row.over:
                tokens_B[row.rows] = _advance(base, row, logits_BV[row.rows], sampling)
        if all(row.over for row in running):
            return [row.written for row in running]
        positions_BS = torch.cat([positions_BS, next_B[:, None]], dim=1)
        real_BS = torch.cat([real_BS, torch.ones_like(real_BS[:, :1])], dim=1)
        distance_BS = next_B[:, None] - positions_BS
        embeds_B1D = base.network.get_input_embeddings()(tokens_B[:, None])
        state_BD = base.network.base_model(
            inputs_embeds=embeds_B1D,
            position_ids=next_B[:, None],
            attention_mask=layer_masks(base.network, real_BS[:, None, :], distance_BS[:, None, :]),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, 0]
        next_B = next_B + 1


def _log_weights(base: BaseModel, request: TextRequest) -> Tensor:
    weights_K = uniform(1)
    if isinstance(request.prompt, Mixture):
        weights_K = request.prompt.weights_for(hidden_of_text(base, base.encode(request.text)).double().numpy())
    return torch.from_numpy(weights_K.copy()).log()


def _advance(base: BaseModel, row: _Row, logits_KV: Tensor, sampling: Sampling) -> int:
    """Draw a request's next token, from what its components say together, and take it in."""
    rule = row.request.prompt.rule if isinstance(row.request.prompt, Mixture) else "probabilities"
    logits_V, logp_KV = sampling_logits(logits_KV, row.log_weights_K, rule)
    token = sample(logits_V, row.seen, sampling, row.random).token
    if rule == "sequence":
        row.log_weights_K = responsible(row.log_weights_K, logp_KV[:, token])
    if token in base.stop_ids:
        row.written, row.over = row.written + row.text.finish(), True
        return token
    row.seen.push(token)
    row.written += row.text.push(token)
    if row.text.stopped:
        row.over = True
    elif row.seen.new.total() >= sampling.max_tokens:
        row.written, row.over = row.written + row.text.finish(), True
    return token
