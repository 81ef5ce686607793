"""Short answers in free words: what a model writes behind each row, held against the answer that is right.

Written greedily, up to the first line break. Exact match and token F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv
1606.05250): case, punctuation, the articles and runs of white space do not count; F1 is over the words that both have, as
often as both have them.
The NLL is that of the right answer and the end of text behind it, nats a token.

Shape key: N rows, C conditions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError
from sordino.evaluation.answers import TaskConfig, check_room, task_conditions
from sordino.evaluation.conditions import Condition
from sordino.evaluation.confidence import MIN_UNITS, Floats, interval, resampled_means
from sordino.evaluation.report import Estimate
from sordino.evaluation.scoring import Progress, nll_of_windows
from sordino.evaluation.tasks import Rows, check_rows, rows_behind
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import MAX_TOKENS, Metadata, Placement, SoftPrompt
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
    """One held-out set. written: for each condition the answers, in the order of the rows."""

    name: str
    rows: int
    lines: tuple[FreeLine, ...]
    written: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class FreeReport:
    """sets: one a held-out set, all with the same lines."""

    sets: tuple[FreeSet, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def normalised(answer: str) -> list[str]:
    """The words that count."""
    return _ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split()


def exact_match(said: str, right: str) -> float:
    return float(normalised(said) == normalised(right))


def token_f1(said: str, right: str) -> float:
    """Harmonic mean of precision and recall over words, 0 to 1; of two answers without words 1."""
    own, other = normalised(said), normalised(right)
    if not own or not other:
        return float(own == other)
    common = sum((Counter(own) & Counter(other)).values())
    return 2 * common / (len(own) + len(other))


def answer_freely(
    base: BaseModel,
    prompts: Mapping[str, SoftPrompt],
    heldout: Mapping[str, Sequence[Piece]],
    config: TaskConfig,
    *,
    max_tokens: int,
    instructions: Sequence[str] = (),
    examples: Sequence[Piece] = (),
    progress: Progress = lambda done, total: None,
) -> FreeReport:
    """Measure soft prompts (by label) on held-out sets (by name) of questions and short answers.

    max_tokens: of a written answer. Raises ConfigError, DataError, OutOfMemory.
    """
    for name, rows in (*heldout.items(), *([("--examples", examples)] if examples else [])):
        check_rows(rows, name)
    conditions = task_conditions(base, prompts, config, instructions or [DEFAULT_INSTRUCTION], examples)
    for condition in conditions:
        # Text in front is given as vectors, as a soft prompt is.
        if condition.tokens > MAX_TOKENS:
            raise ConfigError(
                "what stands in front is too long to write behind", where=f"{condition.kind} {condition.label[:40]!r}",
                expected=f"at most {MAX_TOKENS} tokens", got=condition.tokens, do="give fewer --shots",
            )  # fmt: skip
    total = sum(len(rows) for rows in heldout.values()) * len(conditions)
    sets, notes, done = [], [], 0
    for name, rows in heldout.items():
        nothing = [("",)] * len(rows)
        asked = [rows_behind(base, condition, rows, nothing, config.row_tokens) for condition in conditions]
        notes += [f"{name}: {asked[0].note}"] if asked[0].note else []
        for of in asked:
            check_room(base, [of.front], max(map(len, of.ids)) + max_tokens)
        nll_NC, tokens_N = _losses(base, conditions, rows, config)
        written = []
        for of in asked:
            written.append(_written(base, of, max_tokens))
            done += len(rows)
            progress(done, total)
        right = [piece.text for piece in rows]
        sets.append(
            FreeSet(name, len(rows), _lines(conditions, written, right, nll_NC, tokens_N, config), tuple(written))
        )
    return FreeReport(tuple(sets), tuple(notes))


def _losses(
    base: BaseModel, conditions: Sequence[Condition], rows: Sequence[Piece], config: TaskConfig
) -> tuple[Floats, Floats]:
    """NLL [N, C] of the right answers in nats, and their tokens [N] behind the first condition."""
    end = () if base.tokenizer.eos_token_id is None else (int(base.tokenizer.eos_token_id),)
    nll_CN, tokens_CN = [], []
    for condition in conditions:
        behind = rows_behind(base, condition, rows, [(piece.text,) for piece in rows], config.row_tokens)
        windows = []
        for ids, (answer,), piece in zip(behind.ids, behind.answers, rows, strict=True):
            right = (*answer, *end)
            windows.append(Example((*ids, *right), (False,) * len(ids) + (True,) * len(right), piece.name))
        nll_CN.append(nll_of_windows(base, [behind.front], windows, pass_tokens=config.pass_tokens)[:, 0])
        tokens_CN.append([sum(window.labelled) for window in windows])
    return np.stack(nll_CN, axis=1), np.array(tokens_CN[0], dtype=float)


def _written(base: BaseModel, asked: Rows, max_tokens: int) -> tuple[str, ...]:
    """What is written behind each row's ids."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, stop=("\n",))
    prompt = as_soft_prompt(base, asked.front)
    answers: list[str] = []
    for at in range(0, len(asked.ids), _BATCH):
        answers += complete(base, [TextRequest(ids, prompt) for ids in asked.ids[at : at + _BATCH]], sampling)
    return tuple(answers)


def as_soft_prompt(base: BaseModel, condition: Condition) -> SoftPrompt | None:
    """A condition as the soft prompt that it is: text in front is its tokens' embeddings. None for nothing in front."""
    if condition.tokens == 0:
        return None
    placement: Placement = "start" if condition.leading else "after_bos"
    matrix_PD = condition.embeds_PD[condition.embeds_PD.shape[0] - condition.tokens :]
    return SoftPrompt(matrix_PD.detach().cpu().numpy(), Metadata(placement=placement))


def _lines(
    conditions: Sequence[Condition],
    written: Sequence[Sequence[str]],
    right: Sequence[str],
    nll_NC: Floats,
    tokens_N: Floats,
    config: TaskConfig,
) -> tuple[FreeLine, ...]:
    exact_NC, f1_NC = (
        np.array([[measure(said, known) for said, known in zip(of, right, strict=True)] for of in written]).T
        for measure in (exact_match, token_f1)
    )
    one_N = np.ones(len(right))

    def drawn(values_NC: Floats, weights_N: Floats) -> Floats | None:
        if len(right) < MIN_UNITS:
            return None
        return resampled_means(values_NC, weights_N, resamples=config.resamples, seed=config.seed)

    exact_RC, f1_RC, nll_RC = drawn(exact_NC, one_N), drawn(f1_NC, one_N), drawn(nll_NC, tokens_N)

    def estimate(value_C: Floats, value_RC: Floats | None, at: int, less: int | None = None) -> Estimate:
        value = float(value_C[at] if less is None else value_C[less] - value_C[at])
        if value_RC is None:
            return Estimate(value, None)
        drawn_R = value_RC[:, at] if less is None else value_RC[:, less] - value_RC[:, at]
        return Estimate(value, interval(drawn_R, len(right)))

    exact_C, f1_C, nll_C = exact_NC.mean(axis=0), f1_NC.mean(axis=0), nll_NC.sum(axis=0) / tokens_N.sum()
    own = {condition.label: at for at, condition in enumerate(conditions) if condition.kind == "soft prompt"}
    return tuple(
        FreeLine(
            condition.kind,
            condition.label,
            condition.tokens,
            estimate(exact_C, exact_RC, at),
            estimate(f1_C, f1_RC, at),
            estimate(nll_C, nll_RC, at),
            {label: estimate(f1_C, f1_RC, at, less=place) for label, place in own.items() if place != at},
        )
        for at, condition in enumerate(conditions)
    )
