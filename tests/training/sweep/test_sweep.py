"""What a sweep tries, gives up, concludes and draws: all of it without a model."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.errors import ConfigError
from sordino.training.config import TrainConfig
from sordino.training.sweep.grid import FACTORS, Choice, Spec
from sordino.training.sweep.pictures import pictures
from sordino.training.sweep.results import Measured, ModelOutcome, Outcome, claims, cost, levels, winner
from sordino.training.sweep.running import halving, rungs, share_of, worse_half

SPEC = Spec(("m",), ("embedding",), (5, 20), (0.1, 0.25), ("data", "random"), ("plain",), (0, 1), TrainConfig(steps=80))


def outcome(name: str, loss: float, *, why: str = "steps", steps: int = 80, heldout: bool = True, **choice) -> Outcome:
    made = Choice(
        **{
            "model": "m",
            "kind": "embedding",
            "tokens": 20,
            "lr": 0.25,
            "init": "data",
            "method": "plain",
            "seed": 0,
            **choice,
        }
    )
    measured = Measured(loss + 0.1, (loss + 0.1) / 3) if heldout and why == "steps" else None
    return Outcome(name, made, why, steps, steps * 4, loss, ((0, 5.0), (steps, loss)), measured)


def model(*runs: Outcome, name: str = "m", parameters: int = 100, none: float = 5.0, bits: float = 1.0) -> ModelOutcome:
    return ModelOutcome(name, parameters, Measured(none, none / 3), runs, bits, 9.0)


def test_the_grid_is_every_combination_once_in_one_order():
    made = SPEC.choices()
    assert len(made) == len(set(made)) == 16
    assert made == SPEC.choices()
    assert {(c.tokens, c.lr, c.init, c.seed) for c in made} == set(
        itertools.product((5, 20), (0.1, 0.25), ("data", "random"), (0, 1))
    )


def test_each_kind_has_its_own_default_rate_and_its_place_in_the_grid():
    both = replace(SPEC, kind=("embedding", "kv"), lr=(None,))
    assert {(choice.kind, choice.lr) for choice in both.choices()} == {("embedding", 0.25), ("kv", 0.1)}
    assert [(both.config(choice).kind, both.config(choice).lr) for choice in both.choices()][-1] == ("kv", 0.1)
    assert Spec.from_json(json.loads(json.dumps(both.to_json()))) == both
    with pytest.raises(ConfigError, match="no residual network"):
        replace(both, method=("residual",))


def test_chance_takes_some_of_the_grid_and_the_same_again():
    some = replace(SPEC, random=5)
    assert len(set(some.choices())) == 5
    assert set(some.choices()) <= set(SPEC.choices())
    assert some.choices() == some.choices()
    assert some.choices() != replace(some, split_seed=1).choices()
    assert replace(SPEC, random=99).choices() == SPEC.choices()


def test_all_runs_are_compared_at_the_same_steps():
    configs = [SPEC.config(choice) for choice in SPEC.choices()]
    assert {(c.steps, c.evaluation_interval, c.patience) for c in configs} == {(80, 10, 0)}
    assert {(c.tokens, c.lr, c.init, c.seed) for c in configs} == {
        (c.tokens, c.lr, c.init, c.seed) for c in SPEC.choices()
    }


@pytest.mark.parametrize(("steps", "rows", "tokens"), [(120, 4, 2048), (48, 1, 512), (60, 3, 1280)])
def test_evaluations_stay_cheap_beside_the_steps(steps, rows, tokens):
    spec = replace(SPEC, rest=TrainConfig(steps=steps, batch=rows, row_tokens=128))
    assert spec.config(spec.choices()[0]).validation_tokens == tokens
    few = replace(SPEC, rest=TrainConfig(steps=8, validation_tokens=99))
    assert few.config(few.choices()[0]).validation_tokens == 99


def test_a_sweep_is_stored_and_read():
    assert Spec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": ()}, "--tokens"),
        ({"lr": (0.1, 0.1)}, "twice"),
        ({"lr": (0.1, -1.0)}, "--lr"),
        ({"init": ("data", "magic")}, "--init"),
        ({"method": ("mixed",)}, "--method"),
        ({"rest": TrainConfig(steps=7)}, "--steps"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_is_loaded(change, said):
    with pytest.raises(ConfigError, match=said):
        replace(SPEC, **change)


@given(st.integers(8, 5000), st.integers(1, 60), st.randoms())
def test_halving_keeps_the_best_and_costs_little(steps, count, random):
    """As the loop asks it: with the losses of the runs that are left, at every evaluation."""
    interval = steps // 8
    prune = halving(steps)
    left = {str(number): random.random() for number in range(count)}
    best, spent = min(left.values()), 0
    for step in range(1, steps + 1):
        spent += len(left)
        if step % interval == 0 or step == steps:
            for name in prune(step, left):
                del left[name]
    assert min(left.values()) == best
    assert len(left) >= 1
    if count >= 8:
        assert len(left) <= math.ceil(count / 8) + 1
        assert spent <= 0.45 * count * steps
    assert all(rung % interval == 0 and rung < steps for rung in rungs(steps))
    # What it is said to cost. Rungs are whole numbers of steps, so those of short runs are not quite an eighth.
    assert spent / (count * steps) == pytest.approx(share_of(count), abs=8 / steps)


def test_the_worse_half_has_what_is_no_number():
    assert sorted(worse_half({"a": math.nan, "b": 3.0, "c": math.inf, "d": 2.0})) == ["a", "c"]
    assert worse_half({"a": 1.0}) == []
    assert worse_half({"a": 2.0, "b": 1.0, "c": 3.0}) == ["c"]


def test_results_are_stored_and_read():
    made = model(outcome("001", 4.0), outcome("002", math.inf, why="diverged", steps=3), bits=math.inf)
    assert ModelOutcome.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False))) == made


def test_the_winner_is_chosen_on_validation_and_finished():
    runs = (outcome("a", 4.0), outcome("b", 3.0, why="pruned", steps=10), outcome("c", 3.9, seed=1))
    runs = (replace(runs[0], heldout=Measured(1.0, 0.3)), *runs[1:])
    assert model(*runs).best.name == "c"
    small, large = model(*runs, bits=1.2), model(outcome("d", 9.0), name="n", bits=1.1)
    assert winner([small, large]) == (large, large.runs[0])
    assert winner([model(runs[1])]) is None
    assert cost([model(*runs)], 80, 4) == (320 + 40 + 320, 960)


def test_a_level_is_its_best_setting_with_all_seeds():
    runs = [
        outcome("a", 4.0, lr=0.1, seed=0),
        outcome("b", 4.2, lr=0.1, seed=1),
        outcome("c", 3.9, lr=0.25, seed=0),
        outcome("d", 4.5, lr=0.25, seed=1),
        outcome("e", 3.0, lr=0.5, why="pruned"),
        outcome("f", 3.8, tokens=5),
    ]
    found = {level.value: level for level in levels(runs, "tokens")}
    assert [run.name for run in found[20].runs] == ["a", "b"]
    assert found[20].nll == pytest.approx(4.2)
    assert found[20].spread() == pytest.approx(0.1414, abs=1e-3)
    assert found[5].spread() is None


@pytest.mark.parametrize(("long", "verdict"), [(3.99, "held"), (4.3, "held"), (3.5, "did not hold")])
def test_the_claim_about_length_follows_the_numbers(long, verdict):
    found, *_ = claims(
        [model(outcome("a", 4.0, tokens=20), outcome("b", long, tokens=100), outcome("c", 4.4, tokens=1))]
    )
    assert found.verdict == verdict
    assert f"{long + 0.1:.4f} with 100" in found.evidence
    assert "4.1000 with 20" in found.evidence


@pytest.mark.parametrize(
    ("random", "verdict"), [((4.6, 4.7), "held"), ((3.0, 3.1), "did not hold"), ((4.0, 4.15), "cannot be said")]
)
def test_the_claim_about_starts_minds_the_spread_of_seeds(random, verdict):
    runs = [outcome("a", 4.0), outcome("b", 4.1, seed=1)]
    runs += [outcome(f"r{seed}", loss, init="random", seed=seed) for seed, loss in enumerate(random)]
    _, found, _ = claims([model(*runs)])
    assert found.verdict == verdict


@pytest.mark.parametrize(("loss", "verdict"), [(3.0, "held"), (4.6, "did not hold")])
def test_the_claim_about_size_is_in_bits_a_byte(loss, verdict):
    small = model(outcome("a", 4.0), name="small", parameters=100)
    large = model(outcome("b", loss, model="large"), name="large", parameters=200)
    for models in ([small, large], [large, small]):
        assert claims(models)[-1].verdict == verdict


def test_held_out_texts_choose_nothing():
    """Of 50 and 100 tokens the better on validation is compared, however the held-out texts find them."""
    runs = [outcome("a", 4.0), outcome("b", 3.6, tokens=50), outcome("c", 3.7, tokens=100)]
    runs[2] = replace(runs[2], heldout=Measured(1.0, 0.3))
    found, *_ = claims([model(*runs)])
    assert "3.7000 with 50" in found.evidence


def test_what_was_not_tried_is_not_claimed():
    assert {claim.verdict for claim in claims([model(outcome("a", 4.0))])} == {"cannot be said"}
    assert {claim.verdict for claim in claims([model(outcome("a", 4.0, why="pruned"))])} == {"cannot be said"}


def test_a_picture_for_each_factor_that_was_varied():
    runs = [
        outcome(f"{n}", 4 + n / 9, tokens=tokens, init=init, seed=seed)
        for n, (tokens, init, seed) in enumerate(itertools.product((5, 20), ("data", "text:$a $b"), (0, 1)))
    ]
    made = pictures([model(*runs)])
    assert set(made) == {"heldout-by-tokens.png", "heldout-by-init.png", "heldout-by-seed.png"}
    assert all(data.startswith(b"\x89PNG") for data in made.values())
    assert made == pictures([model(*runs)])
    # That each kind has its own rate says nothing about rates.
    kinds = pictures([model(runs[0], outcome("k", 3.5, kind="kv", lr=0.1, tokens=5))])
    assert set(kinds) == {"heldout-by-kind.png"}
    both = pictures([model(*runs), model(outcome("z", 3.0, model="n"), name="n")])
    assert "heldout-by-model.png" in both
    assert set(FACTORS) >= {name.removeprefix("heldout-by-").removesuffix(".png") for name in both}
