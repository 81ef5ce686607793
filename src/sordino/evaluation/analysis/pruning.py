"""Greedy pruning of a soft prompt: again and again, drop the virtual token without which the loss is lowest.

With blocks, several tokens are dropped at once, those that cost least one by one; the rest is measured before the next block. Every
loss is that of a real, shortened prompt, whose later tokens move up.

The choice overfits its own text, so `heldout` is the honest loss. Where it also chooses the length (`within`), it flatters a
little: it is the best of a few lengths.

Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sordino.errors import ConfigError
from sordino.evaluation.analysis.losses import Passage, losses_of
from sordino.evaluation.config import PruneConfig
from sordino.evaluation.scoring import Progress
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import SoftPrompt

# Nats per token, where none is given.
TOLERANCE = 0.01
# By default, a prompt shrinks to one token in about this many rounds.
_ROUNDS = 24


@dataclass(frozen=True)
class Stage:
    """A shortened prompt. kept: positions in the whole one, ascending. loss: nats per token on the text that the choice used.
    heldout: on another text, if there is one.
    """

    kept: tuple[int, ...]
    loss: float
    heldout: float | None = None

    @property
    def judged(self) -> float:
        """The loss to judge by."""
        return self.loss if self.heldout is None else self.heldout


Measure = Callable[[Sequence[tuple[int, ...]]], Sequence[float]]


def greedy(count: int, measure: Measure, *, down_to: int, block: int) -> list[Stage]:
    """The stages from `count` tokens to `down_to`. measure: losses of several sets of kept positions, in one batch."""
    kept = tuple(range(count))
    (whole,) = measure([kept])
    stages = [Stage(kept, whole)]
    while len(kept) > down_to:
        candidates = [kept[:at] + kept[at + 1 :] for at in range(len(kept))]
        losses = measure(candidates)
        order = sorted(range(len(kept)), key=lambda at: (losses[at], at))
        dropped = set(order[: min(block, len(kept) - down_to)])
        kept = tuple(position for at, position in enumerate(kept) if at not in dropped)
        loss = losses[order[0]] if len(dropped) == 1 else measure([kept])[0]
        stages.append(Stage(kept, loss))
    return stages


def rounds_of(count: int, *, down_to: int, block: int) -> int:
    """How many prompts `greedy` measures."""
    total, left = 1, count
    while left > down_to:
        gone = min(block, left - down_to)
        total += left + (1 if gone > 1 else 0)
        left -= gone
    return total


def default_block(count: int) -> int:
    """Tokens to drop at once: one, of a long prompt more."""
    return max(1, -(-count // _ROUNDS))


def stages_of(
    base: BaseModel,
    prompt: SoftPrompt,
    chooses: Passage,
    heldout: Passage | None,
    config: PruneConfig,
    *,
    progress: Progress = lambda done, total: None,
) -> list[Stage]:
    """The prompt at every length down to `config.tokens` (None: 1), the whole one first. Raises ConfigError, OutOfMemory."""
    down_to, block = config.tokens or 1, config.block or default_block(prompt.n_tokens)
    if down_to > prompt.n_tokens:
        raise ConfigError("no such length", where="--tokens", expected=f"1 to {prompt.n_tokens}", got=down_to)
    measured, total = 0, rounds_of(prompt.n_tokens, down_to=down_to, block=block)

    def losses(sets: Sequence[tuple[int, ...]], passage: Passage) -> list[float]:
        matrices = [prompt.matrix[list(kept)] for kept in sets]
        found: list[float] = losses_of(
            base, matrices, prompt.metadata, passage, pass_tokens=config.pass_tokens
        ).tolist()
        return found

    def measure(sets: Sequence[tuple[int, ...]]) -> list[float]:
        nonlocal measured
        found = losses(sets, chooses)
        measured += len(sets)
        progress(measured, total)
        return found

    stages = greedy(prompt.n_tokens, measure, down_to=down_to, block=block)
    if heldout is None:
        return stages
    others = losses([stage.kept for stage in stages], heldout)
    return [replace(stage, heldout=other) for stage, other in zip(stages, others, strict=True)]


def within(stages: Sequence[Stage], tolerance: float) -> Stage:
    """The shortest stage whose loss is at most `tolerance` above the whole prompt's."""
    allowed = stages[0].judged + tolerance
    return min((stage for stage in stages if stage.judged <= allowed), key=lambda stage: len(stage.kept))


def chosen_stage(stages: Sequence[Stage], config: PruneConfig) -> Stage:
    """The requested length, else the shortest whose loss rises by no more than the tolerance."""
    if config.tokens is not None:
        return stages[-1]
    return within(stages, TOLERANCE if config.tolerance is None else config.tolerance)


def pruned(prompt: SoftPrompt, stages: Sequence[Stage], chosen: Stage, *, tokens: int) -> SoftPrompt:
    """The shortened prompt. Its metadata name what was dropped; results and samples of the whole prompt are left out.

    tokens: targets of the text that the losses were measured on.
    """
    whole = stages[0]
    dropped = [position + 1 for position in range(prompt.n_tokens) if position not in set(chosen.kept)]
    note: dict[str, Any] = {
        "of": prompt.content_hash,
        "tokens_before": prompt.n_tokens,
        "dropped": dropped,
        "loss_before": round(whole.judged, 5),
        "loss_after": round(chosen.judged, 5),
        "measured_tokens": tokens,
    }
    if "pruned" in prompt.metadata.training:
        note["earlier"] = prompt.metadata.training["pruned"]
    known = replace(prompt.metadata, training={**prompt.metadata.training, "pruned": note}, heldout={}, samples=())
    return SoftPrompt(prompt.matrix[list(chosen.kept)], known)


def verdict(stages: Sequence[Stage], chosen: Stage, tokens: int) -> str:
    """The loss before and after, in a sentence. tokens: targets of the text that it was measured on."""
    text = "held-out text" if chosen.heldout is not None else "the text that they were chosen by"
    return (
        f"{len(chosen.kept)} of {len(stages[0].kept)} virtual tokens: the loss on {tokens:,} tokens of {text} goes from "
        f"{stages[0].judged:.4f} to {chosen.judged:.4f} nats per token ({chosen.judged - stages[0].judged:+.4f})."
    )


def to_json(stages: Sequence[Stage], chosen: Stage, passage: Passage, heldout: Passage | None) -> dict[str, Any]:
    """As plain JSON. Positions count from 1, as everywhere that people read them."""
    return {
        "measured_tokens": passage.tokens,
        "heldout_tokens": heldout.tokens if heldout else None,
        "lengths": [
            {
                "tokens": len(stage.kept),
                "kept": [position + 1 for position in stage.kept],
                "loss": stage.loss,
                "heldout": stage.heldout,
                "chosen": stage is chosen,
            }
            for stage in stages
        ],
    }
