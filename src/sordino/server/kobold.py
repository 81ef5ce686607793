"""KoboldAI's API, version 1 (also under /api/latest), and what today's clients ask KoboldCpp beside it (/api/extra).

Too long a text loses its oldest part: clients wait for ever on an error there. Soft prompts are named as their files, `voice.zip`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, StrictStr, ValidationError
from starlette.concurrency import run_in_threadpool

from sordino.engine.requests import Chunk
from sordino.engine.requests import Request as Row
from sordino.engine.sampling import Sampling
from sordino.errors import BadInput, SordinoError
from sordino.prompts.mixture import StoredPrompt
from sordino.server.errors import Refused, refused
from sordino.server.generation import Job, requests_of, stream, width_of
from sordino.server.kobold_fields import Generate, Settings, defaults_with, formatted, sampling_of, stops_of
from sordino.server.leaving import unless_left
from sordino.server.serving import Idle, Serving, serving_of, state_of

VERSION = "1.2.5"
# The version of KoboldCpp whose extras these are: clients ask for it to learn what they may call.
CPP_VERSION = "1.90"
_NOT_VALID = "Must be a valid soft prompt name."
# The routes take anything and check it themselves, with the server's settings behind it; this is what they check.
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": Generate.model_json_schema()}}}}

# Mounted twice: /api/v1 and /api/latest.
router = APIRouter(tags=["KoboldAI"])
extra = APIRouter(prefix="/api/extra", tags=["KoboldCpp"])


@dataclass(eq=False)
class Generation:
    """A generation while it goes on: what was said so far, and the task that listens to the engine."""

    asked: Generate
    rows: list[Row]
    texts: list[str]
    seed: int
    pieces: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None
    aborted: bool = False
    reason: str = "length"
    new_tokens: int = 0
    began: float = 0.0

    async def run(self, serving: Serving) -> None:
        """Listen until all rows are over. A `None` ends the pieces, whatever happens."""
        try:
            async with aclosing(stream(serving, "kobold", self.rows)) as events:
                async for index, event in events:
                    if isinstance(event, Chunk):
                        self.new_tokens += len(event.drawn)
                        self.texts[index] += event.text
                        if event.text and index == 0:
                            self.pieces.put_nowait(event.text)
                    else:
                        self.reason = event.reason
        except SordinoError:
            self.reason = "error"
            raise
        finally:
            self.pieces.put_nowait(None)

    def abort(self) -> None:
        self.aborted, self.reason = True, "aborted"
        if self.task is not None:
            self.task.cancel()

    async def finished(self) -> None:
        """Wait for the end; what an abort left is an end too."""
        assert self.task is not None
        try:
            await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if not self.aborted:
                self.abort()
                raise


@dataclass(eq=False)
class Kobold:
    """What KoboldAI's routes keep between requests: settings, generations by key, and figures of the last one."""

    settings: Settings
    running: dict[str, Generation] = field(default_factory=dict)
    last: Generation | None = None
    last_seconds: float = 0.0
    total: int = 0


def new_state(state: Serving | Idle) -> Kobold:
    return Kobold(Settings(max_context_length=2048 if isinstance(state, Idle) else min(2048, state.context_length)))


# Model and settings ------------------------------------------------------------------------------------------------------


@router.get("/info/version")
async def version() -> dict[str, str]:
    return {"result": VERSION}


@router.get("/model")
async def model(request: Request) -> dict[str, str]:
    """The model's id; what KoboldAI says where there is none."""
    state = state_of(request)
    return {"result": "ReadOnly" if isinstance(state, Idle) else state.base.id}


class ModelName(BaseModel):
    model: StrictStr


@router.put("/model")
async def change_model(request: Request, wanted: ModelName) -> dict[str, Any]:
    """Serve another model. Running requests of the old one finish; the answer comes when it is gone."""
    serving, state = state_of(request), request.app.state
    if isinstance(serving, Serving) and wanted.model in (serving.model, serving.base.id):
        return {}
    if state.models is None or not state.models.may_change_to(wanted.model):
        raise Refused(
            422, f"not a model that this server may change to: {wanted.model!r}; see --other-model", field="model"
        )
    try:
        await run_in_threadpool(state.models.change, wanted.model, lambda new: setattr(state, "serving", new))
    except SordinoError as error:
        raise refused(error, field="model") from error
    return {}


@router.get("/config/soft_prompt")
def soft_prompt(request: Request) -> dict[str, str]:
    voices = state_of(request).voices
    name = voices.default
    return {"value": "" if name is None else voices.named(name).file}


class FileName(BaseModel):
    value: StrictStr


@router.put("/config/soft_prompt")
def set_soft_prompt(request: Request, chosen: FileName) -> dict[str, Any]:
    try:
        state_of(request).voices.set_default(chosen.value.strip() or None)
    except BadInput as error:
        raise Refused(422, _NOT_VALID, field="value") from error
    except SordinoError as error:
        raise refused(error, field="value") from error
    return {}


@router.get("/config/soft_prompts_list")
def soft_prompts_list(request: Request) -> dict[str, Any]:
    """Every file that can be loaded into this model."""
    return {"values": [{"value": voice.file} for voice in state_of(request).voices.usable()]}


@router.get("/config/{name}")
async def setting(request: Request, name: str) -> dict[str, Any]:
    return {"value": getattr(_state(request).settings, _known(name))}


@router.put("/config/{name}")
async def change_setting(request: Request, name: str, value: Annotated[Any, Body(embed=True)]) -> dict[str, Any]:
    """The default of requests that leave this field out, for as long as the server runs."""
    state, name = _state(request), _known(name)
    try:
        settings = Settings.model_validate(state.settings.model_dump() | {name: value})
        sampling_of(Generate(prompt="", **settings.model_dump()), ())
    except ValidationError as error:
        raise Refused(422, error.errors()[0]["msg"], field="value") from error
    except SordinoError as error:
        raise refused(error, field="value") from error
    # As a default it would be refused in every request that leaves it out.
    most = state_of(request).limits.max_tokens
    if name == "max_length" and settings.max_length > most:
        raise Refused(422, f"Must be at most {most}.", field="value")
    state.settings = settings
    return {}


# Writing -----------------------------------------------------------------------------------------------------------------


@router.post("/generate", openapi_extra=_BODY)
async def generate(request: Request, said: dict[str, Any]) -> dict[str, Any]:
    """{"results": [{"text"}]}: one for each of n."""
    generation = await _started(request, said)
    try:
        await unless_left(request, generation.finished())
    except SordinoError as error:
        raise refused(error) from error
    finally:
        _over(request, generation)
    return {"results": [{"text": formatted(text, generation.asked)} for text in generation.texts]}


@extra.post("/generate/stream", openapi_extra=_BODY)
async def generate_stream(request: Request, said: dict[str, Any]) -> StreamingResponse:
    """Events `message` with {"token", "finish_reason"}."""
    generation = await _started(request, {**said, "n": 1})

    async def pieces() -> AsyncGenerator[bytes]:
        def event(token: str, reason: str | None) -> bytes:
            content = json.dumps({"token": token, "finish_reason": reason}, ensure_ascii=False)
            return f"event: message\ndata: {content}\n\n".encode()

        try:
            while (piece := await generation.pieces.get()) is not None:
                yield event(piece, None)
            yield event("", "stop" if generation.aborted else generation.reason)
        finally:
            if generation.task is not None and not generation.task.done():
                generation.abort()
            _over(request, generation)

    return StreamingResponse(pieces(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@extra.post("/abort")
async def abort(request: Request, said: dict[str, Any] | None = None) -> dict[str, bool]:
    """End the generation of this `genkey`; without one the last that has none."""
    generation = _state(request).running.get(str((said or {}).get("genkey", "")))
    if generation is not None:
        generation.abort()
    return {"success": generation is not None}


@extra.get("/generate/check")
@extra.post("/generate/check")
async def check(request: Request, said: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the generation of this `genkey` has said so far."""
    generation = _state(request).running.get(str((said or {}).get("genkey", "")))
    return {"results": [{"text": generation.texts[0] if generation else ""}]}


class Text(BaseModel):
    prompt: StrictStr


@extra.post("/tokencount")
async def tokencount(request: Request, text: Text) -> dict[str, Any]:
    try:
        ids = await run_in_threadpool(_encoded, serving_of(request), text.prompt)
    except SordinoError as error:
        raise refused(error, field="prompt") from error
    return {"value": len(ids), "ids": list(ids)}


@extra.get("/true_max_context_length")
async def true_max_context_length(request: Request) -> dict[str, int]:
    return {"value": serving_of(request).context_length}


@extra.get("/version")
async def cpp_version() -> dict[str, str]:
    return {"result": "KoboldCpp", "version": CPP_VERSION}


@extra.get("/perf")
async def perf(request: Request) -> dict[str, Any]:
    serving, state = serving_of(request), _state(request)
    running, waiting = serving.backend.counts()
    last = state.last
    return {
        "last_eval": round(state.last_seconds, 3),
        "last_token_count": last.new_tokens if last else 0,
        "last_seed": last.seed if last else -1,
        "total_gens": state.total,
        "stop_reason": {"length": 0, "stop": 1}.get(last.reason, -1) if last else -1,
        "queue": waiting,
        "idle": int(running == 0),
        "uptime": int(time.time()) - serving.started,
    }


# ---------------------------------------------------------------------------------------------------------------------


def _state(request: Request) -> Kobold:
    state: Kobold = request.app.state.kobold
    return state


def _known(name: str) -> str:
    if name not in Settings.model_fields:
        raise Refused(404, f"there is no setting called {name!r}", field="name")
    return name


async def _started(request: Request, said: dict[str, Any]) -> Generation:
    """A generation that runs. Raises Refused."""
    serving, state = serving_of(request), _state(request)
    try:
        asked = Generate.model_validate(defaults_with(state.settings, said))
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(422, first["msg"], field=str(first["loc"][0])) from error
    if asked.max_length > serving.limits.max_tokens:
        raise Refused(422, f"Must be at most {serving.limits.max_tokens}.", field="max_length")
    try:
        soft = await run_in_threadpool(_soft_prompt, serving, asked)
        ids = await run_in_threadpool(_encoded, serving, asked.prompt)
    except SordinoError as error:
        raise refused(error, field="prompt") from error
    sampling = _sampling_of(asked)
    seed = secrets.randbits(62) if asked.sampler_seed is None else asked.sampler_seed % 2**63
    client = request.client.host if request.client else ""
    job = Job(_newest(serving, ids, soft, asked), soft, sampling, seed, asked.n, client)
    requests = requests_of(serving.base, job)
    try:
        serving.backend.check(requests)
    except SordinoError as error:
        field = "" if not isinstance(error, BadInput) else "soft_prompt" if error.where == "soft_prompt" else "prompt"
        raise refused(error, field=field) from error
    generation = Generation(asked, requests, [""] * asked.n, seed)
    state.running[asked.genkey] = generation
    state.last, state.total = generation, state.total + 1
    generation.began = time.monotonic()
    generation.task = asyncio.create_task(generation.run(serving))
    # Its failure is told by whoever waits for it; a client that left does not.
    generation.task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return generation


def _sampling_of(asked: Generate) -> Sampling:
    try:
        return sampling_of(asked, stops_of(asked))
    except SordinoError as error:
        flag = error.where.removeprefix("--").replace("-", "_")
        field = {"stop": "stop_sequence", "repetition_penalty": "rep_pen", "repetition_slope": "rep_pen_slope"}.get(
            flag, flag
        )
        raise refused(error, field=field) from error


def _over(request: Request, generation: Generation) -> None:
    state = _state(request)
    if state.running.get(generation.asked.genkey) is generation:
        del state.running[generation.asked.genkey]
    state.last_seconds = time.monotonic() - generation.began


def _soft_prompt(serving: Serving, asked: Generate) -> StoredPrompt | None:
    """The request's own, none where it says so, else the server's default."""
    name = serving.voices.default if asked.soft_prompt is None else asked.soft_prompt.strip() or None
    if name is None:
        return None
    try:
        prompt = serving.voices.prompt(name)
    except BadInput as error:
        raise Refused(422, _NOT_VALID, field="soft_prompt") from error
    serving.metrics.prompts.labels(serving.voices.named(name).entry.name).inc()
    return prompt


def _encoded(serving: Serving, text: str) -> tuple[int, ...]:
    return tuple(serving.base.encode(text))


def _newest(serving: Serving, ids: tuple[int, ...], soft: StoredPrompt | None, asked: Generate) -> tuple[int, ...]:
    """The end of the text that fits beside the soft prompt and what is to be written."""
    context = min(asked.max_context_length, serving.context_length)
    room = context - asked.max_length - width_of(serving.base, soft)
    if room < 1:
        raise Refused(422, f"Leaves no room for the text in {context} positions.", field="max_length")
    return ids[-room:]
