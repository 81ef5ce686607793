"""Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943): the worse half ends at 1/8, 1/4 and 1/2 of the steps.

A sweep's runs take their steps together, so at a rung all that are left have been measured at the same step, and the rule is the
paper's own. Optuna's pruner of this name is the asynchronous one: it judges a trial by those that came before it, and lets the
first ones through.

The cost is about 1/8 + 1/2 x 1/8 + 1/4 x 1/4 + 1/8 x 1/2 = 31 % of all runs to their end.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from sordino.training.loop import Prune
from sordino.training.sweep.grid import EVALUATIONS


def rungs(steps: int) -> tuple[int, ...]:
    """The steps at which the worse half ends."""
    first = steps // EVALUATIONS
    return (first, 2 * first, 4 * first)


def halving(steps: int) -> Prune:
    """The rule for `train_group`, of runs that are `steps` long."""
    at = rungs(steps)

    def prune(step: int, losses: Mapping[str, float]) -> Collection[str]:
        return worse_half(losses) if step in at else ()

    return prune


def share_of(runs: int) -> float:
    """What halving costs, as a share of all these runs to their end; checking on them is not counted."""
    cost, left = 0.0, runs
    for length in (1 / 8, 1 / 8, 1 / 4, 1 / 2):
        cost += left * length
        left = math.ceil(left / 2)
    return cost / runs


def worse_half(losses: Mapping[str, float]) -> list[str]:
    """The names of all but the better half; of an odd number one more is kept. What is no number is worst."""
    order = sorted(losses, key=lambda name: (not math.isfinite(losses[name]), losses[name], name))
    return order[math.ceil(len(order) / 2) :]
