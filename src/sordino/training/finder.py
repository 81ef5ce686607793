"""A learning rate by trial: the same few steps at each of several, and the one whose validation loss ends lowest."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

from sordino.errors import ConfigError, Diverged
from sordino.training.events import LearningRates, Validation
from sordino.training.loop import train
from sordino.training.run import PreparedRun

# In units of the embedding RMS. On SmolLM2 0.25 to 1.0 end within 0.015 nats of each other, 0.25 lowest (LOG.md).
RATES = (0.06, 0.12, 0.25, 0.5, 1.0)
STEPS = 8


def find_learning_rate(prepared: PreparedRun) -> LearningRates:
    """Train STEPS steps at each of RATES from the same start and compare on the validation set. Raises ConfigError."""
    if not prepared.data.validation:
        raise ConfigError(
            "there is no validation set to choose by", where="--find-lr", do="give more text, or set --lr"
        )
    tried = tuple((rate, _trial(prepared, rate)) for rate in RATES)
    best, loss = min(tried, key=lambda pair: pair[1])
    if not math.isfinite(loss):
        raise ConfigError("every learning rate diverged", where="--find-lr", got=RATES, do="use --dtype float32")
    return LearningRates(best, tried)


def _trial(prepared: PreparedRun, rate: float) -> float:
    config = replace(prepared.config, lr=rate, steps=STEPS, evaluate_every=STEPS, sample_every=STEPS + 1, patience=0)
    loss = math.inf
    with tempfile.TemporaryDirectory() as folder:
        try:
            for event in train(prepared.base, replace(prepared, config=config).run(Path(folder))):
                loss = event.loss if isinstance(event, Validation) else loss
        except Diverged:
            return math.inf
    return loss
