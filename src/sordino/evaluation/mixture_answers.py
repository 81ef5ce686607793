"""What a mixture's components say of a closed set, combined by the mixture's own rule and weights.

    sequence         p(label) = sum_k w_k p_k(label), the label whole
    probabilities    every token of the label by sum_k w_k p_k(token)
    logits, vote     over the labels, not over the vocabulary: what is asked for is one of them

Shape key: N rows, K components, E tokens of the label tree, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sordino.evaluation.classification import closed
from sordino.evaluation.confidence import Floats
from sordino.evaluation.label_scores import LabelTree
from sordino.forward.combining import combine
from sordino.forward.gate_input import hidden_of_texts
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_named
from sordino.prompts.mixture import Mixture


def mixture_logps(mixture: Mixture, logp_NKE: Floats, weights_NK: Floats, tree: LabelTree) -> tuple[Floats, bool]:
    """Log-probabilities [N, L], and whether they are among all texts; else they are over the closed set."""
    with np.errstate(divide="ignore"):
        log_weights_NK = torch.from_numpy(np.log(weights_NK))
    if mixture.rule == "probabilities":
        token_NE = combine(torch.from_numpy(logp_NKE), log_weights_NK, "probabilities").numpy()
        return tree.sums(token_NE), True
    logp_NKL = np.stack([tree.sums(logp_NKE[:, k]) for k in range(logp_NKE.shape[1])], axis=1)
    among_all = mixture.rule == "sequence"
    said = logp_NKL if among_all else closed(logp_NKL)
    return combine(torch.from_numpy(said), log_weights_NK, mixture.rule).numpy(), among_all


def mixture_weights(base: BaseModel, mixture: Mixture, texts: Sequence[tuple[int, ...]]) -> Floats:
    """The weights [N, K] of each text: the same for all, or what the gate makes of it."""
    if mixture.gate is None:
        return np.tile(mixture.weights_K, (len(texts), 1))
    with memory_named("reading what the gate reads", "lower --row-tokens"):
        hidden_ND = hidden_of_texts(base, texts).numpy()
    return np.stack([mixture.weights_for(hidden_D) for hidden_D in hidden_ND])
