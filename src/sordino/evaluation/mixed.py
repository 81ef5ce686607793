"""The loss of windows behind a mixture: one condition, of several prefixes.

Under the rule "sequence" a window is one text: -log sum_k w_k p_k(window). Under the others every token is predicted by what the
components say together.

Shape key: W windows, K components, N target tokens, n of them in a tile, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sordino.evaluation.conditions import Condition, Kind, soft_prompt
from sordino.evaluation.confidence import Floats
from sordino.evaluation.scoring import Progress, nll_of_windows
from sordino.forward.combining import combine, nll_of_texts
from sordino.forward.gate_input import hidden_of_texts
from sordino.forward.nll import Head, head_of
from sordino.forward.packing import LabelledRows, labelled_rows, one_by_one, pack, with_leading_ids
from sordino.forward.prefix import Prefixes, encode_prefixes, forward_rows, packable
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_named
from sordino.prompts.mixture import Mixture, Rule
from sordino.texts.examples import Example

# Logits of all components that are held at once: 64 MB in float32.
_LOGITS = 1 << 24


@dataclass(frozen=True)
class MixedCondition:
    """A mixture in front of a text. tokens: of the longest component."""

    label: str
    mixture: Mixture
    components: tuple[Condition, ...]
    kind: Kind = "soft prompt"

    @property
    def tokens(self) -> int:
        return self.mixture.n_tokens

    @property
    def length(self) -> int:
        """Positions in front of a text's first token, behind the longest component."""
        return max(condition.length for condition in self.components)


def mixture(base: BaseModel, label: str, mixed: Mixture) -> MixedCondition:
    return MixedCondition(label, mixed, tuple(soft_prompt(base, label, prompt) for prompt in mixed.components))


def nll_of_conditions(
    base: BaseModel,
    conditions: Sequence[Condition | MixedCondition],
    windows: Sequence[Example],
    *,
    pass_tokens: int,
    progress: Progress = lambda done, total: None,
) -> Floats:
    """As `nll_of_windows`, mixtures among the conditions."""
    # Plain conditions, and mixtures whose components are only needed window by window, go through the model together.
    parts = [
        (condition,) if isinstance(condition, Condition) else condition.components if _by_window(condition) else ()
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
        log_weights_WK = _log_weights(base, condition.mixture, windows)
        if part:
            columns.append(nll_of_texts(torch.from_numpy(own_WK), log_weights_WK).numpy())
        else:
            with memory_named("measuring", "lower --pass-tokens"):
                columns.append(_nll_by_token(base, condition, windows, log_weights_WK, pass_tokens))
    return np.stack(columns, axis=1)


def _by_window(condition: MixedCondition) -> bool:
    return condition.mixture.rule == "sequence"


def _log_weights(base: BaseModel, mixed: Mixture, windows: Sequence[Example]) -> Tensor:
    """[W, K], float64. A gate reads what a window has before its first target, and of a text cut into windows nothing."""
    weights_WK = np.tile(mixed.weights_K, (len(windows), 1))
    if mixed.gate is not None:
        starts = [window.labelled.index(True) for window in windows]
        # One token alone is a window's first, left unpredicted; it is no text that the gate was made for.
        read = [window.ids[:at] if at > 1 else () for window, at in zip(windows, starts, strict=True)]
        with memory_named("reading what the gate reads", "lower --row-tokens"):
            hidden_WD = hidden_of_texts(base, read).double().numpy()
        weights_WK = np.stack([mixed.weights_for(hidden_D) for hidden_D in hidden_WD])
    return torch.from_numpy(weights_WK).log()


@torch.inference_mode()
def _nll_by_token(
    base: BaseModel, condition: MixedCondition, windows: Sequence[Example], log_weights_WK: Tensor, pass_tokens: int
) -> Floats:
    prefixes = [encode_prefixes(base.network, [part.embeds_PD]) for part in condition.components]
    led = [[with_leading_ids(window, part.leading) for window in windows] for part in condition.components]
    # The same windows in the same rows behind every component, so that targets come in the same order.
    lengths = [max(len(own[w].ids) for own in led) for w in range(len(windows))]
    rows = pack(lengths, max(lengths)) if packable(base.network) else one_by_one(lengths)
    rows_a_pass = max(1, pass_tokens // (max(one.width for one in prefixes) + max(lengths)))
    head = head_of(base.network)
    nll_W = torch.zeros(len(windows), dtype=torch.float64)
    for at in range(0, len(rows), rows_a_pass):
        part = rows[at : at + rows_a_pass]
        packed = [labelled_rows(own, part, [0] * len(part)) for own in led]
        hidden_NKD = torch.stack(
            [_predictors(base, one, own) for one, own in zip(prefixes, packed, strict=True)], dim=1
        )
        targets_N = packed[0].rows.ids_BT[packed[0].labelled_BT].to(base.device)
        window_N = packed[0].example_N
        weights_NK = log_weights_WK[window_N].to(torch.promote_types(base.dtype, torch.float32)).to(base.device)
        nll_N = _nll_of_targets(head, hidden_NKD, targets_N, weights_NK, condition.mixture.rule)
        nll_W.index_add_(0, window_N, nll_N.cpu().double())
    return nll_W.numpy()


def _predictors(base: BaseModel, prefixes: Prefixes, packed: LabelledRows) -> Tensor:
    """The hidden states [N, D] that the labelled tokens are predicted from."""
    rows = packed.rows.to(base.device)
    hidden_BTD = forward_rows(base.network, prefixes, rows)
    states = torch.cat([hidden_BTD.flatten(0, 1), prefixes.last_KD])
    return states.index_select(0, rows.predictors()[packed.labelled_BT.to(base.device)])


def _nll_of_targets(head: Head, hidden_NKD: Tensor, targets_N: Tensor, log_weights_NK: Tensor, rule: Rule) -> Tensor:
    """NLL in nats [N] under what the components say together, a tile of tokens at a time."""
    count, components = hidden_NKD.shape[:2]
    exact = torch.promote_types(hidden_NKD.dtype, torch.float32)
    nll_N = torch.empty(count, dtype=exact, device=hidden_NKD.device)
    size = max(1, _LOGITS // (components * head.width))
    for start in range(0, count, size):
        tile = slice(start, start + size)
        hidden_nKD = hidden_NKD[tile]
        logits_nKV = head.logits(hidden_nKD.flatten(0, 1)).to(exact).unflatten(0, hidden_nKD.shape[:2])
        said_nV = combine(torch.log_softmax(logits_nKV, dim=-1), log_weights_NK[tile], rule)
        nll_N[tile] = -said_nV.gather(1, targets_N[tile, None])[:, 0]
    return nll_N
