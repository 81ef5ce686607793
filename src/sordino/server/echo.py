"""Log probabilities in answers, and OpenAI's `echo`: the text in front of its continuation with its own, for scoring programs.

Positions of the soft prompt and BOS are not of the text. Its first token has no log probability, as everywhere, unless the client
sends the BOS that is ahead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sordino.engine.sampling import Drawn
from sordino.models.description import DescribedModel
from sordino.server.errors import refusing


@dataclass(frozen=True)
class EchoedText:
    """A text as it was sent, and its ids. bos: how many of them are BOS."""

    text: str
    ids: tuple[int, ...]
    bos: int

    @staticmethod
    def of(base: DescribedModel, given: str | Sequence[int]) -> EchoedText:
        """Raises Refused."""
        with refusing("prompt"):
            ids = tuple(base.encode(given) if isinstance(given, str) else given)
            text = given if isinstance(given, str) else base.decode(given)
        return EchoedText(text, ids, len(ids) - len(base.without_bos(ids)))

    def logprobs(self, base: DescribedModel, scored: Sequence[Drawn]) -> dict[str, Any]:
        """As in a choice of /v1/completions."""
        scorable = len(self.ids) - max(1, self.bos)
        return text_logprobs(base, self.ids, scored[-scorable:] if scorable > 0 else ())


def text_logprobs(base: DescribedModel, ids: Sequence[int], drawn: Sequence[Drawn]) -> dict[str, Any]:
    """As in a choice of /v1/completions. drawn: the last of the ids; those before have no log probability."""
    none: list[None] = [None] * (len(ids) - len(drawn))
    tokens = [base.token_text(token) for token in ids]
    return {
        "tokens": tokens,
        "token_logprobs": [*none, *(one.logprob for one in drawn)],
        "top_logprobs": [*none, *(top_of(base, one) for one in drawn)],
        "text_offset": list(accumulate(map(len, tokens), initial=0))[:-1],
    }


def chat_logprobs(base: DescribedModel, drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    """As `content` in a choice of /v1/chat/completions."""

    def entry(token: int, value: float | None) -> dict[str, Any]:
        text = base.token_text(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    return [{**entry(one.token, one.logprob), "top_logprobs": [entry(*likely) for likely in one.top]} for one in drawn]


def top_of(base: DescribedModel, drawn: Drawn) -> dict[str, float]:
    """The likeliest words at a token. Of tokens with the same text (halves of characters) the likeliest counts."""
    return {base.token_text(token): value for token, value in reversed(drawn.top)}
