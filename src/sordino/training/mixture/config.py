"""The settings of a mixture: how it is fitted, and how its components are trained together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Literal

from sordino.errors import ConfigError
from sordino.evaluation.config import pass_tokens_setting
from sordino.settings import check_settings, seed_setting, setting
from sordino.training.config import RATES, Kind, TrainConfig

GateChoice = Literal["auto", "never", "always"]
# Tokens of each set that are measured by default: what tells weights of a few components to a few hundredths.
LIMIT = 16_384


@dataclass(frozen=True)
class FitConfig:
    """How the weights are fitted and measured. Raises ConfigError for a value out of range.

    Of a text, which has no prompt, `context_tokens` are x and the rest is y, as where the mixture continues a text.
    """

    row_tokens: int = setting(128, "Longest example, in tokens; longer texts are cut into several.", low=2, unit="N")
    context_tokens: int = setting(
        32,
        "In a text without a prompt: how many tokens the rest is predicted from, and the gate reads.",
        low=0,
        unit="N",
    )
    limit: int = setting(
        LIMIT, "Measure at most this many tokens of each set, spread evenly; 0 for all.", low=0, unit="N"
    )
    gate: GateChoice = setting(
        "auto",
        "Weights that depend on the text. auto: kept if better on held-out texts; never: not tried; always: kept in any case.",
    )
    resamples: int = 10_000
    pass_tokens: int = pass_tokens_setting()
    seed: int = seed_setting(unit="N")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.context_tokens >= self.row_tokens:
            raise ConfigError(
                "the context leaves nothing to predict",
                where="--context-tokens",
                expected=f"less than --row-tokens, {self.row_tokens}",
                got=self.context_tokens,
            )


@dataclass(frozen=True)
class JointConfig:
    """How components are trained together. Raises ConfigError for a value out of range.

    As in training a single soft prompt, warmup and average are shares of the steps. anneal: the share of the steps in which
    responsibilities are tempered. evaluations: of a run. validation_tokens: of each.
    """

    kind: Kind = setting(
        "embedding", "Kind of the soft prompts that --joint starts from excerpts; given ones keep their own."
    )
    tokens: int = setting(
        20, "Virtual tokens of each soft prompt that --joint starts from an excerpt.", low=1, high=2047, unit="N"
    )
    steps: int = setting(150, "Optimiser steps of --joint.", low=1, high=9_999_999, unit="N")
    batch: int = setting(4, "Examples per step of --joint, each after every component.", low=1, high=100_000, unit="N")
    lr: float | None = setting(
        None,
        "Learning rate of --joint, in units of the model's embedding RMS; of a KV prompt, of its layers' keys and values.",
        low=1e-6,
        high=100,
        shown="; ".join(f"{rate:g} for {kind}" for kind, rate in RATES.items()),
        unit="X",
    )
    warmup: float = 0.05
    final_lr: float = 0.1
    clip: float = 1.0
    average: float = 0.1
    anneal: float = 0.25
    evaluations: int = 8
    validation_tokens: int = 2048
    pass_tokens: int = setting(1024, "Most positions in one forward pass.", low=1, high=10_000_000, offered=False)
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)

    def rate(self, kind: Kind) -> float:
        """The learning rate of components of a kind."""
        return RATES[kind] if self.lr is None else self.lr

    def for_loop(self, kind: Kind, tokens: int, row_tokens: int) -> TrainConfig:
        """The settings of the run. kind: whose units it has. tokens, row_tokens: of the longest component and example."""
        own = {f.name for f in fields(TrainConfig)} - {"kind", "tokens", "lr"}
        return TrainConfig(
            **{name: value for name, value in asdict(self).items() if name in own},
            kind=kind,
            tokens=tokens,
            lr=self.rate(kind),
            row_tokens=max(2, row_tokens),
            evaluate_every=max(1, self.steps // self.evaluations),
            # No component is a soft prompt of its own yet, so there is nothing to sample from.
            sample_every=self.steps + 1,
            patience=0,
            # Components differ in the rows that they suit: text between would blur that.
            hold=0,
            context=0.0,
        )
