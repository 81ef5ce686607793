"""OpenAI's routes: /v1/models, /v1/completions, /v1/chat/completions.

A soft prompt is chosen by the model's name (`smollm2:keeper`) or by the field `soft_prompt` ("" or null: none). Sampling fields
that OpenAI lacks have vLLM's names; `foreign` lists other programs' names, and fields that are not implemented: these are accepted
at the value that changes nothing and refused by name at any other. Unknown fields are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from sordino.engine.requests import request_for, room_for_new
from sordino.engine.sampling import Sampling
from sordino.errors import SordinoError
from sordino.library.names import near_misses
from sordino.prompts.mixture import StoredPrompt
from sordino.server.bodies import STREAM_HEADERS, long_answer
from sordino.server.chat_fields import ChatRequest, conversation_ids
from sordino.server.echo import EchoedText
from sordino.server.errors import Refused, refused, refusing
from sordino.server.generation import Generation, client_of, continuations, leading_positions, seed_of
from sordino.server.openai_answers import Answer, ChatFormat, TextFormat
from sordino.server.openai_fields import (
    CompletionRequest,
    Options,
    StreamOptions,
    as_asked,
    grammar_of,
    refuse_unsupported,
    sampling_of,
    several,
    texts_of,
)
from sordino.server.serving import Idle, Serving, serving_of, state_of

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.get("/models", response_model=dict[str, Any])
def models(request: Request) -> Any:
    """The base model, and every soft prompt that fits it as a model of its own."""
    serving = state_of(request)
    if isinstance(serving, Idle):
        return {"object": "list", "data": []}
    return long_answer("data", model_list(serving), object="list")


def model_list(serving: Serving) -> list[dict[str, Any]]:
    """The base model first."""
    return [_model(serving, name) for name in (None, *(one.entry.name for one in serving.prompts.usable()))]


@router.get("/models/{name:path}")
def model(request: Request, name: str) -> dict[str, Any]:
    """The base model or one of its soft prompts, by its id."""
    serving = serving_of(request)
    prompt = _prompt_named_by(serving, name)
    return _model(serving, None if prompt is None else serving.prompts.named(prompt).entry.name)


@router.post("/completions")
async def completions(request: Request, options: CompletionRequest) -> Any:
    """Continue texts or token ids, with or without a soft prompt."""
    serving = serving_of(request)
    prompt = await run_in_threadpool(_prompt_of, serving, options)
    max_tokens = 16 if options.max_tokens is None else options.max_tokens
    only_echo = bool(options.echo) and max_tokens == 0
    at_least = max(max_tokens, int(only_echo))
    sampling = await run_in_threadpool(sampling_of, serving, options, max_tokens=at_least, logprobs=options.logprobs)
    given = several(options.prompt)
    # Before any of them is tokenized: there may be very many.
    n = _n_of(serving, options, given)
    texts = await run_in_threadpool(texts_of, serving.base, given)
    if not options.echo:
        return await _answer(request, options, texts, prompt, sampling, TextFormat(serving.base, options.logprobs))
    echoes = await run_in_threadpool(lambda: [EchoedText.of(serving.base, one) for one in given])
    each = [echo for echo in echoes for _ in range(n)]
    form = TextFormat(serving.base, options.logprobs, each, only_echo=only_echo)
    return await _answer(request, options, texts, prompt, sampling, form)


@router.post("/chat/completions")
async def chat_completions(request: Request, options: ChatRequest) -> Any:
    """Continue a chat in the model's own template, with or without a soft prompt."""
    serving = serving_of(request)
    prompt = await run_in_threadpool(_prompt_of, serving, options)
    if options.max_tokens is not None and options.max_completion_tokens is not None:
        raise Refused(400, "give max_tokens or max_completion_tokens, not both", field="max_completion_tokens")
    if options.top_logprobs is not None and not options.logprobs:
        raise Refused(400, "top_logprobs needs logprobs", field="top_logprobs")
    with refusing("messages"):
        ids = await run_in_threadpool(conversation_ids, serving.base, options)
    max_tokens = options.max_completion_tokens if options.max_tokens is None else options.max_tokens
    if max_tokens is None:
        # Until the model ends its turn: as far as the context and the server allow.
        ahead = leading_positions(serving.base, prompt) + len(ids)
        room = room_for_new(serving.base, serving.context_length, ahead)
        max_tokens = min(serving.limits.max_tokens, max(1, room))
    names = {"logprobs": "top_logprobs"}
    if options.max_tokens is None:
        names["max_tokens"] = "max_completion_tokens"
    logprobs = (options.top_logprobs or 0) if options.logprobs else None
    sampling = await run_in_threadpool(
        sampling_of, serving, options, max_tokens=max_tokens, logprobs=logprobs, names=names
    )
    form = ChatFormat(serving.base, logprobs=bool(options.logprobs))
    return await _answer(request, options, [ids], prompt, sampling, form)


async def _answer(
    request: Request,
    options: Options,
    texts: Sequence[tuple[int, ...]],
    prompt: StoredPrompt | None,
    sampling: Sampling,
    form: TextFormat | ChatFormat,
) -> Any:
    """Continue the texts, whole or as a stream. Raises Refused."""
    serving = serving_of(request)
    n = _n_of(serving, options, texts)
    client, fixed_weights = client_of(request), bool(options.token_mixture)
    grammar = await run_in_threadpool(grammar_of, serving, options.response_format)
    rows = []
    for index, ids in enumerate(texts):
        row = request_for(
            serving.base, ids, prompt, sampling, seed_of(options.seed), client=client, token_mixture=fixed_weights
        )
        scoring = form.scoring(index * n, behind_bos=len(row.ids) > len(ids))
        rows += continuations(replace(row, scoring=scoring, grammar=grammar), n)
    generation = Generation(serving, "openai", rows)
    answer = Answer(form, options.model or _model_name(serving, options), n)
    try:
        if not options.stream:
            completions = await generation.complete(request)
            # Thousands of tokens with their likeliest words take seconds to write out.
            return await run_in_threadpool(lambda: JSONResponse(answer.whole(completions)))
        generation.check()
    except SordinoError as error:
        # The engine calls the text "prompt"; what is about something else names its own field.
        raise refused(error, field=form.text_field if error.where == "prompt" else "") from error
    wanted = options.stream_options or StreamOptions()
    chunks = answer.chunks(
        generation, with_usage=bool(wanted.include_usage), continuous=bool(wanted.continuous_usage_stats)
    )
    return StreamingResponse(chunks, media_type="text/event-stream", headers=STREAM_HEADERS)


def _n_of(serving: Serving, options: Options, texts: Sequence[object]) -> int:
    """Continuations of each text. Raises Refused."""
    limit, n = serving.limits.n, 1 if options.n is None else options.n
    if not 1 <= n <= limit:
        raise Refused(400, f"1 to {limit} was expected, got {n}", field="n")
    if len(texts) * n > limit:
        field = "prompt" if n == 1 else "n"
        raise Refused(400, f"at most {limit} continuations in one request", field=field)
    return n


def _prompt_of(serving: Serving, options: Options) -> StoredPrompt | None:
    """The soft prompt that the request chooses, by its model or by its field. Raises Refused."""
    refuse_unsupported(options)
    by_model = _prompt_named_by(serving, options.model) if options.model else None
    if by_model is not None and options.soft_prompt not in (None, by_model):
        raise Refused(400, f"`model` names {by_model!r}, and `soft_prompt` another one", field="soft_prompt")
    default = None if options.model else serving.prompts.default
    own = default if options.soft_prompt is None else options.soft_prompt or None
    name = own if by_model is None else by_model
    if name is None:
        return as_asked(options, None)
    with refusing("soft_prompt" if by_model is None else "model"):
        found = serving.prompts.prompt(name)
    prompt = as_asked(options, found)
    serving.metrics.count_prompt(serving.prompts.named(name).entry.name)
    return prompt


def _prompt_named_by(serving: Serving, model: str) -> str | None:
    """The name of the soft prompt in a model's name, `BASE:NAME`. Raises Refused for another base model."""
    names = tuple(dict.fromkeys((serving.model, serving.base.id)))
    # Not split at the colon: names of base models may have one of their own.
    for base in names:
        if model == base:
            return None
        if model.startswith(f"{base}:"):
            return model[len(base) + 1 :]
    close = near_misses(model, [*names, *(f"{names[0]}:{one.entry.name}" for one in serving.prompts.usable())])
    near = f"; did you mean {' or '.join(close)}?" if close else ""
    message = f"no such model: {model!r}; this server has {', '.join(names)}{near}"
    raise Refused(404, message, field="model", code="model_not_found")


def _model_name(serving: Serving, options: Options) -> str:
    """What a request that names no model got."""
    prompt = serving.prompts.default if options.soft_prompt is None else options.soft_prompt
    return f"{serving.model}:{prompt}" if prompt else serving.model


def _model(serving: Serving, prompt: str | None) -> dict[str, Any]:
    name = serving.model
    return {
        "id": name if prompt is None else f"{name}:{prompt}",
        "object": "model",
        "created": serving.started,
        "owned_by": "sordino",
        "root": serving.base.id,
        "parent": None if prompt is None else name,
    }
