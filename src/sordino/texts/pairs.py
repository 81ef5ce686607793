"""Pieces to pairs for an encoder-decoder: what its encoder reads, and what its decoder writes.

A prompt and its completion are a pair as they are, each a text of its own. So are a question and its answer that were read as a
chat of one exchange. A plain text has no input, so a part of it becomes one:

    prefix-lm         a window is cut at a random place; the first part is read, the rest is written (Raffel et al. 2020, section
                      3.2.1, which Lester et al. 2021 adapt T5 to)
    span-corruption   spans of it are read as sentinels, and written: T5's own pretraining (section 3.1.4)

What is random depends on the window alone, so every condition and every run reads the same pairs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol

from sordino.errors import ConfigError, DataError
from sordino.texts.joined import Encoder, output_ids
from sordino.texts.pieces import Piece, is_learned

Objective = Literal["prefix-lm", "span-corruption"]
# T5's share of the tokens that are left out, and the mean length of a span.
_NOISE, _SPAN = 0.15, 3
# If an output is too long, at least this part of the tokens stays with the input: one in so many.
_LEAST_INPUT = 4

Pair = tuple[list[int], list[int]]


class PairTokeniser(Encoder, Protocol):
    """What a base model must provide."""

    @property
    def tokenizer(self) -> Any: ...


def answered_pair(
    piece: Piece, base: PairTokeniser, max_tokens: int, counts: Counter[str], behind: str
) -> Iterator[Pair]:
    """The pair of a completion or a chat, at most `max_tokens` tokens. An input loses its beginning if too long, an output its end.

    behind: a heading of the input, not counted. Raises DataError for a chat of several exchanges.
    """
    prompt, answer = (piece.prompt, piece.text) if piece.kind == "completion" else _exchange(piece)
    eos = base.tokenizer.eos_token_id
    read, written = base.encode(prompt), [*output_ids(base, answer), *([] if eos is None else [int(eos)])]
    if len(read) + len(written) > max_tokens:
        most = max_tokens - min(len(read), max_tokens // _LEAST_INPUT)
        counts["shortened"] += len(written) > most
        counts["cut"] += 1
        written = written[:most]
        read = read[max(0, len(read) + len(written) - max_tokens) :]
        yield [*(base.encode(behind) if behind else []), *read], written
        return
    yield base.encode(behind + prompt) if behind else read, written


def text_pair(base: PairTokeniser, ids: Sequence[int], name: str, objective: Objective, behind: str) -> Pair:
    """The pair of one window of a text. name: of the window. behind: a heading of the input. Raises ConfigError."""
    draw = random.Random(name)
    heading = base.encode(behind) if behind else []
    if objective == "prefix-lm":
        at = draw.randrange(1, len(ids)) if len(ids) > 1 else 0
        return [*heading, *ids[:at]], list(ids[at:])
    read, written = _corrupted(ids, sentinels_of(base), draw)
    eos = base.tokenizer.eos_token_id
    return [*heading, *read], [*written, *([] if eos is None else [int(eos)])]


def sentinels_of(base: PairTokeniser) -> list[int]:
    """T5's sentinels, <extra_id_0> and on. Raises ConfigError where the tokenizer has none."""
    known = base.tokenizer.get_vocab()
    found: list[int] = []
    while (token := known.get(f"<extra_id_{len(found)}>")) is not None:
        found.append(int(token))
    if not found:
        raise ConfigError(
            "the tokenizer has no sentinels to mark what is left out with",
            where="--objective span-corruption",
            expected="<extra_id_0> and on, as T5 has them",
            do="take --objective prefix-lm",
        )
    return found


def _corrupted(ids: Sequence[int], sentinels: Sequence[int], draw: random.Random) -> Pair:
    noise = min(max(1, round(len(ids) * _NOISE)), max(1, len(ids) - 1))
    spans = min(max(1, round(noise / _SPAN)), noise, max(1, len(ids) - noise), len(sentinels))
    read: list[int] = []
    written: list[int] = []
    at = 0
    # As in T5, a text begins with tokens that stay and ends with tokens that are left out.
    for sentinel, kept, left in zip(
        sentinels, _parts(len(ids) - noise, spans, draw), _parts(noise, spans, draw), strict=False
    ):
        read += [*ids[at : at + kept], sentinel]
        written += [sentinel, *ids[at + kept : at + kept + left]]
        at += kept + left
    return read, written


def _parts(total: int, count: int, draw: random.Random) -> list[int]:
    """`total` as a sum of `count` whole numbers, each above 0 where there is enough."""
    if total < count:
        return [total, *[0] * (count - 1)]
    borders = [0, *sorted(draw.sample(range(1, total), count - 1)), total]
    return [end - begin for begin, end in pairwise(borders)]


def _exchange(piece: Piece) -> tuple[str, str]:
    """The question with what comes before it, and the answer. Raises DataError."""
    learned = [at for at, message in enumerate(piece.messages) if is_learned(message)]
    roles = [message["role"] for message in piece.messages]
    if learned != [len(roles) - 1] or roles.count("user") > 1 or roles.count("assistant") > 1:
        raise DataError(
            "a chat of several turns, and an encoder-decoder has no template for turns",
            where=piece.name,
            expected="one question and its answer",
            do="write it as `prompt` and `completion`",
        )
    return "\n".join(message["content"] for message in piece.messages[:-1] if message["content"]), piece.text
