"""Relations as in LAMA (Petroni et al. 2019, arXiv 1909.01066): which object does a model name for a subject?

Protocol for a model that reads from left to right. A template such as "[X] was born in [Y] ." is cut in front of [Y]; with the
subject for [X] it is the text, and candidates are ranked by log p(object | what is in front, text), summed over the object's
tokens, a space in front of its first. Nothing is conditioned on what stands after [Y]: punctuation there is dropped, as LAMA
asks such models only where the object is last, and a template with words after [Y] is left out and counted. Candidates are the
relation's own objects (of any number of tokens), or all words of the vocabulary, where rows whose object is several tokens are
left out and counted. An ensemble of templates and a mixture of soft prompts are p(y|x) = sum_t w_t p(y|x, t) (Qin & Eisner 2021,
arXiv 2104.06599, section 2).

    P@1, P@10    share of rows whose object is the first, or among the first ten       MRR    mean of one over its rank

Shape key: N rows, W views (a template after a soft prompt or nothing), L candidates, S lines, R resamples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sordino.errors import DataError
from sordino.evaluation.conditions import Condition, no_prompt, soft_prompt
from sordino.evaluation.confidence import MIN_UNITS, Estimate, Floats, interval, resampled_means
from sordino.evaluation.label_scores import LabelTree, TextBehind, edge_logps, label_tree
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.texts.files import read_lines
from sordino.texts.joined import join

SUBJECT, OBJECT = "[X]", "[Y]"
Ints = NDArray[np.int64]
# Log-probabilities held at once, in float64: 256 MB.
_CELLS_AT_ONCE = 2**25


@dataclass(frozen=True)
class Fact:
    """A subject and its object. where: "file.jsonl:17"."""

    sub: str
    obj: str
    where: str


@dataclass(frozen=True)
class Template:
    """A sentence with [X] and [Y], and its share of an ensemble (not negative; made to sum to one with the others)."""

    text: str
    weight: float = 1.0

    def before(self, sub: str) -> str:
        """What stands before [Y], without the space, which belongs to the object."""
        return self.text.partition(OBJECT)[0].rstrip(" ").replace(SUBJECT, sub, 1)


@dataclass(frozen=True)
class Candidates:
    """What is ranked: token ids of each, and the index of each object among them. left_out: objects that are not, and why."""

    tree: LabelTree
    index: Mapping[str, int]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class View:
    """One way to ask: a template, after a soft prompt or nothing."""

    template: Template
    prompt: SoftPrompt | None = None


@dataclass(frozen=True)
class ReportLine:
    """A line of the report: views whose predictions are combined; their weights are normalised."""

    label: str
    views: tuple[View, ...]
    weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class RelationLine:
    label: str
    p1: Estimate
    p10: Estimate
    mrr: Estimate


def read_facts(path: Path) -> list[Fact]:
    """JSONL of {"sub", "obj"}; LAMA's own names sub_label and obj_label are known too. Raises DataError."""
    facts = []
    for where, record in _records(path):
        sub, obj = (record.get(key, record.get(f"{key}_label")) for key in ("sub", "obj"))
        if not (isinstance(sub, str) and isinstance(obj, str) and sub.strip() and obj.strip()):
            raise DataError("this is no fact", where=where, expected='{"sub": text, "obj": text}', got=_keys(record))
        facts.append(Fact(sub.strip(), obj.strip(), where))
    if not facts:
        raise DataError("there are no facts", where=path)
    return facts


def read_templates(path: Path) -> list[Template]:
    """JSONL of {"template", "weight"}; a weight left out is 1. Raises DataError."""
    templates = []
    for where, record in _records(path):
        text, weight = record.get("template"), record.get("weight", 1.0)
        if not isinstance(text, str) or text.count(SUBJECT) != 1 or text.count(OBJECT) != 1:
            raise DataError(
                "this is no template", where=where, expected="a sentence with one [X] and one [Y]", got=_keys(record)
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise DataError("this is no weight", where=where, expected="0 or more", got=weight)
        templates.append(Template(text, float(weight)))
    if not templates:
        raise DataError("there are no templates", where=path)
    return templates


def usable_templates(templates: Sequence[Template]) -> tuple[list[Template], list[str]]:
    """Those whose object is last, each text once, and for each of the others why it is left out."""
    kept: list[Template] = []
    left_out: list[str] = []
    for template in templates:
        before, _, behind = template.text.partition(OBJECT)
        if any(char.isalnum() for char in behind) or SUBJECT in behind:
            left_out.append("words after [Y], which a model that reads from left to right cannot take into account")
        elif not before.endswith(" "):
            left_out.append("no space in front of [Y]")
        elif any(template.text == other.text for other in kept):
            left_out.append("given before")
        else:
            kept.append(template)
    if not kept:
        raise DataError("no template is usable", expected="[Y] last, after a space", got=f"{len(templates)} others")
    total = sum(template.weight for template in kept)
    if not total:
        raise DataError("all weights of usable templates are zero", where="templates", expected="one above 0")
    if total == float("inf"):
        raise DataError("the weights of usable templates are too large", where="templates", expected="a finite sum")
    return kept, left_out


def object_candidates(base: BaseModel, facts: Sequence[Fact]) -> Candidates:
    """The facts' own objects. One whose tokens begin with another's could never be distinguished from it, and is left out."""
    objects = sorted({fact.obj for fact in facts})
    ids = {obj: _behind_a_word(base, obj) for obj in objects}
    whole = set(ids.values())
    index: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for obj in objects:
        if any(ids[obj][:end] in whole for end in range(1, len(ids[obj]))):
            left_out[obj] = "its tokens begin with another object's"
        else:
            index[obj] = len(index)
    if len(index) < 2:
        raise DataError("there are too few objects to rank", expected="at least two", got=len(index))
    return Candidates(label_tree([ids[obj] for obj in index]), index, left_out)


def vocabulary_candidates(base: BaseModel, facts: Sequence[Fact]) -> Candidates:
    """Every word of the vocabulary; objects of several tokens are left out."""
    index: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for obj in sorted({fact.obj for fact in facts}):
        ids = _behind_a_word(base, obj)
        if len(ids) == 1:
            index[obj] = ids[0]
        else:
            left_out[obj] = "it is several tokens"
    return Candidates(label_tree([(token,) for token in range(base.vocab_size)]), index, left_out)


def _behind_a_word(base: BaseModel, obj: str) -> tuple[int, ...]:
    """The tokens of an object and the space in front of it, as they stand inside of a text: no word joins across a space."""
    joined = join(base, ("a", " " + obj))
    return joined.ids[joined.begin(1) :]


def known_facts(facts: Sequence[Fact], candidates: Candidates) -> list[Fact]:
    """Facts whose object is ranked. Raises DataError if there is none."""
    kept = [fact for fact in facts if fact.obj in candidates.index]
    if not kept:
        raise DataError("no object can be ranked", got="; ".join(sorted(set(candidates.left_out.values()))))
    return kept


def ranks(
    base: BaseModel,
    facts: Sequence[Fact],
    lines: Sequence[ReportLine],
    candidates: Candidates,
    *,
    pass_tokens: int = 4096,
) -> Ints:
    """The rank [N, S], from 1, that each line gives to each fact's object. Of equal candidates the earlier one leads."""
    views: list[View] = []
    for line in lines:
        views += [view for view in line.views if view not in views]
    found = []
    for right_n, logp_nWL in _scored(base, facts, views, candidates, pass_tokens):
        each = [mixed(logp_nWL[:, [views.index(v) for v in s.views]], s.weights) for s in lines]
        found.append(np.stack([rank_of(logp_nL, right_n) for logp_nL in each], axis=1))
    return np.concatenate(found)


def view_nlls(
    base: BaseModel, facts: Sequence[Fact], views: Sequence[View], candidates: Candidates, *, pass_tokens: int = 4096
) -> Floats:
    """-log p(object | view, subject) in nats [N, W]: what weights of views are fitted to."""
    return np.concatenate(
        [
            -logp_nWL[np.arange(len(right_n)), :, right_n]
            for right_n, logp_nWL in _scored(base, facts, views, candidates, pass_tokens)
        ]
    )


def _scored(
    base: BaseModel, facts: Sequence[Fact], views: Sequence[View], candidates: Candidates, pass_tokens: int
) -> Iterator[tuple[Ints, Floats]]:
    """The right candidates [n] of some facts, and log p(candidate | view, subject) [n, W, L], a part of the facts at a time."""
    conditions, of_view = _conditions(base, views)
    at_once = max(1, _CELLS_AT_ONCE // (len(views) * len(candidates.tree.ids)))
    for start in range(0, len(facts), at_once):
        part = facts[start : start + at_once]
        texts = [
            TextBehind(condition, tuple(base.encode(view.template.before(fact.sub))))
            for fact in part
            for view, condition in zip(views, of_view, strict=True)
        ]
        tree = candidates.tree
        logp_JL = tree.sums(edge_logps(base, conditions, texts, tree, pass_tokens=pass_tokens))
        right_n = np.array([candidates.index[fact.obj] for fact in part], dtype=np.int64)
        yield right_n, logp_JL.reshape(len(part), len(views), -1)


def mixed(logp_NWL: Floats, weights: Sequence[float]) -> Floats:
    """log sum_w weight_w p_w [N, L], the weights made to sum to one. Raises DataError where all are zero."""
    weights_W = np.array(weights)
    if not weights_W.sum() > 0:
        raise DataError("all weights are zero", where="templates", expected="one above 0")
    with np.errstate(divide="ignore"):
        joint_NWL = logp_NWL + np.log(weights_W / weights_W.sum())[None, :, None]
    found: Floats = np.logaddexp.reduce(joint_NWL, axis=1)
    return found


def rank_of(scores_NL: Floats, right_N: Ints) -> Ints:
    """The rank [N], from 1, of the right candidate by falling score."""
    own_N1 = scores_NL[np.arange(len(right_N)), right_N][:, None]
    before_NL = np.arange(scores_NL.shape[1])[None, :] < right_N[:, None]
    found: Ints = 1 + (scores_NL > own_N1).sum(axis=1) + ((scores_NL == own_N1) & before_NL).sum(axis=1)
    return found


def majority_ranks(train: Sequence[Fact], facts: Sequence[Fact], candidates: Candidates) -> Ints:
    """Ranks [N] by how often each object occurs in the training facts, whatever the subject."""
    counts = Counter(candidates.index[fact.obj] for fact in train if fact.obj in candidates.index)
    scores_L = np.array([counts[at] for at in range(len(candidates.tree.ids))], dtype=float)
    right_N = np.array([candidates.index[fact.obj] for fact in facts], dtype=np.int64)
    return rank_of(np.tile(scores_L, (len(facts), 1)), right_N)


def relation_lines(
    labels: Sequence[str], ranks_NS: Ints, *, resamples: int = 10_000, seed: int = 0
) -> list[RelationLine]:
    """P@1, P@10 and MRR with intervals drawn by row, none with fewer than MIN_UNITS rows."""
    rows = len(ranks_NS)
    measures = [(ranks_NS <= 1).astype(float), (ranks_NS <= 10).astype(float), 1.0 / ranks_NS]
    lines = []
    for at, label in enumerate(labels):
        estimates = []
        for values_NS in measures:
            ends = None
            if rows >= MIN_UNITS:
                drawn_RS = resampled_means(values_NS[:, [at]], np.ones(rows), resamples=resamples, seed=seed)
                ends = interval(drawn_RS[:, 0], rows)
            estimates.append(Estimate(float(values_NS[:, at].mean()), ends))
        lines.append(RelationLine(label, *estimates))
    return lines


def _conditions(base: BaseModel, views: Sequence[View]) -> tuple[list[Condition], list[int]]:
    """What stands in front, each once, and its index for each view."""
    prompts: list[SoftPrompt | None] = []
    for view in views:
        if view.prompt not in prompts:
            prompts.append(view.prompt)
    made = [no_prompt(base) if p is None else soft_prompt(base, f"soft prompt {at}", p) for at, p in enumerate(prompts)]
    return made, [prompts.index(view.prompt) for view in views]


def _records(path: Path) -> list[tuple[str, dict[str, object]]]:
    found = []
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError("this is not JSON", where=where, do="JSONL holds one whole JSON object a line") from None
        if not isinstance(record, dict):
            raise DataError("this record is not an object", where=where, got=type(record).__name__)
        found.append((where, record))
    return found


def _keys(record: Mapping[str, object]) -> str:
    return ", ".join(sorted(str(key)[:40] for key in record)[:8]) or "no keys"
