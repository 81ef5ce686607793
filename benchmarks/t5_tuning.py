"""Tuning on a task of two labels for benchmarks.t5: here, with PEFT, and all of the model; and Lester et al.'s ablations (2021).

Every claim is judged by the NLL of the right label among the labels, on the same held-out rows, pair by pair: it held, or did not,
where a 95 % interval says so. Accuracy alone cannot tell two prompts apart that both give the commoner label.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSeq2SeqLM

from benchmarks.authors import author_rows
from benchmarks.t5_model import ROW, batches, padded
from sordino.evaluation.answers import score_rows
from sordino.evaluation.conditions import no_prompt, soft_prompt
from sordino.evaluation.config import TaskConfig
from sordino.evaluation.tasks import labels_of
from sordino.models.base_model import BaseModel, load
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import Example, make_examples
from sordino.texts.pieces import Piece
from sordino.texts.reading import read_pieces
from sordino.training.config import TrainConfig
from sordino.training.form import form_of
from sordino.training.initialise import initialise
from sordino.training.loop import Run, TrainSet, train
from sordino.training.recipes import RecipeChoice

Values = NDArray[np.float64]
BATCH, TOKENS, MEMBERS = 32, 20, 5


@dataclass(frozen=True)
class Task:
    """A model, and the rows that it is tuned and measured on."""

    base: BaseModel
    training: Sequence[Piece]
    heldout: Sequence[Piece]

    @staticmethod
    def of(options: argparse.Namespace, model: str) -> Task:
        if not model.count("/") == 1 and not Path(model).exists():
            raise SystemExit(f"{model} is not there: run --stage train with the same --minutes")
        base = load(model, device=options.device, dtype=options.dtype)
        training, heldout = (rows_of(options.task, options.corpus, part) for part in ("train", "heldout"))
        return Task(base, training, heldout[: options.limit or None])

    @property
    def examples(self) -> Sequence[Example]:
        return make_examples(self.training, self.base, max_tokens=ROW).examples

    def theirs(self) -> Any:
        """The network as transformers loads it."""
        network = AutoModelForSeq2SeqLM.from_pretrained(self.base.name, dtype=self.base.dtype)
        return network.to(self.base.device).eval().requires_grad_(False)

    def logps(self, prompts: Mapping[str, SoftPrompt], base: BaseModel | None = None) -> dict[str, Scores]:
        """How each prompt labels the held-out reviews, and the model without one."""
        base = base or self.base
        labels = labels_of(base, self.heldout)
        conditions = [no_prompt(base), *(soft_prompt(base, name, prompt) for name, prompt in prompts.items())]
        logp_NCL = torch.as_tensor(score_rows(base, conditions, self.heldout, labels, TaskConfig(row_tokens=ROW)))
        right_N = labels.indices(self.heldout)
        scored = (Scores(logp_NL.numpy(), right_N) for logp_NL in logp_NCL.log_softmax(-1).unbind(1))
        return dict(zip(("no prompt", *prompts), scored, strict=True))


def rows_of(task: str, corpus: Path, part: str) -> Sequence[Piece]:
    if task == "authors":
        return author_rows(corpus.parent, part)
    return read_pieces([corpus / f"{part}.jsonl"]).pieces


@dataclass(frozen=True)
class Scores:
    """logp_NL: of each label, one of which is right, for each held-out row."""

    logp_NL: Values
    right_N: NDArray[Any]

    @property
    def hits_N(self) -> Values:
        return (self.logp_NL.argmax(1) == self.right_N).astype(float)

    @property
    def nll_N(self) -> Values:
        return -np.take_along_axis(self.logp_NL, self.right_N[:, None], 1)[:, 0]

    def line(self) -> dict[str, Any]:
        return {
            "accuracy": round(float(self.hits_N.mean()), 4),
            "interval": spread(self.hits_N),
            "nll": round(float(self.nll_N.mean()), 4),
        }


def spread(values_N: NDArray[Any]) -> tuple[float, float]:
    """The 95 % interval of a mean, by resampling rows."""
    random = np.random.default_rng(0)
    means = [values_N[random.integers(len(values_N), size=len(values_N))].mean() for _ in range(2000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return round(float(low), 4), round(float(high), 4)


# Tuning ------------------------------------------------------------------------------------------------------------------


def ours(task: Task, steps: int, *, recipe: str = "", **given: Any) -> SoftPrompt:
    """A prompt that is trained here."""
    settings = {"tokens": TOKENS, "batch": BATCH, "init": "labels", **given}
    fixed = {"row_tokens": ROW, "steps": steps, "patience": 0, "sample_every": 1_000_000}
    config = TrainConfig(**fixed | RecipeChoice(recipe).applied(settings))
    examples = task.examples
    start = initialise(task.base, config, form_of(task.base, config), examples, ())
    with tempfile.TemporaryDirectory() as folder:
        run = Run("", TrainSet(examples, (), "rows"), config, Path(folder), start.matrix_PD)
        *_, finished = train(task.base, run)
    return prompt_of(task.base, finished.matrix_PD)  # type: ignore[union-attr]


def by_peft(task: Task, steps: int) -> SoftPrompt:
    """From the same start, with the optimiser and the rate of PEFT's documentation."""
    config = TrainConfig(tokens=TOKENS, init="labels", row_tokens=ROW)
    start = initialise(task.base, config, form_of(task.base, config), task.examples, ())
    model, weight = peft_model(task, start.matrix_PD)
    optimise(task, model, [weight], steps, rate=3e-2)
    return prompt_of(task.base, weight.float())


def fully_tuned(task: Task, steps: int) -> BaseModel:
    network = copy.deepcopy(task.base.network).requires_grad_(True)
    optimise(task, network, list(network.parameters()), steps, rate=3e-4)
    return replace(task.base, network=network.eval().requires_grad_(False))


def optimise(task: Task, model: Any, parameters: Sequence[Any], steps: int, *, rate: float) -> None:
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for some in itertools.islice(batches(task.examples, BATCH), steps):
        model(**padded(task.base, some)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def prompt_of(base: BaseModel, matrix_PD: torch.Tensor) -> SoftPrompt:
    matrix = matrix_PD.detach().cpu().numpy()
    return SoftPrompt(matrix, Metadata(name="prompt", placement="start", base=base.ref))


def peft_model(task: Task, matrix: torch.Tensor) -> tuple[Any, torch.Tensor]:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    network = task.theirs()
    # PEFT 0.21 takes it along for `generate`; transformers has none any more.
    network._prepare_encoder_decoder_kwargs_for_generation = None
    config = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=len(matrix), num_transformer_submodules=1
    )
    model = get_peft_model(network, config)
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data.copy_(matrix)
    return model, weight


# What comes of it --------------------------------------------------------------------------------------------------------


def quality(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Equal steps, batches of 32."""
    scores, lines = task.logps({}), []
    ways = {
        "ours": lambda: ours(task, options.steps),
        "lester": lambda: ours(task, options.steps, recipe="lester", tokens=TOKENS),
        "peft": lambda: by_peft(task, options.steps),
        "full": lambda: fully_tuned(task, options.steps),
    }
    for name, way in ways.items():
        began = time.monotonic()
        made = way()
        seconds = round(time.monotonic() - began, 1)
        if isinstance(made, SoftPrompt):
            scores[name] = task.logps({name: made})[name]
        else:
            scores[name] = task.logps({}, made)["no prompt"]
        lines.append({"way": name, "steps": options.steps, **scores[name].line(), "train_s": seconds})
        print(lines[-1], flush=True)
    lines.append({"way": "no prompt", **scores["no prompt"].line()})
    others = ("no prompt", "lester", "peft", "full")
    return lines + [
        claim(f"ours is better than {other}", scores["ours"].nll_N, scores[other].nll_N) for other in others
    ]


def ablations(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Section 3.2 of Lester et al., and section 6, its ensembles."""
    wanted: dict[str, dict[str, Any]] = {
        **{f"{n} virtual tokens": {"tokens": n} for n in (1, 5, 20, 100)},
        **{f"start: {init}": {"init": init} for init in ("random", "vocab", "data", "labels")},
        **{f"seed {seed}": {"seed": seed} for seed in range(1, MEMBERS)},
    }
    made: dict[str, SoftPrompt] = {}
    scores, lines = task.logps({}), []
    for name, how in wanted.items():
        # 20 tokens from the labels are a run of both tables.
        made[name] = made["20 virtual tokens"] if name == "start: labels" else ours(task, options.steps, **how)
        scores[name] = task.logps({name: made[name]})[name]
        lines.append({"run": name, "steps": options.steps, **scores[name].line()})
        print(lines[-1], flush=True)
    members = [scores[name] for name in ("20 virtual tokens", *(f"seed {seed}" for seed in range(1, MEMBERS)))]
    # With two labels the majority is right where most members are.
    vote_N = (np.mean([one.hits_N for one in members], axis=0) > 0.5).astype(float)
    lines.append(
        {"run": f"vote of {MEMBERS} seeds", "accuracy": round(float(vote_N.mean()), 4), "interval": spread(vote_N)}
    )
    pairs = {
        "20 tokens are better than 1": ("20 virtual tokens", "1 virtual tokens"),
        "100 tokens are better than 20": ("100 virtual tokens", "20 virtual tokens"),
        "class labels are a better start than random numbers": ("start: labels", "start: random"),
        "words are a better start than random numbers": ("start: vocab", "start: random"),
    }
    said = [claim(text, scores[one].nll_N, scores[other].nll_N) for text, (one, other) in pairs.items()]
    # A vote has no probabilities: by its errors.
    wrong_N = np.mean([1 - one.hits_N for one in members], axis=0)
    said.append(claim("a vote is better than its members are on average", 1 - vote_N, wrong_N))
    if options.before:
        earlier = replace(task, base=load(options.before, device=options.device, dtype=options.dtype))
        before = earlier.logps({"before": ours(earlier, options.steps)})["before"]
        lines.append({"run": "before the model learnt prefixes", **before.line()})
        said.append(claim("a model that learnt prefixes is better", scores["20 virtual tokens"].nll_N, before.nll_N))
    return lines + said


def claim(text: str, one_N: Values, other_N: Values) -> dict[str, Any]:
    """Whether the first loses less than the other."""
    less_N = other_N - one_N
    low, high = spread(less_N)
    verdict = "held" if low > 0 else "did not hold" if high < 0 else "cannot be said"
    return {"claim": text, "verdict": verdict, "less": round(float(less_N.mean()), 4), "interval": (low, high)}
