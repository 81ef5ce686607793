"""The path of blends from one soft prompt to another, its loss measured on several texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sordino.errors import ConfigError
from sordino.evaluation.analysis.losses import losses_behind, passage_of
from sordino.evaluation.conditions import no_prompt, soft_prompt
from sordino.evaluation.confidence import Floats
from sordino.evaluation.config import BlendConfig
from sordino.evaluation.scoring import Progress, shifted
from sordino.models.base_model import BaseModel
from sordino.prompts.blending import How, blend
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.texts.pieces import Piece


@dataclass(frozen=True)
class BlendPath:
    """shares: of the second prompt, ascending from 0 to 1. losses: nats per token of each text at every share. without: of each
    text without a prompt. tokens: targets of each text.
    """

    how: How
    shares: tuple[float, ...]
    losses: Mapping[str, tuple[float, ...]]
    without: Mapping[str, float]
    tokens: Mapping[str, int]


def path_between(
    base: BaseModel,
    first: SinglePrompt,
    second: SinglePrompt,
    texts: Mapping[str, Sequence[Piece]],
    config: BlendConfig,
    *,
    also: float | None = None,
    progress: Progress = lambda done, total: None,
) -> BlendPath:
    """Measure `config.points` blends evenly from the first prompt to the second, and the blend `also` if it is none of them.

    Raises DataError, BadInput, DoesNotFit (as `blending.blend`), ConfigError, OutOfMemory.
    """
    how = config.how
    if how == "concatenate":
        raise ConfigError(
            "there is no path between the parts of a concatenation", where="--how", expected="linear or spherical"
        )
    shares = shares_along(config.points, also)
    blends = [blend([first, second], [1 - share, share], how).prompt for share in shares]
    passages = {
        label: passage_of(base, pieces, row_tokens=config.row_tokens, limit=config.limit)
        for label, pieces in texts.items()
    }
    conditions = [*(soft_prompt(base, str(k), prompt) for k, prompt in enumerate(blends)), no_prompt(base)]
    found: dict[str, Floats] = {}
    total = len(conditions) * sum(len(passage.windows) for passage in passages.values())
    done = 0
    for label, passage in passages.items():
        reported = shifted(progress, done, total)
        found[label] = losses_behind(base, conditions, passage, pass_tokens=config.pass_tokens, progress=reported)
        done += len(conditions) * len(passage.windows)
    return BlendPath(
        how,
        shares,
        {label: tuple(losses[:-1].tolist()) for label, losses in found.items()},
        {label: float(losses[-1]) for label, losses in found.items()},
        {label: passage.tokens for label, passage in passages.items()},
    )


def shares_along(points: int, also: float | None) -> tuple[float, ...]:
    """Shares of the second prompt: `points` of them evenly from 0 to 1, and `also`."""
    even = [float(share) for share in np.linspace(0, 1, points)]
    if also is not None and min(abs(share - also) for share in even) > 1e-9:
        even.append(also)
    return tuple(sorted(even))


def to_json(path: BlendPath) -> dict[str, Any]:
    """As plain JSON."""
    return {
        "how": path.how,
        "shares_of_second": list(path.shares),
        "texts": [
            {"text": label, "tokens": path.tokens[label], "nll": list(losses), "without": path.without[label]}
            for label, losses in path.losses.items()
        ],
    }
