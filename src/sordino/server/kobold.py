"""KoboldAI's API, version 1 (also under /api/latest), and KoboldCpp's additions that clients call today (/api/extra).

Too long a text loses its beginning: clients wait for ever on an error there. Soft prompts are named as their files, `voice.zip`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import StreamingResponse
from pydantic import StrictStr, ValidationError
from starlette.concurrency import run_in_threadpool

from sordino.errors import BadInput
from sordino.server.bodies import STREAM_HEADERS, long_answer
from sordino.server.errors import Refused, refusing
from sordino.server.generation import unless_disconnected
from sordino.server.kobold_fields import GenerateRequest, KoboldSettings, formatted, sampling_of
from sordino.server.kobold_generation import NOT_VALID, KoboldState, begun, kobold_state_of
from sordino.server.serving import Idle, Serving, serving_of, state_of

VERSION = "1.2.5"
# The version of KoboldCpp whose additions these are: clients ask for it to learn what they may call.
CPP_VERSION = "1.90"
# The routes validate the body themselves, over the server's settings; this is the schema that they validate against.
_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": GenerateRequest.model_json_schema()}}}
}

# A body of one field.
_Text = Annotated[StrictStr, Body(embed=True)]

# Mounted twice: /api/v1 and /api/latest.
router = APIRouter(tags=["KoboldAI"])
extra = APIRouter(prefix="/api/extra", tags=["KoboldCpp"])


def new_state(state: Serving | Idle) -> KoboldState:
    context = 2048 if isinstance(state, Idle) else min(2048, state.context_length)
    return KoboldState(KoboldSettings(max_context_length=context))


# Model and settings ------------------------------------------------------------------------------------------------------


@router.get("/info/version")
async def version() -> dict[str, str]:
    """KoboldAI's version whose API this is."""
    return {"result": VERSION}


@router.get("/model")
async def model(request: Request) -> dict[str, str]:
    """The model's id; "ReadOnly", as in KoboldAI, where none is loaded."""
    state = state_of(request)
    return {"result": "ReadOnly" if isinstance(state, Idle) else state.base.id}


@router.put("/model")
async def change_model(request: Request, model: _Text) -> dict[str, Any]:
    """Serve another model. Running requests of the old one finish; the answer comes when it is unloaded."""
    serving, state = state_of(request), request.app.state
    if isinstance(serving, Serving) and model in (serving.model, serving.base.id):
        return {}
    if state.models is None or not state.models.may_change_to(model):
        raise Refused(422, f"not a model that this server may change to: {model!r}; see --other-model", field="model")
    with refusing("model"):
        await run_in_threadpool(state.models.change, model, lambda new: setattr(state, "serving", new))
    return {}


@router.get("/config/soft_prompt")
def soft_prompt(request: Request) -> dict[str, str]:
    """The default soft prompt, as a file name; empty where there is none."""
    prompts = state_of(request).prompts
    name = prompts.default
    return {"value": "" if name is None else prompts.named(name).file}


@router.put("/config/soft_prompt")
def set_soft_prompt(request: Request, value: _Text) -> dict[str, Any]:
    """Set the default soft prompt by its file name; an empty one clears it."""
    with refusing("value"):
        try:
            state_of(request).prompts.set_default(value.strip() or None)
        except BadInput as error:
            raise Refused(422, NOT_VALID, field="value") from error
    return {}


@router.get("/config/soft_prompts_list", response_model=dict[str, Any])
def soft_prompts_list(request: Request) -> Any:
    """Every file that can be loaded into this model."""
    return long_answer("values", ({"value": one.file} for one in state_of(request).prompts.usable()))


@router.get("/config/{name}")
async def setting(request: Request, name: str) -> dict[str, Any]:
    """The default of requests that leave this field out."""
    return {"value": getattr(kobold_state_of(request).settings, _setting_name(name))}


@router.put("/config/{name}")
async def change_setting(request: Request, name: str, value: Annotated[Any, Body(embed=True)]) -> dict[str, Any]:
    """The default of requests that leave this field out, for as long as the server runs."""
    state, name = kobold_state_of(request), _setting_name(name)
    try:
        settings = KoboldSettings.model_validate(state.settings.model_dump() | {name: value})
    except ValidationError as error:
        raise Refused(422, error.errors()[0]["msg"], field="value") from error
    with refusing("value"):
        sampling_of(GenerateRequest(prompt="", **settings.model_dump()), (), {})
    # As a default it would be refused in every request that leaves it out.
    most = state_of(request).limits.max_tokens
    if name == "max_length" and settings.max_length > most:
        raise Refused(422, f"Must be at most {most}.", field="value")
    state.settings = settings
    return {}


def _setting_name(name: str) -> str:
    if name not in KoboldSettings.model_fields:
        raise Refused(404, f"there is no setting called {name!r}", field="name")
    return name


# Generation --------------------------------------------------------------------------------------------------------------


@router.post("/generate", openapi_extra=_BODY)
async def generate(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """{"results": [{"text"}]}: one for each of n."""
    running = await begun(request, body)
    try:
        await unless_disconnected(request, running.finished())
    finally:
        kobold_state_of(request).end(running)
    return {"results": [{"text": formatted(text, running.fields)} for text in running.texts]}


@extra.post("/generate/stream", openapi_extra=_BODY)
async def generate_stream(request: Request, body: dict[str, Any]) -> StreamingResponse:
    """Events `message` with {"token", "finish_reason"}."""
    running = await begun(request, {**body, "n": 1})

    def event(token: str, reason: str | None) -> bytes:
        content = json.dumps({"token": token, "finish_reason": reason}, ensure_ascii=False)
        return f"event: message\ndata: {content}\n\n".encode()

    async def events() -> AsyncGenerator[bytes]:
        try:
            while (piece := await running.pieces.get()) is not None:
                yield event(piece, None)
            yield event("", "stop" if running.aborted else running.reason)
        finally:
            if running.task is not None and not running.task.done():
                running.abort()
            kobold_state_of(request).end(running)

    return StreamingResponse(events(), media_type="text/event-stream", headers=STREAM_HEADERS)


@extra.post("/abort")
async def abort(request: Request, body: dict[str, Any] | None = None) -> dict[str, bool]:
    """End the generation of this `genkey`; without one, the last that has none."""
    generation = kobold_state_of(request).running.get(str((body or {}).get("genkey", "")))
    if generation is not None:
        generation.abort()
    return {"success": generation is not None}


@extra.get("/generate/check")
@extra.post("/generate/check")
async def check(request: Request, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The text so far of the generation of this `genkey`."""
    generation = kobold_state_of(request).running.get(str((body or {}).get("genkey", "")))
    return {"results": [{"text": generation.texts[0] if generation else ""}]}


@extra.get("/true_max_context_length")
async def true_max_context_length(request: Request) -> dict[str, int]:
    """The model's context in tokens."""
    return {"value": serving_of(request).context_length}


@extra.get("/version")
async def cpp_version() -> dict[str, str]:
    """KoboldCpp's version whose API this is."""
    return {"result": "KoboldCpp", "version": CPP_VERSION}


@extra.get("/perf")
async def perf(request: Request) -> dict[str, Any]:
    """What runs, what waits, and how long the last generation took."""
    serving, state = serving_of(request), kobold_state_of(request)
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
