"""What is measured before a run to settle its steps and its learning rate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sordino.errors import ConfigError
from sordino.settings import check_settings, setting

# Where neither steps nor minutes are given: about how long a run takes, measuring included; how often it reads the texts at most;
# the fewest steps that teach anything.
MINUTES = 5.0
EPOCHS = 20
FEWEST_STEPS = 40


@dataclass(frozen=True)
class Calibration:
    """What is measured before a run to settle its steps and its learning rate."""

    minutes: float | None = setting(
        None, "Train about this long, in as many steps as fit.", above=0, high=1e5, label="Minutes, instead of steps"
    )
    find_lr: bool = setting(
        False,
        "Try several learning rates for a few steps first and take the best.",
        label="Find the learning rate first",
    )
    choose_steps: bool = setting(
        False, "Take as many of the steps as the texts want and about 5 minutes allow.", offered=False
    )

    def __post_init__(self) -> None:
        check_settings(self)


# Nothing is measured: the settings are final.
CALIBRATION = Calibration()


def calibration_of(settings: Collection[str], measured: Mapping[str, Any]) -> Calibration:
    """What is measured for a run, from the names of the settings that were given and what was asked to be measured.

    Without steps and minutes the number of steps is chosen. Raises ConfigError where a setting is given and is to be measured
    too.
    """
    for one, other in (("steps", "minutes"), ("lr", "find_lr")):
        if one in settings and other in measured:
            flags = f"--{one} and --{other.replace('_', '-')}"
            raise ConfigError(f"both {flags} were given", do="give one of them")
    return Calibration(**{"choose_steps": "steps" not in settings and "minutes" not in measured, **measured})
