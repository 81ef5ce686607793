"""Pieces to examples: token ids, and which of them are targets.

A prompt and its completion, and the segments of a chat template, are encoded as one text (`joined`). A token is labelled if it has
a character of what is to be learned.

All of a text is labelled; its first token is predicted from the soft prompt's last vector. A completion is labelled with an
end-of-text token, so that the model learns to stop; a text is not, since its end is rarely a real one. In a chat, the assistant's
turns and their end markers are labelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from sordino.errors import ConfigError, DataError, ModelError
from sordino.texts.example_store import Example as Example
from sordino.texts.example_store import ExampleStore
from sordino.texts.joined import join, shared_beginning
from sordino.texts.pairs import Objective, Pair, PairTokeniser, answered_pair, text_pair
from sordino.texts.pieces import Message, Piece, exchanges

if TYPE_CHECKING:
    from torch import Generator

MIN_TAIL = 8  # tokens; a shorter last window takes tokens from the one before


class Tokeniser(PairTokeniser, Protocol):
    """What a base model must provide."""

    @property
    def bos_ids(self) -> tuple[int, ...]: ...

    def chat_segments(self, messages: list[dict[str, str]], /) -> list[tuple[str, bool]]: ...


@dataclass(frozen=True)
class Examples:
    """Examples in the order of their pieces, and notes for the user on what was cut."""

    examples: Sequence[Example]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Tokens:
    """A text's tokens, and which of them are targets. behind: the same text after a heading. input: as in `Example`."""

    ids: list[int]
    labelled: list[bool]
    behind: _Behind | None = None
    input: int | None = None

    def part(self, first: int, end: int, labels_from: int) -> _Tokens:
        """The tokens first..end, after the heading if there is one."""
        labelled = [known and i >= labels_from for i, known in enumerate(self.labelled[first:end], start=first)]
        own = _Tokens(self.ids[first:end], labelled)
        return own if self.behind is None or not any(labelled) else self.behind.part(first, end, labels_from)


@dataclass(frozen=True)
class _Behind:
    """heading: its tokens. whole: heading and text. first_word: tokens before the two tokenizations of the text agree, alone and
    in `whole`.
    """

    heading: tuple[int, ...]
    whole: _Tokens
    first_word: tuple[int, int]

    def part(self, first: int, end: int, labels_from: int) -> _Tokens:
        there = self.whole.part(self._place(first), self._place(end), self._place(labels_from))
        if not any(there.labelled):
            raise DataError(
                "a window is shorter than the first word of a text", where="--row-tokens", do="give longer windows"
            )
        heading = self.heading if first else ()
        return _Tokens([*heading, *there.ids], [*(False for _ in heading), *there.labelled])

    def _place(self, at: int) -> int:
        alone, behind = self.first_word
        return at - alone + behind if at >= alone and at else min(at, behind)


def make_examples(
    pieces: Sequence[Piece],
    base: Tokeniser,
    *,
    max_tokens: int,
    behind: str = "",
    objective: Objective = "prefix-lm",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Examples:
    """Examples of at most `max_tokens` tokens, BOS and soft prompt not counted. Every label is in exactly one example.

    A text becomes consecutive windows. A completion or chat that is too long keeps its labels and loses context: a chat is split
    before user turns, and if that is not enough the beginning of the prompt is dropped.

    behind: a heading of every example, unlabelled and not counted. Examples are cut as without it. objective: how an
    encoder-decoder learns a text (`texts.pairs`). progress: called with the characters done and their total.
    Raises DataError if nothing is labelled, ModelError for a chat and a model without a chat template, ConfigError.
    """
    if max_tokens < 2:
        raise ConfigError(
            "examples are too short to learn from", where="--row-tokens", expected="at least 2", got=max_tokens
        )
    if objective != "prefix-lm" and base.encoder_decoder is None:
        raise ConfigError("this is for encoder-decoders", where=f"--objective {objective}", do="leave it out")
    counts: Counter[str] = Counter()
    examples = ExampleStore()
    total, done, shown = sum(piece.size for piece in pieces), 0, 0
    for piece in pieces:
        made = (
            _examples_of(piece, base, max_tokens, counts, behind)
            if base.encoder_decoder is None
            else _pairs_of(piece, base, max_tokens, counts, behind, objective)
        )
        for tokens in made:
            if any(tokens.labelled):
                examples.add(tokens.ids, tokens.labelled, piece.name, input=tokens.input)
        done += piece.size
        if done >= shown + total // 200:
            shown = done
            progress(done, total)
    if not examples:
        raise DataError("the texts hold nothing to learn", expected="texts, completions or assistant turns")
    kinds = (
        ("split", "chats of more than {1} tokens, split before user turns: {0}"),
        ("cut", "prompts or chats of more than {1} tokens that lost the beginning of their context: {0}"),
        ("shortened", "outputs that lost their end, as input and output have {1} tokens together: {0}"),
        (
            "opened",
            "chats that open with the assistant, after an empty user turn as this model's template requires: {0}",
        ),
    )
    notes = tuple(text.format(counts[kind], max_tokens) for kind, text in kinds if counts[kind])
    return Examples(examples, notes)


def _examples_of(
    piece: Piece, base: Tokeniser, max_tokens: int, counts: Counter[str], behind: str
) -> Iterator[_Tokens]:
    if piece.kind == "text":
        # All of a text is a target: without a heading, the characters of its tokens are not needed.
        whole = _joined_tokens(base, [(piece.text, True)], behind) if behind else None
        ids = base.encode(piece.text) if whole is None else whole.ids
        for first, end in window_borders(len(ids), max_tokens):
            yield _Tokens(ids[first:end], [True] * (end - first)) if whole is None else whole.part(first, end, first)
    elif piece.kind == "completion":
        eos = [] if base.tokenizer.eos_token_id is None else [int(base.tokenizer.eos_token_id)]
        tokens = _joined_tokens(base, [(piece.prompt, False), (piece.text, True)], behind, end=eos)
        yield from _cut(tokens, max_tokens, counts)
    else:
        for turns in _fitting_turns(piece.messages, base, max_tokens, counts):
            yield from _cut(_chat_tokens(turns, base, counts, behind), max_tokens, counts)


def _pairs_of(
    piece: Piece, base: Tokeniser, max_tokens: int, counts: Counter[str], behind: str, objective: Objective
) -> Iterator[_Tokens]:
    """For an encoder-decoder."""
    if piece.kind == "text":
        ids = base.encode(piece.text)
        pairs: Iterator[Pair] = (
            text_pair(base, ids[first:end], f"{piece.name} {first}", objective, behind)
            for first, end in window_borders(len(ids), max_tokens)
        )
    else:
        pairs = answered_pair(piece, base, max_tokens, counts, behind)
    for read, written in pairs:
        yield _Tokens([*read, *written], [False] * len(read) + [True] * len(written), input=len(read))


def window_borders(n: int, size: int) -> list[tuple[int, int]]:
    """[first, end) of consecutive windows of at most `size` tokens that cover 0..n once.

    A tail under MIN_TAIL and the window before it are of equal length.
    """
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] < MIN_TAIL:
        starts[-1] = starts[-2] + (n - starts[-2] + 1) // 2
    return list(pairwise([*starts, n]))


def _chat_tokens(messages: Sequence[Message], base: Tokeniser, counts: Counter[str], behind: str) -> _Tokens:
    """A rendered conversation, with special tokens for its markers."""
    return _joined_tokens(base, _segments(messages, base, counts), behind, markup=True)


def _joined_tokens(
    base: Tokeniser, parts: Sequence[tuple[str, bool]], behind: str, *, end: Sequence[int] = (), markup: bool = False
) -> _Tokens:
    """Consecutive texts, each with whether it is a target. end: labelled tokens after them."""
    joined = join(base, [text for text, _ in parts], markup=markup)
    targets = {at for at, (_, is_target) in enumerate(parts) if is_target}
    # Templates write BOS; examples have none.
    written = bool(markup and base.bos_ids and joined.ids[: len(base.bos_ids)] == base.bos_ids)
    start = len(base.bos_ids) if written else 0
    ids, labelled = [*joined.ids[start:], *end], [*joined.touches(targets)[start:], *(True for _ in end)]
    if not behind:
        return _Tokens(ids, labelled)
    bos = str(base.tokenizer.decode(list(base.bos_ids))) if written else ""
    whole = join(base, (behind, parts[0][0].removeprefix(bos), *(text for text, _ in parts[1:])), markup=markup)
    touched = whole.touches({at + 1 for at in targets})
    other = _Tokens([*whole.ids, *end], [*touched, *(True for _ in end)])
    alike = shared_beginning([ids[::-1], other.ids[::-1]])
    first_word = len(ids) - alike, len(other.ids) - alike
    return _Tokens(ids, labelled, _Behind(join(base, (behind,), markup=markup).ids, other, first_word))


def _segments(messages: Sequence[Message], base: Tokeniser, counts: Counter[str]) -> list[tuple[str, bool]]:
    """The template's segments. Chat logs open with the character's greeting, which Gemma's template refuses."""
    turns = [dict(message) for message in messages]
    try:
        return base.chat_segments(turns)
    except ModelError:
        opening = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), 0)
        if turns[opening]["role"] != "assistant":
            raise
        segments = base.chat_segments([*turns[:opening], {"role": "user", "content": ""}, *turns[opening:]])
        counts["opened"] += 1
        return segments


def _fitting_turns(
    messages: Sequence[Message], base: Tokeniser, max_tokens: int, counts: Counter[str]
) -> Iterator[list[Message]]:
    """The conversation, or if it is too long, runs of its exchanges that fit, each after the system messages.

    An exchange that is too long by itself is returned whole.
    """

    def length(turns: Sequence[Message]) -> int:
        return len(_chat_tokens(turns, base, Counter(), "").ids)

    if length(messages) <= max_tokens:
        yield list(messages)
        return
    opening, rest = exchanges(messages)
    counts["split"] += len(rest) > 1
    run: list[Message] = []
    for exchange in rest:
        if run and length([*opening, *run, *exchange]) > max_tokens:
            yield [*opening, *run]
            run = []
        run += exchange
    yield [*opening, *run]


def _cut(tokens: _Tokens, max_tokens: int, counts: Counter[str]) -> Iterator[_Tokens]:
    """The example, or if it is too long, windows with each label once, after at least a quarter of context if there is any.

    A run of labels is divided only if it is too long for the rest of a window.
    """
    n = len(tokens.ids)
    if n <= max_tokens:
        yield tokens.part(0, n, 0)
        return
    counts["cut"] += 1
    targets = [i for i, known in enumerate(tokens.labelled) if known]
    at = 0
    while at < len(targets):
        start = targets[at]
        limit = start + max_tokens - min(start, max_tokens // 4)
        last = at
        while last + 1 < len(targets) and targets[last + 1] < limit:
            last += 1
        if last + 1 < len(targets) and targets[last + 1] == targets[last] + 1:
            last = _before_run(targets, at, last)
        end = targets[last] + 1
        yield tokens.part(max(0, end - max_tokens), end, start)
        at = last + 1


def _before_run(targets: Sequence[int], first: int, last: int) -> int:
    """The index before the run of consecutive targets around `last`, or `last` if that run begins at `first`."""
    i = last
    while i > first and targets[i - 1] == targets[i] - 1:
        i -= 1
    return i - 1 if i > first else last


def excerpt(examples: Sequence[Example], tokens: int, random: Generator) -> list[int]:
    """Consecutive token ids from a random place of the texts, running on into the next example."""
    import torch

    at = int(torch.randint(len(examples), (), generator=random))
    ids = list(examples[at].ids)
    ids = ids[int(torch.randint(max(1, len(ids) - tokens + 1), (), generator=random)) :]
    while len(ids) < tokens:
        at = (at + 1) % len(examples)
        ids.extend(examples[at].ids)
    return ids[:tokens]
