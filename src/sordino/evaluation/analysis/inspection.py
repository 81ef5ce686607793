"""The inspection of one soft prompt.

surface: what needs only a model's vocabulary      depth: what needs the network and a text

Shape key: L layers, P virtual tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.evaluation.analysis.attention import Attention, attention
from sordino.evaluation.analysis.losses import Importance, importance, passage_of
from sordino.evaluation.config import InspectConfig
from sordino.evaluation.off_domain import own_text
from sordino.evaluation.scoring import Progress
from sordino.models.base_model import BaseModel
from sordino.prompts.nearest import Vocabulary, nearest_words, percentiles, word_norms
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.texts.example_store import evenly
from sordino.texts.pieces import Piece

# Attention comes out the same on a few windows as on many.
ATTENTION_WINDOWS = 16
# Fewer targets cannot tell virtual tokens apart; more add little.
TARGETS = (64, 512)
# Without a limit, the positions that importance may run: all shortened prompts and the text after them.
BUDGET = 24_000
# A virtual token that costs less than this is not needed, as far as so little text can show.
NEGLIGIBLE = 0.001

# (word, cosine or distance) pairs of each virtual token, nearest first.
NearestWords = list[list[tuple[str, float]]]


@dataclass(frozen=True)
class Surface:
    """by_cosine, by_distance: nearest words. norms_P: of the vectors. percentiles_P: of those norms among the vocabulary's.
    vocabulary: the 5th, 50th and 95th percentile of the vocabulary's norms.
    """

    by_cosine: NearestWords
    by_distance: NearestWords
    norms_P: NDArray[np.float64]
    percentiles_P: NDArray[np.float64]
    vocabulary: tuple[float, float, float]


@dataclass(frozen=True)
class Depth:
    """text: the description of the text that was measured."""

    text: str
    importance: Importance
    attention: Attention


@dataclass(frozen=True)
class Inspection:
    """label: the user's name for the soft prompt. depth: None where nothing was measured."""

    label: str
    prompt: SoftPrompt
    surface: Surface
    depth: Depth | None


def inspected(
    base: BaseModel,
    label: str,
    prompt: SoftPrompt,
    text: tuple[str, Sequence[Piece]] | None,
    config: InspectConfig,
    *,
    progress: Progress = lambda done, total: None,
) -> Inspection:
    """Inspect one soft prompt. text: a description and its pieces; None for a packaged text.

    Without a limit, a prompt that would take more than about a minute to measure has no depth. Raises as `depth_of`.
    """
    limit = affordable(prompt.n_tokens, BUDGET) if config.limit is None else config.limit
    depth = None
    if not config.quick and (limit or config.limit is not None):
        depth = depth_of(base, prompt, text or own_text(prompt), replace(config, limit=limit), progress=progress)
    return Inspection(label, prompt, surface_of(base, prompt, words=config.words), depth)


def surface_of(vocabulary: Vocabulary, prompt: SoftPrompt, *, words: int = 5) -> Surface:
    """Nearest words and norms."""
    norms_V = word_norms(vocabulary)
    norms_P: NDArray[np.float64] = np.linalg.norm(prompt.matrix.astype(np.float64), axis=1)
    low, middle, high = np.percentile(norms_V, [5, 50, 95]).tolist()
    return Surface(
        nearest_words(vocabulary, prompt, count=words),
        nearest_words(vocabulary, prompt, count=words, by="distance"),
        norms_P,
        percentiles(norms_P, norms_V),
        (low, middle, high),
    )


def depth_of(
    base: BaseModel,
    prompt: SoftPrompt,
    text: tuple[str, Sequence[Piece]],
    config: InspectConfig,
    *,
    progress: Progress = lambda done, total: None,
) -> Depth:
    """Importance and attention on a text; limit None measures all of it.

    Raises DataError, ConfigError, ModelError, OutOfMemory.
    """
    description, pieces = text
    passage = passage_of(base, pieces, row_tokens=config.row_tokens, limit=config.limit or 0)
    return Depth(
        description,
        importance(base, prompt, passage, pass_tokens=config.pass_tokens, progress=progress),
        attention(base, prompt, evenly(passage.windows, min(ATTENTION_WINDOWS, len(passage.windows)))),
    )


def affordable(tokens: int, budget: int) -> int:
    """How many targets `importance` can measure within `budget` positions, its shortened prompts counted; 0 for too few."""
    least, most = TARGETS
    targets = budget // (tokens + 2) - tokens
    return min(targets, most) if targets >= least else 0


def findings(depth: Depth) -> list[str]:
    """The results in sentences."""
    found, shares = depth.importance, depth.attention
    order = sorted(range(len(found.costs)), key=lambda at: -found.costs[at])
    most = ", ".join(f"{at + 1} ({found.costs[at]:+.3f})" for at in order[:3] if found.costs[at] > 0)
    idle = sum(cost < NEGLIGIBLE for cost in found.costs)
    shares_L = shares.by_layer_L
    lines = [
        f"On {depth.text}, {found.tokens:,} tokens: {found.loss:.3f} nats per token with the prompt, {found.without:.3f} without.",
        f"Virtual tokens that cost most when left out: {most or 'none of them costs anything'}.",
    ]
    if idle:
        lines.append(
            f"Left out one by one, {idle} of {len(found.costs)} cost less than {NEGLIGIBLE} nats per token, or help."
        )
    lines.append(
        f"Text positions give the prompt {shares_L.mean():.0%} of their attention: from {shares_L.min():.0%} in layer "
        f"{int(shares_L.argmin()) + 1} to {shares_L.max():.0%} in layer {int(shares_L.argmax()) + 1} of {len(shares_L)}; "
        f"virtual token {int(shares.by_token_P.argmax()) + 1} gets the most, {shares.by_token_P.max():.0%}."
    )
    return lines


def to_json(inside: Inspection) -> dict[str, Any]:
    """As plain JSON."""
    return {"label": inside.label, "content_hash": inside.prompt.content_hash, **surface_json(inside.surface)} | (
        depth_json(inside.depth) if inside.depth else {}
    )


def surface_json(surface: Surface) -> dict[str, Any]:
    low, middle, high = surface.vocabulary
    return {
        "tokens": [
            {
                "nearest_by_cosine": [{"word": word, "cosine": value} for word, value in near],
                "nearest_by_distance": [{"word": word, "distance": value} for word, value in close],
                "norm": norm,
                "norm_percentile": place,
            }
            for near, close, norm, place in zip(
                surface.by_cosine,
                surface.by_distance,
                surface.norms_P.tolist(),
                surface.percentiles_P.tolist(),
                strict=True,
            )
        ],
        "vocabulary_norms": {"p5": low, "p50": middle, "p95": high},
    }


def depth_json(depth: Depth) -> dict[str, Any]:
    found, shares = depth.importance, depth.attention
    return {
        "text": depth.text,
        "importance": {
            "measured_tokens": found.tokens,
            "loss": found.loss,
            "without_prompt": found.without,
            "left_out": list(found.costs),
        },
        "attention": {
            "positions": shares.positions,
            "by_layer": shares.by_layer_L.tolist(),
            "bos_by_layer": shares.bos_L.tolist(),
            "by_layer_and_token": shares.shares_LP.tolist(),
        },
        # A key of `inspect --json` since 0.1.0.
        "findings": findings(depth),
    }
