"""The settings of a training run. Unknown keys raise; cross-checks name the flag to change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from sordino.errors import ConfigError
from sordino.models.context import check_context
from sordino.prompts.soft_prompt import MAX_TOKENS, PLACEMENTS, PlacementName

Method = Literal["plain", "residual"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class TrainConfig:
    """tokens: virtual tokens. steps: optimiser steps. batch: examples a step. row_tokens: longest example, in tokens.

    lr: learning rate in units of the model's embedding RMS (Adam moves a coordinate by about lr a step, so the unit makes
    one value right for models of any embedding scale). warmup: share of the steps. average: the weight average's memory as
    a share of the steps (0 is off). patience: evaluations without a better validation loss before stopping (0 is off).
    evaluate_every, sample_every: steps (0 lets the run choose ten evaluations at most, and five samples).
    init: "data", "vocab", "labels", "random", "text:..." or "file:..." (another soft prompt).
    pass_tokens: most positions in one forward pass; a step of more is accumulated.
    """

    tokens: int = 20
    steps: int = 300
    batch: int = 4
    row_tokens: int = 128
    lr: float = 0.25
    warmup: float = 0.05
    final_lr: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.0
    average: float = 0.1
    patience: int = 5
    evaluate_every: int = 0
    sample_every: int = 0
    validation_tokens: int = 2048
    init: str = "data"
    init_candidates: int = 8
    method: Method = "plain"
    residual_width: int = 64
    placement: PlacementName | Literal["auto"] = "auto"
    pass_tokens: int = 1024
    sample_text: str = ""
    sample_tokens: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        _between("--tokens", self.tokens, 1, MAX_TOKENS)
        _between("--steps", self.steps, 1, 10_000_000)
        _between("--batch", self.batch, 1, 100_000)
        _between("--row-tokens", self.row_tokens, 2, 1_000_000)
        _between("--lr", self.lr, 1e-6, 100)
        _between("--warmup", self.warmup, 0, 1)
        _between("--final-lr", self.final_lr, 0, 1)
        _between("--clip", self.clip, 1e-6, 1e9)
        _between("--weight-decay", self.weight_decay, 0, 1)
        _between("--average", self.average, 0, 1)
        _between("--patience", self.patience, 0, 1_000_000)
        _between("--evaluate-every", self.evaluate_every, 0, 10_000_000)
        _between("--sample-every", self.sample_every, 0, 10_000_000)
        _between("--init-candidates", self.init_candidates, 1, 256)
        _between("--residual-width", self.residual_width, 1, 65536)
        _between("--pass-tokens", self.pass_tokens, 1, 10_000_000)
        _between("--sample-tokens", self.sample_tokens, 1, 4096)
        _one_of("--method", self.method, METHODS)
        _one_of("--placement", self.placement, ("auto", *PLACEMENTS))
        if self.init not in ("data", "vocab", "labels", "random") and not self.init.startswith(("text:", "file:")):
            raise ConfigError(
                "unknown initialisation",
                where="--init",
                expected="data, vocab, labels, random, text:... or file:...",
                got=self.init,
            )

    @property
    def evaluation_interval(self) -> int:
        # A tenth of the run; in a short one less often, so that evaluating takes a sixth of the time at most: a forward pass costs
        # half a step.
        in_steps = self.validation_tokens / (2 * self.batch * self.row_tokens)
        return self.evaluate_every or max(1, self.steps // 10, math.ceil(5 * in_steps))

    @property
    def sample_interval(self) -> int:
        return self.sample_every or max(1, self.steps // 5)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TrainConfig:
        """Raises ConfigError for a key that no setting has."""
        unknown = sorted(set(values) - {f.name for f in fields(TrainConfig)})
        if unknown:
            raise ConfigError("unknown setting", where="config", got=", ".join(unknown))
        return TrainConfig(**values)

    def check_room(self, context_length: int) -> None:
        """The prompt and a row must fit the model's context. Raises ConfigError."""
        check_context(
            {"BOS": 1, "soft": self.tokens, "text": self.row_tokens},
            context_length,
            what="a row behind the soft prompt",
            where="--tokens and --row-tokens",
            do="lower --tokens or --row-tokens",
        )


def _between(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError("a setting is out of range", where=flag, expected=f"{low} to {high}", got=value)


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError("unknown value", where=flag, expected=", ".join(allowed), got=value)
