"""OpenAI's `echo`: the text in front of its continuation, with its own log probabilities, which is what scoring programs ask for.

Positions of the soft prompt and BOS are not of the text. Its first token has no log probability, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sordino.forward.score_text import score_text
from sordino.models.context import check_context
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.server.errors import Refused, refusing
from sordino.server.generation import leading_positions
from sordino.server.serving import Serving

_MOST_LIKELIEST = 20


@dataclass(frozen=True)
class EchoedText:
    """A text as it was sent. logprobs: as in a choice of /v1/completions; None where they were not asked for."""

    text: str
    logprobs: dict[str, Any] | None


def echoed_texts(
    serving: Serving, given: Sequence[str | Sequence[int]], prompt: StoredPrompt | None, logprobs: int | None
) -> list[EchoedText]:
    """given: the texts, or their ids, as they were sent. logprobs: how many of the likeliest words. Raises Refused."""
    return [_echoed(serving, one, prompt, logprobs) for one in given]


def _echoed(
    serving: Serving, given: str | Sequence[int], prompt: StoredPrompt | None, logprobs: int | None
) -> EchoedText:
    base = serving.base
    text = given if isinstance(given, str) else base.decode(given)
    if logprobs is None:
        return EchoedText(text, None)
    network = serving.backend.network
    if network is None:
        raise Refused(
            400, f"{serving.runner} gives no log probabilities of a text: serve with --runner torch", field="echo"
        )
    if isinstance(prompt, Mixture):
        raise Refused(400, "log probabilities of a text behind a mixture are not implemented", field="echo")
    if not 0 <= logprobs <= _MOST_LIKELIEST:
        raise Refused(400, f"logprobs: 0 to {_MOST_LIKELIEST} was expected, got {logprobs}", field="logprobs")
    with refusing("prompt"):
        sent = base.encode(given) if isinstance(given, str) else list(given)
        ids = base.without_bos(sent)
        parts = {"in front": leading_positions(base, prompt), "text": len(ids)}
        check_context(parts, serving.context_length, what="the text", where="prompt", do="shorten the text")
        scored = score_text(network, prompt, ids, logprobs)
    # A BOS that the client sends has no log probability, like the text's first token.
    unscored = len(sent) - len(scored.logp_T)
    tokens = [base.token_text(token) for token in sent]
    return EchoedText(
        text,
        {
            "tokens": tokens,
            "token_logprobs": [*[None] * unscored, *scored.logp_T.tolist()],
            "top_logprobs": [*[None] * unscored, *_likeliest(base, scored.likeliest_Tk, scored.likeliest_logp_Tk)],
            "text_offset": _offsets(tokens),
        },
    )


def with_echo(body: dict[str, Any], echoes: Sequence[EchoedText], n: int) -> dict[str, Any]:
    """An answer of /v1/completions with each text in front of its n continuations."""
    for at, choice in enumerate(body["choices"]):
        echo = echoes[at // n]
        new = choice["logprobs"]
        choice["text"] = echo.text + choice["text"]
        if echo.logprobs is not None and new is not None:
            new["text_offset"] = [offset + len(echo.text) for offset in new["text_offset"]]
            choice["logprobs"] = {name: [*values, *new[name]] for name, values in echo.logprobs.items()}
    return body


def _likeliest(base: DescribedModel, ids_Tk: Any, logp_Tk: Any) -> list[dict[str, float]]:
    rows = zip(ids_Tk.tolist(), logp_Tk.tolist(), strict=True)
    # Of tokens with the same text (halves of characters) the likeliest counts.
    return [
        {base.token_text(token): value for token, value in reversed(list(zip(ids, values, strict=True)))}
        for ids, values in rows
    ]


def _offsets(tokens: Sequence[str]) -> list[int]:
    offsets, offset = [], 0
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return offsets
