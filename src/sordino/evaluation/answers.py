"""Which answers are right: soft prompts on a task with a closed set of labels, beside what one would do without them.

The lines of a report: each soft prompt; with several, their mean, the best of them and ensembles; mixtures; nothing, instructions,
and instructions with examples in front; and whoever knows only how often each label occurs.

Shape key: N rows, C conditions, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sordino.errors import ConfigError
from sordino.evaluation.classification import (
    ENSEMBLES,
    Answers,
    Ints,
    TaskLine,
    closed,
    ensembled,
    majority,
    summarise,
)
from sordino.evaluation.conditions import Condition, instruction, no_prompt, soft_prompt, with_examples
from sordino.evaluation.confidence import Floats
from sordino.evaluation.label_scores import Job, edge_logps
from sordino.evaluation.mixture_answers import mixture_logps, mixture_weights
from sordino.evaluation.scoring import Progress
from sordino.evaluation.tasks import Labels, Texts, check_rows, cut_texts, drawn_shots, labels_of
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import Mixture, Prompt
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.texts.pieces import Piece


@dataclass(frozen=True)
class TaskConfig:
    """row_tokens: a prompt's longest part that is read. shots: numbers of examples to try behind each instruction."""

    row_tokens: int = 256
    shots: tuple[int, ...] = ()
    resamples: int = 10_000
    pass_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value in (("--row-tokens", self.row_tokens), ("--pass-tokens", self.pass_tokens)):
            if value < 1:
                raise ConfigError("a setting is out of range", where=flag, expected="1 or more", got=value)
        if any(count < 1 for count in self.shots) or len(set(self.shots)) < len(self.shots):
            raise ConfigError(
                "a number of examples is out of range or given twice",
                where="--shots",
                expected="1 or more, each once",
                got=", ".join(map(str, self.shots)),
            )


@dataclass(frozen=True)
class TaskSet:
    """One held-out set, measured."""

    name: str
    rows: int
    lines: tuple[TaskLine, ...]

    def own(self, label: str) -> TaskLine:
        """The line of a soft prompt or mixture. Raises KeyError."""
        for line in self.lines:
            if line.kind in ("soft prompt", "mixture") and line.label == label:
                return line
        raise KeyError(label)


@dataclass(frozen=True)
class TaskReport:
    """labels: as shown. sets: one a held-out set, all with the same lines."""

    labels: tuple[str, ...]
    sets: tuple[TaskSet, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def classify(
    base: BaseModel,
    prompts: Mapping[str, Prompt],
    heldout: Mapping[str, Sequence[Piece]],
    config: TaskConfig,
    *,
    labels: Sequence[str] = (),
    instructions: Sequence[str] = (),
    examples: Sequence[Piece] = (),
    progress: Progress = lambda done, total: None,
) -> TaskReport:
    """Measure soft prompts and mixtures (by label) on held-out sets (by name) of rows whose completions are labels.

    labels: by default what the completions take. instructions: by default one that names the labels. examples: training rows, for
    `config.shots` and for how often labels occur. Raises ConfigError, DataError, OutOfMemory.
    """
    for name, rows in (*heldout.items(), *([("--examples", examples)] if examples else [])):
        check_rows(rows, name)
    every = [piece for rows in heldout.values() for piece in rows]
    known = labels_of(base, [*every, *examples], labels)
    seen = np.array([known.index(piece) for piece in examples], dtype=np.int64)
    right = {name: np.array([known.index(piece) for piece in rows], dtype=np.int64) for name, rows in heldout.items()}
    texts = {name: cut_texts(base, rows, config.row_tokens) for name, rows in heldout.items()}
    mixtures = {label: prompt for label, prompt in prompts.items() if isinstance(prompt, Mixture)}
    alone = {label: prompt for label, prompt in prompts.items() if isinstance(prompt, SoftPrompt)}
    plain = task_conditions(base, alone, config, instructions or [default_instruction(known)], examples)
    # The components of mixtures are run beside the others, and are no lines of their own.
    conditions = [*plain, *(soft_prompt(base, label, part) for label, m in mixtures.items() for part in m.components)]
    check_room(base, conditions, max(len(ids) for of in texts.values() for ids in of.ids) + known.tree.depth)
    notes = (
        []
        if examples
        else ["how often labels occur is taken from the held-out rows themselves: --examples says better"]
    )
    sets, done, total = [], 0, len(every) * len(conditions)
    for name, rows in heldout.items():
        told = _behind(progress, done, total)
        logp_NCE = _score_tokens(base, conditions, texts[name], known, config, told)
        done += len(rows) * len(conditions)
        notes += [f"{name}: {texts[name].note}"] if texts[name].note else []
        never = [text.strip() for at, text in enumerate(known.texts) if at not in right[name]]
        notes += [f"{name}: no row has the label {', '.join(never)}"] if never else []
        lines = [
            *_voices(plain[: len(alone)], logp_NCE, right[name], known),
            *_mixtures(base, mixtures, logp_NCE[:, len(plain) :], texts[name], right[name], known, config),
            *(
                _line(condition, known.tree.sums(logp_NCE[:, c]), right[name])
                for c, condition in enumerate(plain[len(alone) :], start=len(alone))
            ),
            Answers(
                "majority",
                "majority label",
                0,
                majority(seen if examples else right[name], len(known.texts), len(rows)),
            ),
        ]
        tokens = [len(ids) for ids in known.tree.ids]
        found = summarise(lines, right[name], tokens, resamples=config.resamples, seed=config.seed)
        sets.append(TaskSet(name, len(rows), found))
    return TaskReport(tuple(text.strip() for text in known.texts), tuple(sets), tuple(notes))


def _behind(progress: Progress, done: int, total: int) -> Progress:
    return lambda now, _: progress(done + now, total)


def task_conditions(
    base: BaseModel,
    prompts: Mapping[str, SoftPrompt],
    config: TaskConfig,
    instructions: Sequence[str],
    examples: Sequence[Piece],
) -> list[Condition]:
    """What stands in front of the rows: soft prompts, nothing, instructions, and those with examples behind them."""
    if config.shots and not examples:
        raise ConfigError("there are no rows to show as examples", where="--shots", do="give --examples too")
    shown = [drawn_shots(examples, count, seed=config.seed) for count in config.shots]
    written = list(dict.fromkeys(instructions))
    return [
        *(soft_prompt(base, label, prompt) for label, prompt in prompts.items()),
        no_prompt(base),
        *(instruction(base, text) for text in written),
        *(with_examples(base, text, shots) for text in written for shots in shown),
    ]


def check_room(base: BaseModel, conditions: Sequence[Condition], tokens: int) -> None:
    """Raise ConfigError unless a row and its answer, `tokens` together, fit behind every condition."""
    for condition in conditions:
        if condition.length + tokens > base.context_length:
            raise ConfigError(
                "what stands in front does not fit the model's context beside a row and its answer",
                where=f"{condition.kind} {condition.label[:40]!r}",
                expected=f"at most {base.context_length} tokens",
                got=f"{condition.length} + {tokens}",
                do="lower --row-tokens, --shots or --max-tokens",
            )


def default_instruction(labels: Labels) -> str:
    return f"Each of these is answered with one of: {', '.join(text.strip() for text in labels.texts)}."


def score_texts(
    base: BaseModel, conditions: Sequence[Condition], texts: Texts, labels: Labels, config: TaskConfig
) -> Floats:
    """log p(label | condition, row) [N, C, L] among all texts."""
    logp_NCE = _score_tokens(base, conditions, texts, labels, config, lambda done, total: None)
    return np.stack([labels.tree.sums(logp_NCE[:, c]) for c in range(len(conditions))], axis=1)


def _score_tokens(
    base: BaseModel,
    conditions: Sequence[Condition],
    texts: Texts,
    labels: Labels,
    config: TaskConfig,
    progress: Progress,
) -> Floats:
    """[N, C, E], token by token of the label tree."""
    jobs = [Job(c, ids) for ids in texts.ids for c in range(len(conditions))]
    logp_JE = edge_logps(base, conditions, jobs, labels.tree, pass_tokens=config.pass_tokens, progress=progress)
    return logp_JE.reshape(len(texts.ids), len(conditions), -1)


def _line(condition: Condition, logp_NL: Floats, right_N: Ints) -> Answers:
    raw_N = logp_NL[np.arange(len(right_N)), right_N]
    return Answers(condition.kind, condition.label, condition.tokens, closed(logp_NL), raw_N)


def _voices(conditions: Sequence[Condition], logp_NCE: Floats, right_N: Ints, labels: Labels) -> list[Answers]:
    """The soft prompts, and where there are several what they say together."""
    lines = [_line(condition, labels.tree.sums(logp_NCE[:, c]), right_N) for c, condition in enumerate(conditions)]
    return [*lines, *(together(lines, right_N) if len(lines) > 1 else [])]


def _mixtures(
    base: BaseModel,
    mixtures: Mapping[str, Mixture],
    logp_NCE: Floats,
    texts: Texts,
    right_N: Ints,
    labels: Labels,
    config: TaskConfig,
) -> list[Answers]:
    """A line a mixture. logp_NCE: of all their components, one mixture's behind another's."""
    lines, begin = [], 0
    for label, mixture in mixtures.items():
        end = begin + len(mixture.components)
        weights_NK = mixture_weights(base, mixture, texts.ids)
        logp_NL, among_all = mixture_logps(mixture, logp_NCE[:, begin:end], weights_NK, labels.tree)
        raw_N = logp_NL[np.arange(len(right_N)), right_N] if among_all else None
        lines.append(Answers("mixture", label, mixture.n_tokens, closed(logp_NL), raw_N))
        begin = end
    return lines


def together(members: Sequence[Answers], right_N: Ints) -> list[Answers]:
    """The mean of several soft prompts' measures, the best of them, and their ensembles. They must be the report's first lines."""
    tokens = max(member.tokens for member in members)
    several = f"{len(members)} soft prompts"
    hits = [int((member.logp_NL.argmax(axis=1) == right_N).sum()) for member in members]
    best = members[int(np.argmax(hits))]
    places = tuple(range(len(members)))
    return [
        Answers("mean member", several, tokens, members[0].logp_NL, members=places),
        # Chosen on the very rows that it is measured on, so it flatters.
        Answers("best member", best.label, best.tokens, best.logp_NL, best.raw_N),
        *(
            Answers("ensemble", name, tokens, ensembled([member.logp_NL for member in members], rule))
            for rule, name in ENSEMBLES
        ),
    ]
