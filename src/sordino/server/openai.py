"""OpenAI's routes: /v1/models, /v1/completions, /v1/chat/completions.

A soft prompt is chosen by the model's name (`smollm2:voice`) or by the field `soft_prompt` ("" or null: none). Sampling fields that
OpenAI lacks have vLLM's names. OpenAI's fields that mean nothing here are accepted at the value that changes nothing, and
refused by name at any other; fields that nobody knows are refused by name.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from sordino.engine.requests import Chunk, End
from sordino.engine.requests import Request as Row
from sordino.engine.sampling import Drawn, Sampling
from sordino.errors import SordinoError
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import StoredPrompt
from sordino.server.errors import Refused, body_of, refused
from sordino.server.generation import Job, Written, chat_ids, requests_of, stream, width_of, write
from sordino.server.leaving import unless_left
from sordino.server.openai_fields import (
    ChatRequest,
    CompletionRequest,
    Options,
    plain,
    refuse_foreign,
    sampling_of,
    texts_of,
    weighed,
)
from sordino.server.serving import Idle, Serving, serving_of, state_of

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.get("/models")
def models(request: Request) -> dict[str, Any]:
    """The base model, and every soft prompt that fits it as a model of its own."""
    serving = state_of(request)
    if isinstance(serving, Idle):
        return {"object": "list", "data": []}
    return {
        "object": "list",
        "data": [_card(serving, None), *(_card(serving, v.entry.name) for v in serving.voices.usable())],
    }


@router.get("/models/{name:path}")
def model(request: Request, name: str) -> dict[str, Any]:
    serving = serving_of(request)
    voice = _voice_in(serving, name)
    return _card(serving, None if voice is None else serving.voices.named(voice).entry.name)


@router.post("/completions")
async def completions(request: Request, asked: CompletionRequest) -> Any:
    serving = serving_of(request)
    soft = await run_in_threadpool(_prompt_of, serving, asked)
    sampling = sampling_of(
        serving, asked, max_tokens=16 if asked.max_tokens is None else asked.max_tokens, logprobs=asked.logprobs
    )
    texts = await run_in_threadpool(texts_of, serving.base, asked.prompt)
    jobs = [_job(request, asked, ids, soft, sampling) for ids in texts]
    if sum(job.n for job in jobs) > serving.limits.n:
        field = "prompt" if asked.n in (None, 1) else "n"
        raise Refused(400, f"at most {serving.limits.n} continuations in one request", field=field)
    requests = [one for job in jobs for one in requests_of(serving.base, job)]
    identity = _Identity(f"cmpl-{secrets.token_hex(12)}", "text_completion", int(time.time()), asked.model)
    if asked.stream:
        return _streamed(serving, asked, requests, identity, _text_shape(serving.base, asked.logprobs))
    done = await _write(serving, request, requests)
    choices = [
        {
            "index": i,
            "text": one.text,
            "logprobs": _text_logprobs(serving.base, one.parts, asked.logprobs),
            "finish_reason": one.end.reason,
        }
        for i, one in enumerate(done)
    ]
    return identity.of({"choices": choices, "usage": _usage([one.end for one in done], asked.n or 1)})


@router.post("/chat/completions")
async def chat_completions(request: Request, asked: ChatRequest) -> Any:
    serving = serving_of(request)
    soft = await run_in_threadpool(_prompt_of, serving, asked)
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise Refused(400, "give max_tokens or max_completion_tokens, not both", field="max_completion_tokens")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refused(400, "top_logprobs needs logprobs", field="top_logprobs")
    try:
        ids = await run_in_threadpool(chat_ids, serving.base, [plain(message) for message in asked.messages])
    except SordinoError as error:
        raise refused(error, field="messages") from error
    most = asked.max_completion_tokens if asked.max_tokens is None else asked.max_tokens
    if most is None:
        # Until the model ends its turn: as far as context and server let it.
        most = min(serving.limits.max_tokens, max(1, serving.context_length - width_of(serving.base, soft) - len(ids)))
    names = {"logprobs": "top_logprobs"} | (
        {} if asked.max_tokens is not None else {"max_tokens": "max_completion_tokens"}
    )
    sampling = sampling_of(
        serving, asked, max_tokens=most, logprobs=(asked.top_logprobs or 0) if asked.logprobs else None, names=names
    )
    job = _job(request, asked, ids, soft, sampling)
    requests = requests_of(serving.base, job)
    identity = _Identity(f"chatcmpl-{secrets.token_hex(12)}", "chat.completion", int(time.time()), asked.model)
    if asked.stream:
        return _streamed(serving, asked, requests, identity, _chat_shape(serving.base, logprobs=bool(asked.logprobs)))
    done = await _write(serving, request, requests, text_field="messages")
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": one.text, "refusal": None},
            "logprobs": _chat_logprobs(serving.base, _drawn(one.parts)) if asked.logprobs else None,
            "finish_reason": one.end.reason,
        }
        for i, one in enumerate(done)
    ]
    return identity.of({"choices": choices, "usage": _usage([one.end for one in done], asked.n or 1)})


# What was asked ---------------------------------------------------------------------------------------------------------


def _voice_in(serving: Serving, model: str) -> str | None:
    """The soft prompt that a model's name chooses: `base:voice`. Raises Refused for another model."""
    # Not split at the colon: names of base models may have one of their own.
    for known in (serving.model, serving.base.id):
        if model == known:
            return None
        if model.startswith(f"{known}:"):
            return model[len(known) + 1 :]
    known_names = ", ".join(dict.fromkeys((serving.model, serving.base.id)))
    raise Refused(
        404, f"no such model: {model!r}; this server has {known_names}", field="model", code="model_not_found"
    )


def _prompt_of(serving: Serving, asked: Options) -> StoredPrompt | None:
    refuse_foreign(asked)
    by_model = _voice_in(serving, asked.model)
    said = by_model
    if asked.soft_prompt is not None:
        said = asked.soft_prompt or None
        if by_model is not None and said != by_model:
            raise Refused(400, f"the model says {by_model!r}, and soft_prompt something else", field="soft_prompt")
    if said is None:
        return weighed(asked, None)
    try:
        found = serving.voices.prompt(said)
    except SordinoError as error:
        raise refused(error, field="model" if by_model else "soft_prompt") from error
    prompt = weighed(asked, found)
    serving.metrics.prompts.labels(serving.voices.named(said).entry.name).inc()
    return prompt


def _job(request: Request, asked: Options, ids: tuple[int, ...], soft: StoredPrompt | None, sampling: Sampling) -> Job:
    n = 1 if asked.n is None else asked.n
    limit = serving_of(request).limits.n
    if not 1 <= n <= limit:
        raise Refused(400, f"1 to {limit} was expected, got {n}", field="n")
    seed = secrets.randbits(62) if asked.seed is None else asked.seed % 2**63
    client = request.client.host if request.client else ""
    return Job(ids, soft, sampling, seed, n, client, token_mixture=bool(asked.token_mixture))


# What is answered -------------------------------------------------------------------------------------------------------


class _Identity:
    """What every piece of one answer repeats."""

    def __init__(self, name: str, kind: str, created: int, model: str) -> None:
        self._said = {"id": name, "object": kind, "created": created, "model": model}

    def of(self, rest: Mapping[str, Any], *, chunk: bool = False) -> dict[str, Any]:
        said = dict(self._said)
        if chunk and said["object"] == "chat.completion":
            said["object"] = "chat.completion.chunk"
        return {**said, **rest}


async def _write(
    serving: Serving, request: Request, requests: Sequence[Row], *, text_field: str = "prompt"
) -> list[Written]:
    try:
        return await unless_left(request, write(serving, "openai", requests))
    except SordinoError as error:
        raise refused(error, field=_field_of(error, text_field)) from error


def _field_of(error: SordinoError, text_field: str) -> str:
    """What the engine calls the prompt, by the route's name for it; "" where it is about something else."""
    return text_field if error.where == "prompt" else ""


@dataclass(frozen=True)
class _Shape:
    """What a route's stream is made of: each continuation's opening, a chunk's choice (None: nothing to tell yet), its closing.

    text_field: what the route calls the text.
    """

    opening: dict[str, Any] | None
    delta: Callable[[int, Chunk], dict[str, Any] | None]
    closing: dict[str, Any]
    text_field: str = "prompt"


def _text_shape(base: DescribedModel, logprobs: int | None) -> _Shape:
    offsets: dict[int, int] = {}

    def delta(index: int, chunk: Chunk) -> dict[str, Any] | None:
        if not chunk.text and logprobs is None:
            return None
        told = _text_logprobs(base, (chunk,), logprobs, start=offsets.get(index, 0))
        offsets[index] = offsets.get(index, 0) + len(chunk.text)
        return {"text": chunk.text, "logprobs": told}

    return _Shape(None, delta, {"text": "", "logprobs": None})


def _chat_shape(base: DescribedModel, *, logprobs: bool) -> _Shape:
    def delta(index: int, chunk: Chunk) -> dict[str, Any] | None:
        if not chunk.text and not logprobs:
            return None
        return {"delta": {"content": chunk.text}, "logprobs": _chat_logprobs(base, chunk.drawn) if logprobs else None}

    opening = {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
    return _Shape(opening, delta, {"delta": {}, "logprobs": None}, "messages")


def _streamed(
    serving: Serving, asked: Options, requests: Sequence[Row], identity: _Identity, shape: _Shape
) -> StreamingResponse:
    try:
        # While there is still a status to say it with.
        serving.backend.check(requests)
    except SordinoError as error:
        raise refused(error, field=_field_of(error, shape.text_field)) from error
    wanted = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    pieces = _pieces(serving, requests, identity, shape, n=asked.n or 1, usage_wanted=wanted)
    return StreamingResponse(pieces, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _pieces(
    serving: Serving, requests: Sequence[Row], identity: _Identity, shape: _Shape, *, n: int, usage_wanted: bool
) -> AsyncGenerator[bytes]:
    more = {"usage": None} if usage_wanted else {}

    def piece(index: int, choice: Mapping[str, Any], reason: str | None = None) -> bytes:
        choices = [{"index": index, **choice, "finish_reason": reason}]
        return _event(identity.of({"choices": choices, **more}, chunk=True))

    begun: set[int] = set()
    ends: list[End] = []
    try:
        async with aclosing(stream(serving, "openai", requests)) as events:
            async for index, happened in events:
                if index not in begun and shape.opening is not None:
                    yield piece(index, shape.opening)
                begun.add(index)
                if isinstance(happened, End):
                    ends.append(happened)
                    yield piece(index, shape.closing, happened.reason)
                elif (choice := shape.delta(index, happened)) is not None:
                    yield piece(index, choice)
    except SordinoError as error:
        answer = refused(error)
        yield _event(body_of("/v1", answer.status, answer.message, field=answer.field, code=answer.code))
        return
    if usage_wanted:
        yield _event(identity.of({"choices": [], "usage": _usage(ends, n)}, chunk=True))
    yield b"data: [DONE]\n\n"


def _event(content: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def _text_logprobs(
    base: DescribedModel, parts: Sequence[Chunk], wanted: int | None, *, start: int = 0
) -> dict[str, Any] | None:
    if wanted is None:
        return None
    offsets, at = [], start
    for part in parts:
        offsets += [at] * len(part.drawn)
        at += len(part.text)
    drawn = _drawn(parts)
    return {
        "tokens": [base.token_text(one.token) for one in drawn],
        "token_logprobs": [one.logprob for one in drawn],
        # Of words with the same text (halves of characters) the likeliest is told.
        "top_logprobs": [{base.token_text(i): value for i, value in reversed(one.top)} for one in drawn],
        "text_offset": offsets,
    }


def _chat_logprobs(base: DescribedModel, drawn: Sequence[Drawn]) -> dict[str, Any]:
    def told(token: int, value: float | None) -> dict[str, Any]:
        text = base.token_text(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    content = [
        {**told(one.token, one.logprob), "top_logprobs": [told(i, value) for i, value in one.top]} for one in drawn
    ]
    return {"content": content, "refusal": None}


def _drawn(parts: Sequence[Chunk]) -> list[Drawn]:
    return [one for part in parts for one in part.drawn]


def _usage(ends: Sequence[End], n: int) -> dict[str, int]:
    """A text is counted once, however many of its n continuations there are. The soft prompt's positions count as read."""
    read, new = sum(end.n_prompt for end in ends) // n, sum(end.n_new for end in ends)
    return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}


def _card(serving: Serving, voice: str | None) -> dict[str, Any]:
    name = serving.model
    card = {
        "id": name if voice is None else f"{name}:{voice}",
        "object": "model",
        "created": serving.started,
        "owned_by": "sordino",
    }
    return card | {"root": serving.base.id, "parent": None if voice is None else name}
