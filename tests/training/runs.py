"""A small run to train in tests: a tiny model, a text, settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example
from sordino.training.config import TrainConfig
from sordino.training.form import form_of
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls
from sordino.training.loop import Run, TrainSet
from tests.tiny_models import saved_tiny, tiny_base

CONFIG = TrainConfig(
    tokens=4,
    steps=12,
    batch=3,
    row_tokens=16,
    lr=0.5,
    evaluate_every=3,
    sample_every=5,
    sample_text="the",
    sample_tokens=6,
)


LOG = "The keeper wrote of the lamp and the sea, and of the ships that went by in the fog. "


def days(count: int = 7, lengths: int = 7) -> list[str]:
    """Pages of a log, of as many lengths."""
    return [f"Day {day}. " + LOG * (day % lengths + 3) for day in range(count)]


def model_and_texts(folder: Path, texts: Iterable[str]) -> Path:
    """The folder, with a tiny model and texts for a program that trains there."""
    saved_tiny(folder / "model")
    write_texts(folder / "texts", texts)
    return folder


def write_texts(folder: Path, texts: Iterable[str]) -> Path:
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)
    return folder


def small_base(family: str = "llama", **overrides: object) -> BaseModel:
    return tiny_base(family, dtype=torch.float32, **overrides)


def small_set(base: BaseModel) -> TrainSet:
    ids = base.encode("the keeper wrote of the sea and the ship and of the lamp; " * 12)
    examples = [
        Example(tuple(ids[i : i + 16 - i % 5]), (True,) * len(ids[i : i + 16 - i % 5]), "p") for i in range(0, 160, 16)
    ]
    return TrainSet(examples[:7], examples[7:], "hash")


def start_of(base: BaseModel, tokens: int = 4) -> torch.Tensor:
    ids = base.encode("the keeper wrote of the sea")[:tokens]
    return base.embed(torch.tensor(ids, device=base.device)).detach().float().cpu()


def first_matrix(base: BaseModel, config: TrainConfig) -> torch.Tensor:
    """`start_of` for a run of any kind."""
    return form_of(base, config).matrix_of_embeds(base, start_of(base, config.tokens))


def several_runs(base: BaseModel, folder: Path, **common: Any) -> list[Run]:
    """Four runs that differ in length, learning rate, method, seed, placement, texts and steps, in folders of their own."""
    changes: dict[str, dict[str, Any]] = {
        "a": {"tokens": 4, "steps": 7},
        "b": {"tokens": 2, "lr": 0.1, "seed": 3},
        "c": {"tokens": 4, "method": "residual", "batch": 2, "placement": "start"},
        "d": {"tokens": 6, "steps": 15, "seed": 1, "evaluate_every": 4},
    }
    runs = []
    for number, (name, change) in enumerate(changes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        data = small_set(base)
        data = TrainSet(data.train[number % 2 :], data.validation, f"hash {name}")
        config = replace(CONFIG, **common, **change)
        runs.append(Run(name, data, config, folder / name, start_of(base, config.tokens)))
    return runs


def loss_alone(base: BaseModel, batch: Batch, pass_tokens: int = 10_000) -> float:
    """The loss of a batch that shares no pass; its gradient is added to what the matrix was computed from."""
    (loss,) = losses_and_gradients(base, [batch], pass_tokens)
    return loss


def mean_alone(base: BaseModel, batch: Batch, pass_tokens: int = 10_000) -> float:
    (mean,) = mean_nlls(base, [batch], pass_tokens)
    return mean


def stop_after(steps: int) -> Callable[[], bool]:
    """For `should_stop`: asks a run to stop after so many steps."""
    done = count(1)
    return lambda: next(done) == steps


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """A run's events as written, without the time that they took."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The relative difference in norm."""
    return float((ours - theirs).norm() / theirs.norm())
