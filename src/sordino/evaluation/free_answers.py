"""Short answers in free words: what a model writes after each row, compared with the right answer.

Decoding is greedy, up to the first line break. Exact match and token F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv
1606.05250): case, punctuation, articles and runs of white space do not count, and F1 is over the words of both answers with their
counts. The NLL is that of the right answer and the end of text after it, nats a token.

Shape key: N rows, C conditions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError
from sordino.evaluation.answers import check_task_room, task_conditions
from sordino.evaluation.conditions import DEFAULT_BASELINES, Baselines, Condition
from sordino.evaluation.confidence import Estimate, Floats, Units, mean_estimates
from sordino.evaluation.config import TaskConfig
from sordino.evaluation.scoring import Progress, nll_of_windows
from sordino.evaluation.tasks import TaskRows, check_task, rows_behind
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import MAX_TOKENS, Metadata, SoftPrompt
from sordino.texts.examples import Example
from sordino.texts.pieces import Piece

DEFAULT_INSTRUCTION = "Each of these is answered in a few words."
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Texts that are continued at once.
_BATCH = 16


@dataclass(frozen=True)
class FreeLine:
    """differences: by soft prompt, its F1 less this line's, so above 0 where the soft prompt is better."""

    kind: str
    label: str
    tokens: int
    exact_match: Estimate
    f1: Estimate
    nll: Estimate
    differences: Mapping[str, Estimate]


@dataclass(frozen=True)
class FreeSet:
    """The results on one held-out set. written: for each condition the answers, in the order of the rows."""

    name: str
    rows: int
    lines: tuple[FreeLine, ...]
    written: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class FreeReport:
    """sets: one for each held-out set, all with the same lines."""

    sets: tuple[FreeSet, ...]
    notes: tuple[str, ...]


def normalised(answer: str) -> list[str]:
    """The words that count."""
    return _ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split()


def exact_match(answer: str, right: str) -> float:
    return float(normalised(answer) == normalised(right))


def token_f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall over words, 0 to 1; of two answers without words 1."""
    own, other = normalised(answer), normalised(right)
    if not own or not other:
        return float(own == other)
    common = sum((Counter(own) & Counter(other)).values())
    return 2 * common / (len(own) + len(other))


def answer_freely(
    base: BaseModel,
    prompts: Mapping[str, SinglePrompt],
    heldout: Mapping[str, Sequence[Piece]],
    config: TaskConfig,
    *,
    max_tokens: int,
    baselines: Baselines = DEFAULT_BASELINES,
    progress: Progress = lambda done, total: None,
) -> FreeReport:
    """Measure soft prompts (by label) on held-out sets (by name) of questions and short answers.

    max_tokens: of a written answer. baselines: instructions, and training rows for `config.shots`. Raises ConfigError, DataError,
    OutOfMemory.
    """
    check_task(heldout, baselines.texts)
    instructions = baselines.instructions or [DEFAULT_INSTRUCTION]
    conditions = task_conditions(base, prompts, config, replace(baselines, instructions=instructions))
    for condition in conditions:
        # A text is given to the engine as vectors, as a soft prompt is.
        if condition.tokens > MAX_TOKENS:
            raise ConfigError(
                "the instruction and its examples are too long to write after",
                where=f"{condition.kind} {condition.label[:40]!r}",
                expected=f"at most {MAX_TOKENS} tokens", got=condition.tokens, do="give fewer --shots",
            )  # fmt: skip
    total = sum(len(rows) for rows in heldout.values()) * len(conditions)
    sets, notes, done = [], [], 0
    for name, rows in heldout.items():
        nothing = [("",)] * len(rows)
        behind = [rows_behind(base, condition, rows, nothing, config.row_tokens) for condition in conditions]
        notes += [f"{name}: {behind[0].note}"] if behind[0].note else []
        for of in behind:
            check_task_room(base, of.condition, max(map(len, of.ids)) + max_tokens)
        nll_NC, tokens_N = _losses(base, conditions, rows, config)
        written = []
        for of in behind:
            written.append(_written(base, of, max_tokens))
            done += len(rows)
            progress(done, total)
        right = [piece.text for piece in rows]
        lines = _lines(conditions, written, right, (nll_NC, tokens_N), config)
        sets.append(FreeSet(name, len(rows), lines, tuple(written)))
    return FreeReport(tuple(sets), tuple(notes))


def _losses(
    base: BaseModel, conditions: Sequence[Condition], rows: Sequence[Piece], config: TaskConfig
) -> tuple[Floats, Floats]:
    """NLL [N, C] of the right answers in nats, and their tokens [N] after the first condition."""
    end = () if base.tokenizer.eos_token_id is None else (int(base.tokenizer.eos_token_id),)
    nll_CN, tokens_CN = [], []
    for condition in conditions:
        behind = rows_behind(base, condition, rows, [(piece.text,) for piece in rows], config.row_tokens)
        windows = []
        for ids, (answer,), piece in zip(behind.ids, behind.answers, rows, strict=True):
            right = (*answer, *end)
            window = Example((*ids, *right), (False,) * len(ids) + (True,) * len(right), piece.name)
            windows.append(window if base.encoder_decoder is None else replace(window, input=len(ids)))
        nll_CN.append(nll_of_windows(base, [behind.condition], windows, pass_tokens=config.pass_tokens)[:, 0])
        tokens_CN.append([sum(window.labelled) for window in windows])
    return np.stack(nll_CN, axis=1), np.array(tokens_CN[0], dtype=float)


def _written(base: BaseModel, rows: TaskRows, max_tokens: int) -> tuple[str, ...]:
    """The answer written after each row."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, stop=("\n",))
    prompt = as_soft_prompt(base, rows.condition)
    answers: list[str] = []
    for at in range(0, len(rows.ids), _BATCH):
        answers += complete(base, [TextRequest(ids, prompt) for ids in rows.ids[at : at + _BATCH]], sampling)
    return tuple(answers)


def as_soft_prompt(base: BaseModel, condition: Condition) -> Prompt | None:
    """A condition as a soft prompt: of a text, its tokens' embeddings. None for no prompt."""
    if not condition.ids:
        return condition.prompt
    ids_T = torch.tensor(condition.ids, device=base.device)
    return SoftPrompt(base.embed(ids_T).float().cpu().numpy(), Metadata(placement="after_bos"))


def _lines(
    conditions: Sequence[Condition],
    written: Sequence[Sequence[str]],
    right: Sequence[str],
    losses: tuple[Floats, Floats],
    config: TaskConfig,
) -> tuple[FreeLine, ...]:
    """losses: as `_losses` gives them."""
    nll_NC, tokens_N = losses
    one_N, rows = np.ones(len(right)), Units(np.arange(len(right)), "row")
    exact, f1 = (
        np.array([[measure(answer, known) for answer, known in zip(of, right, strict=True)] for of in written]).T
        for measure in (exact_match, token_f1)
    )
    exacts, f1s, nlls = (
        mean_estimates(value_NC, weight_N, rows, resamples=config.resamples, seed=config.seed)
        for value_NC, weight_N in ((exact, one_N), (f1, one_N), (nll_NC, tokens_N))
    )
    own = {condition.label: at for at, condition in enumerate(conditions) if condition.kind == "soft prompt"}
    return tuple(
        FreeLine(
            condition.kind,
            condition.label,
            condition.tokens,
            exacts.of(at),
            f1s.of(at),
            nlls.of(at),
            {label: f1s.of(place, less=at) for label, place in own.items() if place != at},
        )
        for at, condition in enumerate(conditions)
    )
