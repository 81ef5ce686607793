"""Settings that belong together, by the name of where they were published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sordino.settings import check_settings, setting

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # Lester et al. 2021, arXiv 2104.08691: Adafactor without scaling by the parameter, a constant rate of 0.3, class labels as the
    # start. What the paper leaves out is off: clipping, warm-up, averaging. It takes the best of its
    # evaluations, as ours does.
    "lester": {
        "tokens": 100,
        "batch": 32,
        "optimiser": "adafactor",
        "lr": 0.3,
        "warmup": 0.0,
        "final_lr": 1.0,
        "weight_decay": 1e-5,
        "clip": 1e9,
        "average": 0.0,
        "patience": 0,
        "init": "labels",
        "hold": 0,
        "context": 0.0,
    },
}


@dataclass(frozen=True)
class RecipeChoice:
    """A published recipe. A setting that is given comes before the recipe's."""

    recipe: Literal["", "lester"] = setting(
        "", "A published recipe's settings; settings that you give take precedence."
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def applied(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a run: those given, and the recipe's others."""
        return {**RECIPES.get(self.recipe, {}), **settings}
