"""Soft prompts on a task with a closed set of labels: which answers are right, and what baselines reach.

The lines of a report: each soft prompt; with several, their mean, the best of them and ensembles; mixtures; no prompt,
instructions, and instructions with examples; the label frequencies alone.

Shape key: N rows, C conditions, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

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
    mixture_logps,
    summarise,
)
from sordino.evaluation.conditions import (
    DEFAULT_BASELINES,
    Baselines,
    Condition,
    check_room,
    instruction,
    mixture,
    no_prompt,
    soft_prompt,
    with_examples,
)
from sordino.evaluation.confidence import Floats
from sordino.evaluation.config import TaskConfig
from sordino.evaluation.label_scores import LabelTree, TextBehind, edge_logps
from sordino.evaluation.mixed import mixture_weights
from sordino.evaluation.scoring import Progress, shifted
from sordino.evaluation.tasks import Labels, TaskRows, check_task, drawn_shots, label_trees, labels_of, rows_behind
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.texts.pieces import Piece

_LOWER = "lower --row-tokens, --shots or --max-tokens"


@dataclass(frozen=True)
class TaskSet:
    """The results on one held-out set."""

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
    """labels: without white space around them. sets: one for each held-out set, all with the same lines."""

    labels: tuple[str, ...]
    sets: tuple[TaskSet, ...]
    notes: tuple[str, ...]


def classify(
    base: BaseModel,
    prompts: Mapping[str, StoredPrompt],
    heldout: Mapping[str, Sequence[Piece]],
    config: TaskConfig,
    *,
    labels: Sequence[str] = (),
    baselines: Baselines = DEFAULT_BASELINES,
    progress: Progress = lambda done, total: None,
) -> TaskReport:
    """Measure soft prompts and mixtures (by label) on held-out sets (by name) of rows whose completions are labels.

    labels: by default those of the completions. baselines: instructions, by default one that names the labels, and training rows,
    for `config.shots` and for label frequencies. Raises ConfigError, DataError, OutOfMemory.
    """
    examples = baselines.texts
    check_task(heldout, examples)
    every = [piece for rows in heldout.values() for piece in rows]
    known = labels_of(base, [*every, *examples], labels)
    mixtures = {label: prompt for label, prompt in prompts.items() if isinstance(prompt, Mixture)}
    alone = {label: prompt for label, prompt in prompts.items() if not isinstance(prompt, Mixture)}
    instructions = baselines.instructions or [
        f"Each of these is answered with one of: {', '.join(text.strip() for text in known.texts)}."
    ]
    plain = task_conditions(base, alone, config, replace(baselines, instructions=instructions))
    # Components of mixtures have no lines of their own.
    parts = [mixture(base, label, mixed).components for label, mixed in mixtures.items()]
    grouped = {name: _groups(base, [plain, *parts], rows, known, config) for name, rows in heldout.items()}
    notes = [] if examples else ["the label frequencies are those of the held-out rows: better give --examples"]
    sets, done, total = [], 0, len(every) * (len(plain) + sum(map(len, parts)))
    for name, rows in heldout.items():
        right_N = known.indices(rows)
        first = grouped[name][0][0]
        notes += [f"{name}: {first.rows.note}"] if first.rows.note else []
        absent = [text.strip() for at, text in enumerate(known.texts) if at not in right_N]
        notes += [f"{name}: no row has the label {', '.join(absent)}"] if absent else []
        scored = []
        for groups in grouped[name]:
            scored.append(_scored(base, groups, config, shifted(progress, done, total)))
            done += len(rows) * sum(len(group.conditions) for group in groups)
        logp_NCL = _label_logps(scored[0], known)
        own = [_answers(condition, logp_NCL[:, c], right_N) for c, condition in enumerate(plain)]
        lines = [
            *own[: len(alone)],
            *(together(own[: len(alone)], right_N) if len(alone) > 1 else []),
            *(
                _mixture_answers(base, label, mixed, groups[0], of[0], right_N)
                for (label, mixed), groups, of in zip(mixtures.items(), grouped[name][1:], scored[1:], strict=True)
            ),
            *own[len(alone) :],
            Answers(
                "majority",
                "majority label",
                0,
                majority(known.indices(examples) if examples else right_N, len(known.texts), len(rows)),
            ),
        ]
        tokens_N = np.array([len(tree.ids[at]) for tree, at in zip(first.trees, right_N, strict=True)])
        found = summarise(lines, right_N, tokens_N, resamples=config.resamples, seed=config.seed)
        sets.append(TaskSet(name, len(rows), found))
    return TaskReport(tuple(text.strip() for text in known.texts), tuple(sets), tuple(notes))


def task_conditions(
    base: BaseModel, prompts: Mapping[str, SinglePrompt], config: TaskConfig, baselines: Baselines
) -> list[Condition]:
    """Soft prompts, no prompt, the instructions, and each instruction with examples."""
    if config.shots and not baselines.texts:
        raise ConfigError("there are no rows to show as examples", where="--shots", do="give --examples too")
    drawn = [drawn_shots(baselines.texts, count, seed=config.seed) for count in config.shots]
    texts = list(dict.fromkeys(baselines.instructions))
    return [
        *(soft_prompt(base, label, prompt) for label, prompt in prompts.items()),
        no_prompt(base),
        *(instruction(base, text) for text in texts),
        *(with_examples(base, text, shots) for text in texts for shots in drawn),
    ]


def check_task_room(base: BaseModel, condition: Condition, tokens: int) -> None:
    """Raise ConfigError unless a row and its answer, `tokens` together, fit after the condition."""
    check_room(base, condition, tokens, do=_LOWER)


def score_rows(
    base: BaseModel, conditions: Sequence[Condition], pieces: Sequence[Piece], labels: Labels, config: TaskConfig
) -> Floats:
    """log p(label | condition, row) [N, C, L] among all texts."""
    (groups,) = _groups(base, [conditions], pieces, labels, config)
    return _label_logps(_scored(base, groups, config, lambda done, total: None), labels)


@dataclass(frozen=True)
class _RowGroup:
    """Conditions, the same rows after each of them, and the label tree of each row."""

    conditions: tuple[Condition, ...]
    rows: TaskRows
    trees: tuple[LabelTree, ...]


def _groups(
    base: BaseModel, lists: Sequence[Sequence[Condition]], pieces: Sequence[Piece], labels: Labels, config: TaskConfig
) -> list[list[_RowGroup]]:
    """Each list cut into runs of conditions after which a row has the same tokens.

    Raises ConfigError where a row does not fit the model's context.
    """
    behind: dict[str, tuple[TaskRows, tuple[LabelTree, ...]]] = {}

    def group(text: str, conditions: tuple[Condition, ...]) -> _RowGroup:
        if text not in behind:
            shortest = min(conditions, key=lambda condition: condition.length)
            rows = rows_behind(base, shortest, pieces, [labels.texts] * len(pieces), config.row_tokens)
            behind[text] = rows, tuple(label_trees(rows.answers, labels.texts))
        rows, trees = behind[text]
        conditions = (rows.condition,) if text else conditions
        longest = max(len(ids) + tree.depth for ids, tree in zip(rows.ids, trees, strict=True))
        for condition in conditions:
            check_task_room(base, condition, longest)
        return _RowGroup(conditions, rows, trees)

    return [[group(text, tuple(same)) for text, same in groupby(of, lambda c: c.text)] for of in lists]


# Rows whose labels have the same tokens, their tree, and log p of its tokens [n, C, E].
_Part = tuple[list[int], LabelTree, Floats]


def _scored(base: BaseModel, groups: Sequence[_RowGroup], config: TaskConfig, progress: Progress) -> list[list[_Part]]:
    """The parts of every group."""
    found: list[list[_Part]] = []
    done, total = 0, sum(len(group.trees) * len(group.conditions) for group in groups)
    for group in groups:
        found.append([])
        count = len(group.conditions)
        for tree in dict.fromkeys(group.trees):
            at = [n for n, other in enumerate(group.trees) if other is tree]
            texts = [TextBehind(c, group.rows.ids[n]) for n in at for c in range(count)]
            reported = shifted(progress, done, total)
            logp_JE = edge_logps(base, group.conditions, texts, tree, pass_tokens=config.pass_tokens, progress=reported)
            found[-1].append((at, tree, logp_JE.reshape(len(at), count, -1)))
            done += len(texts)
    return found


def _label_logps(scored: Sequence[Sequence[_Part]], labels: Labels) -> Floats:
    """[N, C, L] of all rows and all groups' conditions."""
    found = []
    for parts in scored:
        logp_NCL = np.zeros((sum(len(at) for at, _, _ in parts), parts[0][2].shape[1], len(labels.texts)))
        for at, tree, logp_nCE in parts:
            for c in range(logp_NCL.shape[1]):
                logp_NCL[at, c] = tree.sums(logp_nCE[:, c])
        found.append(logp_NCL)
    return np.concatenate(found, axis=1)


def _answers(condition: Condition, logp_NL: Floats, right_N: Ints) -> Answers:
    raw_N = logp_NL[np.arange(len(right_N)), right_N]
    return Answers(condition.kind, condition.label, condition.tokens, closed(logp_NL), raw_N)


def _mixture_answers(
    base: BaseModel, label: str, mixed: Mixture, group: _RowGroup, parts: Sequence[_Part], right_N: Ints
) -> Answers:
    """A mixture's line, from its components' log-probabilities."""
    weights_NK = mixture_weights(base, mixed, group.rows.ids)
    logp_NL = np.zeros((len(right_N), len(group.trees[0].ids)))
    for at, tree, logp_nKE in parts:
        logp_NL[at], among_all = mixture_logps(mixed, logp_nKE, weights_NK[at], tree)
    raw_N = logp_NL[np.arange(len(right_N)), right_N] if among_all else None
    return Answers("mixture", label, mixed.n_tokens, closed(logp_NL), raw_N)


def together(members: Sequence[Answers], right_N: Ints) -> list[Answers]:
    """The mean of several soft prompts' measures, the best of them, and their ensembles. They must be the report's first lines."""
    tokens = max(member.tokens for member in members)
    hits = [int((member.logp_NL.argmax(axis=1) == right_N).sum()) for member in members]
    best = members[int(np.argmax(hits))]
    return [
        Answers(
            "mean member",
            f"{len(members)} soft prompts",
            tokens,
            members[0].logp_NL,
            members=tuple(range(len(members))),
        ),
        # Chosen on the rows that it is measured on, so it flatters.
        replace(best, kind="best member"),
        *(
            Answers("ensemble", name, tokens, ensembled([member.logp_NL for member in members], rule))
            for rule, name in ENSEMBLES
        ),
    ]
