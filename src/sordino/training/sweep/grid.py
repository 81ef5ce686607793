"""Which settings a sweep tries: every combination of the values given, or some of them at random."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sordino.errors import ConfigError
from sordino.settings import LARGEST_SEED, check_settings, setting
from sordino.training.config import RATES, Kind, Method, TrainConfig

# The evaluations of a run: halving needs them at an eighth, a quarter and a half.
EVALUATIONS = 8
# All evaluations of a run cost about a fourth of its steps at most; on fewer tokens than this they would tell too little.
LEAST_VALIDATION = 512


@dataclass(frozen=True)
class Choice:
    """One combination: a value of each factor."""

    model: str
    kind: Kind
    tokens: int
    lr: float
    init: str
    method: Method
    seed: int


FACTORS = tuple(field.name for field in fields(Choice))


@dataclass(frozen=True)
class Spec:
    """What a sweep was asked for: the values of each factor, and how to try them. lr: None stands for a kind's own default. rest:
    the settings that all runs share. fill_passes: let a pass hold as many positions as suit the device, whatever `rest` says.
    heldout_tokens: most held-out tokens that each finished run is measured on.
    """

    model: tuple[str, ...]
    kind: tuple[Kind, ...]
    tokens: tuple[int, ...]
    lr: tuple[float | None, ...]
    init: tuple[str, ...]
    method: tuple[Method, ...]
    seed: tuple[int, ...]
    rest: TrainConfig
    random: int = setting(0, "Try N combinations drawn at random.", low=0, shown="all of them", unit="N")
    full: bool = setting(
        False, "Train every run to its end, for plots; otherwise the worse half ends at 1/8, 1/4 and 1/2."
    )
    split_seed: int = setting(
        0,
        "The seed of the split, which all runs share, and of --random.",
        low=0,
        high=LARGEST_SEED,
        shown="0",
        unit="N",
    )
    heldout_tokens: int = 4096
    fill_passes: bool = True

    def __post_init__(self) -> None:
        check_settings(self)
        for factor in FACTORS:
            values: Sequence[object] = getattr(self, factor)
            if not values:
                raise ConfigError("there is no value to try", where=f"--{factor}")
            if len(set(values)) < len(values):
                raise ConfigError("a value was given twice", where=f"--{factor}", got=", ".join(map(str, values)))
        if unknown := [kind for kind in self.kind if kind not in RATES]:
            raise ConfigError("unknown", where="--kind", expected=" or ".join(RATES), got=", ".join(unknown))
        if self.rest.steps < EVALUATIONS:
            raise ConfigError(
                "too few to compare", where="--steps", expected=f"at least {EVALUATIONS}", got=self.rest.steps
            )
        for choice in self.choices():
            # Every setting is checked before anything is loaded.
            self.config(choice)

    def choices(self) -> list[Choice]:
        """The combinations to try, those of one model together, always in the same order."""
        every = [
            Choice(model, kind, tokens, RATES[kind] if lr is None else lr, *rest)
            for model, kind, tokens, lr, *rest in itertools.product(*(getattr(self, factor) for factor in FACTORS))
        ]
        if not self.random or self.random >= len(every):
            return every
        places = random.Random(self.split_seed).sample(range(len(every)), self.random)
        return [every[at] for at in sorted(places)]

    def models(self) -> list[str]:
        """The models that have a combination to try: --random may have drawn none for some of them."""
        taken = {choice.model for choice in self.choices()}
        return [model for model in self.model if model in taken]

    def config(self, choice: Choice) -> TrainConfig:
        """The settings of one run. All are evaluated at the same steps, and none stops early: they are compared step by step."""
        rest = self.rest
        # A forward pass costs half a step, and there is one evaluation more at the beginning.
        affordable = rest.steps * rest.batch * rest.row_tokens // (2 * (EVALUATIONS + 1))
        return replace(
            rest,
            validation_tokens=max(
                min(rest.validation_tokens, LEAST_VALIDATION), min(rest.validation_tokens, affordable)
            ),
            **{factor: getattr(choice, factor) for factor in FACTORS if factor != "model"},
            patience=0,
            evaluate_every=rest.steps // EVALUATIONS,
            sample_every=rest.steps + 1,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Spec:
        # Sweeps of version 0.1.0 know one kind.
        stored = {"kind": ["embedding"], **stored}
        lists = {factor: tuple(stored[factor]) for factor in FACTORS}
        return Spec(**{**stored, **lists, "rest": TrainConfig.from_json(stored["rest"])})
