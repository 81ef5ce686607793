"""The loss of windows after conditions, mixtures among them. A mixture is one condition, of several prefixes.

Under the rule "sequence" a window is one text: -log sum_k w_k p_k(window). Under the others the components predict every token
together.

Shape key: W windows, K components, N target tokens, n of them in a tile, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sordino.evaluation.conditions import AnyCondition, Condition, MixedCondition
from sordino.evaluation.confidence import Floats
from sordino.evaluation.scoring import Progress, nll_of_windows
from sordino.forward.combining import combine, nll_of_texts
from sordino.forward.gate_input import hidden_of_texts
from sordino.forward.nll import Head, head_of, states_before
from sordino.forward.packing import labelled_rows, one_by_one, pack, row_example
from sordino.forward.prefix import packable
from sordino.forward.token_losses import encode_contexts
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.prompts.mixture import Mixture, Rule
from sordino.texts.examples import Example

# Logits of all components that are held at once: 64 MB in float32.
_LOGITS = 1 << 24


def nll_of_conditions(
    base: BaseModel,
    conditions: Sequence[AnyCondition],
    windows: Sequence[Example],
    *,
    pass_tokens: int,
    progress: Progress = lambda done, total: None,
) -> Floats:
    """As `nll_of_windows`, with mixtures among the conditions."""
    # Plain conditions, and components whose losses of whole windows are enough, go through the model together.
    parts = [
        (condition,)
        if isinstance(condition, Condition)
        else condition.components
        if condition.mixture.rule == "sequence"
        else ()
        for condition in conditions
    ]
    plain = [condition for part in parts for condition in part]
    nll_WP = np.zeros((len(windows), 0))
    if plain:
        nll_WP = nll_of_windows(base, plain, windows, pass_tokens=pass_tokens, progress=progress)
    columns, first = [], 0
    for condition, part in zip(conditions, parts, strict=True):
        own_WK = nll_WP[:, first : first + len(part)]
        first += len(part)
        if isinstance(condition, Condition):
            columns.append(own_WK[:, 0])
            continue
        log_weights_WK = torch.from_numpy(
            mixture_weights(base, condition.mixture, _gate_texts(condition, windows))
        ).log()
        if part:
            columns.append(nll_of_texts(torch.from_numpy(own_WK), log_weights_WK).numpy())
        else:
            with memory_errors("measuring", "lower --pass-tokens"):
                columns.append(_nll_by_token(base, condition, windows, log_weights_WK, pass_tokens))
    return np.stack(columns, axis=1)


def mixture_weights(base: BaseModel, mixture: Mixture, texts: Sequence[tuple[int, ...]]) -> Floats:
    """The weights [N, K] for each text: the mixture's own, or its gate's."""
    if mixture.gate is None:
        return np.tile(mixture.weights_K, (len(texts), 1))
    with memory_errors("reading the gate's texts", "lower --row-tokens"):
        hidden_ND = hidden_of_texts(base, texts).double().numpy()
    return np.stack([mixture.weights_for(hidden_D) for hidden_D in hidden_ND])


def _gate_texts(condition: MixedCondition, windows: Sequence[Example]) -> list[tuple[int, ...]]:
    """What a gate reads: the tokens before a window's first target; of a text cut into windows, nothing."""
    texts = [(*condition.ids, *window.ids[: window.labelled.index(True)]) for window in windows]
    # A single token is only a window's first one, which is no target; no gate was trained on such texts.
    return [text if len(text) > 1 else () for text in texts]


@torch.inference_mode()
def _nll_by_token(
    base: BaseModel, condition: MixedCondition, windows: Sequence[Example], log_weights_WK: Tensor, pass_tokens: int
) -> Floats:
    parts = condition.components
    # Leading ids are part of the prefix here, so that all components' rows are the same windows.
    prefixes = encode_contexts(base, [part.behind(()) if part.leading else part for part in parts])
    # What ends an encoder-decoder's input belongs to its rows.
    windows = [row_example(base, window, ()) for window in windows]
    lengths = [len(window.ids) for window in windows]
    rows = pack(lengths, max(lengths)) if packable(base.network) else one_by_one(lengths)
    rows_a_pass = max(1, pass_tokens // (len(parts) * (prefixes.width + max(lengths))))
    head = head_of(base.network)
    nll_W = torch.zeros(len(windows), dtype=torch.float64)
    for at in range(0, len(rows), rows_a_pass):
        groups = rows[at : at + rows_a_pass]
        packed = labelled_rows(windows, groups * len(parts), [k for k in range(len(parts)) for _ in groups])
        labelled_BT, batch = packed.labelled_BT.to(base.device), packed.rows.to(base.device)
        states_ND = states_before(base.network, prefixes, batch, packed.labelled_BT)
        hidden_NKD = states_ND.unflatten(0, (len(parts), -1)).transpose(0, 1)
        count = len(hidden_NKD)
        window_N, targets_N = packed.example_N[:count], batch.ids_BT[labelled_BT][:count]
        weights_NK = log_weights_WK[window_N].to(torch.promote_types(base.dtype, torch.float32)).to(base.device)
        nll_N = _nll_of_targets(head, hidden_NKD, targets_N, weights_NK, condition.mixture.rule)
        nll_W.index_add_(0, window_N, nll_N.cpu().double())
    return nll_W.numpy()


def _nll_of_targets(head: Head, hidden_NKD: Tensor, targets_N: Tensor, log_weights_NK: Tensor, rule: Rule) -> Tensor:
    """NLL in nats [N] under the components' combined prediction, a tile of tokens at a time."""
    count, components = hidden_NKD.shape[:2]
    exact = torch.promote_types(hidden_NKD.dtype, torch.float32)
    nll_N = torch.empty(count, dtype=exact, device=hidden_NKD.device)
    size = max(1, _LOGITS // (components * head.width))
    for start in range(0, count, size):
        tile = slice(start, start + size)
        logits_nKV = head.logits(hidden_NKD[tile].flatten(0, 1)).to(exact).unflatten(0, (-1, components))
        logp_nV = combine(torch.log_softmax(logits_nKV, dim=-1), log_weights_NK[tile], rule)
        nll_N[tile] = -logp_nV.gather(1, targets_N[tile, None])[:, 0]
    return nll_N
