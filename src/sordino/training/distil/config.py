"""The settings of a distillation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from sordino.prompts.soft_prompt import MAX_TOKENS
from sordino.settings import check_settings, seed_setting, setting
from sordino.training.config import Kind, Measure, TrainConfig


@dataclass(frozen=True)
class DistilConfig:
    """How a long text becomes virtual tokens. Raises ConfigError for a value out of range.

    text: words of the text that are in no file. heldout: share of the openings that are never trained on.
    """

    tokens: int = setting(16, "Virtual tokens.", low=1, high=MAX_TOKENS, unit="N")
    kind: Kind = setting("embedding", "Kind of the soft prompt, as in `sordino train`.")
    continuations: int = setting(
        256,
        "Continuations that the model writes with the text in front; at least one for each opening.",
        low=8,
        high=100_000,
        unit="N",
    )
    length: int = setting(64, "Longest continuation, in tokens.", low=4, high=4096, unit="N")
    steps: int = setting(80, "Optimiser steps.", low=1, high=10_000_000, unit="N")
    batch: int = setting(6, "Continuations per step.", low=1, high=100_000, unit="N")
    # None: `TrainConfig` has a default for each kind.
    lr: float = setting(
        cast("float", None),
        "Learning rate, in the units of `sordino train`.",
        low=1e-6,
        high=100,
        shown="0.25; 0.1 for a KV prompt",
        unit="X",
    )
    template: Literal["auto", "chat", "plain"] = setting(
        "auto",
        "Where the text stands: the system message of the model's chat template, or in front of plain text.",
        shown="chat where the model has a template",
    )
    openings: str = setting(
        "",
        "Your own openings, one a line, in place of the packaged ones: user turns, or beginnings of plain texts.",
        unit="FILE",
    )
    measure: Measure = setting(
        "quick", "How the result is measured: within a quarter of the training's time, in full, or not at all."
    )
    pass_tokens: int = setting(1024, "Most positions in one forward pass.", low=1, high=10_000_000, offered=False)
    seed: int = seed_setting(unit="N")
    heldout: float = setting(0.15, "Share of the openings that are held out.", low=0.01, high=0.5, offered=False)
    text: str = ""

    def __post_init__(self) -> None:
        check_settings(self)

    def for_loop(self) -> TrainConfig:
        """The settings of the run, except the length of its rows.

        No text stands between the prompt and an opening, as none stood there when the teacher wrote.
        """
        own = {f.name for f in fields(TrainConfig)}
        given: dict[str, Any] = {name: value for name, value in asdict(self).items() if name in own}
        return TrainConfig(**given, patience=0, context=0.0)
