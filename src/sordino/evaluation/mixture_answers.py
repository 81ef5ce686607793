"""A closed set's labels behind a mixture: the components' predictions, combined by the mixture's rule and weights.

    sequence         p(label) = sum_k w_k p_k(label), the whole label
    probabilities    every token of the label by sum_k w_k p_k(token)
    logits, vote     over the labels instead of the vocabulary

Shape key: N rows, K components, E tokens of the label tree, L labels.
"""

from __future__ import annotations

import numpy as np
import torch

from sordino.evaluation.classification import closed
from sordino.evaluation.confidence import Floats
from sordino.evaluation.label_scores import LabelTree
from sordino.forward.combining import combine
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
    members = torch.from_numpy(logp_NKL if among_all else closed(logp_NKL))
    return combine(members, log_weights_NK, mixture.rule).numpy(), among_all
