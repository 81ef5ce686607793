"""Pieces to examples: token ids, and which of them are to be predicted.

A prompt and its completion, and the segments of a chat template, are encoded as the one text that they are (`joined`).
A token is labelled if it has a character of what is to be learned.

A text is labelled whole; its first token is predicted from the soft prompt's last vector. A completion is labelled
with the end-of-text token behind it, so that the model learns to stop; a text is not, as its end is seldom an end. Of
a chat, the assistant's turns and their end markers are labelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from sordino.errors import ConfigError, DataError, ModelError
from sordino.texts.joined import Span, join
from sordino.texts.pieces import Message, Piece, exchanges

MIN_TAIL = 8  # tokens; a shorter last window shares with the one before


class Tokeniser(Protocol):
    """What is needed of a base model."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def bos_ids(self) -> tuple[int, ...]: ...

    def encode(self, text: str, /) -> list[int]: ...

    def encode_spans(self, text: str, /, *, markup: bool) -> tuple[list[int], list[Span] | None]: ...

    def chat_segments(self, messages: list[dict[str, str]], /) -> list[tuple[str, bool]]: ...


@dataclass(frozen=True)
class Example:
    """ids: without BOS. labelled[i]: token i is a target. piece: the name of the piece it comes from."""

    ids: tuple[int, ...]
    labelled: tuple[bool, ...]
    piece: str


@dataclass(frozen=True)
class Examples:
    """Examples in the order of their pieces, and notes for the user: what had to be cut."""

    examples: tuple[Example, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    labelled: list[bool]

    def part(self, first: int, end: int, labels_from: int) -> _Tokens:
        labelled = [known and i >= labels_from for i, known in enumerate(self.labelled[first:end], start=first)]
        return _Tokens(self.ids[first:end], labelled)


def make_examples(pieces: Sequence[Piece], base: Tokeniser, *, max_tokens: int) -> Examples:
    """Examples of at most `max_tokens` tokens (BOS and the soft prompt not counted). Every label is in exactly one
    example.

    A text becomes consecutive windows. A completion or chat that is too long keeps its labels and loses context: a
    chat is split in front of user turns, and where that is not enough the left of the prompt goes. Raises DataError
    if nothing is labelled, ModelError for a chat and a model without a chat template.
    """
    if max_tokens < 2:
        raise ConfigError(
            "examples are too short to learn from", where="--row-tokens", expected="at least 2", got=max_tokens
        )
    counts: Counter[str] = Counter()
    examples = [
        Example(tuple(tokens.ids), tuple(tokens.labelled), piece.name)
        for piece in pieces
        for tokens in _examples_of(piece, base, max_tokens, counts)
        if any(tokens.labelled)
    ]
    if not examples:
        raise DataError("no token of the texts is to be predicted", expected="texts, completions or assistant turns")
    told = (
        ("split", "chats of more than {1} tokens, split in front of user turns: {0}"),
        ("cut", "prompts or chats of more than {1} tokens that lost the left of their context: {0}"),
        ("opened", "chats that open with the assistant, behind an empty user turn as this model's template asks: {0}"),
    )
    notes = tuple(text.format(counts[kind], max_tokens) for kind, text in told if counts[kind])
    return Examples(tuple(examples), notes)


def _examples_of(piece: Piece, base: Tokeniser, max_tokens: int, counts: Counter[str]) -> Iterator[_Tokens]:
    if piece.kind == "text":
        ids = base.encode(piece.text)
        whole = _Tokens(ids, [True] * len(ids))
        for first, end in window_borders(len(ids), max_tokens):
            yield whole.part(first, end, first)
    elif piece.kind == "completion":
        yield from _cut(_completion_tokens(piece, base), max_tokens, counts)
    else:
        for turns in _fitting_turns(piece.messages, base, max_tokens, counts):
            yield from _cut(_chat_tokens(turns, base, counts), max_tokens, counts)


def window_borders(n: int, size: int) -> list[tuple[int, int]]:
    """[first, end) of consecutive windows of at most `size` tokens that cover 0..n once.

    A tail under MIN_TAIL shares evenly with the window before it.
    """
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] < MIN_TAIL:
        starts[-1] = starts[-2] + (n - starts[-2] + 1) // 2
    return list(pairwise([*starts, n]))


def _completion_tokens(piece: Piece, base: Tokeniser) -> _Tokens:
    joined = join(base, (piece.prompt, piece.text))
    end = [] if base.tokenizer.eos_token_id is None else [int(base.tokenizer.eos_token_id)]
    return _Tokens([*joined.ids, *end], [*joined.touches({1}), *(True for _ in end)])


def _chat_tokens(messages: Sequence[Message], base: Tokeniser, counts: Counter[str]) -> _Tokens:
    """A rendered conversation. Its markers are special tokens."""
    segments = _segments(messages, base, counts)
    joined = join(base, [text for text, _ in segments], markup=True)
    targets = {at for at, (_, is_target) in enumerate(segments) if is_target}
    # Templates write BOS themselves; examples go without.
    start = len(base.bos_ids) if base.bos_ids and joined.ids[: len(base.bos_ids)] == base.bos_ids else 0
    return _Tokens(list(joined.ids[start:]), list(joined.touches(targets)[start:]))


def _segments(messages: Sequence[Message], base: Tokeniser, counts: Counter[str]) -> list[tuple[str, bool]]:
    """The template's segments. Chat logs open with the character's greeting, which Gemma's refuses."""
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
    """The conversation, or if it is too long runs of its exchanges that fit, each behind the system messages.

    A single exchange that does not fit is handed on as it is.
    """

    def length(turns: Sequence[Message]) -> int:
        return len(_chat_tokens(turns, base, Counter()).ids)

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
    """The example, or if it is too long windows that carry each label once, behind at least a quarter of context if
    there is any. A run of labels is divided only if it is longer than the room beside that context.
    """
    n = len(tokens.ids)
    if n <= max_tokens:
        yield tokens
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
    """The index before the run of neighbours that `last` is in, or `last` if that run begins at `first`."""
    i = last
    while i > first and targets[i - 1] == targets[i] - 1:
        i -= 1
    return i - 1 if i > first else last
