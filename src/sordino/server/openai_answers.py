"""The answers of OpenAI's completion routes: whole, or as chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from sordino.engine.requests import Chunk, End, Scoring
from sordino.engine.sampling import Drawn
from sordino.errors import SordinoError
from sordino.models.description import DescribedModel
from sordino.server.echo import EchoedText, chat_logprobs, top_of
from sordino.server.errors import body_of, refused
from sordino.server.generation import Completion, Generation


class TextFormat:
    """Choices of /v1/completions."""

    id_prefix, whole, chunk, text_field = "cmpl", "text_completion", "text_completion", "prompt"

    def __init__(
        self, base: DescribedModel, logprobs: int | None, echoes: Sequence[EchoedText] = (), *, only_echo: bool = False
    ) -> None:
        """echoes: the text in front of each continuation, where it is wanted. only_echo: and no continuation."""
        self._base, self._logprobs, self._echoes, self._only_echo = base, logprobs, echoes, only_echo
        self._offsets: dict[int, int] = {}

    def scoring(self, index: int, *, behind_bos: bool) -> Scoring | None:
        """What continuation `index` asks for its text. behind_bos: whether a BOS is among the request's ids, which predicts the
        text's first token."""
        if not self._echoes or (self._logprobs is None and not self._only_echo):
            return None
        first = self._echoes[index].bos > 0 and not behind_bos
        return Scoring(self._logprobs or 0, only=self._only_echo, first_token=first)

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        text = f"{self._echoes[index].text}{completion.text}" if self._echoes else completion.text
        return {
            "text": text,
            "logprobs": self._logprobs_of(index, (*completion.chunks, *self._last(completion.end)), 0),
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """What comes before the first chunk: an echoed text, unless that chunk has its log probabilities."""
        if not self._echoes or self._logprobs is not None:
            return None
        return {"text": self._echoes[index].text, "logprobs": None}

    def delta(self, index: int, chunk: Chunk) -> dict[str, Any] | None:
        """A chunk of continuation `index`; None where there is nothing to send yet."""
        if self._logprobs is None:
            return {"text": chunk.text, "logprobs": None} if chunk.text else None
        text = chunk.text if chunk.scored is None else self._echoes[index].text
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(text)
        return {"text": text, "logprobs": self._logprobs_of(index, (chunk,), offset)}

    def closing(self, index: int, end: End) -> dict[str, Any]:
        last = self._last(end)
        logprobs = self._logprobs_of(index, last, self._offsets.get(index, 0)) if last else None
        return {"text": "", "logprobs": logprobs}

    def _last(self, end: End) -> tuple[Chunk, ...]:
        """The end of the text as a token without text. Programs that score a text expect a token after it."""
        return (Chunk("", (end.ended_by,)),) if self._echoes and end.ended_by is not None else ()

    def _logprobs_of(self, index: int, chunks: Sequence[Chunk], offset: int) -> dict[str, Any] | None:
        """offset: characters of the text before the chunks."""
        if self._logprobs is None:
            return None
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for chunk in chunks:
            if chunk.scored is not None:
                echo = self._echoes[index]
                for name, values in echo.logprobs(self._base, chunk.scored).items():
                    found[name] += values
                offset += len(echo.text)
            found["tokens"] += [self._base.token_text(one.token) for one in chunk.drawn]
            found["token_logprobs"] += [one.logprob for one in chunk.drawn]
            found["top_logprobs"] += [top_of(self._base, one) for one in chunk.drawn]
            found["text_offset"] += [offset] * len(chunk.drawn)
            offset += len(chunk.text)
        return found


class ChatFormat:
    """Choices of /v1/chat/completions."""

    id_prefix, whole, chunk, text_field = "chatcmpl", "chat.completion", "chat.completion.chunk", "messages"

    def __init__(self, base: DescribedModel, *, logprobs: bool) -> None:
        self._base, self._logprobs = base, logprobs

    def scoring(self, index: int, *, behind_bos: bool) -> Scoring | None:
        return None

    def opening(self, index: int) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def closing(self, index: int, end: End) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None}

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        tokens = [token for chunk in completion.chunks for token in chunk.drawn]
        return {"message": message, "logprobs": self._logprobs_of(tokens)}

    def delta(self, index: int, chunk: Chunk) -> dict[str, Any] | None:
        """A chunk of continuation `index`; None where there is nothing to send yet."""
        if not chunk.text and not self._logprobs:
            return None
        return {"delta": {"content": chunk.text}, "logprobs": self._logprobs_of(chunk.drawn)}

    def _logprobs_of(self, tokens: Sequence[Drawn]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": chat_logprobs(self._base, tokens), "refusal": None}


class Answer:
    """The answer to one call. model: the name that the client used. n: continuations of each text."""

    def __init__(self, form: TextFormat | ChatFormat, model: str, n: int) -> None:
        self._form, self._n = form, n
        self._id, self._created, self._model = f"{form.id_prefix}-{secrets.token_hex(12)}", int(time.time()), model

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        choices = [
            _choice(index, self._form.choice(index, one), one.end.reason) for index, one in enumerate(completions)
        ]
        usage = self._usage([one.end for one in completions])
        return self._body(self._form.whole, {"choices": choices, "usage": usage})

    async def chunks(
        self, generation: Generation, *, with_usage: bool, continuous: bool = False
    ) -> AsyncGenerator[bytes]:
        """Server-sent events. with_usage: the last chunk has it, and all others a null in its place, or with `continuous` the
        counts so far.
        """
        form = self._form
        read, new = sum(generation.positions()) // self._n, 0

        def piece(index: int, content: Mapping[str, Any], reason: str | None = None) -> bytes:
            usage = {"usage": _usage(read, new) if continuous else None} if with_usage else {}
            return _event(self._body(form.chunk, {"choices": [_choice(index, content, reason)], **usage}))

        begun: set[int] = set()
        ends: list[End] = []
        try:
            async with aclosing(generation.stream()) as events:
                async for index, event in events:
                    if index not in begun and (opening := form.opening(index)) is not None:
                        yield piece(index, opening)
                    begun.add(index)
                    new += len(event.drawn) if isinstance(event, Chunk) else 0
                    if isinstance(event, End):
                        ends.append(event)
                        yield piece(index, form.closing(index, event), event.reason)
                    elif (delta := form.delta(index, event)) is not None:
                        yield piece(index, delta)
        except SordinoError as error:
            refusal = refused(error)
            yield _event(body_of("/v1", refusal.status, refusal.message, field=refusal.field, code=refusal.code))
            return
        if with_usage:
            yield _event(self._body(form.chunk, {"choices": [], "usage": self._usage(ends)}))
        yield b"data: [DONE]\n\n"

    def _body(self, kind: str, rest: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, **rest}

    def _usage(self, ends: Sequence[End]) -> dict[str, int]:
        """A text is counted once, however many of its n continuations there are. The soft prompt's positions count as read."""
        read, new = sum(end.n_prompt for end in ends) // self._n, sum(end.n_new for end in ends)
        return _usage(read, new)


def _usage(read: int, new: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}


def _choice(index: int, content: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "finish_reason": reason}


def _event(content: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
