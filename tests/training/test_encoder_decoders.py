"""Training on encoder-decoders through the one loop: starts, optimisers, several runs together, resuming to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sordino.errors import ConfigError
from sordino.formats import read_single
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata
from sordino.training.adafactor import Adafactor
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.events import Finished, Validation
from sordino.training.execute import execute
from sordino.training.form import form_of
from sordino.training.gradient import Batch, mean_nlls
from sordino.training.job import Job
from sordino.training.loop import Run, RunGroup, TrainSet, train, train_group
from sordino.training.recipes import RECIPES, RecipeChoice
from sordino.training.run import PreparedRun, prepare
from tests.tiny_models import tiny_base
from tests.training import runs
from tests.training.runs import stop_after

ROWS = [
    {"prompt": f"the {thing} was seen from the {place}, wrote the keeper", "completion": " sea" if n % 2 else " lamp"}
    for n, (thing, place) in enumerate(
        (a, b)
        for a in ("ship", "keeper", "lamp", "sea", "cat", "tree")
        for b in ("ship", "fog", "shore", "hill of stones")
    )
]
CONFIG = replace(runs.CONFIG, steps=8, row_tokens=48, evaluate_every=4, sample_text="", pass_tokens=200, measure="none")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base("t5", dtype=torch.float32)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def prepared(base: BaseModel, path: Path, **changes: Any) -> PreparedRun:
    return prepare(base, replace(CONFIG, **changes), TextPaths((path,)))


def run_of(made: PreparedRun, folder: Path, name: str = "") -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return made.run(folder, name)


def trained(base: BaseModel, run: Run, **how: Any) -> torch.Tensor:
    (*_, last) = train(base, run, **how)
    return last.matrix_PD


@pytest.mark.parametrize("init", ["data", "labels", "vocab", "random", "text:the keeper of the lamp"])
def test_every_start_learns(base: BaseModel, rows: Path, tmp_path: Path, init: str) -> None:
    made = prepared(base, rows, init=init, steps=12)
    events = list(train(base, run_of(made, tmp_path / "run")))
    losses = [event.loss for event in events if isinstance(event, Validation)]
    assert losses[-1] < losses[0]


def test_class_labels_are_the_start(base: BaseModel, rows: Path) -> None:
    made = prepared(base, rows, init="labels")
    labels = {token for text in ("sea", "lamp") for token in base.encode(text)}
    table = base.embed(torch.tensor(sorted(labels))).float()
    assert all(bool((table == vector).all(1).any()) for vector in made.start.matrix_PD)


def test_several_runs_together_are_each_alone(base: BaseModel, rows: Path, tmp_path: Path) -> None:
    exact = tiny_base("t5")
    several = [
        run_of(prepared(exact, rows, **change), tmp_path / name, name)
        for name, change in (("a", {}), ("b", {"tokens": 7, "lr": 0.1}), ("c", {"seed": 3, "batch": 2, "steps": 5}))
    ]
    together = {}
    (tmp_path / "together").mkdir()
    for name, event in train_group(exact, RunGroup(several, tmp_path / "together")):
        if isinstance(event, Finished):
            together[name] = event.matrix_PD
    for run in several:
        own = tmp_path / f"{run.name} alone"
        own.mkdir()
        alone = trained(exact, replace(run, folder=own, name=""))
        assert float((alone - together[run.name]).norm() / alone.norm()) < 1e-4


@pytest.mark.parametrize("optimiser", ["adam", "adafactor"])
def test_a_run_that_was_stopped_resumes_to_the_bit(base: BaseModel, rows: Path, tmp_path: Path, optimiser: str) -> None:
    made = prepared(base, rows, optimiser=optimiser)
    whole = trained(base, run_of(made, tmp_path / "whole"))
    stopped = run_of(made, tmp_path / "stopped")
    list(train(base, stopped, should_stop=stop_after(3)))
    assert torch.equal(trained(base, stopped, resume=True), whole)


def test_a_whole_run_writes_its_file(base: BaseModel, rows: Path, tmp_path: Path) -> None:
    job = Job(
        texts=TextPaths((rows,)),
        config=replace(CONFIG, measure="quick", steps=4, hold=128, context=0.5),
        metadata=Metadata(name="rows"),
        out=tmp_path / "rows.zip",
        model=base.name,
    )
    made = execute(job, base)
    assert made is not None
    known = read_single(job.out).metadata
    assert known.placement == "start"
    assert known.attention.plain
    assert known.base.family == "t5"
    assert known.heldout["nll"]["soft_prompt"] > 0
    assert (job.folder / "report.html").exists()
    assert any("an encoder reads its whole input at once" in note for note in prepared(base, rows).notes)


def test_another_prompt_is_a_start(base: BaseModel, rows: Path, tmp_path: Path) -> None:
    made = prepared(base, rows)
    prompt = form_of(base, made.config).prompt(torch.ones(4, base.d_model), Metadata(name="p", base=base.ref))
    prompt.save(tmp_path / "p.zip")
    again = prepared(base, rows, init=f"file:{tmp_path / 'p.zip'}")
    assert torch.equal(again.start.matrix_PD, torch.ones(4, base.d_model))


@pytest.mark.parametrize("objective", ["prefix-lm", "span-corruption"])
def test_plain_texts(base: BaseModel, tmp_path: Path, objective: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(
        "\n\n".join(f"The {row['prompt']}, and{row['completion']} it was, the keeper wrote." for row in ROWS)
    )
    made = prepared(base, path, objective=objective, steps=40, lr=0.2, batch=8, patience=0, average=0.0)
    assert all(example.input for example in made.data.train)
    # Without a validation set the last average is the result.
    run = run_of(made, tmp_path / "run")
    after = trained(base, replace(run, data=TrainSet(made.data.train, (), "hash")))
    first, last = (
        mean_nlls(base, [Batch(PrefixSource(matrix_PD, "start"), made.data.train)], 400)[0]
        for matrix_PD in (made.start.matrix_PD, after)
    )
    assert last < first


def test_a_kv_prompt_is_refused(base: BaseModel, rows: Path) -> None:
    with pytest.raises(ConfigError, match="a KV prompt is not possible with an encoder-decoder"):
        prepared(base, rows, kind="kv")


def test_the_recipe_is_the_papers_where_nothing_else_is_given() -> None:
    config = TrainConfig(**RecipeChoice("lester").applied({"tokens": 20}))
    assert (config.tokens, config.batch, config.lr, config.optimiser, config.final_lr) == (
        20,
        32,
        0.3,
        "adafactor",
        1.0,
    )
    assert TrainConfig(**RecipeChoice().applied({"tokens": 20})) == TrainConfig(tokens=20)
    assert all(TrainConfig(**settings) for settings in RECIPES.values())


def test_adafactor_follows_its_formula() -> None:
    random = np.random.default_rng(0)
    for shape in ((5, 7), (128, 130)):
        start, gradients = random.normal(size=shape), [random.normal(size=shape) * 3 for _ in range(3)]
        parameter = torch.tensor(start, requires_grad=True)
        optimiser = Adafactor([{"params": [parameter]}], lr=0.3, weight_decay=1e-5)
        expected, second = start.copy(), np.zeros(shape)
        for step, gradient in enumerate(gradients, start=1):
            parameter.grad = torch.tensor(gradient)
            optimiser.step()
            decay = 1 - step**-0.8
            square = gradient**2 + 1e-30
            if min(shape) >= 128:
                square = (
                    square.mean(1, keepdims=True) * square.mean(0, keepdims=True) / square.mean() if step == 1 else None
                )
                break
            second = decay * second + (1 - decay) * square
            update = gradient / np.sqrt(second)
            update /= max(1.0, np.sqrt((update**2).mean()))
            expected = expected - 0.3 * update - 1e-5 * expected
        if min(shape) < 128:
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)
        else:
            update = gradients[0] / np.sqrt(square)
            update /= max(1.0, np.sqrt((update**2).mean()))
            np.testing.assert_allclose(parameter.detach().numpy(), start - 0.3 * update - 1e-5 * start, rtol=1e-10)
            assert {key: tuple(value.shape) for key, value in optimiser.state[parameter].items()} == {
                "step": (),
                "row": (128,),
                "column": (130,),
            }
