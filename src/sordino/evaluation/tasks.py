"""Rows of a task: a prompt and its right answer, one of a closed set of labels or free text.

Pieces come from texts.reading, so a task's files are those of training: JSONL or CSV with prompt and completion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sordino.errors import ConfigError, DataError
from sordino.evaluation.classification import Ints
from sordino.evaluation.conditions import Condition
from sordino.evaluation.label_scores import LabelTree, label_tree
from sordino.texts.examples import Tokeniser
from sordino.texts.joined import Joined, join_answer, shared_beginning
from sordino.texts.pieces import Piece

# More different answers than this are a closed set only if the user names them.
MAX_FOUND_LABELS = 100


@dataclass(frozen=True)
class Labels:
    """The answers of a closed set as they follow a prompt, with their white space."""

    texts: tuple[str, ...]

    def index(self, piece: Piece) -> int:
        """A row's right label. Raises DataError for an answer that is none of the labels."""
        try:
            return self.texts.index(piece.text)
        except ValueError:
            raise DataError(
                "this answer is none of the labels",
                where=piece.name,
                expected=", ".join(text.strip() for text in self.texts),
                got=piece.text.strip()[:60],
                do="name all of them with --labels, or correct the row",
            ) from None

    def indices(self, pieces: Sequence[Piece]) -> Ints:
        """[N], as `index`."""
        return np.array([self.index(piece) for piece in pieces], dtype=np.int64)


@dataclass(frozen=True)
class TaskRows:
    """Rows after a condition, tokenized together with its text.

    condition: without the last tokens of its text where some row's beginning changes them. ids: each row's tokens from there to
    its answers, as far as all its answers have them in common, without BOS. answers: the rest of each answer. note: about
    prompts that were cut, or "".
    """

    condition: Condition
    ids: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[tuple[int, ...], ...], ...]
    note: str


def check_rows(pieces: Sequence[Piece], where: str) -> None:
    """Raise DataError unless every row has a prompt and a completion, and there are rows."""
    if not pieces:
        raise DataError("there are no rows", where=where)
    for piece in pieces:
        if piece.kind != "completion" or not piece.prompt.strip():
            raise DataError(
                "this row is not a question with its answer",
                where=piece.name,
                expected="`prompt` and `completion`, neither empty",
                got="an empty prompt" if piece.kind == "completion" else f"a {piece.kind}",
            )


def check_task(heldout: Mapping[str, Sequence[Piece]], examples: Sequence[Piece]) -> None:
    """`check_rows` of the held-out sets, and of the examples if there are any."""
    for name, rows in (*heldout.items(), *([("--examples", examples)] if examples else [])):
        check_rows(rows, name)


def labels_of(base: Tokeniser, pieces: Sequence[Piece], named: Sequence[str] = ()) -> Labels:
    """The named labels, else the rows' completions in alphabetical order.

    Named labels get the leading white space of the rows' completions. Raises ConfigError, and DataError for fewer than two, for too
    many to be a closed set, and for a label whose tokens begin another's.
    """
    found = Counter(piece.text for piece in pieces)
    texts = sorted(found)
    if named:
        spaces = {text[: len(text) - len(text.lstrip())] for text in texts}
        space = spaces.pop() if len(spaces) == 1 else " "
        known = {text.strip(): text for text in texts}
        clean = [name.strip() for name in named]
        if "" in clean or len(set(clean)) < len(clean):
            raise ConfigError("a label is empty or given twice", where="--labels", got=", ".join(named))
        texts = [known.get(name, space + name) for name in clean]
    alike = [texts for texts in _by_words(texts).values() if len(texts) > 1]
    if alike:
        raise DataError(
            "labels differ only in white space",
            got=" and ".join(repr(text) for text in alike[0]),
            do="write them the same way in every row",
        )
    if len(texts) < 2:
        raise DataError(
            "there is only one label", where="--labels", expected="at least two", got=", ".join(texts) or "none"
        )
    if not named and len(texts) > MAX_FOUND_LABELS:
        raise DataError(
            "the answers are not a closed set",
            expected=f"at most {MAX_FOUND_LABELS} different completions",
            got=len(texts),
            do="name the labels with --labels, or measure written answers with --free",
        )
    if pieces:
        whole = [join_answer(base, (pieces[0].prompt,), text) for text in texts]
        label_trees([_answers(whole, 1)[1]], texts)
    return Labels(tuple(texts))


def _by_words(texts: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        found.setdefault(" ".join(text.split()), []).append(text)
    return found


def rows_behind(
    base: Tokeniser, condition: Condition, pieces: Sequence[Piece], answers: Sequence[Sequence[str]], max_tokens: int
) -> TaskRows:
    """Every row after `condition` with each of its answers. answers: each row's.

    A prompt of more than `max_tokens` tokens loses its beginning: the question is likelier at its end. Raises DataError for a row
    that its answer cannot be predicted from.
    """
    heads, prompts, behind, cut = [], [], [], 0
    for piece, texts in zip(pieces, answers, strict=True):
        whole = [join_answer(base, (condition.text, piece.prompt), text) for text in texts]
        begin = whole[0].begin(1)
        ids, rest = _answers(whole, 2)
        head, prompt = ids[:begin], ids[begin:]
        if len(prompt) > max_tokens:
            cut += 1
            head, prompt = condition.ids, prompt[-max_tokens:]
        if not (prompt or condition.length or base.encoder_decoder):
            raise DataError("the answer begins in the prompt's only token", where=piece.name, do="give longer prompts")
        heads.append(head)
        prompts.append(prompt)
        behind.append(rest)
    same = min((shared_beginning([condition.ids, head]) for head in heads), default=len(condition.ids))
    ids_N = tuple((*head[same:], *prompt) for head, prompt in zip(heads, prompts, strict=True))
    note = f"prompts of more than {max_tokens} tokens that lost their beginning: {cut}" if cut else ""
    return TaskRows(condition.opening(same), ids_N, tuple(behind), note)


def label_trees(answers: Sequence[Sequence[tuple[int, ...]]], texts: Sequence[str]) -> list[LabelTree]:
    """The tree of each row's labels, one for all rows whose labels have the same tokens. texts: the labels.

    Raises DataError for a label whose tokens begin another's.
    """
    known = {of_row: label_tree(of_row, texts) for of_row in dict.fromkeys(map(tuple, answers))}
    return [known[tuple(of_row)] for of_row in answers]


def _answers(whole: Sequence[Joined], part: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The common tokens before `part` of the same row with each answer, and the rest of each."""
    same = min(shared_beginning([text.ids for text in whole]), min(text.begin(part) for text in whole))
    return whole[0].ids[:same], tuple(text.ids[same:] for text in whole)


def drawn_shots(pieces: Sequence[Piece], count: int, *, seed: int) -> list[Piece]:
    """`count` rows as examples in random order, their answers as evenly distributed as the rows allow.

    Raises ConfigError where there are fewer rows.
    """
    if len(pieces) < count:
        raise ConfigError(
            "there are too few rows to show as examples", where="--shots", expected=count, got=len(pieces)
        )
    random = np.random.default_rng(seed)
    waiting: dict[str, list[Piece]] = {}
    for at in random.permutation(len(pieces)):
        waiting.setdefault(pieces[at].text, []).append(pieces[at])
    answers = sorted(waiting)
    drawn: list[Piece] = []
    while len(drawn) < count:
        for at in random.permutation(len(answers)):
            if waiting[answers[at]] and len(drawn) < count:
                drawn.append(waiting[answers[at]].pop())
    return [drawn[at] for at in random.permutation(count)]
