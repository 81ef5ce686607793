"""Which answers are right: soft prompts on a task with a closed set of labels, beside what one would do without them.

The lines of a report: each soft prompt; with several, their mean, the best of them and ensembles; mixtures; nothing, instructions,
and instructions with examples in front; and whoever knows only how often each label occurs.

Shape key: N rows, C conditions, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
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
from sordino.evaluation.label_scores import Job, LabelTree, edge_logps
from sordino.evaluation.mixture_answers import mixture_logps, mixture_weights
from sordino.evaluation.scoring import Progress
from sordino.evaluation.tasks import Labels, Rows, check_rows, drawn_shots, label_trees, labels_of, rows_behind
from sordino.models.base_model import BaseModel
from sordino.models.context import check_context
from sordino.prompts.mixture import Mixture, StoredPrompt
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
    prompts: Mapping[str, StoredPrompt],
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
    mixtures = {label: prompt for label, prompt in prompts.items() if isinstance(prompt, Mixture)}
    alone = {label: prompt for label, prompt in prompts.items() if isinstance(prompt, SoftPrompt)}
    plain = task_conditions(base, alone, config, instructions or [default_instruction(known)], examples)
    # The components of mixtures are no lines of their own.
    parts = [[soft_prompt(base, label, part) for part in mixture.components] for label, mixture in mixtures.items()]
    asked = {name: _asked(base, [plain, *parts], rows, known, config) for name, rows in heldout.items()}
    notes = (
        []
        if examples
        else ["how often labels occur is taken from the held-out rows themselves: --examples says better"]
    )
    sets, done, total = [], 0, len(every) * (len(plain) + sum(map(len, parts)))
    for name, rows in heldout.items():
        right_N = np.array([known.index(piece) for piece in rows], dtype=np.int64)
        seen = np.array([known.index(piece) for piece in examples], dtype=np.int64) if examples else right_N
        notes += [f"{name}: {asked[name][0].rows.note}"] if asked[name][0].rows.note else []
        never = [text.strip() for at, text in enumerate(known.texts) if at not in right_N]
        notes += [f"{name}: no row has the label {', '.join(never)}"] if never else []
        scored = []
        for group in asked[name]:
            scored.append(_scored(base, group, config, _behind(progress, done, total)))
            done += len(rows) * len(group.conditions)
        count = len(asked[name]) - len(parts)
        logp_NCL = np.concatenate([_of_labels(of, len(known.texts)) for of in scored[:count]], axis=1)
        own = [_line(condition, logp_NCL[:, c], right_N) for c, condition in enumerate(plain)]
        lines = [
            *own[: len(alone)],
            *(together(own[: len(alone)], right_N) if len(alone) > 1 else []),
            *_mixtures(base, mixtures, asked[name][count:], scored[count:], right_N),
            *own[len(alone) :],
            Answers("majority", "majority label", 0, majority(seen, len(known.texts), len(rows))),
        ]
        trees = asked[name][0].trees
        tokens_N = np.array([len(tree.ids[at]) for tree, at in zip(trees, right_N, strict=True)])
        found = summarise(lines, right_N, tokens_N, resamples=config.resamples, seed=config.seed)
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
        check_context(
            {"in front": condition.length, "text": tokens},
            base.context_length,
            what="a row with its context and its answer",
            where=f"{condition.kind} {condition.label[:40]!r}",
            do="lower --row-tokens, --shots or --max-tokens",
        )


def default_instruction(labels: Labels) -> str:
    return f"Each of these is answered with one of: {', '.join(text.strip() for text in labels.texts)}."


def score_rows(
    base: BaseModel, conditions: Sequence[Condition], pieces: Sequence[Piece], labels: Labels, config: TaskConfig
) -> Floats:
    """log p(label | condition, row) [N, C, L] among all texts."""
    groups = _asked(base, [conditions], pieces, labels, config)
    scored = [_scored(base, group, config, lambda done, total: None) for group in groups]
    return np.concatenate([_of_labels(of, len(labels.texts)) for of in scored], axis=1)


@dataclass(frozen=True)
class _Asked:
    """Conditions, the same rows behind each of them, and the trees of the labels behind those."""

    conditions: tuple[Condition, ...]
    rows: Rows
    trees: tuple[LabelTree, ...]


def _asked(
    base: BaseModel,
    several: Sequence[Sequence[Condition]],
    pieces: Sequence[Piece],
    labels: Labels,
    config: TaskConfig,
) -> list[_Asked]:
    """Groups of conditions, in their order: neighbours of one list, where a row has the same tokens behind all of them.

    Raises ConfigError where a row does not fit the model's context.
    """
    found: list[_Asked] = []
    behind: dict[str, tuple[Rows, tuple[LabelTree, ...]]] = {}
    for text, neighbours in ((text, tuple(same)) for of in several for text, same in groupby(of, lambda c: c.text)):
        if text not in behind:
            shortest = min(neighbours, key=lambda condition: condition.length)
            rows = rows_behind(base, shortest, pieces, [labels.texts] * len(pieces), config.row_tokens)
            behind[text] = rows, tuple(label_trees(rows.answers, labels.texts))
        rows, trees = behind[text]
        conditions = (rows.front,) if text else neighbours
        longest = max(len(ids) + tree.depth for ids, tree in zip(rows.ids, trees, strict=True))
        check_room(base, conditions, longest)
        found.append(_Asked(conditions, rows, trees))
    return found


# Rows whose labels have the same tokens, their tree, and log p of its tokens [n, C, E].
_Part = tuple[list[int], LabelTree, Floats]


def _scored(base: BaseModel, asked: _Asked, config: TaskConfig, progress: Progress) -> list[_Part]:
    found: list[_Part] = []
    done, total = 0, len(asked.trees) * len(asked.conditions)
    for tree in dict.fromkeys(asked.trees):
        at = [n for n, other in enumerate(asked.trees) if other is tree]
        jobs = [Job(c, asked.rows.ids[n]) for n in at for c in range(len(asked.conditions))]
        told = _behind(progress, done, total)
        logp_JE = edge_logps(base, asked.conditions, jobs, tree, pass_tokens=config.pass_tokens, progress=told)
        found.append((at, tree, logp_JE.reshape(len(at), len(asked.conditions), -1)))
        done += len(jobs)
    return found


def _of_labels(parts: Sequence[_Part], labels: int) -> Floats:
    """[N, C, L] of all rows."""
    logp_NCL = np.zeros((sum(len(at) for at, _, _ in parts), parts[0][2].shape[1], labels))
    for at, tree, logp_nCE in parts:
        for c in range(logp_NCL.shape[1]):
            logp_NCL[at, c] = tree.sums(logp_nCE[:, c])
    return logp_NCL


def _line(condition: Condition, logp_NL: Floats, right_N: Ints) -> Answers:
    raw_N = logp_NL[np.arange(len(right_N)), right_N]
    return Answers(condition.kind, condition.label, condition.tokens, closed(logp_NL), raw_N)


def _mixtures(
    base: BaseModel,
    mixtures: Mapping[str, Mixture],
    asked: Sequence[_Asked],
    scored: Sequence[Sequence[_Part]],
    right_N: Ints,
) -> list[Answers]:
    """A line a mixture, from what its components say."""
    lines = []
    for (label, mixture), of, parts in zip(mixtures.items(), asked, scored, strict=True):
        weights_NK = mixture_weights(base, mixture, of.rows.ids)
        logp_NL = np.zeros((len(right_N), len(of.trees[0].ids)))
        for at, tree, logp_nKE in parts:
            logp_NL[at], among_all = mixture_logps(mixture, logp_nKE, weights_NK[at], tree)
        raw_N = logp_NL[np.arange(len(right_N)), right_N] if among_all else None
        lines.append(Answers("mixture", label, mixture.n_tokens, closed(logp_NL), raw_N))
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
